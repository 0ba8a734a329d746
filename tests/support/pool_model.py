"""A small model of a pool, to be explored exhaustively: every interleaving of its
workers, its supervisor and its client, with a kill at every step.

One step of the model is what others can observe of a process: one mark on the
scoreboard, one message sent or taken, one word read. What happens between two
of them happens inside one process and belongs to the step before. The worker
follows `_server/worker.py`, the supervisor `_server/supervisor.py`, the client `_client/client.py`;
the recoveries are the real ones (`_client.recovery.Recovery`), fed with readings that are taken
word by word. That the real worker and the real client take these very steps is
tested beside it.

The order in which processes see what others write is modelled, too. What a worker
says of itself, and what the client says to it, goes into the writer's *store buffer*
first: the writer goes on, and reads what others have written, before anybody sees it.
It is seen at any time later, and at the latest when the writer sends or takes a
message: who then finds that message, or finds it gone, has come through the same lock
in the kernel. Since each word that matters here stands alone, this is all that a
machine that reorders memory can do to it; reads that change places are tried out as well.

The kernel is modelled, too. A message wakes one of the workers that wait for it,
the first in the order in which they registered (EPOLLEXCLUSIVE); those before it
that do not wait at that moment have it noted for their next wait.

A model is made of orders and rules. The proof rests on each of them, so a model
that lacks one must go wrong.
"""

from __future__ import annotations

import contextlib
import gc
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from prefork_executor._board import scoreboard as sb
from prefork_executor._board.scoreboard import Slot
from prefork_executor._client.recovery import Recovery

WORK = ("taking", "ask", "busy", "begin", "send")
"""A worker's steps with a message of one task, as in `Worker._serve_all` and `_serve`."""
NEXT = ("keep", "name next", "look", "begin next")
"""Its steps from one task of a message to the next, as in `Worker._serve_batch`."""
LAST = ("keep", "flush", "forget")
"""Its steps after the last task of a message of several."""
STOP = ("give back kept", "forget and give back", "give back")
"""Its steps if it finds, as it looks, that it is not to go on."""
FUNERAL = ("tell", "clear pid", "clear rest")
"""The supervisor's steps with one death, as in `Supervisor._flush`."""
ALIVE = {*WORK, *NEXT, *LAST, *STOP, "idle", "told?", "wait", "asleep"}

RULES = frozenset(
    {
        "a worker that a message woke asks before it leaves",
        "the pipe is emptied after a death in IDLE",
        "a recovery waits for the takers to leave",
        "suspects are sent again when the marker has come round",
        "outcomes that lie before the marker are settled before it",
        "a task that is sent again has a new number",
        "a worker holds what it has not sent the outcomes of",
        "a worker looks whether to stop after it has named the next task",
        "what was kept is told before the death",
        "a recall reads what is named after it is said",
        "a recall makes a fence for both before it reads",
    }
)


class Violation(AssertionError):
    """The model broke a promise."""


class Holds(NamedTuple):
    """The word of a slot by which its worker says what it does: see
    `_board.scoreboard.pack_holds`."""

    state: int
    task: int = 0
    head: int = 0
    tail: int = 0


class Worker(NamedTuple):
    """One slot of the scoreboard, and what we know of its process: where it is,
    what others see that it says, and what it has said that nobody sees yet, the
    message that it has taken last, the one that it has not answered (``hand``),
    whether its epoll has noted something in the pipe, whether it is told to leave,
    whether a message has woken it that it has not taken yet. Of a message of several
    tasks: which come after the one in hand (``rest``), how many came before
    (``before``), which have outcomes that were not sent (``kept``), and the last task
    of a message that was recalled."""

    at: str
    pid: int
    seen: Holds = Holds(sb.STARTING)
    unseen: tuple[Holds, ...] = ()
    last: int = 0
    hand: int = 0
    noted: bool = False
    leave: bool = False
    woken: bool = False
    rest: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    before: int = 0
    recall: int = 0

    @property
    def state(self) -> int:
        return self.seen.state

    def with_less_unseen(self) -> Worker:
        """Its oldest write that nobody has seen is seen."""
        return self._replace(seen=self.unseen[0], unseen=self.unseen[1:])

    def all_seen(self) -> Worker:
        return self._replace(seen=self.unseen[-1], unseen=()) if self.unseen else self


