"""The description of the project that a package index shows: README.md, with links that work there.

In the repository, README.md links to files beside it. An index has no such files. So each relative
link becomes a link below the project's home, if ``[project.urls]`` has ``Source``, and otherwise
the file's path in parentheses. A picture then becomes its description in italics.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]+)\]\((?!https?:|#)(?P<path>[^)\s]+)\)")


def for_an_index(readme: str, home: str) -> str:
    """The text of README.md without relative links. ``home`` is where the files can be seen, and
    empty if they can be seen nowhere."""

    def replaced(link: re.Match[str]) -> str:
        if home:
            return f"{link['picture']}[{link['text']}]({home.rstrip('/')}/{link['path']})"
        if link["picture"]:
            return f"*({link['text']})*"
        is_path = link["text"].strip("`") == link["path"]
        return link["text"] if is_path else f"{link['text']} ({link['path']})"

    return RELATIVE.sub(replaced, readme)


class CustomMetadataHook(MetadataHookInterface):
    """Called by hatchling when it makes the sdist and the wheel."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description."""
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        home = metadata.get("urls", {}).get("Source", "")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": for_an_index(readme, home),
        }
