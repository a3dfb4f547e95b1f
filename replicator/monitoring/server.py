"""Serves the web application on a thread beside the run."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from replicator.config.monitoring import Address
from replicator.errors import ConfigError, install

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from replicator.config.settings import Config
    from replicator.monitoring.board import Board
    from replicator.monitoring.monitor import Monitor, Subject

log = logging.getLogger("replicator")

MOST_CONNECTIONS = 64
GRACE = 1  # seconds that responses in progress get at the end
MISSING = (
    "monitoring: needs packages that are not installed ({name}). Install them with: {install}; "
    "or leave out monitoring and --listen"
)


def subject_of(config: Config, path: str) -> Subject:
    """``path``: the config's file, as the user names it. Commands for one of several targets need its name, too."""
    require_packages()
    from replicator.monitoring.monitor import Subject

    target = config.target
    path = path if config.target_name is None else f"{path} --target {config.target_name}"
    source = f"DynamoDB {config.source.table}"
    every = config.verify.every if config.verify is not None else None
    return Subject(config.pipeline, path, source, target.type, tuple(target.tables), every)


def monitor_of(subject: Subject) -> Monitor:
    """A monitor; ConfigError if the extra is not installed."""
    require_packages()
    from replicator.monitoring.monitor import Monitor

    return Monitor(subject)


def require_packages() -> None:
    """ConfigError if a package of the extra ``web`` is not installed."""
    import importlib.util

    for name in ("starlette", "uvicorn", "jinja2", "prometheus_client"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(MISSING.format(name=name, install=install("web")))


@contextlib.contextmanager
def serving(monitor: Monitor, address: Address) -> Iterator[None]:
    """Serve one pipeline until the block ends. ConfigError if the address cannot be used."""
    from replicator.monitoring.app import application

    with _serving(application(monitor, allowed_hosts(address)), address):
        yield


@contextlib.contextmanager
def serving_several(address: Address) -> Iterator[Board]:
    """Serve the pipelines that are on the board until the block ends. ConfigError if that is not possible."""
    require_packages()
    from replicator.monitoring.app import application_of_several
    from replicator.monitoring.board import Board

    board = Board()
    with _serving(application_of_several(board, allowed_hosts(address)), address):
        yield board


@contextlib.contextmanager
def _serving(application: Starlette, address: Address) -> Iterator[None]:
    import uvicorn

    listener = bound(address)
    config = uvicorn.Config(
        application,
        http="h11",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_serve, args=(server, listener), name="monitoring", daemon=True)
    thread.start()
    log.info("monitoring", extra={"url": f"http://{address}/"})
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(GRACE + 2)


def _serve(server: object, listener: socket.socket) -> None:
    """A failure of the web server never ends the run."""
    try:
        server.run(sockets=[listener])  # type: ignore[attr-defined]
    except Exception as e:
        log.warning("monitoring ended", extra={"reason": type(e).__name__})


def allowed_hosts(address: Address) -> list[str]:
    """The names in requests' Host headers that are answered: on loopback only its own."""
    return ["localhost", "127.0.0.1", "[::1]", "::1", address.host] if address.loopback else ["*"]


def require_usable(address: Address) -> bool:
    """ConfigError unless a run could listen there. False if the port is in use: it may be the pipeline's own run."""
    try:
        _listener(address).close()
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            raise ConfigError(_problem(e, address)) from e
        return False
    return True


class PortInUse(ConfigError):
    """Another process listens at the address."""


def bound(address: Address) -> socket.socket:
    """A listening socket; ConfigError if there cannot be one, PortInUse if another process has it."""
    try:
        return _listener(address)
    except OSError as e:
        kind = PortInUse if e.errno == errno.EADDRINUSE else ConfigError
        raise kind(_problem(e, address)) from e


def _listener(address: Address) -> socket.socket:
    family, *_ = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server((address.host, address.port), family=family)


def _problem(error: OSError, address: Address) -> str:
    return f"monitoring.listen: {address} {_reason(error, address)}"


def _reason(error: OSError, address: Address) -> str:
    if isinstance(error, socket.gaierror):
        return "cannot be resolved: use an address of this machine, such as 127.0.0.1"
    if error.errno == errno.EADDRINUSE:
        return (
            "is in use by another process, perhaps another run: give each pipeline its own port, or stop what "
            "uses this one"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return "is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all of its addresses"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"is not permitted to this user: use a port above 1023 instead of {address.port}"
    return f"cannot be listened on: {error.strerror}"
