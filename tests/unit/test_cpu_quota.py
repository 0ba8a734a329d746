"""How many CPUs a pool takes by default: no more than the control groups of its program grant."""

from __future__ import annotations

import subprocess
import sys

import control_groups
import pytest
from waiting import BOUND

from prefork_executor._system.control_groups import read_file
from prefork_executor._system.machine import available_cpus
from prefork_executor._system.platform import FALLBACK

ALL = available_cpus(lambda path: b"")
UNIFIED = b"30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
HYBRID = b"""\
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
OF_A_CONTAINER = b"32 31 0:29 /docker/4f1c /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
V1 = "/sys/fs/cgroup/cpu{}/cpu.cfs_{}_us"


def of_version_1(folder: str, quota: bytes) -> dict[str, bytes]:
    return {V1.format(folder, "quota"): quota, V1.format(folder, "period"): b"100000\n"}


@pytest.mark.parametrize(
    ("own", "mounts", "files", "cpus"),
    [
        (b"0::/\n", UNIFIED, {"/sys/fs/cgroup/cpu.max": b"50000 100000\n"}, 1),
        (b"0::/a/b\n", UNIFIED, {"/sys/fs/cgroup/a/b/cpu.max": b"50000 100000\n"}, 1),
        (b"0::/a/b\n", UNIFIED, {"/sys/fs/cgroup/a/cpu.max": b"100 100000\n"}, 1),
        (b"0::/a/b\n", UNIFIED, {"/sys/fs/cgroup/a/cpu.max": b"max 100000\n"}, ALL),
        (b"2:cpu,cpuacct:/x\n0::/y\n", HYBRID, of_version_1("/x", b"90000\n"), 1),
        (b"2:cpu,cpuacct:/x\n0::/y\n", HYBRID, of_version_1("/x", b"-1\n"), ALL),
        (b"2:cpu,cpuacct:/docker/4f1c\n", OF_A_CONTAINER, of_version_1("", b"90000\n"), 1),
        (b"", UNIFIED, {"/sys/fs/cgroup/cpu.max": b"50000 100000\n"}, ALL),
    ],
)
def test_the_least_quota_of_all_groups_counts_rounded_up(
    own: bytes, mounts: bytes, files: dict[str, bytes], cpus: int
) -> None:
    there = {"/proc/self/cgroup": own, "/proc/self/mountinfo": mounts, **files}
    assert available_cpus(lambda path: there.get(path, b"")) == cpus


@pytest.mark.skipif(FALLBACK, reason="needs the /proc of Linux")
def test_a_file_of_which_the_kernel_gives_a_page_at_a_time_is_read_whole() -> None:
    assert b"[stack]" in read_file("/proc/self/smaps")


@pytest.mark.skipif(ALL < 2, reason="here every pool has one worker")
@pytest.mark.skipif(
    not control_groups.may_be_made("cpu"), reason="no control group can be made here"
)
def test_a_pool_in_a_group_with_a_quota_has_no_more_workers() -> None:
    program = """
import os, sys
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
from prefork_executor import PreforkExecutor
print(PreforkExecutor().stats().max_workers)
"""
    with control_groups.limited(90_000, "cpu") as folder:
        command = [sys.executable, "-c", program, f"{folder}/cgroup.procs"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")
