"""The executor as its users see it: submit, map, shutdown, limits, elasticity."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copyreg
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from light_tasks import square, wait_for
from scripts import program_text
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, yell


def divide(a: int, b: int) -> float:
    return a / b


def add_to(queue: Any, item: object) -> int:
    queue.put(item)
    return os.getpid()


@pytest.fixture
def gate(tmp_path: Path) -> Callable[[], None]:
    """A file that ``wait_for`` tasks wait for; call it to let them go."""
    path = tmp_path / "gate"

    def let_go() -> None:
        path.touch()

    let_go.path = str(path)  # type: ignore[attr-defined]
    return let_go


def test_a_task_returns_its_result(start_method: str) -> None:
    with PreforkExecutor(2, start_method) as executor:
        assert executor.submit(pow, 2, 8).result() == 256
        assert executor.submit(divide, 1, b=2).result() == 0.5


def test_a_context_object_is_as_good_as_its_name(start_method: str) -> None:
    with PreforkExecutor(1, multiprocessing.get_context(start_method)) as executor:
        assert executor.submit(square, 3).result() == 9


def test_nothing_is_started_before_the_first_task() -> None:
    threads = threading.active_count()
    with PreforkExecutor(2) as executor:
        assert executor.stats().workers == ()
        assert threading.active_count() == threads


def test_tasks_run_outside_the_callers_process() -> None:
    with PreforkExecutor(2) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()


def test_fn_and_self_are_free_as_keyword_arguments() -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(dict, fn=1, self=2).result() == {"fn": 1, "self": 2}


def test_submitting_what_cannot_be_called_fails_at_the_call() -> None:
    with PreforkExecutor(1) as executor, pytest.raises(TypeError, match="callable, not int"):
        executor.submit(3)  # type: ignore[arg-type]


def test_a_million_bytes_go_both_ways_unharmed(start_method: str) -> None:
    data = os.urandom(1_000_000)
    with PreforkExecutor(1, start_method) as executor:
        assert executor.submit(bytes.__add__, data, b"!").result() == data + b"!"


@pytest.mark.parametrize("size", [0, 1, 32 * 1024 - 200, 32 * 1024, 32 * 1024 + 1, 5_000_000])
def test_every_size_around_a_packets_limit_arrives(size: int) -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(bytes, bytearray(size)).result() == bytes(size)


def test_many_tasks_of_a_few_threads_all_come_back() -> None:
    with PreforkExecutor(2) as executor:
        results: list[int] = []

        def submit_some(start: int) -> None:
            futures = [executor.submit(square, i) for i in range(start, start + 500)]
            results.extend(future.result() for future in futures)

        threads = [threading.Thread(target=submit_some, args=(i * 500,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [i * i for i in range(2000)]


def test_a_done_callback_may_submit_and_may_shut_down() -> None:
    executor = PreforkExecutor(1)
    followed: list[concurrent.futures.Future[int]] = []

    def follow(future: concurrent.futures.Future[int]) -> None:
        followed.append(executor.submit(square, future.result()))
        executor.shutdown(wait=True)

    executor.submit(square, 3).add_done_callback(follow)
    eventually(lambda: followed and followed[0].done())
    assert followed[0].result() == 81


# --- map ---


def test_map_gives_results_in_order(start_method: str) -> None:
    with PreforkExecutor(3, start_method) as executor:
        assert list(executor.map(square, range(100))) == [i * i for i in range(100)]


@pytest.mark.parametrize("chunksize", [1, 7, 100, 1000])
@pytest.mark.parametrize("buffersize", [None, 1, 5])
def test_map_is_the_same_by_every_chunksize_and_buffersize(
    chunksize: int, buffersize: int | None
) -> None:
    with PreforkExecutor(2) as executor:
        results = executor.map(
            divide, range(100), range(1, 101), chunksize=chunksize, buffersize=buffersize
        )
        assert list(results) == list(map(divide, range(100), range(1, 101)))


def test_map_with_a_buffersize_reads_no_further_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    with PreforkExecutor(2) as executor:
        results = executor.map(square, numbers(), buffersize=5)
        assert len(taken) == 5
        assert next(results) == 0
        assert len(taken) == 6
        assert list(results) == [i * i for i in range(1, 1000)]


def test_map_without_buffersize_reads_everything_at_once() -> None:
    with PreforkExecutor(2) as executor:
        numbers = iter(range(50))
        results = executor.map(square, numbers)
        assert next(numbers, None) is None
        assert len(list(results)) == 50


def test_map_stops_at_the_first_failure_and_keeps_what_came_before() -> None:
    with PreforkExecutor(2) as executor:
        results = executor.map(divide, [1, 1, 1], [1, 0, 1])
        assert next(results) == 1.0
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_map_raises_a_timeout_when_results_do_not_come(gate: Any) -> None:
    with PreforkExecutor(1) as executor:
        results = executor.map(wait_for, [gate.path], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        gate()


def test_an_abandoned_map_cancels_what_has_not_begun(gate: Any) -> None:
    with PreforkExecutor(1) as executor:
        results = executor.map(wait_for, [__file__, *[gate.path] * 50])
        assert next(results) > 0
        del results
        gate()
    assert executor.stats().finished < 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be at least 1"),
        ({"chunksize": 1.5}, TypeError, "chunksize must be an int"),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0, not 0"),
        ({"buffersize": "x"}, TypeError, "buffersize must be an integer or None, not str"),
        ({"timeout": "x"}, TypeError, "timeout must be seconds"),
    ],
)
def test_map_refuses_bad_arguments_at_the_call(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with PreforkExecutor(1) as executor, pytest.raises(error, match=message):
        executor.map(square, [1], **options)


# --- shutdown ---


def test_shutdown_finishes_what_was_submitted(start_method: str) -> None:
    executor = PreforkExecutor(2, start_method)
    futures = [executor.submit(square, i) for i in range(50)]
    executor.shutdown()
    assert [future.result() for future in futures] == [i * i for i in range(50)]


def test_submit_after_shutdown_is_refused() -> None:
    executor = PreforkExecutor(1)
    executor.submit(square, 1).result()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(square, 1)


def test_an_executor_that_was_never_used_shuts_down_at_once() -> None:
    executor = PreforkExecutor(1)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(square, 1)


def test_shutdown_can_cancel_what_has_not_begun(gate: Any) -> None:
    executor = PreforkExecutor(1)
    futures = [executor.submit(wait_for, gate.path) for _ in range(50)]
    threading.Thread(target=lambda: (time.sleep(0.05), gate()), daemon=True).start()
    executor.shutdown(cancel_futures=True)
    cancelled = [future for future in futures if future.cancelled()]
    assert len(cancelled) >= 50 - 3
    assert all(future.result() for future in futures if not future.cancelled())


def test_shutdown_without_waiting_lets_the_work_end(gate: Any) -> None:
    executor = PreforkExecutor(1)
    future = executor.submit(wait_for, gate.path)
    executor.shutdown(wait=False)
    assert not future.done()
    gate()
    assert future.result() > 0
    executor.shutdown(wait=True)


def test_a_cancelled_task_is_never_run(gate: Any, tmp_path: Path) -> None:
    with PreforkExecutor(1) as executor:
        futures = [executor.submit(wait_for, gate.path) for _ in range(10)]
        last = executor.submit(Path.touch, tmp_path / "ran")
        assert last.cancel()
        gate()
        concurrent.futures.wait(futures)
    assert not (tmp_path / "ran").exists()


def test_no_more_than_two_tasks_a_worker_are_beyond_recall(gate: Any) -> None:
    with PreforkExecutor(2, min_spare_workers=0, start_workers=2) as executor:
        executor.submit(square, 1).result()
        futures = [executor.submit(wait_for, gate.path) for _ in range(20)]
        eventually(lambda: executor.stats().busy == 2)
        assert sum(future.cancel() for future in futures) >= 20 - 2 * 2 - 1
        gate()


def test_an_executor_that_nobody_refers_to_ends_after_its_work() -> None:
    executor = PreforkExecutor(2)
    results = executor.map(square, range(10))
    gone = weakref.ref(executor)
    del executor
    assert gone() is None
    assert list(results) == [i * i for i in range(10)]


def test_what_a_task_was_given_is_let_go() -> None:
    class Thing:
        pass

    thing = Thing()
    gone = weakref.ref(thing)
    with PreforkExecutor(1) as executor:
        executor.submit(repr, thing).result()
        del thing
        eventually(lambda: gone() is None)


def run_script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )


def test_the_interpreter_waits_for_pending_work_at_its_end(start_method: str) -> None:
    done = run_script(
        """
        import sys, time
        from prefork_executor import PreforkExecutor
        if __name__ == "__main__":
            executor = PreforkExecutor(2, sys.argv[1])
            executor.submit(time.sleep, 0.2).add_done_callback(lambda _: print("apple"))
        """,
        start_method,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("apple\n", "", 0)


def test_submit_at_the_interpreters_end_is_refused() -> None:
    done = run_script(program_text("submit_at_exit"))
    assert "cannot schedule new futures after" in done.stdout
    assert done.stderr == ""


# --- initializer, recycling, messages ---


def test_every_worker_runs_the_initializer_first(start_method: str) -> None:
    context = multiprocessing.get_context(start_method)
    queue = context.SimpleQueue()
    with PreforkExecutor(
        2, context, add_to, (queue, "hello"), start_workers=2, min_spare_workers=2
    ) as executor:
        executor.submit(square, 1).result()
        eventually(lambda: executor.stats().idle == 2)
    assert [queue.get(), queue.get()] == ["hello", "hello"]
    queue.close()


def fail_to_start() -> None:
    raise LookupError("no configuration")


def test_an_initializer_that_raises_breaks_the_pool_and_says_why(
    start_method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with PreforkExecutor(2, start_method, fail_to_start) as executor:
        future = executor.submit(square, 1)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no configuration") as caught:
            future.result()
        assert isinstance(caught.value.__cause__, LookupError)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="no configuration"):
            executor.submit(square, 1)


def test_an_initializer_that_dies_breaks_the_pool_without_a_fork_loop() -> None:
    with PreforkExecutor(2, "fork", os._exit, (7,)) as executor:
        future = executor.submit(square, 1)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="exited with status 7"):
            future.result()


def test_a_worker_is_replaced_after_so_many_tasks(start_method: str) -> None:
    with PreforkExecutor(1, start_method, max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


def test_recycling_loses_nothing_under_load() -> None:
    with PreforkExecutor(2, max_tasks_per_child=7) as executor:
        assert list(executor.map(square, range(300))) == [i * i for i in range(300)]


def yell_some(count: int) -> str:
    for i in range(count):
        yell((os.getpid(), i))
    yell(b"x" * 100_000)
    return "done"


def test_messages_of_a_task_come_in_order_and_before_its_result() -> None:
    heard: list[Any] = []
    with PreforkExecutor(1, on_yell=lambda pid, data: heard.append((pid, data))) as executor:
        future = executor.submit(yell_some, 100)
        assert future.result() == "done"
        pid = heard[0][0]
        assert heard[:-1] == [(pid, (pid, i)) for i in range(100)]
        assert heard[-1] == (pid, b"x" * 100_000)


def test_a_hook_that_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def hook(_pid: int, _data: object) -> None:
        raise RuntimeError("hook")

    with PreforkExecutor(1, on_yell=hook) as executor:
        assert executor.submit(yell_some, 1).result() == "done"
        assert executor.submit(square, 2).result() == 4
    assert "on_yell failed" in caplog.text


def test_messages_without_a_hook_are_dropped() -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(yell_some, 3).result() == "done"


def test_yell_outside_a_task_says_where_it_works() -> None:
    with pytest.raises(RuntimeError, match="only inside a task"):
        yell(1)


def nested(n: int) -> list[int]:
    with PreforkExecutor(2) as executor:
        return list(executor.map(square, range(n)))


def test_a_task_may_use_an_executor_of_its_own(start_method: str) -> None:
    with PreforkExecutor(1, start_method) as executor:
        assert executor.submit(nested, 5).result() == [0, 1, 4, 9, 16]


def child_of_a_task() -> int:
    process = multiprocessing.get_context("fork").Process(target=os._exit, args=(5,))
    process.start()
    process.join()
    return int(process.exitcode or 0)


def test_a_task_may_have_children_of_its_own() -> None:
    with PreforkExecutor(1) as executor:
        assert executor.submit(child_of_a_task).result() == 5


# --- elasticity ---


def test_the_pool_starts_small_grows_with_load_and_never_exceeds_the_maximum(
    start_method: str, gate: Any
) -> None:
    with PreforkExecutor(5, start_method) as executor:
        executor.submit(square, 1).result()
        assert len(executor.stats().workers) <= 2
        futures = [executor.submit(wait_for, gate.path) for _ in range(20)]
        eventually(lambda: executor.stats().busy == 5)
        assert len(executor.stats().workers) == 5
        gate()
        assert len({future.result() for future in futures}) == 5
        assert executor.stats().peak_workers == 5


def test_idle_workers_retire_down_to_the_spares(gate: Any) -> None:
    with PreforkExecutor(6, idle_timeout=0.2) as executor:
        futures = [executor.submit(wait_for, gate.path) for _ in range(6)]
        eventually(lambda: executor.stats().busy == 6)
        gate()
        concurrent.futures.wait(futures)
        eventually(lambda: len(executor.stats().workers) == 1)
        assert any(decision.retired for decision in executor.stats().decisions)
        assert executor.submit(square, 3).result() == 9


def test_what_a_start_costs_is_measured_with_its_initializer() -> None:
    with PreforkExecutor(2, initializer=time.sleep, initargs=(0.2,)) as executor:
        assert executor.submit(square, 3).result() == 9
        eventually(lambda: executor.stats().start_cost is not None)
        assert (executor.stats().start_cost or 0.0) >= 0.2
    assert (executor.stats().start_cost or 0.0) >= 0.2, "it is known of what was as well"


def test_by_default_idle_workers_retire_when_their_start_is_no_longer_worth_it(gate: Any) -> None:
    with PreforkExecutor(4) as executor:
        futures = [executor.submit(wait_for, gate.path) for _ in range(4)]
        eventually(lambda: executor.stats().busy == 4)
        gate()
        concurrent.futures.wait(futures)
        eventually(lambda: len(executor.stats().workers) == 1)
        (reason,) = {d.reason[1:] for d in executor.stats().decisions if d.retired}
        assert reason.startswith(" idle for longer than a start of ")


def test_idle_workers_above_max_spare_retire_at_once(gate: Any) -> None:
    with PreforkExecutor(
        6, min_spare_workers=1, max_spare_workers=2, idle_timeout=None
    ) as executor:
        futures = [executor.submit(wait_for, gate.path) for _ in range(6)]
        eventually(lambda: executor.stats().busy == 6)
        gate()
        concurrent.futures.wait(futures)
        eventually(lambda: len(executor.stats().workers) == 2)


def test_spares_are_kept_ready_while_workers_are_busy(gate: Any) -> None:
    with PreforkExecutor(6, min_spare_workers=2) as executor:
        for busy in (1, 2, 3):
            executor.submit(wait_for, gate.path)
            eventually(lambda n=busy: executor.stats().busy == n)
            eventually(lambda: executor.stats().idle == 2)
        gate()


def test_start_workers_are_started_with_the_pool() -> None:
    # On a busy machine one may be idle for long before the last has started.
    with PreforkExecutor(5, start_workers=4, idle_timeout=None) as executor:
        executor.submit(square, 1).result()
        eventually(lambda: len(executor.stats().workers) >= 4)


def test_one_worker_is_enough_for_one_task_after_another() -> None:
    with PreforkExecutor(5, min_spare_workers=0, start_workers=1) as executor:
        assert len({executor.submit(os.getpid).result() for _ in range(50)}) == 1


def test_min_spare_of_zero_still_runs_tasks() -> None:
    with PreforkExecutor(2, min_spare_workers=0, idle_timeout=0.0) as executor:
        for i in range(5):
            assert executor.submit(square, i).result() == i * i
            eventually(lambda: not executor.stats().workers)


# --- the constructor's arguments ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 1.5}, TypeError, "max_workers must be an int"),
        ({"max_workers": 10**6}, ValueError, "max_workers must be at most"),
        ({"mp_context": "thread"}, ValueError, "mp_context: cannot find context"),
        ({"mp_context": 3}, TypeError, "mp_context must be"),
        ({"initializer": 3}, TypeError, "initializer must be callable"),
        ({"initargs": 1}, TypeError, "initargs must be iterable"),
        ({"on_yell": 3}, TypeError, "on_yell must be callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be at least 1"),
        ({"max_tasks_per_child": "3"}, TypeError, "max_tasks_per_child must be an int"),
        ({"min_spare_workers": -1}, ValueError, "min_spare_workers must be at least 0"),
        ({"min_spare_workers": 3}, ValueError, r"min_spare_workers \(3\) .* max_workers \(2\)"),
        ({"max_spare_workers": 0}, ValueError, r"min_spare.*\(1\).*max_spare_workers \(0\)"),
        ({"max_spare_workers": 3}, ValueError, r"max_spare_workers \(3\) .* max_workers \(2\)"),
        ({"start_workers": 3}, ValueError, r"start_workers \(3\) .* max_workers \(2\)"),
        ({"start_workers": -1}, ValueError, "start_workers must be at least 0"),
        ({"idle_timeout": -0.1}, ValueError, "idle_timeout must be at least 0"),
        (
            {"idle_timeout": "x"},
            ValueError,
            "idle_timeout must be seconds, None or \"auto\", not 'x'",
        ),
        ({"idle_timeout": float("nan")}, ValueError, "idle_timeout must be seconds, not nan"),
    ],
)
def test_the_constructor_refuses_bad_arguments_and_names_them(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PreforkExecutor(**{"max_workers": 2, **options})


def test_the_default_maximum_is_the_cpus_this_process_may_use() -> None:
    cpus = len(os.sched_getaffinity(0))
    with PreforkExecutor() as executor:
        assert 1 <= executor.stats().max_workers <= cpus


# --- the caller's process ---


def test_nothing_of_the_host_is_taken_over(start_method: str) -> None:
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    group, reducers = os.getpgrp(), dict(copyreg.dispatch_table)
    with PreforkExecutor(2, start_method) as executor:
        executor.submit(square, 1).result()
        assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before
        assert signal.set_wakeup_fd(-1) == -1
        assert os.getpgrp() == group
        assert copyreg.dispatch_table == reducers
        names = [thread.name for thread in threading.enumerate()]
        assert len([name for name in names if name.startswith("prefork")]) == 1


def test_the_copy_of_an_executor_in_a_forked_child_is_disabled() -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(square, 1).result()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                executor.submit(square, 1)
            except BaseException as error:
                os.write(write_end, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(0)
        os.close(write_end)
        os.waitpid(pid, 0)
        message = os.read(read_end, 1000).decode()
        os.close(read_end)
        assert "belongs to the process that created it" in message
        assert executor.submit(square, 2).result() == 4


def stop_at_two(x: int) -> int:
    if x == 2:
        raise StopIteration
    return x


@pytest.mark.parametrize("chunksize", [1, 3, 10])
def test_a_stop_iteration_of_the_function_ends_no_map_in_silence(chunksize: int) -> None:
    with PreforkExecutor(2) as executor, pytest.raises(RuntimeError):
        list(executor.map(stop_at_two, range(6), chunksize=chunksize))


def test_a_future_within_an_argument_cannot_travel_where_nobody_would_resolve_it() -> None:
    with PreforkExecutor(2) as executor:
        other = executor.submit(square, 2)
        error = executor.submit(repr, [other]).exception()
        assert isinstance(error, pickle.PicklingError)
        assert "as an argument of its own" in str(error)
        assert other.result() == 4


def test_an_interrupt_as_waiting_tasks_are_cancelled_leaves_none_unresolved(gate: Any) -> None:
    def strike(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, strike)
    executor = PreforkExecutor(2)
    try:
        futures = [executor.submit(wait_for, gate.path) for _ in range(2)]
        futures += [executor.submit(square, i) for i in range(20_000)]
        with contextlib.suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            executor.shutdown(wait=False, cancel_futures=True)
            time.sleep(1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        gate()
        executor.shutdown()
    assert all(future.done() for future in futures)
