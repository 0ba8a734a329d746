"""Lists what README.md and the pages claim, each with its proof, from claims.toml and
raw_claims.toml. If pages are named, it lists their sentences that no claim quotes, so that
somebody can see whether these need a proof::

python tests/docs/claims.py
python tests/docs/claims.py docs/limits.md
"""

from __future__ import annotations

import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
NO_PROSE = re.compile(r"^```.*?^```$|<!--.*?-->|^#.*?$|^\|[-| :]+\|$", re.MULTILINE | re.DOTALL)
BEGINNING = re.compile(r"^ *(?:\||- |\d+\. )", re.MULTILINE)
"""Of a row of a table, or of an item of a list."""
SENTENCE = re.compile(r"(?<=[a-z`)*][.?!])\s+(?=[A-Z`*\[(])")


class Claim(NamedTuple):
    """One claim: the page, what it says, and its proofs."""

    page: str
    says: str
    proofs: list[str]

    def is_said(self) -> bool:
        """Whether the page still says it, however its lines are broken."""
        return _spaced(self.says) in _spaced(_text(self.page))

    def missing(self) -> list[str]:
        """The proofs that do not exist."""
        return [proof for proof in self.proofs if not _exists(proof)]


def _spaced(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@functools.cache
def _source(file: str) -> str | None:
    """That of a file of tests, which its name alone names, or of another file."""
    found = list((ROOT / "tests").rglob(file) if file.startswith("test_") else ROOT.glob(file))
    return found[0].read_text(encoding="utf-8") if len(found) == 1 else None


def _exists(proof: str) -> bool:
    file, _, test = proof.partition("::")
    source = _source(file)
    return source is not None and (not test or f"def test_{test}(" in source)


def claims() -> Iterator[Claim]:
    """Every claim, in the order of the files."""
    for file in sorted(Path(__file__).parent.glob("*claims.toml")):
        pages = tomllib.loads(file.read_text(encoding="utf-8"))
        for page, said in pages.items():
            for says, proofs in said.items():
                yield Claim(page, says, [proofs] if isinstance(proofs, str) else proofs)


def listed() -> Iterator[str]:
    """The lines of the list."""
    page = ""
    for claim in claims():
        if claim.page != page:
            page = claim.page
            yield page
        yield f"  {claim.says}"
        yield from (f"      {proof}" for proof in claim.proofs)


def unlisted(page: str) -> Iterator[str]:
    """The page's sentences and rows of tables that no claim quotes, not even in part."""
    quotes = [_spaced(claim.says) for claim in claims() if claim.page == page]
    for paragraph in re.split(r"\n\s*\n", NO_PROSE.sub("", _text(page))):
        for piece in re.split(rf"(?={BEGINNING.pattern})", paragraph, flags=re.MULTILINE):
            for sentence in map(_spaced, SENTENCE.split(piece)):
                if sentence and not any(said in sentence or sentence in said for said in quotes):
                    yield sentence


if __name__ == "__main__":
    lines = [line for page in sys.argv[1:] for line in unlisted(page)] or listed()
    print("\n".join(lines))
