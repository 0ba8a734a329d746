"""Messages that nobody of the pool would send, on every channel of a live pool: whatever
comes, nothing hangs, no other task is lost, the pool goes on, it is logged as an error,
and no descriptor that came with it stays open.

What is malformed is tested here, not what is a lie: who forges the death of a worker that
lives, in every detail, is believed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from light_tasks import square, wait_for
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor
from prefork_executor._board import scoreboard as sb
from prefork_executor._messages import channels, wire
from prefork_executor._messages.wire import ALIGNMENT, BIG, HEADER, PACKET_LIMIT, Kind
from prefork_executor._system import descriptors, platform, shared_files

NOBODYS = 2**40
"""Above it there are no tasks' numbers and no process ids."""
FEW, MANY = (settings(max_examples=n, deadline=None, database=None) for n in (30, 150))
whole_commands = pytest.mark.skipif(platform.FALLBACK, reason="a stream keeps no commands apart")


def named(value: object) -> str:
    """A test's name: what is expected of it, not the bytes that are sent."""
    return "" if isinstance(value, bytes | tuple) else str(value)


class Pool:
    """A live pool of two workers, and a task that runs in one of them all the time."""

    def __init__(self, executor: PreforkExecutor, log: Path, gate: Path) -> None:
        self.executor = executor
        self.client = executor._client
        self.log = log
        self._gate = gate
        self._numbers = iter(range(10**6))

    def begin(self) -> None:
        self.channels = self.client._channels
        self._running = self.executor.submit(wait_for, str(self._gate))
        eventually(lambda: self.executor.stats().busy == 1)
        self.supervisor_pid = self._supervisor().pid
        self._before = self._descriptors()

    def end(self) -> None:
        """Nothing was lost, nobody has died, no descriptor is left."""
        self.goes_on()
        assert self._supervisor().pid == self.supervisor_pid
        eventually(lambda: not self._gained(), "no descriptor is left")
        self._gate.touch()
        assert self._running.result(BOUND) in self._before
        assert self.executor.stats().deaths == 0

    def goes_on(self) -> None:
        number = next(self._numbers)
        assert self.executor.submit(square, number).result(BOUND) == number * number

    def strike(self, end: socket.socket, packet: bytes, descriptors: Sequence[int] = ()) -> None:
        """A foreign message, between two tasks."""
        before = self.executor.submit(square, 3)
        # A full channel is no matter of these tests.
        eventually(lambda: _sent(end, packet, descriptors))
        assert (before.result(BOUND), self.executor.submit(square, 4).result(BOUND)) == (9, 16)

    def command(self, packet: bytes) -> None:
        self.strike(self._supervisor().control, packet)

    def has_logged(self, text: str) -> None:
        eventually(lambda: text in self.log.read_text(), f"{text!r} in the log")

    def _supervisor(self) -> Any:
        return self.client._supervisors.current

    def _descriptors(self) -> dict[int, set[str]]:
        """Of the client, the supervisor and every worker, by process id."""
        pids = [os.getpid(), self.supervisor_pid, *(w.pid for w in self.executor.stats().workers)]
        return {pid: set(os.listdir(f"/proc/{pid}/fd")) for pid in pids}

    def _gained(self) -> set[str]:
        """Descriptors that one of them has and had not before."""
        now = self._descriptors()
        assert now.keys() == self._before.keys(), "the same processes"
        return {name for pid in now for name in now[pid] - self._before[pid]}


