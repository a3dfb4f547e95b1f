"""A certificate for servers of tests, which nobody trusts until told to."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Pair:
    """Files with a client's certificate, signed by itself, and its key."""

    certificate: Path
    key: Path

    @property
    def options(self) -> dict[str, str]:
        return {"client_cert": str(self.certificate), "client_key": str(self.key)}


def pair_in(folder: Path, name: str = "client") -> Pair:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    kind = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    command = f"openssl req -x509 {kind} -nodes -days 2 -subj /CN={name} -keyout {made.key} -out {made.certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    made.key.chmod(0o600)
    return made


def requiring(certificate: Path, clients: Path) -> ssl.SSLContext:
    """What a server needs to present ``certificate`` and to require one of ``clients``."""
    context = presenting(certificate)
    context.load_verify_locations(clients)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def presenting(certificate: Path) -> ssl.SSLContext:
    """What a server needs to present it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
