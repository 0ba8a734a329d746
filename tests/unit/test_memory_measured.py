"""What processes take of the memory, and what is left of it: read from recorded files, and
from this machine."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import psutil
import pytest
from injection import linux
from waiting import BOUND

from prefork_executor._system import memory
from prefork_executor._system.memory import Gauge, Group, Room, Scales, System, groups_in

MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")

INHERITED, SHARED_MEMORY = 100_000, 75_000
"""Kilobytes that five processes share."""


def rollup_of(own: int, *, inherited: int = 0, shared_memory: int = 0, file: int = 0) -> bytes:
    """A smaps_rollup of a worker with so many kilobytes of its own. It alone has mapped the
    file."""
    library = 6000
    sizes = {
        "Rss": own + inherited + shared_memory + file + library,
        "Pss": own + file + (inherited + shared_memory + library) // 5,
        "Pss_Dirty": own + (inherited + shared_memory) // 5,
        "Pss_Anon": own + inherited // 5,
        "Pss_File": file + library // 5,
        "Pss_Shmem": shared_memory // 5,
        "Shared_Clean": library,
        "Shared_Dirty": inherited + shared_memory,
        "Private_Clean": file,
        "Private_Dirty": own,
        "Anonymous": own + inherited,
        "SwapPss": 0,
    }
    lines = [f"{name + ':':15}{size:10} kB" for name, size in sizes.items()]
    return "\n".join(["5621db714000-7ffcf2ed6000 ---p 0 00:00 0 [rollup]", *lines, ""]).encode()


MEMINFO = b"""\
MemTotal:       24684256 kB
MemFree:        17079808 kB
MemAvailable:   24118732 kB
Buffers:          151652 kB
"""
HYBRID_MOUNTS = b"""\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED_MOUNTS = b"""\
30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw
"""
CONTAINER_V1_MOUNTS = b"""\
712 705 0:32 /docker/4f1c /sys/fs/cgroup/memory ro,nosuid shared:9 - cgroup cgroup rw,memory
"""


def reader_of(**files: bytes) -> Callable[[str], bytes]:
    """Reads these, by the ends of their names, and no other."""
    return lambda path: files.get(path, b"")


def system_of(files: dict[str, bytes]) -> System:
    return System(reader_of(**files))