def _sent(end: socket.socket, packet: bytes, descriptors: Sequence[int]) -> bool:
    try:
        if descriptors:
            channels.send_descriptors(end, packet, descriptors, channels.DONTWAIT)
        else:
            end.send(packet, channels.DONTWAIT)
    except BlockingIOError:
        return False
    return True


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A file into which all processes of a forked pool log."""
    logger = logging.getLogger("prefork_executor")
    handler = logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    yield tmp_path / "log"
    logger.removeHandler(handler)
    handler.close()


@pytest.fixture
def pool(log: Path, tmp_path: Path) -> Iterator[Pool]:
    with PreforkExecutor(
        *(2, "fork"), min_spare_workers=2, idle_timeout=None, on_yell=lambda *_: None
    ) as executor:
        executor.submit(square, 1).result(BOUND)
        eventually(lambda: executor.stats().idle == 2)
        try:
            yield Pool(executor, log, tmp_path / "gate")
        finally:
            (tmp_path / "gate").touch()


@contextlib.contextmanager
def files(*sizes: int) -> Iterator[list[int]]:
    made = [shared_files.shared_file("prefork-payload", size) for size in sizes]
    try:
        yield made
    finally:
        descriptors.close_quietly(made)


# --- what to send --------------------------------------------------------------------------------


def packet(
    kind: int,
    body: bytes = b"",
    number: int = NOBODYS,
    flags: int = 0,
    parts: int = 1,
    extra: int = 0,
) -> bytes:
    return HEADER.pack(kind, flags, parts, number, extra) + body


def outcome(body: bytes, number: int = NOBODYS, kind: int = Kind.RESULT) -> bytes:
    """One of those in the body of an OUTCOMES packet."""
    return packet(kind, body, number, parts=len(body))


def _without_memo(data: bytes) -> bytes:
    """Pickle's opcodes that name a place in the memo can have it take gigabytes."""
    return data.replace(b"r", b"").replace(b"\x94", b"")


PICKLED = [
    pickle.dumps(thing, 5)
    for thing in (None, 3, "text", (), [], {}, (1, 2, 3, 4, 5), {"square": b"x"}, (abs, (1,), {}))
]
pickles = st.sampled_from(PICKLED)
truncated = st.builds(lambda data, n: data[: n % len(data)], pickles, st.integers(0, 99))
garbage = st.binary(max_size=100).map(_without_memo)
bodies = st.one_of(garbage, truncated, pickles)
nobodys = st.integers(NOBODYS, 2**64 - 1)
KINDS = [number for name, number in vars(Kind).items() if name.isupper()]
any_kind = st.integers(0, 255) | st.sampled_from(KINDS)
several = st.one_of(
    st.builds(outcome, bodies, nobodys, any_kind).map(lambda data: data * 2),
    st.lists(bodies, max_size=3).map(lambda calls: wire.pack_calls(1, calls)[HEADER.size :]),
)
odd_packets = st.builds(
    packet,
    any_kind,
    bodies | several,
    nobodys,
    st.sampled_from([0, 0, BIG, 2, 255]),
    st.sampled_from([1, 0, 2, 3, 2**32 - 1]),
    nobodys | st.integers(0, 3),
)
anything = st.one_of(
    odd_packets,
    st.builds(lambda data, n: data[:n], odd_packets, st.integers(0, HEADER.size)),
    st.binary(max_size=HEADER.size - 1),
    st.just(bytes(PACKET_LIMIT + 1)),
)
numbers_of_files = st.sampled_from([0, 0, 0, 1, 2, 3])
TABLE = (64).to_bytes(8, "little")
"""The sizes of one part that fills a file of 64 bytes."""


def is_believed(data: bytes) -> bool:
    """Whether it says, well-formed, that the pool cannot go on."""
    return data[:1] == bytes([Kind.START_FAILED])


