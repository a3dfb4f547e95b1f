"""The Runtime API of AWS Lambda on loopback, and containers: processes in which AWS' own client runs the function."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

ARN = "arn:aws:lambda:eu-west-1:000000000000:function:replicator"


class InvocationError(Exception):
    """The function raised, or its container ended, before there was a response."""


class Container:
    """A container: a process, and the Runtime API that only it uses. ``timeout``: seconds of an invocation."""

    def __init__(self, handler: str, environment: Mapping[str, str], log: Path, timeout: float = 60.0) -> None:
        self._timeout, self._events = timeout, queue.Queue[dict[str, Any]]()
        self._answers: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        api = f"127.0.0.1:{self._server.server_address[1]}"
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "awslambdaric", handler],
                env={**os.environ, **environment, "AWS_LAMBDA_RUNTIME_API": api},
                cwd=log.parent,
                stdout=out,
                stderr=out,
            )

    def __enter__(self) -> Container:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        self._server.shutdown()
        self._server.server_close()

    def send(self, event: dict[str, Any]) -> None:
        """Invoke the function, without waiting for the response."""
        self._events.put(event)

    def response(self, within: float = 60.0) -> Any:
        """The response to the last invocation. InvocationError if there is none."""
        deadline = time.monotonic() + within
        while True:
            try:
                kind, body = self._answers.get(timeout=0.1)
            except queue.Empty:
                if self.process.poll() is None and time.monotonic() < deadline:
                    continue
                raise InvocationError(f"no response: {self.log.read_text()}") from None
            if kind == "response":
                return body
            raise InvocationError(f"{body.get('errorType')}: {body.get('errorMessage')}")

    def invoke(self, event: dict[str, Any]) -> Any:
        self.send(event)
        return self.response()

    def kill(self) -> None:
        """What Lambda does when the time of an invocation is over."""
        self.process.kill()
        self.process.wait()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        events, answers, timeout = self._events, self._answers, self._timeout

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = json.dumps(events.get()).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", uuid.uuid4().hex)
                self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + timeout) * 1000)))
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", ARN)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answers.put((self.path.rpartition("/")[2], json.loads(body)))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
