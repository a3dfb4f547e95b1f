"""The target contract in a folder and in S3, read with DuckDB."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from connectors.delta import walk
from connectors.delta.target import Delta
from replicator.batch import Batch, Outcome
from replicator.errors import TransientError, Unfinished
from replicator.target.contract import Table, Target
from replicator.testing.contract import TargetContract, put, remove
from replicator.testing.contract.definitions import Options
from replicator.testing.contract.kit import Stored, batch, built, table
from replicator.testing.contract.late_writes import Proxied
from replicator.testing.contract.moves import Remade
from replicator.testing.contract.tombstones import _STAYING, _raced
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.connectors.delta import delta_kit as kit
from tests.servers.s3 import Bucket

UNREACHABLE = {
    "type": "delta",
    "path": "s3://nowhere/lake",
    "endpoint_url": "http://127.0.0.1:1",
    "region": "us-east-1",
    "timeout": 1,
}


class InALake(TargetContract):
    """Common to both."""

    @pytest.fixture(autouse=True)
    def _credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")

    @pytest.fixture(autouse=True)
    def _small_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(walk, "_PIECE", 2000)

    many = 5000
    races = 10
    seeds = 4

    @pytest.fixture
    def unreachable(self) -> Mapping[str, Any]:
        return UNREACHABLE

    @pytest.fixture
    def sever(self) -> Callable[[], None]:
        pytest.skip("a folder has no connections, and S3 needs none that last")

    @pytest.fixture
    def remade(self, dropped: Callable[[Table], None]) -> Remade:
        return dropped

    @pytest.fixture
    def recreated(self, config: Mapping[str, Any], dropped: Callable[[Table], None]) -> Remade:
        def recreate(of: Table) -> None:
            dropped(of)
            other = built(config)
            other.open([of], FIRST_EPOCH)
            other.close()

        return recreate

    @pytest.fixture
    def options(self) -> Options:
        one = {"name": "string"}
        return Options({"columns": one}, {"columns": one, "extra": "ignore"}, {"columns": {**one, "size": "bigint"}})

    def test_scans_and_live_deletes_race_without_ghosts(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        """Of commits at the same time one succeeds; the others say so, and are repeated by the engine."""
        workers = {"segment:0": opened, "shard:1": build(), "shard:2": build()}
        for worker in workers.values():
            worker.open([table()], FIRST_EPOCH)
        with ThreadPoolExecutor(len(workers)) as threads:
            for race in range(self.races):
                start = threading.Barrier(len(workers))
                racing = [
                    threads.submit(_repeated, start, worker, _raced(source, race, slot))
                    for slot, (source, worker) in enumerate(workers.items())
                ]
                assert all(not done.result().rejections for done in racing)
        assert {id: row["n"] for (id,), row in stored(table()).items()} == {
            f"{race} {item}": 5 for race in range(self.races) for item in _STAYING
        }


def _repeated(start: threading.Barrier, target: Target, given: Batch) -> Outcome:
    start.wait(20)
    for _ in range(100):
        try:
            return target.write(given)
        except Unfinished:
            continue
    raise AssertionError("another commit was first every time")


class TestInAFolder(InALake):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "lake"

    @pytest.fixture
    def config(self, folder: Path) -> Mapping[str, Any]:
        return {"type": "delta", "path": str(folder)}

    @pytest.fixture
    def stored(self, folder: Path) -> Stored:
        return partial(kit.documents, str(folder))

    @pytest.fixture
    def dropped(self, folder: Path) -> Callable[[Table], None]:
        return lambda of: shutil.rmtree(folder / of.name)


class TestInS3(InALake):
    """Through moto's server, which has S3's conditional requests: a commit is a file that must not exist yet."""

    many = 2500
    races = 4
    seeds = 1

    @pytest.fixture
    def config(self, s3: Bucket, s3_endpoint: str) -> Mapping[str, Any]:
        return kit.in_s3(s3, s3_endpoint)

    @pytest.fixture
    def stored(self, config: Mapping[str, Any], s3_endpoint: str) -> Stored:
        return partial(kit.documents, config["path"], storage=kit.storage(s3_endpoint))

    @pytest.fixture
    def otherwise(self, config: Mapping[str, Any], s3_endpoint: str) -> Mapping[str, Any]:
        return {**config, "endpoint_url": s3_endpoint.replace("127.0.0.1", "localhost")}

    @pytest.fixture
    def proxied(self, config: Mapping[str, Any], s3_endpoint: str) -> Iterator[Proxied]:
        with Proxy("127.0.0.1", int(s3_endpoint.rpartition(":")[2])) as proxy:
            yield {**config, "endpoint_url": f"http://127.0.0.1:{proxy.port}", "timeout": 2}, proxy

    @pytest.fixture
    def dropped(self, s3: Bucket) -> Callable[[Table], None]:
        return lambda of: kit.remove_folder(s3, f"lake/{of.name}/")

    def test_a_lost_response_opens_the_in_doubt_window_and_the_write_is_retried(
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        config, proxy = proxied
        target = build(config)
        assert isinstance(target, Delta)
        target.open([table()], FIRST_EPOCH)
        proxy.lose_responses()
        again = batch(put({"pk": "b"}, 2), remove("a", 3))
        with pytest.raises(TransientError):
            target.write(again)
        assert target.in_doubt
        proxy.heal()
        assert target.write(again) == Outcome()
        assert set(stored(table())) == {("b",)}

    def test_other_threads_run_while_versions_are_looked_up(
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        """Otherwise the proxy, which is in this process, could not pass on what S3 answers."""
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()
        proxy.slow(0.05)
        assert target.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 2))).superseded == {"shard:contract": 1}
        assert set(stored(table())) == {("a",), ("b",)}
