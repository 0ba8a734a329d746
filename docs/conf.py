"""How Sphinx makes a site of these pages: ``sphinx-build -W --keep-going -b html docs DIR``."""

from __future__ import annotations

import re
from pathlib import Path

from prefork_executor import __version__

project = "prefork_executor"
copyright = "The prefork_executor developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence"]
# Headings can be linked to, as on GitHub.
myst_heading_anchors = 3


def link_pages(_app, _what, _name, _obj, _options, lines):
    """Make links of the pages that docstrings name, as in ``docs/limits.md``."""
    lines[:] = [re.sub(r"(?<!`)docs/([\w-]+)\.md", r":doc:`\1`", line) for line in lines]


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", link_pages)


html_theme = "furo"
html_title = f"prefork_executor {version}"

# Bridges import what they bridge to. Their pages need the signatures alone.
autodoc_mock_imports = [
    *("anyio", "dask", "distributed", "joblib", "threadpoolctl", "opentelemetry"),
    *("prometheus_client", "pytest", "rich", "tqdm"),
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False

# A reference to something of ours must lead somewhere. Others' names are not looked up:
# that would need the network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!prefork_executor\.).*"),
    # Type variables, and names that signatures show but nobody is to use.
    ("py:class", r"prefork_executor\.(.*\.)?([A-Z]|_\w+(\.\w+)*)"),
]

if not (Path(__file__).parent / "figures" / "performance.json").exists():
    # The figures of performance.md have not been drawn yet.
    suppress_warnings = ["image.not_readable"]
