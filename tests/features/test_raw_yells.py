"""Raw mode: what children yell, whatever its size, and the hook that hears it."""

from __future__ import annotations

import itertools
import pickle
import signal

import psutil
import pytest
from raw_programs import KILL, TERM, Run, linux_only, run, run_to_end
from waiting import eventually

__all__ = ["run"]

IN_MAIN = pytest.mark.parametrize("in_main", [False, True], ids=["own process", "main process"])


@IN_MAIN
def test_the_hook_gets_the_object_or_the_bytes_and_the_exit_code(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        def hook(pid, data, exitcode):
            shown = data if exitcode is None else data.hex()
            say("heard", pid, type(data).__name__, shown, exitcode)
            if exitcode is not None:
                os.kill(main, signal.SIGUSR1)
        main = os.getpid()
        signal.signal(signal.SIGUSR1, lambda *_: pf_done(0))
        def code():
            pf_kid_yell({{"a": [1, 2]}}, thaw=True)
            pf_kid_yell({{"b": 3}}, True)
            pf_kid_exit(258, {{"c": 4}})
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(code)
        """
    )
    program.expects_complaints = True  # Its children end without having been busy.
    assert program.wait() == 0
    child = program.said("heard")[0].split()[0]
    frozen = pickle.dumps({"c": 4}, 5).hex()
    heard = [line for line in program.said("heard") if line.startswith(child)]
    assert heard == [
        f"{child} dict {{'a': [1, 2]}} None",
        f"{child} dict {{'b': 3}} None",
        f"{child} bytes {frozen} 2",
    ]


@IN_MAIN
def test_the_hook_runs_in_a_process_of_its_own_unless_told_otherwise(
    run: Run, in_main: bool
) -> None:
    program = run(
        f"""
        pf_init(max_servers=1, data_hook_in_main={in_main},
                child_data_hook=lambda *_: say("hook", os.getpid()))
        say("main", os.getpid())
        whip(lambda: (say("child", os.getpid()), pf_kid_yell(1), time.sleep(100)))
        """
    )
    hook, main, child = (int(program.hear(word)[0]) for word in ("hook", "main", "child"))
    assert (hook == main) is in_main
    assert set(program.children()) == {hook, child} - {main}


@pytest.mark.parametrize("hook", [None, "print"])
def test_a_yell_without_hook_or_without_data_has_no_effect(run: Run, hook: str | None) -> None:
    program = run(
        f"""
        pf_init(max_servers=1, child_data_hook={hook}, data_hook_in_main=True)
        whip(lambda: (say("yell", pf_kid_yell(1), pf_kid_yell(None)), time.sleep(100)))
        """
    )
    assert program.hear("yell") == ["False False" if hook is None else "True False"]


@IN_MAIN
def test_yells_of_any_size_from_many_children_at_once_never_garble(run: Run, in_main: bool) -> None:
    program = run_to_end(
        run,
        f"""
import zlib
SIZES = [1, 100, 32_000, 32_768, 33_000, 60_000, 65_536, 70_001, 1_000_000, 4_000_000]
def body(pid, size):
    return (str(pid).encode() * size)[:size]
def hook(pid, data, exitcode):
    size, checksum, content = data
    right = len(content) == size and zlib.crc32(content) == checksum and content == body(pid, size)
    with open("heard", "ab") as heard:
        heard.write(b"+" if right else b"-")
    if os.path.getsize("heard") == 8 * 2 * len(SIZES):
        os.kill(main, signal.SIGUSR1)
def code(gate):
    os.read(gate, 1)
    pf_kid_busy()
    for turn in range(2):
        for size in SIZES:
            content = body(os.getpid(), size)
            pf_kid_yell((size, zlib.crc32(content), content), True)
    pf_kid_idle()
    time.sleep(100)
main = os.getpid()
signal.signal(signal.SIGUSR1, lambda *_: pf_done())
gate, opener = os.pipe()
pf_init(max_servers=8, min_spare_servers=8, child_data_hook=hook, data_hook_in_main={in_main})
while len(states()) < 8:
    pf_whip_kids(code, (gate,))
os.write(opener, b"12345678")
whip(code, (gate,))
say("heard", open("heard").read())
""",
    )
    assert program.said("heard") == ["+" * 160]


@IN_MAIN
def test_a_hook_that_raises_is_logged_and_hears_the_next_yell(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        def hook(pid, data, exitcode):
            if data == "bad":
                raise ValueError("cannot hear that")
            say("heard", data)
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(lambda: ([pf_kid_yell(data, True) for data in ("bad", "good")], time.sleep(100)))
        """
    )
    program.expects_complaints = True
    assert program.hear("heard") == ["good"]
    program.signal(TERM)
    assert program.wait() == 0
    assert "child_data_hook failed for a yell of child" in program.complaints
    assert "ValueError: cannot hear that" in program.complaints


