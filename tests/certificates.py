"""A certificate for servers of tests, which nobody trusts until told to."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def certificate_in(folder: Path) -> Path:
    """A file with a certificate of 127.0.0.1, signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    found = folder / "server.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=local -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", found, "-out", f"{found}.crt"], check=True, capture_output=True)
    found.write_text(found.read_text() + Path(f"{found}.crt").read_text())
    return found


def presenting(certificate: Path) -> ssl.SSLContext:
    """What a server needs to present it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
