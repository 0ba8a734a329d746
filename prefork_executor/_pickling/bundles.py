"""Many small buffers in one: a list of a thousand arrays, for example.

Pickle copies a small buffer into the pickle, in steps that grow the pickle again and again. For a
thousand arrays of 4 kB that took three times as long as everything else that pickling them takes.
If all buffers of a payload are small and together they are large, they are copied into one large
buffer instead, each at an aligned place. The large buffer travels out of band, and the objects are
rebuilt as views of it.

* They are copied when the object is pickled, as small buffers always are. So a caller may change a
  small array as soon as submit has returned.
* One of the objects keeps the memory of all alive. So it does with large buffers of one payload.
* Tiny buffers are left to pickle: taking them apart costs more than copying them.
"""

from __future__ import annotations

import array
import itertools
import pickle
from collections.abc import Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEAN_BYTES = 512
"""Bytes that the buffers must have on average."""
ALIGNMENT = 16
"""Each buffer begins at a multiple of this many bytes, as arrays of any type need it."""
_PADDING = [bytes(-size % ALIGNMENT) for size in range(ALIGNMENT)]


class _Bundle:
    """What is pickled in place of an object, and arrives as the object."""

    def __init__(self, data: bytes, sizes: bytes, buffer: bytearray) -> None:
        self._data = data
        self._sizes = sizes
        self._buffer = buffer

    def __reduce__(self) -> Any:
        return unbundle, (self._data, self._sizes, pickle.PickleBuffer(self._buffer))


def bundle(
    data: bytes, buffers: Sequence[pickle.PickleBuffer], least: int
) -> tuple[bytes, pickle.PickleBuffer] | None:
    """A pickle, and its one buffer, made from a pickle whose buffers are out of band. None if that
    does not pay: the buffers have less than ``least`` bytes together, or one of them has more.

    Raises:
        BufferError: a buffer has gaps.
    """
    views = [buffer.raw() for buffer in buffers]
    sizes = [view.nbytes for view in views]
    total = sum(sizes)
    if total < max(least, MEAN_BYTES * len(sizes)) or max(sizes) >= least:
        return None
    padding = [_PADDING[size % ALIGNMENT] for size in sizes]
    joined = bytearray().join(itertools.chain.from_iterable(zip(views, padding, strict=True)))
    out_of_band: list[pickle.PickleBuffer] = []
    told = array.array("Q", sizes).tobytes()
    head = pickle.dumps(_Bundle(data, told, joined), 5, buffer_callback=out_of_band.append)
    return head, out_of_band[0]


def unbundle(data: bytes, sizes: bytes, buffer: Any) -> Any:
    """The object. Pickles name this. Raises whatever unpickling raises."""
    view, start, buffers = memoryview(buffer), 0, []
    for size in array.array("Q", sizes):
        buffers.append(view[start : start + size])
        start += size + -size % ALIGNMENT
    return pickle.loads(data, buffers=buffers)
