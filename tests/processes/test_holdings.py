"""What a process that has run the user's main module holds, and what of it those that are
forked from it must not share. Each main module runs in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import textwrap
from pathlib import Path

import pytest
from scripts import program_text, run_script

from prefork_executor._fork_safety.holdings import TELLS, Holdings, in_the_way

pytestmark = pytest.mark.skipif(not TELLS, reason="this system does not tell what a process holds")

PROGRAM = program_text("holdings")
"""Runs a main module as multiprocessing does in a new process, says what is in the way of a
fork, and lets two children that are forked then do something."""


def after(directory: Path, main: str, child: str = "") -> tuple[list[str], list[bool]]:
    sources = [textwrap.dedent(main), textwrap.dedent(child)]
    printed = run_script(directory, PROGRAM, json.dumps(sources))
    said, right = json.loads(printed.splitlines()[-1])
    return said, right


def need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")


# --- by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "phrases"),
    [
        (
            """
            import threading, time
            def heartbeat(): time.sleep(1000)
            threading.Thread(target=heartbeat, daemon=True, name="heart").start()
            """,
            ["the thread 'heart', which runs heartbeat of __main__"],
        ),
        (
            """
            import _thread, time
            _thread.start_new_thread(time.sleep, (1000,))
            """,
            ["threads that a library runs (OpenMP, for instance): 1"],
        ),
        (
            "table = open('/etc/passwd')",
            ["the file `table` of __main__ (descriptor *, /etc/passwd)"],
        ),
        (
            """
            import os
            class Reader:
                def __init__(self): self.files = {"a": open("/etc/passwd", "rb")}
            reader = Reader()
            """,
            ["the file in `reader` of __main__ (descriptor *, /etc/passwd)"],
        ),
        (
            "import os; number = os.open('/etc/passwd', os.O_RDONLY)",
            ["a file (descriptor *, /etc/passwd)"],
        ),
        (
            """
            import socket
            server = socket.create_server(("127.0.0.1", 0))
            """,
            ["the socket `server` of __main__ (descriptor *, at 127.0.0.1:*)"],
        ),
        (
            """
            import socket
            class Client:
                def __init__(self, address): self.socket = socket.create_connection(address)
            server = socket.create_server(("127.0.0.1", 0))
            client = Client(server.getsockname())
            """,
            [
                "the socket `server` of __main__ (descriptor *, at 127.0.0.1:*)",
                "the socket in `client` of __main__ (descriptor *, to 127.0.0.1:*)",
            ],
        ),
        (
            "import os; ends = os.pipe()",
            ["a pipe (descriptor *)", "a pipe (descriptor *)"],
        ),
        (
            "import select; poll = select.epoll()",
            ["the descriptor `poll` of __main__ (descriptor *, anon_inode:[eventpoll])"],
        ),
        (
            "import subprocess; child_process = subprocess.Popen(['sleep', '1000'])",
            ["the child process `child_process` of __main__ (*, sleep)"],
        ),
        (
            "import subprocess; child_process = subprocess.Popen(['true'])",  # Not waited for.
            ["the child process `child_process` of __main__ (*, true)"],
        ),
        (
            "import mmap; counter = mmap.mmap(-1, 4096)",
            ["the shared mapping `counter` of __main__ (/dev/zero (deleted))"],
        ),
        (
            "import signal; signal.setitimer(signal.ITIMER_REAL, 1000)",
            ["an interval timer (ITIMER_REAL, or alarm())"],
        ),
        (
            "import tempfile; scratch = tempfile.TemporaryDirectory()",
            [
                "the TemporaryDirectory `scratch` of __main__, which has something to do at the "
                "end of the process (TemporaryDirectory._cleanup)"
            ],
        ),
        (
            """
            import atexit
            def say_goodbye(): pass
            atexit.register(say_goodbye)
            """,
            ["the function say_goodbye, registered with atexit (the_main_module.py, line 4)"],
        ),
        (
            "import random; dice = random.Random(3)",
            ["the random generator `dice` of __main__ (Random)"],
        ),
        (
            "import numpy as np; dice = np.random.default_rng()",
            ["the random generator `dice` of __main__ (Generator)"],
        ),
        (
            """
            import numpy as np
            class Model:
                dice = np.random.RandomState(3)
            """,
            ["the random generator in `Model` of __main__ (RandomState)"],
        ),
        (
            "import os; log = f'log.{os.getpid()}'",
            ["the process id, which was asked for by os.getpid() (the_main_module.py, line 1)"],
        ),
        (
            "import uuid; name = uuid.uuid4()",
            ["random bytes of the system, taken for this process (the_main_module.py, line 1)"],
        ),
        (
            "from secrets import token_hex; name = token_hex()",
            ["random bytes of the system, taken for this process (the_main_module.py, line 1)"],
        ),
        (
            "from random import randrange; number = randrange(100)",
            ["random.randrange(), called for this process (the_main_module.py, line 1)"],
        ),
        (
            "import numpy.random; numpy.random.seed(3)",
            ["the random generator of numpy.random, which has been seeded or drawn from"],
        ),
        (
            "import numpy.random; number = numpy.random.rand()",
            ["the random generator of numpy.random, which has been seeded or drawn from"],
        ),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path: Path, main: str, phrases: list[str]) -> None:
    if "numpy" in main:
        need("numpy")
    said, _ = after(tmp_path, main)
    assert [_without_numbers(phrase) for phrase in said] == phrases


def _without_numbers(phrase: str) -> str:
    for before in ("(descriptor ", "127.0.0.1:", "of __main__ ("):
        head, found, rest = phrase.partition(before)
        if found and rest[:1].isdigit():
            phrase = f"{head}{found}*{rest.lstrip('0123456789')}"
    return phrase


def test_semaphores_and_shared_values_of_multiprocessing_are_in_the_way(tmp_path: Path) -> None:
    # Of the context "fork": others' semaphores have names, which somebody must remove.
    main = """
        import multiprocessing
        mp = multiprocessing.get_context("fork")
        lock, total = mp.Lock(), mp.Value("i")
    """
    said, _ = after(tmp_path, main)
    assert any("the semaphore in `lock` of __main__" in phrase for phrase in said)
    assert any("the shared mapping in `total` of __main__" in phrase for phrase in said)


# --- what is not in the way ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "main",
    [
        "import threading; t = threading.Thread(target=print); t.start(); t.join()",
        "file = open('/etc/passwd'); text = file.read(); file.close()",
        # Garbage that refers to itself goes only when it is collected.
        "file = open('/etc/passwd'); ring = [file]; ring.append(ring); del file, ring",
        "import os; nothing = os.open(os.devnull, os.O_RDWR); noise = os.open('/dev/urandom', 0)",
        "import subprocess; subprocess.run(['true'])",
        "import tempfile; name = tempfile.mkdtemp()",
        "import logging, sys; logging.basicConfig(stream=sys.stdout); logging.warning('now')",
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "from concurrent.futures import ThreadPoolExecutor; pool = ThreadPoolExecutor()",
        "import random; system = random.SystemRandom(); state = random.getstate()",
        "import numpy as np; data = np.random.default_rng(3).random(9)",
        "import threading; lock, local = threading.Lock(), threading.local()",
        "import ctypes, decimal, json, http.client, sqlite3, ssl, unittest, uuid, xml.dom.minidom",
    ],
)
def test_what_leaves_nothing_may_be_shared(tmp_path: Path, main: str) -> None:
    if "numpy" in main:
        need("numpy")
    assert after(tmp_path, main) == ([], [])


def test_what_a_library_registers_as_it_is_imported_may_be_shared(tmp_path: Path) -> None:
    """Of the user's own modules it may not."""
    source = "import atexit, os, weakref; atexit.register(print); os.getpid(); os.urandom(3)\n"
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "library.py").write_text(source)
    main = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(tmp_path / 'site-packages')!r}]\n"
    assert after(tmp_path, main + "import library") == ([], [])
    (tmp_path / "helper.py").write_text(source)
    said, _ = after(tmp_path, main + "import helper")
    assert ["function print" in said[0], "process id" in said[1], "bytes" in said[2]] == [True] * 3
    assert all(f"({tmp_path / 'helper.py'}, line 1)" in phrase for phrase in said)


