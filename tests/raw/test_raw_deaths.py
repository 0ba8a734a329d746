"""Raw mode: how pools, children and main processes end, and what must survive it."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from raw_programs import HUP, KILL, OBEYS_SIGNALS, TERM, Program, Run, linux_only, run, run_to_end
from waiting import eventually

__all__ = ["run"]

# --- pf_done ----------


def test_pf_done_gives_back_the_signal_handling_and_every_descriptor(run: Run) -> None:
    program = run_to_end(
        run,
        """
        def theirs(*_):
            say("their handler")
        def mine():
            old = signal.set_wakeup_fd(-1)
            signal.set_wakeup_fd(old, warn_on_full_buffer=False)
            return signal.getsignal(signal.SIGCHLD), old, sorted(os.listdir("/proc/self/fd"))
        end, other_end = socket.socketpair()
        other_end.setblocking(False)
        signal.signal(signal.SIGCHLD, theirs)
        signal.set_wakeup_fd(other_end.fileno(), warn_on_full_buffer=False)
        before = mine()
        pf_init(max_servers=2, child_data_hook=print)
        pf_whip_kids(time.sleep, (100,))
        say("changed", mine()[:2] != before[:2])
        pf_done()
        pf_done()
        say("given back", mine() == before)
        """,
    )
    assert program.lines == ["changed True", "given back True"]


def test_pf_done_waits_for_every_child_and_lets_it_finish(run: Run) -> None:
    program = run(
        OBEYS_SIGNALS
        + """
pf_init(max_servers=3, min_spare_servers=2)
whip(serve, (listen(),))
"""
    )
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        program.signal(TERM)
        eventually(lambda: len(program.children()) == 1, "the idle ones are gone")
        assert program.echo(connection, b"still here\n") == b"still here\n"
    assert program.wait() == 0


@pytest.mark.parametrize("delay", range(8))
def test_pf_done_from_a_handler_works_at_any_moment(run: Run, delay: int) -> None:
    # Children that come and go keep the main process at work; each delay hits it elsewhere.
    program = run(
        OBEYS_SIGNALS
        + """
pf_init(max_servers=4, min_spare_servers=2, child_data_hook=lambda *_: None)
say("initialised")
def code():
    pf_kid_busy()
    pf_kid_yell("x" * 40_000)
    pf_kid_idle()
whip(code)
"""
    )
    program.hear("initialised")
    time.sleep(delay * 0.02)
    program.signal(TERM)
    assert program.wait() == 0


def test_a_second_signal_during_pf_done_cuts_nothing_short(run: Run) -> None:
    program = run(
        """
        signal.signal(signal.SIGTERM, lambda *_: (say("asked"), pf_done(0)))
        def hook(pid, data, exitcode):
            say("heard", data)
        def leave(*_):
            say("told")
            os.read(gate, 1)
            pf_kid_exit(0, 1, True)
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main=True,
                child_sigh={"TERM": leave})
        gate, opener = os.pipe()
        os.register_at_fork(after_in_child=lambda: os.close(opener))
        say("gate", opener)
        whip(lambda: (say("up"), time.sleep(100)))
        """
    )
    program.hear("up")
    program.signal(TERM)
    program.hear("told")
    program.signal(TERM)
    with open(f"/proc/{program.pid}/fd/{program.said('gate')[0]}", "wb") as gate:
        gate.write(b"1")
    assert program.wait() == 0
    assert program.said("heard") == ["1"]


# --- children that do not obey ----------


ORIGINALS_WAY = """
def code(listener):
    while True:
        connection, _ = listener.accept()
        pf_kid_busy()
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(line)
        pf_kid_idle()
"""
"""The original's way to accept. Such a child never leaves by itself."""
STUBBORN = (
    ORIGINALS_WAY
    + """
pf_init(min_spare_servers=1, max_spare_servers=1, start_servers=1, max_servers=4,
        term_timeout=0.5, child_sigh={"TERM": "IGNORE"})
"""
)


def test_children_that_ignore_sigterm_count_towards_the_maximum_and_are_killed_in_the_end(
    run: Run,
) -> None:
    program = run(STUBBORN + "whip(code, (listen(),))")
    program.expects_complaints = True
    most = 0
    for _ in range(3):
        connections = [program.connect() for _ in range(4)]
        for connection in connections:
            assert program.echo(connection) == b"hello\n"
            most = max(most, len(program.children()))
        for connection in connections:
            connection.close()
        eventually(lambda: len(program.children()) == 1, "the surplus was killed")
    assert most == 4
    assert "did not leave in 0.5 s; killing it" in program.complaints


