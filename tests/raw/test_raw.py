"""Raw mode: setting up, forking, signals, marks. Every pool lives in a program of its own."""

from __future__ import annotations

import signal
from typing import Any

import psutil
import pytest
from raw_programs import FALLBACK, TERM, Run, run, run_to_end
from waiting import eventually

from prefork_executor._raw.options import Spares
from prefork_executor.raw import PreforkPool, pf_init, pf_kid_busy

__all__ = ["run"]


# --- options ----------


def test_an_unknown_option_is_a_type_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="pf_init has no option 'max_kids'; it has min_spare"):
        pf_init(max_kids=3)


@pytest.mark.parametrize(
    ("error", "options", "message"),
    [
        (ValueError, {"min_spare_servers": 0}, "min_spare_servers must be at least 1, not 0"),
        (ValueError, {"max_spare_servers": -1}, "max_spare_servers must be at least 1, not -1"),
        (ValueError, {"start_servers": -1}, "start_servers must be at least 0, not -1"),
        (ValueError, {"max_servers": 0}, "max_servers must be at least 1, not 0"),
        (TypeError, {"max_servers": "9"}, "max_servers must be an int, not str"),
        (TypeError, {"max_servers": None}, "max_servers must be an int, not NoneType"),
        (TypeError, {"start_servers": True}, "start_servers must be an int, not bool"),
        (
            ValueError,
            {"min_spare_servers": 5, "max_spare_servers": 4},
            r"min_spare_servers \(5\) is above max_spare_servers \(4\)",
        ),
        (
            ValueError,
            {"min_spare_servers": 5, "max_servers": 4},
            r"min_spare_servers \(5\) is above max_servers \(4\)",
        ),
        (
            ValueError,
            {"start_servers": 5, "max_servers": 4},
            r"start_servers \(5\) is above max_servers \(4\)",
        ),
        (TypeError, {"child_data_hook": 3}, "child_data_hook must be callable, not int"),
        (TypeError, {"child_sigh": ["HUP"]}, "child_sigh must be a mapping, not list"),
        (TypeError, {"child_sigh": {1: "DEFAULT"}}, "child_sigh: a string of signal names, not 1"),
        (ValueError, {"child_sigh": {"FOO": "IGNORE"}}, "child_sigh: there is no signal 'FOO'"),
        (ValueError, {"child_sigh": {"KILL": "IGNORE"}}, "child_sigh: KILL cannot be handled"),
        (TypeError, {"child_sigh": {"HUP": None}}, r"child_sigh\['HUP'\] must be a callable, "),
        (TypeError, {"child_sigh": {"HUP": "ignore"}}, r"child_sigh\['HUP'\] must be a callable, "),
        (ValueError, {"on_fork_failure": "die"}, 'on_fork_failure must be "retry" or "return"'),
        (ValueError, {"term_timeout": 0}, "term_timeout must be above 0 seconds and finite, not 0"),
        (TypeError, {"term_timeout": "1"}, "term_timeout must be a number of seconds, not str"),
    ],
)
def test_a_nonsensical_value_is_an_error_at_the_call_by_name(
    error: type[Exception], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(error, match=message):
        pf_init(**options)
    with pytest.raises(error, match=message):
        PreforkPool(**options)


def test_the_defaults_are_those_of_the_original() -> None:
    limits = Spares(None, None, None, 73).limits()
    assert (limits.min_spare, limits.max_spare, limits.start_workers) == (5, 10, 5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Spares(None, None, None, 3), (3, 3, 3)),
        (Spares(None, 2, None, 73), (2, 2, 5)),
        (Spares(20, None, None, 73), (20, 20, 5)),
    ],
)
def test_the_defaults_give_way_to_what_is_given(
    given: Spares, expected: tuple[int, int, int]
) -> None:
    limits = given.limits()
    assert (limits.min_spare, limits.max_spare, limits.start_workers) == expected


# --- pf_init ----------


def test_functions_before_pf_init_say_that_it_is_lacking() -> None:
    with pytest.raises(RuntimeError, match=r"pf_init\(\) has not been called"):
        pf_kid_busy()


def test_pf_init_makes_a_process_group_and_forks_nothing(run: Run) -> None:
    program = run_to_end(
        run,
        """
        os.register_at_fork(before=lambda: say("fork"))
        say("returned", pf_init(child_data_hook=print))
        say("group", os.getpgrp() == os.getpid())
        pf_done()
        """,
    )
    assert program.lines == ["returned True", "group True"]