class Message(NamedTuple):
    """On the yell channel: an outcome, several, a death, a marker, or tasks from a
    number on that a worker has not begun."""

    kind: str
    number: int
    state: int = 0
    tail: int = 0
    numbers: tuple[int, ...] = ()


class World(NamedTuple):
    """All but the client. ``owner[n]`` is the task that was sent as number n,
    ``begun`` how often each task began; numbers in ``died`` died in a hand."""

    pipe: tuple[tuple[int, ...], ...]
    yells: tuple[Message, ...]
    workers: tuple[Worker, ...]
    last_pid: int
    owner: tuple[int, ...]
    begun: tuple[int, ...]
    died: frozenset[int]
    kills: int
    retirements: int


class Desk(NamedTuple):
    """The client. ``outcomes`` is what the batch has brought, ``slots``
    and ``words`` are what the present reading has, for the recovery under ``index`` (-1:
    the one to be opened). ``unseen`` is a recall that it has
    said and nobody has seen yet: the slot's place, and the word."""

    at: str
    in_flight: tuple[tuple[int, int], ...]
    fates: tuple[str, ...]
    waiting: tuple[tuple[int, int], ...] = ()
    outcomes: tuple[Message, ...] = ()
    recoveries: tuple[tuple[frozenset[int], tuple[tuple[int, tuple[int, int]], ...], int], ...] = ()
    last_marker: int = 0
    recalled: tuple[int, ...] = ()
    opens: bool = False
    index: int = -1
    slots: tuple[Slot, ...] = ()
    place: int = 0
    words: tuple[int | Holds, ...] = ()
    late: tuple[int, ...] = ()
    looks: int = 0
    slow: tuple[int, int, int] = (0, 0, 0)
    unseen: tuple[int, int] | None = None


def in_messages(numbers: Sequence[int], batch: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(numbers), batch):
        yield tuple(numbers[start : start + batch])


def put_worker(world: World, place: int, worker: Worker) -> World:
    workers = world.workers
    return world._replace(workers=(*workers[:place], worker, *workers[place + 1 :]))


def all_seen(world: World) -> World:
    """After a fence in every worker."""
    return world._replace(workers=tuple(worker.all_seen() for worker in world.workers))


def yell(world: World, message: Message) -> World:
    return world._replace(yells=(*world.yells, message))


def put_message(world: World, *numbers: int) -> World:
    """Put a message of these tasks into the pipe; it wakes one waiting worker at most."""
    workers = list(world.workers)
    for place, worker in enumerate(workers):
        if worker.at == "asleep":
            workers[place] = worker._replace(noted=True, at="wait")
            break
        if worker.at in ALIVE:
            workers[place] = worker._replace(noted=True)
    return world._replace(pipe=(*world.pipe, numbers), workers=tuple(workers))


