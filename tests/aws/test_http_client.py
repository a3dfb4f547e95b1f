"""Our HTTP client goes where boto3 goes, signs as it signs, makes many calls at once, and detects every failure."""

from __future__ import annotations

import base64
import contextlib
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from replicator.aws.boto import Boto, connect
from replicator.aws.client import Call, Calls
from replicator.aws.endpoint import Endpoint, connected
from replicator.aws.errors import AwsError, NotConnected, failure
from replicator.aws.http_client import HttpClient, Route
from replicator.aws.sigv4 import Keys
from replicator.aws.threaded import Threads
from replicator.config.settings import Source
from replicator.errors import NotPermitted, TransientError
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.aws_environment import isolate
from tests.certificates import certificate_in, presenting

SOON = 10.0
CALL = Call("Scan", {"TableName": "orders"})
Answer = Callable[[bytes, bytes], bytes | None]  # from a request's head and body to the bytes to send; None: hang up


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path, "AWS_CA_BUNDLE", "AWS_ACCOUNT_ID")
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def boto(url: str | None, **more: Any) -> Boto:
    return connect(Source(table="orders", **({"region": "us-east-1", "endpoint_url": url} | more)))


@dataclass
class Server:
    """Accepts any number of connections and responds to each request with what ``answer`` returns."""

    answer: Answer
    asked: list[tuple[bytes, bytes]] = field(default_factory=list)
    accepted: list[socket.socket] = field(default_factory=list)
    url: str = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                self.accepted.append(connection)
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as given:
            while b" HTTP/1." in (head := _head(given)):
                size = next((int(h[16:]) for h in head.split(b"\r\n") if h.startswith(b"content-length: ")), 0)
                self.asked.append((head, given.read(size)))
                response = self.answer(*self.asked[-1])
                if response is None:
                    return
                connection.sendall(response)


