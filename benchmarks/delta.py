"""Delta Lake as a target: documents per second, compared with deltalake's own append and merge.

Those have their rows ready as Arrow tables and compare no versions; replicator encodes the items and guards every row.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from benchmarks import data, destination
from benchmarks.counting import ratio
from benchmarks.product import Result
from connectors.delta.encode import Encoder, Row, as_table
from connectors.delta.options import DeltaOptions
from connectors.delta.schema import GOES, shape
from connectors.delta.target import Delta
from replicator.batch import Batch, Part, Upsert
from replicator.engine.run import tune_allocator
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target.contract import Table
from replicator.version import FIRST_EPOCH, version

ITEMS, PAGE = 100_000, 20_000  # a page is a batch of a run that has enough to store
APPEND, MERGE, OURS = "append", "merge", "replicator"
_OF = Table(data.TABLE, destination.KEYS)


def measured(kind: str, work: str) -> Result:
    """``work``: insert into an empty table, or replace all rows of one; building the batches is not measured."""
    with tempfile.TemporaryDirectory() as folder:
        pages = list(_pages(0))
        store = _product(folder) if kind == OURS else _plain(kind, folder)
        if work == "replace":
            for page in pages:
                store(page)
            pages = list(_pages(ITEMS))
        given = [page if kind == OURS else _arrow(page) for page in pages]
        tune_allocator()
        started, cpu = time.perf_counter(), time.process_time()
        for page in given:
            store(page)
        return Result(ITEMS, time.perf_counter() - started, time.process_time() - cpu)


def _pages(first: int) -> Iterator[Sequence[Upsert]]:
    writes = [_upsert(item, first + number) for number, item in enumerate(data.initial(ITEMS))]
    return (writes[start : start + PAGE] for start in range(0, ITEMS, PAGE))


def _arrow(page: Sequence[Upsert]) -> pa.Table:
    encoder = Encoder(shape(_OF))
    rows = [row for write in page if isinstance(row := encoder.row(write, ""), Row)]
    return as_table(encoder.shape, rows).drop_columns([GOES])


def _plain(kind: str, folder: str) -> Callable[[Any], None]:
    table = DeltaTable.create(f"{folder}/plain", shape(_OF).arrow)
    on = " and ".join(f"old.{name} = new.{name}" for name in shape(_OF).keys)

    def store(page: Any) -> None:
        rows = page if isinstance(page, pa.Table) else _arrow(page)
        if kind == APPEND:
            write_deltalake(table, rows, mode="append")
        else:
            merge = table.merge(rows, on, source_alias="new", target_alias="old", streamed_exec=False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute()

    return store


def _product(folder: str) -> Callable[[Any], None]:
    target = Delta(DeltaOptions(path=folder), "benchmark")
    target.open([_OF], FIRST_EPOCH)

    def store(page: Any) -> None:
        assert target.write(Batch([Part("shard:1", page)])).superseded == {}

    return store


def _upsert(item: dict[str, Any], number: int) -> Upsert:
    key = (str(item["pk"]), str(item["sk"]))
    return Upsert(data.TABLE, key, Item(image(item)), version(FIRST_EPOCH, number + 1), key)


def lines(rounds: int, alone: Callable[..., Result]) -> Iterator[str]:
    """The result table. ``alone`` calls a function in a separate process."""
    cases = [("insert", APPEND), ("insert", MERGE), ("insert", OURS), ("replace", MERGE), ("replace", OURS)]
    found: dict[tuple[str, str], list[Result]] = {case: [] for case in cases}
    for _ in range(rounds):
        for work, kind in cases:
            found[work, kind].append(alone(measured, kind, work))
    yield "| to Delta Lake | documents/s | CPU, us/document | x deltalake's merge |"
    yield "|---|---|---|---|"
    for (work, kind), results in found.items():
        rates = [r.rate for r in results]
        cpu = statistics.median(r.cpu / r.changes * 1e6 for r in results)
        of_merge = ratio(rates, [r.rate for r in found[work, MERGE]])
        yield f"| {work}: {kind} | {statistics.median(rates):,.0f} | {cpu:.1f} | {of_merge} |"
