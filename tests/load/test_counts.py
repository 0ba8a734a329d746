"""What a task costs, counted and not timed, so that a loss of speed fails on any machine,
however busy: messages, system calls, and how often somebody is woken up.

The bounds are two to three times what it takes: a busy machine makes more messages,
because a task that is interrupted is taken for a long one for a while.
"""

from __future__ import annotations

import _socket
import mmap
import os
import posix
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from light_tasks import square
from scripts import SUPPORT
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._board.scoreboard import Slot
from prefork_executor._support import faults
from prefork_executor._system import descriptors, green
from prefork_executor._system.descriptors import Poller, Socket
from prefork_executor._system.platform import FALLBACK

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]

TASKS = 5000
ONE_BY_ONE = 500
MOST_PIDS = 2**22
"""No process id of Linux is as high."""

OF_SOCKETS = ("send", "sendmsg", "recv", "recvmsg", "recvmsg_into")


class Calls:
    """Counts by process. All that are forked from this one count in the same memory."""

    def __init__(self) -> None:
        self._counts = memoryview(mmap.mmap(-1, 8 * MOST_PIDS)).cast("Q")

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*args: Any, **kwargs: Any) -> Any:
            self._counts[os.getpid()] += 1
            return call(*args, **kwargs)

        return counting

    def of(self, *pids: int) -> int:
        return sum(self._counts[pid] for pid in pids)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Counts, from before there is a pool on, wherever the package enters the kernel while tasks
    run. Threads that wait for each other do so too: only strace counts that."""
    calls = Calls()
    counted = {name: calls.counted(getattr(Socket, name)) for name in OF_SOCKETS}
    # A type that is written in C: nobody can put other methods into it.
    sockets = type("CountedSocket", (Socket,), counted)
    pair, poll = _socket.socketpair, green.poll

    def counted_pair(*args: int) -> list[Socket]:
        return [sockets(fileno=end.detach()) for end in pair(*args)]

    def counted_poll() -> Any:
        made = poll()
        return types.SimpleNamespace(register=made.register, poll=calls.counted(made.poll))

    monkeypatch.setattr(_socket, "socketpair", counted_pair)
    monkeypatch.setattr(descriptors, "Socket", sockets)
    monkeypatch.setattr(green, "poll", counted_poll)
    if not FALLBACK:  # There it polls.
        monkeypatch.setattr(Poller, "wait", calls.counted(Poller.wait))
    for name in ("read", "write"):
        monkeypatch.setattr(posix, name, calls.counted(getattr(posix, name)))
    return calls


@pytest.fixture
def executor(calls: Calls) -> Iterator[PreforkExecutor]:
    """Two workers, of which nobody ever tires, and a function that is known to be short."""
    with PreforkExecutor(2, "fork", idle_timeout=None, start_workers=2) as executor:
        list(executor.map(square, range(500)))
        come_to_rest(executor)
        yield executor


def slots(executor: PreforkExecutor) -> list[Slot]:
    return executor._client._channels.board.read_all()


def workers(executor: PreforkExecutor) -> list[int]:
    return [slot.pid for slot in slots(executor)]


def supervisor(executor: PreforkExecutor) -> int:
    handle = executor._client._supervisors.current
    assert handle is not None
    assert handle.pid is not None
    return handle.pid


def come_to_rest(executor: PreforkExecutor) -> None:
    eventually(lambda: {worker.state for worker in executor.stats().workers} == {"idle"})
    pids = [supervisor(executor), *workers(executor)]
    eventually(lambda: woken_while(lambda: time.sleep(0.1), *pids) == 0)


def woken_while(call: Callable[[], object], *tasks: int) -> int:
    """How often these processes, or threads of this one, went to sleep or were
    interrupted meanwhile: as often as they had been woken."""
    before = sum(map(switches, tasks))
    call()
    return sum(map(switches, tasks)) - before


def switches(task: int) -> int:
    thread = Path(f"/proc/self/task/{task}/status")
    status = thread if thread.exists() else Path(f"/proc/{task}/status")
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return sum(int(line.split()[1]) for line in lines if "voluntary_ctxt_switches" in line)


def io_thread(executor: PreforkExecutor) -> int:
    thread = executor._client._thread
    assert thread is not None
    assert thread.native_id is not None
    return thread.native_id


def backlog(executor: PreforkExecutor) -> None:
    """Many tasks at a time."""
    futures = [executor.submit(square, number) for number in range(TASKS)]
    assert [future.result(BOUND) for future in futures] == [n * n for n in range(TASKS)]


def one_by_one(executor: PreforkExecutor) -> None:
    for number in range(ONE_BY_ONE):
        assert executor.submit(square, number).result(BOUND) == number * number


# --- messages ---------------------------------------------------------------------------------


@pytest.fixture
def there(executor: PreforkExecutor) -> Iterator[list[int]]:
    """How many tasks each message of the client to its workers has."""
    sizes: list[int] = []
    with (
        faults.injected("client.sent_task", lambda: sizes.append(1)),
        faults.injected("client.sends_batch", lambda _first, count: sizes.append(count)),
    ):
        yield sizes


@pytest.fixture
def back() -> Iterator[Calls]:
    """The messages of the workers, of a pool that is forked from now on."""
    messages = Calls()
    with faults.injected("worker.sent", messages.counted(lambda *_: None)):
        yield messages


def test_under_backlog_eight_tasks_or_more_share_a_message_either_way(
    back: Calls, executor: PreforkExecutor, there: list[int]
) -> None:
    pids = workers(executor)
    before = back.of(*pids)
    backlog(executor)
    assert 0 < len(there) < TASKS / 8
    assert 0 < back.of(*pids) - before < TASKS / 8


def test_one_at_a_time_is_a_message_there_and_a_message_back(
    back: Calls, executor: PreforkExecutor, there: list[int]
) -> None:
    pids = workers(executor)
    before = back.of(*pids)
    one_by_one(executor)
    assert there == [1] * ONE_BY_ONE
    # One is counted after it was sent, when its outcome may be here already.
    eventually(lambda: back.of(*pids) - before >= ONE_BY_ONE)
    assert back.of(*pids) - before == ONE_BY_ONE


# --- system calls -----------------------------------------------------------------------------


def test_under_backlog_a_task_takes_a_third_of_a_system_call_at_either_end(
    calls: Calls, executor: PreforkExecutor
) -> None:
    pids = workers(executor)
    client, others = calls.of(os.getpid()), calls.of(*pids)
    backlog(executor)
    assert calls.of(os.getpid()) - client < TASKS / 3
    assert calls.of(*pids) - others < TASKS / 3


def test_one_at_a_time_takes_three_to_six_system_calls_in_the_client_and_four_in_the_workers(
    calls: Calls, executor: PreforkExecutor
) -> None:
    """There: send, wait, receive; and if the outcome is there before the caller waits for it,
    the I/O thread waits, too, and rings, and that is heard. Here: wait, receive, send, and
    see that there is no more."""
    pids = workers(executor)
    client, others = calls.of(os.getpid()), calls.of(*pids)
    one_by_one(executor)
    some = 20
    assert 3 * ONE_BY_ONE - some <= calls.of(os.getpid()) - client <= 6 * ONE_BY_ONE + some
    # Not each sees that there is no more, if the next task is there by then.
    assert 3 * ONE_BY_ONE - some <= calls.of(*pids) - others <= 4 * ONE_BY_ONE + some


def test_the_supervisor_takes_no_part_in_a_task(calls: Calls, executor: PreforkExecutor) -> None:
    before = calls.of(supervisor(executor))
    backlog(executor)
    one_by_one(executor)
    assert calls.of(supervisor(executor)) == before


PROGRAM = """
import os, sys, threading
sys.path.insert(0, {directory!r})
from light_tasks import square
from prefork_executor import PreforkExecutor

