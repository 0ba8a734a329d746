"""Named tuples that cost a program's start less.

``typing`` takes as long to import as all of the pool. To type checkers this NamedTuple is
typing's; when the program runs it is made by ``collections.namedtuple``, with the fields and
defaults as they are annotated, and the methods, of the class statement.
"""

from __future__ import annotations

import collections

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
    from typing import NamedTuple as NamedTuple
else:

    class _Meta(type):
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = list(body.pop("__annotations__"))
            # In the order of the fields: those with defaults are the last.
            defaults = [body.pop(field) for field in fields if field in body]
            module = body.pop("__module__")
            made = collections.namedtuple(name, fields, defaults=defaults, module=module)
            body["__slots__"] = ()
            return type(name, (made,), {**body, "__module__": module})

    class NamedTuple(metaclass=_Meta):
        """As typing's."""
