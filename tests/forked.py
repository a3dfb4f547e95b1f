"""Starts ``python -m replicator`` as a fork of a process that has imported everything already.

A new interpreter needs a second of CPU time for its imports, and the tests start some two thousand. The fork is a
process of its own all the same: with its own environment, folder, standard streams, signals, and exit code. Tests of
starting up, of memory, and those that need other interpreter settings start a new interpreter.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_BYTES = 4_000_000  # of a request, at most: arguments and environment
_OF_THE_INTERPRETER = ("PYTHON", "LD_", "LC_", "LANG", "FAKETIME", "AWS_DATA_PATH")


def can_fork(environ: Mapping[str, str]) -> bool:
    """Whether a command with this environment may be a fork: nothing that is read at the start of Python differs."""
    wanted = {name: value for name, value in environ.items() if name.startswith(_OF_THE_INTERPRETER)}
    return wanted == {name: value for name, value in os.environ.items() if name.startswith(_OF_THE_INTERPRETER)}


class Forked(subprocess.Popen[str]):
    """``[python, -m, replicator, …]``, forked. ``env`` and the three streams as for ``Popen``."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        cwd, env, streams = given[4], given[5], given[9:15]  # as CPython 3.11 to 3.14 pass them
        reading, _, _, out, _, err = streams
        request = {
            "arguments": args[3:],
            "environ": dict(os.environ if env is None else env),
            "cwd": str(cwd or os.getcwd()),
        }
        fds = [0 if reading == -1 else reading, 1 if out == -1 else out, 2 if err == -1 else err]
        self.pid = _server().start(request, fds)
        self._exited = os.pidfd_open(self.pid)
        self._child_created = True
        self._close_pipe_fds(*streams)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if not wait_flags & os.WNOHANG:
            select.select([self._exited], [], [])
        return _server().status(self.pid)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = _server().status(self.pid)
            if pid == self.pid:
                self._handle_exitstatus(status)  # type: ignore[attr-defined]
        return self.returncode

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        os.close(self._exited)


class _Server:
    """The process that forks, seen from the tests."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._channel.setsockopt(socket.SOL_SOCKET, option, _BYTES)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT
            )
        self._lock = threading.Lock()

    def start(self, request: Mapping[str, Any], fds: list[int]) -> int:
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], fds)
            return int(self._channel.recv(100))

    def status(self, pid: int) -> tuple[int, int]:
        """What ``waitpid`` returns in the process that forks, without waiting."""
        with self._lock:
            self._channel.send(json.dumps({"pid": pid}).encode())
            found, status = json.loads(self._channel.recv(100))
            return found, status


@cache
def _server() -> _Server:
    return _Server()


def serve(channel: socket.socket) -> dict[str, Any]:
    """Fork for each request. Returns in the fork, with its request."""
    while True:
        message, fds, _, _ = socket.recv_fds(channel, _BYTES, 3)
        if not message:  # the tests have ended
            os._exit(0)
        request: dict[str, Any] = json.loads(message)
        if "pid" in request:
            channel.send(json.dumps(os.waitpid(request["pid"], os.WNOHANG)).encode())
            continue
        if (pid := os.fork()) == 0:
            for stream, fd in enumerate(fds):
                os.dup2(fd, stream)
            _close(channel, fds)
            return request
        for fd in fds:
            os.close(fd)
        channel.send(str(pid).encode())


def _close(channel: socket.socket, fds: list[int]) -> None:
    channel.close()
    for fd in fds:
        os.close(fd)


def _import_all() -> None:
    for name in _modules():
        importlib.import_module(name)
    import boto3

    boto3.client("dynamodb", region_name="us-east-1", aws_access_key_id="local", aws_secret_access_key="local")
    gc.collect()
    gc.freeze()


def _modules() -> Iterator[str]:
    for package in ("replicator", "connectors"):
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.startswith("replicator.testing") and not module.name.endswith("__main__"):
                yield module.name


def main() -> None:
    _import_all()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: it is for the tests
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.argv = ["replicator", *request["arguments"]]
    runpy.run_module("replicator", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