def test_pf_init_is_false_when_the_system_refuses_and_pf_error_says_why(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import resource
        def descriptors():
            return len(os.listdir("/proc/self/fd"))
        before = descriptors()
        for more in range(5):
            resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + more, 4096))
            say("returned", pf_init())
            say("why", pf_error())
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
        say("left open", descriptors() - before)
        say("sigchld", signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)
        say("again", pf_init(), repr(pf_error()))
        """,
    )
    assert program.said("returned") == ["False"] * 5
    assert all("Too many open files" in why or FALLBACK for why in program.said("why"))
    assert all(program.said("why"))
    assert program.lines[-3:] == ["left open 0", "sigchld True", "again True ''"]


def test_a_second_pf_init_ends_the_children_of_the_first(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=2)
        pf_whip_kids(time.sleep, (100,))
        first = raw._pool
        say("children", len(first.pids))
        pf_init(max_servers=2)
        say("left", len(first.pids))
        pf_done()
        """,
    )
    assert program.lines == ["children 2", "left 0"]


# --- pf_whip_kids ----------


def test_it_forks_start_servers_first_and_then_what_idle_ones_lack(run: Run) -> None:
    program = run(
        """
        pf_init(min_spare_servers=2, max_spare_servers=4, start_servers=3, max_servers=6)
        listener = listen()
        whip(serve, (listener,))
        """
    )
    eventually(lambda: len(program.children()) == 3)
    connections = []
    for busy, children in [(1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (6, 6)]:
        connections.append(program.connect())
        assert program.echo(connections[-1]) == b"hello\n"
        assert len(connections) == busy
        eventually(lambda children=children: len(program.children()) == children)
    for connection in connections:
        connection.close()
    eventually(lambda: len(program.children()) == 4, "surplus idle children retire")
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"


def test_it_returns_1_when_a_child_is_busy_or_idle_or_yells_or_exits(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=1, child_data_hook=lambda *args: None)
        steps, orders = os.pipe()
        def code():
            doing = {b"b": pf_kid_busy, b"i": pf_kid_idle, b"y": lambda: pf_kid_yell(1)}
            while (order := os.read(steps, 1)) in doing:
                doing[order]()
        for order in b"biye":
            os.write(orders, bytes([order]))
            say(chr(order), pf_whip_kids(code))
        say("all", pf_whip_kids(code))
        pf_done()
        """,
    )
    assert program.lines == ["b 1", "i 1", "y 1", "e 1", "all 1"]


def test_it_returns_when_a_signal_was_handled_so_that_the_loop_can_look(run: Run) -> None:
    program = run(
        """
        noted = []
        signal.signal(signal.SIGUSR1, lambda *_: noted.append(1))
        pf_init(max_servers=1)
        while not noted:
            pf_whip_kids(lambda: (say("up"), time.sleep(100)))
        say("saw it")
        pf_done()
        """
    )
    program.hear("up")
    program.signal(signal.SIGUSR1)
    program.hear("saw")
    assert program.wait() == 0


def test_it_returns_0_once_pf_done_was_called(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=2)
        pf_whip_kids(time.sleep, (100,))
        pf_done()
        say(pf_whip_kids(time.sleep, (100,)), pf_whip_kids(time.sleep, (100,)), pf_kid_new())
        """,
    )
    assert program.lines == ["0 0 -1"]


STATUSES = """
real = os.waitpid
def waitpid(pid, options):
    found = real(pid, options)
    if found[0]:
        say("status", os.waitstatus_to_exitcode(found[1]))
    return found
os.waitpid = waitpid
pf_init(max_servers=1)
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("lambda: None", "0"),
        ("lambda: sys.exit(3)", "3"),
        ("lambda: sys.exit()", "0"),
        ("lambda: pf_kid_exit(4)", "4"),
        ("lambda: pf_kid_exit(257)", "1"),
        ("lambda: os.kill(os.getpid(), 15)", "-15"),
    ],
)
def test_a_child_exits_with_0_when_its_code_returns_or_as_it_says(
    run: Run, code: str, status: str
) -> None:
    program = run(STATUSES + f"whip({code})")
    program.expects_complaints = True  # Such children are not what a pool likes.
    assert program.hear("status")[0] == status


def test_a_child_whose_code_raises_prints_the_traceback_and_exits_with_1(run: Run) -> None:
    program = run(STATUSES + "whip(lambda: 1 / 0)")
    program.expects_complaints = True
    assert program.hear("status")[0] == "1"
    assert "ZeroDivisionError: division by zero" in program.complaints


def test_children_run_nothing_of_the_main_programs_end_and_print_nothing_twice(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import atexit
        atexit.register(lambda: say("end of", os.getpid()))
        print("once")  # Still in the buffer when the children are forked.
        pf_init(max_servers=3)
        pf_whip_kids(print, ("child",))
        while pf_whip_kids(print, ("child",)) and raw._pool.pids:
            pass
        pf_done(0)
        """,
    )
    program.expects_complaints = True  # Its children end before they have done anything.
    assert program.lines.count("once") == 1
    assert program.lines.count("child") >= 3
    assert program.said("end") == [f"of {program.pid}"]