def test_pf_done_kills_what_ignores_sigterm_at_the_deadline(run: Run) -> None:
    program = run(OBEYS_SIGNALS + STUBBORN + "whip(code, (listen(),))")
    program.expects_complaints = True
    connection = program.connect()
    assert program.echo(connection) == b"hello\n"
    program.signal(TERM)
    assert program.wait() == 0
    connection.close()
    assert "did not leave in 0.5 s; killing it" in program.complaints


DEAF = """
import functools
from pathlib import Path

class Seconds:
    '''A number that sleeps in C as it is asked for its value: a signal ends that sleep,
    and is seen by the interpreter after the sleep of what remains.'''
    __index__ = staticmethod(functools.partial(ctypes.CDLL(None).sleep, 800))

def doze():
    say("dozes", os.getpid())
    time.sleep(Seconds())

def is_asleep(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "S"
"""


@pytest.mark.parametrize("does", ["pf_kid_busy()", "pf_kid_idle()"])
def test_a_child_that_missed_the_signal_of_pf_done_gets_another(run: Run, does: str) -> None:
    program = run(
        DEAF
        + f"""
pf_init(max_servers=1, term_timeout=800)
child = pf_kid_new()
if not child:
    {does}
    doze()
while not is_asleep(child):
    time.sleep(0.01)
pf_done(0)
"""
    )
    assert program.wait() == 0


def test_a_child_that_was_let_go_on_is_signalled_again_by_pf_done(run: Run) -> None:
    """Of two idle children, which have taken something and not said so yet, one is told to
    leave, and may go on. It misses what ``pf_done`` sends it."""
    program = run(
        DEAF
        + """
source, tap = os.pipe()
os.write(tap, b"xx")

def code():
    os.read(source, 1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # Not before it has taken.
    while not raw._pool._main.child._is_to_leave:
        time.sleep(0.01)
    doze()

signal.signal(signal.SIGUSR1, lambda *_: pf_done(0))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
pf_init(max_servers=2, start_servers=2, min_spare_servers=1, max_spare_servers=1, term_timeout=800)
whip(code)
"""
    )
    (pid,) = program.hear("dozes")
    eventually(lambda: psutil.Process(int(pid)).status() == psutil.STATUS_SLEEPING)
    program.signal(signal.SIGUSR1)
    assert program.wait() == 0


def test_a_stopped_child_is_killed_at_the_deadline(run: Run) -> None:
    program = run(
        OBEYS_SIGNALS + "pf_init(max_servers=2, term_timeout=0.5)\nwhip(serve, (listen(),))"
    )
    program.expects_complaints = True
    eventually(lambda: len(program.children()) == 2)
    psutil.Process(program.children()[0]).suspend()
    program.signal(TERM)
    assert program.wait() == 0


def test_pf_done_ends_the_others_when_the_system_forbids_to_signal_one(run: Run) -> None:
    program = run_to_end(
        run,
        """
        def kill(pid, number, real=os.kill):
            if pid == forbidden:
                raise PermissionError(1, "Operation not permitted")
            real(pid, number)
        pf_init(max_servers=2)
        listener = listen()
        while states() != ["IDLE", "IDLE"]:
            pf_whip_kids(serve, (listener,))
        forbidden = raw._pool.pids[0]
        os.kill = kill
        say("forbidden", forbidden)
        pf_done()
        say("left", raw._pool.pids)
        """,
    )
    program.expects_complaints = True
    assert program.said("left") == ["[]"]
    assert f"process {program.said('forbidden')[0]} could not be sent SIGTERM" in program.complaints


# --- crash loops ----------


@pytest.mark.parametrize("death", ["1 / 0", "os._exit(1)", "os.kill(os.getpid(), 9)", "None"])
def test_a_crash_loop_backs_off_and_says_so(run: Run, death: str) -> None:
    program = run_to_end(
        run,
        f"""
        forks = []
        os.register_at_fork(before=lambda: forks.append(1))
        signal.signal(signal.SIGALRM, lambda *_: pf_done())
        signal.setitimer(signal.ITIMER_REAL, 1.5)
        pf_init(max_servers=20)
        whip(lambda: {death})
        say("forks", len(forks))
        """,
    )
    program.expects_complaints = True
    assert int(program.said("forks")[0]) < 30
    assert "workers in a row died before they did anything" in program.complaints


