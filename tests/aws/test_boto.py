"""boto3 as a client, over loopback HTTP: bodies pass through unchanged, errors keep their codes, nothing is retried."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from botocore.session import Session

from replicator.aws.boto import Boto, connect, region_and_partition
from replicator.aws.errors import AwsError, failure
from replicator.aws.sigv4 import Keys
from replicator.config.settings import Source
from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError
from replicator.source.table import describe_table
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.aws_environment import isolate

ROLE = "arn:aws:iam::123456789012:role/reader"
SCAN = {"TableName": "orders", "ConsistentRead": True}


@pytest.fixture(autouse=True)
def own_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    isolate(monkeypatch, tmp_path, "AWS_REGION", "AWS_DEFAULT_REGION")


@pytest.fixture
def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


@pytest.fixture
def db() -> DynamoDB:
    made = DynamoDB(now=lambda: 0.0, random=random.Random(1))
    made.create_table("orders")
    return made


@pytest.fixture
def client(db: DynamoDB) -> Iterator[Boto]:
    with served(db) as url:
        yield boto(url)


def boto(url: str | None, **more: Any) -> Boto:
    return connect(Source(table="orders", **({"region": "us-east-1", "endpoint_url": url} | more)))


def refused(client: Boto, operation: str = "Scan", **request: Any) -> AwsError:
    with pytest.raises(AwsError) as raised:
        client.call(operation, request or SCAN)
    return raised.value


@dataclass
class Server:
    """Returns one status and body to every request, and records the requests: (headers, body)."""

    status: int = 200
    body: bytes = b"{}"
    asked: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # else the body waits 40 ms for the acknowledgment of the headers

        def do_POST(self) -> None:
            server.asked.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(server.status)
            self.send_header("Content-Length", str(len(server.body)))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads, http.block_on_close = True, False
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


# bodies


def test_a_body_passes_through_byte_for_byte(db: DynamoDB, client: Boto) -> None:
    db.put("orders", {"id": "a", "n": 10**37, "raw": b"\x00\xff", "tags": {"x"}})
    assert client.call("Scan", SCAN) == db.call("Scan", SCAN)
    assert b'"N":"10000000000000000000000000000000000000"' in client.call("Scan", SCAN)


def test_every_operation_in_use_works(db: DynamoDB, client: Boto) -> None:
    db.put("orders", {"id": "a"})
    arn = db.stream_arn("orders")
    (shard,) = db.shards("orders")
    key = {"id": {"S": "a"}}
    requests: Mapping[str, Mapping[str, Any]] = {
        "DescribeTable": {"TableName": "orders"},
        "DescribeTimeToLive": {"TableName": "orders"},
        "GetItem": {"TableName": "orders", "Key": key},
        "BatchGetItem": {"RequestItems": {"orders": {"Keys": [key]}}},
        "DescribeStream": {"StreamArn": arn},
    }
    for operation, request in requests.items():
        assert client.call(operation, request) == db.call(operation, request)
    found = client.call(
        "GetShardIterator", {"StreamArn": arn, "ShardId": shard.id, "ShardIteratorType": "TRIM_HORIZON"}
    )
    assert b'"ShardIterator":' in found


def test_a_request_is_sent_unchanged_and_signed() -> None:
    with serving(Server(body=b'{"Items":[]}')) as server:
        boto(server.url).call("Scan", SCAN | {"ExclusiveStartKey": {"raw": {"B": "AP8="}}})
    ((headers, body),) = server.asked
    assert body == b'{"TableName":"orders","ConsistentRead":true,"ExclusiveStartKey":{"raw":{"B":"AP8="}}}'
    assert headers["X-Amz-Target"] == "DynamoDB_20120810.Scan"
    assert "Credential=ours/" in headers["Authorization"]


def test_threads_do_not_mix_their_bodies(db: DynamoDB, client: Boto) -> None:
    for n in range(20):
        db.put("orders", {"id": f"i{n}"})
    found: dict[int, bytes] = {}
    together = threading.Barrier(20)

    def get(n: int) -> None:
        together.wait()
        found[n] = client.call("GetItem", {"TableName": "orders", "Key": {"id": {"S": f"i{n}"}}})

    threads = [threading.Thread(target=get, args=(n,)) for n in range(20)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # provoke races
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(f'"i{n}"'.encode() in found[n] for n in range(20))


# errors


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ValidationException", 400),
        ("ExpiredIteratorException", 400),
        ("TrimmedDataAccessException", 400),
        ("ProvisionedThroughputExceededException", 400),
        ("InternalServerError", 500),
    ],
)
def test_an_error_keeps_its_code_message_and_status(db: DynamoDB, client: Boto, code: str, status: int) -> None:
    db.fail("Scan", code, message="just so")
    error = refused(client)
    assert (error.code, error.message, error.status) == (code, "just so", status)


@pytest.mark.parametrize("code", ["ProvisionedThroughputExceededException", "InternalServerError"])
def test_nothing_is_retried_inside(db: DynamoDB, client: Boto, code: str) -> None:
    db.fail("Scan", code, times=1)
    refused(client)
    assert db.calls["Scan"] == 1


def test_a_missing_table_is_a_config_error(client: Boto) -> None:
    with pytest.raises(ConfigError, match="no table nowhere in this account and region"):
        describe_table(client, "nowhere")


@pytest.mark.usefixtures("without_credentials")
def test_missing_credentials_are_reported_as_such(db: DynamoDB) -> None:
    with served(db) as url:
        error = refused(boto(url))
    assert (error.code, error.status) == ("NoCredentials", 0)
    assert isinstance(failure(error, "Scan", "orders"), NotPermitted)


def test_an_expired_login_is_a_permission_error(db: DynamoDB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config").write_text(
        "[sso-session s]\nsso_region = us-east-1\nsso_start_url = https://example.org\n"
        "[profile p]\nsso_session = s\nsso_account_id = 1\nsso_role_name = r\n"
    )
    with served(db) as url:
        error = refused(boto(url, profile="p"))
    assert error.code == "NoCredentials"
    assert isinstance(failure(error, "Scan", "orders"), NotPermitted)


def test_a_refused_connection_is_left_to_the_caller_to_retry() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: the port is reserved and refuses connections
        error = refused(boto(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert (error.code, error.status) == ("EndpointConnectionError", 0)
    assert isinstance(failure(error, "Scan", "orders"), TransientError)


def test_a_proxys_response_is_transient() -> None:
    with serving(Server()) as server:
        client = boto(server.url)
        for server.status in (200, 201, 302, 400, 403, 404, 407, 500, 502, 503):
            for server.body in (b"<html>proxy</html>", b"", b"[]", b"null", b'"no"'):
                with pytest.raises(TransientError):
                    describe_table(client, "orders")
        assert len(server.asked) == 50


# credentials


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"profile": "nobody"}, "source.profile: The config profile (nobody) could not be found. Check"),
        ({"region": None}, "source.region is missing, and neither AWS_REGION nor the profile sets one"),
        ({"region": "eu west"}, "source: Provided region_name 'eu west' doesn't match a supported format. Check"),
    ],
)
def test_an_unusable_source_is_a_config_error(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        boto(None, **source)
    assert str(raised.value).startswith(message)


def test_a_profile_that_the_environment_names_is_not_said_to_be_the_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match=r"^AWS_PROFILE: The config profile \(absent\) could not be found"):
        connect(Source(table="orders", region="eu-west-1"), "source")


ASSUMED = b"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>theirs</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""

DENIED = b"""<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>AccessDenied</Code><Message>no sts:AssumeRole for you</Message></Error></ErrorResponse>"""


def test_a_role_is_assumed_once_with_the_external_id_and_signs_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Server(body=ASSUMED)) as sts, serving(Server()) as dynamodb:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        client = boto(dynamodb.url, role_arn=ROLE, external_id="shared-secret")
        assert sts.asked == []  # nothing before the first call
        client.call("Scan", SCAN)
        client.call("DescribeStream", {"StreamArn": "arn"})
    ((headers, body),) = sts.asked
    given = {name: value for name, (value,) in parse_qs(body.decode()).items()}
    assert (given["Action"], given["RoleArn"], given["ExternalId"]) == ("AssumeRole", ROLE, "shared-secret")
    assert given["RoleSessionName"] == "replicator"
    assert "Credential=ours/" in headers["Authorization"]
    assert [("Credential=theirs/" in h["Authorization"], h["X-Amz-Security-Token"]) for h, _ in dynamodb.asked] == [
        (True, "t")
    ] * 2


def test_expiring_role_credentials_are_renewed_and_a_revoked_role_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = datetime.now(UTC) + timedelta(minutes=5)  # within the time in which botocore renews them
    short = ASSUMED.replace(b"2999-01-01T00:00:00Z", soon.isoformat().encode())
    with serving(Server(body=short)) as sts, serving(Server()) as dynamodb:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        client = boto(dynamodb.url, role_arn=ROLE)
        client.call("Scan", SCAN)
        sts.body = short.replace(b"theirs", b"renewed")
        client.call("Scan", SCAN)
        assert "Credential=renewed/" in dynamodb.asked[-1][0]["Authorization"]
        sts.status, sts.body = 403, DENIED
        with pytest.raises(NotPermitted, match=f"^sts:AssumeRole on {ROLE} is not permitted"):
            client.call("Scan", SCAN)


def test_without_an_external_id_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Server(body=ASSUMED)) as sts, serving(Server()) as dynamodb:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        boto(dynamodb.url, role_arn=ROLE).call("Scan", SCAN)
    assert "ExternalId" not in parse_qs(sts.asked[0][1].decode())


def test_a_role_that_cannot_be_assumed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Server(403, DENIED)) as sts, serving(Server()) as dynamodb:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        with pytest.raises(NotPermitted, match=f"^sts:AssumeRole on {ROLE} is not permitted") as raised:
            boto(dynamodb.url, role_arn=ROLE).call("Scan", SCAN)
    assert (raised.value.action, raised.value.resource) == ("sts:AssumeRole", ROLE)
    assert dynamodb.asked == []


def test_the_roles_keys_are_available_for_signing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Server(body=ASSUMED)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        client = boto("http://127.0.0.1:1", role_arn=ROLE)
        assert [client.keys() for _ in range(3)] == [Keys("theirs", "s", "t")] * 3
    assert len(sts.asked) == 1


def test_a_refused_role_is_a_permission_error_when_signing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Server(403, DENIED)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        with pytest.raises(NotPermitted, match=f"^sts:AssumeRole on {ROLE} is not permitted"):
            boto("http://127.0.0.1:1", role_arn=ROLE).keys()


@contextmanager
def silent() -> Iterator[tuple[str, list[None]]]:
    """The URL of a server that accepts connections and never answers, and one entry for each connection."""
    accepted: list[None] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30.0)
        held: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    held.append(server.accept()[0])
                    accepted.append(None)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
        for connection in held:
            connection.close()


def test_an_sts_that_does_not_answer_is_asked_once_for_the_configured_time_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our retries are visible, and end when the run stops or the function's time is over; botocore's are not."""
    with silent() as (url, accepted):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", url)
        client = boto("http://127.0.0.1:1", role_arn=ROLE, timeout=1.0)
        begun = time.monotonic()
        for asks in (client.keys, lambda: describe_table(client, "orders")):
            with pytest.raises(TransientError, match=rf"^sts:AssumeRole on {ROLE}: Read timeout .* VPC endpoint"):
                asks()
        assert time.monotonic() - begun < 10.0
    assert len(accepted) == 2


