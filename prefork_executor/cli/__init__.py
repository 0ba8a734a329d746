"""The command ``prefork-executor``, also ``python -m prefork_executor``.

Each subcommand is one file of this package, named in COMMANDS. It has a function
``add_to(subcommands)``, which adds its parser and sets ``run`` there: the function that takes
the parsed arguments and returns the exit code. What only one subcommand needs is imported when
that one runs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from prefork_executor import __version__
from prefork_executor.errors import StatusError

COMMANDS: tuple[str, ...] = ("map", "pools", "serve", "status", "top", "trace")
"""The files here that hold a subcommand, in the order of the help text."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a file that can take no more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those after the command's name; None: this process's own.

    Returns:
        The exit code: 0 if all went well, 1 if not, 2 for bad arguments.
    """
    parser = argparse.ArgumentParser(
        prog="prefork-executor", description="See and use pools of prefork_executor."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"{__name__}.{name}").add_to(subcommands)
    options = _parsed(parser, arguments)
    options.closed = _fill_closed_streams()
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except StatusError as error:
        print(f"prefork-executor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed our output. Python would complain when it flushes its own.
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        print(f"prefork-executor: cannot write the output: {error.strerror}", file=sys.stderr)
        _discard_output()
        return 1
    return code


def _discard_output() -> None:
    """What was printed and not written cannot be written. Python must not try it again at its
    end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. Some versions of argparse, that of Python 3.13.0 for example, do not take an
    argument that may be omitted if it comes after an option, and another argument before that
    option: FILE in ``map m:f -o OUT FILE``. A subcommand with such arguments names them in
    ``places``."""
    options, left = parser.parse_known_args(arguments)
    for name in getattr(options, "places", ()):
        if left and getattr(options, name) is None and (left[0] == "-" or left[0][:1] != "-"):
            setattr(options, name, left.pop(0))
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return options


def _fill_closed_streams() -> set[int]:
    """Open the standard streams that were closed when the command was started, on /dev/null.
    Otherwise the next files that are opened would get these descriptors, a pool's own for example,
    and whatever reads or writes a standard stream would read or write those. Returns which streams
    were closed."""
    closed = set()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(os.open(os.devnull, os.O_RDWR))  # It takes the lowest that is free.
            os.set_inheritable(descriptor, True)
    # Without sys.stderr, print would write to sys.stdout.
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115 - it stays open
    return closed
