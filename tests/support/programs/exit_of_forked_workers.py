import atexit
import logging
import logging.handlers
import multiprocessing.util
import os
import tempfile
import weakref

from prefork_executor import PreforkExecutor


def note(what):
    with open("witness", "a") as witness:
        print(what, file=witness)


class Anything:
    pass


kept = Anything()
made = None


def task(i):
    global made
    made = tempfile.TemporaryDirectory(dir=".")  # A finalizer of the worker's own.
    atexit.register(note, "worker")
    return os.getpid()


if __name__ == "__main__":
    atexit.register(note, "atexit")
    weakref.finalize(kept, note, "weakref.finalize")
    multiprocessing.util.Finalize(None, note, ("Finalize",), exitpriority=1)
    directory = tempfile.TemporaryDirectory()
    log = logging.handlers.MemoryHandler(1000, target=logging.FileHandler("log"))
    logging.getLogger("a").addHandler(log)
    logging.getLogger("a").warning("the caller's")
    half_filled = open("file", "w")
    half_filled.write("the caller's")
    with PreforkExecutor(2, "fork", max_tasks_per_child=1) as executor:
        assert len(set(executor.map(task, range(4)))) == 4
    print(os.path.exists(directory.name), open("file").read(), open("log").read())
