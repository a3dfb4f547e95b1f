"""A DynamoDB that accepts every write after a delay, in a separate process, so that only the client is measured."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_YES = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: %d\r\n\r\n%s"
_ANSWER = b'{"UnprocessedItems":{}}'


class Yes(asyncio.Protocol):
    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if end and length is not None and len(body) >= int(length[1]):
            self._received = body[int(length[1]) :]
            asyncio.get_running_loop().call_later(self._latency, self._answer)

    def _answer(self) -> None:
        self._transport.write(_YES % (len(_ANSWER), _ANSWER))


async def serve(latency: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Yes(latency), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextlib.contextmanager
def endpoint(latency: float) -> Iterator[str]:
    """The URL of such a server during the block. ``latency``: seconds per response."""
    command = [sys.executable, "-m", "benchmarks.writes", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writes")
    parser.add_argument("--latency", type=float, default=0.0)
    asyncio.run(serve(parser.parse_args().latency))
