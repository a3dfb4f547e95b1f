"""The history of a Postgres table is the same whatever writes it: one process, workers on Ray, AWS Lambda."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.end_to_end.deliveries import SCHEDULED, Stream, deliver
from tests.end_to_end.test_lambda import NewContainer, container
from tests.end_to_end.world import Copy
from tests.engine.event_source import EventSource

__all__ = ["container"]

pytestmark = pytest.mark.dynamodb_local


def configured(copy: Copy, engine: dict[str, Any]) -> Copy:
    return copy.configure(tables={copy.name: {"history": True}}, engine=engine)


def change(copy: Copy, more: int) -> None:
    copy.source.fill(20, by=more)
    copy.source.put("k1", v=more)
    copy.source.delete("k1")
    copy.source.put("k1", v=more + 1)


def test_lambda_and_one_process_keep_every_change_once(
    copy: Copy, container: NewContainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = configured(copy, {"type": "lambda"}).source
    source.fill(20)
    assert copy.command("run", "--until", "backfilled").code == 0
    mapping: Any = EventSource(Stream(copy, monkeypatch), source.table, batch=9)  # type: ignore[arg-type]
    change(copy, 1)
    deliver(mapping, container(), container())
    copy.assert_equal()
    assert copy.assert_history() == source.records
    again: Any = EventSource(mapping.source, source.table, batch=100)  # everything comes again
    deliver(again, container())
    assert copy.assert_history() == source.records
    configured(copy, {"type": "local"})
    change(copy, 3)
    copy.caught_up()
    assert copy.assert_history() == source.records


@pytest.mark.timeout(300)
def test_workers_and_one_process_keep_every_change_once(copy: Copy) -> None:
    source = configured(copy, {"type": "ray", "workers": 2}).source
    source.fill(20)
    copy.caught_up()
    change(copy, 1)
    copy.caught_up()
    copy.assert_equal()
    assert copy.assert_history() == source.records
    configured(copy, {"type": "local"})
    change(copy, 3)
    copy.caught_up()
    assert copy.assert_history() == source.records


def test_the_schedule_of_a_function_removes_what_is_older_than_is_kept(copy: Copy, container: NewContainer) -> None:
    """Without a run of another engine, nothing else does."""
    copy.configure(tables={copy.name: {"history": {"keep": "2d"}}}, engine={"type": "lambda"})
    copy.source.fill(3)
    assert copy.command("run", "--until", "backfilled").code == 0
    history = f"{copy.name}_history"
    with psycopg.connect(copy.database.url, autocommit=True) as client:
        for day in ("01", "02", "03"):
            created = (
                'CREATE TABLE "{0}_200101{1}" PARTITION OF "{0}" '
                "FOR VALUES FROM ('2001-01-{1} 00:00Z') TO ('2001-01-{1} 24:00Z')"
            )
            client.execute(created.format(history, day).encode())
    partitions = "SELECT count(*) AS n FROM pg_inherits WHERE inhparent = %s::regclass"

    def there() -> int:
        with psycopg.connect(copy.database.url) as client:
            row = client.execute(partitions, (f'"{history}"',)).fetchone()
        return int(row[0]) if row is not None else 0

    before = there()
    assert container().invoke(SCHEDULED) == {"shards": 0}
    assert there() == before - 3
    assert copy.command("check").code == 0
    ((told,),) = (line["histories"] for line in copy.command("status", "--json").lines)
    assert (told["partitions"], told["lost"], told["removed_before"]) == (there(), None, 978566400.0)
