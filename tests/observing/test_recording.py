"""A recording says of each task where it ran, from when to when, and what became of it."""

from __future__ import annotations

import collections
import itertools
import json
import logging
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_tasks import Told, die, die_once, fail, hold, large, short, work
from waiting import BOUND, eventually

from prefork_executor import PreforkExecutor, TaskTimeout, WorkerDied, recording
from prefork_executor._board import scoreboard as sb
from prefork_executor._client.recorder import Recorder
from prefork_executor._messages.wire import Death
from prefork_executor._timeline.model import MIN_BUCKET_NS, Curve
from prefork_executor.recording import Recording

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Event = dict[str, Any]
NUMBER = (int, float)


def events_of(path: Path) -> list[Event]:
    events: list[Event] = json.loads(path.read_text())["traceEvents"]
    for event in events:
        check_event(event)
    return events


def check_event(event: Event) -> None:
    """What the Chrome trace format asks of an event of each kind that we use."""
    assert isinstance(event["name"], str)
    assert event["name"]
    assert isinstance(event["pid"], int)
    assert event["ph"] in "XiCM"
    if event["ph"] == "M":
        key = "sort_index" if event["name"] == "thread_sort_index" else "name"
        assert list(event["args"]) == [key]
        return
    assert isinstance(event["ts"], NUMBER)
    assert event["ts"] >= 0
    if event["ph"] == "C":
        assert event["args"]
        assert all(isinstance(value, NUMBER) and value >= 0 for value in event["args"].values())
        return
    assert isinstance(event["tid"], int)
    if event["ph"] == "X":
        assert event["dur"] >= 0
    else:
        assert event["s"] in ("g", "p", "t")


def nanoseconds(event: Event) -> tuple[int, int]:
    """When a span begins and ends, since the recording's beginning."""
    begin = round(event["ts"] * 1000)
    return begin, begin + round(event["dur"] * 1000)


def tasks_of(events: list[Event]) -> list[Event]:
    return [event for event in events if event.get("cat") == "task"]


def runs_of(events: list[Event]) -> list[Event]:
    return [event for event in tasks_of(events) if event["ph"] == "X"]


def outcomes_of(events: list[Event]) -> collections.Counter[tuple[str, str]]:
    return collections.Counter((e["name"], e["args"]["outcome"]) for e in tasks_of(events))


def check_lanes(events: list[Event]) -> None:
    """In each lane no two tasks overlap, nor two workers, and each task is in its worker."""
    lanes: dict[tuple[int, str], list[Event]] = collections.defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["tid"], event["cat"]].append(event)
    for spans in lanes.values():
        spans.sort(key=nanoseconds)
        for former, latter in itertools.pairwise(spans):
            assert nanoseconds(former)[1] <= nanoseconds(latter)[0], (former, latter)
    for run in runs_of(events):
        begin, end = nanoseconds(run)
        homes = [
            worker
            for worker in lanes[run["tid"], "worker"]
            if nanoseconds(worker)[0] <= begin and end <= nanoseconds(worker)[1]
        ]
        assert [home["args"]["pid"] for home in homes] == [run["args"]["worker_pid"]]


def wait_for(futures: list[Future[Any]]) -> None:
    for future in futures:
        future.exception(BOUND)


# --- spans ------------------------------------------------------------------------------------


def test_every_task_has_a_span_whatever_becomes_of_it(start_method: str, tmp_path: Path) -> None:
    path, flag = tmp_path / "run.json", str(tmp_path / "flag")
    with PreforkExecutor(3, start_method) as executor:
        with executor.record(path):
            futures: list[Future[Any]] = [executor.submit(work, 0.001) for _ in range(20)]
            futures += [executor.submit(fail), executor.submit(die)]
            futures += [executor.with_options(timeout=0.05).submit(work, BOUND)]
            futures += [executor.with_options(retries=1).submit(die_once, flag)]
            wait_for(futures)
            list(executor.map(short, range(400)))
            list(executor.map(short, range(400)))
    events = events_of(path)
    name = "recorded_tasks."
    assert outcomes_of(events) == {
        (f"{name}work", "returned"): 20,
        (f"{name}fail", "raised"): 1,
        (f"{name}die", "died"): 1,
        (f"{name}work", "timed out"): 1,
        (f"{name}die_once", "lost, and run again"): 1,
        (f"{name}die_once", "returned"): 1,
        (f"{name}short", "returned"): 800,
    }
    assert len(runs_of(events)) == 825
    check_lanes(events)