# --- the yell channel: the client's I/O thread ---------------------------------------------------


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        (b"", "a packet of 0 bytes"),
        (b"x", "a packet of 1 byte with"),
        (b"x" * (HEADER.size - 1), f"a packet of {HEADER.size - 1} bytes"),
        (b"x" * (PACKET_LIMIT + 1), f"a packet of {PACKET_LIMIT + 1:,} bytes"),
        (packet(0), "nothing awaits kind 0"),
        (packet(255), "nothing awaits kind 255"),
        (packet(Kind.CALL), "nothing awaits kind 1,"),
        (packet(Kind.SHUTDOWN), "nothing awaits kind 33,"),
        (packet(Kind.RESULT, pickle.dumps(3)), f"nothing awaits kind 16, number {NOBODYS}"),
        (packet(Kind.RESULT, pickle.dumps(3), 0), "nothing awaits kind 16, number 0"),
        (packet(Kind.FAILURE, b"x"), f"nothing awaits kind 17, number {NOBODYS}"),
        (packet(Kind.YELL, b"x"), "on_yell failed for a message from worker"),
        (packet(Kind.YELL, b""), "on_yell failed for a message from worker"),
        (packet(Kind.YELL, b"", flags=BIG), "on_yell failed for a message from worker"),
        (packet(Kind.INITIALIZER_FAILED, b"x"), "malformed message of kind 20"),
        (packet(Kind.INITIALIZER_FAILED, PICKLED[4]), "malformed message of kind 20"),
        (packet(Kind.START_FAILED, b""), "malformed message of kind 25"),
        (packet(Kind.START_FAILED, PICKLED[1]), "malformed message of kind 25"),
        (packet(Kind.DEATH), "a death notice of 0 bytes"),
        (packet(Kind.DEATH, bytes(55)), "a death notice of 55 bytes"),
        (packet(Kind.DEATH, bytes(57)), "a death notice of 57 bytes"),
        (packet(Kind.SUPERVISOR_READY), f"a process of number {NOBODYS}"),
        (packet(Kind.SUPERVISOR_READY, b"", 0), "a process of number 0"),
        (packet(Kind.SUPERVISOR_READY, b"", 2**64 - 1), f"a process of number {2**64 - 1}"),
        (packet(Kind.DECISION), "malformed message of kind 22"),
        (packet(Kind.DECISION, bytes(21)), "malformed message of kind 22"),
        (packet(Kind.DECISION, PICKLED[3]), "malformed message of kind 22"),
        (packet(Kind.DECISION, bytes(23)), "malformed message of kind 22"),
        (packet(Kind.MAIN_SNAPSHOT), "malformed message of kind 40"),
        (packet(Kind.MAIN_SNAPSHOT, PICKLED[1]), "malformed message of kind 40"),
        (packet(Kind.MAIN_SNAPSHOT, PICKLED[6]), "malformed message of kind 40"),
        (packet(Kind.READY, b"", flags=BIG), "malformed message of kind 19"),
        (packet(Kind.READY, bytes(7)), "a worker that is ready in 7 bytes"),
        (packet(Kind.PEAK), "a task's peak of 0 bytes"),
        (packet(Kind.PEAK, bytes(15)), "a task's peak of 15 bytes"),
        (packet(Kind.PEAK, b"\xff" * 16), f"a task that has taken {2**64 - 1} bytes"),
        (packet(Kind.MARKER, b"", flags=BIG), "malformed message of kind 24"),
        (packet(Kind.RELOADED, TABLE, flags=BIG), "malformed message of kind 26"),
        (packet(Kind.OUTCOMES, b"x"), "malformed outcomes were dropped: half an outcome"),
        (packet(Kind.OUTCOMES, outcome(b"abc")[:-1]), "an outcome of 3 bytes that ends at 27"),
        (packet(Kind.OUTCOMES, outcome(PICKLED[0])), f"an outcome of task {NOBODYS}"),
        (packet(Kind.OUTCOMES, outcome(b"", 2**64 - 1)), f"an outcome of task {2**64 - 1}"),
        (packet(Kind.UNBEGUN, b"", flags=BIG), "malformed message of kind 29"),
        (packet(Kind.STOPPED, TABLE, flags=BIG), "malformed message of kind 30"),
    ],
    ids=named,
)
def test_a_malformed_message_to_the_client_is_logged_and_dropped(
    pool: Pool, message: bytes, logged: str
) -> None:
    pool.begin()
    pool.strike(pool.channels.yells_far, message)
    pool.has_logged(logged)
    pool.end()


