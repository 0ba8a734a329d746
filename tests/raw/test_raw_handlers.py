"""Raw mode: signal handlers that raise, or end the pool, at the worst moments."""

from __future__ import annotations

import pytest
from raw_programs import Run, run, run_to_end

__all__ = ["run"]

STRIKE = """
def strike_at(moment):
    '''Send ourselves SIGUSR1 as the pool comes to this line, counted from now.'''
    def trace(frame, event, _arg):
        nonlocal moment
        if frame.f_code.co_filename == __file__:
            return None
        moment -= event == "line"
        if not moment:
            sys.settrace(None)
            os.kill(os.getpid(), signal.SIGUSR1)
        return trace
    sys.settrace(trace)

def has_struck():
    pending, _ = sys.gettrace(), sys.settrace(None)
    return pending is None

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

os.register_at_fork(after_in_child=lambda: sys.settrace(None))
before = descriptors()
moment = 1
"""


def test_a_handler_may_raise_at_any_line_of_pf_whip_kids(run: Run) -> None:
    program = run_to_end(
        run,
        STRIKE
        + """
class Raised(Exception):
    pass
def throw(*_):
    raise Raised
signal.signal(signal.SIGUSR1, throw)
pf_init(max_servers=1)
while states() != ["IDLE"]:
    pf_whip_kids(rest)
while True:
    raw._pool._main._doorbell.ring()  # So that it does not wait.
    strike_at(moment)
    try:
        pf_whip_kids(rest)
    except Raised:
        pass
    if not has_struck():
        break
    if blocked := signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        say("blocked from line", moment, "on:", blocked)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    moment += 1
pf_done()
say("lines", moment > 50)
say("left open", descriptors() != before)
""",
    )
    assert program.lines == ["lines True", "left open False"]


@pytest.mark.parametrize(
    ("call", "handler"),
    [
        ("pf_done()", "pf_done(0)"),
        ("pf_reload()", "pf_done()"),
        ("pf_whip_kids(rest)", "pf_done()"),
        ("pf_whip_kids(rest)", "pf_done(0)"),
    ],
)
def test_a_handler_may_call_pf_done_at_any_line(run: Run, call: str, handler: str) -> None:
    program = run_to_end(
        run,
        STRIKE
        + f"""
signal.signal(signal.SIGUSR1, lambda *_: {handler})
heard = []
while True:
    pf_init(max_servers=1, data_hook_in_main=True, child_data_hook=lambda *yell: heard.append(yell),
            child_sigh={{"TERM": lambda *_: pf_kid_exit(0, "goodbye")}})
    while states() != ["IDLE"]:
        pf_whip_kids(rest)
    raw._pool._main._doorbell.ring()  # So that pf_whip_kids does not wait.
    strike_at(moment)
    try:
        {call}
    except SystemExit:
        pass
    if not has_struck():
        break
    if raw._pool.pids or len(heard) != moment:
        say("not seen off from line", moment, "on:", raw._pool.pids, len(heard))
        heard = [None] * moment
    moment += 1
pf_done()
say("lines", moment > 10)
say("left open", descriptors() != before)
""",
    )
    assert program.lines == ["lines True", "left open False"]


A_SIGNAL_AS_AN_END_IS_NOTICED = """
gate, opener = os.pipe()

def code():
    say("child")
    os.read(gate, 1)

def start_one():
    while states() != ["IDLE"]:
        pf_whip_kids(code)
    bell = raw._pool._main._doorbell
    def hush(real=bell.hush):
        rung = real()
        if signal.SIGCHLD in rung:
            try:
                os.kill(os.getpid(), signal.SIGUSR1)
            finally:
                real()  # As if it had come in time for us to hear it as well.
        return rung
    bell.hush = hush

pf_init(max_servers=1)
"""


def test_pf_done_from_a_handler_just_as_a_childs_end_is_noticed_does_not_wait_for_it(
    run: Run,
) -> None:
    run_to_end(
        run,
        A_SIGNAL_AS_AN_END_IS_NOTICED
        + """
signal.signal(signal.SIGUSR1, lambda *_: pf_done(6))
start_one()
os.write(opener, b"1")
whip(code)
""",
        status=6,
    )


def test_a_child_whose_end_a_handler_interrupts_by_raising_is_replaced(run: Run) -> None:
    program = run(
        A_SIGNAL_AS_AN_END_IS_NOTICED
        + """
def throw(*_):
    raise InterruptedError
signal.signal(signal.SIGUSR1, throw)
start_one()
os.write(opener, b"1")
try:
    whip(code)
except InterruptedError:
    say("interrupted")
whip(code)
"""
    )
    program.hear("interrupted")
    program.hear("child", 2)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("os.register_at_fork(after_in_child=strike)", id="starts"),
        pytest.param("Child.exit = lambda *args: (strike(), leave(*args))", id="ends"),
    ],
)
@pytest.mark.parametrize("throw", ["1 / 0", "sys.exit(3)"])
def test_a_handler_that_raises_as_a_child_starts_or_ends_runs_nothing_of_the_main_programs_end(
    run: Run, moment: str, throw: str
) -> None:
    program = run_to_end(
        run,
        f"""
        import atexit
        from prefork_executor._raw.child import Child
        def strike():
            os.kill(os.getpid(), signal.SIGUSR1)
        leave = Child.exit
        {moment}
        atexit.register(lambda: say("end of", os.getpid()))
        pf_init(max_servers=1, child_sigh={{"USR1": lambda *_: {throw}, "TERM": "IGNORE"}})
        try:
            pf_whip_kids(pf_kid_busy)
            pf_done()
        finally:
            say("finally of", os.getpid())
        """,
    )
    program.expects_complaints = True  # The child says why it ended.
    assert program.lines == [f"finally of {program.pid}", f"end of {program.pid}"]
