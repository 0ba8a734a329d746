"""Raw mode: hooks that block or exit, threads in the main process, children that raise."""

from __future__ import annotations

import re

import pytest
from raw_programs import TERM, Run, linux_only, run, run_to_end
from waiting import eventually

from prefork_executor import status

__all__ = ["run"]

# --- hooks that block ----------

BLOCKED = """
signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
def hook(pid, data, exitcode):
    say("hook", os.getpid())
    time.sleep(800)
def code():
    for data in range(3):
        pf_kid_yell(data)
    say("yelled")
    while True:
        time.sleep(0.01)
pf_init(max_servers=1, child_data_hook=hook, {options})
"""


def test_a_hook_process_that_blocks_is_killed_at_its_deadline_and_the_log_says_so(
    run: Run,
) -> None:
    program = run(BLOCKED.format(options="hook_timeout=0.3") + "whip(code)")
    program.expects_complaints = True
    program.hear("yelled")
    (pid,) = program.hear("hook")
    program.signal(TERM)
    assert program.wait() == 0
    assert f"the data hook's process {pid} did not come to an end" in program.complaints
    assert "yells given up: 2" in program.complaints


GOODBYES = """
def hook(pid, data, exitcode):
    say("hook", data)
    while True:
        try:
            time.sleep(800)
        except {catches}:
            say("caught")
pf_init(max_servers=3, min_spare_servers=3, child_data_hook=hook, data_hook_in_main=True,
        child_sigh={{"TERM": lambda *_: pf_kid_exit(0, "bye", True)}}, {options})
signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
signal.signal(signal.SIGALRM, lambda *_: say("alarm"))
while states() != ["IDLE"] * 3:
    pf_whip_kids(rest)
"""


def test_a_hook_that_blocks_in_the_main_process_is_ended_at_its_deadline(run: Run) -> None:
    program = run_to_end(
        run,
        GOODBYES.format(catches="Exception", options="hook_timeout=0.2, term_timeout=0.2")
        + """
pf_done()
say("left", signal.getitimer(signal.ITIMER_REAL)[0] > 100)
signal.raise_signal(signal.SIGALRM)
""",
    )
    program.expects_complaints = True
    assert program.lines == ["hook bye", "left True", "alarm"]
    complaint = f"a hook did not return in the main process {program.pid}, and was ended"
    assert complaint in program.complaints
    assert re.search(r"yells given up: [0-2]", program.complaints)
    assert "time.sleep(800)" in program.complaints, "the log says where it blocked"


def test_a_second_sigterm_gives_up_a_hook_that_blocks_in_the_main_process(run: Run) -> None:
    program = run(
        GOODBYES.format(catches="Exception", options="hook_timeout=800")
        + """
say("ready")
whip(rest)
"""
    )
    program.expects_complaints = True
    program.hear("ready")
    program.signal(TERM)
    program.hear("hook")
    program.signal(TERM)
    assert program.wait() == 0


def test_a_second_sigterm_gives_up_a_hook_that_blocks(run: Run) -> None:
    program = run(BLOCKED.format(options="hook_timeout=800") + "whip(code)")
    program.expects_complaints = True
    program.hear("yelled")
    program.hear("hook")
    program.signal(TERM)
    eventually(lambda: len(program.children()) == 1, "its hook's process is left")
    assert program.process.poll() is None
    program.signal(TERM)
    assert program.wait() == 0
    assert "yells given up: 2" in program.complaints


# --- hooks that exit ----------


