import os
import sys
import time

from light_tasks import note

from prefork_executor import PreforkExecutor, yell


def speak(how, started, gate, after):
    note(started, f"{os.getpid()} {os.getppid()}")
    while not os.path.exists(gate):
        time.sleep(0.005)
    try:
        if how == "yell":
            yell("still there?")
        return bytes(1_000_000 if how == "a big result" else 1)
    finally:
        note(after, "spoke")


if __name__ == "__main__":
    executor = PreforkExecutor(1, "fork")
    executor.submit(speak, *sys.argv[1:])
    time.sleep(600)
