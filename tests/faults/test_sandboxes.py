"""Where the system refuses what the pool would like to use, it does without."""

from __future__ import annotations

import subprocess
import sys

import pytest

from prefork_executor._system.platform import FALLBACK

REFUSED = """
import ctypes, errno, os, struct

def no_memfd(number):
    '''Have the kernel answer memfd_create with this error, here and in all children.'''
    load, equal, give = 0x20, 0x15, 0x06  # seccomp's little machine: BPF.
    nr = {"x86_64": 319, "aarch64": 279}[os.uname().machine]
    refuse, allow = (give, 0, 0, 0x50000 | number), (give, 0, 0, 0x7fff0000)
    program = [(load, 0, 0, 0), (equal, 0, 1, nr), refuse, allow]
    program = b"".join(struct.pack("HBBI", *step) for step in program)
    steps = ctypes.create_string_buffer(program)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    given = Program(4, ctypes.addressof(steps))
    assert libc.prctl(22, 2, ctypes.byref(given), 0, 0) == 0
    try:
        os.memfd_create("x")
    except OSError as error:
        assert error.errno == number
    else:
        raise AssertionError("it was not refused")
"""

PROGRAM = """
import os
from prefork_executor import PreforkExecutor, status
if __name__ == "__main__":
    with PreforkExecutor(2, mp_context={method!r}) as executor:
        print(list(executor.map(abs, range(-3, 0))))
        print(len(executor.submit(bytes, {size}).result()))
        print(executor.submit(len, bytes({size})).result())
        print(status.read(os.getpid()).max_workers)
"""


def run(program: str) -> str:
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.skipif(FALLBACK, reason="there are no memfds anyway")
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS", "EACCES"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_sandbox_that_refuses_memfds_has_a_pool_all_the_same(error: str, method: str) -> None:
    said = run(REFUSED + f"no_memfd(errno.{error})" + PROGRAM.format(method=method, size=10**6))
    assert said == "[3, 2, 1]\n1000000\n1000000\n2\n"


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"


@pytest.mark.parametrize("most", [2**20, 2**16])
def test_a_pool_starts_where_files_must_be_small(most: int, start_method: str) -> None:
    said = run(LIMITED.format(most) + PROGRAM.format(method=start_method, size=60_000))
    assert said == "[3, 2, 1]\n60000\n60000\n2\n"


def test_names_of_many_functions_are_known_where_files_must_be_small() -> None:
    said = run(
        LIMITED.format(2**16)
        + "from prefork_executor import PreforkExecutor\n"
        + "with PreforkExecutor(1, mp_context='fork') as executor:\n"
        + "    for n in range(500):\n"
        + "        executor.submit(type(f'F{n}', (), {'__call__': lambda self: None})()).result()\n"
        + "    print(executor.submit(abs, -1).result())"
    )
    assert said == "1\n"


def test_what_is_too_large_for_such_a_limit_is_an_error_that_says_so() -> None:
    # And nobody is ended by SIGXFSZ, whose default effect that is.
    said = run(
        LIMITED.format(2**17)
        + "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        + "from prefork_executor import PreforkExecutor\n"
        + "with PreforkExecutor(1, mp_context='fork') as executor:\n"
        + "    for future in (executor.submit(len, bytes(10**6)), executor.submit(bytes, 10**6)):\n"
        + "        error = future.exception()\n"
        + "        print(type(error).__name__, 'RLIMIT_FSIZE' in str(error), future.done())\n"
        + "    print(executor.submit(abs, -1).result())"
    )
    assert said == "OSError True True\nOSError True True\n1\n"


def test_a_limit_that_leaves_no_room_for_a_pool_is_named() -> None:
    said = run(
        LIMITED.format(1000)
        + "from prefork_executor import PreforkExecutor\n"
        + "try:\n    PreforkExecutor(1).submit(abs, -1)\n"
        + "except OSError as error:\n    print(error)"
    )
    assert "RLIMIT_FSIZE" in said
    assert "may have 1000" in said