def test_functions_taken_by_name_meanwhile_are_the_originals_afterwards(tmp_path: Path) -> None:
    main = """
        import pickle
        from os import getpid, urandom
        from random import random
    """
    child = """
        import os, random as module
        assert getpid is os.getpid and urandom is os.urandom and random is module.random
        assert pickle.loads(pickle.dumps(getpid)) is getpid
    """
    assert after(tmp_path, main, child) == ([], [True, True])


def test_what_was_held_before_is_not_in_the_way() -> None:
    with open("/etc/passwd") as _file:
        before = Holdings.now()
        os.close(os.dup(0))
        assert in_the_way(before) == []


def test_a_descriptor_that_leads_elsewhere_than_before_is_in_the_way(tmp_path: Path) -> None:
    with open("/etc/passwd") as file:
        before = Holdings.now()
        (tmp_path / "other").touch()
        with open(tmp_path / "other") as other:
            os.dup2(other.fileno(), file.fileno())
        (phrase,) = in_the_way(before)
    assert str(tmp_path / "other") in phrase


# --- libraries ----------------------------------------------------------------------------------

NUMPY = "a = np.ones((300, 300)); assert (a @ a)[0, 0] == 300"
FIT = """
    from sklearn.ensemble import HistGradientBoostingClassifier
    X = np.random.RandomState(0).rand(500, 4)
    model = HistGradientBoostingClassifier(max_iter=3).fit(X, X[:, 0] > 0.5)
    model.predict_proba(X)
"""
BOOST = """
    X = np.random.RandomState(0).rand(500, 4)
    model = lgb.train({"verbose": -1}, lgb.Dataset(X, X[:, 0]), 3)
    model.predict(X)
"""
GROUP = """
    pl.DataFrame({"a": range(50000)}).group_by(pl.col("a") % 5).agg(pl.len())
"""
TORCH = """
    t = torch.ones(500, 500)
    assert (t @ t)[0, 0] == 500 and (t * 2)[0, 0] == 2
"""
FRAME = """
    frame = pd.DataFrame({"a": range(10000)})
    assert frame.groupby(frame.a % 7).a.sum().sum() == 49995000
"""
ARROW = """
    table = pa.table({"a": list(range(10000))})
    assert pc.sum(table["a"]).as_py() == 49995000
    assert table.group_by("a").aggregate([("a", "sum")]).num_rows == 10000
"""
COMPILED = """
    @numba.njit("f8(f8[:])", parallel=True)
    def total(a):
        t = 0.0
        for i in numba.prange(len(a)):
            t += a[i]
        return t
"""


