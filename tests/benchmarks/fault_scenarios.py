"""The faults that faults.py injects: one small scenario for each.

    python tests/benchmarks/fault_scenarios.py POOL FAULT DIRECTORY

plays one, in a process that is the pool's user and writes its figures into the
directory. faults.py starts it, watches it from outside, and cleans up after it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fault_tasks as tasks
import psutil
from fault_stage import (
    OTHERS,
    PATIENCE,
    SHORT,
    Figures,
    Outcome,
    Stage,
    alive,
    among_others,
    ask,
    ask_others,
    error_name,
    error_of,
    eventually,
    judge,
    settle,
    since,
    usable,
    wait_for_notes,
    warm,
    whole_text,
    within,
)
from notes import REASON, noted
from pools import POOLS, WORKERS, Options, Pool, UnsupportedError

FORKS_FAIL_FOR = 1.5
"""Seconds."""
END_WITHIN = 15.0
"""Seconds that the end of a pool may take: it may give a worker ten to clean up."""
MANY_FORKS = 20
"""Workers beyond which an initializer was tried too often."""
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000

Scenario = Callable[[Stage], Figures]


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        title: what happens.
        play: makes it happen, in the process of the pool's user.
        watch: the name of what the one who measures does meanwhile.
    """

    title: str
    play: Scenario
    watch: str


FAULTS: dict[str, Fault] = {}


def fault(name: str, title: str, watch: str = "wait_for_end") -> Callable[[Scenario], Scenario]:
    """Make a scenario a row of the table."""

    def add(play: Scenario) -> Scenario:
        FAULTS[name] = Fault(title, play, watch)
        return play

    return add


# --- a task that harms its worker, while others run --------------------------------------------


def harmful(name: str, title: str, fn: Callable[..., Any], *args: Any) -> None:
    """A row about a task among others."""

    def play(stage: Stage) -> Figures:
        pool = stage.pool()
        return among_others(pool, lambda: ask(pool, fn, *args))

    fault(name, title)(play)


harmful("kill-self", "a task SIGKILLs its own worker", tasks.kill_self)


@fault("oom-kill", "a busy worker is SIGKILLed from outside, as by the OOM killer")
def oom_kill(stage: Stage) -> Figures:
    pool = stage.pool()

    def kill_from_outside() -> Future[Any]:
        future = ask(pool, tasks.long_call, stage.notes)
        for pid in wait_for_notes(stage.notes, 1):
            os.kill(pid, signal.SIGKILL)
        return future

    return among_others(pool, kill_from_outside)


