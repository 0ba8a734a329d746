import ctypes
import logging
import os
import resource
import subprocess
import sys
import time

from prefork_executor import PreforkExecutor


def give_up_privileges():
    # The kernel spares the superuser, by its real user id and by two capabilities.
    # The effective user id stays, or Python's own files might be out of reach.
    os.setresuid(54321, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for capability in (21, 24):  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE
        sets[0] &= ~(1 << capability)
    assert libc.capset(header, sets) == 0


def start_sleepers():
    # As many as may be.
    for _ in range(LIMIT):
        try:
            sleepers.append(subprocess.Popen(["sleep", "600"]))
        except BlockingIOError:
            return True
    return False


def kill_sleepers(count):
    for _ in range(count):
        sleepers[-1].kill()
        sleepers.pop().wait()


LIMIT, sleepers = 20, []
if __name__ == "__main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    give_up_privileges()
    resource.setrlimit(resource.RLIMIT_NPROC, (LIMIT, LIMIT))
    try:
        if start_sleepers():
            # For the supervisor and the executor's thread, but for no worker.
            kill_sleepers(2)
            with PreforkExecutor(2, "fork", min_spare_workers=0) as executor:
                futures = [executor.submit(pow, i, 2) for i in range(20)]
                time.sleep(1)
                print("done meanwhile:", sum(future.done() for future in futures))
                kill_sleepers(2)
                print("sum:", sum(future.result() for future in futures))
    finally:
        kill_sleepers(len(sleepers))