def test_it_rejects_what_cannot_be_called_and_callers_that_are_children(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=1, start_servers=1)
        def code():
            for forbidden in (lambda: pf_whip_kids(code), pf_kid_new):
                try:
                    forbidden()
                except RuntimeError as error:
                    say(error)
            time.sleep(100)
        try:
            pf_whip_kids(3)
        except TypeError as error:
            say(error)
        signal.signal(signal.SIGALRM, lambda *_: pf_done(0))
        signal.setitimer(signal.ITIMER_REAL, 1)
        whip(code)
        """,
    )
    assert program.lines == [
        "pf_whip_kids needs a callable, not int",
        "pf_whip_kids was called outside the process that set up the pool",
        "pf_kid_new was called outside the process that set up the pool",
    ]


# --- a fork that fails ----------

FAILING_FORKS = """
real, refusals = os.fork, []
def fork():
    if len(refusals) < {failures}:
        refusals.append(time.monotonic())
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real()
os.fork = fork
"""


def test_a_failed_fork_is_retried_with_backoff_by_default(run: Run) -> None:
    program = run_to_end(
        run,
        FAILING_FORKS.format(failures=3)
        + """
pf_init(max_servers=1)
while not raw._pool.pids:
    assert pf_whip_kids(time.sleep, (100,)) == 1
refusals.append(time.monotonic())
for before, after in zip(refusals, refusals[1:]):
    say("waited", after - before)
say("child", len(raw._pool.pids))
pf_done()
""",
    )
    program.expects_complaints = True
    waited = [float(seconds) for seconds in program.said("waited")]
    assert waited[0] >= 0.1
    assert waited[1] >= 0.2
    assert waited[2] >= 0.4
    assert program.said("child") == ["1"]
    assert program.complaints.count("a worker could not be forked: [Errno 11] Resource") == 3


def test_pf_kid_new_waits_and_retries_as_well(run: Run) -> None:
    program = run_to_end(
        run,
        FAILING_FORKS.format(failures=2)
        + """
pf_init(max_servers=1)
pid = pf_kid_new()
if not pid:
    time.sleep(100)
say("forked", pid == raw._pool.pids[0], len(refusals))
pf_done()
""",
    )
    program.expects_complaints = True
    assert program.said("forked") == ["True 2"]


@pytest.mark.parametrize("call", ["pf_kid_new()", "pf_whip_kids(time.sleep, (100,))"])
def test_with_return_a_failed_fork_gives_the_originals_none(run: Run, call: str) -> None:
    program = run_to_end(
        run,
        FAILING_FORKS.format(failures=1)
        + f"""
pf_init(max_servers=2, on_fork_failure="return")
say("first", {call})
result = {call}
if result == 0:
    time.sleep(100)
say("second", result == 1 or result in raw._pool.pids)
pf_done()
""",
    )
    program.expects_complaints = True
    assert program.lines == ["first None", "second True"]


# --- pf_kid_new ----------


def test_pf_kid_new_forks_one_child_a_call_and_blocks_while_enough_are_idle(run: Run) -> None:
    program = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: pf_done())
        pf_init(min_spare_servers=2, max_spare_servers=2, start_servers=2, max_servers=9)
        listener = listen()
        while (pid := pf_kid_new()) > 0:
            say("pid", pid)
        if pid == 0:
            say("child", os.getpid())
            serve(listener)
            pf_kid_exit(0)
        say("last", pid)
        """
    )
    assert sorted(program.hear("pid", 2)) == sorted(program.hear("child", 2))
    assert {int(pid) for pid in program.said("pid")} == set(program.children())
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        program.hear("pid", 3)
    program.signal(TERM)
    assert program.wait() == 0
    assert program.said("last") == ["-1"]
    assert len(program.said("pid")) == 3


# --- signals ----------


def test_all_signals_are_blocked_during_the_fork(run: Run) -> None:
    program = run_to_end(
        run,
        """
        def missing():
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
            return signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - blocked
        os.register_at_fork(
            before=lambda: say("before", missing()),
            after_in_parent=lambda: say("parent", missing()),
            after_in_child=lambda: say("child", missing()),
        )
        pf_init(max_servers=1, child_data_hook=print)
        pf_whip_kids(time.sleep, (100,))
        pf_done()
        """,
    )
    for place in ("before", "parent", "child"):
        assert program.said(place) == ["set()"] * 2