class Pool:
    """The workers and the supervisor.

    Args:
        work: a worker's steps.
        funeral: the supervisor's steps with a dead worker.
        rules: those of RULES that hold.
        batch: how many tasks a message may have.
        in_order: whether others see at once what a worker writes.
        refills: whether a slot may get a new worker while others live; if not,
            it gets one only when nobody lives.
    """

    def __init__(
        self,
        work: tuple[str, ...] = WORK,
        funeral: tuple[str, ...] = FUNERAL,
        rules: frozenset[str] = RULES,
        *,
        batch: int = 1,
        in_order: bool = False,
        refills: bool = True,
    ) -> None:
        self._in_order = in_order
        self._batch = batch
        self._rules = rules
        self._refills = refills
        self._first = work[0]
        self._next = dict(zip(work, (*work[1:], work[0]), strict=True))
        self._next |= dict(zip(funeral, (*funeral[1:], "fork"), strict=True))
        self._funeral = funeral[0]
        self._clears_pid_last = funeral[-1] == "clear pid"
        self._next |= {"begin next": "keep"}
        self._names_first = (
            "a worker looks whether to stop after it has named the next task" in rules
        )
        self._asks_first = "a worker that a message woke asks before it leaves" in rules

    def new(
        self, workers: int, tasks: int, kills: int, retirements: int = 0, late: int = 0
    ) -> World:
        """A pool that was just started, ``tasks`` in the pipe, ``late`` ones to come."""
        return World(
            pipe=tuple(in_messages(range(1, tasks + 1), self._batch)),
            yells=(),
            workers=tuple(Worker(self._first, place + 1) for place in range(workers)),
            last_pid=workers,
            owner=(-1, *range(tasks)),
            begun=(0,) * (tasks + late),
            died=frozenset(),
            kills=kills,
            retirements=retirements,
        )

    def moves(self, world: World) -> Iterator[tuple[str, World, bool]]:
        """Each step that can be next: its name, what comes of it, and whether it
        is bound to come (a kill, say, is not)."""
        for place in range(len(world.workers)):
            yield from self.moves_at(world, place)

    def moves_at(self, world: World, place: int) -> Iterator[tuple[str, World, bool]]:
        """Those of one slot; the step of its own comes first."""
        worker = world.workers[place]
        if worker.at not in ALIVE:
            needed = worker.at != "fork" or all(w.at not in ALIVE for w in world.workers)
            if needed or self._refills:
                yield f"slot {place}: {worker.at}", self._bury(world, place, worker), needed
            return
        if worker.at != "asleep":
            yield f"worker {place}: {worker.at}", self.step(world, place), True
        if worker.unseen:
            seen = put_worker(world, place, worker.with_less_unseen())
            yield f"worker {place}: is seen", seen, True
        if world.kills:
            yield f"worker {place} is killed", self._kill(world, place, worker), False
        if world.retirements and not worker.leave:
            yield f"worker {place} is to leave", self._retire(world, place, worker), False

    def _kill(self, world: World, place: int, worker: Worker) -> World:
        # What it has finished with, its outcome told or kept, has not died with it.
        is_done = worker.hand in worker.kept
        died = world.died | {worker.hand} if worker.hand and not is_done else world.died
        world = world._replace(kills=world.kills - 1, died=died)
        return self._end(world, place, worker)

    def _end(self, world: World, place: int, worker: Worker) -> World:
        dead = worker.all_seen()._replace(
            at=self._funeral, hand=0, rest=(), noted=False, leave=False, woken=False
        )
        return put_worker(world, place, dead)

    def _retire(self, world: World, place: int, worker: Worker) -> World:
        at = "wait" if worker.at == "asleep" else worker.at
        world = world._replace(retirements=world.retirements - 1)
        return put_worker(world, place, worker._replace(leave=True, at=at))

    def _bury(self, world: World, place: int, dead: Worker) -> World:
        """The supervisor's next step about a worker that has ended."""
        at = dead.at
        if at == "fork":
            pid = world.last_pid + 1
            return put_worker(world._replace(last_pid=pid), place, Worker(self._first, pid))
        if at == "tell":
            state, task, _, tail = dead.seen
            notice = Message("death", task if state == sb.BUSY else 0, state, tail)
            kept = Message("outcomes", 0, numbers=dead.kept)
            first = "what was kept is told before the death" in self._rules
            for message in (kept, notice) if first else (notice, kept):
                if message.numbers or message.kind == "death":
                    world = yell(world, message)
            dead = dead._replace(kept=())
        elif at == "clear pid":
            dead = dead._replace(pid=0)
        else:
            dead = Worker(at, dead.pid if self._clears_pid_last else 0, Holds(sb.FREE))
        return put_worker(world, place, dead._replace(at=self._next[at]))

    def step(self, world: World, place: int) -> World:
        """The worker's own next step."""
        worker = world.workers[place]
        at = worker.at
        if at in ("idle", "told?", "wait"):
            return self._rest(world, place, worker)
        if at == "ask":
            return self._ask(world, place, worker)
        if at in STOP or at in LAST or at == "look":
            return self._between(world, place, worker)
        if at == "name next":
            return put_worker(world, place, self._name_next(worker))
        if at == "send" and worker.hand:
            world = yell(world, Message("outcome", worker.hand))
            worker = worker.all_seen()._replace(hand=0)
        if "begin" in at:
            world = _begin(world, worker.hand)
        after = self._next[at]
        if after == "send" and (worker.rest or worker.before):
            after = "keep"
        return put_worker(world, place, self._mark(worker, at)._replace(at=after))

    def _mark(self, worker: Worker, at: str) -> Worker:
        if at == "taking":
            return self._say(worker, Holds(sb.TAKING, worker.last))
        if at == "busy":
            return self._say(worker, Holds(sb.BUSY, worker.hand, 0, len(worker.rest)))
        return worker

    def _say(self, worker: Worker, holds: Holds) -> Worker:
        worker = worker._replace(unseen=(*worker.unseen, holds))
        return worker.all_seen() if self._in_order else worker

    # --- a message of several tasks ---------------------------------------------------------

    def _name_next(self, worker: Worker) -> Worker:
        number, rest, before = worker.rest[0], worker.rest[1:], worker.before + 1
        at = "look" if self._names_first else "begin next"
        worker = self._say(worker, Holds(sb.BUSY, number, before, len(rest)))
        return worker._replace(hand=number, rest=rest, before=before, at=at)

    def _between(self, world: World, place: int, worker: Worker) -> World:
        at = worker.at
        if at == "keep":
            worker = worker._replace(kept=(*worker.kept, worker.hand))
            after = "name next" if self._names_first else "look"
            worker = worker._replace(at=after if worker.rest else "flush")
        elif at in ("flush", "give back kept"):
            world = yell(world, Message("outcomes", 0, numbers=worker.kept))
            worker = worker.all_seen()
            worker = worker._replace(at="forget" if at == "flush" else "forget and give back")
        elif at == "forget":
            worker = worker._replace(kept=(), hand=0, before=0, at=self._first)
        elif at == "forget and give back":
            worker = worker._replace(kept=(), at="give back")
        elif at == "give back":
            count = 1 + len(worker.rest)
            world = yell(world, Message("unbegun", worker.hand, tail=count))
            worker = worker.all_seen()
            worker = worker._replace(hand=0, rest=(), before=0, at=self._first)
        else:
            worker = self._look(worker)
        return put_worker(world, place, worker)

    def _look(self, worker: Worker) -> Worker:
        if not worker.leave and worker.recall != worker.hand + len(worker.rest):
            return worker._replace(at="begin next" if self._names_first else "name next")
        if not self._names_first:
            worker = worker._replace(hand=worker.rest[0], rest=worker.rest[1:])
        return worker._replace(at="give back kept")

    def _ask(self, world: World, place: int, worker: Worker) -> World:
        if worker.leave and not worker.woken:
            return self._leave(world, place, worker)
        worker = worker.all_seen()._replace(woken=False)
        if not world.pipe:
            return put_worker(world, place, worker._replace(at="idle"))
        hand, *rest = world.pipe[0]
        worker = worker._replace(
            hand=hand, last=hand, rest=tuple(rest), before=0, at=self._next["ask"]
        )
        return put_worker(world._replace(pipe=world.pipe[1:]), place, worker)

    def _rest(self, world: World, place: int, worker: Worker) -> World:
        at = worker.at
        if at == "idle":
            # Where nobody is ever told to leave, asking whether is no step.
            then = "told?" if world.retirements or worker.leave else "wait"
            worker = self._say(worker, Holds(sb.IDLE, worker.last))
            return put_worker(world, place, worker._replace(at=then))
        woken = at == "wait" and worker.noted and world.pipe
        if woken and (self._asks_first or not worker.leave):
            woke = worker._replace(at=self._first, woken=True)
            return put_worker(world, place, woke)
        if worker.leave:
            return self._leave(world, place, worker)
        if at == "told?":
            return put_worker(world, place, worker._replace(at="wait"))
        return put_worker(world, place, worker.all_seen()._replace(noted=False, at="asleep"))

    def _leave(self, world: World, place: int, worker: Worker) -> World:
        return self._end(world, place, self._say(worker, Holds(sb.LEAVING, worker.last)))


