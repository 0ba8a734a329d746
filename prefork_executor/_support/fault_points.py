"""The points of the code at which tests may inject a fault: see `faults.py`."""

from __future__ import annotations

from .named_tuples import NamedTuple


class Point(NamedTuple):
    """Where a point is, when a process reaches it, and what the injected function is given."""

    file: str
    when: str
    given: tuple[str, ...] = ()


_WORKER = "_server/worker.py"
_DISPATCH = "_client/dispatch.py"
_HANDLE = "_client/supervisor_handle.py"
_CHANNELS = "_messages/channels.py"

POINTS: dict[str, Point] = {
    # A worker.
    "worker.starts": Point(_WORKER, "it is about to run the user's code for its start"),
    "worker.asks": Point(
        _WORKER, "it has said TAKING and is about to ask the task pipe", ("board", "slot")
    ),
    "worker.woke": Point(_WORKER, "a message has woken it", ("board", "slot")),
    "worker.named_next": Point(
        _WORKER, "it has named the next task of its message, and checked whether to stop"
    ),
    "worker.gives_back": Point(
        _WORKER, "it is about to give back tasks of its message", ("number", "count")
    ),
    "worker.sent": Point(_WORKER, "it has sent a message", ("kind", "board", "slot")),
    "worker.leaves": Point(_WORKER, "it will take no more tasks"),
    # The supervisor.
    "supervisor.waits": Point(
        "_server/supervisor.py", "it is ready, and is about to wait for something to do"
    ),
    "supervisor.tells": Point(
        "_server/supervisor.py",
        "it is about to tell the client of a death, or of something else (then death is None)",
        ("death", "board"),
    ),
    "supervisor.told": Point(
        "_server/supervisor.py", "it has told the client, and freed no slot yet", ("death", "board")
    ),
    "supervisor.ends_task": Point(
        "_pool/leaving.py",
        "it has checked for the last time that a worker holds the task, and will now signal it",
        ("task",),
    ),
    # The client.
    "client.starts_pool": Point(
        "_client/client.py", "the first task is there, and no part of the pool has started"
    ),
    "client.made_channels": Point(
        "_client/client.py", "the pool's channels are made, and the client does not own them yet"
    ),
    "client.starts_supervisor": Point(_HANDLE, "it is about to start the process"),
    "client.gives_channels": Point(
        "_client/supervisors.py",
        "the process has started, and is about to be sent its channels",
        ("pid", "control"),
    ),
    "client.started_supervisor": Point(_HANDLE, "the process has been sent its channels"),
    "client.replaced_supervisor": Point(
        "_client/io_loop.py", "the next one has started, and no request to it is handled yet"
    ),
    "client.sends_task": Point(_DISPATCH, "it is about to send a task, with its lock held"),
    "client.sent_task": Point(_DISPATCH, "it has sent it, with its lock held"),
    "client.sends_batch": Point(
        _DISPATCH, "it is about to send several tasks in one message", ("number", "count")
    ),
    "client.heeds": Point("_client/notices.py", "it is about to read a notice", ("kind",)),
    "client.took_back": Point(
        "_client/deaths.py", "it has read of tasks that a worker will not begin"
    ),
    "client.looks_for_slow": Point(
        "_client/batches.py", "it is about to look for tasks that have become long"
    ),
    "client.read_directly": Point(
        "_client/direct.py", "a caller has read a message; is_done: it has its result", ("is_done",)
    ),
    # A process that sends or receives a big payload.
    "payload.makes_file": Point(
        "_messages/payload_files.py", "it is about to make a file for a payload", ("size",)
    ),
    "payload.writes": Point(
        _CHANNELS, "it is about to write a part", ("descriptor", "view", "offset")
    ),
    "payload.sends": Point(_CHANNELS, "it is about to send the written file"),
    "payload.sent": Point(_CHANNELS, "it has sent the file"),
    "payload.opens": Point(_CHANNELS, "it is about to map or read a received file"),
    "payload.opened": Point(_CHANNELS, "it has mapped or read it"),
}
