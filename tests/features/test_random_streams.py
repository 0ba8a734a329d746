"""No two workers draw the same random numbers, and no worker and its replacement do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scripts import program_text, run_script

from prefork_executor._fork_safety import random_streams

DRAWS = """
    import sys
    {imports}

    from prefork_executor import PreforkExecutor

    def draw(_):
        return {draws}

    if __name__ == "__main__":
        {before}
        options = {{"max_tasks_per_child": 1, "min_spare_workers": 2}}
        with PreforkExecutor(2, sys.argv[1], **options) as executor:
            drawn = list(executor.map(draw, range(6)))
        print([len(set(column)) for column in zip(*drawn)])
"""
"""Each of six tasks has a worker of its own: what its generators give first."""


def drawn(directory: Path, start_method: str, imports: str, draws: str, before: str) -> str:
    source = DRAWS.format(imports=imports, draws=draws, before=before)
    return run_script(directory, source, start_method)


def test_every_worker_draws_numbers_of_its_own(tmp_path: Path, start_method: str) -> None:
    imports = "import random, numpy.random"
    draws = "random.random(), numpy.random.randint(10**9)"
    assert drawn(tmp_path, start_method, imports, draws, "pass") == "[6, 6]\n"


def test_even_if_the_caller_has_drawn_and_set_seeds(tmp_path: Path) -> None:
    """The other half of a pair of normal numbers waits for whoever draws the next."""
    imports = "import random, numpy.random"
    draws = "random.random(), numpy.random.standard_normal(), numpy.random.randint(10**9)"
    before = "random.seed(3); numpy.random.seed(3); numpy.random.standard_normal()"
    assert drawn(tmp_path, "fork", imports, draws, before) == "[6, 6, 6]\n"


@pytest.mark.parametrize(
    ("imports", "draw", "before"),
    [
        (
            "import numpy.random",
            "numpy.random.rand()",
            "random.set_bit_generator(numpy.random.PCG64(3))",
        ),
        ("import scipy.stats", "scipy.stats.norm.rvs()", "stats.norm.rvs()"),
        ("import torch", "torch.rand(1).item()", "manual_seed(3)"),
        ("import polars", "polars.Series(range(10**6)).sample(1)[0]", "set_random_seed(3)"),
        ("import faker.generator", "faker.generator.random.random()", "generator.random.random()"),
    ],
)
def test_so_do_other_generators_with_global_state(
    tmp_path: Path, imports: str, draw: str, before: str
) -> None:
    module = imports.split()[1].partition(".")[0]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    assert drawn(tmp_path, "fork", imports, f"{draw},", f"{module}.{before}") == "[6]\n"


def test_an_initializer_that_sets_a_seed_has_the_last_word(
    tmp_path: Path, start_method: str
) -> None:
    source = program_text("own_seed")
    assert run_script(tmp_path, source, start_method) == "True\n"


def test_the_children_of_a_raw_pool_draw_numbers_of_their_own(tmp_path: Path) -> None:
    source = program_text("raw_random_streams")
    assert run_script(tmp_path, source) == "4\n"


def test_who_has_not_loaded_a_library_does_not_load_it_for_that(tmp_path: Path) -> None:
    source = """
        import sys

        from prefork_executor import PreforkExecutor

        def is_loaded():
            return any(name in sys.modules for name in ("numpy", "torch", "polars", "faker"))

        if __name__ == "__main__":
            with PreforkExecutor(1, "spawn") as executor:
                print(executor.submit(is_loaded).result())
    """
    assert run_script(tmp_path, source) == "False\n"


def test_a_generator_that_fails_does_not_keep_a_worker_from_its_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_module: object) -> None:
        raise ValueError("another version")

    stream = random_streams.Stream("numpy.random", fail)
    monkeypatch.setattr(random_streams, "_STREAMS", (stream, *random_streams._STREAMS))
    before = np.random.get_state()[1]
    random_streams.renew()
    assert not np.array_equal(np.random.get_state()[1], before)
    assert "generator of numpy.random" in caplog.text
