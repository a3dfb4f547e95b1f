"""Responses that are endless, huge when decompressed, or trickle: from AWS over boto3, search engines, receivers."""

from __future__ import annotations

import contextlib
import gzip
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest

from connectors.elasticsearch import ElasticsearchOptions
from connectors.search import nodes
from connectors.search.connection import Connection
from connectors.search.errors import ResponseLost
from connectors.search.nodes import node_configs
from connectors.webhook import client
from connectors.webhook.messages import note
from connectors.webhook.options import WebhookOptions
from replicator import response_limits
from replicator.aws import boto
from replicator.aws.boto import connect
from replicator.aws.errors import AwsError, failure
from replicator.config.settings import Source
from replicator.errors import TransientError

LARGEST = 1 << 20
HEAD = "HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{more}\r\n"
Pieces = Iterator[bytes]


class Ask(Protocol):
    """Make one request; returns the body of its response, or the error's message."""

    def __call__(self, timeout: float = 5.0) -> bytes | str: ...


class Server:
    """Sends what ``says`` yields in response to each request on a connection."""

    def __init__(self, says: Callable[[], Pieces]) -> None:
        self.says = says
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while _received(connection):
                for piece in self.says():
                    connection.sendall(piece)

    def close(self) -> None:
        self._listening.close()


def _received(connection: socket.socket) -> bool:
    """Read a whole request; False if the connection ended."""
    text = b""
    while b"\r\n\r\n" not in text:
        if not (more := connection.recv(1 << 16)):
            return False
        text += more
    head, _, body = text.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head.lower())
    missing = int(found[1]) - len(body) if found else 0
    while missing > 0:
        missing -= len(connection.recv(missing))
    return True


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(lambda: iter(()))
    yield found
    found.close()


