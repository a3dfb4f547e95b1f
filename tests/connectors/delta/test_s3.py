"""Stores with the API of S3: what ``check`` finds before a run writes anything."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from connectors.delta.target import Delta
from replicator.aws.errors import AwsError
from replicator.aws.objects import Objects
from replicator.config.target import destination
from replicator.errors import ConfigError
from replicator.testing.contract import batch, put, table
from replicator.version import FIRST_EPOCH
from tests.connectors.delta import delta_kit as kit
from tests.servers.s3 import Bucket

Build = Callable[..., Delta]


@pytest.fixture
def build(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")
    made: list[Delta] = []

    def make(endpoint: str, **options: str) -> Delta:
        found, problems = destination({**kit.in_s3(s3, endpoint), "table": "contract", **options})
        assert found is not None, problems
        target = found.build("contract")
        assert isinstance(target, Delta)
        made.append(target)
        return target

    yield make
    for target in made:
        target.close()


class _Forgetful(BaseHTTPRequestHandler):
    """Passes requests on to ``server.behind`` without their conditions; refuses these if ``server.refuses``."""

    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        conditional = "If-None-Match" in self.headers
        if conditional and self.server.refuses:  # type: ignore[attr-defined]
            self._answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() != "if-none-match"}
        connection = HTTPConnection("127.0.0.1", self.server.behind)  # type: ignore[attr-defined]
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        self._answer(response.status, dict(response.headers.items()), response.read())
        connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", headers["Content-Length"] if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *given: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def forgetful(s3_endpoint: str) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forgetful)
    server.behind = int(s3_endpoint.rpartition(":")[2])  # type: ignore[attr-defined]
    server.refuses = False  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("refuses", [False, True])
def test_a_store_that_does_not_keep_one_commit_from_replacing_another_is_refused_by_check_and_run(
    s3: Bucket, build: Build, forgetful: ThreadingHTTPServer, refuses: bool
) -> None:
    forgetful.refuses = refuses  # type: ignore[attr-defined]
    target = build(f"http://127.0.0.1:{forgetful.server_port}")
    (problem,) = target.check([table()])
    assert "lets one commit replace another (it ignores If-None-Match)" in problem
    with pytest.raises(ConfigError, match="lets one commit replace another"):
        target.open([table()], FIRST_EPOCH)
    assert keys(s3) == []


def test_check_leaves_nothing_in_a_store_that_has_what_is_needed(s3: Bucket, build: Build, s3_endpoint: str) -> None:
    assert build(s3_endpoint).check([table()]) == []
    assert keys(s3) == []


def test_the_client_prints_no_warnings_where_there_is_no_metadata_of_an_instance(s3: Bucket, s3_endpoint: str) -> None:
    target = {**kit.in_s3(s3, s3_endpoint), "table": "contract"}
    code = (
        "from replicator.config.target import destination\n"
        "from replicator.testing.contract import table\n"
        f"print(destination({target!r})[0].build('contract').check([table()]))"
    )
    login = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    left_out = ("RUST_LOG", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EC2_METADATA_DISABLED")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    nowhere = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **login, **nowhere}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("key", ["a.parquet", "folder/a"])
def test_other_files_where_the_table_should_be_are_refused_by_check_and_run(
    s3: Bucket, build: Build, s3_endpoint: str, key: str
) -> None:
    s3.put(s3.name, f"lake/contract/{key}", b"")
    s3.put(s3.name, "lake/contract2/a", b"")
    target = build(s3_endpoint)
    (problem,) = target.check([table()])
    assert problem == f"s3://{s3.name}/lake/contract has files, and is not a Delta table. Choose another table or path"
    with pytest.raises(ConfigError, match="has files, and is not a Delta table"):
        target.open([table()], FIRST_EPOCH)
    assert len(keys(s3)) == 2


@pytest.mark.parametrize("outer", ["", "lake/", "lake/deeper/"])
def test_a_path_inside_another_table_is_refused_by_check_and_run(
    s3: Bucket, build: Build, s3_endpoint: str, outer: str
) -> None:
    s3.put(s3.name, f"{outer}_delta_log/00000000000000000000.json", b"")
    target = build(s3_endpoint, path=f"s3://{s3.name}/lake/deeper")
    (problem,) = target.check([table()])
    place = f"s3://{s3.name}/{outer}".rstrip("/")
    assert problem.startswith(f"s3://{s3.name}/lake/deeper/contract is inside the Delta table {place}, whose upkeep")
    with pytest.raises(ConfigError, match="is inside the Delta table"):
        target.open([table()], FIRST_EPOCH)
    assert len(keys(s3)) == 1


def test_a_folder_above_the_table_that_may_not_be_listed_is_taken_for_no_table(
    s3: Bucket, build: Build, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Objects.names

    def listed(self: Objects, prefix: str) -> list[str]:
        if not prefix.startswith("lake/contract/"):
            raise AwsError("AccessDenied", "s3:ListBucket", 403)
        return names(self, prefix)

    monkeypatch.setattr(Objects, "names", listed)
    assert build(s3_endpoint).check([table()]) == []


def test_files_with_names_that_are_no_part_of_a_table_are_left_alone(
    s3: Bucket, build: Build, s3_endpoint: str
) -> None:
    s3.put(s3.name, "lake/contract/_notes/a", b"")
    target = build(s3_endpoint)
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1)))
    assert "lake/contract/_notes/a" in keys(s3)


def test_a_prefix_with_marks_of_addresses_is_the_one_that_is_written_and_read(
    s3: Bucket, build: Build, s3_endpoint: str
) -> None:
    place = f"s3://{s3.name}/a b {{e}} Zürich 日本~!$&'()*+,;=:@"
    target = build(s3_endpoint, path=place)
    assert target.check([table()]) == []
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1)))
    assert {key.partition("/")[0] for key in keys(s3)} == {place.rpartition("/")[2]}
    storage = kit.storage(s3_endpoint)
    assert len(kit.rows(f"{place}/contract", storage)) == 1
    assert len(kit.with_polars(f"{place}/contract", storage, use_pyarrow=True)) == 1
    with pytest.raises(FileNotFoundError):
        kit.with_polars(f"{place}/contract", storage)


def keys(s3: Bucket) -> list[str]:
    return [found["Key"] for found in s3.client.list_objects_v2(Bucket=s3.name).get("Contents", ())]
