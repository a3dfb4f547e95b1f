"""The target in docs/own_target, as somebody else's package: found by its entry point, and right by the suite."""

from __future__ import annotations

import json
import runpy
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from replicator.errors import ConfigError
from replicator.target.contract import Table
from replicator.testing.contract import TargetContract
from replicator.testing.servers.ministack import MiniStack
from tests.cli.command_line import Shell, make_table, ministack, put

FILE = Path(__file__).parent.parent / "docs" / "own_target" / "sqlite_target.py"


@pytest.fixture
def installed(tmp_path: Path) -> str:
    """A folder that holds the package as pip would leave it."""
    site = tmp_path / "site"
    (site / "sqlite_target-1.0.dist-info").mkdir(parents=True)
    (site / "sqlite_target.py").write_text(FILE.read_text())
    (site / "sqlite_target-1.0.dist-info" / "METADATA").write_text("Name: sqlite-target\nVersion: 1.0\n")
    points = "[replicator.targets]\nsqlite = sqlite_target:SQLite\n"
    (site / "sqlite_target-1.0.dist-info" / "entry_points.txt").write_text(points)
    return str(site)


def documents(path: Path, table: Table) -> dict[tuple[str, ...], Any]:
    """What a plain client finds."""
    with sqlite3.connect(path) as client:
        rows = client.execute(f"SELECT id, document FROM {table.name} WHERE document IS NOT NULL").fetchall()  # noqa: S608
    client.close()
    exact = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal)
    return {tuple(json.loads(id)): exact.decode(document) for id, document in rows}


class TestSQLite(TargetContract):
    @pytest.fixture(autouse=True)
    def _installed(self, installed: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.syspath_prepend(installed)
        yield
        sys.modules.pop("sqlite_target", None)

    @pytest.fixture
    def config(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"type": "sqlite", "path": str(tmp_path / "rows.db")}

    @pytest.fixture
    def unreachable(self, tmp_path: Path) -> Mapping[str, Any]:
        return {"type": "sqlite", "path": str(tmp_path / "nowhere" / "rows.db")}

    @pytest.fixture
    def stored(self, tmp_path: Path) -> Callable[[Table], Any]:
        return lambda table: documents(tmp_path / "rows.db", table)

    @pytest.fixture
    def sever(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def once() -> None:
            right = sqlite3.connect

            def breaks(*given: Any, **options: Any) -> sqlite3.Connection:
                monkeypatch.setattr(sqlite3, "connect", right)
                connection: sqlite3.Connection = right(*given, **options)
                connection.close()
                return connection

            monkeypatch.setattr(sqlite3, "connect", breaks)

        return once


def own(path: Path, name: str = "orders") -> tuple[Any, list[Table]]:
    module = runpy.run_path(str(FILE))
    options = module["SQLite"].Options.model_validate({"path": path.name}, context={"base": path.parent})
    return module["SQLite"](options, name), [Table(name, None)]  # type: ignore[arg-type]


def test_two_tables_of_a_file_have_an_epoch_each(tmp_path: Path) -> None:
    for name, epoch in (("aaa", 1024), ("bbb", 1024), ("aaa", 1025)):
        target, tables = own(tmp_path / "rows.db", name)
        target.open(tables, epoch)
    for name, epoch in (("aaa", 1025), ("bbb", 1024)):
        target, tables = own(tmp_path / "rows.db", name)
        assert target.epoch(tables) == epoch


@pytest.mark.parametrize("name", ["order", "group", "1abc"])
def test_a_table_may_have_the_name_of_a_keyword(tmp_path: Path, name: str) -> None:
    target, tables = own(tmp_path / "rows.db", name)
    assert target.check(tables) == []
    target.open(tables, 1024)
    assert target.epoch(tables) == 1024
    assert target.sweep(tables[0], 1, []) == target.purge(tables[0], 1) == 0


def test_its_check_does_not_create_the_file(tmp_path: Path) -> None:
    target, tables = own(tmp_path / "rows.db")
    assert (target.check(tables), target.epoch(tables), len(target.plan(tables))) == ([], None, 2)
    assert not (tmp_path / "rows.db").exists()


def test_a_file_that_is_no_database_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "rows.db").write_text("no database" * 100)
    target, tables = own(tmp_path / "rows.db")
    with pytest.raises(ConfigError, match="file is not a database"):
        target.check(tables)


def test_it_is_under_eighty_lines() -> None:
    code = [line for line in FILE.read_text().splitlines() if line.strip()]
    assert len(code) < 80


@pytest.fixture(scope="module")
def server() -> Iterator[MiniStack]:
    yield from ministack()


def test_a_run_finds_it_by_its_entry_point(server: MiniStack, installed: str, tmp_path: Path) -> None:
    client = make_table(server, "pets", {"id": "S"})
    put(client, "pets", {"id": "1", "name": "Rex"}, {"id": "2", "name": "Mia"})
    config = tmp_path / "pets.yaml"
    config.write_text(
        "pipeline: pets\nsource: {table: pets, region: us-east-1}\n"
        f"target: {{type: sqlite, path: {tmp_path / 'rows.db'}, table: pets}}\n"
    )
    shell = Shell({**server.environ, "AWS_ENDPOINT_URL": server.url, "PYTHONPATH": installed})
    code, _, err = shell.run("run", str(config), "--until", "caught-up")
    assert code == 0, err
    found = documents(tmp_path / "rows.db", Table("pets", None))  # type: ignore[arg-type]
    assert found == {("1",): {"id": "1", "name": "Rex"}, ("2",): {"id": "2", "name": "Mia"}}