@fault("kill-idle", "idle workers are SIGKILLed, one by one, tasks come at once")
def kill_idle(stage: Stage) -> Figures:
    pool = stage.pool()
    others: list[Future[Any]] = []
    began = time.monotonic()
    for _ in range(4):
        for pid in warm(pool)[-1:]:
            os.kill(pid, signal.SIGKILL)
        others += ask_others(pool, OTHERS // 4)
        settle(others, PATIENCE / 4)
    return judge(pool, None, others, began)


harmful("exit", "a task calls os._exit(7)", os._exit, 7)
harmful("sys-exit", "a task calls sys.exit(3)", tasks.sys_exit, 3)
harmful("segfault", "a task crashes: SIGSEGV", tasks.segfault)


@fault("stop-idle", "an idle worker is stopped by SIGSTOP; tasks come")
def stop_idle(stage: Stage) -> Figures:
    """Each in turn: which one the pool would turn to first is its own affair."""
    pool = stage.pool()
    others: list[Future[Any]] = []
    began = time.monotonic()
    hung = 0
    for pid in warm(pool):
        os.kill(pid, signal.SIGSTOP)
        asked = ask_others(pool, OTHERS // WORKERS)
        hung += settle(asked, PATIENCE / WORKERS).pending
        others += asked
        os.kill(pid, signal.SIGCONT)
        settle(asked, PATIENCE / WORKERS)
    figures = judge(pool, None, others, began)
    if hung:
        figures |= {"outcome": Outcome.HANGS, "hung": hung, "resumed": figures["hung"] == 0}
    return figures


@fault("stop-shutdown", "an idle worker is stopped by SIGSTOP; the pool is shut down")
def stop_shutdown(stage: Stage) -> Figures:
    pool = stage.pool(closing=False)
    return shut_down_stopped(pool, warm(pool)[-1])


@fault("stop-result", "a worker is stopped by SIGSTOP as its result arrives; shutdown")
def stop_result(stage: Stage) -> Figures:
    pool = stage.pool(closing=False)
    warm(pool)
    future = ask(pool, tasks.nap, SHORT)
    # In the pool's own thread, before the worker has come to rest.
    future.add_done_callback(lambda done: os.kill(done.result(), signal.SIGSTOP))
    return shut_down_stopped(pool, future.result(PATIENCE))


def shut_down_stopped(pool: Pool, worker: int) -> Figures:
    os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    returned = within(END_WITHIN, pool.shutdown)
    seconds = since(began) if returned else None
    return {"outcome": Outcome.ENDED if returned else Outcome.HANGS, "seconds": seconds}


@fault("memory", "a task takes all memory that RLIMIT_AS allows: MemoryError")
def memory(stage: Stage) -> Figures:
    pool = stage.pool(initializer=tasks.limit_memory)
    return among_others(pool, lambda: ask(pool, tasks.hoard))


harmful("closes", "a task closes every descriptor from 3 on", tasks.close_descriptors)
harmful("meddles", "a task writes to every descriptor from 3 on, and shuts it down", tasks.meddle)


def leaves_child(stage: Stage, then: Callable[[], None]) -> Figures:
    """A task's child, which is not the pool's, holds copies of the pool's descriptors."""
    pool = stage.pool()
    return among_others(pool, lambda: ask(pool, tasks.leave_child, stage.children, then))


@fault("leaves-child", "a task leaves a child that holds copies of all descriptors")
def leaves_child_and_returns(stage: Stage) -> Figures:
    return leaves_child(stage, tasks.return_at_once)


@fault("leaves-child-dies", "a task leaves such a child, and its worker is SIGKILLed")
def leaves_child_and_dies(stage: Stage) -> Figures:
    return leaves_child(stage, tasks.kill_self)


# --- what cannot travel ------------------------------------------------------------------------

harmful("exception", "an exception that cannot be unpickled", tasks.raise_two_arguments)
harmful("result", "a result that cannot be pickled", tasks.return_lock)
harmful("argument", "an argument that cannot be pickled", tasks.echo, threading.Lock())


def harmful_result(name: str, title: str, does: Callable[[], object]) -> None:
    """A row about a result that harms the client."""

    def play(stage: Stage) -> Figures:
        pool = stage.pool()
        return among_others(pool, lambda: ask(pool, tasks.return_trap, os.getpid(), does))

    fault(name, title)(play)


harmful_result("result-raises", "unpickling a result raises ValueError", tasks.raise_value_error)
harmful_result("result-exits", "unpickling a result raises SystemExit", tasks.raise_system_exit)
harmful_result("result-kills", "unpickling a result ends the program", tasks.end_process)


# --- initializers ------------------------------------------------------------------------------


def bad_initializer(stage: Stage, initializer: Callable[..., object], reason: str) -> Figures:
    """What the user is told, and how often it is tried."""
    pool = stage.pool(initializer=initializer, initargs=(stage.notes,))
    began = time.monotonic()
    futures = ask_others(pool, 4)
    tally = settle(futures)
    figures: Figures = {
        "seconds": None if tally.pending else since(began),
        "error": error_name(futures[0]),
        "told": any(reason in whole_text(error_of(future)) for future in futures),
        "hung": tally.pending,
        "of": tally.of,
        "forks": len(noted(stage.notes)),
    }
    if tally.pending:
        loops = figures["forks"] > MANY_FORKS
        return {"outcome": Outcome.FORK_LOOP if loops else Outcome.HANGS, **figures}
    return {"outcome": Outcome.TOLD if figures["told"] else Outcome.NOT_TOLD, **figures}


@fault("initializer-raises", "the initializer raises", "look_for_reason")
def initializer_raises(stage: Stage) -> Figures:
    return bad_initializer(stage, tasks.initializer_raises, REASON)


@fault("initializer-dies", "the initializer ends its worker by os._exit(91)")
def initializer_dies(stage: Stage) -> Figures:
    return bad_initializer(stage, tasks.initializer_dies, str(tasks.DYING_STATUS))


# --- ending tasks ------------------------------------------------------------------------------


@fault("ignores-sigterm", "the pool is terminated; a task ignores SIGTERM")
def ignores_sigterm(stage: Stage) -> Figures:
    if not stage.kind.ends_tasks:
        raise UnsupportedError("no call that ends running tasks")
    pool = stage.pool()
    future = ask(pool, tasks.ignore_sigterm, stage.notes)
    (worker,) = wait_for_notes(stage.notes, 1)
    began = time.monotonic()
    returned = within(END_WITHIN, pool.terminate)
    seconds = since(began)
    settle([future], 1.0)
    ended = not alive(worker)
    return {
        "outcome": (Outcome.ENDED if ended else Outcome.NOT_ENDED) if returned else Outcome.HANGS,
        "seconds": seconds if returned else None,
        "resolved": future.done(),
        "error": error_name(future),
    }


@fault("limit", "a task in a long C call has a limit of 1 s")
def limit(stage: Stage) -> Figures:
    pool = stage.pool(task_limit=1.0)
    figures = among_others(pool, lambda: ask(pool, tasks.long_call, stage.notes))
    (worker,) = noted(stage.notes)
    return {**figures, "worker_ended": not alive(worker)}


# --- the user's process ------------------------------------------------------------------------


@fault("client-killed", "the program is SIGKILLed; its tasks are in a long C call", "kill_client")
def client_killed(stage: Stage) -> Figures:
    pool = stage.pool()
    futures = [ask(pool, tasks.long_call, stage.notes) for _ in range(WORKERS)]
    wait_for_notes(stage.notes, WORKERS)
    stage.say_ready()
    settle(futures, tasks.LONG)
    return {"outcome": Outcome.SCENARIO_FAILED}


@fault("client-killed-idle", "the program is SIGKILLed; its workers are idle", "kill_client")
def client_killed_idle(stage: Stage) -> Figures:
    warm(stage.pool())
    stage.say_ready()
    time.sleep(tasks.LONG)
    return {"outcome": Outcome.SCENARIO_FAILED}


@fault("client-killed-stopped", "the program is SIGKILLed; its workers are stopped", "kill_client")
def client_killed_stopped(stage: Stage) -> Figures:
    for pid in warm(stage.pool()):
        os.kill(pid, signal.SIGSTOP)
    stage.say_ready()
    time.sleep(tasks.LONG)
    return {"outcome": Outcome.SCENARIO_FAILED}


@fault(
    "client-killed-unprivileged",
    "the program is SIGKILLed; its workers run tasks and have given up root's rights",
    "kill_client",
)
def client_killed_unprivileged(stage: Stage) -> Figures:
    """The kernel forgets by then what it was to do at the parent's death."""
    if os.getuid():
        raise UnsupportedError("only root can give up root's rights")
    pool = stage.pool(initializer=tasks.give_up_rights)
    futures = [ask(pool, tasks.nap, tasks.LONG) for _ in range(WORKERS)]
    eventually(lambda: all(future.running() for future in futures))
    time.sleep(SHORT)  # Some pools call a task running a little before it begins.
    stage.say_ready()
    settle(futures, tasks.LONG)
    return {"outcome": Outcome.SCENARIO_FAILED}


def ctrl_c(stage: Stage, count: int) -> Figures:
    """In a with block. What the program itself would print, it does not."""
    pool = stage.pool(closing=False)
    try:
        warm(pool)
        futures = [ask(pool, tasks.noted_nap, stage.notes, tasks.LONG) for _ in range(count)]
        wait_for_notes(stage.notes, min(count, WORKERS))
        stage.say_ready()
        settle(futures, tasks.LONG)
    except KeyboardInterrupt as interrupt:
        pool.leave(interrupt)
    return {}


@fault("ctrl-c", "Ctrl-C in a with block; all workers run tasks", "interrupt")
def ctrl_c_running(stage: Stage) -> Figures:
    return ctrl_c(stage, WORKERS)


@fault("ctrl-c-idle", "Ctrl-C in a with block; a task runs, a worker is idle", "interrupt")
def ctrl_c_idle(stage: Stage) -> Figures:
    return ctrl_c(stage, WORKERS - 1)


@fault("ctrl-c-waiting", "Ctrl-C in a with block; tasks of a minute run and wait", "interrupt")
def ctrl_c_waiting(stage: Stage) -> Figures:
    return ctrl_c(stage, 3 * WORKERS)


@fault("exit-with-work", "the interpreter ends while 10 tasks wait or run", "count_done")
def exit_with_work(stage: Stage) -> Figures:
    pool = stage.pool(closing=False)
    for _ in range(10):
        ask(pool, tasks.nap_then_note, stage.notes, 0.2)
    return {"of": 10}


@fault("collected", "the executor is garbage-collected, not shut down")
def collected(stage: Stage) -> Figures:
    pool = stage.kind(Options())
    workers = warm(pool)
    children = psutil.Process().children()
    pids = {child.pid for child in children if not _is_helper(child)}.union(workers)
    del pool
    gc.collect()
    began = time.monotonic()
    eventually(lambda: not any(map(alive, pids)), 2.0)
    left = sum(map(alive, pids))
    outcome = Outcome.LEFT if left else Outcome.NOTHING_LEFT
    return {"outcome": outcome, "seconds": None if left else since(began), "left_2s": left}


def _is_helper(process: psutil.Process) -> bool:
    """Whether multiprocessing or loky keeps it for the whole life of the program."""
    return any(name in " ".join(process.cmdline()) for name in ("tracker", "forkserver"))


@fault("callback-waits", "a done-callback waits for another task of its pool")
def callback_waits(stage: Stage) -> Figures:
    pool = stage.pool()
    warm(pool)
    met: list[str | None] = []

    def wait_for_another(_done: Future[Any]) -> None:
        try:
            ask(pool, tasks.nap, SHORT).result(PATIENCE)
        except Exception as error:
            met.append(type(error).__name__)
        else:
            met.append(None)

    ask(pool, tasks.nap, SHORT).add_done_callback(wait_for_another)
    began = time.monotonic()
    eventually(lambda: met, 2 * PATIENCE)
    if not met or since(began) > PATIENCE / 2:
        return {"outcome": Outcome.HANGS}
    outcome = Outcome.WORKS if met[0] is None else Outcome.ERROR
    return {"outcome": outcome, "error": met[0], "usable_after": usable(pool)}


@fault("fork", "the program forks; the child uses the executor")
def fork(stage: Stage) -> Figures:
    pool = stage.pool()
    warm(pool)
    return in_a_fork(pool, lambda: ask(pool, tasks.nap, 0.0))


@fault("fork-future", "the program forks; the child waits for a future of the parent's")
def fork_future(stage: Stage) -> Figures:
    pool = stage.pool()
    warm(pool)
    future = ask(pool, tasks.nap, 1.0)
    return in_a_fork(pool, lambda: future)


def in_a_fork(pool: Pool, asked: Callable[[], Future[Any]]) -> Figures:
    """What comes of a future that a child of this process waits for."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, _wait_in_child(asked()).encode())
        os._exit(0)
    os.close(write_end)
    told = os.read(read_end, 1000).decode()
    os.waitpid(child, 0)
    after = usable(pool)
    return {"outcome": told.split(":")[0], "error": told.partition(": ")[2], "usable_after": after}


def _wait_in_child(future: Future[Any]) -> str:
    try:
        future.result(PATIENCE / 2)
    except TimeoutError:
        return Outcome.HANGS
    except Exception as error:
        return f"{Outcome.ERROR}: {type(error).__name__}"
    return Outcome.WORKS


@fault("nested", "tasks use executors of their own")
def nested(stage: Stage) -> Figures:
    pool = stage.pool()
    began = time.monotonic()
    futures = [ask(pool, tasks.nested, stage.kind.name) for _ in range(WORKERS)]
    # Where every worker is a new interpreter, this takes seconds.
    tally = settle(futures, END_WITHIN)
    outcome = Outcome.HANGS if tally.pending else Outcome.FAILS if tally.failed else Outcome.WORKS
    return {"outcome": outcome, "error": error_name(futures[0]), "seconds": since(began)}


# --- the supervisor ----------------------------------------------------------------------------


@fault("supervisor-killed", "the supervisor is SIGKILLed")
def supervisor_killed(stage: Stage) -> Figures:
    """What runs is lost with its workers; what waits must not be."""
    if not stage.kind.has_supervisor:
        raise UnsupportedError("has none")
    pool = stage.pool()
    warm(pool)
    running = [ask(pool, tasks.noted_nap, stage.notes, 1.0) for _ in range(WORKERS)]
    workers = wait_for_notes(stage.notes, WORKERS)
    others = ask_others(pool)
    began = time.monotonic()
    os.kill(psutil.Process(workers[0]).ppid(), signal.SIGKILL)
    tally = settle(running)
    figures = judge(pool, running[0], others, began)
    return {**figures, "running_lost": tally.failed, "running_hung": tally.pending}


# --- a system that has no more -----------------------------------------------------------------


@contextlib.contextmanager
def failing_forks(kind: type[Pool], flag: Path) -> Iterator[None]:
    """While the flag is there, forks fail: in this process, and in those it has forked.
    Limits do not bind root, so the function itself is replaced."""
    module, name = kind.fork_function
    forks = getattr(module, name)

    def maybe_fork(*args: Any, **kwargs: Any) -> Any:
        if flag.exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return forks(*args, **kwargs)

    setattr(module, name, maybe_fork)
    try:
        yield
    finally:
        setattr(module, name, forks)


@fault("no-forks-first", "forks fail for 1.5 s (EAGAIN), from the first submit on")
def no_forks_first(stage: Stage) -> Figures:
    flag = Path(stage.notes)
    flag.touch()
    with failing_forks(stage.kind, flag):
        return start_amid(stage, flag.unlink, FORKS_FAIL_FOR, forked=True)


def start_amid(stage: Stage, end: Callable[[], object], after: float, **options: Any) -> Figures:
    """A pool that starts while the system lacks something, which ends after a while."""
    began = time.monotonic()
    try:
        pool = stage.pool(**options)
        futures = ask_others(pool)
    except OSError as error:
        end()
        outcome = Outcome.REFUSED if usable(stage.pool(**options)) else Outcome.BROKEN
        return {"outcome": outcome, "error": type(error).__name__}
    time.sleep(after)
    end()
    figures = judge(pool, None, futures, began)
    if figures["outcome"] == Outcome.OTHERS_LOST and figures["lost"] == OTHERS:
        figures["outcome"] = Outcome.REFUSED
    return {**figures, "error": error_name(futures[0])}


@fault("no-forks-later", "forks fail for 1.5 s (EAGAIN) after all workers were killed")
def no_forks_later(stage: Stage) -> Figures:
    flag = Path(stage.notes)
    with failing_forks(stage.kind, flag):
        pool = stage.pool(forked=True)
        workers = warm(pool)
        flag.touch()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        others = ask_others(pool)
        began = time.monotonic()
        time.sleep(FORKS_FAIL_FOR)
        flag.unlink()
        return judge(pool, None, others, began)


def leave_descriptors(spare: int) -> Callable[[], None]:
    """Leave this process, and those it starts, only so many more descriptors.
    Returns what takes that back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + spare + 1, hard))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(spare):
        os.close(taken.pop())

    def give_back() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)

    return give_back


