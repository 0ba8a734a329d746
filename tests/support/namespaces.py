"""Process namespaces: a program in one sees no process of the machine but its own."""

from __future__ import annotations

import subprocess

import pytest

NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""What a command begins with that is the first process of a namespace of its own."""


def _may_make_namespaces() -> bool:
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        )
    except OSError:
        return False


needs_namespace = pytest.mark.skipif(
    not _may_make_namespaces(), reason="no new process namespaces for us here"
)
