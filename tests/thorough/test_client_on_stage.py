"""The real client plays its part in the model's world, and must keep the promises there.

The world is that of pool_model.py: its workers and its supervisor move by chance, are killed by
chance, and every move is recorded. Then faults are put into the client, and must be found.
"""

from __future__ import annotations

import operator
import pickle
import random
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from pool_model import (
    Message,
    Pool,
    Violation,
    all_seen,
    put_message,
    put_worker,
    yell,
)

from prefork_executor import WorkerDied
from prefork_executor._board import fences
from prefork_executor._board import scoreboard as sb
from prefork_executor._client import barriers, batches
from prefork_executor._client import client as client_module
from prefork_executor._client.ledger import Ledger
from prefork_executor._client.watchdog import Watchdog
from prefork_executor._messages import wire
from prefork_executor._messages.channels import Packet
from prefork_executor._messages.payload_files import PayloadFiles
from prefork_executor._messages.wire import Kind
from prefork_executor._pickling import calls
from prefork_executor._pool.regulator import Limits
from prefork_executor._server.settings import DEFAULT_OPTIONS
from prefork_executor._support.timers import Timer


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
        settings: Any = types.SimpleNamespace(
            limits=limits,
            initializer=None,
            is_forked=True,
            max_memory=None,
            max_backlog=None,
            resources={},
        )
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
        client._submits.open(channels, client._dispatcher, client._requests)
        supervisor: Any = types.SimpleNamespace(
            control=types.SimpleNamespace(fileno=lambda: -1),
            tell=lambda *_: None,
            flush=lambda: None,
            has_unsent=False,
        )
        client._supervisors.current = supervisor
        client._supervisors.watchdog = Watchdog(supervisor, board, Timer())
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
    passed = barriers.Barriers.passed
    patch.setattr(barriers.Barriers, "passed", lambda self, number, _: passed(self, number, ()))


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
