"""Pages in a headless browser, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from waiting import BOUND

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason=f"none of {BROWSERS} is installed")


def browse(address: str, profile: Path, *options: str) -> tuple[str, str]:
    """What the page has become in a browser, and what this has complained about."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--no-first-run", f"--user-data-dir={profile}"),
            *options,
            address,
        ],
        capture_output=True,
        text=True,
        timeout=BOUND,
        env={**os.environ, "HOME": str(profile)},
        check=True,
    )
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(complaints)