def test_a_pool_recovers_from_a_crash_loop(run: Run) -> None:
    program = run(
        """
        pf_init(max_servers=3, min_spare_servers=2)
        def code(listener):
            if not os.path.exists("healed"):
                sys.exit(1)
            serve(listener)
        def heal():
            open("healed", "w").close()
        listener = listen()
        signal.signal(signal.SIGUSR1, lambda *_: heal())
        whip(code, (listener,))
        """
    )
    program.expects_complaints = True
    eventually(lambda: "died before they did anything" in program.complaints)
    program.signal(signal.SIGUSR1)
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
    eventually(lambda: len(program.children()) >= 2)


# --- other people's processes ----------


@linux_only
@pytest.mark.parametrize("hook", ["None", "print"])
def test_a_main_process_killed_by_sigkill_leaves_no_orphan(run: Run, hook: str) -> None:
    program = run(f"pf_init(max_servers=3, child_data_hook={hook})\nwhip(serve, (listen(),))")
    eventually(lambda: len(program.processes()) == (4 if hook == "None" else 5))
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        program.signal(KILL)
        assert program.wait() == -KILL


def test_children_that_the_program_forked_itself_are_left_alone(run: Run) -> None:
    program = run_to_end(
        run,
        """
        import subprocess
        pf_init(max_servers=2)
        quick = subprocess.Popen(["true"])
        slow = subprocess.Popen(["sleep", "100"])
        own = os.fork()
        if not own:
            pf_done(1)  # Not the pool's main process: no effect but the exit code.
            os._exit(6)
        for _ in range(20):
            pf_whip_kids(lambda: (pf_kid_busy(), pf_kid_exit(0)))
        pf_done()
        say("slow still runs", slow.poll() is None)
        say("own", os.waitstatus_to_exitcode(os.waitpid(own, 0)[1]))
        say("quick", quick.wait())
        slow.kill()
        say("slow", slow.wait())
        """,
    )
    assert program.lines == ["slow still runs True", "own 6", "quick 0", "slow -9"]


