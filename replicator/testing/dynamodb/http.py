"""Serves the in-memory DynamoDB over HTTP on loopback, so that boto3 can use it; and a client without signatures.

python -m replicator.testing.dynamodb.http --port 8000 --shards 4
"""

from __future__ import annotations

import argparse
import http.client
import random
import socket
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import orjson

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, refusal
from replicator.testing.dynamodb import DynamoDB

_STREAMS = frozenset({"DescribeStream", "GetShardIterator", "GetRecords", "ListStreams"})
_CONTENT = "application/x-amz-json-1.0"
_UNSIGNED = (
    "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0"
)


class UnsignedClient:
    """A ``Client`` for endpoints that do not check signatures: DynamoDB Local, or ``served``."""

    def __init__(self, endpoint: str, timeout: float = 30.0) -> None:
        self._host = urlsplit(endpoint).netloc
        self._timeout = timeout

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        service = "DynamoDBStreams_20120810" if operation in _STREAMS else "DynamoDB_20120810"
        headers = {
            "X-Amz-Target": f"{service}.{operation}",
            "Content-Type": _CONTENT,
            "Authorization": _UNSIGNED,
        }
        connection = http.client.HTTPConnection(self._host, timeout=self._timeout)
        try:
            connection.request("POST", "/", orjson.dumps(request), headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as e:
            raise AwsError(type(e).__name__, str(e), 0) from e
        finally:
            connection.close()
        if response.status == 200:
            return body
        raise refusal(body, response.status)


class _Handler(BaseHTTPRequestHandler):
    """One connection: serves requests until the client closes it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_POST(self) -> None:
        operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, response = _respond(self.server.client, operation, body)
        self.send_response_only(status)
        self.send_header("Content-Type", _CONTENT)
        self.send_header("Content-Length", str(len(response)))
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


def _respond(client: Client, operation: str, body: bytes) -> tuple[int, bytes]:
    try:
        return 200, client.call(operation, orjson.loads(body))
    except orjson.JSONDecodeError as e:
        return 400, _error_body("com.amazon.coral.service#SerializationException", str(e))
    except AwsError as e:
        return e.status, _error_body(_type(e.code), e.message) if not e.details else orjson.dumps(
            {"__type": _type(e.code), "message": e.message, **e.details}
        )


def _type(code: str) -> str:
    space = "com.amazon.coral.validate" if code == "ValidationException" else "com.amazonaws.dynamodb.v20120810"
    return f"{space}#{code}"


def _error_body(type: str, message: str) -> bytes:
    return orjson.dumps({"__type": type, "message": message})


class _Server(ThreadingHTTPServer):
    """Tracks its connections, so that closing the server closes them too."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, client: Client, port: int, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.client = client
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self._connections: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; print anything else, which is a bug."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def cut(self) -> None:
        """Close all connections, even with requests in flight."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def served(client: Client, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The URL under which ``client`` is served on loopback while the block runs. Port 0: any free port.

    ``tls``: a context with the server's certificate, to serve HTTPS instead.
    """
    with _Server(client, port, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True, name="dynamodb-http")
        thread.start()
        try:
            yield server.endpoint
        finally:
            server.shutdown()
            server.cut()
            thread.join()


def main() -> None:
    """Serve an empty in-memory DynamoDB until interrupted; its URL is the first line printed."""
    parser = argparse.ArgumentParser(prog="python -m replicator.testing.dynamodb.http", description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1, help="shards of a new stream")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    database = DynamoDB(now=time.time, random=random.Random(args.seed), shards=args.shards)
    with _Server(database, args.port) as server, suppress(KeyboardInterrupt):
        print(server.endpoint, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