@pytest.mark.parametrize(
    ("death", "how"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(3)", "exited with status 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_hook_process_that_dies_is_logged_and_restarted_and_shuts_nothing_down(
    run: Run, death: str, how: str
) -> None:
    program = run(
        f"""
        def hook(pid, data, exitcode):
            say("heard", data, os.getpid())
            if data == "deadly":
                {death}
        def code():
            say("child", os.getpid())
            for data in ("first", "deadly", "next", "last"):
                pf_kid_yell(data, True)
            time.sleep(100)
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        pf_init(max_servers=1, child_data_hook=hook)
        whip(code)
        """
    )
    program.expects_complaints = True
    heard = [line.split() for line in program.hear("heard", 4)]
    assert [data for data, _ in heard] == ["first", "deadly", "next", "last"]
    first, second = heard[1][1], heard[2][1]
    assert first != second
    assert len(program.said("child")) == 1
    program.signal(TERM)
    assert program.wait() == 0
    assert "the data hook's process" in program.complaints
    assert how in program.complaints


BROKEN_HOOK_PROCESS = """
from prefork_executor._raw.data_hook import HookProcess

def live(self, leash, real=HookProcess._read_until_end_of):
    say("hook", time.monotonic())
    if not os.path.exists("healed"):
        {death}
    real(self, leash)
HookProcess._read_until_end_of = live
"""


def test_a_hook_process_that_dies_at_once_is_forked_again_later_and_later(run: Run) -> None:
    program = run(
        BROKEN_HOOK_PROCESS.format(death="os._exit(3)")
        + """
time.sleep = lambda *_: say("main process sleeps")
pf_init(max_servers=1, child_data_hook=print)
whip(serve, (listen(),))
"""
    )
    program.expects_complaints = True
    births = [float(time) for time in program.hear("hook", 4)]
    waited = [after - before for before, after in itertools.pairwise(births)]
    assert waited[0] >= 0.1
    assert waited[1] >= 0.2
    assert waited[2] >= 0.4
    with program.connect() as connection:
        assert program.echo(connection) == b"hello\n"
    assert program.said("main") == []
    assert "exited with status 3 before it took a yell" in program.complaints


def test_a_hook_process_is_forked_again_though_nothing_else_happens(run: Run) -> None:
    program = run(
        BROKEN_HOOK_PROCESS.format(death="os.kill(os.getpid(), 9)")
        + """
pf_init(max_servers=1, child_data_hook=lambda _pid, data, _code: say("heard", data))
whip(lambda: (pf_kid_yell("early", True), open("healed", "w").close(), time.sleep(100)))
"""
    )
    program.expects_complaints = True
    assert program.hear("heard") == ["early"]


@pytest.mark.parametrize(
    "fault",
    [
        BROKEN_HOOK_PROCESS.format(death="os._exit(3)"),
        BROKEN_HOOK_PROCESS.format(death="os._exit(0)"),
        BROKEN_HOOK_PROCESS.format(death="os.kill(os.getpid(), 9)"),
        """
from prefork_executor._raw.data_hook import HookProcess

def refuse(_self):
    raise BlockingIOError(11, "Resource temporarily unavailable")
HookProcess._fork = refuse
""",
    ],
    ids=["exits", "exits with 0", "is killed", "cannot be forked"],
)
def test_pf_done_gives_up_what_no_hook_process_lives_to_hear_and_says_how_much(
    run: Run, fault: str
) -> None:
    program = run(
        fault
        + """
signal.signal(signal.SIGTERM, lambda *_: pf_done(5))
pf_init(max_servers=2, min_spare_servers=2, child_data_hook=print)
whip(lambda: (pf_kid_yell(1), say("yelled"), time.sleep(100)))
"""
    )
    program.expects_complaints = True
    program.hear("yelled", 2)
    program.signal(TERM)
    assert program.wait() == 5
    assert "yells given up: 2" in program.complaints


def test_a_hook_process_prints_nothing_twice(run: Run) -> None:
    program = run_to_end(
        run,
        """
        print("once")  # Still in the buffer when the hook's process is forked.
        pf_init(max_servers=1, child_data_hook=print)
        pf_whip_kids(time.sleep, (100,))
        pf_done(0)
        """,
    )
    assert program.lines == ["once"]


def test_a_hook_process_killed_while_it_waits_loses_no_yell(run: Run) -> None:
    program = run(
        """
        def code(listener):
            while taken := pf_kid_accept(listener):
                pf_kid_yell(taken[0].recv(10).decode(), True)
                taken[0].close()
        pf_init(max_servers=2, min_spare_servers=1,
                child_data_hook=lambda _pid, data, _: say("heard", data, os.getpid()))
        whip(code, (listen(),))
        """
    )
    program.expects_complaints = True
    with program.connect() as connection:
        connection.sendall(b"one")
        hook = int(program.hear("heard")[0].split()[1])
    psutil.Process(hook).kill()
    with program.connect() as connection:
        connection.sendall(b"two")
        heard = program.hear("heard", 2)[1].split()
    assert heard[0] == "two"
    assert int(heard[1]) != hook


@IN_MAIN
def test_what_cannot_be_thawed_is_none_and_pf_error_has_the_bytes(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        class Frozen:
            def __reduce__(self):
                return int, ("no number",)
        def hook(pid, data, exitcode):
            say("heard", data, pf_error().hex() if data is None else repr(pf_error()))
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(lambda: (pf_kid_yell(Frozen(), True), pf_kid_yell("well", True), time.sleep(100)))
        """
    )
    bad, good = program.hear("heard", 2)
    frozen = bytes.fromhex(bad.removeprefix("None "))
    assert good == "well ''"
    with pytest.raises(ValueError, match="no number"):
        pickle.loads(frozen)


def test_lambdas_travel_and_what_cannot_be_pickled_raises_where_it_is_yelled(run: Run) -> None:
    program = run(
        """
        def code():
            pf_kid_yell(lambda x: x + 1, True)
            try:
                pf_kid_yell(socket.socket())
            except TypeError as error:
                say("error", error)
            time.sleep(100)
        pf_init(max_servers=1, child_data_hook=lambda _pid, data, _code: say("heard", data(41)))
        whip(code)
        """
    )
    assert program.hear("heard") == ["42"]
    assert "socket" in program.hear("error")[0]


def test_signals_are_open_while_a_hook_runs_in_the_main_process(run: Run) -> None:
    program = run(
        """
        noted = []
        signal.signal(signal.SIGUSR1, lambda *_: noted.append(1))
        def hook(pid, data, exitcode):
            say("hearing")
            while not noted:
                time.sleep(0.01)
            say("noted")
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main=True)
        whip(lambda: (pf_kid_yell(1), time.sleep(100)))
        """
    )
    program.hear("hearing")
    program.signal(signal.SIGUSR1)
    program.hear("noted")


@IN_MAIN
def test_pf_done_reads_what_is_left_and_runs_the_hook_for_it(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        def hook(pid, data, exitcode):
            if exitcode is None:
                say("heard", data)
            else:
                print("heard", len(data), exitcode)  # Buffered.
        def code():
            pf_kid_yell("early", True)
            say("child", os.getpid())
            time.sleep(100)
        signal.signal(signal.SIGINT, lambda *_: pf_done(5))
        pf_init(max_servers=3, min_spare_servers=3, child_data_hook=hook,
                data_hook_in_main={in_main},
                child_sigh={{"TERM": lambda *_: pf_kid_exit(9, "x" * 300_000, thaw=True)}})
        whip(code)
        """
    )
    program.hear("child", 3)
    program.hear("heard", 3)
    program.signal(signal.SIGINT)
    assert program.wait() == 5
    assert sorted(program.said("heard")) == ["300000 9"] * 3 + ["early"] * 3


def test_pf_done_gets_through_when_the_hook_dies_of_every_yell(run: Run) -> None:
    program = run(
        """
        def hook(pid, data, exitcode):
            say("heard", data)
            os.kill(os.getpid(), 9)
        signal.signal(signal.SIGINT, lambda *_: pf_done(5))
        pf_init(max_servers=2, min_spare_servers=2, child_data_hook=hook,
                child_sigh={"TERM": lambda *_: pf_kid_exit(0, "bye", True)})
        whip(lambda: (say("child"), time.sleep(100)))
        """
    )
    program.expects_complaints = True
    program.hear("child", 2)
    program.signal(signal.SIGINT)
    assert program.wait() == 5
    assert program.said("heard") == ["bye"] * 2


def test_pf_done_works_within_the_hook_in_the_main_process(run: Run) -> None:
    program = run(
        """
        def hook(pid, data, exitcode):
            say("heard", data)
            if data == "stop":
                pf_done(6)
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main=True)
        whip(lambda: ([pf_kid_yell(data, True) for data in ("go", "stop", "late")],
                      time.sleep(100)))
        """
    )
    assert program.wait() == 6
    assert program.said("heard")[:2] == ["go", "stop"]


@pytest.mark.parametrize(
    ("act", "raised"),
    [("pf_done(6)", "SystemExit(6)"), ("raise KeyboardInterrupt", "KeyboardInterrupt()")],
)
def test_what_a_hook_raises_during_pf_done_is_raised_when_all_are_seen_off(
    run: Run, act: str, raised: str
) -> None:
    program = run_to_end(
        run,
        f"""
        def hook(pid, data, exitcode):
            say("heard", data)
            {act}
        pf_init(max_servers=3, min_spare_servers=3, child_data_hook=hook, data_hook_in_main=True,
                child_sigh={{"TERM": lambda *_: pf_kid_exit(0, "bye", True)}})
        while states() != ["IDLE"] * 3:
            pf_whip_kids(rest)
        try:
            pf_done(0)
        except BaseException as error:
            say("raised", repr(error))
        say("children left", raw._pool.pids)
        """,
    )
    assert program.lines == [*["heard bye"] * 3, f"raised {raised}", "children left []"]


def test_pf_done_kills_children_that_yell_faster_than_the_hook_hears(run: Run) -> None:
    program = run(
        """
        def code():
            say("up")
            while True:
                pf_kid_yell("still here")
        signal.signal(signal.SIGTERM, lambda *_: pf_done(0))
        pf_init(max_servers=2, min_spare_servers=2, term_timeout=0.5,
                child_sigh={"TERM": "IGNORE"},
                child_data_hook=lambda *_: time.sleep(0.001), data_hook_in_main=True)
        whip(code)
        """
    )
    program.expects_complaints = True
    program.hear("up", 2)
    program.signal(TERM)
    assert program.wait() == 0
    assert program.complaints.count("did not leave in 0.5 s; killing it") == 2


@IN_MAIN
def test_pf_done_works_from_a_handler_while_the_hook_runs(run: Run, in_main: bool) -> None:
    program = run(
        f"""
        def hook(pid, data, exitcode):
            say("hearing", data)
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                pass
            say("heard", data)
        signal.signal(signal.SIGTERM, lambda *_: pf_done(4))
        pf_init(max_servers=1, child_data_hook=hook, data_hook_in_main={in_main})
        whip(lambda: ([pf_kid_yell(data, True) for data in (1, 2)], say("yelled"), time.sleep(100)))
        """
    )
    program.hear("yelled")
    program.hear("hearing")
    program.signal(TERM)
    assert program.wait() == 4
    # In the main process the handler interrupts the first hook, for good.
    assert program.said("heard") == (["2"] if in_main else ["1", "2"])


@linux_only
def test_the_hook_process_ends_with_a_killed_main_process(run: Run) -> None:
    program = run(
        """
        pf_init(max_servers=2, child_data_hook=lambda *_: (say("hearing"), time.sleep(100)))
        whip(lambda: (pf_kid_yell(1), time.sleep(100)))
        """
    )
    program.hear("hearing")
    eventually(lambda: len(program.children()) == 3)
    program.signal(KILL)
    assert program.wait() == -KILL
