"""No interleaving loses a task or runs one twice, whoever is killed whenever.

First the model is explored (see pool_model.py): every interleaving of small pools (of larger
ones in test_larger_models.py), and runs of others by chance. Then each order and rule is taken
away in turn, and the model must go wrong. At last the real worker, supervisor and client are
held against the model: the worker and the supervisor must take its steps, and the real client
must keep the promises in the model's world.

``python tests/support/pool_model.py`` explores larger ones, millions of states, for minutes.
"""

from __future__ import annotations

import operator
import os
import pickle
import random
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
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
    Message,
    Pool,
    Sizes,
    Violation,
    World,
    all_seen,
    check_every_interleaving,
    explore,
    put_message,
    put_worker,
    wander,
    yell,
)
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, WorkerDied
from prefork_executor._board import fences
from prefork_executor._board import scoreboard as sb
from prefork_executor._client import batches, recovery
from prefork_executor._client import client as client_module
from prefork_executor._client.ledger import Ledger
from prefork_executor._client.supervision import Supervision
from prefork_executor._messages import channels, wire
from prefork_executor._messages.channels import Packet
from prefork_executor._messages.payload_files import PayloadFiles
from prefork_executor._messages.wire import Kind
from prefork_executor._pickling import calls
from prefork_executor._pool.regulator import Limits
from prefork_executor._server.settings import DEFAULT_OPTIONS
from prefork_executor._support import faults

# --- the model ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 0, 1, 2, 1, 0, 0, True),
        Sizes(1, 0, 2, 1, 1, 0, 0, True),
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


@pytest.mark.parametrize(("batch", "looks"), [(1, 0), (3, 2)])
def test_no_run_of_a_larger_pool_loses_a_task_or_runs_one_twice(batch: int, looks: int) -> None:
    pool = Pool(batch=batch)
    client = Client(batch=batch, looks=looks)
    wander_often(pool, client, pool.new(3, 3, 3, 2, 2), runs=300)


def wander_often(pool: Pool, client: Client, world: World, runs: int = 1000) -> None:
    for seed in range(runs):
        wander(pool, client, world, seed)


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


def test_the_supervisor_must_tell_of_a_death_before_it_clears_the_slot() -> None:
    pool = Pool(funeral=("clear pid", "tell", "clear rest"), refills=False)
    with pytest.raises(Violation, match="ran twice"):
        explore(pool, Client(), pool.new(2, 1, 2))


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
        wander_often(pool, Client(rules), pool.new(3, 3, 3))


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


# --- the real client in the model's world --------------------------------------------------------


