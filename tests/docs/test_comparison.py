"""The table of docs/comparison.md is what was measured, whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
MEASURED: dict[str, Any] = json.loads((DOCS / "figures" / "comparison.json").read_text("utf-8"))
POOLS = list(MEASURED["versions"])
PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")
ANSWERS = {"yes", "no", "by hand", "n/a"}


def rows() -> dict[str, list[str]]:
    """The table's cells by what stands at the left, without those of its head and groups."""
    lines = [line[2:-2].split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return {first: cells for first, *cells in lines[2:] if not first.startswith("**")}


def test_the_table_has_the_pools_that_were_measured_ours_first() -> None:
    head = next(line for line in PAGE.splitlines() if line.startswith("| "))
    assert re.findall(r"`(\w+)`", head) == POOLS
    assert POOLS[0] == "PreforkExecutor"


def test_the_table_has_the_features_that_were_measured_and_no_others() -> None:
    titles = [feature["title"] for feature in MEASURED["features"].values()]
    assert list(rows()) == titles


@pytest.mark.parametrize("name", MEASURED["features"])
def test_every_pool_has_its_cell_as_measured(name: str) -> None:
    feature = MEASURED["features"][name]
    assert list(feature["pools"]) == POOLS
    cells = rows()[feature["title"]]
    assert len(cells) == len(POOLS)
    for cell, found in zip(cells, feature["pools"].values(), strict=True):
        assert found["answer"] in ANSWERS
        assert found["how"]
        said = f"{found['answer']}: {found['detail']}" if found["detail"] else found["answer"]
        assert re.sub(r"\[\^\w+\]", "", cell) == said


def test_what_is_not_applicable_has_a_footnote_that_says_why() -> None:
    noted = dict(re.findall(r"^\[\^(\w+)\]: (.+)$", PAGE, re.MULTILINE))
    cells = [cell for row in rows().values() for cell in row if cell.startswith("n/a")]
    assert {cell.removeprefix("n/a[^").removesuffix("]") for cell in cells} == set(noted)
    why = {
        found["how"]
        for feature in MEASURED["features"].values()
        for found in feature["pools"].values()
        if found["answer"] == "n/a"
    }
    assert set(noted.values()) == why


def test_versions_are_named() -> None:
    for pool, version in MEASURED["versions"].items():
        assert f"{pool} {version}" in PAGE