@pytest.mark.parametrize("status", [-1, 0x7F, 0x137F, 2**62])
def test_a_death_notice_with_a_status_of_no_ended_process_is_dropped(
    pool: Pool, status: int
) -> None:
    pool.begin()
    death = wire.Death(NOBODYS, status, 0, sb.BUSY, NOBODYS, 0)
    pool.strike(pool.channels.yells_far, wire.pack_death(death))
    pool.has_logged("a malformed message of kind 21")
    pool.end()


deaths = st.builds(
    *(wire.Death, nobodys, st.integers(-(2**63), 2**63 - 1) | st.just(9), nobodys),
    *(st.integers(0, 7) | nobodys, nobodys, nobodys, st.integers(0, 7) | nobodys),
    *(st.integers(0, 3) | nobodys, nobodys, nobodys, nobodys),
)


def test_deaths_of_nobody_cost_nobody_anything(pool: Pool) -> None:
    pool.begin()

    @MANY
    @given(deaths)
    def strike(death: wire.Death) -> None:
        pool.strike(pool.channels.yells_far, wire.pack_death(death))

    strike()
    pool.end()


def test_markers_and_notices_with_odd_numbers_are_harmless(pool: Pool) -> None:
    pool.begin()
    for kind in (Kind.MARKER, Kind.RELOADED, Kind.WORKERS_TOLD, Kind.STOPPED):
        for number in (0, 1, 2, NOBODYS, 2**64 - 1):
            pool.strike(pool.channels.yells_far, packet(kind, b"whatever", number))
    for number in (NOBODYS, 2**64 - 1):
        for count in (0, 1, 2**32, 2**64 - 1):
            message = packet(Kind.UNBEGUN, b"whatever", number, extra=count)
            pool.strike(pool.channels.yells_far, message)
    pool.end()


def test_the_client_survives_whatever_comes(pool: Pool) -> None:
    pool.begin()

    @MANY
    @given(anything.filter(lambda data: not is_believed(data)), numbers_of_files)
    def strike(data: bytes, number: int) -> None:
        with files(*[ALIGNMENT] * number) as descriptors:
            pool.strike(pool.channels.yells_far, data, descriptors)

    strike()
    pool.has_logged("was dropped")
    pool.end()


@pytest.mark.parametrize("flags", [0, BIG])
def test_no_descriptor_that_came_to_the_client_stays_open(
    pool: Pool, flags: int, caplog: pytest.LogCaptureFixture
) -> None:
    pool.begin()
    for kind in (*KINDS, 0, 255):
        # A file that is what it should be, one that is too long, and one too many.
        for sizes in ((ALIGNMENT,), (2 * ALIGNMENT,), (ALIGNMENT, ALIGNMENT)):
            with files(*sizes) as descriptors:
                data = packet(kind, TABLE, flags=flags)
                pool.strike(pool.channels.yells_far, data, descriptors)
    pool.end()
    # The traceback of a yell that could not be unpickled leads to its mapped file.
    caplog.clear()


def test_a_descriptor_that_is_no_file_is_closed(pool: Pool) -> None:
    pool.begin()
    size = os.stat("/").st_size
    table = (size if size % 64 == 0 else 4096).to_bytes(8, "little")
    ends = [*os.pipe(), os.open("/", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)]
    for kind in (Kind.YELL, Kind.DECISION, Kind.RESULT, Kind.CALL):
        for end in ends:
            for channel in (pool.channels.yells_far, pool.channels.tasks):
                pool.strike(channel, packet(kind, table, flags=BIG), [end])
    descriptors.close_quietly(ends)
    pool.end()


def in_flight(pool: Pool, future: Future[Any]) -> int:
    """The number under which a task was sent."""
    ledger = pool.client._ledger
    eventually(lambda: any(task.future is future for task in ledger.in_flight.values()))
    return next(number for number, task in ledger.in_flight.items() if task.future is future)