class TestWhatAProcessTakes:
    @pytest.mark.parametrize("inherited", [0, INHERITED])
    @pytest.mark.parametrize("shared_memory", [0, SHARED_MEMORY])
    def test_is_what_it_has_for_itself(self, inherited: int, shared_memory: int) -> None:
        rollup = rollup_of(3412, inherited=inherited, shared_memory=shared_memory)
        assert memory.taken_in(rollup) == 3412 * 1024

    @pytest.mark.parametrize("inherited", [0, INHERITED])
    def test_is_not_much_more_if_it_has_mapped_a_large_file(self, inherited: int) -> None:
        taken = memory.taken_in(rollup_of(3412, inherited=inherited, file=120_000))
        assert taken is not None
        assert 3412 <= taken // 1024 < 3412 + 4000

    def test_is_its_whole_proportional_set_size_where_the_kernel_says_no_more(self) -> None:
        assert memory.taken_in(b"Pss: 7798 kB\nPrivate_Dirty: 9 kB\n") == 7798 * 1024

    def test_is_not_known_where_the_kernel_does_not_say(self) -> None:
        assert memory.taken_in(b"") is None
        assert memory.taken_in(b"Pss:\n") is None

    def test_is_between_two_counts_what_statm_says_without_files(self) -> None:
        assert memory.private_in(b"3306 1737 884 1 0 1195 0\n") == (1737 - 884) * PAGE
        assert memory.private_in(b"") is None
        assert memory.private_in(b"3306 many few") is None

    def test_is_counted_page_by_page_once_and_followed_by_statm(self) -> None:
        files = {"/proc/7/statm": b"900 500 100 1 0 1 0", "/proc/7/smaps_rollup": b"Pss: 2000 kB"}
        now, cost = iter([0.0, 1.0]), iter([0.0, 0.02])
        scales = Scales(lambda path: files.get(path, b""), lambda: next(now), lambda: next(cost))
        assert scales.weigh([7]) == {7: 2000 * 1024}
        files["/proc/7/statm"] = b"900 600 100 1 0 1 0"
        # The first count has taken 20 ms, so the next may come after two seconds.
        assert scales.weigh([7]) == {7: 2000 * 1024 + 100 * PAGE}

    def test_is_counted_again_as_far_as_that_takes_little_of_the_time(self) -> None:
        files = {"/proc/7/statm": b"900 500 100 1 0 1 0", "/proc/7/smaps_rollup": b"Pss: 2000 kB"}
        now = [0.0]
        scales = Scales(lambda path: files.get(path, b""), lambda: now[0])
        scales.weigh([7])
        files["/proc/7/smaps_rollup"] = b"Pss: 3000 kB"
        now[0] = 1.0
        assert scales.weigh([7]) == {7: 3000 * 1024}

    def test_is_counted_again_at_once_if_it_matters(self) -> None:
        files = {"/proc/7/statm": b"900 500 100 1 0 1 0", "/proc/7/smaps_rollup": b"Pss: 2000 kB"}
        cost = itertools.count()
        scales = Scales(lambda path: files.get(path, b""), lambda: 0.0, lambda: next(cost))
        scales.weigh([7])
        files["/proc/7/smaps_rollup"] = b"Pss: 3000 kB"
        assert scales.weigh([7]) == {7: 2000 * 1024}
        assert scales.weigh([7], exactly=True) == {7: 3000 * 1024}

    def test_is_not_counted_at_once_again_and_again_however_much_there_is_to_count(self) -> None:
        files = {"/proc/7/statm": b"900 500 100 1 0 1 0", "/proc/7/smaps_rollup": b"Pss: 2000 kB"}
        now, cost = [10.0], itertools.count()
        scales = Scales(lambda path: files.get(path, b""), lambda: now[0], lambda: next(cost))
        scales.weigh([7], exactly=True)
        assert scales.spent == 1
        files["/proc/7/smaps_rollup"] = b"Pss: 3000 kB"
        assert scales.weigh([7], exactly=True) == {7: 2000 * 1024}
        assert scales.spent == 0
        now[0] += 10
        assert scales.weigh([7], exactly=True) == {7: 3000 * 1024}

    def test_is_not_mistaken_while_it_grows_as_it_is_counted(self) -> None:
        small, large = (f"9 {pages} 100 1 0 1 0".encode() for pages in (500, 50_500))
        grown = f"Pss: {50_400 * PAGE // 1024 + 8} kB".encode()
        statms = iter([small, large, large, large])

        def read(path: str) -> bytes:
            return next(statms) if path.endswith("statm") else grown

        scales = Scales(read, lambda: 0.0)
        for _ in range(2):
            assert scales.weigh([7])[7] == 50_400 * PAGE + 8 * 1024  # Not twice as much.

    def test_is_not_counted_at_every_look_while_it_grows(self) -> None:
        pages = itertools.count(1000, 1000)
        now, cost = [10.0], itertools.count()

        def read(path: str) -> bytes:
            return b"9 %d 0 1 0 1 0" % next(pages) if path.endswith("statm") else b"Pss: 9 kB"

        scales = Scales(read, lambda: now[0], lambda: next(cost))
        spent = []
        for _ in range(100):
            scales.weigh([7])
            spent.append(scales.spent)
            now[0] += 1
        assert sum(spent) == 10  # One second in ten.

    def test_is_nothing_when_it_has_ended(self) -> None:
        assert Scales(reader_of()).weigh([7]) == {}

    def test_is_right_for_this_very_process(self) -> None:
        size = Scales().weigh([os.getpid()])[os.getpid()]
        assert MIB < size <= psutil.Process().memory_info().rss


class TestWhatIsLeft:
    def test_is_what_the_machine_has_available_without_a_limit(self) -> None:
        assert system_of({"/proc/meminfo": MEMINFO}).look() == Room(
            24684256 * 1024, 24118732 * 1024
        )

    def test_is_what_the_control_group_of_version_2_has_left(self) -> None:
        system = system_of(
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": b"0::/app.slice/web\n",
                "/proc/self/mountinfo": UNIFIED_MOUNTS,
                "/sys/fs/cgroup/app.slice/web/memory.max": b"2147483648\n",
                "/sys/fs/cgroup/app.slice/web/memory.high": b"max\n",
                "/sys/fs/cgroup/app.slice/web/memory.current": b"1000000000\n",
                "/sys/fs/cgroup/app.slice/web/memory.stat": (
                    b"anon 300000000\nfile 600000000\nslab_reclaimable 50000000\n"
                    b"inactive_file 200000000\nactive_file 350000000\nunevictable 50000000\n"
                ),
            }
        )
        assert system.look() == Room(2147483648, 2147483648 - 400000000)

    def test_is_bounded_by_memory_high_as_well(self) -> None:
        files = {"/g/memory.max": b"3000\n", "/g/memory.high": b"2000\n"}
        assert Group("/g").limit(reader_of(**files)) == 2000

    def test_is_what_the_control_group_of_version_1_has_left(self) -> None:
        folder = "/sys/fs/cgroup/memory/jobs"
        system = system_of(
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": b"9:name=systemd:/\n4:memory:/jobs\n0::/\n",
                "/proc/self/mountinfo": HYBRID_MOUNTS,
                f"{folder}/memory.limit_in_bytes": b"1073741824\n",
                f"{folder}/memory.usage_in_bytes": b"500000000\n",
                f"{folder}/memory.stat": (
                    b"inactive_file 1\nactive_file 2\n"
                    b"total_inactive_file 100000000\ntotal_active_file 250000000\n"
                ),
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": b"9223372036854771712\n",
            }
        )
        assert system.look() == Room(1073741824, 1073741824 - 150000000)

    def test_is_the_least_of_all_groups_up_the_tree(self) -> None:
        system = system_of(
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": b"0::/a/b\n",
                "/proc/self/mountinfo": UNIFIED_MOUNTS,
                "/sys/fs/cgroup/a/b/memory.max": b"3000000\n",
                "/sys/fs/cgroup/a/b/memory.current": b"1000000\n",
                "/sys/fs/cgroup/a/memory.max": b"5000000\n",
                "/sys/fs/cgroup/a/memory.current": b"4500000\n",
            }
        )
        assert system.look() == Room(3000000, 500000)

    def test_is_never_below_zero(self) -> None:
        system = system_of(
            {
                "/proc/meminfo": MEMINFO,
                "/proc/self/cgroup": b"0::/\n",
                "/proc/self/mountinfo": UNIFIED_MOUNTS,
                "/sys/fs/cgroup/memory.max": b"1000000\n",
                "/sys/fs/cgroup/memory.current": b"2000000\n",
            }
        )
        assert system.look().left == 0

    def test_comes_with_how_much_everybody_waits_for_it(self) -> None:
        some = b"some avg10=20.00 avg60=1.00 avg300=0.00 total=9\n"
        full = b"full avg10=12.50 avg60=1.00 avg300=0.00 total=5\n"
        files = {"/proc/meminfo": MEMINFO, "/proc/pressure/memory": some + full}
        assert system_of(files).look().stalled == 12.5
        files |= {
            "/proc/self/cgroup": b"0::/a\n",
            "/proc/self/mountinfo": UNIFIED_MOUNTS,
            "/sys/fs/cgroup/a/memory.pressure": b"full avg10=3.00 avg60=0 avg300=0 total=5\n",
        }
        assert system_of(files).look().stalled == 3.0

    def test_is_told_of_a_machine_that_does_not_say_how_much_everybody_waits(self) -> None:
        assert memory.stalled_in(b"") == memory.stalled_in(b"full avg10=") == 0.0

    def test_is_right_for_this_machine(self) -> None:
        room = System().look()
        assert 0 < room.left < room.has <= psutil.virtual_memory().total


