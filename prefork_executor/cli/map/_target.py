"""What ``prefork-executor map`` calls for each line: how it is found, and how it is called.

The command looks for it before the first line, and each worker for itself.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import inspect

CODE = "-c"
"""What the function of -c is called in messages."""


class Job(NamedTuple):
    """What to do with each line.

    ``target`` is module:function, or the code of -c if ``is_code``. ``reads`` says what the
    function gets: the "line" as a str, the "json" in it, or the items of that as arguments
    ("star"). ``constants`` are keyword arguments of every call, as JSON, which can be hashed.
    """

    target: str
    is_code: bool
    reads: str
    constants: str

    @property
    def name(self) -> str:
        """How messages call the function."""
        return CODE if self.is_code else self.target

    @property
    def module(self) -> str | None:
        """The module to import beforehand. None: there is only code."""
        return None if self.is_code else self.target.partition(":")[0]


def find(job: Job) -> Callable[..., Any]:
    """The function.

    Raises:
        ValueError: the target has another form.
        ImportError: there is no such module.
        AttributeError: the module has no such function.
        TypeError: it cannot be called.
    """
    found: Any = _evaluated(job.target) if job.is_code else _imported(job.target)
    if not callable(found):
        raise TypeError(f"{job.name} is {type(found).__name__}, which cannot be called")
    return found  # type: ignore[no-any-return]


found = functools.lru_cache(maxsize=8)(find)


def _imported(target: str) -> Any:
    """Either part of module:function may have dots."""
    module_name, colon, path = target.partition(":")
    if not colon or not path or module_name[:1] in ("", "."):
        raise ValueError(
            f"{target!r} does not have the form package.module:function; for an expression use -c"
        )
    try:
        thing: Any = importlib.import_module(module_name)
    except (ValueError, TypeError, AttributeError) as error:
        # For our caller these mean a bad target. Here the module is bad: its traceback says where.
        raise RuntimeError(f"module {module_name} cannot be imported") from error
    for name in path.split("."):
        if not hasattr(thing, name):
            raise AttributeError(f"module {module_name} has no {path!r}")
        thing = getattr(thing, name)
    return thing


def _evaluated(code: str) -> Any:
    """The value of the expression at the end of the code."""
    import ast

    try:
        module = ast.parse(code, CODE)
    except SyntaxError as error:
        raise ValueError(f"{CODE} is not valid Python: {error}") from None
    last = module.body.pop() if module.body else None
    if not isinstance(last, ast.Expr):
        raise ValueError(  # noqa: TRY004 - the text is wrong, not its type
            f"{CODE} must end in an expression whose value is the function: "
            "'import re; lambda line: re.findall(...)'"
        )
    names: dict[str, Any] = {"__name__": "map"}
    try:
        exec(compile(module, CODE, "exec"), names)
        return eval(compile(ast.Expression(last.value), CODE, "eval"), names)
    except Exception as error:  # noqa: BLE001 - it is the user's code
        raise ValueError(f"{CODE} raised {type(error).__name__}: {error}") from None


def arguments(job: Job, line: str) -> tuple[list[Any], Mapping[str, Any]]:
    """The positional and the keyword arguments that a line gives the function.

    Raises:
        ValueError: the line is no JSON, or not of the kind that --star takes.
    """
    constants = _constants(job.constants)
    if job.reads == "line":
        return [line], constants
    value = json.loads(line)
    if job.reads == "json":
        return [value], constants
    if isinstance(value, dict):
        return [], {**constants, **value}
    if isinstance(value, list):
        return value, constants
    raise ValueError(
        f"--star needs a list or an object in each line, not {type(value).__name__}: "
        "use --json for one argument"
    )


@functools.lru_cache(maxsize=8)
def _constants(constants: str) -> Mapping[str, Any]:
    return json.loads(constants)  # type: ignore[no-any-return]


# --- before the first line --------------------------------------------------------------------


def check(job: Job) -> None:
    """Find the function, and see whether it can be called and what it returns can be used.

    Raises:
        ValueError, TypeError, ImportError, AttributeError: what is wrong with it.
    """
    import inspect  # Workers do without it.

    fn = find(job)
    plain = inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise TypeError(
            f"{job.name} is a generator function, so a call of it runs none of its code: "
            "let it return a list"
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # Some functions in C do not tell theirs.
    _check_signature(job, signature)


def _check_signature(job: Job, signature: inspect.Signature) -> None:
    constants = _constants(job.constants)
    try:
        if job.reads == "star":
            signature.bind_partial(**constants)  # What else it gets is known line by line.
        else:
            signature.bind("a line", **constants)
    except TypeError as error:
        given = "a line as its argument" if job.reads != "star" else "what is in a line"
        names = ", ".join(constants)
        raise TypeError(
            f"{job.name}{signature} cannot be called with {given}"
            f"{' and ' + names + ' of --arg' if names else ''}: {error}. "
            "--star takes several arguments from each line, --arg NAME=VALUE gives one that "
            "is the same for all lines"
        ) from None
