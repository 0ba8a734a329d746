"""This machine, and how a pool makes its fences: no process misses what another has written.

`litmus.py` has the places where that matters; every order of their steps is explored in
test_memory_order.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from litmus import ALL, BOTH_WRITE_AND_READ, Fences, Litmus, compiled, race
from waiting import BOUND

from prefork_executor._board import fences

both = pytest.mark.parametrize("litmus", BOTH_WRITE_AND_READ.values(), ids=BOTH_WRITE_AND_READ)
every = pytest.mark.parametrize("litmus", ALL.values(), ids=ALL)

# --- this machine ---------------------------------------------------------------------------------

granted = pytest.mark.skipif(
    not fences.is_granted(fences.GLOBAL_EXPEDITED), reason="membarrier is refused, or not used"
)


@every
@pytest.mark.parametrize(
    "fences", [Fences.EACH_ITS_OWN, pytest.param(Fences.RARE_EVERYWHERE, marks=granted)]
)
def test_two_processes_do_not_miss_each_others_writes(
    litmus: Litmus, fences: Fences, tmp_path: Path
) -> None:
    loops = compiled(tmp_path)
    if loops is None:
        pytest.skip("no C compiler")
    seen = race(loops, litmus, fences, seconds=0.5)
    assert seen.rounds
    assert not seen.violations


@both
def test_without_a_fence_on_the_hot_side_they_do(litmus: Litmus, tmp_path: Path) -> None:
    """Else the test before this one would show nothing."""
    loops = compiled(tmp_path)
    if loops is None:
        pytest.skip("no C compiler")
    if not race(loops, litmus, Fences.RARE_ITS_OWN, seconds=5.0, enough=1).violations:
        pytest.skip("this machine has not shown it in time: it may be busy")


# --- how a pool makes them ------------------------------------------------------------------------

COUNT = '''
import os
from prefork_executor import PreforkExecutor
from prefork_executor._board import fences as fences_module

made = []
own_fence = fences_module.here

def count():
    made.append(os.getpid())
    own_fence()

fences_module.here = count

def fences(_):
    """How many this worker has made itself."""
    return made.count(os.getpid())

with PreforkExecutor(2, "fork") as executor:
    by_workers = max(executor.map(fences, range(200)))
    print(by_workers > 0, fences(None) > 0)
    print(sum(executor.map(abs, range(-2000, 0))))
'''
REFUSE = '''
import ctypes, struct
from prefork_executor._board import fences

def refuse_membarrier():
    """Have the kernel answer it with EPERM, here and in all children."""
    load, equal, give = 0x20, 0x15, 0x06  # seccomp's little machine: BPF.
    refused, allowed = 0x50001, 0x7fff0000
    steps = [(load, 0, 0, 0), (equal, 0, 1, fences.NUMBER), (give, 0, 0, refused)]
    steps = [struct.pack("HBBI", *step) for step in [*steps, (give, 0, 0, allowed)]]
    program = ctypes.create_string_buffer(b"".join(steps))
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
    given = Program(len(steps), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(given), 0, 0) == 0
'''


def said(program: str) -> list[str]:
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


@granted
def test_tasks_pay_for_no_fence_where_membarrier_is_granted() -> None:
    assert said(COUNT) == ["False False", "2001000"]


@granted
def test_workers_and_client_make_their_own_where_it_is_refused() -> None:
    assert said(REFUSE + "refuse_membarrier()\n" + COUNT) == ["True True", "2001000"]


@granted
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_time_limits_and_long_tasks_in_messages_work_where_it_is_refused(method: str) -> None:
    program = f"""
{REFUSE}
import time
from prefork_executor import PreforkExecutor
if __name__ == "__main__":
    refuse_membarrier()
    with PreforkExecutor(2, {method!r}) as executor:
        list(executor.map(time.sleep, [0.0] * 500))
        slow = executor.with_options(timeout=0.2).submit(time.sleep, 60)
        naps = [0.0, 0.1] * 20
        print(len(list(executor.map(time.sleep, naps))))
        print(type(slow.exception()).__name__)
"""
    assert said(program) == ["40", "TaskTimeout"]


@granted
def test_a_pool_works_where_membarrier_is_refused_later_on() -> None:
    """The client was granted it; workers that are refused it make their own fences, and a
    client that is refused it waits instead."""
    program = f"""
{REFUSE}
import time
from prefork_executor import PreforkExecutor
with PreforkExecutor(2, "fork", start_workers=2, idle_timeout=None) as executor:
    list(executor.map(abs, range(-500, 0)))
    refuse_membarrier()
    slow = executor.with_options(timeout=0.2).submit(time.sleep, 60)
    print(sum(executor.map(abs, range(-2000, 0))))
    print(type(slow.exception()).__name__)
"""
    assert said(program) == ["2001000", "TaskTimeout"]