def test_an_sts_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    with pytest.raises(TransientError, match=rf"^sts:AssumeRole on {ROLE}: Could not connect"):
        boto("http://127.0.0.1:1", role_arn=ROLE).keys()


@pytest.mark.parametrize(("timeout", "reads", "connects"), [(60.0, 10.0, 5.0), (3.0, 3.0, 3.0)])
def test_sts_gets_ten_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, timeout: float, reads: float, connects: float
) -> None:
    made: list[Any] = []
    create = Session.create_client

    def created(self: Session, service: str, *given: Any, **more: Any) -> Any:
        made.append((service, more.get("config")))
        return create(self, service, *given, **more)

    monkeypatch.setattr(Session, "create_client", created)
    with serving(Server(body=ASSUMED)) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        boto("http://127.0.0.1:1", role_arn=ROLE, timeout=timeout).keys()
    (config,) = (config for service, config in made if service == "sts")
    assert (config.read_timeout, config.connect_timeout) == (reads, connects)
    assert config.retries["total_max_attempts"] == 1


def test_the_region_is_that_of_aws_region_or_else_of_botocores_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert boto(None, region=None).region == "eu-west-2"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert boto(None, region=None).region == "eu-west-1"
    assert boto(None, region=None, role_arn=ROLE).region == "eu-west-1"
    assert region_and_partition(Source(table="orders")) == ("eu-west-1", "aws")
    assert boto(None, region="us-east-1").region == "us-east-1"


