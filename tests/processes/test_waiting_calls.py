"""Calls that wait: how much memory they take, when they are pickled, and who waits for it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from light_tasks import wait_for
from scripts import program_text, run_script
from waiting import eventually

from prefork_executor import PreforkExecutor, TaskAborted
from prefork_executor._support import faults

BIG = 5_000_000
"""Bytes of a pickle of which not many fit the budget."""


class Counted:
    """Says how often it is pickled, and by which thread; ``size`` bytes of pickle."""

    pickled: list[str] = []  # noqa: RUF012 - one list for all, in the caller

    def __init__(self, size: int, content: Any = None) -> None:
        self.size = size
        self.content = content

    def __reduce__(self) -> Any:
        self.pickled.append(threading.current_thread().name)
        return _counted, ("x" * self.size, self.content)


def _counted(_padding: str, content: Any) -> Any:
    return content


def same(thing: Any) -> Any:
    return thing


def block(executor: PreforkExecutor, gate: Path, count: int = 8) -> None:
    """Fill the window: what is submitted next waits."""
    for _ in range(count):
        executor.submit(wait_for, str(gate))
    eventually(lambda: executor.stats().busy == executor.stats().max_workers)


def test_calls_that_wait_are_pickled_up_to_a_budget_and_the_others_when_their_turn_comes(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    Counted.pickled.clear()
    with PreforkExecutor(1) as executor:
        block(executor, gate)
        futures = [executor.submit(same, Counted(BIG, i)) for i in range(60)]
        time.sleep(0.2)  # Nothing is pickled meanwhile, whoever could do it.
        at_submit = len(Counted.pickled)
        assert 64 * 2**20 <= at_submit * BIG < 64 * 2**20 + BIG
        gate.touch()
        assert [future.result() for future in futures] == list(range(60))
    assert len(Counted.pickled) == 60
    later = set(Counted.pickled[at_submit:])
    assert later == {"prefork-executor-io"}


def test_many_small_calls_beyond_the_budget_begin_in_the_order_of_their_submission(
    tmp_path: Path,
) -> None:
    gate, order = tmp_path / "gate", tmp_path / "order"
    with PreforkExecutor(1) as executor:
        block(executor, gate)
        padding = "x" * 100_000
        futures = [executor.submit(append, str(order), i, padding) for i in range(900)]
        gate.touch()
        for future in futures:
            future.result()
    assert order.read_text().split() == [str(i) for i in range(900)]


def append(path: str, number: int, _padding: str) -> None:
    with open(path, "a") as file:
        file.write(f"{number}\n")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise LookupError("not this one")


class Exits:
    def __reduce__(self) -> Any:
        raise SystemExit(3)


def test_what_cannot_be_pickled_when_its_turn_comes_fails_alone(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1) as executor:
        block(executor, gate)
        full = [executor.submit(same, Counted(2 * BIG, i)) for i in range(10)]
        bad = executor.submit(same, Unpicklable())
        worse = executor.submit(same, Exits())
        good = executor.submit(same, "good")
        assert not bad.done()
        gate.touch()
        assert [future.result() for future in full] == list(range(10))
        assert "LookupError: not this one" in str(bad.exception())
        assert isinstance(worse.exception(), SystemExit)
        assert good.result() == "good"


def test_calls_that_are_kept_can_be_cancelled_aborted_and_withdrawn(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    Counted.pickled.clear()
    executor = PreforkExecutor(1)
    block(executor, gate)
    for _ in range(10):
        executor.submit(same, Counted(2 * BIG))
    before = len(Counted.pickled)
    cancelled, aborted, kept, *others = [executor.submit(same, Counted(1, i)) for i in range(9)]
    assert cancelled.cancel()
    assert executor.abort(aborted)
    assert isinstance(aborted.exception(timeout=60), TaskAborted)
    gate.touch()
    assert kept.result(timeout=60) == 2
    executor.shutdown(cancel_futures=True)
    assert all(future.done() for future in others)
    # Three of the big ones, and what was neither cancelled nor aborted.
    assert len(Counted.pickled) - before <= 3 + 7


def test_an_argument_changed_while_its_call_is_kept_arrives_changed(tmp_path: Path) -> None:
    """As with ProcessPoolExecutor; within the budget it arrives as it was."""
    gate = tmp_path / "gate"
    with PreforkExecutor(1) as executor:
        block(executor, gate)
        early, late = [1], [1]
        first = executor.submit(same, early)
        for _ in range(10):
            executor.submit(same, Counted(2 * BIG))
        last = executor.submit(same, late)
        early.append(2)
        late.append(2)
        gate.touch()
        assert (first.result(), last.result()) == ([1], [1, 2])


def test_the_turn_of_a_kept_call_comes_again_after_its_worker_s_death(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1, retries=1) as executor:
        block(executor, gate)
        futures = [executor.submit(die_once, str(tmp_path), i, "x" * 2 * BIG) for i in range(12)]
        gate.touch()
        assert [future.result() for future in futures] == list(range(12))


def die_once(directory: str, number: int, _padding: str) -> int:
    mark = os.path.join(directory, f"died {number}")
    if number % 4 == 0 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), 9)
    return number


def test_nothing_is_rebuilt_in_the_caller_whatever_is_known_of_the_workers(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("rebuilt_in_workers")
    assert run_script(tmp_path, source, start_method).splitlines() == [
        *("rebuilt in a worker", "rebuilt in a worker"),
        *("[7] SystemExit", "1 2 [1, 1]"),
    ]


def test_abort_of_many_that_wait_takes_no_longer_the_more_there_are(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with PreforkExecutor(1) as executor:
        block(executor, gate)
        futures = [executor.submit(same, i) for i in range(30_000)]
        began = time.thread_time()
        aborted = futures[::100]
        assert all(executor.abort(future) for future in aborted)
        assert time.thread_time() - began < 0.3
        for future in aborted:
            assert isinstance(future.exception(timeout=60), TaskAborted)
        assert executor.stats().waiting <= 30_000 - len(aborted) + 8
        gate.touch()
        left = [future for future in futures if future not in set(aborted)]
        assert [future.result() for future in left] == [i for i in range(30_000) if i % 100]


def test_no_lock_is_held_while_a_big_payload_is_copied() -> None:
    copying, go_on = threading.Event(), threading.Event()

    def wait(_descriptor: int, _view: memoryview, _offset: int) -> None:
        copying.set()
        assert go_on.wait(60)

    with faults.injected("payload.writes", wait), PreforkExecutor(2) as executor:
        executor.submit(same, 1).result()
        futures = []
        thread = threading.Thread(target=lambda: futures.append(executor.submit(len, bytes(BIG))))
        thread.start()
        assert copying.wait(60)
        assert executor.submit(same, 2).result(timeout=60) == 2
        assert executor.stats().in_flight == 0
        go_on.set()
        thread.join()
        assert futures[0].result() == BIG


def test_a_deeply_nested_group_arrives_whole_and_soon() -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(same, 1).result()
        began = time.thread_time()
        error: Any = executor.submit(raise_nested, 1500).exception()
        depth = 0
        while isinstance(error, ExceptionGroup):
            (error,), depth = error.exceptions, depth + 1
        assert (depth, type(error)) == (1500, ValueError)
        assert time.thread_time() - began < 1


def raise_nested(depth: int) -> None:
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    raise error
