"""The Python examples of the pages, as programs to run.

Each block of Python is a program of its own, unless a comment before it says otherwise:

``<!-- given: ... -->``        what stands there is run before it: stand-ins for what is
                               the reader's own
``<!-- continued -->``         it goes on where the block before it has ended
``<!-- not run: REASON -->``   it is not run

A block of text right behind it is what it prints; ``...`` stands for what differs from one
run to the next. A block with tests is run by pytest; one that has a main guard as a
script; any other as if it were typed in, so that it needs none.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIECE = re.compile(
    r"^<!-- (?P<mark>given|continued|not run)(?:: *(?P<said>.*?))? *-->\n+(?=<!--|```python)"
    r"|^```python\n(?P<code>.*?)^```\n(?:\n?```text\n(?P<prints>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Example:
    """A program of a page.

    Attributes:
        page: the page's file.
        line: where its last block begins.
        source: the program.
        prints: what it prints, as doctest would have it; None: the page does not say.
        why_not: why it is not run; empty if it is.
    """

    page: Path
    line: int
    source: str
    prints: str | None
    why_not: str

    @property
    def name(self) -> str:
        """For the reports of pytest."""
        return f"{self.page.name}:{self.line}"

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it."""
        return re.search(r"^def test_", self.source, re.MULTILINE) is not None

    @property
    def is_script(self) -> bool:
        """Whether it must lie in a file."""
        return "if __name__ ==" in self.source

    def missing(self) -> list[str]:
        """What it imports that is not installed here."""
        return sorted(name for name in set(self._imports()) if not importlib.util.find_spec(name))

    def _imports(self) -> Iterator[str]:
        for node in ast.walk(ast.parse(self.source)):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


def examples(page: Path) -> Iterator[Example]:
    """Every example of a page, in order."""
    text = page.read_text(encoding="utf-8")
    marks: dict[str, str] = {}
    before = ""
    for piece in PIECE.finditer(text):
        if piece["mark"]:
            marks[piece["mark"]] = piece["said"] or ""
            continue
        source = before if "continued" in marks else ""
        before = source + marks.get("given", "") + "\n" + piece["code"]
        line = text.count("\n", 0, piece.start("code"))
        yield Example(page, line, before, piece["prints"], marks.get("not run", ""))
        marks = {}
