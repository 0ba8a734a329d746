"""Pools in want: of descriptors, of processes, of memory, of room in files. What cannot
be done fails by itself, says why, and is done again when there is enough.

Limits are set from outside (prlimit), on the one process that is to be in want."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
from injection import ended_at_once, lines, linux, supervisor_of
from light_tasks import BIG, big, noted, run_until, square
from scripts import program_text, run_script
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied, yell
from prefork_executor._system.descriptors import close_quietly

pytestmark = linux
HUGE = 64 * 1024 * 1024
"""Bytes: more than a process has to spare that is short of memory."""


@contextlib.contextmanager
def limited(pid: int, kind: int, soft: int) -> Iterator[None]:
    """Lower a limit of a process for a while."""
    old = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, old[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, kind, old)


def no_descriptors(pid: int) -> contextlib.AbstractContextManager[None]:
    """The process can open nothing more, for a while."""
    return limited(pid, resource.RLIMIT_NOFILE, 3)


def few_descriptors(spare: int) -> contextlib.AbstractContextManager[None]:
    """This process can open so many more."""
    taken = descriptors()
    free = [number for number in range(1000) if str(number) not in taken]
    return limited(os.getpid(), resource.RLIMIT_NOFILE, free[spare])


def descriptors() -> dict[str, str]:
    names = os.listdir("/proc/self/fd")
    paths = {name: f"/proc/self/fd/{name}" for name in names}
    return {name: os.readlink(path) for name, path in paths.items() if os.path.exists(path)}


def worker_of(executor: PreforkExecutor) -> int:
    return executor.submit(os.getpid).result(BOUND)


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(BOUND)
    assert error is not None
    return error


# --- descriptors ---


def test_descriptors_may_run_out_at_any_step_of_the_start() -> None:
    """The first task opens them all, one after another. spawn, because multiprocessing
    itself leaks two of its own by fork, and loses its fork server by the other."""
    at_first = descriptors()
    with ended_at_once(PreforkExecutor(1, "spawn")) as executor:
        for spare in range(30):
            with few_descriptors(spare):
                outcome = submitted(executor)
            if isinstance(outcome, Future):
                break
            assert outcome.errno == errno.EMFILE
        assert isinstance(outcome, Future)
        assert outcome.result(BOUND) == 9
    gc.collect()
    left = descriptors().items() - at_first.items()
    # No need to wait for what nobody else will close.
    close_quietly(int(name) for name, _ in left)
    assert not left


def submitted(executor: PreforkExecutor) -> Future[int] | OSError:
    try:
        return executor.submit(square, 3)
    except OSError as error:
        # Its traceback would keep alive what is to be gone.
        return error.with_traceback(None)


def test_a_big_argument_that_the_caller_has_no_descriptor_for_fails_alone(
    start_method: str,
) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        executor.submit(square, 1).result(BOUND)
        with no_descriptors(os.getpid()):
            futures = [executor.submit(len, bytes(BIG)) for _ in range(3)]
            assert executor.submit(square, 3).result(BOUND) == 9
            for future in futures:
                error = error_of(future)
                assert isinstance(error, OSError)
                assert error.errno == errno.EMFILE
                assert "could not be sent" in error.__notes__[0]
        assert executor.submit(len, bytes(BIG)).result(BOUND) == BIG


def test_a_big_result_that_the_caller_has_no_descriptor_for_fails_alone(
    start_method: str,
) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        executor.submit(square, 1).result(BOUND)
        with no_descriptors(os.getpid()):
            futures = [executor.submit(big) for _ in range(3)]
            assert executor.submit(square, 3).result(BOUND) == 9
            for future in futures:
                assert "too many open descriptors" in str(error_of(future))
        assert executor.submit(big).result(BOUND) == bytes(BIG)


def length_in_the_end(data: bytes, gate: str, started: str) -> int:
    run_until(gate, started)
    return len(data)


def test_an_outcome_arrives_without_the_file_that_the_caller_has_no_descriptor_for(
    start_method: str, tmp_path: Path
) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        future = executor.submit(length_in_the_end, bytes(BIG), str(gate), str(started))
        eventually(started.exists)
        gate.touch()
        with no_descriptors(os.getpid()):
            assert future.result(BOUND) == BIG
        assert executor.submit(len, bytes(BIG)).result(BOUND) == BIG


def yell_big() -> None:
    yell(bytes(BIG))


def test_a_big_message_that_the_caller_has_no_descriptor_for_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[object] = []

    def hear(_pid: int, data: object) -> None:
        heard.append(data)

    with ended_at_once(PreforkExecutor(1, on_yell=hear)) as executor:
        executor.submit(square, 1).result(BOUND)
        with no_descriptors(os.getpid()):
            executor.submit(yell_big).result(BOUND)
        executor.submit(yell_big).result(BOUND)
    assert heard == [bytes(BIG)]
    assert "too many open descriptors" in caplog.text


def test_a_worker_without_a_descriptor_for_a_big_payload_says_so_and_lives(
    start_method: str,
) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        worker = worker_of(executor)
        # What it needs, also to tell of failures, has been imported.
        executor.submit(square, 3).result(BOUND)
        assert isinstance(error_of(executor.submit(divmod, 1, 0)), ZeroDivisionError)
        with no_descriptors(worker):
            taken = [executor.submit(len, bytes(BIG)) for _ in range(2)]
            given = [executor.submit(big) for _ in range(2)]
            assert executor.submit(square, 3).result(BOUND) == 9
            for future in taken:
                assert "too many open descriptors" in str(error_of(future))
            for answer in given:
                assert "Too many open files" in str(error_of(answer))
                assert "result could not be sent" in str(error_of(answer).__notes__)
        assert executor.submit(len, bytes(BIG)).result(BOUND) == BIG
        assert executor.submit(big).result(BOUND) == bytes(BIG)
        assert worker_of(executor) == worker


@contextlib.contextmanager
def log_of_forked_processes(path: Path) -> Iterator[Path]:
    """What a forked pool logs. pytest's own handlers keep it in the process it is from."""
    handler = logging.FileHandler(path)
    logger = logging.getLogger("prefork_executor")
    logger.addHandler(handler)
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        handler.close()


