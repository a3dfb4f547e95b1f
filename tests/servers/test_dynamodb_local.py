"""DynamoDB Local as tests start it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from replicator.aws.errors import AwsError
from replicator.testing.dynamodb.http import UnsignedClient
from tests.servers import dynamodb_local as module
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal, ServerMissing


def answers(endpoint: str) -> bool:
    try:
        UnsignedClient(endpoint, timeout=5).call("ListTables", {})
    except AwsError:
        return False
    return True


def make_table(endpoint: str) -> None:
    UnsignedClient(endpoint).call(
        "CreateTable",
        {
            "TableName": "orders",
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
            "BillingMode": "PAY_PER_REQUEST",
        },
    )


class TestMissing:
    """Each program that is not there is named, with how to get it."""

    def test_java(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(ServerMissing, match="JDK, 17"):
            DynamoDBLocal().start()

    def test_javas_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", {"java": "/jre/java"}.get)
        with pytest.raises(ServerMissing, match="JDK, 17"):
            DynamoDBLocal().start()

    def test_maven_where_nothing_is_cached(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("REPLICATOR_CACHE", str(tmp_path))
        found = {"java": "/jdk/java", "javac": "/jdk/javac"}
        monkeypatch.setattr(shutil, "which", found.get)
        with pytest.raises(ServerMissing, match="Maven"):
            DynamoDBLocal().start()

    def test_faketime(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_CLOCKS", ())
        with pytest.raises(ServerMissing, match="faketime"):
            DynamoDBLocal(clock=True)


def test_only_a_clock_that_is_asked_for_moves() -> None:
    with pytest.raises(ValueError, match="clock=True"):
        DynamoDBLocal().advance(hours=1)


def test_a_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REPLICATOR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module, "_java", lambda: "java")
    with pytest.raises(ServerMissing, match="REPLICATOR_CACHE"):
        DynamoDBLocal().start()


@pytest.mark.dynamodb_local
class TestRunning:
    def test_tables_in_a_directory_outlive_the_server(self, dynamodb_local: StartLocal, tmp_path: Path) -> None:
        server = dynamodb_local(directory=tmp_path)
        before = server.endpoint
        make_table(server.endpoint)
        server.stop()
        server.start()
        server.start()
        assert server.endpoint == before
        tables = orjson.loads(UnsignedClient(server.endpoint).call("ListTables", {}))
        server.stop()
        assert tables == {"TableNames": ["orders"]}

    def test_a_stopped_server_is_gone_with_its_folder(self, dynamodb_local: StartLocal) -> None:
        server = dynamodb_local()
        home = server._home
        assert home is not None
        assert answers(server.endpoint)
        server.stop()
        server.stop()
        assert not answers(server.endpoint)
        assert not home.exists()

    def test_it_ends_with_the_process_that_started_it(self, dynamodb_local: StartLocal) -> None:
        """However that ends: here it is killed."""
        dynamodb_local().stop()  # so that a missing server is told as one
        code = (
            "import time; from tests.servers.dynamodb_local import DynamoDBLocal\n"
            "server = DynamoDBLocal(); server.start(); print(server.endpoint, flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            assert answers(endpoint)
            process.kill()
        deadline = time.monotonic() + 20
        while answers(endpoint):
            assert time.monotonic() < deadline
            time.sleep(0.05)
