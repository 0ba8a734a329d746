"""``prefork-executor top``: a pool, live; in the terminal, or in a browser.

In the terminal it needs rich, which is not part of this package:
``pip install 'prefork-executor[top]'``.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from prefork_executor.cli import _common
from prefork_executor.errors import PoolEnded, StatusError

if TYPE_CHECKING:
    from prefork_executor.cli._view import View
    from prefork_executor.status import Watch

REDRAW = 1.0
"""Seconds after which it redraws at the latest, for terminals that do not report that their
size has changed."""
MIN_DELAY = 0.1
"""Seconds between two looks, at least."""


def add_to(subcommands: Any) -> None:
    """Add the parser."""
    parser = subcommands.add_parser(
        "top", help="a pool, live", description="A pool, live. Keys are shown at the bottom."
    )
    _common.add_pid(parser)
    parser.add_argument(
        *("-d", "--delay"),
        type=_delay,
        default=1.0,
        metavar="SECONDS",
        help="seconds between two looks; default 1",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="draw once, as plain text; the default if the output is not a terminal",
    )
    parser.add_argument(
        "--web",
        action="store_true",
        help="show a page for a browser on this machine; prints its address",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=0,
        help="with --web: the port to bind on 127.0.0.1; default: any that is free",
    )
    parser.set_defaults(run=run)


def _delay(text: str) -> float:
    seconds = float(text)
    if not MIN_DELAY <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be from {MIN_DELAY} to 3600 seconds")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Draw until the user quits or the pool ends."""
    if options.web:
        from prefork_executor.cli.web.server import serve

        with _common.chosen(options.pid) as watch:
            return _say(serve(watch, options.delay, options.port))
    try:
        from prefork_executor.cli._view import View
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise StatusError(
            "top draws with rich, which is not installed: pip install 'prefork-executor[top]'"
        ) from error
    with _common.chosen(options.pid) as watch:
        view = View()
        if options.once or not sys.stdout.isatty():
            view.add(watch.read())
            view.print_plain()
            return 0
        return _say(_watch(watch, view, options.delay))


def _say(ended: str) -> int:
    if ended:
        print(ended)
    return 0


def _watch(watch: Watch, view: View, delay: float) -> str:
    """Draw until the user quits or the pool ends. Returns why, if the pool has ended."""
    from prefork_executor.cli._terminal import keys

    try:
        with keys() as keyboard, view.screen() as draw:
            look_at = 0.0
            while True:
                if time.monotonic() >= look_at:
                    view.add(watch.read())
                    look_at = time.monotonic() + delay
                draw()
                pressed = keyboard.wait(min(REDRAW, max(0.0, look_at - time.monotonic())))
                if pressed is None or "q" in pressed:
                    return ""
                view.press(pressed)
    except KeyboardInterrupt:
        return ""
    except PoolEnded as end:
        return str(end)