def test_the_childs_handlers_stand_before_a_signal_can_reach_it(run: Run) -> None:
    program = run(
        """
        signal.signal(signal.SIGUSR1, lambda *_: say("the main program's handler", os.getpid()))
        signal.signal(signal.SIGUSR2, lambda *_: say("the main program's handler", os.getpid()))
        os.register_at_fork(after_in_child=lambda: [
            os.kill(os.getpid(), number) for number in (signal.SIGUSR1, signal.SIGUSR2)
        ])
        pf_init(max_servers=1, child_sigh={"USR1 SIGUSR2": lambda number, _: say("got", number)})
        whip(lambda: (say("code"), time.sleep(100)))
        """
    )
    program.hear("code")
    assert sorted(program.lines[:2]) == ["got 10", "got 12"]
    assert program.lines[2] == "code"


def test_the_old_mask_is_back_when_the_childs_code_runs_and_when_the_call_returns(
    run: Run,
) -> None:
    program = run_to_end(
        run,
        """
        def blocked():
            return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGWINCH})
        pf_init(max_servers=1)
        while not pf_whip_kids(lambda: (say("child", blocked()), pf_kid_busy(), time.sleep(100))):
            pass
        while states() != ["BUSY"]:
            pf_whip_kids(print)
        say("main", blocked())
        pf_done()
        say("end", blocked())
        """,
    )
    expected = [str([int(signal.SIGUSR2), int(signal.SIGWINCH)])]
    for place in ("child", "main", "end"):
        assert program.said(place) == expected


def test_the_mask_is_given_back_when_a_handler_raises(run: Run) -> None:
    program = run(
        """
        pf_init(max_servers=1)
        try:
            whip(lambda: (signal.signal(signal.SIGINT, signal.SIG_IGN), say("up"), time.sleep(100)))
        except KeyboardInterrupt:
            say("blocked", signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        pf_done(0)
        """
    )
    program.hear("up")
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert program.said("blocked") == ["set()"]


def test_sigterm_ends_a_child_by_default_whatever_the_main_program_handles(run: Run) -> None:
    program = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        pf_init(max_servers=1, child_sigh={"HUP": "IGNORE"})
        say("default", signal.getsignal(signal.SIGTERM))
        def code():
            say("hup", signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
            say("child", os.getpid())
            time.sleep(100)
        whip(code)
        """
    )
    child = int(program.hear("child")[0])
    psutil.Process(child).terminate()
    program.hear("child", 2)
    assert program.said("hup")[0] == "True"


# --- marks ----------


def test_busy_and_idle_are_idempotent_and_a_new_child_is_idle_at_once(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(max_servers=3, min_spare_servers=2, start_servers=2)
        go, gone = os.pipe()
        seen, see = os.pipe()
        def code():
            if os.read(go, 1):
                for mark in (pf_kid_busy, pf_kid_busy, pf_kid_idle, pf_kid_idle, pf_kid_busy):
                    mark()
                os.write(see, b"1")
            time.sleep(100)
        while states() != ["IDLE", "IDLE"]:
            pf_whip_kids(code)
        say("forked", len(raw._pool.pids))
        os.write(gone, b"1")
        os.read(seen, 1)
        say("states", *states())
        say("done", *sorted(slot.done for slot in raw._pool._main._board.read_all()))
        pf_done()
        """,
    )
    assert program.lines == ["forked 2", "states BUSY IDLE", "done 0 1"]


def test_marks_and_exits_have_no_effect_in_the_main_process(run: Run) -> None:
    program = run_to_end(
        run,
        """
        pf_init(child_data_hook=print)
        say(pf_kid_busy(), pf_kid_idle(), pf_kid_yell(1), pf_kid_exit(3), pf_kid_leaving())
        try:
            pf_kid_accept(None)
        except RuntimeError as error:
            say(error)
        pf_done()
        """,
    )
    assert program.lines == [
        "None None False None False",
        "pf_kid_accept works only in a child of the pool",
    ]


# --- the object form ----------


def test_a_pool_is_a_context_manager_and_one_program_may_have_two(run: Run) -> None:
    program = run_to_end(
        run,
        """
        before = sorted(os.listdir("/proc/self/fd"))
        with PreforkPool(max_servers=2) as first:
            first.whip_kids(time.sleep, (100,))
            say("children", len(first.pids))
        with PreforkPool(max_servers=1) as second:
            if second.kid_new() == 0:
                second.kid_busy()
                time.sleep(100)
            say("children", len(second.pids))
        say("left open", sorted(os.listdir("/proc/self/fd")) == before)
        """,
    )
    assert program.lines == ["children 2", "children 1", "left open True"]
