"""The page of a recording, as its text and in a browser, which is left out if there is none."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browsers import browse, in_browser
from recorded_tasks import die, fail, short, work
from waiting import BOUND

from prefork_executor import PreforkExecutor, ScalingDecision
from prefork_executor._timeline.html_page import page
from prefork_executor._timeline.model import Curve, Life, Run, TaskRow, Timeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SECOND = 1_000_000_000


def made(workers: int, seconds: int, tasks: int = 100, name: str = "app.task") -> Timeline:
    """A run in which each worker is started in its turn, and tasks come evenly."""
    begin, end = 10**15, 10**15 + seconds * SECOND
    live, busy, waiting = (Curve(begin) for _ in range(3))
    rows, lives = [], []
    for i in range(workers):
        born = begin + seconds * SECOND * i // (2 * workers)
        live.step(born, 1)
        lives.append(Life(i, 100 + i, born, end, ""))
    for i in range(tasks):
        at = begin + seconds * SECOND * i // tasks
        began, ended = at + SECOND // 100, min(end, at + SECOND // 10)
        rows.append(TaskRow(name, at, ended, "returned", "", (Run(i, began, ended, 1, 0),)))
        waiting.step(at, 1)
        waiting.step(began, -1)
        busy.step(began, 1)
        busy.step(ended, -1)
    decisions = [
        ScalingDecision(1e9 + seconds * i / (2 * workers), i, 1, 0, f"{i} tasks <waiting> & more")
        for i in range(workers)
    ]
    return Timeline(
        begin, end, 1e9, workers, rows, lives, decisions, {"returned": tasks},
        live, busy, waiting, 0, 0, 0, "1.2.3",
    )  # fmt: skip


def svg_of(text: str) -> ET.Element:
    """The plot, which is well-formed by itself."""
    match = re.search(r"<svg.*</svg>", text, re.DOTALL)
    assert match is not None
    return ET.fromstring(match[0])


def points_of(svg: ET.Element, name: str) -> list[tuple[float, float]]:
    """Where a curve's steps are, in the units of the plot."""
    (path,) = svg.findall(f"path[@class='{name}']")
    return [(float(x), float(y)) for x, y in re.findall(r"H([\d.]+)V([\d.]+)", path.get("d", ""))]


@pytest.mark.parametrize(("workers", "seconds"), [(2, 3), (200, 3), (2, 3 * 3600), (200, 3 * 3600)])
def test_the_plot_fits_pools_and_runs_of_every_size(workers: int, seconds: int) -> None:
    text = "".join(page(made(workers, seconds, tasks=2000)))
    assert len(text) < 300_000
    svg = svg_of(text)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for name in ("live", "busy", "wait"):
        points = points_of(svg, name)
        assert len(points) > 2
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        assert points == sorted(points, key=lambda point: point[0])
    # From none at the bottom to the maximum at the top.
    heights = [y for _, y in points_of(svg, "live")]
    assert min(heights) == float(svg.findall("line[@class='most']")[0].get("y1", ""))
    assert max(heights) > min(heights)


def test_labels_of_one_axis_do_not_run_into_each_other() -> None:
    for seconds in (1, 3, 50, 119, 121, 3000, 3 * 3600, 50 * 3600):
        svg = svg_of("".join(page(made(2, seconds))))
        labels = [text for text in svg.findall("text") if text.get("text-anchor") == "middle"]
        by_axis: dict[str, list[tuple[float, float]]] = {}
        for label in labels:
            half = 4 * len(label.text or "")
            x = float(label.get("x", ""))
            by_axis.setdefault(label.get("y", ""), []).append((x - half, x + half))
        assert len(by_axis) == 2
        for spans in by_axis.values():
            assert len(spans) > 1
            assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


class Links(HTMLParser):
    """Whatever a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed"):
            self.found.append((tag, ""))
        self.found += [(tag, name) for name, _ in attrs if name in ("src", "href", "srcset")]
        self.found += [(tag, name) for name, _ in attrs if name.startswith("on")]


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = "".join(page(made(2, 3)))
    links = Links()
    links.feed(text)
    assert links.found == []
    assert "url(" not in text
    assert "@import" not in text


@pytest.mark.parametrize(("workers", "told"), [(1, "1 worker. "), (2, "2 workers. ")])
def test_the_page_tells_the_maximum_of_workers(workers: int, told: str) -> None:
    assert f", at most {told}" in "".join(page(made(workers, 3)))


def test_the_page_tells_how_much_it_leaves_out() -> None:
    timeline = dataclasses.replace(made(1, 3), left_out=1, lives_left_out=2)
    text = "".join(page(timeline))
    assert "include 1 task more than the recording keeps" in text
    assert "include 2 workers more than the recording keeps" in text


def test_names_and_reasons_are_text_and_no_markup() -> None:
    text = "".join(page(made(2, 3, name="<script>alert(1)</script>")))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    marks = svg_of(text).findall("path/title")
    assert "0 tasks <waiting> & more" in (marks[0].text or "")


@in_browser
def test_a_browser_shows_a_real_run_and_complains_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with PreforkExecutor(4) as executor:
        with executor.record(path):
            futures = [executor.submit(work, 0.02) for _ in range(40)]
            futures += [executor.submit(fail), executor.submit(die)]
            list(executor.map(short, range(200)))
            for future in futures:
                future.exception(BOUND)
    shown, complaints = browse(path.as_uri(), tmp_path / "profile", "--dump-dom")
    assert complaints == ""
    assert "<h1>Pool size against backlog</h1>" in shown
    for words in ("recorded_tasks.work", "240 returned", "1 raised", "1 died", "tasks waiting"):
        assert words in shown
    assert re.search(r"<dt>tasks</dt><dd>242</dd>", shown)
    svg = svg_of(shown)
    assert max(y for _, y in points_of(svg, "busy")) > min(y for _, y in points_of(svg, "busy"))
    assert svg.findall("path/title")


@in_browser
def test_the_browser_would_complain_of_a_script(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    text = "".join(page(made(2, 3)))
    path.write_text(text.replace("</body>", "<script>document.title = 'ran'</script></body>"))
    shown, complaints = browse(path.as_uri(), tmp_path / "profile", "--dump-dom")
    assert "Content Security Policy" in complaints
    assert "<title>ran" not in shown


@in_browser
@pytest.mark.parametrize("scheme", ["0", "1"])
def test_the_plot_is_painted_in_light_and_in_dark(scheme: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "run.html", tmp_path / "run.png"
    path.write_text("".join(page(made(200, 3 * 3600))))
    browse(
        *(path.as_uri(), tmp_path / "profile", f"--screenshot={picture}", "--window-size=1100,900"),
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    assert len(picture.read_bytes()) > 20_000  # An empty one of that size has a tenth of it.