def _begin(world: World, number: int) -> World:
    task = world.owner[number]
    begun = list(world.begun)
    begun[task] += 1
    if begun[task] > 1:
        raise Violation(f"task {task} ran twice")
    return world._replace(begun=tuple(begun))


class Client:
    """What the I/O thread does, as in `IoLoop.turn`, and a thread that submits.

    Args:
        rules: those of RULES that hold.
        batch: how many tasks a message may have.
        looks: how often it looks for a worker that seems to be slow.
        in_order: whether others see at once what it writes.
        backwards: whether it reads the board from its end, and of a slot first what its
            worker does, then whose it is, as a machine may that reorders reads.
    """

    def __init__(
        self,
        rules: frozenset[str] = RULES,
        *,
        batch: int = 1,
        looks: int = 0,
        in_order: bool = False,
        backwards: bool = False,
    ) -> None:
        self._rules = rules
        self._in_order = in_order
        self._backwards = backwards
        self._batch = batch
        self._looks = looks

    def new(self, world: World) -> Desk:
        numbers = [number for message in world.pipe for number in message]
        in_flight = tuple((number, world.owner[number]) for number in numbers)
        late = tuple(range(len(in_flight), len(world.begun)))
        return Desk("read", in_flight, ("",) * len(world.begun), late=late, looks=self._looks)

    def moves(self, world: World, desk: Desk) -> Iterator[tuple[str, World, Desk]]:
        """Each step that can be next."""
        if desk.at == "read":
            if desk.late:
                # The lock is free: another thread submits, which sends at once.
                task, late = desk.late[0], desk.late[1:]
                waiting = (*desk.waiting, (task, 0))
                yield "submit", *self._send(world, desk._replace(waiting=waiting, late=late))
            if desk.looks:
                yield from self._slow_looks(world, desk)
            if desk.unseen is not None:
                yield "client: is seen", *_recall_seen(world, desk)
            if world.yells:
                message = world.yells[0]
                rest = world._replace(yells=world.yells[1:])
                yield f"client: reads {message.kind}", rest, self._read(desk, message)
            if desk.outcomes or (not world.yells and (desk.recoveries or desk.waiting)):
                yield "client: settles", world, self._settle(world, desk)
        else:
            after = getattr(self, f"_{desk.at}")(world, desk)
            yield f"client: {desk.at}s", *after

    # --- reading ---------------------------------------------------------------------------

    def _read(self, desk: Desk, message: Message) -> Desk:
        if message.kind == "outcome":
            return desk._replace(outcomes=(*desk.outcomes, message))
        if message.kind == "outcomes":
            found = tuple(Message("outcome", number) for number in message.numbers)
            return desk._replace(outcomes=(*desk.outcomes, *found))
        if message.kind == "unbegun":
            return _take_back(desk, set(range(message.number, message.number + message.tail)))
        if message.kind == "marker":
            return self._close_audit(desk, message.number)
        if message.state == sb.TAKING:
            return desk._replace(at="recall", opens=True)
        if message.state == sb.IDLE and "the pipe is emptied after a death in IDLE" in self._rules:
            return desk._replace(at="recall", opens=False)
        if message.state != sb.BUSY:
            return desk
        known = message.number in dict(desk.in_flight)
        if known and message.number not in _numbers(desk.outcomes):
            desk = desk._replace(outcomes=(*desk.outcomes, message))
        return _take_back(desk, set(range(message.number + 1, message.number + 1 + message.tail)))

    def _recall(self, world: World, desk: Desk) -> tuple[World, Desk]:
        if world.pipe:
            recalled = (*desk.recalled, *world.pipe[0])
            return world._replace(pipe=world.pipe[1:]), desk._replace(recalled=recalled)
        desk = _take_back(desk, desk.recalled)._replace(recalled=())
        if desk.opens:
            return world, _read_board(desk._replace(index=-1))
        return world, desk._replace(at="read")

    def _close_audit(self, desk: Desk, marker: int) -> Desk:
        unresolved = set(dict(desk.in_flight))
        if "outcomes that lie before the marker are settled before it" in self._rules:
            unresolved -= _numbers(desk.outcomes)
        for recovery in desk.recoveries:
            if recovery[2] == marker:
                desk = _take_back(desk, recovery[0] & unresolved)
        return desk._replace(
            recoveries=tuple(recovery for recovery in desk.recoveries if recovery[2] != marker)
        )

    # --- settling, looking, sending -----------------------------------------------------------

    def _settle(self, world: World, desk: Desk) -> Desk:
        fates, in_flight = list(desk.fates), dict(desk.in_flight)
        for number, kind in ((message.number, message.kind) for message in desk.outcomes):
            task = in_flight.pop(number, None)
            if task is None:
                continue
            if kind == "death" and number not in world.died:
                raise Violation(f"task {task} was given up though nobody died with it")
            if kind == "outcome" and world.begun[task] != 1:
                raise Violation(f"task {task} has an outcome and ran {world.begun[task]} times")
            if fates[task]:
                raise Violation(f"task {task} is resolved a second time")
            fates[task] = "done" if kind == "outcome" else "lost"
        desk = desk._replace(fates=tuple(fates), in_flight=tuple(in_flight.items()), outcomes=())
        return self._look_after(desk, 0)

    def _look_after(self, desk: Desk, index: int) -> Desk:
        """Go on to the first recovery from ``index`` on that waits for its takers."""
        while index < len(desk.recoveries) and desk.recoveries[index][2]:
            index += 1
        if index < len(desk.recoveries):
            return _read_board(desk._replace(index=index))
        return desk._replace(at="send" if desk.waiting else "read", index=-1)

    def _scan(self, world: World, desk: Desk) -> tuple[World, Desk]:
        """Read one word of the board, of those that are of use: of each slot whose it is
        and what its worker does. The last word leads on."""
        place = len(world.workers) - 1 - desk.place if self._backwards else desk.place
        worker = world.workers[place]
        reads_pid = bool(desk.words) is self._backwards
        word = worker.pid if reads_pid else worker.seen
        is_of_use = worker.pid if reads_pid else worker.state in (sb.TAKING, sb.BUSY)
        if is_of_use and not desk.words:
            return world, desk._replace(words=(word,))
        if is_of_use:
            desk = desk._replace(slots=(*desk.slots, self._slot(place, *desk.words, word)))
        desk = desk._replace(words=(), place=desk.place + 1)
        return world, desk if desk.place < len(world.workers) else self._judge(desk)

    def _slot(self, place: int, *words: Any) -> Slot:
        pid, (state, task, head, tail) = reversed(words) if self._backwards else words
        if "a worker holds what it has not sent the outcomes of" not in self._rules:
            head = 0
        return Slot(place, pid, 0, 0, state, task, 0, 0, head, tail)

    def _judge(self, desk: Desk) -> Desk:
        """The board is read: open the recovery, or let it have its look."""
        board = desk.slots
        desk = desk._replace(slots=(), place=0)
        if desk.index < 0:
            return self._open_audit(desk._replace(at="read"), board)
        suspects, takers, _ = desk.recoveries[desk.index]
        # It goes on as if it had begun with those that have not moved since.
        recovery = Recovery(suspects, [_taking(place, *taker) for place, taker in takers])
        everybody_left = recovery.look(lambda: board)
        desk = _put_recovery(desk, desk.index, recovery)
        if everybody_left:
            return desk._replace(at="mark")
        return self._look_after(desk, desk.index + 1)

    def _open_audit(self, desk: Desk, board: tuple[Slot, ...]) -> Desk:
        recovery = Recovery(dict(desk.in_flight), board)
        if "a recovery waits for the takers to leave" not in self._rules:
            recovery.takers.clear()
        return _put_recovery(desk, len(desk.recoveries), recovery) if recovery.suspects else desk

    def _mark(self, world: World, desk: Desk) -> tuple[World, Desk]:
        marker = desk.last_marker + 1
        suspects, takers, _ = desk.recoveries[desk.index]
        recoveries = list(desk.recoveries)
        recoveries[desk.index] = (suspects, takers, marker)
        desk = desk._replace(recoveries=tuple(recoveries), last_marker=marker)
        if "suspects are sent again when the marker has come round" in self._rules:
            world = yell(world, Message("marker", marker))
            return world, self._look_after(desk, desk.index + 1)
        index = desk.index
        return world, self._look_after(self._close_audit(desk, marker), index)

    def _send(self, world: World, desk: Desk) -> tuple[World, Desk]:
        message, waiting = desk.waiting[: self._batch], desk.waiting[self._batch :]
        numbers = []
        for task, number in message:
            if not number or "a task that is sent again has a new number" in self._rules:
                number = len(world.owner)
                world = world._replace(owner=(*world.owner, task))
            numbers.append(number)
            desk = desk._replace(in_flight=(*desk.in_flight, (number, task)))
        desk = desk._replace(waiting=waiting, at="send" if waiting else "read")
        return put_message(world, *numbers), desk

    # --- a task that takes long ----------------------------------------------------------------

    def _slow_looks(self, world: World, desk: Desk) -> Iterator[tuple[str, World, Desk]]:
        """Look at a worker that seems to be slow: read what it has named, and what it
        has kept."""
        for place, worker in enumerate(world.workers):
            state, task, _, tail = worker.seen
            if state == sb.BUSY and (tail or worker.kept):
                slow = (place, task, tail)
                found = tuple(Message("outcome", number) for number in worker.kept)
                yield (
                    "client: looks",
                    world,
                    desk._replace(
                        at="say", slow=slow, looks=desk.looks - 1, outcomes=(*desk.outcomes, *found)
                    ),
                )

    def _say(self, world: World, desk: Desk) -> tuple[World, Desk]:
        place, task, tail = desk.slow
        if "a recall reads what is named after it is said" not in self._rules:
            desk = _take_back(desk, set(range(task + 1, task + tail + 1)))
        world, desk = _recall_seen(world, desk)
        fenced = "a recall makes a fence for both before it reads" in self._rules
        at = "fence" if fenced else "reread"
        desk = desk._replace(at=at, unseen=(place, task + tail))
        return _recall_seen(world, desk) if self._in_order else (world, desk)

    def _fence(self, world: World, desk: Desk) -> tuple[World, Desk]:
        world, desk = _recall_seen(all_seen(world), desk)
        return world, desk._replace(at="reread")

    def _reread(self, world: World, desk: Desk) -> tuple[World, Desk]:
        place, task, tail = desk.slow
        named = world.workers[place].seen
        desk = desk._replace(at="read", slow=(0, 0, 0))
        if named.state == sb.BUSY and named.task + named.tail == task + tail:
            desk = _take_back(desk, set(range(named.task + 1, task + tail + 1)))
        return world, desk


