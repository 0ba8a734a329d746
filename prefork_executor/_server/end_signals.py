"""SIGTERM and SIGHUP that come from outside.

A service manager, a container's init, a closing terminal or ``kill -- -PGID`` sends them to
every process of a program at once. The program's own process decides what happens to its
tasks. Its handler may shut the executor down, which finishes them. Or it has no handler, and
the signal kills it. So:

* The *main process* of a pool, the supervisor, ignores these signals. It ends when its
  client ends, however that happens.
* A *worker* that gets one finishes the task it holds, sends the outcome, takes no other
  task and leaves in order. An idle worker leaves at once, and a starting one after its
  initializer. It says on its slot that it was ASKED, so this does not count as a crash.
* The pool's own SIGTERM, for a time limit for example, must end the task. The pool sets the
  slot's DOOMED word before it sends the signal. Then our handler lets the signal have its
  default effect.
* If a task sends such a signal to its own process, the signal has its default effect.
* A handler that a task or an initializer sets in place of ours stays in force. What the
  caller's process ignored stays ignored.
* A handler that an at-fork function has set in a worker before ours, as coverage's does, is
  called before the signal has its default effect. We cannot rely on it to end the worker: it
  may restore the handler of the process that was forked, and raise the signal again, and that
  handler survives it.
* Processes that a worker forks get none of this: in them both signals have their default
  effect. (An executed program loses all handlers anyway.)

A handler in Python runs late if a long call into C is under way. And from CPython 3.13 on, in a
process that a thread other than the main one has forked, it does not run until some code asks for
it (see `_system.signals.run_handlers`). A worker asks between two tasks. That is enough for a
signal from outside, but too late for the pool's own. So the kernel is told to restore the default
effect when it delivers the first signal to our handler (SA_RESETHAND). When our handler runs,
it installs itself again. The process that has doomed a worker checks whether the default effect
is in force there, and then sends the signal once more, which ends the worker at once. A handler
that the task has set is not reset, and gets only one signal.
"""

from __future__ import annotations

import os
import signal
import threading
import types
from collections.abc import Callable

from .._board import scoreboard as sb
from .._system import signals
from .._system.descriptors import Doorbell
from .._system.self_sent import is_self_sent
from .._system.signals import Handler

NUMBERS = (signal.SIGTERM, signal.SIGHUP)
"""The signals in question."""

_slot: tuple[memoryview[int], int] | None = None
_asked_early = 0
_bell: Doorbell | None = None
_is_forgotten_in_forks = False
_found: dict[int, Callable[[int, types.FrameType | None], object]] = {}
"""The handlers that at-fork functions had set in this process before ours replaced them."""
_masks: dict[int, set[int]] = {}
"""For each thread that is forking: the signals that it blocked before."""


def ignore() -> None:
    """In a process that runs a pool for a caller: ignore these signals."""
    global _is_forgotten_in_forks
    for number in _not_ignored():
        signals.set_handler(number, _take_no_notice)
    if not _is_forgotten_in_forks:
        _is_forgotten_in_forks = True
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)


def is_own(handler: Handler) -> bool:
    """Whether this handler is one of this module's."""
    return handler in (_take_no_notice, _leave_after_task)


def install() -> None:
    """In a new worker, which still blocks these signals. All at-fork functions have run, even
    those registered after this module's own."""
    for number in _not_ignored():
        found = signals.set_handler(number, _leave_after_task)
        if callable(found) and not is_own(found):
            _found[number] = found


def begin(words: memoryview[int], base: int) -> Doorbell:
    """In a new worker: from now on its slot, whose words begin at ``base``, says when the worker
    has been asked to leave. Returns a bell that such a signal rings, for code that waits."""
    global _slot, _bell
    _slot, _bell = (words, base), Doorbell.new()
    signal.set_wakeup_fd(_bell.write_end, warn_on_full_buffer=False)
    for number in NUMBERS:
        if signal.getsignal(number) is _leave_after_task:
            _let_next_end(number)
    signals.run_handlers()
    if _asked_early:
        _leave_after_task(_asked_early, None)
    return _bell


def _not_ignored() -> list[int]:
    return [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]


def _take_no_notice(_signum: int, _frame: types.FrameType | None) -> None:
    """Not SIG_IGN: that would stay in force in every program executed from here."""


def _leave_after_task(number: int, frame: types.FrameType | None) -> None:
    """A worker's handler. It may run between any two steps of the worker."""
    global _asked_early
    if _slot is None:
        _asked_early = number
        return
    words, base = _slot
    if words[base + sb.DOOMED] or is_self_sent(frame):
        try:
            if (found := _found.get(number)) is not None:
                found(number, frame)
        finally:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
    words[base + sb.ASKED] = 1
    words[base + sb.RETIRE] = 1
    if signal.getsignal(number) is _leave_after_task:  # Otherwise another handler called it.
        _let_next_end(number)


def _let_next_end(number: int) -> None:
    """Let the next signal end this process, or the one after it if the next must first call an
    at-fork function's handler."""
    if number not in _found:
        signals.default_after_next(number)


def _hold() -> None:
    """Before a fork: a signal that is sent to the child at once must wait there until
    :func:`_forget` has run. Otherwise it would meet our handler."""
    mask = signals.current_mask()
    _masks[threading.get_ident()] = mask
    signals.block_signals(NUMBERS)


def _let_go() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signals.restore_mask(mask)


def _forget() -> None:
    """In a process that was forked off this one: remove our handlers."""
    global _slot, _asked_early, _bell
    _found.clear()
    for number in NUMBERS:
        if is_own(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if _bell is not None:
        theirs = signal.set_wakeup_fd(-1)
        if theirs not in (-1, _bell.write_end):
            signal.set_wakeup_fd(theirs)
    _slot, _asked_early, _bell = None, 0, None
    _let_go()
