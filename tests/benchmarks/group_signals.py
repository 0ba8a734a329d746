"""What becomes of tasks when a program's process group, or one worker, gets SIGTERM or SIGHUP.

``python tests/benchmarks/group_signals.py`` prints the table of docs/graceful-stop.md. Each
scenario runs in a program of its own: two workers, six tasks of a second each. The program's
handler notes the signal, and the program then calls ``shutdown(wait=True)``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import psutil

TASKS, WORKERS, SECONDS, BOUND = 6, 2, 1.0, 20.0


def work(number: int) -> int:
    time.sleep(SECONDS)
    return number


def _loky() -> Executor:
    import loky

    executor: Executor = loky.ProcessPoolExecutor(WORKERS)
    return executor


def _prefork() -> Executor:
    from prefork_executor import PreforkExecutor

    return PreforkExecutor(WORKERS)


POOLS: dict[str, Callable[[], Executor]] = {
    "PreforkExecutor": _prefork,
    "ProcessPoolExecutor": lambda: ProcessPoolExecutor(WORKERS),
    "loky": _loky,
}


def _group(number: int) -> Callable[[], None]:
    return lambda: os.killpg(0, number)


def _one_worker(number: int) -> Callable[[], None]:
    def send() -> None:
        for process in psutil.Process().children(recursive=True):
            command = " ".join(process.cmdline())
            if not process.children() and "resource_tracker" not in command:
                process.send_signal(number)
                return

    return send


SCENARIOS: dict[str, Callable[[], None]] = {
    "SIGTERM to the group, the handler shuts down": _group(signal.SIGTERM),
    "SIGHUP to the group, the handler shuts down": _group(signal.SIGHUP),
    "SIGTERM to one worker": _one_worker(signal.SIGTERM),
    "SIGHUP to one worker": _one_worker(signal.SIGHUP),
}


def _end_of(future: Future[Any]) -> str:
    try:
        future.result(BOUND)
    except BaseException as error:
        return type(error).__name__
    return "done"


def run_one(pool: str, scenario: str) -> None:
    os.setpgid(0, 0)
    asked = threading.Event()
    executor = POOLS[pool]()
    futures = [executor.submit(work, number) for number in range(TASKS)]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    # The first two are done, two others run: everybody has started.
    concurrent_wait(futures[:WORKERS])
    time.sleep(SECONDS / 3)
    SCENARIOS[scenario]()
    if "group" in scenario:
        while not asked.is_set():
            time.sleep(0.01)
        shut = threading.Thread(target=executor.shutdown, daemon=True)
        shut.start()
        shut.join(BOUND)
        hangs = shut.is_alive()
    else:
        hangs = False
    ends = [_end_of(future) for future in futures]
    told = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends))
    print(told + ("; shutdown hangs" if hangs else ""), flush=True)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(0)


def concurrent_wait(futures: list[Future[Any]]) -> None:
    for future in futures:
        _end_of(future)


def main() -> None:
    """Run each scenario with each pool, and print the table."""
    print("| | " + " | ".join(f"`{pool}`" for pool in POOLS) + " |")
    print("|---|" + "---|" * len(POOLS))
    for scenario in SCENARIOS:
        cells = []
        for pool in POOLS:
            done = subprocess.run(
                [sys.executable, __file__, pool, scenario],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                timeout=10 * BOUND,
                check=False,
            )
            cells.append(done.stdout.strip() or f"the program ended: {done.returncode}")
        print(f"| {scenario} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    run_one(*sys.argv[1:3]) if sys.argv[1:] else main()