@fault("no-descriptors-first", "the program runs out of descriptors at its first submit")
def no_descriptors_first(stage: Stage) -> Figures:
    return start_amid(stage, leave_descriptors(3), 0.5)


@fault("no-descriptors-later", "the program is out of descriptors; a task of 1 MiB among others")
def no_descriptors_later(stage: Stage) -> Figures:
    pool = stage.pool()

    def send_big() -> Future[Any]:
        future = ask(pool, tasks.echo, bytes(tasks.MIB))
        settle([future], 1.0)
        return future

    warm(pool)
    end = leave_descriptors(0)
    try:
        return among_others(pool, send_big)
    finally:
        end()


@fault("shm-full", "/dev/shm is full")
def shm_full(stage: Stage) -> Figures:
    """Not the system's: one of this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(CLONE_NEWNS)
        or libc.mount(None, b"/", None, MS_REC_PRIVATE, None)
        or libc.mount(b"none", b"/dev/shm", b"tmpfs", 0, b"size=1m")
    ):
        why = os.strerror(ctypes.get_errno())
        raise UnsupportedError(f"no private /dev/shm here: {why}")
    full = Path("/dev/shm/full")
    with contextlib.suppress(OSError):
        full.write_bytes(bytes(2 * tasks.MIB))
    return start_amid(stage, full.unlink, 0.5)


# --- the program -------------------------------------------------------------------------------


def play(kind: type[Pool], name: str, directory: Path) -> None:
    """Play one scenario and hand in its figures. What is left is the interpreter's end."""
    # Whoever started us may have these otherwise.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stage = Stage(kind, directory)
    global _stage
    _stage = stage
    try:
        figures = FAULTS[name].play(stage)
    except UnsupportedError as error:
        figures = {"outcome": Outcome.NOT_APPLICABLE, "reason": str(error)}
    except Exception as error:
        traceback.print_exc()
        figures = {"outcome": Outcome.SCENARIO_FAILED, "reason": repr(error)}
    figures |= stage.close()
    stage.write({**figures, "written_at": time.monotonic()})


_stage: Stage | None = None
"""Keeps pools that are not to be closed until the interpreter ends."""

if __name__ == "__main__":
    play(POOLS[sys.argv[1]], sys.argv[2], Path(sys.argv[3]))
