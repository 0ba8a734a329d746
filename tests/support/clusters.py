"""Dask clusters in processes of their own, as a program would find them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any

import psutil
from scripts import search_path
from waiting import BOUND, eventually

HEAD = """
import os, sys

if os.fork():
    os._exit(0)

import asyncio, json, logging
import dask
from distributed import LocalCluster, Scheduler, Worker

configuration, options = map(json.loads, sys.argv[1:])
dask.config.set(configuration)
logging.getLogger("distributed").setLevel(logging.CRITICAL)
"""
PLAIN = """
async def work(address):
    async with Worker(address, dashboard=False, **options) as worker:
        await worker.finished()

async def schedule(told):
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        for end in told:
            os.write(end, scheduler.address.encode())
        while len(scheduler.workers) < len(told):
            await asyncio.sleep(0.01)
        print(os.getpid(), scheduler.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)

told = []
for _ in range(options.pop("n_workers")):
    tells, end = os.pipe()
    if os.fork() == 0:
        sys.stdin.close()
        asyncio.run(work(os.read(tells, 1000).decode()))
        os._exit(0)
    told.append(end)
asyncio.run(schedule(told))
"""
"""A scheduler, and workers forked while nothing of Dask runs: ready soon, as each has all
that was imported; and no semaphores that have a name, which every test would see."""
LOCAL = """
if __name__ == "__main__":
    with LocalCluster(dashboard_address=None, silence_logs=logging.CRITICAL, **options) as cluster:
        print(os.getpid(), cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
"""Dask's own, whose workers are replaced when they die."""


class Cluster:
    """A scheduler, and workers in processes below it, on this machine. It ends when its
    standard input does.

    It is no child of the test's process, as no cluster is: what its nodes keep from one
    test to the next is nothing that a test has left behind."""

    def __init__(self, pid: int, address: str, stdin: IO[str]) -> None:
        self.address = address
        self._process = psutil.Process(pid)
        self._stdin = stdin

    def node_of(self, pid: int) -> psutil.Process:
        """The Dask worker in whose pool this process is. Between them are the supervisor, and
        whatever else a start method needs."""
        process = psutil.Process(pid)
        while (parent := process.parent()) != self._process:
            assert parent is not None, "it is of this cluster"
            process = parent
        return process

    def kill(self) -> None:
        """Kill the scheduler. Its workers end when they see it."""
        self._process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Close it in good order."""
        self._stdin.close()

    def end(self) -> None:
        """Close it if it is there, and see to it that nothing of it is left."""
        everybody = [self._process]
        with contextlib.suppress(psutil.NoSuchProcess):
            everybody += self._process.children(recursive=True)
        with contextlib.suppress(BrokenPipeError):
            self.close()
        try:
            eventually(lambda: all(is_gone(each.pid) for each in everybody), "a cluster ends")
        finally:
            for process in everybody:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def is_gone(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has yet to look at."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@contextlib.contextmanager
def running_cluster(
    kind: str = PLAIN, configuration: dict[str, Any] | None = None, **options: Any
) -> Iterator[Cluster]:
    """A cluster of this kind. The options are for PLAIN's workers, ``n_workers`` of them, or
    for LOCAL itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + kind, json.dumps(configuration or {}), json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # What multiprocessing complains of when it is killed.
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": search_path()},
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        pid, address = process.stdout.readline().split()
        process.wait(BOUND)  # Of the two that it was, this is the one that went at once.
        cluster = Cluster(int(pid), address, process.stdin)
        try:
            yield cluster
        finally:
            cluster.end()
