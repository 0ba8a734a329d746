"""Named tuples that make a program's start cheaper.

Importing ``typing`` takes as long as importing all of the pool. ``collections.namedtuple``
compiles code for each class. The pool has twenty, and they took a sixth of its start. For type
checkers this NamedTuple is that of ``typing``. At run time its classes are built from what Python
has ready-made: annotated fields and defaults, ``_make``, ``_replace``, ``_asdict``, equality and
pickling as in a named tuple, and no more. Code that makes one for each task uses ``_make``:
calling the class takes three times as long.
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar
    from typing import NamedTuple as NamedTuple
else:

    class _Named(tuple):
        __slots__ = ()
        _fields: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[dict[str, Any]]

        def __new__(cls, *values: Any, **named: Any) -> _Named:
            if named or len(values) != len(cls._fields):
                values += cls._rest(len(values), named)
            return tuple.__new__(cls, values)

        @classmethod
        def _rest(cls, given: int, named: dict[str, Any]) -> tuple[Any, ...]:
            found = {**cls._defaults, **named}
            missing = cls._fields[given:]
            if given > len(cls._fields) or not named.keys() <= set(missing) <= found.keys():
                raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
            return tuple([found[field] for field in missing])

        _make = classmethod(tuple.__new__)

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes: Any) -> _Named:
            return type(self)(**{**self._asdict(), **changes})

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            fields = (f"{field}={value!r}" for field, value in self._asdict().items())
            return f"{type(self).__name__}({', '.join(fields)})"

    class _Meta(type):
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.pop("__annotations__"))
            body["_fields"] = fields
            # In the order of the fields: those with defaults come last.
            body["_defaults"] = {field: body.pop(field) for field in fields if field in body}
            for index, field in enumerate(fields):
                # namedtuple's own kind of field. A property takes four times as long to read.
                body[field] = collections._tuplegetter(index, None)
            return type(name, (_Named,), {"__slots__": (), **body})

    class NamedTuple(metaclass=_Meta):
        """As typing's."""