def _recall_seen(world: World, desk: Desk) -> tuple[World, Desk]:
    """What the client has said last of a recall, if anything, is seen now."""
    if desk.unseen is None:
        return world, desk
    place, last = desk.unseen
    recalled = world.workers[place]._replace(recall=last)
    return put_worker(world, place, recalled), desk._replace(unseen=None)


def _numbers(messages: Sequence[Message]) -> set[int]:
    return {message.number for message in messages}


def _read_board(desk: Desk) -> Desk:
    return desk._replace(at="scan", slots=(), place=0, words=())


def _taking(place: int, pid: int, task: int) -> Slot:
    return Slot(place, pid, 0, 0, sb.TAKING, task, 0, 0, 0, 0)


def _put_recovery(desk: Desk, index: int, recovery: Recovery) -> Desk:
    recoveries = list(desk.recoveries)
    recoveries[index : index + 1] = [
        (frozenset(recovery.suspects), tuple(recovery.takers.items()), 0)
    ]
    return desk._replace(recoveries=tuple(recoveries))


def _take_back(desk: Desk, numbers: Sequence[int] | set[int] | frozenset[int]) -> Desk:
    in_flight = dict(desk.in_flight)
    back = tuple((in_flight.pop(n), n) for n in sorted(numbers) if n in in_flight)
    return desk._replace(in_flight=tuple(in_flight.items()), waiting=(*back, *desk.waiting))