@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.FAILURE])
@pytest.mark.parametrize("is_among_others", [False, True])
def test_a_garbled_outcome_fails_the_task_whose_it_is_and_no_other(
    pool: Pool, kind: int, is_among_others: bool, tmp_path: Path
) -> None:
    pool.begin()
    gates = iter(range(1000))

    def garbled(body: bytes, number: int, flags: int) -> bytes:
        if is_among_others:
            return packet(Kind.OUTCOMES, outcome(body, number, kind) + b"and more")
        return packet(kind, body, number, flags)

    @FEW
    @given(garbage | truncated, st.sampled_from([0, BIG]))
    def strike(body: bytes, flags: int) -> None:
        gate = tmp_path / f"gate{next(gates)}"
        future = pool.executor.submit(wait_for, str(gate))
        number = in_flight(pool, future)
        eventually(lambda: _sent(pool.channels.yells_far, garbled(body, number, flags), ()))
        error = future.exception(BOUND)
        gate.touch()
        assert isinstance(error, pickle.UnpicklingError)
        assert "the result of task light_tasks.wait_for could not be" in str(error)
        pool.goes_on()

    strike()
    pool.end()


# --- the task pipe: workers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "sizes", "logged"),
    [
        (b"", (), "is not a task: a packet of 0 bytes"),
        (b"x" * (HEADER.size - 1), (), f"is not a task: a packet of {HEADER.size - 1} bytes"),
        (b"x" * (PACKET_LIMIT + 1), (), f"is not a task: a packet of {PACKET_LIMIT + 1:,} bytes"),
        (packet(Kind.CALL, PICKLED[-1]), (64, 64), "is not a task: a packet of"),
        (packet(Kind.CALL, PICKLED[-1], 2**48), (64,), "is not a task: kind 1, number 28147497671"),
        (packet(Kind.CALLS, TABLE, 2**64 - 1), (64,), "is not a task: kind 2, number 184467440737"),
        (packet(Kind.CALLS), (), "is not a task: 1 call in 0 bytes"),
        (packet(Kind.CALLS, TABLE, parts=0), (), "is not a task: 0 calls in 8 bytes"),
        (packet(Kind.CALLS, TABLE, parts=3), (64,), "is not a task: 3 calls in 8 bytes"),
        (packet(Kind.CALLS, bytes(4 * 257), parts=257), (), "is not a task: 257 calls in 1,028"),
        (packet(Kind.CALLS, TABLE, parts=2**32 - 1), (), "is not a task: 4,294,967,295 calls in 8"),
        (packet(Kind.CALLS, TABLE, parts=2), (64,), "is not a task: calls of 72 bytes in 8"),
        (wire.pack_calls(NOBODYS, [b"x", PICKLED[-1]]), (64,), f"an outcome of task {NOBODYS}"),
        (packet(0), (), "is not a task: kind 0"),
        (packet(Kind.RESULT, PICKLED[0]), (64,), "is not a task: kind 16"),
        # It looks like a task. What becomes of it comes back for a task that nobody knows.
        (packet(Kind.CALL, b"x"), (), f"nothing awaits kind 17, number {NOBODYS}"),
        (packet(Kind.CALL, PICKLED[1]), (), f"nothing awaits kind 17, number {NOBODYS}"),
        (packet(Kind.CALL, PICKLED[-1]), (64,), f"nothing awaits kind 16, number {NOBODYS}"),
        (packet(Kind.CALL, b"", flags=BIG), (), f"nothing awaits kind 17, number {NOBODYS}"),
        (packet(Kind.CALL, TABLE, flags=BIG), (), "nothing awaits kind 17"),
        (packet(Kind.CALL, TABLE, flags=BIG), (ALIGNMENT,), "nothing awaits kind 17"),
        (packet(Kind.CALL, TABLE, flags=BIG), (2 * ALIGNMENT,), "nothing awaits kind 17"),
        (packet(Kind.CALL, TABLE, flags=BIG, parts=2), (ALIGNMENT,), "nothing awaits kind 17"),
        (packet(Kind.CALL, b"\xff" * 8, flags=BIG), (64,), "nothing awaits kind 17"),
    ],
    ids=named,
)
def test_what_is_no_task_is_dropped_by_the_worker_that_takes_it(
    pool: Pool, message: bytes, sizes: tuple[int, ...], logged: str
) -> None:
    pool.begin()
    with files(*sizes) as descriptors:
        pool.strike(pool.channels.tasks, message, descriptors)
    pool.has_logged(logged)
    pool.end()


