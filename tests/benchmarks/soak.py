"""A soak: a pool works for long while its processes are killed, stopped, told to end and
replaced at random, and its caller forks.

    python tests/benchmarks/soak.py [--minutes N] [--start-method NAME] [--seed TEXT] ...

Needs the extra "test", and Linux. It takes 25 minutes, a third for each start method, and
prints what was done to the pool and what came of it. It exits with 1 if it has found

* a future that is not resolved, has another task's result, or an end that nothing has caused;
* a task that has begun twice, unless it may be retried, or has begun though it was cancelled,
  or has a result without a beginning and an end. Each task writes both to a ledger;
* a fork of the caller that hangs, or can use the pool;
* more workers than the maximum;
* memory, descriptors, threads or processes that grow in the second half. A run of less than
  two minutes under one start method is too short to tell. Supervisors are killed in the first
  half only, so that one can be watched;
* any of these, or shared memory, left at the end.

The seed decides what is drawn; what that meets is up to the machine, so no two runs are alike.

The tasks are in soak_work.py, the strikes in soak_strikes.py, the meters in soak_meters.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

import leash
from belongings import Belongings
from chaos_tasks import linger_where_it_hurts
from soak_meters import Meters
from soak_strikes import Striker
from soak_work import BOUND, CALMS, LIFE, Heard, Violations, Work

from prefork_executor import PreforkExecutor

METHODS = ("fork", "forkserver", "spawn")
TO_END = 3 * BOUND
"""Seconds that a soak may take for its end."""
TO_BE_GONE = 30.0
"""Seconds after which what is left at the end counts."""
JUDGED_FROM = 120.0
"""Seconds of a run from which on growth is judged. What is shorter is all beginning."""
MOST_GROWTH = {"memory": 2.0, "descriptors": 6.0, "threads": 2.0, "processes": 3.0}
"""In the second half: MiB, and counts. Tasks that travel, and workers that come and go, move
them up and down by less. In 25 minutes each half has more than 100,000 tasks: 20 bytes of each are
more."""
FAULTS_OF_OURS = ("a bug in the pool", "malformed", "was dropped")
"""Phrases of the log that must not be there: nobody scribbles here."""


class Complaints(logging.Handler):
    """The pool's log: kept in a file, and searched for what would be a fault of ours."""

    def __init__(self, file: Path, violations: Violations) -> None:
        super().__init__()
        self._file = open(file, "w", encoding="utf-8")  # noqa: SIM115 - until close()
        self._violations = violations

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        text = self.format(record)
        self._file.write(f"{text}\n")
        if record.levelno >= logging.CRITICAL or any(map(text.__contains__, FAULTS_OF_OURS)):
            self._violations.add(f"the log says: {text}")

    def close(self) -> None:
        """Of the file, too."""
        super().close()
        self._file.close()