# --- exploring ---------------------------------------------------------------------------


class Exploration(NamedTuple):
    """How many states there are, and in how many ways a run can end."""

    states: int
    steps: int
    fates: frozenset[tuple[str, ...]]


State = tuple[World, Desk]
UNRESOLVED = "a task is never resolved"


def wander(pool: Pool, client: Client, world: World, seed: int, most: int = 100_000) -> World:
    """One run of a model that is too large to be explored, by chance.

    Raises:
        Violation: a promise is broken.
    """
    chance = random.Random(seed)
    state = (world, client.new(world))
    for _ in range(most):
        if is_over(state):
            return state[0]
        _, state, _ = chance.choice(list(next_states(pool, client, state)))
    raise Violation(f"{UNRESOLVED}: {state}")


def wander_often(pool: Pool, client: Client, world: World, runs: int) -> None:
    """So many runs, each by another chance. Raises what :func:`wander` raises."""
    for seed in range(runs):
        wander(pool, client, world, seed)


def explore(pool: Pool, client: Client, world: World, most: int = 1_000_000) -> Exploration:
    """Visit every state that can be reached.

    Raises:
        Violation: a promise is broken, with the steps that lead there.
    """
    with _no_garbage_collection():  # Nothing here is garbage, and there is much of it.
        return _explore(pool, client, _Known((world, client.new(world))), most)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _explore(pool: Pool, client: Client, known: _Known, most: int) -> Exploration:
    for number, state in enumerate(known.states):  # It grows as we go.
        if is_over(state):
            continue
        try:
            for step in next_states(pool, client, state):
                known.add(number, *step)
            if not known.goes_on(number):
                raise Violation(UNRESOLVED)
        except Violation as violation:
            raise Violation(f"{violation}, after:\n{known.story(number)}") from None
        assert len(known.states) < most, "the model is too large"
    ends = [number for number, state in enumerate(known.states) if is_over(state)]
    reached = known.from_which_one_comes_to(ends)
    for number in range(len(known.states)):
        if number not in reached:
            raise Violation(f"{UNRESOLVED}, after:\n{known.story(number)}")
    fates = frozenset(known.states[number][1].fates for number in ends)
    return Exploration(len(known.states), known.steps, fates)