def test_workers_survive_whatever_comes(pool: Pool) -> None:
    pool.begin()

    @MANY
    @given(anything, numbers_of_files)
    def strike(data: bytes, number: int) -> None:
        with files(*[ALIGNMENT] * number) as descriptors:
            pool.strike(pool.channels.tasks, data, descriptors)

    strike()
    pool.has_logged("is not a task")
    pool.end()


def test_what_is_no_task_is_dropped_when_the_pipe_is_emptied(pool: Pool, tmp_path: Path) -> None:
    """By an abort, say, which takes back what nobody has taken."""
    pool.begin()
    gate = tmp_path / "other gate"
    other = pool.executor.submit(wait_for, str(gate))
    eventually(lambda: pool.executor.stats().busy == 2)

    waiting: list[Future[int]] = []

    def strike_and_recall(messages: list[bytes], descriptors: Sequence[int] = ()) -> None:
        waiting.append(pool.executor.submit(square, 5))
        for data in messages:
            eventually(lambda data=data: _sent(pool.channels.tasks, data, descriptors))
        last = pool.executor.submit(square, 6)
        assert pool.executor.abort(last)
        assert last.exception(BOUND) is not None

    @FEW
    @given(st.lists(anything, max_size=5), numbers_of_files)
    def strike(messages: list[bytes], number: int) -> None:
        with files(*[ALIGNMENT] * number) as descriptors:
            strike_and_recall(messages, descriptors)

    strike()
    # So many calls that their numbers cannot even be listed.
    strike_and_recall([packet(Kind.CALLS, TABLE, parts=2**32 - 1)])
    gate.touch()
    assert other.result(BOUND)
    assert [future.result(BOUND) for future in waiting] == [25] * len(waiting)
    pool.end()


# --- the control socket: the supervisor ----------------------------------------------------------


def command(kind: int, number: int = 0, extra: int = 0) -> bytes:
    return HEADER.pack(kind, 0, 1, number, extra)


@pytest.mark.parametrize(
    ("data", "logged"),
    [
        (command(0), "a malformed command was dropped: a command of kind 0"),
        (command(255), "a malformed command was dropped: a command of kind 255"),
        (command(Kind.CALL, 1), "a command of kind 1"),
        (command(Kind.DESCRIPTORS), "a command of kind 32"),
        (command(Kind.PEAK), "a command of kind 41"),
        *(
            (command(Kind.END_WORKERS, number), f"end workers by signal {number}")
            for number in (0, 32, 65, 128, 2**31, 2**64 - 1)
        ),
    ],
    ids=named,
)
def test_a_command_that_there_is_not_is_logged_and_dropped(
    pool: Pool, data: bytes, logged: str
) -> None:
    pool.begin()
    pool.command(data)
    pool.has_logged(logged)
    pool.end()


@whole_commands
@pytest.mark.parametrize("size", [1, HEADER.size - 1, HEADER.size + 1, 5 * HEADER.size - 3, 10_000])
def test_a_command_of_another_size_is_logged_and_dropped(pool: Pool, size: int) -> None:
    pool.begin()
    pool.command(b"\0" * size)
    pool.has_logged("a malformed command was dropped: a command of")
    pool.end()


@whole_commands
def test_an_empty_command_is_not_the_end(pool: Pool) -> None:
    pool.begin()
    for _ in range(3):
        pool.command(b"")
    pool.end()


