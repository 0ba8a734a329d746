"""Files that have carried a big payload carry others. Nobody ever sees in an array or in
bytes what came later, and nobody keeps files that are of no use to him."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from injection import lines
from light_tasks import note
from waiting import eventually

from prefork_executor import PreforkExecutor
from prefork_executor._messages import payload_files as payload_files_module
from prefork_executor._messages.payload_files import GRAIN, MAX_BYTES, MAX_FILES, PayloadFiles
from prefork_executor._support import faults
from prefork_executor._system.shared_files import map_private, shared_file

SIZE = 200_000
"""Bytes of a payload that is big."""

kept: list[numpy.ndarray] = []
"""A worker's own, which its tasks leave there."""


def full(value: int) -> numpy.ndarray:
    return numpy.full(SIZE, value % 256, "u1")


def same(thing: object) -> object:
    return thing


def keep(array: numpy.ndarray) -> None:
    kept.append(array)


def kept_are(values: list[int]) -> bool:
    return all((array == value).all() for array, value in zip(kept, values, strict=True))


def payload_files(pid: int | str = "self") -> int:
    """Descriptors of payloads that the process has open."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return sum("prefork-payload" in link for link in links)


@pytest.fixture
def executor() -> Iterator[PreforkExecutor]:
    with PreforkExecutor(1, "fork") as executor:
        yield executor


@pytest.mark.parametrize("payload", [full(7), full(7).tobytes(), [full(1), full(2).tobytes()]])
def test_no_new_files_are_made_while_there_are_spare_ones(payload: object, tmp_path: Path) -> None:
    made = str(tmp_path / "made")
    with (
        faults.injected("payload.makes_file", lambda size: note(made, str(size))),
        PreforkExecutor(1, "fork") as executor,
    ):
        for _ in range(50):
            executor.submit(same, payload).result()
    assert 0 < len(lines(Path(made))) <= 2 * MAX_FILES


def test_results_that_are_kept_never_change(executor: PreforkExecutor) -> None:
    results = [executor.submit(full, value).result() for value in range(100)]
    assert all((result == value).all() for value, result in enumerate(results))


def test_arguments_that_a_worker_keeps_never_change(executor: PreforkExecutor) -> None:
    for value in range(100):
        executor.submit(keep, full(value)).result()
    assert executor.submit(kept_are, list(range(100))).result()


def test_what_was_written_into_an_argument_nobody_else_sees(executor: PreforkExecutor) -> None:
    for value in range(20):
        array = executor.submit(same, full(value)).result()
        array += 1
        assert (executor.submit(same, array).result() == value + 1).all()


def test_bytes_come_back_as_they_were(executor: PreforkExecutor) -> None:
    for size in [SIZE, 40_000, 3 * SIZE, 10, SIZE, 5_000_000, SIZE]:
        data = os.urandom(size)
        result = executor.submit(same, data).result()
        assert type(result) is bytes
        assert result == data


def test_many_threads_get_their_own_back(executor: PreforkExecutor) -> None:
    wrong = []

    def echo(value: int) -> None:
        for _ in range(20):
            array = executor.submit(same, full(value)).result()
            data = executor.submit(same, bytes([value]) * SIZE).result()
            if not ((array == value).all() and data == bytes([value]) * SIZE):
                wrong.append(value)

    threads = [threading.Thread(target=echo, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def look_later(array: numpy.ndarray, go: str, seen: str) -> None:
    """Leave a child behind that looks at the argument when the task has long ended."""
    if os.fork() == 0:
        try:
            eventually(lambda: Path(go).exists())
            Path(seen).write_text(str(sorted(set(array.tolist()))))
        finally:
            os._exit(0)


def test_a_child_that_a_task_forked_sees_its_argument_as_it_was(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    go, seen = tmp_path / "go", tmp_path / "seen"
    executor.submit(look_later, full(5), str(go), str(seen)).result()
    for value in range(6, 40):
        executor.submit(same, full(value)).result()
    go.touch()
    eventually(lambda: seen.exists() and seen.read_text() == "[5]")


def test_a_child_of_the_callers_sees_a_result_as_it_was(
    executor: PreforkExecutor, tmp_path: Path
) -> None:
    result = executor.submit(full, 5).result()
    go, seen = tmp_path / "go", tmp_path / "seen"
    child = os.fork()
    if child == 0:
        try:
            eventually(go.exists)
            seen.write_text(str(sorted(set(result.tolist()))))
        finally:
            os._exit(0)
    del result
    for value in range(6, 40):
        executor.submit(same, full(value)).result()
    go.touch()
    os.waitpid(child, 0)
    assert seen.read_text() == "[5]"


def test_however_many_results_are_alive_few_descriptors_are_open(
    executor: PreforkExecutor,
) -> None:
    alive = [executor.submit(full, value).result() for value in range(300)]
    assert payload_files() <= 2 * MAX_FILES
    assert len(alive) == 300


def test_what_is_not_used_for_a_while_is_dropped(executor: PreforkExecutor) -> None:
    for value in range(10):
        executor.submit(same, full(value)).result()
    (worker,) = executor.stats().workers
    assert payload_files() + payload_files(worker.pid) > 0
    eventually(lambda: payload_files() + payload_files(worker.pid) == 0)


def test_after_the_shutdown_nothing_is_open_though_results_are_alive() -> None:
    with PreforkExecutor(1, "fork") as executor:
        alive = [executor.submit(full, value).result() for value in range(10)]
    assert payload_files() == 0
    del alive
    assert payload_files() == 0


def test_a_file_whose_mapping_goes_as_the_process_forks_is_not_used_again(
    tmp_path: Path,
) -> None:
    """Between a fork and what is done after it another thread may drop a mapping."""
    files, size = PayloadFiles(), GRAIN
    file = shared_file("prefork-payload", size)
    view = map_private(file, size)
    payload_files_module._before_fork()
    late = shared_file("prefork-payload", size)
    files.give_when_unmapped((file, size), view.obj)
    other = map_private(late, size)
    files.give_when_unmapped((late, size), other.obj)
    del view  # Its file must not become spare,
    payload_files_module._after_fork_in_parent()
    del other  # nor one that was mapped as the process forked.
    assert files.due_at is None
    files.close()


def test_mappings_may_come_and_go_in_several_threads_at_once() -> None:
    files, size, failed = PayloadFiles(), GRAIN, []

    def come_and_go() -> None:
        for _ in range(3000):
            file = shared_file("prefork-payload", size)
            view = map_private(file, size)
            try:
                files.give_when_unmapped((file, size), view.obj)
            except RuntimeError as error:
                failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    files.close()
    assert failed == []


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["give", "take", "map", "unmap", "fork"]),
            st.integers(1, MAX_BYTES // 3),
        ),
        max_size=40,
    )
)
def test_they_are_few_and_fit_and_nobody_gets_one_that_is_looked_into(
    steps: list[tuple[str, int]],
) -> None:
    before = payload_files()
    files, views = PayloadFiles(), []
    for step, size in steps:
        if step == "give":
            files.give((shared_file("prefork-payload", size), size))
        elif step == "map":
            file = shared_file("prefork-payload", size)
            views.append(map_private(file, size))
            files.give_when_unmapped((file, size), views[-1].obj)
        elif step == "unmap" and views:
            views.pop(size % len(views))
        elif step == "fork":
            files.give_up_mapped()
        elif step == "take":
            file = files.take(size)
            assert size <= file[1] <= 2 * size or file[1] == GRAIN
            os.pwrite(file[0], b"x", 0)
            os.close(file[0])
        assert payload_files() - before <= 2 * MAX_FILES
        assert all(view[0] == 0 for view in views)
    files.close()
    assert payload_files() == before


# --- a file that comes back with a small outcome --------------------------------------------------


def first(array: numpy.ndarray) -> int:
    return int(array[0])


def fail_with(array: numpy.ndarray) -> None:
    raise ValueError(int(array[0]))


@pytest.fixture
def made() -> Iterator[list[int]]:
    """The sizes of the payloads for which this process makes files."""
    sizes: list[int] = []
    with faults.injected("payload.makes_file", sizes.append):
        yield sizes


def test_a_callers_file_comes_back_with_an_outcome_that_needs_none(
    executor: PreforkExecutor, made: list[int]
) -> None:
    for value in range(50):
        assert executor.submit(first, full(value)).result() == value
    assert 0 < len(made) <= MAX_FILES


def test_it_comes_back_with_a_failure_as_well(executor: PreforkExecutor, made: list[int]) -> None:
    for value in range(50):
        error = executor.submit(fail_with, full(value)).exception()
        assert isinstance(error, ValueError)
        assert error.args == (value,)
    assert 0 < len(made) <= MAX_FILES


def test_a_file_that_a_worker_still_looks_into_does_not_come_back(
    executor: PreforkExecutor,
) -> None:
    for value in range(20):
        executor.submit(keep, full(value)).result()
        assert executor.submit(first, full(255)).result() == 255
    assert executor.submit(kept_are, list(range(20))).result()


def test_many_callers_files_come_back_to_the_right_tasks() -> None:
    with PreforkExecutor(4, "fork") as executor:
        values = [value % 256 for value in range(300)]
        assert list(executor.map(first, map(full, values))) == values
