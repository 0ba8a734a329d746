"""Children that are retired while they may hold something: what a server was ported as, line by
line, with ``accept`` and ``pf_kid_busy``, loses nothing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
from raw_programs import Run, run, run_to_end

__all__ = ["run"]

REQUESTS = int(os.environ.get("PREFORK_EXECUTOR_LOAD", "1600"))
PROGRAM = Path(__file__).parents[1] / "benchmarks" / "retirements.py"


def load_program() -> Any:
    spec = importlib.util.spec_from_file_location("retirements", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sigterm", ["default", "exits", "own"])
@pytest.mark.parametrize("variant", ["whip", "new"])
def test_no_connection_is_lost_as_children_retire(run: Run, variant: str, sigterm: str) -> None:
    arguments = ["--variant", variant, "--sigterm", sigterm, "--requests", str(REQUESTS)]
    assert_nothing_lost(run, arguments)


@pytest.mark.parametrize("kind", ["udp", "pipe", "socketserver", "wsgiref"])
def test_nor_a_datagram_nor_a_record_nor_what_a_library_accepts(run: Run, kind: str) -> None:
    assert_nothing_lost(run, ["--kind", kind, "--requests", str(REQUESTS)])


def assert_nothing_lost(run: Run, arguments: list[str]) -> None:
    program = run_to_end(
        run,
        f"""
        import runpy
        signal.alarm(0)
        sys.argv = [{str(PROGRAM)!r}, *{arguments!r}]
        runpy.run_path(sys.argv[0], run_name="__main__")
        """,
    )
    assert '"lost": 0,' in program.output


# --- the moments, one by one ------------------------------------------------------------------

MOMENTS = """
from prefork_executor._board import scoreboard as sb

def retire():
    '''As the main process does, from within the child, which cannot know when.'''
    kid = raw._pool._main.child
    kid._words[kid._base + sb.RETIRE] = 1
    os.kill(os.getpid(), signal.SIGTERM)

listener = listen()
client = socket.create_connection(listener.getsockname())
"""


@pytest.mark.parametrize(
    ("life", "said"),
    [
        # It has taken a connection, and not yet said so.
        ("taken = listener.accept(); retire(); pf_kid_busy(); say('a'); pf_kid_idle()", "a"),
        ("pf_kid_busy(); retire(); say('a'); pf_kid_idle()", "a"),
        ("taken = listener.accept(); retire(); say('a'); listener.accept()", "a"),
        ("retire(); say('a')", ""),
        ("taken = listener.accept(); pf_kid_busy(); pf_kid_idle(); retire(); say('a')", ""),
        ("os.kill(os.getpid(), 15); say('a')", ""),
        ("pf_kid_busy(); os.kill(os.getpid(), 15); say('a')", ""),
    ],
)
@pytest.mark.parametrize("handler", ["default", "exits", "own"])
def test_a_child_leaves_when_it_holds_nothing(run: Run, life: str, said: str, handler: str) -> None:
    leave = "lambda *_: (say('left'), pf_kid_exit(0))"
    program = run_to_end(
        run,
        MOMENTS
        + f"""
pf_init(max_servers=1{f', child_sigh={{"TERM": {leave}}}' if handler == "exits" else ""})
def live():
    if {handler == "own"}:
        signal.signal(signal.SIGTERM, {leave})
    {life}
    say("never")
pid = pf_kid_new()
if not pid:
    live()
    pf_kid_exit(0)
os.waitpid(pid, 0)
pf_done()
""",
    )
    heard = [line for line in program.lines if not line.startswith("port")]
    assert heard == [*said, *(["left"] if handler != "default" else [])]