def test_a_supervisor_without_descriptors_forks_again_when_it_has_some(
    start_method: str, tmp_path: Path
) -> None:
    with log_of_forked_processes(tmp_path / "log") as log:
        with ended_at_once(PreforkExecutor(2, start_method, idle_timeout=None)) as executor:
            executor.submit(square, 1).result(BOUND)
            with no_descriptors(supervisor_of(executor).pid):
                eventually(lambda: none_are_left(executor), "all workers are dead")
                futures = [executor.submit(square, i) for i in range(20)]
                if start_method == "fork":
                    eventually(lambda: "Too many open files" in log.read_text())
            assert [future.result(BOUND) for future in futures] == [i * i for i in range(20)]


def none_are_left(executor: PreforkExecutor) -> bool:
    """Kill every worker. Whether there was none."""
    workers = executor.stats().workers
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
    return not workers


def test_a_caller_without_descriptors_whose_supervisor_dies_gets_another_when_there_are_some(
    start_method: str, tmp_path: Path
) -> None:
    started, gate, ran = (tmp_path / name for name in ("started", "gate", "ran"))
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        running = executor.submit(run_until, str(gate), str(started))
        eventually(lambda: lines(started))
        queued = [executor.submit(noted, str(ran), str(i)) for i in range(20)]
        supervisor = supervisor_of(executor)
        with no_descriptors(os.getpid()):
            os.kill(supervisor.pid, signal.SIGKILL)
            assert isinstance(error_of(running), WorkerDied)
            assert not any(future.done() for future in queued)
        assert [future.result(BOUND) for future in queued] == [str(i) for i in range(20)]
        assert sorted(lines(ran), key=int) == [str(i) for i in range(20)]


# --- processes ---