@pytest.fixture(params=["boto3", "search"])
def ask(request: pytest.FixtureRequest, server: Server, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setattr(response_limits, "LARGEST", LARGEST)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    url = f"http://127.0.0.1:{server.port}"
    made: list[Any] = []

    def aws(timeout: float = 5.0) -> bytes | str:
        if not made:
            made.append(connect(Source(table="orders", region="eu-west-1", endpoint_url=url, timeout=timeout)))
        try:
            return bytes(made[0].call("Scan", {"TableName": "orders"}))
        except AwsError as e:
            if e.status:
                raise
            return str(failure(e, "Scan", "orders"))

    def search(timeout: float = 5.0) -> bytes | str:
        if not made:
            nodes = node_configs(url, ElasticsearchOptions(url=url, timeout=timeout))
            made.append(Connection(nodes, "Elasticsearch"))
        try:
            return made[0].request("GET", "/").body  # type: ignore[no-any-return]
        except ResponseLost as e:
            return str(e)

    return aws if request.param == "boto3" else search


def answer(body: bytes, *headers: str, whole: bool = True) -> bytes:
    more = [*headers, f"content-length: {len(body) + (0 if whole else 5)}"]
    return HEAD.format(status="200 OK", more="".join(f"{line}\r\n" for line in more)).encode() + body


def test_a_response_is_read_completely_and_its_connection_reused(server: Server, ask: Ask) -> None:
    large = b'{"a": "' + b"x" * 900_000 + b'"}'
    for body in (b"{}", large, b"{}"):
        server.says = lambda body=body: iter([answer(body)])  # type: ignore[misc]
        assert ask() == body
    chunks = (
        HEAD.format(status="200 OK", more="transfer-encoding: chunked\r\n").encode() + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
    )
    server.says = lambda: iter([chunks[:-3], chunks[-3:]])
    assert ask() == b"{}"
    assert server.connections == 1


def test_a_compressed_response_is_decompressed(server: Server, ask: Ask) -> None:
    body = b'{"a": "' + b"x" * 900_000 + b'"}'
    server.says = lambda: iter([answer(gzip.compress(body), "content-encoding: gzip")])
    assert ask() == body


def endless() -> Pieces:
    yield HEAD.format(status="200 OK", more="transfer-encoding: chunked\r\n").encode()
    for _ in range(64):
        yield b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"


BOMB = gzip.compress(bytes(8 << 20))


def bomb() -> Pieces:
    yield answer(BOMB, "content-encoding: gzip")


def large() -> Pieces:
    yield answer(bytes(LARGEST + 1))


@pytest.mark.parametrize("says", [endless, bomb, large])
def test_an_oversized_response_is_abandoned(server: Server, ask: Ask, says: Callable[[], Pieces]) -> None:
    for _ in range(60):  # more often than there are connections: each must be returned to the pool
        server.says = says
        assert "larger than 1,048,576 bytes" in str(ask())
    server.says = lambda: iter([answer(b"{}")])
    assert ask() == b"{}"


DAMAGED: Sequence[bytes] = (
    answer(b"no gzip", "content-encoding: gzip"),
    answer(gzip.compress(b"{}")[:-9], "content-encoding: gzip"),
    answer(zlib.compress(b"{}"), "content-encoding: deflate"),
    answer(b"{}", "content-encoding: x-unknown"),
)


@pytest.mark.parametrize("body", DAMAGED, ids=["no gzip", "cut", "deflate", "unknown"])
def test_what_cannot_be_decompressed_is_a_lost_response(server: Server, ask: Ask, body: bytes) -> None:
    server.says = lambda: iter([body])
    assert isinstance(ask(), str)
    server.says = lambda: iter([answer(b"{}")])
    assert ask() == b"{}"


def test_a_trickling_response_is_abandoned_after_five_timeouts(server: Server, ask: Ask) -> None:
    stopped = threading.Event()

    def says() -> Pieces:
        yield answer(b"", whole=False).replace(b"content-length: 5", b"content-length: 5000")
        while not stopped.wait(0.02):
            yield b" "

    server.says = says
    began = time.monotonic()
    said = str(ask(timeout=1.0))
    stopped.set()
    assert "did not respond in time" in said or "Read timeout" in said
    assert time.monotonic() - began >= response_limits.WHOLE * 1.0


OK = HEAD.format(status="200 OK", more="transfer-encoding: chunked\r\n").encode()
FOREVER: dict[str, tuple[bytes, bytes]] = {
    "the head": (b"HTTP/1.1 200 OK\r\nx-a: ", b"a"),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the size of a chunk": (OK, b"0"),
    "trailers": (OK + b"2\r\n{}\r\n0\r\n", b"x: y\r\n"),
    "trailers at full speed": (OK + b"2\r\n{}\r\n0\r\n", b"x: y\r\n" * 1000),
}


@pytest.mark.parametrize("part", FOREVER)
@pytest.mark.parametrize("kind", ["boto3", "search", "webhook"])
def test_a_response_that_never_ends_is_abandoned_whichever_part_does_not_end(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, part: str
) -> None:
    for module in (boto, nodes, client):
        monkeypatch.setattr(module, "WHOLE", 1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    begun, again = FOREVER[part]
    stopped = threading.Event()

    def says() -> Pieces:
        yield begun
        while not stopped.wait(0.0 if "full speed" in part else 0.02):
            yield again

    server.says = says
    came: list[str] = []
    thread = threading.Thread(target=lambda: came.append(asked(kind, server.port)), daemon=True)
    thread.start()
    thread.join(15)
    stopped.set()
    assert came, "the exchange does not end"
    assert "did not respond in time" in came[0] or "Read timeout" in came[0]


def asked(kind: str, port: int) -> str:
    """The message of the error with a timeout of one second."""
    url = f"http://127.0.0.1:{port}"
    try:
        if kind == "boto3":
            connect(Source(table="orders", region="eu-west-1", endpoint_url=url, timeout=1)).call("ListTables", {})
        elif kind == "search":
            Connection(node_configs(url, ElasticsearchOptions(url=url, timeout=1)), "Elasticsearch").request("GET", "/")
        else:
            options = WebhookOptions.model_validate({"url": url, "secret": "whsec_" + "b2xk" * 8, "timeout": 1})
            client.Client(options).send(note("id", "state", 0.0, {}))
    except (AwsError, TransientError) as e:
        return str(e)
    return "a response"


def test_a_truncated_response_is_lost(server: Server, ask: Ask) -> None:
    def says() -> Pieces:
        yield answer(b"{}", whole=False)
        raise OSError

    server.says = says
    assert isinstance(ask(), str)
    server.says = lambda: iter([answer(b"{}")])
    assert ask() == b"{}"
