import sys
import time

import test_deaths
from test_deaths import note_and_hang

from prefork_executor import PreforkExecutor


def long_c_call(path):
    test_deaths.note(path, str(test_deaths.os.getpid()))
    import ctypes

    libc = ctypes.PyDLL(None)  # keeps the GIL: no Python code can run meanwhile
    libc.sleep(600)


if __name__ == "__main__":
    executor = PreforkExecutor(4, sys.argv[1], min_spare_workers=2)
    for i in range(2):
        executor.submit(note_and_hang, sys.argv[2])
    executor.submit(long_c_call, sys.argv[2])
    time.sleep(600)