def no_forks_while(flag: Path, attempts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the supervisor, forks fail while the file is there."""
    fork, caller = os.fork, os.getpid()

    def refuse() -> int:
        if os.getpid() != caller and flag.exists():
            with attempts.open("a") as file:
                file.write(f"{time.monotonic()}\n")
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", refuse)


def test_tasks_wait_while_no_worker_can_be_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, attempts, ran = (tmp_path / name for name in ("flag", "attempts", "ran"))
    flag.touch()
    no_forks_while(flag, attempts, monkeypatch)
    with log_of_forked_processes(tmp_path / "log") as log:
        with ended_at_once(PreforkExecutor(2, "fork")) as executor:
            futures = [executor.submit(noted, str(ran), str(i)) for i in range(20)]
            eventually(lambda: len(lines(attempts)) >= 4)
            assert not any(future.done() for future in futures)
            flag.unlink()
            assert [future.result(BOUND) for future in futures] == [str(i) for i in range(20)]
    assert sorted(lines(ran), key=int) == [str(i) for i in range(20)]
    assert "a worker could not be forked: [Errno 11]" in log.read_text()
    assert "fork failed 2 times in a row; starting none for now; trying again" in log.read_text()
    check_backoff([float(line) for line in lines(attempts)])


def check_backoff(times: list[float]) -> None:
    """Each wait is about double the one before it; a busy machine makes it longer."""
    waits = [late - early for early, late in itertools.pairwise(times)]
    assert all(wait >= 0.095 * 2**i for i, wait in enumerate(waits)), waits


def test_while_no_worker_can_be_forked_those_there_are_do_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, attempts = tmp_path / "flag", tmp_path / "attempts"
    started, gate = tmp_path / "started", tmp_path / "gate"
    no_forks_while(flag, attempts, monkeypatch)
    with ended_at_once(PreforkExecutor(4, "fork", min_spare_workers=0)) as executor:
        worker = worker_of(executor)
        flag.touch()
        futures = [executor.submit(run_until, str(gate), str(started)) for _ in range(3)]
        eventually(lambda: len(lines(attempts)) >= 2)
        gate.touch()
        assert {future.result(BOUND) for future in futures} == {worker}
        flag.unlink()


def test_a_worker_that_dies_while_no_more_can_be_forked_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, attempts, started = (tmp_path / name for name in ("flag", "attempts", "started"))
    gate = tmp_path / "gate"
    no_forks_while(flag, attempts, monkeypatch)
    with ended_at_once(PreforkExecutor(8, "fork", min_spare_workers=0)) as executor:
        worker_of(executor)
        flag.touch()
        for _ in range(16):
            executor.submit(run_until, str(gate), str(started))
        eventually(lambda: len(lines(attempts)) >= 7)
        busy = [worker.pid for worker in executor.stats().workers if worker.state == "busy"]
        assert len(lines(started)) == len(busy) < 8
        last = float(lines(attempts)[-1])
        flag.unlink()
        os.kill(busy[0], signal.SIGKILL)
        eventually(lambda: len(lines(started)) > len(busy))
        # The next attempt to grow was due 6.4 s after the last.
        assert time.monotonic() - last < 5
        gate.touch()


FEW_PROCESSES = program_text("few_processes")


@pytest.mark.skipif(os.getuid() != 0, reason="needs a user of its own, with no other processes")
def test_a_user_at_the_limit_of_processes_waits_for_a_worker(tmp_path: Path) -> None:
    printed = run_script(tmp_path, FEW_PROCESSES)
    if not printed:
        pytest.skip("this system does not limit processes")
    assert "a worker could not be forked: [Errno 11]" in printed
    assert "done meanwhile: 0" in printed
    assert "sum: 2470" in printed


# --- room in files, memory ---


def test_a_big_result_that_a_worker_may_not_write_fails_alone(start_method: str) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        worker = worker_of(executor)
        with limited(worker, resource.RLIMIT_FSIZE, BIG // 2):
            futures = [executor.submit(big) for _ in range(3)]
            assert executor.submit(square, 3).result(BOUND) == 9
            for future in futures:
                error = error_of(future)
                assert isinstance(error, OSError)
                assert error.errno == errno.EFBIG
                assert "result could not be sent" in str(error.__notes__)
        assert executor.submit(big).result(BOUND) == bytes(BIG)
        assert worker_of(executor) == worker


def test_a_big_argument_that_the_caller_may_not_write_fails_alone(start_method: str) -> None:
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        executor.submit(square, 1).result(BOUND)
        with limited(os.getpid(), resource.RLIMIT_FSIZE, BIG // 2):
            futures = [executor.submit(len, bytes(BIG)) for _ in range(3)]
            assert executor.submit(square, 3).result(BOUND) == 9
            for future in futures:
                error = error_of(future)
                assert isinstance(error, OSError)
                assert error.errno == errno.EFBIG
        assert executor.submit(len, bytes(BIG)).result(BOUND) == BIG


def little_memory(pid: int) -> contextlib.AbstractContextManager[None]:
    """The process has room for a quarter of something huge."""
    used = psutil.Process(pid).memory_info().vms
    return limited(pid, resource.RLIMIT_AS, used + HUGE // 4)


def test_a_huge_argument_that_a_worker_has_no_memory_for_fails_alone(start_method: str) -> None:
    data = bytes(HUGE)
    with ended_at_once(PreforkExecutor(1, start_method)) as executor:
        worker = worker_of(executor)
        with little_memory(worker):
            future = executor.submit(len, data)
            assert executor.submit(square, 3).result(BOUND) == 9
            error = error_of(future)
            assert isinstance(error, OSError | MemoryError)
            assert "Cannot allocate memory" in str(error)
        assert executor.submit(len, data).result(BOUND) == HUGE
        assert worker_of(executor) == worker


CALLER_WITH_LITTLE_MEMORY = """
    import os, resource, sys
    import psutil
    from prefork_executor import PreforkExecutor

    if __name__ == "__main__":
        size = lambda: psutil.Process().memory_info().vms
        with PreforkExecutor(1, sys.argv[1]) as executor:
            huge = executor.submit(bytes, {huge})
            assert len(huge.result()) == {huge}
            used = size() - {huge}
            del huge
            while size() - used > {huge} // 8:
                pass  # The I/O thread may just be about to let go of it.
            limits = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (used + {huge} // 4, limits[1]))
            futures = [executor.submit(bytes, {huge}) for _ in range(3)]
            print(executor.submit(pow, 3, 2).result())
            print([type(future.exception()).__name__ for future in futures])
            print(futures[0].exception())
            resource.setrlimit(resource.RLIMIT_AS, limits)
            print(len(executor.submit(bytes, {huge}).result()))
"""


def test_a_huge_result_that_the_caller_has_no_memory_for_fails_alone(
    start_method: str, tmp_path: Path
) -> None:
    printed = run_script(tmp_path, CALLER_WITH_LITTLE_MEMORY.format(huge=HUGE), start_method)
    nine, types, why, size = printed.splitlines()
    assert (nine, size) == ("9", str(HUGE))
    assert types == str(["UnpicklingError"] * 3)
    assert "Cannot allocate memory" in why