class _Known:
    """The states found so far, by number, and how they were come by."""

    def __init__(self, first: State) -> None:
        self.states = [first]
        self.steps = 0
        self._numbers = {first: 0}
        self._origins: list[tuple[int, str]] = [(-1, "")]
        self._bound_before: list[list[int]] = [[]]
        self._goes_on = -1

    def add(self, origin: int, name: str, state: State, bound: bool) -> None:
        """A step from one of them, and where it leads."""
        self.steps += 1
        number = self._numbers.setdefault(state, len(self.states))
        if number == len(self.states):
            self.states.append(state)
            self._origins.append((origin, name))
            self._bound_before.append([])
        if bound:
            self._bound_before[number].append(origin)
            self._goes_on = origin

    def goes_on(self, number: int) -> bool:
        """Whether the state whose steps were added last has one that is bound to come."""
        return self._goes_on == number

    def from_which_one_comes_to(self, ends: Sequence[int]) -> set[int]:
        """All states from which steps that are bound to come can lead to an end."""
        reached, todo = set(ends), list(ends)
        while todo:
            for number in self._bound_before[todo.pop()]:
                if number not in reached:
                    reached.add(number)
                    todo.append(number)
        return reached

    def story(self, number: int) -> str:
        """The steps that lead there, and what it looks like."""
        steps = [str(self.states[number])]
        while number:
            number, name = self._origins[number]
            steps.append(name)
        return "\n".join(reversed(steps))


