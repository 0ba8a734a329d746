"""Calls and outcomes as bytes, for transport by another library.

The caller pickles a call and the worker that runs it unpickles it, and no process in between
does either. So what forwards the bytes need not be able to import what is in them, and cannot
spoil it.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback
from collections.abc import Callable, Mapping
from io import BytesIO
from types import TracebackType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
from tblib.pickling_support import pickle_exception, pickle_traceback

from ..errors import CallPicklingError, ResultPicklingError, plain_stand_in
from ..maps import function_of

MAX_TEXT = 500
"""Characters of an exception that are shown on the way. The exception arrives whole."""


class CarriedCall:
    """A pickled call. Calling this object makes the call and returns the pickled result.

    Args:
        fn: called as ``fn(*args, **kwargs)``.
        args: its positional arguments.
        kwargs: its arguments by name.

    Raises:
        CallPicklingError: a part of it cannot be pickled.
    """

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        # An executor's messages call this task by these names.
        named = function_of(fn)
        self.__module__ = getattr(named, "__module__", None) or ""
        self.__qualname__ = getattr(named, "__qualname__", None) or type(named).__qualname__
        try:
            self._call = _dump((fn, args, dict(kwargs)))
        except Exception as error:
            raise CallPicklingError(f"the call cannot be pickled: {error}") from error

    @property
    def name(self) -> str:
        """The task's name in messages."""
        return f"{self.__module__}.{self.__qualname__}".removeprefix("builtins.").lstrip(".")

    def __call__(self) -> bytes:
        """The result of the call, pickled.

        Raises:
            CarriedError: the call raised, or its result cannot be pickled.
        """
        try:
            fn, args, kwargs = pickle.loads(self._call)
            return _dump_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - the caller gets SystemExit, too
            raise CarriedError.of(error) from None


class CarriedError(Exception):
    """An exception on its way to the caller, pickled with its traceback, causes and notes.

    Attributes:
        kind: the qualified name of its class.
        text: its message, cut to a length fit for logs.
        pickled: the exception itself.
    """

    def __init__(self, kind: str, text: str, pickled: bytes) -> None:
        super().__init__(kind, text, pickled)
        self.kind = kind
        self.text = text
        self.pickled = pickled

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"

    def __repr__(self) -> str:
        return str(self)

    @classmethod
    def of(cls, error: BaseException) -> CarriedError:
        """This exception, or a stand-in if it cannot be pickled."""
        if isinstance(error, CarriedError):
            return error
        kind, text = f"{type(error).__module__}.{type(error).__qualname__}", _text(error)
        return cls(kind.removeprefix("builtins."), text, _dump_error(error))

    def restored(self) -> BaseException:
        """The exception itself, or a stand-in if it cannot be unpickled here."""
        try:
            error = pickle.loads(self.pickled)
        except Exception as reason:  # noqa: BLE001 - the user's class may raise anything
            return plain_stand_in(self.kind, self.text, str(self), _phrase(reason))
        assert isinstance(error, BaseException)
        return error


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles exceptions with their traceback, cause and context, which pickle drops."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, BaseException):
            return _reduce_error(obj)
        if isinstance(obj, TracebackType):
            return pickle_traceback(obj)
        return super().reducer_override(obj)


def _reduce_error(error: BaseException) -> Any:
    """As the exception's class says, if that works. Often it does not, because ``__init__`` has
    other arguments than those of ``Exception``. Then without ``__init__``, as tblib does; but
    that would lose what classes in C keep outside ``__dict__``."""
    try:
        reduced: Any = error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        make, args, *state = reduced
        made = make(*args)
        if type(made) is not type(error) or len(state) > 1:
            raise TypeError
    except Exception:  # noqa: BLE001 - the user's class may raise anything
        return pickle_exception(error)
    belongings = (error.__cause__, error.__context__, error.__suppress_context__)
    return _make_error, (make, args, *state), (belongings, error.__traceback__), None, None, _add


def _make_error(
    make: Callable[..., BaseException], args: tuple[Any, ...], state: Any = None
) -> BaseException:
    error = make(*args)
    if state is not None:
        error.__setstate__(state)
    return error


def _add(error: BaseException, added: tuple[tuple[Any, Any, bool], TracebackType | None]) -> None:
    (error.__cause__, error.__context__, error.__suppress_context__), error.__traceback__ = added


def _dump(thing: Any) -> bytes:
    return bytes(cloudpickle.dumps(thing, protocol=5))


def _dump_result(result: Any) -> bytes:
    try:
        return _dump(result)
    except Exception as error:
        what = f"the result cannot be pickled: {error}"
        raise ResultPicklingError(what, result=_text(result, repr)) from error


def _dump_error(error: BaseException) -> bytes:
    try:
        pickled = _dumped(error)
        pickle.loads(pickled)
    except Exception as reason:  # noqa: BLE001 - the user's class may raise anything
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        stand_in = plain_stand_in(kind, _text(error), _text(error, repr), _phrase(reason))
        return _dumped(stand_in.with_traceback(error.__traceback__))
    return pickled


def _dumped(error: BaseException) -> bytes:
    file = BytesIO()
    _Pickler(file, protocol=5).dump(error)
    return file.getvalue()


def _phrase(reason: Exception) -> str:
    return "".join(traceback.format_exception_only(reason)).strip()


def _text(thing: object, how: Callable[[object], str] = str) -> str:
    with contextlib.suppress(Exception):
        return how(thing)[:MAX_TEXT]
    return "(it cannot be shown)"