class Stage:
    """A world in which the real client plays its part: whenever it touches what
    others can touch, these take any number of steps first, by chance."""

    def __init__(self, seed: int, workers: int, tasks: int, kills: int, retirements: int) -> None:
        self.chance = random.Random(seed)
        self.pace = self.chance.choice([0.1, 0.3, 0.6])
        self.rush = self.chance.choice([0.03, 0.3])
        self.haste = self.chance.choice([0.1, 0.5, 1.0])
        self.peace = self.chance.choice([0.9, 0.98])
        self.pool = Pool(refills=bool(seed % 2))
        self.world = self.pool.new(workers, 0, kills, retirements, late=tasks)
        self.futures: list[Future[int]] = []
        self.largest = self.recalls = 0
        self.client = self._client(workers)

    def _client(self, workers: int) -> Any:
        limits = Limits(workers, 1, workers, 1, None)
        settings: Any = types.SimpleNamespace(limits=limits, initializer=None, is_forked=True)
        client: Any = client_module.Client(None, settings, None)  # type: ignore[arg-type]
        client._main.look()
        client._thread = threading.current_thread()
        client._poller = types.SimpleNamespace(wait=self.wait)
        board = StageBoard(self, workers)
        channels: Any = types.SimpleNamespace(
            tasks=types.SimpleNamespace(send=self.send_task),
            upstream=types.SimpleNamespace(receive=self.read_yell),
            task_reader=types.SimpleNamespace(receive=self.read_task),
            doorbell=types.SimpleNamespace(ring=lambda: None),
            board=board,
            send_marker=self.send_marker,
            wake=lambda: self.send_marker(0),
            files=PayloadFiles(),
        )
        client._take(channels, None)
        supervisor: Any = types.SimpleNamespace(
            control=types.SimpleNamespace(fileno=lambda: -1),
            tell=lambda *_: None,
            flush=lambda: None,
            has_unsent=False,
        )
        client._supervisors.current = supervisor
        client._supervisors.supervision = Supervision(supervisor, board)
        client._direct.reading.acquire()  # As the I/O thread does.
        return client

    def others_move(self) -> None:
        while self.chance.random() < self.pace:
            place = self.chance.randrange(len(self.world.workers))
            for _ in range(self.chance.choice([1, 2, 4, 8])):
                self._one_moves(place)

    def _one_moves(self, place: int) -> None:
        moves = list(self.pool.moves_at(self.world, place))
        if moves:
            own_step = self.chance.random() < self.peace
            _, self.world, _ = moves[0] if own_step else self.chance.choice(moves)
            worker = self.world.workers[place]
            if worker.unseen and self.chance.random() < self.haste:
                self.world = put_worker(self.world, place, worker.with_less_unseen())

    def let_all_move(self, times: int = 1) -> None:
        """Each slot takes the steps that are bound to come, and nobody dies."""
        for _ in range(times):
            for place in range(len(self.world.workers)):
                for _, world, bound in [*self.pool.moves_at(self.world, place)][:1]:
                    self.world = world if bound else self.world

    def let_die(self, place: int) -> None:
        moves = {name: world for name, world, _ in self.pool.moves_at(self.world, place)}
        self.world = moves[f"worker {place} is killed"]

    def submit(self) -> None:
        task = len(self.futures)
        self.futures.append(self.client.submit(operator.neg, (task,), {}, DEFAULT_OPTIONS))

    def play(self) -> None:
        """Turn after turn, as the I/O thread does, until every task is resolved."""
        for _ in range(5_000):
            self.client._loop.turn()
            if len(self.futures) == len(self.world.begun) and all(f.done() for f in self.futures):
                return
        raise AssertionError(f"a task is never resolved: {self.world} {self.futures}")

    # --- what the client touches ---------------------------------------------------------------

    def wait(self, _timeout: float | None) -> list[int]:
        self.others_move()
        return []

    def send_task(self, packet: bytes, _flags: int) -> None:
        self.others_move()
        if self.chance.random() < 0.1 and self.world.pipe:
            raise BlockingIOError
        kind, _, count, number, _ = wire.HEADER.unpack_from(packet)
        body = memoryview(packet)[wire.HEADER.size :]
        bodies = [body] if kind == Kind.CALL else wire.unpack_calls(count, body)
        tasks = [calls.load_call([body])[1][0] for body in bodies]
        owner = self.world.owner
        assert number >= len(owner), "a number is never used again"
        unused = (-1,) * (number - len(owner))
        world = self.world._replace(owner=(*owner, *unused, *tasks))
        self.world = put_message(world, *range(number, number + len(tasks)))
        self.largest = max(self.largest, len(tasks))

    def read_task(self, _flags: int) -> Packet:
        self.others_move()
        if not self.world.pipe:
            raise BlockingIOError
        numbers, rest = self.world.pipe[0], self.world.pipe[1:]
        self.world = self.world._replace(pipe=rest)
        kind = Kind.CALL if len(numbers) == 1 else Kind.CALLS
        return Packet(kind, 0, len(numbers), numbers[0], 0, memoryview(b""), -1)

    def send_marker(self, number: int) -> bool:
        self.others_move()
        if self.chance.random() < 0.1:
            return False
        self.world = yell(self.world, Message("marker", number))
        return True

    def read_yell(self, _flags: int) -> Packet:
        self.others_move()
        if len(self.futures) < len(self.world.begun) and self.chance.random() < self.rush:
            self.submit()  # As another thread may: the lock is free here.
        if not self.world.yells:
            raise BlockingIOError
        message, rest = self.world.yells[0], self.world.yells[1:]
        self.world = self.world._replace(yells=rest)
        return self._packet(message)

    def _packet(self, message: Message) -> Packet:
        number, kind, body, extra = message.number, Kind.MARKER, b"", 1000
        if message.kind == "outcome":
            kind, body = Kind.RESULT, self.result(number)
        elif message.kind == "outcomes":
            kind, body = Kind.OUTCOMES, self.results(message.numbers)
        elif message.kind == "unbegun":
            kind, extra = Kind.UNBEGUN, message.tail
        elif message.kind == "death":
            death = wire.Death(1, signal.SIGKILL, 0, message.state, number, 0, 0, message.tail)
            packet = wire.pack_death(death)
            number, kind, body = 1, Kind.DEATH, packet[wire.HEADER.size :]
        return Packet(kind, 0, 1, number, extra, memoryview(body), -1)

    def result(self, number: int) -> bytes:
        return pickle.dumps(-self.world.owner[number])

    def results(self, numbers: Sequence[int]) -> bytes:
        bodies = [(number, self.result(number)) for number in numbers]
        return b"".join(
            wire.HEADER.pack(Kind.RESULT, 0, len(body), number, 1000) + body
            for number, body in bodies
        )


