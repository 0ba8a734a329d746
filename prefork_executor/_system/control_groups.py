"""The control groups of Linux that a process is in: where their files are.

A group has a folder of files, and lies in another group, up to the root. A limit holds for all
groups below it, so the least of them counts. Version 2 has one tree of groups. Of version 1 there
is a tree for each controller, and a system may have controllers of both versions.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[str], bytes]


def read_file(path: str) -> bytes:
    """A file's bytes; none if it cannot be read."""
    try:
        # As bytes: text would import a codec at the start of every pool. To its end: the kernel
        # gives a page of mountinfo at a time, and one long line may be before that of the groups.
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def groups_of(controller: str, own: bytes, mounts: bytes) -> tuple[bool, list[str]]:
    """Whether this controller is of version 1, and the folders of the groups in which it bounds
    this process, its own first, of the texts of /proc/self/cgroup and /proc/self/mountinfo."""
    paths = {}
    for line in own.decode(errors="replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    # Where version 1 has the controller, version 2 has nothing of it.
    is_old = controller in paths
    mount = _mount(mounts, "cgroup", controller) if is_old else _mount(mounts, "cgroup2", "")
    inside = paths.get(controller if is_old else "")
    if mount is None or inside is None:
        return is_old, []
    top, folder = mount
    # In a container that sees its own group as the root, the path may lead elsewhere.
    is_below = inside == top or inside.startswith(top.rstrip("/") + "/")
    names = [name for name in inside[len(top) :].split("/") if name] if is_below else []
    if ".." in names:
        names = []
    counts = range(len(names), -1, -1)
    return is_old, ["/".join([folder.rstrip("/"), *names[:count]]) for count in counts]


def _mount(mounts: bytes, kind: str, option: str) -> tuple[str, str] | None:
    """Which part of a tree of groups is mounted where, if it is."""
    for line in mounts.decode(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] != kind:
            continue
        if not option or option in kinds[2].split(","):
            return fields[3], fields[4]
    return None
