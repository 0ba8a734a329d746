"""Messages from running tasks: their order, their hooks; and added initializers."""

from __future__ import annotations

import os
import pickle
import threading
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import pytest
from waiting import BOUND

from prefork_executor import PreforkExecutor, WorkerDied, yell


def yell_numbers(task: int) -> int:
    for number in range(3):
        # Some of them past the size from which on payloads travel apart.
        yell((task, number, b"x" * (100_000 if (task + number) % 7 == 0 else 10)))
    return task


# --- order ------------------------------------------------------------------------------------


def test_messages_come_in_order_a_worker_and_before_their_tasks_result(start_method: str) -> None:
    events: list[tuple[int, object]] = []
    heard: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def hear(pid: int, data: tuple[int, int, bytes]) -> None:
        events.append((data[0], data[1]))
        heard[pid].append(data[:2])

    with PreforkExecutor(3, start_method, on_yell=hear) as executor:
        for task in range(200):
            future = executor.submit(yell_numbers, task)
            future.add_done_callback(lambda future: events.append((future.result(), "done")))
    by_task: dict[int, list[object]] = defaultdict(list)
    for task, event in events:
        by_task[task].append(event)
    assert by_task == {task: [0, 1, 2, "done"] for task in range(200)}
    for messages in heard.values():
        # One task after the other, each whole.
        assert [number for _, number in messages] == [0, 1, 2] * (len(messages) // 3)


def yell_and_die() -> None:
    for number in range(50):
        yell(number)
    os._exit(3)


def test_what_a_worker_yelled_before_it_died_is_heard_before_its_death() -> None:
    heard: list[int] = []
    with PreforkExecutor(1, on_yell=lambda _, data: heard.append(data)) as executor:
        assert isinstance(executor.submit(yell_and_die).exception(BOUND), WorkerDied)
        assert heard == list(range(50))


def yell_and_fail() -> None:
    yell("before")
    raise ValueError("sorry")


def test_a_message_comes_before_the_exception_of_its_task() -> None:
    heard: list[str] = []
    with PreforkExecutor(1, on_yell=lambda _, data: heard.append(data)) as executor:
        with pytest.raises(ValueError, match="sorry"):
            executor.submit(yell_and_fail).result(BOUND)
        assert heard == ["before"]


def yell_from_threads(count: int) -> None:
    threads = [threading.Thread(target=yell, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_of_a_task_may_yell() -> None:
    heard: list[int] = []
    with PreforkExecutor(1, on_yell=lambda _, data: heard.append(data)) as executor:
        executor.submit(yell_from_threads, 20).result(BOUND)
        assert sorted(heard) == list(range(20))


def test_an_initializer_may_yell(start_method: str) -> None:
    heard: list[str] = []
    with PreforkExecutor(
        1,
        start_method,
        initializer=yell,
        initargs=("ready",),
        on_yell=lambda _, data: heard.append(data),
    ) as executor:
        executor.submit(abs, 1).result(BOUND)
        assert heard == ["ready"]


# --- hooks --------------------------------------------------------------------------------------


def test_a_hook_may_submit(start_method: str) -> None:
    def hear(_pid: int, data: tuple[int, int, bytes]) -> None:
        futures.append(executor.submit(abs, -data[1]))

    futures: list[Any] = []
    with PreforkExecutor(2, start_method, on_yell=hear) as executor:
        executor.submit(yell_numbers, 1).result(BOUND)
        assert [future.result(BOUND) for future in futures] == [0, 1, 2]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_hook_that_raises_is_logged_and_hears_the_next(
    caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    heard: list[int] = []

    def hear(_pid: int, data: tuple[int, int, bytes]) -> None:
        heard.append(data[1])
        raise error("no more")

    with PreforkExecutor(1, on_yell=hear) as executor:
        assert executor.submit(yell_numbers, 1).result(BOUND) == 1
        assert executor.submit(yell_numbers, 2).result(BOUND) == 2
    assert heard == [0, 1, 2] * 2
    assert caplog.text.count("on_yell failed for a message from worker") == 6
    assert caplog.text.count(f"{error.__name__}: no more") == 6


def yell_a_lock() -> None:
    yell({"lock": threading.Lock()})


def test_data_that_cannot_be_pickled_is_an_error_where_it_is_yelled() -> None:
    heard: list[object] = []
    with PreforkExecutor(1, on_yell=lambda _, data: heard.append(data)) as executor:
        with pytest.raises(pickle.PicklingError, match=r"data\['lock'\] is a _thread.lock"):
            executor.submit(yell_a_lock).result(BOUND)
    assert heard == []


@dataclass(frozen=True)
class Note:
    """A message of its own kind."""

    text: str


class Shout(Note):
    """A subclass of it."""


def yell_notes() -> None:
    for message in (1, Note("a"), Shout("b"), Note("c")):
        yell(message)


def test_a_kind_of_message_may_have_a_hook_of_its_own(start_method: str) -> None:
    heard: list[object] = []
    notes: list[Note] = []
    with PreforkExecutor(1, start_method, on_yell=lambda _, data: heard.append(data)) as executor:
        executor.with_options().add_yell_hook(Note, lambda _, note: notes.append(note))
        executor.submit(yell_notes).result(BOUND)
        assert heard == [1, Shout("b")]
        assert notes == [Note("a"), Note("c")]


def test_the_later_hook_of_a_kind_replaces_the_earlier() -> None:
    first: list[Note] = []
    second: list[Note] = []
    with PreforkExecutor(1) as executor:
        executor.add_yell_hook(Note, lambda _, note: first.append(note))
        executor.submit(yell_notes).result(BOUND)
        executor.add_yell_hook(Note, lambda _, note: second.append(note))
        executor.submit(yell_notes).result(BOUND)
    assert first == second == [Note("a"), Note("c")]


def test_a_kinds_hook_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def hear(_pid: int, _note: Note) -> None:
        raise ValueError("no")

    with PreforkExecutor(1) as executor:
        executor.add_yell_hook(Note, hear)
        executor.submit(yell_notes).result(BOUND)
    assert caplog.text.count("on_yell failed") == 2


def test_bad_arguments_of_a_hook_are_errors_at_the_call() -> None:
    with PreforkExecutor(1) as executor:
        with pytest.raises(TypeError, match="kind must be a class, not str"):
            executor.add_yell_hook("Note", print)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="hook must be callable, not int"):
            executor.add_yell_hook(Note, 3)  # type: ignore[arg-type]


# --- added initializers ---------------------------------------------------------------------------


def append_to_path(word: str) -> None:
    os.environ["WORDS"] = f"{os.environ.get('WORDS', '')}{word} "


def test_added_initializers_run_before_the_users_in_every_worker(start_method: str) -> None:
    with PreforkExecutor(
        1, start_method, initializer=append_to_path, initargs=("user",), max_tasks_per_child=1
    ) as executor:
        executor.add_initializer(append_to_path, "one")
        executor.add_initializer(lambda word: append_to_path(word), "two")
        for _ in range(2):
            assert executor.submit(os.getenv, "WORDS").result(BOUND) == "one two user "


def fail() -> None:
    raise ValueError("not today")


def test_an_added_initializer_that_raises_breaks_the_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with PreforkExecutor(1) as executor:
        executor.add_initializer(fail)
        with pytest.raises(BrokenProcessPool, match="ValueError: not today"):
            executor.submit(abs, 1).result(BOUND)


def test_initializers_are_added_before_the_first_task() -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(abs, 1).result(BOUND)
        with pytest.raises(RuntimeError, match="comes before the first task"):
            executor.add_initializer(fail)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.add_initializer(fail)
    with pytest.raises(TypeError, match="fn must be callable, not int"):
        PreforkExecutor(1).add_initializer(3)  # type: ignore[arg-type]
