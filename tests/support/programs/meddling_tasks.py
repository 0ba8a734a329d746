import logging
import multiprocessing.resource_tracker
import os
import socket
import sys
import time

from prefork_executor import PreforkExecutor, WorkerDied


def cut_short(descriptor):
    os.ftruncate(descriptor, 0)


def lengthen(descriptor):
    os.ftruncate(descriptor, 1 << 40)


def write_over(descriptor):
    os.pwrite(descriptor, os.urandom(4096), 0)


def scribble(descriptor):
    os.set_blocking(descriptor, False)
    for _ in range(20):
        os.write(descriptor, os.urandom(100))


def read(descriptor):
    os.set_blocking(descriptor, False)
    while os.read(descriptor, 65536):
        pass


def shut_down(descriptor):
    with socket.socket(fileno=os.dup(descriptor)) as end:
        end.shutdown(socket.SHUT_RDWR)


def meddle(name):
    # multiprocessing's own, not the pool's: it prints what it cannot read.
    spared = multiprocessing.resource_tracker._resource_tracker._fd
    for descriptor in range(3, 100):
        if descriptor == spared:
            continue
        try:
            globals()[name](descriptor)
        except OSError:
            pass


def wait(started, gate):
    open(started, "a").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return "done"


def note(number):
    with open("ran", "a") as file:
        file.write(f"{number}\n")
    return number


def told(future):
    error = future.exception(120)
    return future.result() if error is None else f"{type(error).__name__}: {error}"


def main(name, method):
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("prefork_executor").setLevel(logging.CRITICAL)
    with PreforkExecutor(2, method, min_spare_workers=2) as executor:
        executor.submit(note, 0).result()
        running = executor.submit(wait, "started", "gate")
        while not os.path.exists("started"):
            time.sleep(0.01)
        meddling = executor.submit(meddle, name)
        queued = [executor.submit(note, n) for n in range(1, 20)]
        print(told(meddling))
        open("gate", "w").close()
        print(told(running))
        print([told(future) for future in queued] == list(range(1, 20)))
        print(told(executor.submit(note, 20)))
        print(sorted(map(int, open("ran"))) == list(range(21)))
        stats = executor.stats()
        ended = stats.retirements + stats.deaths + stats.other_deaths
        print(stats.deaths, stats.forks == len(stats.workers) + ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