@pytest.mark.usefixtures("without_credentials")
def test_without_credentials_there_are_no_keys() -> None:
    with pytest.raises(NotPermitted, match="no AWS credentials"):
        boto("http://127.0.0.1:1").keys()


def test_messages_name_the_config_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source and target have their own profile, role and region."""
    with pytest.raises(ConfigError, match=r"^target\.profile: .*absent"):
        connect(Source(table="orders", profile="absent"), "target")
    with pytest.raises(ConfigError, match=r"^target\.region is missing"):
        connect(Source(table="orders"), "target")


@pytest.mark.usefixtures("without_credentials")
def test_a_role_cannot_be_assumed_without_credentials() -> None:
    with pytest.raises(NotPermitted, match=f"no AWS credentials to assume {ROLE}"):
        boto(None, role_arn=ROLE)


def test_an_aws_error_is_not_an_error_for_users_until_it_is_translated() -> None:
    assert not issubclass(AwsError, ReplicatorError)


# integrity of bodies


@pytest.mark.parametrize(
    ("header", "code"), [("x-amz-crc32: 5", "ChecksumMismatch"), ("x-amz-crc32: 2745614147", None)]
)
def test_a_corrupted_body_is_detected_over_boto3_too(header: str, code: str | None) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{header}\r\n\r\n".encode()
    assert _code_of(head + b"{}") == code


def test_a_truncated_body_is_lost_over_boto3_too() -> None:
    assert _code_of(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}") is not None


def _code_of(response: bytes) -> str | None:
    """The code of the error that a call raises for a response; None if it returns a body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(response)

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            boto(f"http://127.0.0.1:{listener.getsockname()[1]}").call("Scan", SCAN)
        except AwsError as e:
            return e.code if e.status == 0 else "not lost"
        finally:
            thread.join()
    return None


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL_DYNAMODB_STREAMS"])
def test_an_endpoint_from_the_environment_must_be_secure_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://192.0.2.1:8000")
    with pytest.raises(ConfigError, match=r"the endpoint 192\.0\.2\.1:8000 .* is plain http to another host"):
        boto(None)
    boto(None, insecure=True)
    monkeypatch.setenv(name, "http://127.0.0.1:8000")
    boto(None)


def test_missing_credentials_are_not_blamed_on_a_policy() -> None:
    error = failure(AwsError("NoCredentials", "Unable to locate credentials", 0), "Scan", "orders", place="target")
    assert str(error) == (
        "no AWS credentials for Scan on orders (Unable to locate credentials). "
        "Provide them (AWS_PROFILE, target.profile or an instance role)"
    )
