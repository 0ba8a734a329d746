"""The shell blocks of the pages run as a reader copies them."""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from fresh_environment import OURS, FreshPython, fresh_python, lacking
from namespaces import NAMESPACE, needs_namespace
from packaging.requirements import Requirement
from page_commands import ROOT, WORK_DONE, Block, blocks, prepare
from page_examples import examples
from waiting import BOUND, eventually

__all__ = ["fresh_python"]

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.kind == "sh"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
GROUPS = PROJECT["dependency-groups"]
CI = ROOT / ".ci" / "run"
COLLECT = {"PYTEST_ADDOPTS": "--collect-only -q -n 0"}
"""A block that runs tests finds them here, and all that they import. The suite itself runs them."""
BY_CI = "it takes minutes, and CI runs it as it stands"
NOT_RUN = {
    "survey_sources.py --compare": BY_CI,
    "-e '.[test]' && .venv/bin/python -m pytest": BY_CI,
    "benchmarks/performance.py": "it measures for more than half an hour",
}
"""Blocks that no test runs, by what each has in it, and why."""
IN_TESTS_OF_THEIR_OWN = [
    "prefork-executor map",
    "prefork-executor status",
    "prefork-executor top --web",
    "prefork-executor serve",
]
CONFIGURATION = {
    ("graceful-stop.md", "ini"): "systemd reads it",
    ("graceful-stop.md", "dockerfile"): "Docker reads it",
    ("graceful-stop.md", "yaml"): "Kubernetes reads it",
    ("pytest.md", "toml"): "coverage reads it",
}
"""Blocks that are files for another program: that program is the reader's."""
POOL = """
import os, time
from prefork_executor import PreforkExecutor

def hold():
    while not os.path.exists("end"):
        time.sleep(0.005)

if __name__ == "__main__":
    with PreforkExecutor(2) as executor:
        held = [executor.submit(hold) for _ in range(3)]
        while executor.stats().busy < 2:
            time.sleep(0.005)
        open("ready", "w").close()
"""
BESIDE_A_POOL = """
python pool.py &
until [ -e ready ]; do kill -0 $!; sleep 0.01; done
{}
touch end
wait $!
"""


def block_with(mark: str) -> Block:
    (found,) = [block for block in SHELL if mark in block.source]
    return found


NAMED = [block_with(mark) for mark in [*NOT_RUN, *IN_TESTS_OF_THEIR_OWN]]
ALL_OTHERS = [block for block in SHELL if block not in NAMED]


class Place:
    """Where a reader runs a block."""

    def __init__(self, block: Block, folder: Path, fresh_python: FreshPython) -> None:
        if missing := lacking(block.installs):
            pytest.skip(f"needs {', '.join(missing)}")
        self.folder = folder
        self._block = block
        self._environment = {**prepare(block, folder, fresh_python), **COLLECT}

    @contextlib.contextmanager
    def runs(
        self, *before: str, shell: str = "{}", port: int = 0
    ) -> Iterator[subprocess.Popen[str]]:
        """The block as it runs: in this program of bash, with this port for that of the page."""
        program = WORK_DONE + shell.replace("{}", self._block.source.replace("8000", str(port)))
        process = subprocess.Popen(
            [*before, "bash", "-c", program],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                for left in [*psutil.Process(process.pid).children(recursive=True), process]:
                    left.kill()
            process.communicate()

    def prints(self, *before: str, shell: str = "{}") -> str:
        """What the block prints. It must end well."""
        with self.runs(*before, shell=shell) as process:
            output, _ = process.communicate(timeout=BOUND)
        assert process.returncode == 0, output
        return output


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, fresh_python: FreshPython) -> Place:
    return Place(request.param, tmp_path / "place", fresh_python)


def on(*found: Block) -> pytest.MarkDecorator:
    """For a test of these blocks, each in its place."""
    return pytest.mark.parametrize("place", found, ids=[b.name for b in found], indirect=True)


@on(*ALL_OTHERS)
def test_a_block_runs_as_it_is_copied(place: Place) -> None:
    place.prints()


@on(block_with("prefork-executor map"))
def test_the_block_of_map_writes_the_words_of_each_line(place: Place) -> None:
    assert place.prints().splitlines()[-3:-1] == ["6", "4"]


