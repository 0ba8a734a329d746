"""Where two processes of a pool must not miss each other's writes: each such place of the
board as a *litmus program*, two short rows of steps and what must not come of them.

They are run in two ways. :func:`outcomes` tries out every order in which a machine may carry
them out. :func:`race` lets two real processes do it on a real board, over and over.

``python tests/support/litmus.py --seconds 10`` races them all on this
machine, with fences and without.
"""

from __future__ import annotations

import argparse
import ctypes
import enum
import functools
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from prefork_executor._board import fences as fences_module
from prefork_executor._board import scoreboard as sb
from prefork_executor._messages.channels import new_board


class Step(NamedTuple):
    """``does`` is "write", "read", or what makes a fence: "fence" (its own) or "everywhere"
    (one for others as well). ``word`` is written with 1 more, or read."""

    does: str
    word: str = ""


class Litmus(NamedTuple):
    """Two processes' steps. Words are 0 at first, and 1 when they have been written.

    Attributes:
        what: what goes wrong if what is ``forbidden`` comes about.
        hot: the steps of the side that comes there with every task; "fence" is left out
            where the other side makes it.
        rare: the other side's; its fence is "everywhere".
        forbidden: what the reads must not all give, in the order of the words' names.
    """

    what: str
    hot: tuple[Step, ...]
    rare: tuple[Step, ...]
    forbidden: tuple[tuple[str, int], ...]


def write(word: str) -> Step:
    return Step("write", word)


def read(word: str) -> Step:
    return Step("read", word)


FENCE, EVERYWHERE = Step("fence"), Step("everywhere")

BOTH_WRITE_AND_READ = {
    "the end of a task, and a worker that goes on": Litmus(
        "a signal for one task hits the next",
        (write("HOLDS"), FENCE, read("RETIRE")),
        (write("RETIRE"), EVERYWHERE, read("HOLDS")),
        (("RETIRE", 0), ("HOLDS", 0)),
    ),
    "a recall, and a worker that names the next task": Litmus(
        "a task runs twice",
        (write("HOLDS"), FENCE, read("RECALL")),
        (write("RECALL"), EVERYWHERE, read("HOLDS")),
        (("RECALL", 0), ("HOLDS", 0)),
    ),
    "a supervisor that goes to sleep, and a client that submits": Litmus(
        "a task waits, and nobody starts a worker",
        (write("OUTSTANDING"), FENCE, read("ENOUGH")),
        (write("ENOUGH"), EVERYWHERE, read("OUTSTANDING")),
        (("ENOUGH", 0), ("OUTSTANDING", 0)),
    ),
}
ONE_WRITES_AND_ONE_READS = {
    "when a task began": Litmus(
        "a task is ended for the time that another took",
        (write("SINCE"), FENCE, write("HOLDS")),
        (read("HOLDS"), EVERYWHERE, read("SINCE")),
        (("HOLDS", 1), ("SINCE", 0)),
    ),
    "how much there is in the area": Litmus(
        "what is read there is of two fillings",
        (write("UNSENT"), FENCE, write("HOLDS")),
        (read("HOLDS"), EVERYWHERE, read("UNSENT")),
        (("HOLDS", 1), ("UNSENT", 0)),
    ),
    "outcomes in the area": Litmus(
        "what is read there is no outcome yet",
        (write("AREA"), FENCE, write("UNSENT")),
        (read("UNSENT"), EVERYWHERE, read("AREA")),
        (("UNSENT", 1), ("AREA", 0)),
    ),
    "outcomes in an area that is used again": Litmus(
        "what is read there is an outcome no more",
        (write("HOLDS"), FENCE, write("AREA")),
        (read("AREA"), EVERYWHERE, read("HOLDS")),
        (("AREA", 1), ("HOLDS", 0)),
    ),
}
ALL = BOTH_WRITE_AND_READ | ONE_WRITES_AND_ONE_READS