@pytest.mark.parametrize("in_main", [True, False])
def test_sys_exit_in_a_hook_ends_that_call_and_nothing_else(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        def hook(pid, data, exitcode):
            say("hook", data, os.getpid())
            sys.exit(data)
        def code():
            pf_kid_yell("one", True)
            pf_kid_yell("two", True)
            while pf_kid_wait() is not None:
                pass
            pf_kid_exit(0, "bye", True)
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(code)
        """
    )
    program.expects_complaints = True
    program.hear("hook", 2)
    program.signal(TERM)
    assert program.wait() == 0
    heard = [line.split() for line in program.said("hook")]
    assert [data for data, _ in heard] == ["one", "two", "bye"]
    assert len({pid for _, pid in heard}) == 1
    assert program.complaints.count("child_data_hook called sys.exit('") == 3


@pytest.mark.parametrize("in_main", [True, False])
@pytest.mark.parametrize("end", ["sys.exit(3)", "return", "raise ValueError"])
def test_a_process_that_a_hook_has_forked_ends_with_that_call(
    run: Run, in_main: bool, end: str
) -> None:
    program = run(
        f"""
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        def hook(pid, data, exitcode):
            if not os.fork():
                {end}
            _, status = os.wait()
            say("hook", data, "ended", os.WIFEXITED(status))
        def code():
            pf_kid_yell("one", True)
            pf_kid_yell("two", True)
            rest()
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(code)
        """
    )
    program.expects_complaints = "raise" in end
    assert program.hear("hook", 2) == ["one ended True", "two ended True"]
    program.signal(TERM)
    assert program.wait() == 0
    assert len(program.lines) == 2
    failed = "a process that child_data_hook has forked failed\nTraceback"
    assert program.complaints.count(failed) == (2 if "raise" in end else 0)


def test_sys_exit_of_a_signal_handler_that_runs_in_a_hook_ends_the_program(run: Run) -> None:
    program = run_to_end(
        run,
        """
        def leave(*_):
            sys.exit(7)
        signal.signal(signal.SIGUSR1, leave)
        pf_init(max_servers=1, data_hook_in_main=True,
                child_data_hook=lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
        try:
            whip(lambda: (pf_kid_yell(1), rest()))
        finally:
            pf_done()
        """,
        status=7,
    )
    assert program.lines == []


# --- threads ----------


def test_the_log_names_threads_of_the_main_process_once(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import threading
        def start(name):
            threading.Thread(target=time.sleep, args=(800,), name=name, daemon=True).start()
        start("early bird")
        pf_init(max_servers=2, min_spare_servers=2)
        start("late one")
        while states() != ["IDLE"] * 2:
            pf_whip_kids(rest)
        pf_done()
        """,
    )
    program.expects_complaints = True
    warning = "the main process of a raw pool has other threads: "
    found = [line for line in program.complaints.splitlines() if line.startswith(warning)]
    assert [line.removeprefix(warning).split(".")[0] for line in found] == [
        "early bird",
        "late one",
    ]


def test_a_pool_outside_the_main_thread_is_an_error_that_names_the_thread(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import threading
        def make():
            for call in (pf_init, PreforkPool):
                try:
                    call(max_servers=1)
                except RuntimeError as error:
                    say(error)
        thread = threading.Thread(target=make, name="side")
        thread.start()
        thread.join()
        """,
    )
    expected = "a raw pool can be made in the main thread only, and this is thread 'side'"
    assert [line.partition(":")[0] for line in program.lines] == [expected] * 2


# --- children that raise ----------


@pytest.mark.parametrize(
    "take",
    [
        "listener.accept()",
        "(listener.accept(), pf_kid_busy())",
        "pf_kid_accept(listener)",
        "(pf_kid_wait([listener]), pf_kid_take(listener.accept))",
    ],
)
def test_a_child_that_raises_as_it_serves_is_no_crash_at_start(run: Run, take: str) -> None:
    program = run(
        f"""
        def code(listener):
            while True:
                {take}
                raise LookupError("no such page")
        pf_init(max_servers=2)
        whip(code, (listen(),))
        """
    )
    program.expects_complaints = True
    for _ in range(12):
        with program.connect() as connection:
            assert connection.recv(1) == b""
    assert "died before they did anything" not in program.complaints
    raised = r"child \d+ was ended by an exception while it served\nTraceback"
    eventually(lambda: len(re.findall(raised, program.complaints)) == 12)
    assert program.complaints.count("\nLookupError: no such page") == 12


@linux_only
def test_a_child_that_raises_as_it_serves_counts_as_a_death_at_work(run: Run) -> None:
    program = run(
        """
        def code(listener):
            while pf_kid_accept(listener):
                raise LookupError("no such page")
        pf_init(max_servers=2)
        whip(code, (listen(),))
        """
    )
    program.expects_complaints = True
    with program.connect() as connection:
        assert connection.recv(1) == b""
    eventually(lambda: status.read(program.pid).deaths == 1)
    assert status.read(program.pid).other_deaths == 0


def test_a_child_that_raises_before_it_serves_is_a_crash_at_start(run: Run) -> None:
    program = run("pf_init(max_servers=2)\nwhip(lambda: 1 / 0)")
    program.expects_complaints = True
    eventually(lambda: "died before they did anything" in program.complaints)
    assert "was ended by an exception before it had served\nTraceback" in program.complaints


# --- processes that children fork ----------


@pytest.mark.parametrize(
    "end", ["sys.exit(3)", "return", "int('x')", "pf_kid_exit(3)", "pf_kid_idle(); os._exit(3)"]
)
def test_a_process_that_a_busy_child_has_forked_says_nothing_for_the_child(
    run: Run, end: str
) -> None:
    program = run(
        f"""
        def fork_once():
            pf_kid_busy()
            if not os.fork():
                {end}
            os.wait()
            say("states", *states())
            rest()
        pf_init(max_servers=1)
        whip(fork_once)
        """
    )
    program.expects_complaints = "int" in end
    assert program.hear("states") == ["BUSY"]


def test_a_process_that_a_child_has_forked_takes_no_work(run: Run) -> None:
    program = run(
        """
        def fork_once():
            if not os.fork():
                try:
                    pf_kid_wait()
                except RuntimeError as error:
                    say("error", error)
                    os._exit(0)
            rest()
        pf_init(max_servers=1)
        whip(fork_once)
        """
    )
    assert program.hear("error") == ["pf_kid_wait works only in a child of the pool"]