@pytest.mark.parametrize("task", [short, large])
def test_a_span_is_exact(task: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with PreforkExecutor(2) as executor:
        list(executor.map(task, range(20)))
        with executor.record(path):
            recorder = executor._client._shared.recorder
            assert recorder is not None
            told = list(executor.map(task, range(300)))
    where: list[Told] = told if task is short else [first for first, _ in told]
    runs = sorted(runs_of(events_of(path)), key=lambda run: (run["args"]["worker_pid"], run["ts"]))
    for (pid, begin, end), run in zip(sorted(where), runs, strict=True):
        assert run["args"]["worker_pid"] == pid
        assert recorder._begin + nanoseconds(run)[0] <= begin
        assert end <= recorder._begin + nanoseconds(run)[1]


def test_a_span_says_how_long_its_task_has_waited(tmp_path: Path) -> None:
    path, started, release = tmp_path / "run.json", tmp_path / "started", tmp_path / "release"
    with PreforkExecutor(1) as executor:
        with executor.record(path):
            first = executor.submit(hold, str(started), str(release))
            eventually(started.exists)
            second = executor.submit(work)
            release.touch()
            wait_for([first, second])
    held, waited = runs_of(events_of(path))
    assert waited["args"]["waited_ms"] > 0
    assert waited["args"]["waited_ms"] <= (held["ts"] + held["dur"]) / 1000 + BOUND
    assert nanoseconds(waited)[0] >= nanoseconds(held)[1]


def test_what_ran_before_and_what_still_runs_are_cut_to_the_recording(tmp_path: Path) -> None:
    path, release = tmp_path / "run.json", tmp_path / "release"
    with PreforkExecutor(2) as executor:
        names = [tmp_path / "one", tmp_path / "two"]
        before = executor.submit(hold, str(names[0]), str(release))
        eventually(names[0].exists)
        with executor.record(path):
            later_release = tmp_path / "later"
            after = executor.submit(hold, str(names[1]), str(later_release))
            eventually(names[1].exists)
            release.touch()
            before.result(BOUND)
        later_release.touch()
        after.result(BOUND)
    events = events_of(path)
    assert outcomes_of(events) == {
        ("recorded_tasks.hold", "returned"): 1,
        ("recorded_tasks.hold", "running"): 1,
    }
    assert min(nanoseconds(run)[0] for run in runs_of(events)) == 0
    check_lanes(events)


def test_tasks_that_no_worker_began_are_named_as_such(tmp_path: Path) -> None:
    path, started, release = tmp_path / "run.json", tmp_path / "started", tmp_path / "release"
    with PreforkExecutor(1) as executor:
        with executor.record(path):
            first = executor.submit(hold, str(started), str(release))
            eventually(started.exists)
            futures = [executor.submit(work) for _ in range(20)]
            cancelled = [future.cancel() for future in futures].count(True)
            release.touch()
            wait_for([first, *(future for future in futures if not future.cancelled())])
    events = events_of(path)
    assert cancelled
    assert outcomes_of(events)["recorded_tasks.work", "cancelled"] == cancelled
    never = [event for event in tasks_of(events) if event["ph"] == "i"]
    assert len(never) == cancelled
    assert len(runs_of(events)) == 21 - cancelled


def test_tasks_of_workers_that_were_killed_end_with_them(tmp_path: Path) -> None:
    path, release = tmp_path / "run.json", tmp_path / "release"
    with PreforkExecutor(2) as executor:
        with executor.record(path):
            names = [tmp_path / "one", tmp_path / "two"]
            held = [executor.submit(hold, str(name), str(release)) for name in names]
            eventually(lambda: all(name.exists() for name in names))
            executor.kill_workers()
            wait_for(held)
            executor.submit(work).result(BOUND)
    events = events_of(path)
    died = [run for run in runs_of(events) if run["args"]["outcome"] == "died"]
    assert len(died) == 2
    assert len(tasks_of(events)) == 3
    check_lanes(events)


def test_a_supervisors_death_is_the_end_of_the_spans_of_its_workers(tmp_path: Path) -> None:
    path, started = tmp_path / "run.json", tmp_path / "started"
    with PreforkExecutor(2) as executor:
        with executor.record(path):
            held = executor.submit(hold, str(started), str(tmp_path / "never"))
            eventually(started.exists)
            supervisor = executor._client._supervisors.current
            assert supervisor is not None
            assert supervisor.pid is not None
            os.kill(supervisor.pid, signal.SIGKILL)
            assert isinstance(held.exception(BOUND), WorkerDied)
            executor.submit(work).result(BOUND)
    events = events_of(path)
    assert outcomes_of(events) == {
        ("recorded_tasks.hold", "died"): 1,
        ("recorded_tasks.work", "returned"): 1,
    }
    check_lanes(events)


def test_the_trace_has_the_workers_ends_and_the_decisions_with_their_reasons(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.json"
    with PreforkExecutor(4, min_spare_workers=0, idle_timeout=None) as executor:
        executor.record(path)
        executor.submit(die).exception(BOUND)
        wait_for([executor.submit(work, 0.05) for _ in range(8)])
    events = events_of(path)
    workers = [event for event in events if event.get("cat") == "worker"]
    assert [w["args"].get("ended") for w in workers].count("was killed by SIGKILL") == 1
    assert [w["args"].get("ended") for w in workers].count(None) == len(workers) - 1
    decisions = [event for event in events if event.get("cat") == "decision"]
    started = sum(int(d["name"].removeprefix("start ")) for d in decisions if "start" in d["name"])
    assert started == len(workers)
    assert all(decision["args"]["reason"] for decision in decisions)
    lanes = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {"decisions", "worker 0"} <= lanes


def test_the_counters_follow_the_pool_and_its_backlog(tmp_path: Path) -> None:
    path, release = tmp_path / "run.json", tmp_path / "release"
    with PreforkExecutor(2) as executor:
        with executor.record(path):
            names = [tmp_path / f"{i}" for i in range(5)]
            held = [executor.submit(hold, str(name), str(release)) for name in names]
            eventually(lambda: sum(name.exists() for name in names) == 2)
            threading.Event().wait(3 * MIN_BUCKET_NS / 1e9)
            release.touch()
            wait_for(held)
    events = events_of(path)
    busy = [e["args"]["busy"] for e in events if e["name"] == "workers"]
    waiting = [e["args"]["waiting"] for e in events if e["name"] == "waiting tasks"]
    assert max(busy) == 2
    assert 3 in waiting
    assert waiting[-1] == 0


# --- the recording itself ---------------------------------------------------------------------


def test_a_pool_notes_spans_only_while_it_is_recorded(tmp_path: Path) -> None:
    with PreforkExecutor(1) as executor:
        executor.submit(work).result(BOUND)
        words = executor._client._channels.board.words
        assert words[sb.RECORDING] == 0
        with executor.record(tmp_path / "run.json"):
            assert words[sb.RECORDING] == 1
        assert words[sb.RECORDING] == 0
    assert tasks_of(events_of(tmp_path / "run.json")) == []


def test_a_recording_that_nobody_closes_is_written_at_the_executors_shutdown(
    tmp_path: Path,
) -> None:
    json_path, page_path = tmp_path / "run.json", tmp_path / "run.html"
    executor = PreforkExecutor(2)
    recording = executor.record(json_path, page_path)
    executor.submit(work).result(BOUND)
    assert list(tmp_path.iterdir()) == []
    executor.shutdown()
    assert len(runs_of(events_of(json_path))) == 1
    assert page_path.read_text().endswith("</html>\n")
    written = json_path.stat().st_mtime_ns
    recording.close()
    assert json_path.stat().st_mtime_ns == written
    assert sorted(os.listdir(tmp_path)) == ["run.html", "run.json"]


def test_a_recording_of_a_pool_that_never_started_is_empty_and_whole(tmp_path: Path) -> None:
    with PreforkExecutor(2) as executor, executor.record(tmp_path / "run.json"):
        pass
    assert tasks_of(events_of(tmp_path / "run.json")) == []


def test_a_pool_can_be_recorded_again_but_not_twice_at_a_time(tmp_path: Path) -> None:
    with PreforkExecutor(1) as executor:
        for _ in range(2):
            with executor.record(tmp_path / "run.json"):
                with pytest.raises(RuntimeError, match="close that recording first"):
                    executor.record(tmp_path / "other.json")
                executor.submit(work).result(BOUND)
            assert len(runs_of(events_of(tmp_path / "run.json"))) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.record(tmp_path / "run.json")


def test_no_more_tasks_are_kept_than_asked_for_and_the_files_say_so(tmp_path: Path) -> None:
    trace, page = tmp_path / "run.json", tmp_path / "run.html"
    with PreforkExecutor(2) as executor:
        with executor.record(trace, page, max_tasks=10):
            list(executor.map(short, range(50)))
    assert len(tasks_of(events_of(trace))) == 10
    rest = json.loads(trace.read_text())["otherData"]
    assert rest["tasks"] == 50
    assert rest["tasks_left_out"] == 40
    assert rest["outcomes"] == {"returned": 50}
    assert "40 tasks more than the recording keeps" in page.read_text()


def test_memory_is_bounded_while_tasks_wait_to_be_counted(tmp_path: Path) -> None:
    with PreforkExecutor(2) as executor:
        with executor.record(tmp_path / "run.json", max_tasks=5):
            recorder = executor._client._shared.recorder
            assert recorder is not None
            list(executor.map(short, range(2000)))
            assert len(recorder._rows) == 5
            # A future's callbacks come after its result.
            eventually(lambda: len(recorder._open) == 0)


def test_a_recording_keeps_no_result_alive(tmp_path: Path) -> None:
    import gc
    import weakref

    with PreforkExecutor(1) as executor, executor.record(tmp_path / "run.json"):
        gc.disable()
        try:
            future = executor.submit(work)
            future.result(BOUND)
            gone = weakref.ref(future)
            # The executor's thread may be about to leave the function that resolved it.
            executor.submit(work).result(BOUND)
            del future
            eventually(lambda: gone() is None)
        finally:
            gc.enable()


def test_a_signal_handler_may_close_a_recording_that_is_being_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "run.json", []
    with PreforkExecutor(1) as executor:
        made = executor.record(path)
        executor.submit(work, 1).result(BOUND)
        old = signal.signal(signal.SIGUSR1, lambda *_: made.close())
        write = recording._write

        def interrupted(*args: Any) -> None:
            signal.raise_signal(signal.SIGUSR1)
            written.append(args)
            write(*args)

        monkeypatch.setattr(recording, "_write", interrupted)
        try:
            made.close()
        finally:
            signal.signal(signal.SIGUSR1, old)
    assert len(written) == 1
    assert path.exists()


def test_a_fork_made_as_a_recording_is_written_writes_nothing_and_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, statuses = tmp_path / "run.json", []
    with PreforkExecutor(1) as executor:
        made = executor.record(path)
        executor.submit(work, 1).result(BOUND)
        write = recording._write

        def forked_meanwhile(*args: Any) -> None:
            # In another thread than the one that holds the lock, as a program's may be.
            thread = threading.Thread(target=lambda: statuses.append(closed_in_a_fork(made)))
            thread.start()
            thread.join(BOUND)
            write(*args)

        monkeypatch.setattr(recording, "_write", forked_meanwhile)
        made.close()
    assert statuses == [0]
    assert path.exists()


def closed_in_a_fork(made: Recording) -> int:
    """How a child ends that closes its copy: 0, or by a signal if it is stuck."""
    child = os.fork()
    if not child:
        signal.alarm(int(BOUND))
        made.close()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_fork_of_the_caller_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with PreforkExecutor(1) as executor:
        recording = executor.record(path)
        executor.submit(work).result(BOUND)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                recording.close()
                code = int(path.exists())
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(runs_of(events_of(path))) == 1


@pytest.mark.parametrize(
    ("paths", "error", "words"),
    [
        ((), TypeError, "needs a path"),
        ((7,), TypeError, r"paths\[0\] must be a path, not int"),
        (("run.txt",), ValueError, r"paths\[0\] must end in .json or .html"),
        (("run.json", "nowhere/run.html"), FileNotFoundError, r"paths\[1\]: there is no directory"),
        (("folder.json",), IsADirectoryError, r"paths\[0\]: .*folder.json is a directory"),
    ],
)
def test_a_bad_path_fails_at_the_call(
    paths: Any, error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.json").mkdir()
    with PreforkExecutor(1) as executor:
        with pytest.raises(error, match=words):
            executor.record(*paths)
        with pytest.raises(ValueError, match="max_tasks must be at least 1"):
            executor.record("run.json", max_tasks=0)
        with executor.record("run.json"):
            pass


def test_a_file_that_cannot_be_written_is_told_and_costs_no_other_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with PreforkExecutor(1) as executor:
        recording = executor.record(folder / "run.json", tmp_path / "run.html")
        folder.rmdir()
        with pytest.raises(FileNotFoundError):
            recording.close()
        assert (tmp_path / "run.html").exists()
        recording.close()


def test_at_shutdown_such_an_error_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    executor = PreforkExecutor(1)
    assert isinstance(executor.record(folder / "run.json"), Recording)
    executor.submit(work).result(BOUND)
    folder.rmdir()
    with caplog.at_level(logging.ERROR, "prefork_executor"):
        executor.shutdown()
    assert "a recording could not be written" in caplog.text


def test_an_old_file_is_replaced_in_one_step_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text("old")
    path.chmod(0o640)
    with PreforkExecutor(1) as executor:
        with executor.record(path):
            with path.open() as old:
                executor.submit(work).result(BOUND)
                assert path.read_text() == "old"
            assert old.closed
    assert len(runs_of(events_of(path))) == 1
    assert path.stat().st_mode & 0o777 == 0o640


def test_half_a_surrogate_pair_in_a_name_is_written_as_an_escape(tmp_path: Path) -> None:
    def odd() -> None: ...

    odd.__qualname__ = "a\ud800b"
    with PreforkExecutor(1, "fork") as executor:
        with executor.record(tmp_path / "run.json", tmp_path / "run.html"):
            executor.submit(odd).result(BOUND)
    assert any("a\ud800b" in event["name"] for event in events_of(tmp_path / "run.json"))
    assert r"a\ud800b" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_what_would_do_something_to_a_terminal_is_written_as_an_escape(tmp_path: Path) -> None:
    def odd() -> None: ...

    odd.__qualname__ = "a\x1b[31m\x9b\r\u202eb<i>"
    with PreforkExecutor(1, "fork") as executor:
        with executor.record(tmp_path / "run.json", tmp_path / "run.html"):
            executor.submit(odd).result(BOUND)
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert r"a\x1b[31m\x9b\r\u202eb&lt;i&gt;" in page
    for text in (page, (tmp_path / "run.json").read_text(encoding="utf-8")):
        assert all(char.isprintable() or char == "\n" for char in text)


def test_timeouts_are_told_from_deaths(tmp_path: Path) -> None:
    with PreforkExecutor(1, retries=1) as executor:
        with executor.record(tmp_path / "run.json"):
            future = executor.with_options(timeout=0.05).submit(work, BOUND)
            assert isinstance(future.exception(BOUND), TaskTimeout)
    runs = runs_of(events_of(tmp_path / "run.json"))
    assert [run["args"]["outcome"] for run in runs] == ["lost, and run again", "timed out"]
    assert [run["args"]["run"] for run in runs] == ["1 of 2", "2 of 2"]


# --- curves -------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(0, 40 * MIN_BUCKET_NS), st.integers(-3, 3)), max_size=30)


@settings(deadline=None)
@given(
    steps=steps,
    length=st.integers(40 * MIN_BUCKET_NS + 1, 60 * MIN_BUCKET_NS),
    most=st.integers(2, 64),
)
def test_a_curves_means_are_exact_however_coarse_it_has_become(
    steps: list[tuple[int, int]], length: int, most: int
) -> None:
    begin = 10**15
    curve = Curve(begin, most)
    for at, by in steps:
        curve.step(begin + at, by)
    points = curve.points(begin + length, most)
    assert len(points) <= most
    ends = [point.at for point in points[1:]] + [begin + length]
    for point, end in zip(points, ends, strict=True):
        area = sum(by * max(0, end - max(point.at, begin + at)) for at, by in steps)
        assert point.mean == pytest.approx(area / (end - point.at))
        assert point.level == sum(by for at, by in steps if begin + at < end)


def test_to_look_at_a_curve_coarsely_does_not_coarsen_it() -> None:
    curve = Curve(0)
    for i in range(100):
        curve.step(i * MIN_BUCKET_NS, 1)
    fine = curve.points(100 * MIN_BUCKET_NS)
    assert len(curve.points(100 * MIN_BUCKET_NS, 7)) <= 7
    assert curve.points(100 * MIN_BUCKET_NS) == fine


def test_a_worker_whose_slot_is_not_cleared_yet_has_died_once() -> None:
    recorder = Recorder(10, 2)
    recorder.died(Death(7, 9, 0, sb.BUSY, 1, 0, born=5, since=6, at=8), {})
    recorder.end([sb.Slot(0, 7, 5, 0, sb.BUSY, 1, 6, 0)], {})
    timeline = recorder.timeline("")
    assert [life.how for life in timeline.lives] == ["was killed by SIGKILL"]
    assert timeline.live.points(timeline.end)[-1].level == 0