def without_fence(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(step for step in steps if step.word)


def with_own_fence(steps: Sequence[Step]) -> tuple[Step, ...]:
    return tuple(step if step.word else FENCE for step in steps)


# --- every order that a machine allows ------------------------------------------------------


class Machine(enum.Enum):
    """Which steps of one process may be seen by others in another order than its own.
    (Of two to the same word none may. What is written is seen by all at once: so it is on
    x86-64 and on aarch64.)"""

    IN_ORDER = "none"
    STORE_BUFFER = "a read before an earlier write: x86-64"
    WEAK = "any two: more than aarch64 may"

    def may_swap(self, first: Step, second: Step) -> bool:
        if not first.word or not second.word or first.word == second.word:
            return False
        if self is Machine.STORE_BUFFER:
            return (first.does, second.does) == ("write", "read")
        return self is Machine.WEAK


class _State(NamedTuple):
    """Which steps each process has done, as bits; the words that have been written, and what
    was read."""

    done: tuple[int, int]
    written: frozenset[str]
    found: frozenset[tuple[str, int]]


def outcomes(
    machine: Machine, hot: Sequence[Step], rare: Sequence[Step]
) -> set[frozenset[tuple[str, int]]]:
    """All that the reads can have given in the end."""
    first = _State((0, 0), frozenset(), frozenset())
    known, todo, ends = {first}, [first], set()
    while todo:
        state = todo.pop()
        following = list(_next_states(machine, (hot, rare), state))
        if not following:
            ends.add(state.found)
        todo += [new for new in following if new not in known]
        known.update(following)
    return ends


def _next_states(
    machine: Machine, programs: tuple[Sequence[Step], Sequence[Step]], state: _State
) -> Iterator[_State]:
    for who, steps in enumerate(programs):
        done = state.done[who]
        undone = [i for i in range(len(steps)) if not done >> i & 1]
        for i in undone:
            earlier = [steps[j] for j in undone if j < i]
            if not all(machine.may_swap(step, steps[i]) for step in earlier):
                continue
            if steps[i].does == "everywhere" and not _is_between_steps(state.done[1 - who]):
                continue
            both = list(state.done)
            both[who] |= 1 << i
            yield _after(state, steps[i])._replace(done=(both[0], both[1]))


def _is_between_steps(done: int) -> bool:
    """Whether it has done all up to some point and nothing after that: there the fence is
    that another makes in it."""
    return done & (done + 1) == 0


def _after(state: _State, step: Step) -> _State:
    if step.does == "write":
        return state._replace(written=state.written | {step.word})
    if step.does == "read":
        return state._replace(found=state.found | {(step.word, int(step.word in state.written))})
    return state


# --- real processes --------------------------------------------------------------------------


class Fences(enum.IntEnum):
    """Who makes one between its write and its read."""

    NOBODY = 0
    RARE_ITS_OWN = 1
    EACH_ITS_OWN = 2
    RARE_EVERYWHERE = 3


class Race(NamedTuple):
    """How often they were let go, and how often what is forbidden came about."""

    rounds: int
    violations: int


_SLOTS = 8
_OF_SLOT = ("HOLDS", "RETIRE", "RECALL", "SINCE", "UNSENT")
_WORDS = {name: sb.Scoreboard.base(1) + getattr(sb, name) for name in _OF_SLOT}
_WORDS |= {name: getattr(sb, name) for name in ("OUTSTANDING", "ENOUGH")}
_WORDS["AREA"] = (sb.Sections.of(_SLOTS).areas + sb.AREA) // sb.WORD_BYTES
_GO, _DONE, _FOUND = (sb.Scoreboard.base(slot) for slot in (3, 5, 7))

PROGRAM = r"""
#include <sched.h>
#include <stdint.h>
#include <unistd.h>

typedef volatile uint64_t word;
enum { NOBODY, RARE_ITS_OWN, EACH_ITS_OWN, RARE_EVERYWHERE };

static void own_fence(void) {  /* As `_board.fences.here` makes it on Linux. */
#if defined(__x86_64__) || defined(__i386__)
    __sync_synchronize();
#else
    sched_yield();
#endif
}

static void wait_for(word *place, uint64_t number) {
    for (unsigned looks = 1; *place != number; looks++)
        if (looks > 20000) sched_yield();  /* The other may need this processor. */
}

static void pass(uint64_t number) {  /* Now the one comes first, now the other. */
    for (volatile unsigned i = number * 7 % 64; i; i--);
}

void hot(word *words, const int *at, int both, int fences) {
    for (uint64_t number = 1;; number++) {
        wait_for(&words[at[2]], number);
        pass(number);
        words[at[0]] = number;
        if (fences == EACH_ITS_OWN) own_fence();
        if (both) words[at[4]] = words[at[1]];
        else words[at[1]] = number;
        __sync_synchronize();
        words[at[3]] = number;
    }
}

int rare(word *words, const int *at, int both, int fences, uint64_t first, int rounds,
         long membarrier) {
    int violations = 0;
    for (uint64_t number = first; number < first + rounds; number++) {
        uint64_t second = 0;
        words[at[2]] = number;
        pass(number / 64);
        if (both) words[at[1]] = number;
        else second = words[at[1]];
        if (fences == RARE_ITS_OWN || fences == EACH_ITS_OWN) own_fence();
        if (fences == RARE_EVERYWHERE) syscall(membarrier, 2, 0, 0);
        uint64_t found = words[at[0]];
        wait_for(&words[at[3]], number);
        __sync_synchronize();
        violations += found < number && (both ? words[at[4]] < number : second == number);
    }
    return violations;
}
"""
"""In C, because Python takes so long from one access to the next that it is seen more seldom:
on x86-64, by some versions of Python, once in some hundred or thousand times."""


def compiled(directory: Path) -> ctypes.CDLL | None:
    """Both sides' loops; None: there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = directory / "litmus.c", directory / "litmus.so"
    source.write_text(PROGRAM)
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return ctypes.CDLL(str(library))


def race(
    loops: ctypes.CDLL, litmus: Litmus, fences: Fences, seconds: float, enough: float = math.inf
) -> Race:
    """Let a forked process play the hot side, and this one the rare side, on a real board: for
    so long, or until there were so many violations. Each round's writes are its number."""
    board = new_board(_SLOTS)
    try:
        fences_module.begin(board)
        words = (ctypes.c_uint64 * len(board.words)).from_buffer(board.words)
        first, second = without_fence(litmus.hot)
        at = (ctypes.c_int * 5)(_WORDS[first.word], _WORDS[second.word], _GO, _DONE, _FOUND)
        given = (words, at, int(second.does == "read"), int(fences))
        child = os.fork()
        if child == 0:
            fences_module.join(board)
            loops.hot(*given)
        try:
            return _race(functools.partial(loops.rare, *given), seconds, enough)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            del words, given
    finally:
        board.close()


def _race(rare: Callable[..., int], seconds: float, enough: float) -> Race:
    until, rounds, violations, some = time.monotonic() + seconds, 0, 0, 500
    number = ctypes.c_long(fences_module.NUMBER or 0)
    while time.monotonic() < until and violations < enough:
        violations += rare(ctypes.c_uint64(rounds + 1), some, number)
        rounds += some
    return Race(rounds, violations)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each (default: 3)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as directory:
        loops = compiled(Path(directory))
        if loops is None:
            raise SystemExit("this takes a C compiler")
        for name, litmus in ALL.items():
            print(f"{name} ({litmus.what}):")
            for fences in Fences:
                seen = race(loops, litmus, fences, seconds)
                how = fences.name.lower().replace("_", " ")
                print(f"  {how}: {seen.violations} of {seen.rounds} times", flush=True)


if __name__ == "__main__":
    main()
