"""The Python examples of the pages, as programs to run.

Each block of Python is a program of its own. One that has ``<!-- not run: REASON -->`` before it is
not run with the others, because it needs something that they do not; then a test gives it that.

A block of text right behind it is what it prints; ``...`` stands for what differs from one
run to the next. A block with tests is run by pytest; one that has a main guard as a
script; any other as if it were typed in, so that it needs none.

It is run where only that is installed which a reader has been told to install: by the commands
(``pip install ...``) that stand above it or in it, in its section or at the page's head.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PIECE = re.compile(
    r"^<!-- not run: *(?P<why_not>.*?) *-->\n+(?=```python)"
    r"|^```python\n(?P<code>.*?)^```\n(?:\n?```text\n(?P<prints>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile("<!--.*?-->", re.DOTALL)
COMMAND = re.compile(r"pip install ([^`\n&#]*)")
SECTION = re.compile("^## ", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A program of a page.

    Attributes:
        page: the page's file.
        line: where its block begins.
        source: the program.
        installs: what its page says to install for it.
        prints: what it prints, as doctest would have it; None: the page does not say.
        why_not: why it is not run with the others; empty if it is.
    """

    page: Path
    line: int
    source: str
    installs: frozenset[str]
    prints: str | None
    why_not: str

    @property
    def name(self) -> str:
        """For the reports of pytest."""
        return f"{self.page.name}:{self.line}"

    @property
    def conditions(self) -> str:
        """How it is run, for the message of a failure."""
        more = f"and {', '.join(sorted(self.installs))}, which the page names above it"
        if not self.installs:
            more = "alone: the page names no other package above it"
        return f"{self.name} fails where one has installed prefork-executor {more}"

    @property
    def is_test(self) -> bool:
        """Whether pytest runs it."""
        return re.search(r"^def test_", self.source, re.MULTILINE) is not None

    @property
    def is_script(self) -> bool:
        """Whether it must lie in a file."""
        return "if __name__ ==" in self.source


def examples(page: Path) -> Iterator[Example]:
    """Every example of a page, in order."""
    text = page.read_text(encoding="utf-8")
    why_not = ""
    for piece in PIECE.finditer(text):
        if piece["code"] is None:
            why_not = piece["why_not"]
            continue
        begin, end = piece.span("code")
        yield Example(
            page=page,
            line=text.count("\n", 0, begin),
            source=piece["code"],
            installs=_installs(text[:end]),
            prints=piece["prints"],
            why_not=why_not,
        )
        why_not = ""


def _installs(text: str) -> frozenset[str]:
    """What a reader has installed, besides our package, who has read so far. ``pip install .``
    installs no more than that."""
    return frozenset(word for word in pip_arguments(above(text)) if word[0] not in "-.")


def above(text: str) -> str:
    """What a reader must have read to go on at the end of this text: the page's head, and the
    section that has begun."""
    head, *sections = SECTION.split(COMMENT.sub("", text))
    return "\n".join([head, *sections[-1:]])


def pip_arguments(text: str) -> list[str]:
    """What stands behind ``pip install`` in a text, word by word."""
    return [word for command in COMMAND.findall(text) for word in shlex.split(command)]