def _head(given: BinaryIO) -> bytes:
    """Up to the empty line, or the end of the connection."""
    lines: Iterator[bytes] = takewhile(lambda line: line.strip(), iter(given.readline, b""))
    return b"".join(lines)


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(answer, url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=server.serve, args=(listener,))
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in server.accepted:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def http(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def client_of(url: str, timeout: float = 5.0, **more: Any) -> Iterator[HttpClient]:
    route = Route(Endpoint(url, "us-east-1", "", **more), "DynamoDB_20120810.Scan", "dynamodb")
    made = HttpClient(lambda _: route, lambda: Keys("ours", "secret"), timeout)
    try:
        yield made
    finally:
        made.close()


def next_of(calls: Calls) -> tuple[Any, bytes | Exception]:
    until = time.monotonic() + SOON
    while time.monotonic() < until:
        if (response := calls.next(0.1)) is not None:
            return response
    raise AssertionError("no response")


def asked(calls: Calls, call: Call = CALL) -> bytes | Exception:
    calls.begin("one", call)
    name, answer = next_of(calls)
    assert name == "one"
    return answer


def refused(calls: Calls, call: Call = CALL) -> AwsError:
    found = asked(calls, call)
    assert isinstance(found, AwsError)
    return found


# Routes


@pytest.fixture
def db() -> DynamoDB:
    made = DynamoDB(now=lambda: 0.0, random=random.Random(1))
    made.create_table("orders")
    return made


def test_responses_are_the_bytes_that_boto3_returns(db: DynamoDB) -> None:
    db.put("orders", {"id": "a", "n": 10**37, "raw": b"\x00\xff", "tags": {"x"}})
    requests: Mapping[str, Mapping[str, Any]] = {
        "Scan": {"TableName": "orders"},
        "BatchGetItem": {"RequestItems": {"orders": {"Keys": [{"id": {"S": "a"}}]}}},
        "DescribeStream": {"StreamArn": db.stream_arn("orders")},
    }
    with served(db) as url:
        client = boto(url)
        with contextlib.closing(client.calls()) as calls:
            for operation, request in requests.items():
                assert asked(calls, Call(operation, request)) == client.call(operation, request)
        client.close()


def test_a_call_goes_where_boto3_sends_it_and_is_signed_for_that() -> None:
    client = boto(None, region="eu-west-1")
    assert {call: (r.endpoint.url, r.endpoint.region, r.target, r.service) for call, r in _routes(client)} == {
        "Scan": ("https://dynamodb.eu-west-1.amazonaws.com", "eu-west-1", "DynamoDB_20120810.Scan", "dynamodb"),
        "GetRecords": (
            "https://streams.dynamodb.eu-west-1.amazonaws.com",
            "eu-west-1",
            "DynamoDBStreams_20120810.GetRecords",
            "dynamodb",
        ),
    }


def _routes(client: Boto) -> Iterator[tuple[str, Route]]:
    for call in (CALL, Call("GetRecords", {"ShardIterator": "x"})):
        yield call.operation, client.route(call)


def test_account_endpoints_are_those_of_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCOUNT_ID", "123456789012")
    client = boto(None, region="eu-west-1")
    assert client.route(CALL).endpoint.url == "https://123456789012.ddb.eu-west-1.amazonaws.com"
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    assert "fips" in boto(None, region="us-east-1").route(CALL).endpoint.url


def test_finding_the_route_sends_nothing_and_calls_after_it_do(db: DynamoDB) -> None:
    with served(db) as url:
        client = boto(url)
        client.route(CALL)
        assert db.calls["Scan"] == 0
        client.call("Scan", CALL.request)
        assert db.calls["Scan"] == 1
        client.close()


def test_each_request_is_signed_with_the_current_keys() -> None:
    with serving(lambda *_: http()) as server:
        keys = [Keys("first", "s", "token"), Keys("second", "s")]
        route = Route(Endpoint(server.url, "us-east-1", ""), "DynamoDB_20120810.Scan", "dynamodb")
        with contextlib.closing(HttpClient(lambda _: route, lambda: keys.pop(0), 5.0)) as calls:
            assert [asked(calls), asked(calls)] == [b"{}", b"{}"]
    (first, body), (second, _) = server.asked
    assert body == b'{"TableName":"orders"}'
    assert b"x-amz-target: DynamoDB_20120810.Scan" in first
    assert b"Credential=first/" in first
    assert b"x-amz-security-token: token" in first
    assert b"Credential=second/" in second


def test_without_credentials_the_call_is_not_permitted(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with served(db) as url, contextlib.closing(boto(url).calls()) as calls:
        assert isinstance(failure(refused(calls), "Scan", "orders"), NotPermitted)


# Concurrency


def test_calls_are_in_flight_together_and_their_connections_are_reused() -> None:
    together = threading.Barrier(12, timeout=SOON)

    def echo(head: bytes, body: bytes) -> bytes:
        together.wait()
        return http(body)

    with serving(echo) as server, client_of(server.url) as calls:
        for turn in range(3):
            for n in range(12):
                calls.begin(n, Call("Scan", {"n": n, "turn": turn}))
            found = dict(next_of(calls) for _ in range(12))
            assert found == {n: orjson.dumps({"n": n, "turn": turn}) for n in range(12)}
    assert len(server.accepted) == 12


def test_connections_being_opened_are_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick one served the requests that the others were opened for; they serve the next requests."""
    gate, made = threading.Event(), count()

    def slowly(endpoint: Endpoint, timeout: float) -> socket.socket:
        if next(made) > 0:
            gate.wait(SOON)
        return connected(endpoint, timeout)

    monkeypatch.setattr("replicator.aws.http_client.connected", slowly)
    with serving(lambda head, body: http(body)) as server, client_of(server.url) as calls:
        for n in range(4):
            calls.begin(n, CALL)
        assert {next_of(calls)[0] for _ in range(4)} == {0, 1, 2, 3}
        for n in range(4):
            calls.begin(n, CALL)
        gate.set()
        assert {next_of(calls)[0] for _ in range(4)} == {0, 1, 2, 3}
        for thread in [thread for thread in threading.enumerate() if thread.name == "connecting"]:
            thread.join(SOON)
    assert next(made) == 4


def test_an_encoded_body_is_sent_unchanged() -> None:
    body = b'{ "TableName":"orders","Item":{"id":{"S":"\\u0041"}}}'
    with serving(lambda head, body: http(body)) as server, client_of(server.url) as calls:
        assert asked(calls, Call("PutItem", {"TableName": "orders"}, body)) == body


def test_a_slow_response_does_not_block_others() -> None:
    gate = threading.Event()

    def slow(head: bytes, body: bytes) -> bytes:
        if b"slow" in body:
            gate.wait(SOON)
        return http(body)

    with serving(slow) as server, client_of(server.url) as calls:
        calls.begin("slow", Call("Scan", {"slow": 1}))
        for _ in range(5):
            assert asked(calls) == b'{"TableName":"orders"}'
        gate.set()
        assert next_of(calls) == ("slow", b'{"slow":1}')


def test_large_requests_and_responses_pass() -> None:
    with serving(lambda head, body: http(body)) as server, client_of(server.url) as calls:
        request = {"filler": "x" * 20_000_000}
        assert asked(calls, Call("BatchGetItem", request)) == orjson.dumps(request)


def test_with_nothing_in_flight_next_returns_none_after_the_timeout() -> None:
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        assert calls.next(0) is None
        begun = time.monotonic()
        assert calls.next(0.05) is None
        assert time.monotonic() - begun >= 0.04


# Failures


def test_an_error_keeps_its_code_message_status_and_details(db: DynamoDB) -> None:
    db.fail("Scan", "ProvisionedThroughputExceededException", message="just so")
    with served(db) as url, contextlib.closing(boto(url).calls()) as calls:
        error = refused(calls)
    assert (error.code, error.message, error.status) == ("ProvisionedThroughputExceededException", "just so", 400)
    body = b'{"__type":"com.amazonaws.dynamodb.v20120810#Some:http://x/","Message":"m","Item":{"id":{"S":"a"}}}'
    with serving(lambda *_: http(body, "400 Bad")) as server, client_of(server.url) as calls:
        error = refused(calls)
    assert (error.code, error.message, error.details) == ("Some", "m", {"Item": {"id": {"S": "a"}}})


def test_a_response_that_is_not_dynamodbs_is_transient() -> None:
    said = b""
    with serving(lambda *_: said) as server, client_of(server.url) as calls:
        for status in ("201 Created", "302 Found", "403 No", "407 Proxy", "502 Bad", "503 Busy"):
            for body in (b"<html>proxy</html>", b"", b"[]", b"null", b'"no"', b'{"__type":1}'):
                said = http(body, status)
                assert isinstance(failure(refused(calls), "Scan", "orders"), TransientError)


def transient(found: AwsError, code: str) -> None:
    assert (found.code, found.status) == (code, 0)
    assert isinstance(failure(found, "Scan", "orders"), TransientError)


def test_a_refused_connection_is_reported_to_the_caller() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: the port is reserved and refuses connections
        with client_of(f"http://127.0.0.1:{taken.getsockname()[1]}") as calls:
            transient(refused(calls), "EndpointConnectionError")


def test_a_silent_server_times_out_and_calls_beside_it_do_not() -> None:
    silent = threading.Event()

    def answer(head: bytes, body: bytes) -> bytes:
        if b"silent" in body:
            silent.wait(SOON)
        return http()

    with serving(answer) as server, client_of(server.url, timeout=3.0) as calls:
        calls.begin("silent", Call("Scan", {"silent": 1}))
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert asked(calls) == b"{}"
        name, found = next_of(calls)
        silent.set()
    assert name == "silent"
    assert isinstance(found, AwsError)
    transient(found, "ReadTimeoutError")


@pytest.mark.parametrize("slept", [31.0, -5.0], ids=["a minute", "its clock was set back"])
def test_a_request_that_waited_through_a_suspension_is_not_sent(slept: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run may have taken over in the meantime."""
    gate, now = threading.Event(), time.time

    def slowly(endpoint: Endpoint, timeout: float) -> socket.socket:
        gate.wait(SOON)
        return connected(endpoint, timeout)

    monkeypatch.setattr("replicator.aws.http_client.connected", slowly)
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        calls.begin("late", CALL)
        monkeypatch.setattr(time, "time", lambda: now() + slept)
        gate.set()
        name, found = next_of(calls)
        assert (name, type(found)) == ("late", NotConnected)
        assert asked(calls) == b"{}"
        assert len(server.asked) == 1


def test_a_request_half_sent_before_a_suspension_is_not_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    size, now, taken = 20_000_000, time.monotonic, list[int]()

    def take_all(connection: socket.socket) -> None:
        with connection:
            taken.extend(iter(lambda: len(connection.recv(1 << 20)), 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        with client_of(f"http://127.0.0.1:{listener.getsockname()[1]}") as calls:
            calls.begin("large", Call("PutItem", {"filler": "x" * size}))
            connection, _ = listener.accept()
            assert calls.next(0.5) is None
            monkeypatch.setattr(time, "monotonic", lambda: now() + 10)
            thread = threading.Thread(target=take_all, args=(connection,))
            thread.start()
            name, found = next_of(calls)
        thread.join(SOON)
    assert name == "large"
    assert isinstance(found, AwsError)
    transient(found, "ReadTimeoutError")
    assert 0 < sum(taken) < size


def test_a_response_that_arrived_unnoticed_does_not_time_out() -> None:
    with serving(lambda *_: http()) as server, client_of(server.url, timeout=3.0) as calls:
        assert asked(calls) == b"{}"
        calls.begin("late", CALL)
        threading.Event().wait(3.5)  # a slow batch
        assert next_of(calls) == ("late", b"{}")


@pytest.mark.parametrize(
    "said",
    [None, b"HTTP/1.1 200 OK\r\nContent-", http(b"0123456789")[:-1], b"SSH-2.0-OpenSSH\r\n", b"\x15\x03\x01\r\n\r\n"],
    ids=["nothing", "half a head", "a body that is cut", "another protocol", "binary"],
)
def test_a_truncated_or_missing_response_is_lost_and_the_next_call_uses_another_connection(said: bytes | None) -> None:
    broken = [True]

    def answer(head: bytes, body: bytes) -> bytes | None:
        if not broken.pop():
            return http()
        if said is not None:
            server.accepted[-1].sendall(said)
        return None

    with serving(answer) as server, client_of(server.url) as calls:
        transient(refused(calls), "ConnectionClosedError")
        broken.append(False)
        assert asked(calls) == b"{}"


def test_a_corrupted_body_is_detected_by_dynamodbs_checksum() -> None:
    body = b'{"Items":[]}'
    right = http(body, "200 OK", f"x-amz-crc32: {zlib.crc32(body)}")
    with serving(lambda *_: right) as server, client_of(server.url) as calls:
        assert asked(calls) == body
    with serving(lambda *_: right.replace(b"Items", b"Itemz")) as server, client_of(server.url) as calls:
        transient(refused(calls), "ChecksumMismatch")


def test_a_chunked_body_is_read() -> None:
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{\n\r\n1\r\n}\r\n0\r\n\r\n"
    with serving(lambda *_: said) as server, client_of(server.url) as calls:
        assert [asked(calls), asked(calls)] == [b"{\n}"] * 2
    assert len(server.accepted) == 1


def test_a_connection_that_the_server_closes_is_not_reused() -> None:
    with serving(lambda *_: http(b"{}", "200 OK", "Connection: close")) as server, client_of(server.url) as calls:
        assert [asked(calls), asked(calls)] == [b"{}"] * 2
    assert len(server.accepted) == 2


def test_two_responses_to_one_request_count_as_lost() -> None:
    with serving(lambda *_: http(b"1") + http(b"2")) as server, client_of(server.url) as calls:
        error = refused(calls)
        transient(error, "ConnectionClosedError")
        assert "two responses to one request" in error.message


def test_a_long_idle_connection_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A NAT gateway or load balancer may have dropped it silently."""
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        assert asked(calls) == asked(calls) == b"{}"
        assert len(server.accepted) == 1
        monkeypatch.setattr("replicator.aws.http_client._STALE", -1.0)
        assert asked(calls) == b"{}"
        assert len(server.accepted) == 2


def test_an_idle_connection_closed_by_the_server_costs_no_call() -> None:
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        assert asked(calls) == b"{}"
        server.accepted[0].shutdown(socket.SHUT_RDWR)
        assert calls.next(0.1) is None
        assert asked(calls) == b"{}"


def test_an_idle_connection_closed_unnoticed_costs_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.aws.http_client._FRESH", -1.0)  # as if idle for longer
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        assert asked(calls) == b"{}"
        server.accepted[0].shutdown(socket.SHUT_RDWR)
        assert asked(calls) == b"{}"
        assert len(server.accepted) == 2


def test_an_unsolicited_response_is_not_given_to_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.aws.http_client._FRESH", -1.0)
    with serving(lambda *_: http(b'{"asked":1}')) as server, client_of(server.url) as calls:
        assert asked(calls) == b'{"asked":1}'
        server.accepted[0].sendall(http(b'{"stray":1}'))
        assert asked(calls) == b'{"asked":1}'
        assert len(server.accepted) == 2


def test_an_idle_connection_without_unsolicited_bytes_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.aws.http_client._FRESH", -1.0)
    with serving(lambda *_: http()) as server, client_of(server.url) as calls:
        assert [asked(calls) for _ in range(3)] == [b"{}"] * 3
        assert len(server.accepted) == 1


def test_an_endlessly_trickling_response_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replicator.aws.http_client.WHOLE", 0.02)
    monkeypatch.setattr("replicator.aws.http_client._POLL", 0.02)
    with serving(lambda *_: b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n") as server, client_of(server.url) as calls:
        error = refused(calls)
    transient(error, "ReadTimeoutError")
    assert "no complete response within 0.1 s (0.02 times timeout)" in error.message


@pytest.mark.parametrize("limit", ["_MAX_HEAD", "_MAX_BODY"])
def test_a_response_larger_than_any_of_dynamodbs_is_rejected(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"replicator.aws.http_connection.{limit}", 1000)
    said = http(b"x" * 2000) if limit == "_MAX_BODY" else http(b"{}", "200 OK", f"x: {'y' * 2000}")
    endless = said[:-1] if limit == "_MAX_BODY" else said[:-5]
    with serving(lambda *_: endless) as server, client_of(server.url) as calls:
        error = refused(calls)
    transient(error, "ConnectionClosedError")
    assert "larger than any DynamoDB sends" in error.message


def test_a_large_body_read_with_its_head_does_not_count_as_a_large_head() -> None:
    body = b"x" * 200_000
    with serving(lambda *_: http(body)) as server, client_of(server.url) as calls:
        assert [asked(calls) for _ in range(3)] == [body] * 3


@pytest.mark.parametrize("checksum", ["9" * 5000, "x", "-1"])
def test_an_invalid_checksum_is_a_mismatch(checksum: str) -> None:
    with (
        serving(lambda *_: http(b"{}", "200 OK", f"x-amz-crc32: {checksum}")) as server,
        client_of(server.url) as calls,
    ):
        transient(refused(calls), "ChecksumMismatch")


def test_the_path_of_an_endpoint_is_kept() -> None:
    with serving(lambda *_: http()) as server:
        for path in ("", "/", "/a", "/a-b/c%20d/"):
            client = boto(server.url + path)
            with contextlib.closing(client.calls()) as calls:
                client.call("Scan", CALL.request)
                assert asked(calls) == b"{}"
            client.close()
            theirs, ours = (head.split(b"\r\n")[0] for head, _ in server.asked[-2:])
            assert ours == theirs


def test_close_closes_every_connection_even_one_being_opened() -> None:
    with serving(lambda *_: None) as server, client_of(server.url) as calls:
        for n in range(20):
            calls.begin(n, CALL)
    connecting = [thread for thread in threading.enumerate() if thread.name == "connecting"]
    for thread in connecting:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in connecting)  # an open socket would be a ResourceWarning


# TLS and proxies


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secure(db: DynamoDB, certificate: Path) -> Iterator[str]:
    with served(db, tls=presenting(certificate)) as found:
        yield found


def test_tls_trusts_the_same_certificates_as_botocore(
    db: DynamoDB, secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(1000):
        db.put("orders", {"id": f"{n}", "filler": "x" * 900})
    with contextlib.closing(boto(secure).calls()) as calls:
        transient(refused(calls), "SSLError")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with contextlib.closing(boto(secure).calls()) as calls:
        assert [asked(calls) for _ in range(2)] == [db.call("Scan", CALL.request)] * 2


def tunnelling(port: int) -> Answer:
    """A proxy's side of CONNECT: then bytes go both ways."""

    def answer(head: bytes, body: bytes) -> bytes | None:
        near = proxy_of[port].accepted[-1]
        with socket.create_connection(("127.0.0.1", port)) as far:
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()
        return None

    return answer


proxy_of: dict[int, Server] = {}


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def test_https_goes_through_the_proxy_that_the_environment_names(
    db: DynamoDB, secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(secure.rpartition(":")[2])
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with serving(tunnelling(port)) as proxy:
        proxy_of[port] = proxy
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
        with contextlib.closing(boto(secure).calls()) as calls:
            assert asked(calls) == db.call("Scan", CALL.request)
    ((head, _),) = proxy.asked
    assert head.startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.".encode())
    assert base64.b64encode(b"me:p@ss") in head


def test_a_proxy_that_refuses_is_named_without_its_password(secure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: http(b"", "407 Proxy Authentication Required")) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.port}")
        with contextlib.closing(boto(secure).calls()) as calls:
            error = refused(calls)
    transient(error, "EndpointConnectionError")
    assert "through the proxy 127.0.0.1" in error.message
    assert "407" in error.message
    assert "secret" not in error.message


def test_http_goes_to_the_proxy_with_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: http()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:pass@127.0.0.1:{proxy.port}")
        with contextlib.closing(boto("http://dynamodb.example:8000", insecure=True).calls()) as calls:
            assert asked(calls) == b"{}"
    ((head, _),) = proxy.asked
    assert head.startswith(b"POST http://dynamodb.example:8000/ HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:pass") in head
    assert b"host: dynamodb.example:8000" in head


def test_no_proxy_is_used_for_an_exempt_host(db: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with served(db) as url, contextlib.closing(boto(url).calls()) as calls:
        assert isinstance(asked(calls), bytes)


def test_a_proxy_that_requires_tls_is_left_to_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy.example:443")
    with contextlib.closing(boto(None).calls()) as calls:
        assert isinstance(calls, Threads)
