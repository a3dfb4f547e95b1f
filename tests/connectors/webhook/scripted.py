"""A receiver in this process that answers as a test says, and remembers what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def message(self) -> Any:
        return json.loads(self.body)

    @property
    def keys(self) -> list[str]:
        """The first part of each event's id; empty if it is no message about changes."""
        return [event["id"][0] for event in self.message["data"].get("events", ())]


@dataclass(frozen=True)
class Answer:
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


LOST = Answer(0)
"""The request was received, and the connection is closed without a response."""


class Scripted:
    """``answer`` decides; what it was asked is in ``requests``."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Answer] = willing
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/TOKEN"

    @property
    def changes(self) -> list[Request]:
        return [r for r in self.requests if r.message["type"] == "replicator.changes"]


def willing(request: Request) -> Answer:
    """Accepts everything; no table has an epoch."""
    names = request.message["data"].get("tables", ())
    return Answer(body=json.dumps({"epochs": dict.fromkeys(names)}).encode())


def always(status: int, **headers: str) -> Callable[[Request], Answer]:
    return lambda _: Answer(status, {name.replace("_", "-"): value for name, value in headers.items()})


@contextmanager
def serving() -> Iterator[Scripted]:
    scripted = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            scripted.requests.append(request := Request(self.path, headers, body))
            answer = scripted.answer(request)
            if answer is LOST:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        scripted.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield scripted
        finally:
            server.shutdown()
            thread.join()
