"""The points of the code at which tests may let something go wrong: see `faults.py`."""

from __future__ import annotations

from .named_tuples import NamedTuple


class Point(NamedTuple):
    """Where a point lies, when a process comes there, and what the injected function is given."""

    file: str
    when: str
    given: tuple[str, ...] = ()


_WORKER = "_server/worker.py"
_DISPATCH = "_client/dispatch.py"
_HANDLE = "_client/supervisor_handle.py"
_CHANNELS = "_messages/channels.py"

POINTS: dict[str, Point] = {
    # A worker.
    "worker.starts": Point(_WORKER, "it is about to run what the user has for its start"),
    "worker.asks": Point(
        _WORKER, "it has said TAKING and is about to ask the task pipe", ("board", "slot")
    ),
    "worker.woke": Point(_WORKER, "a message has woken it", ("board", "slot")),
    "worker.named_next": Point(
        _WORKER, "it has named the next task of its message, and looked whether to stop"
    ),
    "worker.gives_back": Point(
        _WORKER, "it is about to give back tasks of its message", ("number", "count")
    ),
    "worker.sent": Point(_WORKER, "it has sent a message", ("kind", "board", "slot")),
    "worker.leaves": Point(_WORKER, "it will take no other task"),
    # The supervisor.
    "supervisor.waits": Point(
        "_server/supervisor.py", "it is ready, and is about to wait for something to do"
    ),
    "supervisor.tells": Point(
        "_server/supervisor.py",
        "it is about to tell the client of a death, or of something else (None)",
        ("death", "board"),
    ),
    "supervisor.told": Point(
        "_server/supervisor.py", "it has told that, and freed no slot yet", ("death", "board")
    ),
    "supervisor.ends_task": Point(
        "_pool/leaving.py",
        "it has seen for the last time that a worker holds the task, and is about to signal it",
        ("task",),
    ),
    # The client.
    "client.starts_pool": Point(
        "_client/client.py", "the first task is there, and nothing of the pool"
    ),
    "client.made_channels": Point(
        "_client/client.py", "the pool's channels are made, and the client has not taken them"
    ),
    "client.starts_supervisor": Point(_HANDLE, "it is about to start the process"),
    "client.gives_channels": Point(
        "_client/supervisors.py",
        "the process has started, and is about to be sent its channels",
        ("pid", "control"),
    ),
    "client.started_supervisor": Point(_HANDLE, "the process has been sent its channels"),
    "client.replaced_supervisor": Point(
        "_client/io_loop.py", "another has started, and requests to it have not been looked at"
    ),
    "client.sends_task": Point(_DISPATCH, "it is about to send a task, with its lock held"),
    "client.sent_task": Point(_DISPATCH, "it has sent it, with its lock held"),
    "client.sends_batch": Point(
        _DISPATCH, "it is about to send several in one message", ("number", "count")
    ),
    "client.heeds": Point("_client/notices.py", "it is about to read a notice", ("kind",)),
    "client.took_back": Point(
        "_client/deaths.py", "it has heard of tasks that a worker will not begin"
    ),
    "client.looks_for_slow": Point(
        "_client/batches.py", "it is about to look for tasks that turn out to be long"
    ),
    "client.read_directly": Point(
        "_client/direct.py", "a caller has read a message, and is done with it or not", ("is_done",)
    ),
    # Whoever sends, or receives, a big payload.
    "payload.makes_file": Point(
        "_messages/payload_files.py", "it is about to make a file for a payload", ("size",)
    ),
    "payload.writes": Point(
        _CHANNELS, "it is about to write a part", ("descriptor", "view", "offset")
    ),
    "payload.sends": Point(_CHANNELS, "it is about to send the written file"),
    "payload.sent": Point(_CHANNELS, "it has sent the file"),
    "payload.opens": Point(_CHANNELS, "it is about to map or read a file that has come"),
    "payload.opened": Point(_CHANNELS, "it has mapped or read it"),
}