class TestTheControlGroups:
    def folders(self, own: bytes, mounts: bytes) -> list[str]:
        return [group.folder for group in groups_in(own, mounts)]

    def test_are_all_from_the_own_one_up(self) -> None:
        expected = ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]
        assert self.folders(b"0::/a/b\n", UNIFIED_MOUNTS) == expected

    def test_are_those_of_version_1_where_it_has_the_memory(self) -> None:
        expected = ["/sys/fs/cgroup/memory/x", "/sys/fs/cgroup/memory"]
        assert self.folders(b"4:memory:/x\n0::/y\n", HYBRID_MOUNTS) == expected

    def test_are_seen_from_inside_a_container_that_has_mounted_its_own(self) -> None:
        own = b"8:cpu,cpuacct:/docker/4f1c\n4:memory:/docker/4f1c\n"
        assert self.folders(own, CONTAINER_V1_MOUNTS) == ["/sys/fs/cgroup/memory"]

    def test_are_the_mounted_one_if_the_path_leads_out_of_it(self) -> None:
        for own in (b"4:memory:/elsewhere\n", b"4:memory:/docker/4f1c/../../x\n"):
            assert self.folders(own, CONTAINER_V1_MOUNTS) == ["/sys/fs/cgroup/memory"]

    def test_are_none_where_nothing_is_mounted(self) -> None:
        assert self.folders(b"0::/a\n", b"") == []
        assert self.folders(b"", HYBRID_MOUNTS) == []


LARGE = 100 * MIB
"""Bytes. The C library may keep up to 64 MiB that this process has freed, and give them again:
what it has already adds nothing."""


def gauge_some() -> list[tuple[int, int]]:
    """In a process that was forked, as workers are: what three tasks have taken."""
    gauge = Gauge()
    gauge.begin()
    big = bytearray(LARGE)
    del big
    peak = gauge.end()
    gauge.begin()
    light = gauge.end()
    kept = bytearray(LARGE)
    gauge.begin()
    return [peak, light, gauge.end()] if kept else []


@linux
class TestAGauge:
    def test_shows_the_most_that_a_task_has_added_and_no_other(self) -> None:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            results = executor.submit(gauge_some).result(BOUND)
        (peak, left), (light, nothing), (again, kept) = results
        # The kernel counts each processor's pages for itself, and adds them up now and then.
        assert LARGE - 2 * MIB <= peak < LARGE + 10 * MIB
        assert left == 0
        assert max(light, nothing, again) < 2 * MIB
        assert LARGE - 2 * MIB <= kept < LARGE + 10 * MIB


def test_where_there_is_no_proc_psutil_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FALLBACK", True)
    assert memory.why_not_measurable() == ""
    assert MIB < Scales().weigh([os.getpid()])[os.getpid()] < 2**34
    assert 0 < System().look().left <= System().look().has
    gauge = Gauge()
    gauge.begin()
    assert min(gauge.end()) >= 0


def test_without_psutil_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FALLBACK", True)
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert "psutil" in memory.why_not_measurable()
