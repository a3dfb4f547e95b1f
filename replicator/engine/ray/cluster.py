"""Starts Ray on this machine for one run, or connects to a cluster."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator
from typing import Any

from replicator.config.engine import Ray
from replicator.config.monitoring import Address
from replicator.engine.ray.folder import own_folder
from replicator.errors import ConfigError, TransientError, install

OLDEST, BELOW = (2, 60), (3, 0)  # versions of Ray, as in pyproject.toml
STORE = 80_000_000  # bytes of Ray's object store on this machine; nothing of ours goes through it
NAMESPACE = "replicator"
_INSTALL = install("ray")
KNOCK = 5.0  # seconds that a head gets to accept a connection
TRIES = "1"  # of Ray to join a cluster, each of up to 41 seconds; by default it makes 20 of them
_NUMBER = re.compile(r"\d+")


@contextlib.contextmanager
def cluster(engine: Ray) -> Iterator[Any]:
    """The module ``ray``, connected. What was started on this machine is ended on exit.

    Ray replaces handlers of signals, which belong to the command line: they are restored.
    """
    check_installed()
    with contextlib.ExitStack() as resources:
        with _own_signals():
            ray = _on_this_machine(engine.workers, resources) if engine.address is None else _at(engine.address)
        try:
            yield ray
        finally:
            with _own_signals():
                ray.shutdown()


def check_installed() -> str:
    """The version of Ray; ConfigError if it is missing, or does not fit."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(f"engine.type: Ray is not installed: {_INSTALL}") from None
    check_version(version)
    return version


def check_version(version: str) -> None:
    """ConfigError if a version of Ray does not fit."""
    if not OLDEST <= tuple(int(n) for n in _NUMBER.findall(version)[:2]) < BELOW:
        oldest = ".".join(map(str, OLDEST))
        raise ConfigError(
            f"engine.type: Ray {version} is installed, but {oldest} or newer, below {BELOW[0]}, is needed: {_INSTALL}"
        )


def _on_this_machine(workers: int, resources: contextlib.ExitStack) -> Any:
    """Ray, started for this run: on loopback, with a token that only its own processes know, and without a dashboard.

    The variables stay set: Ray's processes inherit them, and this one needs the token as long as it is connected.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's own switch for a node that listens on loopback only
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    ray = _imported()
    folder = resources.enter_context(own_folder())
    try:
        _init(
            ray,
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=STORE,
            _temp_dir=folder,
        )
    except (RuntimeError, ValueError, OSError) as e:
        raise ConfigError(f"engine: Ray does not start on this machine: {_first_line(e)}") from e
    return ray


def _at(address: str) -> Any:
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", TRIES)
    ray = _imported()
    if address != "auto":
        _knock(address)
    try:
        _init(ray, address=address)
    except (ConnectionError, TimeoutError, socket.gaierror) as e:
        refused = "AuthenticationError" in str(e.__cause__)  # Ray has it as the text of a traceback only
        raise (_refused(address) if refused else _no_answer(address, e)) from e
    except (RuntimeError, ValueError, OSError) as e:  # other versions of Ray or Python
        raise _cannot_join(address, _first_line(e)) from e
    except ray.exceptions.AuthenticationError as e:  # RAY_AUTH_MODE is set, and no token
        raise _refused(address) from e
    return ray


def _cannot_join(address: str, why: str) -> ConfigError:
    return ConfigError(f"engine.address: cannot join the Ray cluster at {address}: {why}")


def _refused(address: str) -> ConfigError:
    return _cannot_join(
        address,
        "it refuses the token of this process, or there is none. RAY_AUTH_MODE and RAY_AUTH_TOKEN must be what the "
        "cluster was started with",
    )


def _knock(address: str) -> None:
    """TransientError if nothing listens there, or nothing leads there (the machine is down): Ray itself would wait for
    more than a minute, and write warnings of its own.
    """
    parsed = Address.parsed(address)
    try:
        socket.create_connection((parsed.host, parsed.port), KNOCK).close()
    except OSError as e:
        raise _no_answer(address, e) from e


def _no_answer(address: str, error: OSError) -> TransientError:
    why, listens = _first_line(error), ""
    if "Failed to connect to Ray cluster" in why:
        listens = (
            " If something listens there, it is no head of Ray 2.x (whose port is 6379 by default), or has another "
            "RAY_AUTH_MODE than this process."
        )
    return TransientError(
        f"engine.address: no Ray cluster answers at {address}: {why}.{listens} Start this command on a node of a "
        "cluster; without the option, the run starts Ray on this machine"
    )


def _imported() -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    return importlib.import_module("ray")


def _init(ray: Any, **options: Any) -> None:
    ray.init(namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **options)


def incarnation(actor: Any) -> int | None:
    """Which process of an actor Ray runs, by the number of its restarts; None while Ray starts one.

    Ray's public functions for that need its dashboard. Where this one is missing, all processes have one number.
    """
    try:
        entry = importlib.import_module("ray._private.state").actors(actor._actor_id.hex())
        return int(entry["NumRestarts"]) if entry["State"] == "ALIVE" else None
    except (ImportError, AttributeError, KeyError, TypeError):
        return 0


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
