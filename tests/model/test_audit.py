"""No interleaving loses a task or runs one twice, whoever is killed whenever.

First the model is explored (see pool_model.py): every interleaving of small pools (of larger
ones in test_larger_models.py), and runs of others by chance. Then each order and rule is taken
away in turn, and the model must go wrong. At last the real worker and supervisor are held against
the model, and must take its steps. test_client_on_stage.py does the same with the real client.

``python tests/support/pool_model.py`` explores larger ones, millions of states, for minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from injection import ended_at_once, lines
from light_tasks import die, note, square, wait_for
from pool_model import (
    FUNERAL,
    RULES,
    WORK,
    Client,
    Pool,
    Sizes,
    Violation,
    check_every_interleaving,
    explore,
    wander_often,
)
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._board import scoreboard as sb
from prefork_executor._messages import channels, wire
from prefork_executor._messages.wire import Kind
from prefork_executor._support import faults

# --- the model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 0, 1, 2, 1, 0, 0, True),
        Sizes(1, 0, 2, 0, 1, 0, 1, False),
        Sizes(2, 1, 1, 2, 1, 0, 0, True),
        Sizes(2, 0, 2, 2, 1, 0, 0, False),
    ],
    ids=str,
)
def test_no_interleaving_loses_a_task_or_runs_one_twice(sizes: Sizes) -> None:
    check_every_interleaving(sizes)


def test_without_store_buffers_a_recall_would_need_no_fence() -> None:
    rules = RULES - {"a recall makes a fence for both before it reads"}
    pool = Pool(rules=rules, batch=2, in_order=True)
    client = Client(rules, batch=2, looks=1, in_order=True)
    explore(pool, client, pool.new(1, 2, 0))


@pytest.mark.parametrize(
    "work",
    [
        pytest.param(work.split(", "), id=rule)
        for rule, work in {
            "TAKING before it asks": "ask, taking, busy, begin, send",
            "BUSY before it begins": "taking, ask, begin, busy, send",
            "the outcome before TAKING": "taking, send, ask, busy, begin",
        }.items()
    ],
)
def test_a_worker_must_say(work: list[str]) -> None:
    pool = Pool(tuple(work))
    with pytest.raises(Violation, match=r"ran twice|never resolved"):
        explore(pool, Client(), pool.new(1, 2, 1))


@pytest.mark.parametrize(
    ("rule", "sizes", "what"),
    [
        ("a recovery waits for the takers to leave", (1, 2, 1), "ran twice"),
        ("suspects are sent again when the marker has come round", (1, 2, 1), "ran twice"),
        ("outcomes that lie before the marker are settled before it", (1, 2, 1), "ran twice"),
        ("the pipe is emptied after a death in IDLE", (2, 0, 1, 0, 1), "never resolved"),
        ("a worker that a message woke asks before it leaves", (2, 0, 0, 1, 1), "never resolved"),
    ],
)
def test_every_rule_is_needed(rule: str, sizes: tuple[int, ...], what: str) -> None:
    rules = RULES - {rule}
    assert rules != RULES
    pool = Pool(rules=rules, refills=False)
    with pytest.raises(Violation, match=what):
        explore(pool, Client(rules), pool.new(*sizes))


@pytest.mark.parametrize(
    ("rule", "sizes", "looks", "refills"),
    [
        ("a worker holds what it has not sent the outcomes of", (2, 2, 1), 0, False),
        ("a worker looks whether to stop after it has named the next task", (1, 2, 0), 1, True),
        ("what was kept is told before the death", (1, 2, 1), 0, True),
        ("a recall reads what is named after it is said", (1, 2, 0), 1, True),
        ("a recall makes a fence for both before it reads", (1, 2, 0), 1, True),
    ],
)
def test_every_rule_about_messages_of_several_tasks_is_needed(
    rule: str, sizes: tuple[int, ...], looks: int, refills: bool
) -> None:
    rules = RULES - {rule}
    assert rules != RULES
    pool = Pool(rules=rules, batch=2, refills=refills)
    with pytest.raises(Violation, match=r"ran twice|though nobody died"):
        explore(pool, Client(rules, batch=2, looks=looks), pool.new(*sizes))


def test_a_task_that_is_sent_again_needs_a_new_number() -> None:
    rules = RULES - {"a task that is sent again has a new number"}
    pool = Pool(rules=rules)
    with pytest.raises(Violation, match="ran twice"):
        wander_often(pool, Client(rules), pool.new(3, 3, 3), runs=1000)


# --- the real worker and the real supervisor take the model's steps ----------------------------

MARKS: dict[int, str] = {
    sb.TAKING: "taking",
    sb.BUSY: "busy",
    sb.IDLE: "idle",
    sb.LEAVING: "leave",
}


class Trace:
    """What the first worker of a forked pool goes through, by the model's names: what it says
    on its slot, if that has changed, and then the step at which it was seen to say so."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said: int = sb.STARTING
        self._at: tuple[sb.Scoreboard, int] | None = None
        self.is_to_leave = False
        """Whether the worker is told to leave as a message wakes it."""

    def taken(self) -> list[str]:
        """The steps of the first worker that there was."""
        steps = [line.split() for line in lines(self._path)]
        return [step for pid, step in steps if pid == steps[0][0]]

    def step(self, step: str, board: sb.Scoreboard, slot: int) -> None:
        """In a worker."""
        self._at = board, slot
        state = board.read(slot).state
        if state != self._said:
            self._note(MARKS[state])
            self._said = state
        self._note(step)

    def _note(self, step: str) -> None:
        note(str(self._path), f"{os.getpid()} {step}")

    def asks(self, board: sb.Scoreboard, slot: int) -> None:
        self.step("ask", board, slot)

    def begins(self) -> None:
        assert self._at is not None
        self.step("begin", *self._at)

    def sent(self, kind: int, board: sb.Scoreboard, slot: int) -> None:
        if kind == Kind.RESULT:
            self.step("send", board, slot)

    def woke(self, board: sb.Scoreboard, slot: int) -> None:
        self.step("wait", board, slot)
        if self.is_to_leave:
            board.words[board.base(slot) + sb.RETIRE] = 1

    def leaves(self) -> None:
        self._note("leave")