class Sizes(NamedTuple):
    """How large a pool is that is explored, and what may happen to it."""

    batch: int
    looks: int
    workers: int
    tasks: int
    kills: int
    retirements: int
    late: int
    refills: bool

    def __str__(self) -> str:
        return "-".join(map(str, self))


def check_every_interleaving(sizes: Sizes) -> None:
    """Explore it.

    Raises:
        Violation: a promise is broken.
    """
    pool = Pool(batch=sizes.batch, refills=sizes.refills)
    client = Client(batch=sizes.batch, looks=sizes.looks)
    world = pool.new(sizes.workers, sizes.tasks, sizes.kills, sizes.retirements, sizes.late)
    seen = explore(pool, client, world)
    lost = {fates.count("lost") for fates in seen.fates}
    assert lost == set(range(sizes.kills + 1)), "each kill costs the task that had begun or nothing"
    assert seen.states > 1000


def is_over(state: State) -> bool:
    """Whether every task is resolved and none is anywhere."""
    _, desk = state
    return all(desk.fates) and not desk.in_flight and not desk.waiting


def next_states(pool: Pool, client: Client, state: State) -> Iterator[tuple[str, State, bool]]:
    world, desk = state
    for name, next_world, bound in pool.moves(world):
        yield name, (next_world, desk), bound
    for name, next_world, next_desk in client.moves(world, desk):
        yield name, (next_world, next_desk), True


def main() -> None:
    """Explore pools that take too long for every run of the suite."""
    for refills, sizes in [
        (False, (2, 1, 2)),
        (False, (2, 1, 1, 0, 1)),
        (False, (2, 0, 2, 0, 1)),
        (True, (2, 1, 1, 1)),
        (True, (2, 2, 1)),
        (True, (2, 1, 2)),
    ]:
        pool = Pool(refills=refills)
        seen = explore(pool, Client(), pool.new(*sizes), most=10_000_000)
        print(f"{sizes}, refills: {refills}: {seen.states} states, {seen.steps} steps", flush=True)


if __name__ == "__main__":
    main()