class Soak:
    """One run, under one start method.

    Args:
        method: the start method.
        options: of the command line.
        directory: for the ledger and the log.
    """

    def __init__(self, method: str, options: argparse.Namespace, directory: Path) -> None:
        self.violations = Violations()
        self._method = method
        self._options = options
        self._directory = directory
        self._seconds = options.minutes * 60
        self.lines: list[tuple[str, str]] = []
        """What the table says."""

    def run(self) -> None:
        """Soak, and find out what has come of it."""
        _start_helpers(self._method)
        before = Belongings.now()
        complaints = Complaints(self._directory / "log", self.violations)
        logger = logging.getLogger("prefork_executor")
        logger.addHandler(complaints)
        logger.propagate = False
        try:
            self._run_pool()
        finally:
            logger.removeHandler(complaints)
            complaints.close()
        self._find_left(before)

    def _run_pool(self) -> None:
        began = time.monotonic()
        rng = random.Random(f"{self._options.seed} {self._method}")
        heard = Heard(self.violations)
        executor = PreforkExecutor(
            self._options.workers,
            self._method,
            linger_where_it_hurts,
            min_spare_workers=2,
            max_tasks_per_child=200,
            idle_timeout=0.1,
            on_yell=heard.hear,
        )
        spare_from = began + self._seconds / 2
        striker = Striker(executor, random.Random(rng.random()), spare_from)
        meters = Meters(self._seconds, lambda: striker.supervisor)
        work = Work(
            *(executor, striker, heard, self._directory, rng),
            *(self._options.in_flight, self.violations),
        )
        striker.start()
        meters.start()
        try:
            self._live(work, striker, rng, began + self._seconds)
        finally:
            meters.stop()
            striker.stop()
        work.await_all("at the end")
        took = time.monotonic() - began
        self._shut_down(executor)
        work.close()
        self._judge(work, striker, meters, executor, took)

    def _live(self, work: Work, striker: Striker, rng: random.Random, until: float) -> None:
        while time.monotonic() < until and striker.is_alive() and not self.violations.count > 100:
            work.submit_some()
            work.disturb()
            work.take_ended(rng.uniform(0, LIFE))
            if rng.random() < CALMS:
                with striker.calm():
                    work.await_all("though nothing more was done to the pool")
                    work.ask_and_wait()

    def _shut_down(self, executor: PreforkExecutor) -> None:
        ending = threading.Thread(target=executor.shutdown, daemon=True)
        ending.start()
        ending.join(BOUND)
        if ending.is_alive():
            self.violations.add(f"shutdown() does not return in {BOUND:g} s")
            faulthandler.dump_traceback()
            executor.kill_workers()

    # --- what is found ---------------------------------------------------------------------------

    def _judge(
        self,
        work: Work,
        striker: Striker,
        meters: Meters,
        executor: PreforkExecutor,
        took: float,
    ) -> None:
        counted = work.check_ledger()
        self._say("tasks", f"{work.submitted:,} in {took:.0f} s")
        for what, count in {**striker.struck, **work.forks}.items():
            self._say(f"injected: {what}", f"{count:,}")
        for end, count in work.outcomes.most_common():
            self._say(f"end: {end}", f"{count:,}")
        for what, count in counted.items():
            self._say(what, f"{count:,}")
        self._judge_deaths(work.outcomes["WorkerDied"], striker, work)
        self._judge_counts(striker, executor)
        for name, series in meters.series.items():
            self._say(name, f"{series.most:.1f} at most, {series.growth:+.2f} in the second half")
            most = MOST_GROWTH[name.partition(" ")[0]]
            if self._seconds >= JUDGED_FROM and series.growth > most:
                self.violations.add(f"{name}: grown by {series.growth:.1f} in the second half")

    def _judge_deaths(self, died: int, striker: Striker, work: Work) -> None:
        most = striker.worker_kills + striker.supervisor_kills * self._options.workers
        # Those that end themselves, and those stopped for long before their supervisor dies.
        most += work.exits
        if died > most:
            self.violations.add(f"{died} tasks lost with their workers; {most} at most were hit")

    def _judge_counts(self, striker: Striker, executor: PreforkExecutor) -> None:
        stats = executor.stats()
        ended = stats.retirements + stats.deaths + stats.other_deaths
        self._say("workers forked", f"{stats.forks:,}")
        self._say("workers retired, died", f"{stats.retirements:,}, {ended - stats.retirements:,}")
        if stats.forks != len(stats.workers) + ended:
            self.violations.add(f"{stats.forks} forks are not {len(stats.workers)} + {ended}")
        most = max(striker.most_workers, stats.peak_workers)
        self._say("most workers at a time", str(most))
        if most > self._options.workers:
            self.violations.add(f"{most} workers of {self._options.workers}")
        pending = sum(not reload.done() for reload in striker.reloads)
        if pending:
            self.violations.add(f"{pending} reloads are not resolved")

    def _find_left(self, before: Belongings) -> None:
        deadline = time.monotonic() + TO_BE_GONE
        while left := Belongings.now().beyond(before):
            if time.monotonic() > deadline:
                self.violations.add(f"left behind: {left}")
                return
            gc.collect()
            time.sleep(0.05)
        self._say("left at the end", "nothing")

    def _say(self, what: str, found: str) -> None:
        self.lines.append((what, found))


def _start_helpers(method: str) -> None:
    """Those of multiprocessing, which stay: they are not the pool's."""
    multiprocessing.resource_tracker.ensure_running()
    if method == "forkserver":
        multiprocessing.forkserver.ensure_running()


# --- the command ---------------------------------------------------------------------------------


def soak(method: str, options: argparse.Namespace) -> int:
    """One run, its table, and whether anything was wrong."""
    faulthandler.dump_traceback_later(options.minutes * 60 + TO_END, exit=True)
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    run = Soak(method, options, directory)
    run.run()
    faulthandler.cancel_dump_traceback_later()
    violations = run.violations
    print(f"\n| {method}, seed {options.seed}, Python {sys.version.split()[0]} | |\n| --- | --- |")
    for what, found in run.lines:
        print(f"| {what} | {found} |")
    print(f"| **violations** | **{violations.count}** |")
    for text in violations.told:
        print(f"| | {text} |")
    if violations.count:
        print(f"The ledger and the log are in {directory}.", flush=True)
        return 1
    shutil.rmtree(directory)
    return 0


def soak_all(options: argparse.Namespace) -> int:
    """One run after the other, each in a process of its own."""
    worst = 0
    for method in METHODS:
        command = [sys.executable, __file__, "--start-method", method, "--seed", options.seed]
        command += ["--minutes", str(options.minutes / len(METHODS))]
        command += ["--workers", str(options.workers), "--in-flight", str(options.in_flight)]
        code = subprocess.run(command, check=False).returncode
        worst = max(worst, 1 if code else 0)
    print("\nThere are violations." if worst else "\nNo violations.")
    return worst


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=25.0, help="how long, in all")
    parser.add_argument("--start-method", choices=(*METHODS, "all"), default="all")
    parser.add_argument("--seed", default=str(random.randrange(10**6)), help="of an earlier run")
    parser.add_argument("--workers", type=int, default=4, help="at most")
    parser.add_argument("--in-flight", type=int, default=400, help="tasks unresolved at most")
    return parser.parse_args()


def main() -> int:
    """Run it."""
    options = parse()
    if options.start_method == "all":
        return soak_all(options)
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    leash.hold()
    return soak(options.start_method, options)


if __name__ == "__main__":
    sys.exit(main())