ahead, rounds = int(sys.argv[1]), int(sys.argv[2])
with PreforkExecutor(2, "fork", idle_timeout=None, start_workers=2) as executor:
    list(executor.map(square, range(500)))
    for _ in range(rounds):
        for future in [executor.submit(square, i) for i in range(ahead)]:
            future.result()
    print(*[thread.native_id for thread in threading.enumerate()])
    print(*[worker.pid for worker in executor.stats().workers])
"""


def can_trace() -> bool:
    """Whether strace is there, and may be used."""
    command = ["strace", "-qq", "-o", os.devnull, sys.executable, "-c", ""]
    try:
        return subprocess.run(command, capture_output=True, timeout=BOUND).returncode == 0
    except OSError:
        return False


def traced(directory: Path, ahead: int, rounds: int) -> tuple[int, int]:
    """All system calls of the client and of the workers, as strace counts them."""
    directory.mkdir()
    program = directory / "program.py"
    program.write_text(PROGRAM.format(directory=str(SUPPORT)))
    trace = ["strace", "-qq", "-ff", "-o", str(directory / "trace")]
    command = [*trace, sys.executable, str(program), str(ahead), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=True)
    client, others = (line.split() for line in done.stdout.splitlines())
    return lines_of(directory, client), lines_of(directory, others)


def lines_of(directory: Path, tasks: list[str]) -> int:
    files = [directory / f"trace.{task}" for task in tasks]
    return sum(len(file.read_bytes().splitlines()) for file in files)


@pytest.mark.parametrize(
    ("ahead", "rounds", "client_most", "workers_most"),
    [(1, 500, 20, 6), (1000, 1, 1.0, 0.5)],
    ids=["one at a time", "under backlog"],
)
def test_strace_sees_no_more(
    ahead: int, rounds: int, client_most: float, workers_most: float, tmp_path: Path
) -> None:
    """Those by which threads wait for each other, too."""
    if not can_trace():
        pytest.skip("no strace, or not allowed")
    base = traced(tmp_path / "few", ahead, rounds)
    more = traced(tmp_path / "many", ahead, 3 * rounds)
    client, others = ((n - m) / (2 * ahead * rounds) for n, m in zip(more, base, strict=True))
    assert client < client_most
    assert others < workers_most


# --- wake-ups ---------------------------------------------------------------------------------
# That the supervisor sleeps while all workers are busy is in test_supervision.py.


def everybody(executor: PreforkExecutor) -> list[int]:
    return [supervisor(executor), io_thread(executor), *workers(executor)]


def test_at_rest_nobody_wakes(executor: PreforkExecutor) -> None:
    assert woken_while(lambda: time.sleep(1.0), *everybody(executor)) == 0


def test_at_the_maximum_short_tasks_wake_no_supervisor(executor: PreforkExecutor) -> None:
    assert woken_while(lambda: backlog(executor), supervisor(executor)) <= 2
    assert woken_while(lambda: one_by_one(executor), supervisor(executor)) <= 2


def test_with_room_to_grow_a_hundred_short_tasks_wake_the_supervisor_once_or_twice() -> None:
    with PreforkExecutor(16, "fork", idle_timeout=None) as executor:
        list(executor.map(square, range(500)))
        come_to_rest(executor)
        assert woken_while(lambda: backlog(executor), supervisor(executor)) < TASKS / 25


def test_under_backlog_workers_and_the_io_thread_sleep_once_in_several_tasks(
    executor: PreforkExecutor,
) -> None:
    assert woken_while(lambda: backlog(executor), *workers(executor)) < TASKS / 8
    assert woken_while(lambda: backlog(executor), io_thread(executor)) < TASKS / 8
