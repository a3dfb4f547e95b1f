"""Rows under a numeric key that no item can have: something else has written them."""

from __future__ import annotations

import pytest

from replicator.batch import Delete
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table
from tests.connectors.postgres.postgres_kit import opened, owner, rows
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

TABLE = Table("nums", KeySchema((KeyAttribute("n", "N"),)), {"columns": {"made": "text"}})
INSERT = "INSERT INTO public.nums VALUES (%s, 'x', 5)"


@pytest.mark.parametrize("number", ["NaN", "1" * 45])
def test_they_are_walked_swept_and_removed_like_others(one_postgres: Database, number: str) -> None:
    one = opened(one_postgres, TABLE)
    one.checkpoints.claim(owner("first"))
    with one_postgres.connect() as connection:
        connection.cursor().executemany(INSERT, [(number,), ("1",)])
    assert set(one.walk(TABLE, None).ids) == {(number,), ("1",)}
    assert one.versions(TABLE, [(number,), ("1",)]) == [5, 5]
    assert one.remove(TABLE, [Delete("nums", (number,), 5, (), 0)]) == [""]
    assert [row["n"] for row in rows(one_postgres, "nums")] == [1]
    with one_postgres.connect() as connection:
        connection.execute(INSERT, (number,))
    assert one.sweep(TABLE, 1 << 40, []) == 2
    assert rows(one_postgres, "nums") == []
