"""What a soak does to a pool while it works: a thread that strikes at random."""

from __future__ import annotations

import collections
import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import psutil
from chaos import Hunt, Victim

from prefork_executor import PreforkExecutor

PAUSE = (0.0, 0.5)
"""Seconds between two strikes."""
STOPPED = (0.0, 1.0)
"""Seconds for which a process is stopped: less than those after which a supervisor that
does not react is replaced."""
STATES = ("idle", "busy", "taking")


class Striker(threading.Thread):
    """Strikes one executor's processes, and pulls its brakes, until told to stop.

    Args:
        executor: whose. It has no processes yet.
        rng: decides what is struck, and when.
        spare_from: on the monotonic clock, from when on no supervisor is killed any more, so
            that one can be watched for long.
    """

    def __init__(self, executor: PreforkExecutor, rng: random.Random, spare_from: float) -> None:
        super().__init__(name="striker")
        self.struck: collections.Counter[str] = collections.Counter()
        self.brakes = 0
        """One more whenever the ending of all workers, with all tasks, begins or is over."""
        self.error: BaseException | None = None
        self.reloads: list[Future[None]] = []
        """Those that may not be complete."""
        self.supervisor: psutil.Process | None = None
        """The one that was seen last."""
        self._executor = executor
        self._rng = rng
        self._spare_from = spare_from
        self._hunt = Hunt(executor, rng)
        self._caller = psutil.Process()
        self._helpers = self._caller.children()
        self._stopped: list[tuple[float, psutil.Process]] = []
        self._may_strike = threading.Lock()
        self._stop_asked = threading.Event()

    @property
    def most_workers(self) -> int:
        """The most that were seen at a time."""
        return self._hunt.most_workers

    @property
    def worker_kills(self) -> int:
        """Workers that were killed one by one."""
        return sum(self.struck[f"{state} worker killed"] for state in STATES + OTHER_STATES)

    @property
    def supervisor_kills(self) -> int:
        """Deaths by these strikes that all workers share."""
        return self.struck["supervisor killed"] + self.struck["process above it killed"]

    def run(self) -> None:
        """The thread."""
        try:
            while not self._stop_asked.wait(self._rng.uniform(*PAUSE)):
                with self._may_strike:
                    self._resume(time.monotonic())
                    self._strike()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Strike no more. Raises what has made it fail."""
        self._stop_asked.set()
        self.join()
        self._resume()
        if self.error is not None:
            raise self.error

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        """No strikes within, and nothing that is stopped: what one strike has left in limbo
        might be rescued by the next."""
        with self._may_strike:
            self._resume()
            yield

    def _resume(self, now: float = float("inf")) -> None:
        """Let those go on whose time is over."""
        for until, process in self._stopped:
            if until <= now:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
        self._stopped = [entry for entry in self._stopped if entry[0] > now]

    def _strike(self) -> None:
        (strike,) = self._rng.choices(list(STRIKES), weights=list(STRIKES.values()))
        with contextlib.suppress(psutil.NoSuchProcess):
            if (what := strike(self)) is not None:
                self.struck[what] += 1

    def _find(self) -> Victim | None:
        victim = self._hunt.find(self._rng.choice(STATES))
        if victim is not None:
            self.supervisor = victim.supervisor
        return victim

    def _signal(self, process: psutil.Process) -> str:
        """Send it one of those that a program's group gets. Returns its name."""
        number = self._rng.choice([signal.SIGTERM, signal.SIGHUP])
        process.send_signal(number)
        return number.name

    def _stop_for_a_while(self, process: psutil.Process) -> None:
        process.suspend()
        self._stopped.append((time.monotonic() + self._rng.uniform(*STOPPED), process))

    # --- strikes: each says what it was, or None if it hit nobody ------------------------------

    def kill_worker(self) -> str | None:
        """One that is idle, busy, or takes a task."""
        if (victim := self._find()) is None:
            return None
        victim.worker.kill()
        return f"{victim.state} worker killed"

    def signal_worker(self) -> str | None:
        """It is to finish its task and leave."""
        if (victim := self._find()) is None:
            return None
        return f"worker got {self._signal(victim.worker)}"

    def stop_worker(self) -> str | None:
        """For a while."""
        if (victim := self._find()) is None:
            return None
        self._stop_for_a_while(victim.worker)
        return "worker stopped"

    def kill_supervisor(self) -> str | None:
        """Or the process above it, if there is one."""
        if time.monotonic() >= self._spare_from or (victim := self._find()) is None:
            return None
        above = victim.supervisor.parent()
        if above is not None and self._is_of_the_pool(above) and self._rng.random() < 0.3:
            above.kill()
            return "process above it killed"
        victim.supervisor.kill()
        return "supervisor killed"

    def _is_of_the_pool(self, process: psutil.Process) -> bool:
        # Not the caller, nor the fork server.
        return self._caller in process.parents() and process not in self._helpers

    def signal_supervisor(self) -> str | None:
        """It takes no notice."""
        if (victim := self._find()) is None:
            return None
        return f"supervisor got {self._signal(victim.supervisor)}"

    def stop_supervisor(self) -> str | None:
        """For a while."""
        if (victim := self._find()) is None:
            return None
        self._stop_for_a_while(victim.supervisor)
        return "supervisor stopped"

    def reload(self) -> str:
        """New workers for old."""
        self.reloads = [reload for reload in self.reloads if not reload.done()]
        self.reloads.append(self._executor.reload())
        return "reload"

    def have_all_ended_since(self, brakes: int) -> bool:
        """Whether a task may have been ended with all others that was submitted when
        :attr:`brakes` was that: also one that was submitted in the midst of it."""
        return self.brakes > brakes or self.brakes % 2 == 1

    def pull_brake(self) -> str:
        """All tasks fail."""
        kills = self._rng.random() < 0.5
        self.brakes += 1
        if kills:
            self._executor.kill_workers()
        else:
            self._executor.terminate_workers()
        self.brakes += 1
        return "kill_workers()" if kills else "terminate_workers()"


OTHER_STATES = ("starting", "leaving")
"""Those in which a worker is struck only if there was no better one."""
STRIKES: dict[Callable[[Striker], str | None], float] = {
    Striker.kill_worker: 50,
    Striker.signal_worker: 10,
    Striker.stop_worker: 10,
    Striker.kill_supervisor: 10,
    Striker.signal_supervisor: 4,
    Striker.stop_supervisor: 5,
    Striker.reload: 4,
    Striker.pull_brake: 1,
}
"""How often, in proportion."""