def test_deaths_are_noticed_even_if_sigchld_was_blocked_before(run: Run) -> None:
    program = run(
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        def code():
            say("blocked", signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            pf_kid_busy()
            rest()
        pf_init(max_servers=1, on_child_exit=lambda pid, *_: say("exit", pid))
        whip(code)
        """
    )
    for deaths in range(1, 4):
        assert program.hear("blocked", deaths)[-1] == "True", "the children have the old mask"
        (child,) = program.children()
        os.kill(child, KILL)
        program.hear("exit", deaths)
    program.signal(TERM)
    assert program.wait() == 0


# --- accepting ----------

SLOW_TO_SAY_SO = """
class Listener(socket.socket):
    '''Is retired in the window: after the connection is taken, before the child says so.'''
    def accept(self):
        taken = super().accept()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return taken
listener = Listener(fileno=listen().detach())
pf_init(max_servers=2)
"""


def test_no_connection_is_lost_when_the_child_that_took_it_is_retired(run: Run) -> None:
    program = run(SLOW_TO_SAY_SO + "whip(serve, (listener,))")
    for _ in range(10):
        with program.connect() as connection:
            assert program.echo(connection) == b"hello\n"


def test_the_originals_way_to_accept_loses_it(run: Run) -> None:
    program = run(SLOW_TO_SAY_SO + ORIGINALS_WAY + "whip(code, (listener,))")
    program.expects_complaints = True
    with program.connect() as connection:
        assert program.echo(connection) == b""


def test_a_child_told_to_leave_gets_none_and_may_say_goodbye(run: Run) -> None:
    program = run(
        """
        def code(listener):
            say("child", os.getpid())
            serve(listener)
            pf_kid_exit(0, "goodbye", True)
        pf_init(max_servers=1, child_data_hook=lambda *heard: say("heard", *heard))
        whip(code, (listen(),))
        """
    )
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
        child = int(program.hear("child")[0])
        psutil.Process(child).terminate()
        assert program.echo(connection) == b"hello\n"
    assert program.hear("heard") == [f"{child} goodbye 0"]


def test_a_child_that_says_goodbye_to_a_killed_main_process_complains_of_nothing(
    run: Run,
) -> None:
    program = run(
        """
        import ctypes
        def code(main):
            ctypes.CDLL(None).prctl(1, 0)  # The kernel would kill it before it could speak.
            say("child")
            while os.getppid() == main:
                time.sleep(0.01)
            pf_kid_exit(0, "goodbye")
        pf_init(max_servers=1, child_data_hook=say, data_hook_in_main=True)
        whip(code, (os.getpid(),))
        """
    )
    program.hear("child")
    program.signal(KILL)
    program.wait()


def test_the_handler_given_for_sigterm_is_called_when_the_child_leaves(run: Run) -> None:
    program = run(
        """
        def leave(number, _frame):
            say("left", number, state)
            sys.exit(3)
        def code(listener):
            global state
            state = "idle"
            while taken := pf_kid_accept(listener):
                state = "busy"
                with taken[0] as connection:
                    connection.sendall(connection.recv(100))
                state = "idle"
        pf_init(max_servers=1, child_sigh={"TERM": leave})
        whip(code, (listen(),))
        """
    )
    with program.connect() as connection:
        eventually(lambda: program.children())
        connection.sendall(b"h")
        assert connection.recv(1) == b"h"
    psutil.Process(program.children()[0]).terminate()
    assert program.hear("left") == ["15 idle"]


def test_a_child_that_ignores_sigterm_is_told_to_leave_all_the_same(run: Run) -> None:
    program = run(
        OBEYS_SIGNALS
        + """
pf_init(max_servers=2, child_sigh={"TERM": "IGNORE"})
whip(lambda listener: (serve(listener), say("left")), (listen(),))
"""
    )
    eventually(lambda: len(program.children()) == 2)
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
    program.signal(TERM)
    assert program.wait() == 0
    assert program.said("left") == ["", ""]


def test_a_wake_up_that_a_stopped_sibling_took_is_made_up_for(run: Run) -> None:
    program = run("pf_init(max_servers=2)\nwhip(serve, (listen(),))")
    for child in range(2):
        eventually(lambda: len(program.children()) == 2)
        stopped = psutil.Process(program.children()[child])
        stopped.suspend()
        with program.connect() as connection:
            assert program.echo(connection) == b"hello\n"
        stopped.resume()


# --- reloading ----------

GENERATIONS = (
    OBEYS_SIGNALS
    + """
generation = 0
def reload(*_):
    global generation
    generation += 1
    pf_reload()
    say("reloaded", generation)
signal.signal(signal.SIGHUP, reload)
def code(listener):
    if generation in {broken}:
        sys.exit(1)
    while taken := pf_kid_accept(listener):
        with taken[0] as connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(f"{{generation}} {{pf_kid_leaving()}}\\n".encode())
# None too many at the start: one that is told to leave may still answer, and says so.
pf_init(max_servers={most}, min_spare_servers=2, max_spare_servers={most}, start_servers=2)
whip(code, (listen(),))
"""
)


def answer(program: Program) -> bytes:
    with program.connect() as connection:
        return program.echo(connection)


@pytest.mark.parametrize("most", [10, 2])
def test_a_reload_replaces_the_children_and_cuts_nothing_short(run: Run, most: int) -> None:
    program = run(GENERATIONS.format(broken=(), most=most))
    with program.connect() as connection:
        assert program.echo(connection) == b"0 False\n"
        # While one serves, two wait.
        eventually(lambda: len(program.children()) == min(most, 3))
        before = set(program.children())
        program.signal(HUP)
        program.hear("reloaded")
        eventually(lambda: answer(program).startswith(b"1 "))
        assert program.echo(connection) == b"0 True\n"
    eventually(lambda: not before & set(program.children()))
    assert answer(program) == b"1 False\n"


def test_new_children_that_only_wait_for_a_connection_let_the_old_go(run: Run) -> None:
    patience = "from prefork_executor._raw import child\n"
    patience += "from prefork_executor._pool import rollover\n"
    patience += "rollover.SETTLED_AFTER = child.LOOK_AGAIN = 3600.0\n"
    program = run(patience + GENERATIONS.format(broken=(), most=4))
    eventually(lambda: len(program.children()) == 2)
    before = set(program.children())
    program.signal(HUP)
    program.hear("reloaded")
    eventually(lambda: len(program.children()) == 2 and not before & set(program.children()))


def test_a_reload_to_code_that_dies_does_not_cost_the_old_children(run: Run) -> None:
    program = run(GENERATIONS.format(broken=(1,), most=10))
    program.expects_complaints = True
    assert answer(program) == b"0 False\n"
    program.signal(HUP)
    program.hear("reloaded")
    eventually(lambda: "died before they did anything" in program.complaints)
    assert answer(program) == b"0 True\n"
    program.signal(HUP)
    eventually(lambda: answer(program) == b"2 False\n")