class StageWords:
    """The board's words, read one after another while the others go on."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __len__(self) -> int:
        return sb.Scoreboard.base(len(self.stage.world.workers))

    def __setitem__(self, index: int, value: int) -> None:
        if index in (sb.OUTSTANDING, sb.PEAK_BACKLOG):
            return
        place, word = divmod(index - sb.HEADER_WORDS, sb.SLOT_WORDS)
        assert word == sb.RECALL
        self.stage.others_move()
        world = self.stage.world
        recalled = world.workers[place]._replace(recall=value)
        self.stage.world = put_worker(world, place, recalled)
        self.stage.recalls += 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._one_by_one(range(*index.indices(len(self))))
        self.stage.others_move()
        return self._word(index)

    def _one_by_one(self, indices: range) -> Iterator[int]:
        for index in indices:
            self.stage.others_move()
            yield self._word(index)

    def _word(self, index: int) -> int:
        if index < sb.HEADER_WORDS:
            return sb.NEVER
        place, word = divmod(index - sb.HEADER_WORDS, sb.SLOT_WORDS)
        worker = self.stage.world.workers[place]
        words = {
            sb.PID: worker.pid,
            sb.HOLDS: sb.pack_holds(*worker.seen),
            sb.UNSENT: len(self.stage.results(worker.kept)),
        }
        return words.get(word, 0)


class StageBoard(sb.Scoreboard):
    """The board, with areas in which the kept outcomes of the model's workers lie."""

    def __init__(self, stage: Stage, slots: int) -> None:
        self.words: Any = StageWords(stage)
        self.slots, self.stage = slots, stage

    def states(self) -> list[int]:
        return [self.read(place).state for place in range(self.slots)]

    def enter_name(self, _name: str) -> int:
        return 0

    def area(self, index: int) -> memoryview:
        self.stage.others_move()
        return memoryview(self.stage.results(self.stage.world.workers[index].kept))


def fence_on_stage(board: StageBoard) -> None:
    board.stage.others_move()
    board.stage.world = all_seen(board.stage.world)
    board.stage.others_move()


@pytest.fixture
def _fences_on_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fences, "everywhere", fence_on_stage)


on_stage = pytest.mark.usefixtures("_fences_on_stage")


def play(seed: int, **sizes: int) -> Stage:
    stage = Stage(seed, **sizes)
    stage.play()
    for task, future in enumerate(stage.futures):
        error = future.exception()
        if error is None:
            assert (future.result(), stage.world.begun[task]) == (-task, 1)
        else:
            assert isinstance(error, WorkerDied)
            assert stage.world.begun[task] <= 1
            numbers = [n for n, owner in enumerate(stage.world.owner) if owner == task]
            assert stage.world.died & set(numbers), "it was in nobody's dying hand"
    return stage


@on_stage
@pytest.mark.parametrize(
    "sizes",
    [
        {"workers": 1, "tasks": 3, "kills": 2, "retirements": 0},
        {"workers": 2, "tasks": 3, "kills": 3, "retirements": 1},
        {"workers": 3, "tasks": 8, "kills": 5, "retirements": 2},
    ],
)
def test_the_real_client_keeps_the_promises_in_the_models_world(sizes: dict[str, int]) -> None:
    deaths = 0
    for seed in range(250):
        stage = play(seed, **sizes)
        deaths += sum(future.exception() is not None for future in stage.futures)
    assert deaths, "some runs cost a task"


@on_stage
def test_the_real_client_keeps_the_promises_with_messages_of_several_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Every worker that has not finished with its message seems to be slow.
    monkeypatch.setattr(batches, "SLOW_AFTER", 0.0)
    stages = [play(seed, workers=2, tasks=8, kills=3, retirements=2) for seed in range(300)]
    assert max(stage.largest for stage in stages) >= 3
    assert sum(stage.recalls for stage in stages) > 10


@on_stage
def test_the_real_client_sends_again_what_had_woken_a_worker_that_died() -> None:
    stage = Stage(0, workers=2, tasks=1, kills=1, retirements=0)
    stage.others_move = lambda: None  # type: ignore[method-assign]
    stage.let_all_move(times=30)
    assert [worker.at for worker in stage.world.workers] == ["asleep", "asleep"]
    stage.submit()
    stage.let_die(0)
    stage.others_move = stage.let_all_move  # type: ignore[method-assign]
    stage.play()
    assert stage.world.begun == (1,)


def real_audits_that(fault: Callable[[pytest.MonkeyPatch], None]) -> None:
    """Plays until the client with this fault breaks a promise."""
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        for seed in range(2000):
            play(seed, workers=2, tasks=12, kills=6, retirements=2)


def settle_late(patch: pytest.MonkeyPatch) -> None:
    marker = recovery.Recoveries.on_marker
    patch.setattr(
        recovery.Recoveries, "on_marker", lambda self, number, _: marker(self, number, ())
    )


def keep_the_number(patch: pytest.MonkeyPatch) -> None:
    def number(self: Ledger, task: Any) -> int:
        task.number = task.number or number_anew(self, task)
        return int(task.number)

    number_anew = Ledger.number
    patch.setattr(Ledger, "number", number)


def make_no_fence(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(batches, "SLOW_AFTER", 0.0)
    patch.setattr(fences, "everywhere", lambda _: None)


@on_stage
@pytest.mark.parametrize("fault", [settle_late, keep_the_number, make_no_fence])
def test_the_stage_finds_a_client_with_a_fault(fault: Callable[[Any], None]) -> None:
    with pytest.raises((AssertionError, Violation)):
        real_audits_that(fault)