@pytest.mark.parametrize(
    ("modules", "main", "child"),
    [
        ("numpy", "import numpy as np", NUMPY),
        ("numpy", f"import numpy as np\n{NUMPY}", NUMPY),
        ("pandas", "import pandas as pd", FRAME),
        ("pandas", f"import pandas as pd\n{textwrap.dedent(FRAME)}", FRAME),
        ("pyarrow", "import pyarrow as pa, pyarrow.compute as pc", ARROW),
        ("sklearn", "import numpy as np, scipy.stats, sklearn.ensemble", FIT),
        ("lightgbm", "import numpy as np, lightgbm as lgb", BOOST),
        ("numba", "import numpy as np, numba", f"{textwrap.dedent(COMPILED)}\ntotal(np.ones(9))"),
        ("torch", "import torch", TORCH),
    ],
)
def test_libraries_that_survive_a_fork_may_be_shared_and_are_right(
    tmp_path: Path, modules: str, main: str, child: str
) -> None:
    need(modules)
    assert after(tmp_path, main, child) == ([], [True, True])


@pytest.mark.parametrize(
    ("module", "main", "what"),
    [
        ("sklearn", f"import numpy as np\n{textwrap.dedent(FIT)}", "OpenMP"),
        ("lightgbm", f"import numpy as np, lightgbm as lgb\n{textwrap.dedent(BOOST)}", "OpenMP"),
        ("torch", f"import torch\n{textwrap.dedent(TORCH)}", "OpenMP"),
        ("polars", f"import polars as pl\n{textwrap.dedent(GROUP)}", "polars-0"),
        ("numba", f"import numba\n{textwrap.dedent(COMPILED)}", "numba's threading layer"),
    ],
)
def test_libraries_whose_threads_have_begun_are_in_the_way(
    tmp_path: Path, module: str, main: str, what: str
) -> None:
    need(module)
    if what == "OpenMP" and len(os.sched_getaffinity(0)) == 1:
        pytest.skip("OpenMP starts no thread on one CPU")
    said, _ = after(tmp_path, main)
    assert what in "\n".join(said)


def test_numba_is_in_the_way_on_one_cpu_too(tmp_path: Path) -> None:
    """It has started no thread there, and ends a child that uses it all the same."""
    need("numba")
    one_cpu = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    said, _ = after(tmp_path, f"{one_cpu}\nimport numba\n{textwrap.dedent(COMPILED)}")
    assert "numba's threading layer" in "\n".join(said)
