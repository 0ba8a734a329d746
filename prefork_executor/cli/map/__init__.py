"""``prefork-executor map package.module:function [FILE]``: calls a function for each line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

_USAGE = """prefork-executor map [OPTION]... package.module:function [FILE]
       prefork-executor map [OPTION]... -c CODE [FILE]"""
_DESCRIPTION = """
Call a function for each line of FILE, in a pool of processes that grows and shrinks with
the work, and write what it returns as JSON: one line for each line, in order. A line that
fails is null in the output. Its error goes to stderr, or to the file of --errors.
"""
_EPILOG = """
Exit code: 0 if all went well, 1 if lines failed or the run could not go on, 2 for bad
arguments, 130 after Ctrl-C. After an interruption of any kind, the same command with
--resume goes on where OUT ends.
"""


def add_to(subcommands: Any) -> None:
    """Add the subcommand's parser."""
    parser = subcommands.add_parser(
        "map", help="call a function for each line of a file", usage=_USAGE,
        description=_DESCRIPTION, epilog=_EPILOG,
    )  # fmt: skip
    parser.set_defaults(run=run, places=("function", "file"))
    add = parser.add_argument
    add("function", metavar="package.module:function", nargs="?",
        help="the function to call; the module is found as by python -m")  # fmt: skip
    add("file", metavar="FILE", nargs="?", help="the file with the lines; default or -: stdin")
    add("-c", dest="code", metavar="CODE",
        help="Python that ends in an expression whose value is the function: "
        "'lambda line: len(line)', 'import re; re.escape'")  # fmt: skip
    _add_calls(parser.add_argument_group("the calls"))
    _add_files(parser.add_argument_group("the files"))
    _add_failures(parser.add_argument_group("failures"))
    _add_resuming(parser.add_argument_group("after an interruption"))
    _add_pool(parser.add_argument_group("the pool"))
    _add_progress(parser.add_argument_group("progress"))


def _add_calls(group: argparse._ArgumentGroup) -> None:
    reads = group.add_mutually_exclusive_group()
    reads.add_argument(
        "--json", dest="reads", action="store_const", const="json", default="line",
        help="each line is JSON, and its value is the argument; default: the line as a str",
    )  # fmt: skip
    reads.add_argument(
        "--star", dest="reads", action="store_const", const="star",
        help="each line is a JSON list of arguments, or an object of keyword arguments",
    )  # fmt: skip
    add = group.add_argument
    add("--arg", action="append", default=[], metavar="NAME=VALUE",
        help="a keyword argument for each call; the value is a str")  # fmt: skip
    add("--arg-json", action="append", default=[], metavar="NAME=JSON",
        help="the same, but the value is JSON")  # fmt: skip


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "-o",
        "--output",
        metavar="OUT",
        type=Path,
        help="where to write the results; default: stdout",
    )
    add("--errors", metavar="FILE", type=Path, help="where to write errors, as JSON lines")
    add("--joblog", metavar="FILE", type=Path,
        help="where to log times, worker and outcome of each line, as GNU parallel")  # fmt: skip
    add("--unordered", action="store_true", help="write results as they come")


def _add_failures(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--timeout", type=float, metavar="SECONDS", help="how long a line may run")
    add("--retries", type=int, default=0, metavar="N",
        help="how often a line runs again after a death or a time-out")  # fmt: skip
    add("--retry-on-error", action="store_true", help="with --retries: also after an exception")
    add("--halt", metavar="N|N%",
        help="begin no more lines when N lines have failed, or N percent of at least 20; lines "
        "that already run are finished")  # fmt: skip


def _add_resuming(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--resume", action="store_true", help="go on where OUT ends")
    add(
        "--retry-errors",
        action="store_true",
        help="like --resume, but first run failed lines again",
    )
    add("--overwrite", action="store_true", help="replace OUT; otherwise it must not exist")


def _add_pool(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--max-workers",
        type=int,
        metavar="N",
        help="at most this many workers; default: one for each CPU",
    )
    add("--chunksize", type=int, metavar="N",
        help="send at most this many lines together; default: as many as take 5 ms")  # fmt: skip
    add("--max-tasks-per-child", type=int, metavar="N",
        help="replace a worker after this many tasks; each line is then a task")  # fmt: skip
    add("--max-memory", type=memory, metavar="MEMORY",
        help="how much memory all workers may take: bytes, or a part of the machine's memory "
        "(0.8); each line is then a task")  # fmt: skip
    add("--start-method", choices=("fork", "forkserver", "spawn"), help="default: Python's own")
    add("--record", action="append", default=[], metavar="PATH",
        help="write a timeline: run.json for Perfetto, run.html as a page")  # fmt: skip


def _add_progress(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--eta", action="store_true",
        help="report progress on stderr now and then, even if it is not a terminal")  # fmt: skip
    add("-q", "--quiet", action="store_true", help="show no progress and no summary")


def memory(text: str) -> int | float:
    """Bytes, or a part of what there is."""
    return int(text) if text.isdecimal() else float(text)


def _placed(options: argparse.Namespace) -> argparse.Namespace:
    """The options, with what stands for a function and for FILE in its place: with -c there need
    not be a function."""
    function, file = options.function, options.file
    if options.code is not None and file is None:
        function, file = None, function
    places = {"function": function, "file": "-" if file is None else file}
    return argparse.Namespace(**{**vars(options), **places})


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns the exit code."""
    from concurrent.futures.process import BrokenProcessPool

    from ._command import Command
    from ._lines import UnusableError, UnwritableError
    from ._mapping import HaltedError

    command = Command(_placed(options))
    try:
        return command.run()
    except UnusableError as error:
        return _fail(2, str(error))
    except HaltedError:
        return _fail(1, f"stopped by --halt {options.halt}{command.goes_on}")
    except UnwritableError as error:
        return _fail(1, f"{error}{command.goes_on}")
    except BrokenProcessPool as error:
        return _fail(1, str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, f"interrupted{command.goes_on}")


def _fail(code: int, message: str) -> int:
    print(f"prefork-executor map: {message}", file=sys.stderr)
    return code