@needs_namespace
@on(block_with("prefork-executor status"))
def test_the_commands_for_a_pool_find_the_only_one(place: Place) -> None:
    (place.folder / "pool.py").write_text(POOL)
    printed = place.prints(*NAMESPACE, shell=BESIDE_A_POOL)
    assert re.search(r"executor of process \d+: python pool.py", printed)
    assert "workers 2 of 2: 2 busy" in printed
    assert re.search(r"hold .*pool.py:\d+", printed)


@needs_namespace
@on(block_with("prefork-executor top --web"))
def test_the_page_of_a_pool_is_there_until_the_pool_ends(place: Place) -> None:
    (place.folder / "pool.py").write_text(POOL)
    with place.runs(*NAMESPACE, shell=BESIDE_A_POOL) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        with urllib.request.urlopen(address, timeout=BOUND) as page:
            assert page.status == 200
        (place.folder / "end").touch()
        assert process.wait(BOUND) == 0


@on(block_with("prefork-executor serve"))
def test_the_server_of_the_page_serves_at_the_addresses_of_the_command(place: Place) -> None:
    program = next(iter(examples(ROOT / "docs" / "raw.md")))
    (place.folder / "server.py").write_text(program.source)
    port = free_port()
    with place.runs(port=port) as process:
        eventually(lambda: answers(socket.AF_INET, ("127.0.0.1", port)), "it serves")
        with contextlib.chdir(place.folder):
            assert answers(socket.AF_UNIX, "server.sock")
        serve(process.pid).terminate()
        assert process.wait(BOUND) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def answers(family: socket.AddressFamily, address: object) -> bool:
    """Whether an echo server is there."""
    with socket.socket(family) as connection:
        connection.settimeout(BOUND)
        try:
            connection.connect(address)
            connection.sendall(b"hello\n")
            return connection.makefile("rb").readline() == b"hello\n"
        except OSError:
            return False


def serve(pid: int) -> psutil.Process:
    """The process of the command, which bash may have become."""
    shell = psutil.Process(pid)
    (found,) = [child for child in [shell, *shell.children()] if "serve" in child.cmdline()]
    return found


# --- the pages ------------------------------------------------------------------------------------


def test_every_block_is_run_or_is_listed_with_the_program_that_reads_it() -> None:
    others = {(b.page.name, b.kind) for b in BLOCKS if b.kind not in ("sh", "python", "text")}
    assert {name for name in others if not name[1].startswith("{")} == CONFIGURATION.keys()
    reasons = [*NOT_RUN.values(), *CONFIGURATION.values()]
    assert all(len(why.split()) > 2 for why in reasons)


@pytest.mark.skipif(not CI.exists(), reason="only a checkout has it")
def test_ci_runs_the_blocks_that_are_left_to_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    marks = re.findall(r"readme_command '([^']+)'", CI.read_text(encoding="utf-8"))
    run = {next(line for line in readme if mark in line) for mark in marks}
    left = {block_with(mark).source.strip() for mark, why in NOT_RUN.items() if why == BY_CI}
    assert run == left


@pytest.mark.parametrize("block", SHELL, ids=[block.name for block in SHELL])
def test_a_block_installs_what_the_project_has_and_sets_variables_that_it_reads(
    block: Block,
) -> None:
    ours = [line for line in map(Requirement, block.installs) if line.name == OURS]
    assert {extra for line in ours for extra in line.extras} <= EXTRAS.keys()
    assert block.groups <= GROUPS.keys()
    assert set(re.findall(r"\bPREFORK_EXECUTOR_\w+", block.source)) <= variables()


@functools.cache
def variables() -> set[str]:
    """The environment variables of our own that the package and the tests read."""
    files = [*ROOT.glob("prefork_executor/**/*.py"), *ROOT.glob("tests/**/*.py")]
    found = (re.findall(r'environ\S*"(PREFORK_EXECUTOR_\w+)"', f.read_text()) for f in files)
    return {name for names in found for name in names}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_has_no_stand_ins_in_what_a_reader_copies(page: Path) -> None:
    shell = "".join(block.source for block in blocks(page) if block.kind == "sh")
    assert not re.search(r"\b(PID|FILE|12345|my_\w+|package\.module)\b|<\w+>", shell)
