"""SIGTERM and SIGHUP that come from outside.

A service manager, a container's init, a closing terminal or ``kill -- -PGID`` sends them to
every process of a program at once. It is the program's own process that decides what then
becomes of its tasks: its handler may shut the executor down, which finishes them; or it may
have none, and die of the signal. So:

* The *main process* of a pool, the supervisor, takes no notice of them. It ends with its
  client, however that ends.
* A *worker* that gets one finishes the task it holds, sends the outcome, takes no other
  task and leaves in peace. One that is idle leaves at once; one that starts, after its
  initializer. It says on its slot that it was ASKED, and no crash is counted.
* The pool's own SIGTERM, for a time limit, say, is to end the task. The pool says so in
  the slot's DOOMED word before it sends the signal, and then our handler lets the signal
  have its default effect.
* A task that sends such a signal to its own process means it: that has its default effect.
* What a task or an initializer sets instead of our handler stays in force, and what the
  caller's process ignored is ignored.
* What somebody's at-fork function has set in a worker before ours, as coverage's does, is
  called before the signal has its default effect. It cannot be left to itself: what it may
  restore and raise again is the handler of the process that was forked, which survives.
* What is forked off here has nothing of this: there both signals have their default effect.
  (What is executed loses every handler anyway.)

A handler in Python runs late, when a long call into C returns. And from CPython 3.13 on, in
a process that was forked by another thread than the main one, it does not run at all until
something asks for it (see `_system.signals.run_handlers`): a worker asks between two tasks. That is
all that a signal from outside needs, but too late for the pool's own. So the kernel is told
to restore the default effect as it delivers the first signal to our handler
(SA_RESETHAND); our handler, when it runs, restores itself. Whoever has doomed a worker looks
whether the default effect is in force there, and then sends the signal once more, and that
ends it at once. A handler that the task itself has set is not reset, and gets one signal.
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
"""The signals that this is about."""

_slot: tuple[memoryview[int], int] | None = None
_asked_early = 0
_bell: Doorbell | None = None
_is_forgotten_in_forks = False
_found: dict[int, Callable[[int, types.FrameType | None], object]] = {}
"""What at-fork functions had set in this process before our handler took its place."""
_masks: dict[int, set[int]] = {}
"""Of threads that fork just now: the signals that were blocked there before."""


def ignore() -> None:
    """In a process that runs a pool for a caller: take no notice of these signals."""
    global _is_forgotten_in_forks
    for number in _not_ignored():
        signals.set_handler(number, _take_no_notice)
    if not _is_forgotten_in_forks:
        _is_forgotten_in_forks = True
        os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)


def is_own(handler: Handler) -> bool:
    """Whether it is one of this module's."""
    return handler in (_take_no_notice, _leave_after_task)


def install() -> None:
    """In a new worker, in which these signals are blocked still. At-fork functions have run,
    also those that were registered after this module's own."""
    for number in _not_ignored():
        found = signals.set_handler(number, _leave_after_task)
        if callable(found) and not is_own(found):
            _found[number] = found


def begin(words: memoryview[int], base: int) -> Doorbell:
    """In a new worker: from now on its slot, whose words begin at ``base``, says what has
    been asked. Returns a bell that a signal rings, for whoever waits."""
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
    """Not SIG_IGN, which would hold in all that is executed from here as well."""


def _leave_after_task(number: int, frame: types.FrameType | None) -> None:
    """A worker's handler. It may run between any two steps of the worker's."""
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
    if signal.getsignal(number) is _leave_after_task:  # Or another has called this one.
        _let_next_end(number)


def _let_next_end(number: int) -> None:
    """Or the one after that, if there is something to call before it ends this process."""
    if number not in _found:
        signals.default_after_next(number)


def _hold() -> None:
    """Before a fork: what is sent to the child as soon as it exists waits until
    :func:`_forget` has run there, or it would meet our handler."""
    mask = signals.current_mask()
    _masks[threading.get_ident()] = mask
    signals.block_signals(NUMBERS)


def _let_go() -> None:
    mask = _masks.pop(threading.get_ident(), None)
    if mask is not None:
        signals.restore_mask(mask)


def _forget() -> None:
    """In a process that was forked off this one: be as any other."""
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
