"""Certificates for servers that speak TLS on this host."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from waiting import BOUND


def certify(folder: Path, name: str) -> Path:
    """A new certificate of its own authority, for 127.0.0.1, with its key in the same file. The
    test is skipped if there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
        timeout=BOUND,
    )
    certificate.write_text(certificate.read_text() + key.read_text())
    return certificate


def trusting() -> ssl.SSLContext:
    """A client's context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
