"""Random generators with global state: no two workers draw the same numbers.

Workers are forked, and a fork copies the state of every loaded generator. The standard library
seeds its own generator, that of the module ``random``, anew in every child. Each worker does so
for the generators in the table below. It does so before its initializer runs, so an initializer
that sets seeds has the last word.

To support another library, add a line to the table. Not in it, and why:

* ``secrets``, ``uuid``, ``ssl``: they ask the system, or notice a fork themselves.
* scipy, scikit-learn, pandas: they draw from numpy's generator.
* numba: it seeds its generator in every child.
* jax: it has no global generator; keys are arguments.
* TensorFlow, CuPy: they cannot be used in a child of a process that has used them, and are
  seeded when they start.
* C's ``rand`` and OpenCV's generator: every new process starts them with the same seed anyway.
* A generator that is an object of your program: only the program knows whether all workers
  should have the same one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from .._support.logs import logger
from .._support.named_tuples import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Stream(NamedTuple):
    """A library's generator with global state."""

    module: str
    """The module that has it. If that is not loaded, there is nothing to do."""
    renew: Callable[[Any], object]
    """Seed it from the system."""
    owned: Callable[[Any], tuple[object, ...]] = lambda _: ()
    """The renewed objects, as far as they are Python objects."""
    is_new: Callable[[Any], bool] = lambda _: True
    """Whether it has been neither seeded nor drawn from since it was loaded."""


def renew() -> None:
    """Seed every loaded global generator from the system. Takes a microsecond if there is none,
    and tens of microseconds with numpy."""
    for stream, module in _loaded():
        try:
            stream.renew(module)
        except Exception:
            logger.warning("the random generator of %s could not be seeded", stream.module)


def renewed() -> Iterator[object]:
    """The generators that `renew` takes care of, as objects."""
    for stream, module in _loaded():
        with contextlib.suppress(AttributeError):  # Another version, or half imported.
            yield from stream.owned(module)


def touched() -> Iterator[str]:
    """The modules whose generator has been seeded or drawn from since it was loaded."""
    for stream, module in _loaded():
        with contextlib.suppress(AttributeError):
            if not stream.is_new(module):
                yield stream.module


def _loaded() -> Iterator[tuple[Stream, Any]]:
    for stream in _STREAMS:
        module = sys.modules.get(stream.module)
        if module is not None:
            yield stream, module


def _renew_numpy(numpy_random: Any) -> None:
    state = numpy_random.mtrand._rand
    try:
        state.seed()
    except TypeError:  # numpy.random.set_bit_generator may have set one that takes no seed.
        fresh = type(state)(type(state._bit_generator)())
        state.set_state(fresh.get_state(legacy=False))


def _numpy_is_new(numpy_random: Any) -> bool:
    """numpy keeps where its seed came from, unless a program has set one."""
    bit_generator = numpy_random.mtrand._rand._bit_generator
    if bit_generator.seed_seq is None:
        return False
    fresh = type(bit_generator)(bit_generator.seed_seq)
    return repr(fresh.state) == repr(bit_generator.state)


def _renew_torch(torch: Any) -> None:
    torch.seed()


def _torch_is_new(torch: Any) -> bool:
    """The system's seed has 53 bits, and seeds set by programs have fewer. And nothing has been
    drawn since."""
    seed = torch.initial_seed()
    fresh = torch.Generator().manual_seed(seed)
    return seed >= 1 << 32 and bool((fresh.get_state() == torch.get_rng_state()).all())


_STREAMS = (
    Stream(
        "numpy.random",
        _renew_numpy,
        lambda random: (random.mtrand._rand, random.mtrand._rand._bit_generator),
        _numpy_is_new,
    ),
    Stream("torch", _renew_torch, is_new=_torch_is_new),
    Stream("polars", lambda polars: polars.set_random_seed(_seed())),
    Stream(
        "faker.generator",
        lambda faker: faker.random.seed(),
        lambda faker: (faker.random,),
    ),
)


def _seed() -> int:
    return int.from_bytes(os.urandom(8), "little") >> 1
