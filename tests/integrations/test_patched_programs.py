"""A pool works in programs that gevent or eventlet has patched, before or after the import of
the pool, under every start method; and such a program's greenlets run on while one waits."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
from scripts import SUPPORT

PROGRAM = SUPPORT / "patched_programs.py"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_patched_program_has_all_of_the_pool(library: str, when: str, start_method: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if (library, when, start_method) == ("eventlet", "before", "forkserver"):
        pytest.skip("multiprocessing has no forkserver in a program that eventlet has patched")
    command = [sys.executable, str(PROGRAM), library, when, start_method]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (ended.stdout, ended.returncode) == ("all is well\n", 0), ended.stderr


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_a_program_of_which_only_the_sockets_are_patched_has_real_threads(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    patches = {
        "gevent": "from gevent import monkey; monkey.patch_all(thread=False)",
        "eventlet": "import eventlet; eventlet.monkey_patch(socket=True, select=True)",
    }
    program = (
        f"{patches[library]}\n"
        "from prefork_executor import PreforkExecutor\n"
        "with PreforkExecutor(2, mp_context='fork') as executor:\n"
        "    print(list(executor.map(abs, range(-3, 0))))"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "[3, 2, 1]\n"


def test_a_pool_that_is_left_open_does_not_keep_a_gevent_program_from_its_end() -> None:
    pytest.importorskip("gevent")
    program = (
        "from gevent import monkey; monkey.patch_all()\n"
        "from prefork_executor import PreforkExecutor\n"
        "executor = PreforkExecutor(2)\n"
        "executor.submit(print, 'it ran', flush=True)"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (ended.stdout, ended.stderr) == ("it ran\n", "")