traces: list[Trace] = []
"""In a worker: the one."""


def begins() -> None:
    traces[-1].begins()


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Trace]:
    trace = Trace(tmp_path / "trace")
    traces.append(trace)
    with (
        faults.injected("worker.starts", lambda: wait_for(tmp_path / "gate")),
        faults.injected("worker.asks", trace.asks),
        faults.injected("worker.sent", trace.sent),
        faults.injected("worker.woke", trace.woke),
        faults.injected("worker.leaves", trace.leaves),
    ):
        yield trace
    traces.clear()


def model_trace(tasks: int, steps: int) -> list[str]:
    """The first steps of the model's only worker, the parts of a step one by one."""
    pool, trace = Pool(), []
    world = pool.new(1, tasks, kills=0)
    for _ in range(steps):
        trace.append(world.workers[0].at)
        world = pool.step(world, 0)
    return trace


def submit_both(executor: PreforkExecutor, gate: Path) -> None:
    """Two tasks, which lie in the pipe before the worker asks for the first time."""
    futures = [executor.submit(begins) for _ in range(2)]
    eventually(lambda: executor.stats().in_flight == 2, "both are sent")
    gate.touch()
    for future in futures:
        future.result(BOUND)


IDLE = ["taking", "ask", "idle", "wait"]


def test_the_real_worker_takes_the_models_steps(trace: Trace, tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(1, "fork", idle_timeout=None)) as executor:
        submit_both(executor, tmp_path / "gate")
        eventually(lambda: executor.stats().idle == 1, "the worker waits")
        executor.submit(begins).result(BOUND)
    two_tasks_and_a_wait = 2 * len(WORK) + len(IDLE)
    assert trace.taken()[:two_tasks_and_a_wait] == model_trace(tasks=2, steps=two_tasks_and_a_wait)
    assert trace.taken()[two_tasks_and_a_wait:][: len(WORK)] == model_trace(1, len(WORK))


def test_the_real_worker_takes_what_has_woken_it_before_it_leaves(
    trace: Trace, tmp_path: Path
) -> None:
    trace.is_to_leave = True
    with ended_at_once(PreforkExecutor(1, "fork", idle_timeout=None)) as executor:
        submit_both(executor, tmp_path / "gate")
        eventually(lambda: executor.stats().idle == 1, "the worker waits")
        executor.submit(begins).result(BOUND)
    expected = model_trace(tasks=2, steps=2 * len(WORK)) + IDLE + model_trace(1, len(WORK))
    assert trace.taken() == [*expected, "leave"]


def test_the_real_worker_leaves_after_its_last_task(trace: Trace, tmp_path: Path) -> None:
    with ended_at_once(PreforkExecutor(1, "fork", max_tasks_per_child=2)) as executor:
        submit_both(executor, tmp_path / "gate")
        executor.submit(begins).result(BOUND)
    assert trace.taken() == [*model_trace(tasks=2, steps=2 * len(WORK)), "leave"]


def test_the_real_supervisor_tells_of_a_death_before_it_clears_the_slot(tmp_path: Path) -> None:
    told = tmp_path / "told"

    def look(death: wire.Death | None, board: sb.Scoreboard) -> None:
        if death is not None:
            note(str(told), f"{death.pid} {board.read(death.slot).pid}")

    with faults.injected("supervisor.told", look):
        with ended_at_once(PreforkExecutor(1, "fork")) as executor:
            error = executor.submit(die).exception(BOUND)
            assert isinstance(error, WorkerDied)
            eventually(lambda: lines(told))
            assert executor.submit(square, 3).result(BOUND) == 9
    assert lines(told)[0] == f"{error.pid} {error.pid}"
    assert FUNERAL[0] == "tell"


def test_a_death_that_could_not_be_told_yet_leaves_the_slot(tmp_path: Path) -> None:
    room, tries = tmp_path / "room", tmp_path / "tries"

    def full(death: wire.Death | None, board: sb.Scoreboard) -> None:
        if death is not None and not room.exists():
            note(str(tries), f"{death.pid} {board.read(death.slot).pid}")
            raise BlockingIOError

    with faults.injected("supervisor.tells", full):
        with ended_at_once(PreforkExecutor(1, "fork")) as executor:
            future = executor.submit(die)
            eventually(lambda: len(lines(tries)) > 3, "it is tried again and again")
            assert not future.done()
            room.touch()
            error = future.exception(BOUND)
            assert isinstance(error, WorkerDied)
            assert executor.submit(square, 3).result(BOUND) == 9
    assert set(lines(tries)) == {f"{error.pid} {error.pid}"}


def test_the_real_board_clears_the_pid_first() -> None:
    cleared: list[str] = []

    class Words(list[int]):
        def __setitem__(self, index: Any, value: Any) -> None:
            cleared.append("clear pid" if index == sb.Scoreboard.base(0) + sb.PID else "clear rest")

    board = channels.new_board(1)
    try:
        words, board.words = board.words, Words(board.words)  # type: ignore[assignment]
        board.clear(0)
        board.words = words
    finally:
        board.close()
    assert cleared == [FUNERAL[1]] + [FUNERAL[2]] * (sb.SLOT_WORDS - 1)
