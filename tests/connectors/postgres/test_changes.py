"""What a run makes of a config whose columns changed since the last one, by the command line."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

ITEMS = 5
HOOK = "def hook(item):\n    return {'n': item['n'], 'city': item['city']}\n"
COLUMNS = {"n": "bigint"}
WIDER = {**COLUMNS, "city": "text"}


@dataclass
class Copy:
    """A pipeline from a table in memory into one of a real server."""

    place: Path
    endpoint: str
    postgres: Database
    db: DynamoDB

    def put(self, item: Mapping[str, Any]) -> None:
        self.db.put("orders", dict(item))

    def configure(self, columns: Mapping[str, Any], **more: Any) -> None:
        config = {
            "pipeline": "orders",
            "source": {"table": "orders", "region": "us-east-1", "endpoint_url": self.endpoint},
            "transform": "hooks.py:hook",
            "target": {
                "type": "postgres",
                "url": self.postgres.url,
                "tables": {"orders": {"columns": columns, "extra": "ignore"}},
            },
            **more,
        }
        (self.place / "orders.yaml").write_text(json.dumps(config))

    def cli(self, *command: str) -> tuple[int, str]:
        shell = Shell({"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"})
        until = () if command[0] == "check" else ("--until", "caught-up")
        code, out, err = shell.run(command[0], str(self.place / "orders.yaml"), *until, *command[1:])
        return code, out + err

    def cities(self) -> int:
        return self.count("city = 'Rome'")

    def count(self, which: LiteralString) -> int:
        with self.postgres.connect() as client:
            row = client.execute(sql.SQL("SELECT count(*) FROM orders WHERE {}").format(sql.SQL(which))).fetchone()
        assert row is not None
        return int(row[0])


@pytest.fixture
def copy(one_postgres: Database, tmp_path: Path) -> Iterator[Copy]:
    """A copy that has caught up."""
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("orders")
    for n in range(ITEMS):
        db.put("orders", {"id": f"k{n}", "n": n, "city": "Rome"})
    (tmp_path / "hooks.py").write_text(HOOK)
    with served(db) as endpoint:
        pipeline = Copy(tmp_path, endpoint, one_postgres, db)
        pipeline.configure(COLUMNS)
        assert pipeline.cli("run")[0] == 0
        yield pipeline


def test_a_new_column_is_offered_and_then_added_and_filled(copy: Copy) -> None:
    copy.configure(WIDER)
    code, output = copy.cli("run")
    assert code == 2, output
    assert "orders: columns.city was added since the last run" in output
    assert 'ALTER TABLE "public"."orders" ADD COLUMN' in output
    code, output = copy.cli("run", "--apply-schema-changes")
    assert code == 0, output
    assert copy.cities() == ITEMS
    assert copy.cli("run")[0] == 0


def test_after_a_refused_resync_a_run_can_still_add_the_column(copy: Copy) -> None:
    copy.configure(WIDER)
    assert copy.cli("resync", "--now")[0] == 2
    code, output = copy.cli("run")
    assert (code, "orders: columns.city was added since the last run" in output) == (2, True), output
    copy.configure(COLUMNS)
    assert copy.cli("run")[0] == 0
    copy.configure(WIDER)
    code, output = copy.cli("run", "--apply-schema-changes")
    assert code == 0, output
    assert copy.cities() == ITEMS


def test_a_new_column_is_filled_also_if_a_gap_starts_the_epoch(copy: Copy) -> None:
    with copy.postgres.connect() as client:
        client.execute("DELETE FROM orders")
    copy.configure(WIDER, on_gap="resync")
    code, output = copy.cli("run", "--apply-schema-changes")
    assert code == 0, output
    assert "is empty, but held documents" in output
    assert copy.cities() == ITEMS


def altered(copy: Copy, *statements: str) -> None:
    with copy.postgres.connect() as client:
        for statement in statements:
            client.execute(statement)


@pytest.mark.parametrize("nullable", [True, False])
def test_a_column_that_was_dropped_is_filled_before_the_copy_counts_as_whole(copy: Copy, nullable: bool) -> None:
    copy.configure({**COLUMNS, "city": {"type": "text", "nullable": nullable}})
    altered(copy, "DROP TABLE orders")
    assert copy.cli("resync", "--now")[0] == 0
    altered(copy, "ALTER TABLE orders DROP COLUMN city")
    code, output = copy.cli("run")
    assert code == 2, output
    remedy = output.partition("column city is missing (")[2].partition("; then, to fill it: replicator resync CONFIG)")
    assert remedy[1], output
    altered(copy, *remedy[0].split("; "))
    for command in ("check", "run"):
        code, output = copy.cli(command)
        assert (code, "column city is not the column that the last run wrote to" in output) == (3, True), output
    assert copy.cli("resync", "--now")[0] == 0
    assert copy.cities() == ITEMS
    assert copy.cli("run")[0] == 0


def test_a_column_that_must_not_be_null_can_be_added_beside_a_run_that_does_not_know_it(copy: Copy) -> None:
    wider = {**COLUMNS, "city": {"type": "text", "nullable": False}}
    copy.configure(wider)
    code, output = copy.cli("resync", "--now")
    remedy = output.partition("column city is missing (")[2]
    assert (code, remedy.startswith("ALTER TABLE")) == (2, True), output
    altered(copy, *remedy.partition("; then, to fill it: replicator resync CONFIG)")[0].split("; "))
    copy.configure(COLUMNS)
    copy.put({"id": "new", "n": 6, "city": "Rome"})
    code, output = copy.cli("run")
    assert (code, copy.count("id = 'new'")) == (0, 1), output
    copy.configure(wider)
    assert copy.cli("resync", "--now")[0] == 0
    assert copy.cities() == ITEMS + 1
    altered(copy, output_line(remedy.partition("). Once it is filled: ")[2]))
    assert copy.cli("run")[0] == 0


def test_a_column_whose_values_do_not_convert_to_its_new_type_can_be_replaced(copy: Copy) -> None:
    hook = copy.place / "hooks.py"
    hook.write_text(HOOK.replace("item['n']", "f'no {item[\"n\"]}'"))
    copy.configure({"n": "text"})
    altered(copy, "DROP TABLE orders")
    assert copy.cli("resync", "--now")[0] == 0
    hook.write_text(HOOK)
    copy.configure(COLUMNS)
    code, output = copy.cli("resync", "--now")
    assert (code, "column n must be bigint, but is text (" in output) == (2, True), output
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        altered(copy, output.partition("but is text (")[2].partition("; then, to fill it")[0])
    altered(copy, output_line(output.partition("replace the column before the resync: ")[2]))
    assert copy.cli("resync", "--now")[0] == 0
    assert copy.count("n IN (0, 1, 2, 3, 4)") == ITEMS


def output_line(text: str) -> str:
    return text.partition("\n")[0]


def test_the_statement_for_a_changed_column_type_can_be_executed_and_the_resync_fills_it(copy: Copy) -> None:
    copy.configure({"n": "numeric"})
    code, output = copy.cli("run")
    assert (code, "If the target's table must be changed first, resync says how" in output) == (2, True), output
    code, output = copy.cli("resync", "--now")
    assert code == 2, output
    before, _, rest = output.partition("column n must be numeric, but is bigint (")
    statement, then, _ = rest.partition("; then, to fill it: replicator resync CONFIG)")
    assert (before, then) != ("", ""), output
    altered(copy, statement)
    assert copy.cli("resync", "--now")[0] == 0
    assert copy.cli("run")[0] == 0