odd = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1), st.just(2**64 - 1))
harmless_commands = st.one_of(
    st.builds(command, st.just(Kind.END_TASK), nobodys, odd),
    st.builds(command, st.just(Kind.END_WORKERS), st.integers(65, 2**64 - 1)),
    st.builds(command, st.just(Kind.KEEP_OLD), odd, odd),
    st.builds(command, st.integers(0, Kind.DESCRIPTORS) | st.integers(40, 255), odd, odd),
)


@whole_commands
def test_the_supervisor_survives_whatever_comes(pool: Pool) -> None:
    pool.begin()

    @MANY
    @given(harmless_commands, st.integers(0, 2 * HEADER.size))
    def strike(data: bytes, size: int) -> None:
        pool.command(data)
        pool.command(data[:size])

    strike()
    pool.has_logged("a malformed command was dropped")
    pool.end()


def test_descriptors_that_come_with_a_command_are_not_kept(pool: Pool) -> None:
    pool.begin()
    control = pool.client._supervisors.current.control
    for kind in (Kind.KEEP_OLD, Kind.DESCRIPTORS, 0):
        with files(ALIGNMENT, ALIGNMENT) as descriptors:
            pool.strike(control, command(kind), descriptors)
    pool.end()


def test_ends_of_tasks_that_nobody_runs_end_nothing(pool: Pool) -> None:
    pool.begin()
    running = next(slot for slot in pool.channels.board.read_all() if slot.state == sb.BUSY)
    for task in (0, running.task + 1, NOBODYS):
        for place in (0, 1, 2, running.place, 2**64 - 1):
            pool.command(command(Kind.END_TASK, task, place))
    pool.command(command(Kind.END_TASK, running.task, running.place + 1))
    pool.end()


@pytest.mark.parametrize(
    ("data", "ends_supervisor"),
    [(command(Kind.RELOAD, NOBODYS), False), (command(Kind.SHUTDOWN), True)],
    ids=named,
)
def test_a_command_that_the_client_has_not_given_costs_no_task(
    pool: Pool, data: bytes, ends_supervisor: bool, tmp_path: Path
) -> None:
    before = pool.client._supervisors.current.pid
    gate = tmp_path / "gate"
    futures = [pool.executor.submit(wait_for, str(gate)) for _ in range(10)]
    eventually(lambda: pool.executor.stats().busy == 2)
    pool.client._supervisors.current.control.send(data)
    gate.touch()
    assert all(future.result(BOUND) for future in futures)
    if ends_supervisor:
        # There is none for a moment.
        eventually(
            lambda: getattr(pool.client._supervisors.current, "pid", None) not in (None, before)
        )
    pool.goes_on()
    assert (pool.client._supervisors.current.pid == before) is not ends_supervisor


# --- the doorbell --------------------------------------------------------------------------------


def test_whatever_rings_the_doorbell_only_wakes_the_supervisor(pool: Pool) -> None:
    pool.begin()
    for data in (b"\0", bytes(range(256)), os.urandom(1000), b"\x11" * 5000):
        os.write(pool.channels.doorbell.write_end, data)
        pool.goes_on()
    pool.end()


# --- all at once ---------------------------------------------------------------------------------


def test_a_storm_of_it_costs_none_of_a_thousand_tasks(pool: Pool) -> None:
    pool.begin()
    storm = [
        (pool.channels.yells_far, packet(Kind.DEATH, b"x" * 40)),
        (pool.channels.yells_far, packet(Kind.DECISION, b"x")),
        (pool.channels.tasks, packet(0)),
        (pool.channels.tasks, b""),
        (pool.client._supervisors.current.control, command(Kind.END_WORKERS, 0)),
    ]
    futures = []
    for i in range(1000):
        futures.append(pool.executor.submit(square, i))
        with contextlib.suppress(BlockingIOError):
            end, data = storm[i % len(storm)]
            end.send(data, channels.DONTWAIT)
    assert [future.result(BOUND) for future in futures] == [i * i for i in range(1000)]
    pool.end()
