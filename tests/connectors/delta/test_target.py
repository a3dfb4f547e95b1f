"""What only this target does: columns, partitions, exactly once, takeovers, upkeep of files, and what it refuses."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from connectors.delta import walk
from connectors.delta.errors import Conflict, failure
from connectors.delta.options import DeltaTableOptions
from connectors.delta.stored_table import StoredTable, ids_and_versions
from connectors.delta.target import Delta
from connectors.delta.writer import TableWriter
from replicator.batch import Batch, Outcome, Part, Upsert
from replicator.config.settings import load
from replicator.config.target import destination
from replicator.engine.heartbeat import LIVE
from replicator.errors import ConfigError, GapFound, NotAuthenticated, NotPermitted, TransientError, Unfinished
from replicator.identity import changes, forgotten_deletes, recreated_tables
from replicator.key import KeyAttribute, KeySchema
from replicator.state import Save
from replicator.target.contract import Table
from replicator.target.verification import Comparison, CursorExpired
from replicator.testing.contract import at, batch, put, remove, table
from replicator.testing.contract.kit import PK, built, exhaust
from replicator.version import FIRST_EPOCH
from tests.connectors.delta import delta_kit as kit

Build = Callable[..., Delta]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "lake"


@pytest.fixture
def build(folder: Path) -> Iterator[Build]:
    made: list[Delta] = []

    def make(pipeline: str = "contract", **options: Any) -> Delta:
        found, problems = destination({"type": "delta", "path": str(folder), "table": "contract", **options})
        assert found is not None, problems
        target = found.build(pipeline)
        assert isinstance(target, Delta)
        made.append(target)
        return target

    yield make
    for target in made:
        target.close()


@pytest.fixture
def opened(build: Build) -> Delta:
    target = build()
    target.open([table()], FIRST_EPOCH)
    return target


def of(**options: Any) -> Table:
    return Table("contract", PK, options)


def rows(folder: Path) -> list[dict[str, Any]]:
    return sorted(kit.rows(f"{folder}/contract"), key=lambda row: row["pk"])


def commits(folder: Path) -> int:
    return int(DeltaTable(f"{folder}/contract").version())


COLUMNS = {
    "name": "string",
    "size": "bigint",
    "weight": "double",
    "total": "decimal(12,2)",
    "paid": "boolean",
    "created": "timestamp",
    "day": "date",
    "raw": "binary",
    "tags": "array<string>",
    "rest": "json",
    "lat": {"type": "double", "from": "location.lat"},
}


# columns


def test_columns_have_the_types_of_the_config_for_duckdb_and_polars(folder: Path, build: Build) -> None:
    target, wanted = build(), of(columns=COLUMNS, extra="ignore")
    target.open([wanted], FIRST_EPOCH)
    body = {
        "pk": "a",
        "name": "Ann",
        "size": 12,
        "weight": Decimal("1.5"),
        "total": Decimal("1E+2"),
        "paid": True,
        "created": "2026-01-31T12:00:00+01:00",
        "day": "2026-01-31",
        "raw": b"\x00\xff",
        "tags": {"b", "a"},
        "rest": {"n": Decimal("1.50")},
        "location": {"lat": Decimal("48.5")},
    }
    target.write(batch(put(body, 1)))
    made = {
        "pk": "a",
        "_version": at(1),
        "name": "Ann",
        "size": 12,
        "weight": 1.5,
        "total": Decimal("100.00"),
        "paid": True,
        "created": datetime(2026, 1, 31, 11, tzinfo=UTC),
        "day": date(2026, 1, 31),
        "raw": b"\x00\xff",
        "tags": ["a", "b"],
        "lat": 48.5,
    }
    for (row,) in (rows(folder), kit.with_polars(f"{folder}/contract")):
        assert {name: row[name] for name in made} == made
        assert row["rest"].replace(" ", "") in ('{"n":1.50}', '{"n":1.5}')
    assert target.compare(wanted, [put(body, 1)]) == [Comparison(at(1))]
    other = {**body, "size": 13, "total": Decimal("1.25")}
    assert target.compare(wanted, [put(other, 1)]) == [Comparison(at(1), ("size", "total"))]


@pytest.mark.parametrize(
    ("type", "value", "reason"),
    [
        ("string", 1, "column x is string, but the value is a int"),
        ("string", "\ud800", "column x contains half of a surrogate pair, which is not valid text"),
        ("bigint", Decimal("1.5"), "column x is bigint, but the number has a fraction"),
        ("bigint", 1 << 63, "column x is bigint, but the number does not fit 64 bits"),
        ("bigint", "1", "column x is bigint, but the value is a str"),
        ("double", float("nan"), "column x must be a finite number"),
        ("double", 10**400, "column x is double, but the number is too large"),
        ("decimal(4,2)", Decimal("1.234"), "column x is decimal(4,2), and the number has more digits than that"),
        ("decimal(4,2)", Decimal(100), "column x is decimal(4,2), and the number has more digits than that"),
        (
            "decimal(38,10)",
            Decimal("12345678901234567890.1234567890123456789"),
            "column x is decimal(38,10), and the number has more digits than that",
        ),
        (
            "decimal(38,20)",
            Decimal("12345678.123456789012345678901234567890"),
            "column x is decimal(38,20), and the number has more digits than that",
        ),
        ("boolean", 1, "column x is boolean, but the value is a int"),
        ("timestamp", "yesterday", "column x is timestamp, but the text is not a time like 2026-01-31T12:00:00Z"),
        ("timestamp", 1 << 60, "column x is timestamp, but the number is out of range for seconds since 1970"),
        ("timestamp", datetime(2026, 1, 1), "column x is timestamp, but the time has no UTC offset"),
        ("date", 1, "column x is date, but the value is not a date like 2026-01-31"),
        ("binary", "x", "column x is binary, but the value is a str"),
        ("array<string>", "x", "column x is an array, but the value is a str"),
        ("json", float("inf"), "column x contains NaN or Infinity"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_column_and_without_the_value(
    build: Build, type: str, value: object, reason: str
) -> None:
    target = build()
    target.open([of(columns={"x": type})], FIRST_EPOCH)
    poor = Upsert("contract", ("a",), {"x": value}, at(1), ("a",))
    good = Upsert("contract", ("b",), {"x": None}, at(1), ("b",))
    (rejection,) = target.write(batch(poor, good)).rejections
    assert rejection.write == poor
    assert rejection.reason.startswith(reason)


def test_a_column_that_must_not_be_null_and_a_field_without_a_column_are_refused(build: Build) -> None:
    target = build()
    target.open([of(columns={"x": {"type": "string", "nullable": False}})], FIRST_EPOCH)
    writes = [Upsert("contract", (pk,), body, at(1), (pk,)) for pk, body in (("a", {}), ("b", {"x": "1", "xx": 1}))]
    missing, unknown = target.write(batch(*writes)).rejections
    assert missing.reason == "column x must not be null, but the attribute is missing or null"
    assert unknown.reason.startswith("the hook returned a field xx, which no column of contract is made from; did you")


@pytest.mark.parametrize("digits", ["1234567890123456789012345678.0123456789", "-0.0000000001", "1E+27"])
def test_a_decimal_keeps_all_of_its_digits(folder: Path, build: Build, digits: str) -> None:
    target, wanted = build(), of(columns={"x": "decimal(38,10)"})
    target.open([wanted], FIRST_EPOCH)
    assert target.write(batch(put({"pk": "a", "x": Decimal(digits)}, 1))) == Outcome()
    assert rows(folder)[0]["x"] == Decimal(digits)
    other = put({"pk": "a", "x": Decimal("0.0000000001")}, 1)
    assert target.compare(wanted, [other]) == [Comparison(at(1), ("x",))]


def test_a_hook_may_return_the_key_under_its_attributes_name(build: Build) -> None:
    target = build()
    target.open([Table("contract", KeySchema((KeyAttribute("user-id", "S"),)), {"columns": {"x": "string"}})], 1)
    good = Upsert("contract", ("a",), {"user-id": "a", "x": "1"}, at(1), ("a",))
    assert target.write(batch(good)) == Outcome()
    poor = Upsert("contract", ("a",), {"user_2d_id": "a", "x": "1"}, at(2), ("a",))
    (rejection,) = target.write(batch(poor)).rejections
    assert rejection.reason.startswith("the hook returned a field user_2d_id, which no column")


def test_a_column_that_is_added_is_null_in_rows_that_are_there(folder: Path, build: Build) -> None:
    target, before, after = build(), of(columns={"x": "string"}), of(columns={"x": "string", "y": "bigint"})
    target.open([before], FIRST_EPOCH)
    target.write(batch(put({"pk": "a", "x": "1", "y": 2}, 1)))
    later = build()
    (problem,) = later.check([after])
    assert problem.endswith("has no column y")
    added = changes({"contract": later.parts(before)}, {"contract": later.parts(after)})
    (statement,) = later.additions([after], added) or ()
    assert statement.endswith("ADD COLUMN y bigint")
    later.extend([after], added)
    later.open([after], FIRST_EPOCH)
    later.write(batch(put({"pk": "b", "x": "1", "y": 2}, 2)))
    assert [(row["pk"], row["x"], row["y"]) for row in rows(folder)] == [("a", "1", None), ("b", "1", 2)]


# partitions


def test_a_row_moves_to_another_partition_with_its_value_and_is_there_once(folder: Path, build: Build) -> None:
    target = build()
    target.open([of(columns={"country": "string", "n": "bigint"}, partition_by=("country",))], FIRST_EPOCH)
    target.write(batch(*(put({"pk": pk, "country": "de", "n": 1}, 1) for pk in "ab")))
    target.write(batch(put({"pk": "a", "country": "fr / ü", "n": 2}, 2)))
    target.write(batch(put({"pk": "b", "n": 3}, 3)))
    found = [(row["pk"], row["country"], row["n"]) for row in rows(folder)]
    assert found == [("a", "fr / ü", 2), ("b", None, 3)]
    assert set(DeltaTable(f"{folder}/contract").metadata().partition_columns) == {"country"}
    target.write(batch(remove("a", 4)))
    assert [row["pk"] for row in rows(folder)] == ["b"]
    partitioned = of(columns={"country": "string", "n": "bigint"}, partition_by=("country",))
    assert target.versions(partitioned, [("a",), ("b",)]) == [None, at(3)]
    assert list(target.walk(partitioned, None).ids) == [("b",)]


@pytest.mark.parametrize(
    ("type", "values"),
    [
        ("string", ["de", "it's", None]),
        ("bigint", [1, -2, None]),
        ("boolean", [True, False, None]),
        ("date", ["2026-01-31", "1969-12-31", None]),
    ],
)
def test_a_merge_reads_only_the_partitions_that_have_its_rows(
    folder: Path, build: Build, type: str, values: Sequence[Any]
) -> None:
    target = build()
    target.open([of(columns={"c": type, "n": "bigint"}, partition_by=("c",))], FIRST_EPOCH)
    others = [put({"pk": f"{n}{end}", "c": value, "n": 1}, 1) for n, value in enumerate(values) for end in "az"]
    target.write(batch(*others, put({"pk": "0", "n": 1}, 1), put({"pk": "9", "n": 1}, 1)))
    for number, value in enumerate(values):  # whose keys are between those of every other partition
        target.write(batch(put({"pk": f"{number}a", "c": values[0], "n": 2}, number + 2)))
        assert merged(folder)["num_target_files_scanned"] <= 1, value
        target.write(batch(remove(f"{number}z", number + 2)))
    found = {row["pk"]: (row["n"], row["c"]) for row in rows(folder)}
    assert {pk: n for pk, (n, _) in found.items()} == {"0": 1, "0a": 2, "1a": 2, "2a": 2, "9": 1}
    assert found["2a"] == found["0a"]


def test_what_is_in_more_partitions_than_a_condition_may_name_is_replaced_and_removed(
    folder: Path, build: Build
) -> None:
    target = build()
    target.open([of(columns={"c": "bigint"}, partition_by=("c",))], FIRST_EPOCH)
    target.write(batch(*(put({"pk": f"{n}", "c": n}, 1) for n in range(150))))
    target.write(
        batch(*(put({"pk": f"{n}", "c": 0}, 2) for n in range(100)), *(remove(f"{n}", 2) for n in range(100, 150)))
    )
    assert [row["c"] for row in rows(folder)] == [0] * 100


def test_a_table_partitioned_by_time_needs_no_database_of_time_zones(folder: Path) -> None:
    """Python has none of its own; some systems, and small images of containers, do not either."""
    environment = {**os.environ, "PYTHONTZPATH": ""}
    call = f"from {__name__} import _replace_in_partitions; _replace_in_partitions({str(folder)!r})"
    code = f"import sys; sys.modules['tzdata'] = sys.modules['pytz'] = None; {call}"
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = DeltaTable(f"{folder}/contract").to_pyarrow_table(columns=["pk", "n"]).to_pylist()
    assert sorted((row["pk"], row["n"]) for row in found) == [("a", 2), ("b", 1)]


def _replace_in_partitions(folder: str) -> None:
    found, _ = destination({"type": "delta", "path": folder, "table": "contract"})
    assert found is not None
    target, columns = found.build("contract"), {"c": "timestamp", "d": "double", "n": "bigint"}
    target.open([of(columns=columns, partition_by=("c", "d"))], FIRST_EPOCH)
    document = {"c": "2026-01-31T12:00:00Z", "d": Decimal("0.5")}
    target.write(batch(put({"pk": "a", "n": 1, **document}, 1), put({"pk": "b", "n": 1, **document}, 1)))
    target.write(batch(put({"pk": "a", "n": 2, **document}, 2)))
    target.close()


def merged(folder: Path) -> Mapping[str, Any]:
    """What the last merge says that it did."""
    entries = DeltaTable(f"{folder}/contract").history()
    return next(entry["operationMetrics"] for entry in entries if entry["operation"] == "MERGE")


@pytest.mark.parametrize(
    ("mark", "most"), [("x", 253), ("ü", 42), ("市", 28), (" ", 84), ("-", 253), ("~", 253), (".", 253), ("_", 253)]
)
def test_text_that_is_too_long_for_a_partition_or_empty_is_refused_and_all_else_is_stored(
    folder: Path, build: Build, mark: str, most: int
) -> None:
    target, wanted = build(), of(columns={"c": "string", "n": "bigint"}, partition_by=("c",))
    target.open([wanted], FIRST_EPOCH)
    texts = [mark * most, mark, "null", None]
    good = [put({"pk": f"{n}", "c": text, "n": 1}, 1) for n, text in enumerate(texts)]
    assert target.write(batch(*good)) == Outcome()
    assert [row["c"] for row in rows(folder)] == texts
    DeltaTable(f"{folder}/contract").optimize.compact()
    DeltaTable(f"{folder}/contract").create_checkpoint()
    assert build().compare(wanted, good) == [Comparison(at(1))] * len(texts)
    poor = batch(put({"pk": "a", "c": mark * (most + 1)}, 1), put({"pk": "b", "c": ""}, 1))
    hive = batch(put({"pk": "c", "c": "__HIVE_DEFAULT_PARTITION__"}, 1))
    (long, empty), (hidden,) = target.write(poor).rejections, target.write(hive).rejections
    assert long.reason.endswith("divides the files (partition_by), and the text is too long for a folder")
    assert empty.reason.endswith("divides the files (partition_by), where empty text means null")
    assert hidden.reason.endswith("where __HIVE_DEFAULT_PARTITION__ means null")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"partition_by": ["x"]}, "x is not one of the columns"),
        ({"columns": {"x": "json"}, "partition_by": ["x"]}, "files cannot be divided by that type"),
        ({"columns": {"x": "decimal(9,2)"}, "partition_by": ["x"]}, "files cannot be divided by that type"),
        ({"columns": {"x": "string"}, "partition_by": ["x", "x"]}, "names a column twice"),
        ({"columns": {"x": "text"}}, "must be one of string, bigint"),
        ({"columns": {"x": "decimal(39,2)"}}, "a decimal has 1 to 38 digits"),
        ({"columns": {"x": {"type": "string", "from": "a..b"}}}, "has an empty name between two dots"),
        ({"deletes": "mark"}, "this one removes what is deleted"),
    ],
)
def test_options_of_a_table_that_cannot_work_are_named(options: Mapping[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem.replace("(", r"\(").replace(")", r"\)")):
        DeltaTableOptions.model_validate(options)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"pk": "string"}, "pk already exists as part of the key; leave it out"),
        ({"_version": "bigint"}, "_version is replicator's own"),
        ({"x": "string", "X": "string"}, "X is listed twice"),
        ({"a b": "string"}, "the name a b may have letters, digits and _ only"),
    ],
)
def test_names_that_a_lake_does_not_allow_are_refused(build: Build, columns: Mapping[str, Any], problem: str) -> None:
    (found,) = build().check([of(columns=columns)])
    assert problem in found


# exactly once


def shard(id: str, expected: int, *, kind: str = "shard") -> Save:
    return Save(kind, id, expected, "{}")


def page(*writes: Any, expected: int, saves: Sequence[Save] = ()) -> Batch:
    return Batch([Part("shard:1", writes)], [shard("1", expected), *saves])


def test_what_a_killed_run_stored_is_not_stored_again_even_if_it_was_removed_since(folder: Path, build: Build) -> None:
    """It was killed between its commit and its checkpoint. The next run reads the same records, in other batches."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "a"}, 1), expected=4))
    first.write(page(remove("a", 2), put({"pk": "b"}, 3), expected=5))  # its position was not saved
    later = build()
    later.open([table()], FIRST_EPOCH)
    before = rows(folder)
    outcome = later.write(page(put({"pk": "a"}, 1), put({"pk": "x", "n": 1}, 2, weight=0), expected=5))
    assert outcome.superseded == {"shard:1": 1}
    assert rows(folder) == before
    assert later.write(page(put({"pk": "c"}, 4), expected=6)).superseded == {}
    assert [row["pk"] for row in rows(folder)] == ["b", "c"]


def test_what_a_killed_run_stored_is_skipped_however_small_the_batches_of_the_next_run_are(
    folder: Path, build: Build
) -> None:
    """Some of its batches may have no document, and it may be killed as well."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    stored = [put({"pk": "z"}, 1), put({"pk": "y"}, 2), remove("a", 9), put({"pk": "b"}, 10)]
    first.write(page(*stored, expected=5))  # it removed what it had put at 7; its position was not saved
    before = rows(folder)
    second = build()
    second.open([table()], FIRST_EPOCH)
    assert second.write(page(put({"pk": "z"}, 1), put({"pk": "y"}, 2), expected=5)).superseded == {"shard:1": 2}
    third = build()
    third.open([table()], FIRST_EPOCH)
    assert third.write(page(put({"pk": "a"}, 7), expected=8)).superseded == {"shard:1": 1}
    assert rows(folder) == before
    third.write(page(put({"pk": "b"}, 10), put({"pk": "c"}, 11), expected=9))
    fourth = build()
    fourth.open([table()], FIRST_EPOCH)
    assert fourth.write(page(put({"pk": "d"}, 10), expected=10)).superseded == {}
    assert [row["pk"] for row in rows(folder)] == ["b", "c", "d", "y", "z"]


@pytest.mark.parametrize("kind", ["parked", "dropped", "item"])
def test_a_batch_that_parked_something_is_stored_again_because_it_may_have_more(
    folder: Path, build: Build, kind: str
) -> None:
    """A hook that is correct now makes a document of what the killed run would have parked."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "b"}, 3), expected=5, saves=[shard("k", 0, kind=kind)]))
    later = build()
    later.open([table()], FIRST_EPOCH)
    assert later.write(page(put({"pk": "a"}, 2), put({"pk": "b"}, 3), expected=5)).superseded == {"shard:1": 1}
    assert [row["pk"] for row in rows(folder)] == ["a", "b"]


def test_a_change_that_was_parked_is_stored_by_a_fixed_hook_although_the_checkpoints_went_back(
    folder: Path, build: Build
) -> None:
    """They are of before the change was parked; what was stored after it is stored already, and noted as such."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "a"}, 1), expected=5))
    first.write(page(put({"pk": "c"}, 3), expected=6, saves=[shard("parked", 0, kind="parked")]))
    first.write(page(put({"pk": "d"}, 4), expected=7))
    later = build()
    later.open([table()], FIRST_EPOCH)
    again = page(put({"pk": "a"}, 1), put({"pk": "b"}, 2), put({"pk": "c"}, 3), put({"pk": "d"}, 4), expected=5)
    assert later.write(again).superseded == {"shard:1": 3}
    assert [row["pk"] for row in rows(folder)] == ["a", "b", "c", "d"]


def test_a_change_that_was_parked_while_batches_were_repeated_is_stored_by_a_fixed_hook(
    folder: Path, build: Build
) -> None:
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "a"}, 1), put({"pk": "d"}, 4), expected=5))  # its position was not saved
    second = build()
    second.open([table()], FIRST_EPOCH)
    second.write(page(put({"pk": "a"}, 1), expected=5))
    second.write(page(put({"pk": "c"}, 3), expected=6, saves=[shard("parked", 0, kind="parked")]))
    later = build()
    later.open([table()], FIRST_EPOCH)
    assert later.write(page(put({"pk": "b"}, 2), put({"pk": "d"}, 4), expected=6)).superseded == {"shard:1": 1}
    assert [row["pk"] for row in rows(folder)] == ["a", "b", "c", "d"]


def test_what_a_killed_run_stored_is_skipped_although_the_next_run_begins_with_a_batch_without_rows(
    folder: Path, build: Build
) -> None:
    """Such as one whose changes are all of another table of the hook, or none that the target is told of."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "z"}, 1), remove("a", 9), put({"pk": "b"}, 10), expected=5))
    before = rows(folder)
    for expected in (5, 6):
        later = build()
        later.open([table()], FIRST_EPOCH)
        assert later.write(page(expected=expected)) == Outcome()
    assert later.write(page(put({"pk": "a"}, 7), expected=7)).superseded == {"shard:1": 1}
    assert rows(folder) == before
    later.write(page(put({"pk": "b"}, 10), expected=8))
    made = commits(folder)
    later.write(page(expected=9))
    assert commits(folder) == made, "nothing is noted of batches without rows once the run has got as far"


@pytest.mark.parametrize("empty", [False, True])
def test_a_change_that_was_parked_before_batches_were_repeated_is_stored_although_the_checkpoints_went_back(
    folder: Path, build: Build, empty: bool
) -> None:
    """Even if the batches that are repeated from there begin with some that have no rows."""
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "w"}, 1), expected=3, saves=[shard("parked", 0, kind="parked")]))  # x, at 2
    first.write(page(put({"pk": "a"}, 3), put({"pk": "d"}, 6), expected=4))  # its position was not saved
    second = build()
    second.open([table()], FIRST_EPOCH)
    second.write(page(put({"pk": "a"}, 3), expected=4))
    later = build()
    later.open([table()], FIRST_EPOCH)  # with checkpoints of before the change was parked
    if empty:
        later.write(page(expected=3))
    later.write(page(put({"pk": "w"}, 1), put({"pk": "x"}, 2), put({"pk": "a"}, 3), expected=3 + empty))
    assert [row["pk"] for row in rows(folder)] == ["a", "d", "w", "x"]


def test_a_parked_change_without_rows_ends_what_was_noted_of_a_killed_run(folder: Path, build: Build) -> None:
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "a"}, 3), put({"pk": "d"}, 6), expected=4))  # its position was not saved
    second = build()
    second.open([table()], FIRST_EPOCH)
    second.write(page(expected=4))
    second.write(page(expected=5, saves=[shard("parked", 0, kind="parked")]))  # x, at 2
    later = build()
    later.open([table()], FIRST_EPOCH)  # with checkpoints of before the change was parked
    later.write(page(put({"pk": "x"}, 2), expected=5))
    assert [row["pk"] for row in rows(folder)] == ["a", "d", "x"]


def test_documents_of_one_change_in_two_batches_are_all_stored(folder: Path, build: Build) -> None:
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(page(put({"pk": "a"}, 3), expected=5))
    later = build()
    later.open([table()], FIRST_EPOCH)
    later.write(page(put({"pk": "a"}, 3), put({"pk": "b"}, 3), expected=5))
    assert [row["pk"] for row in rows(folder)] == ["a", "b"]


def test_a_commit_whose_response_is_lost_is_found_and_counted_once(
    folder: Path, opened: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.write(batch(put({"pk": "a", "n": 5}, 5)))
    again = batch(put({"pk": "a"}, 4, weight=3), put({"pk": "b"}, 6))
    _lose_response(monkeypatch)
    with pytest.raises(TransientError, match="no response"):
        opened.write(again)
    stored = commits(folder)
    monkeypatch.undo()
    assert opened.write(again).superseded == {"shard:contract": 3}
    assert commits(folder) == stored
    opened.write(batch(put({"pk": "c"}, 7)))
    assert [row["pk"] for row in rows(folder)] == ["a", "b", "c"]


def _lose_response(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TableWriter._store

    def lost(self: TableWriter, *given: Any) -> None:
        store(self, *given)
        raise TransientError("no response")

    monkeypatch.setattr(TableWriter, "_store", lost)


def test_a_run_that_slept_through_a_takeover_stores_nothing(folder: Path, build: Build) -> None:
    """Its commit fails, whenever it goes on: after the new run's first commit, or just before its own."""
    old, new = build(), build()
    old.open([table()], FIRST_EPOCH)
    old.write(batch(put({"pk": "a"}, 1)))
    new.open([table()], FIRST_EPOCH)
    new.write(batch(remove("a", 3)))
    with pytest.raises(Unfinished, match="was changed by another process of the pipeline"):
        old.write(batch(put({"pk": "a"}, 2)))
    assert rows(folder) == []


@pytest.mark.parametrize("change", [remove("a", 3), remove("absent", 3), put({"pk": "a"}, 0)], ids=["a", "b", "c"])
def test_a_run_that_slept_in_the_middle_of_its_commit_stores_nothing(
    folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    """Also if the new run's batch changed no row: it may have removed what the old run is about to insert."""
    old, new = build(), build()
    old.open([table()], FIRST_EPOCH)
    old.write(batch(put({"pk": "a"}, 1)))
    new.open([table()], FIRST_EPOCH)
    store, slept = TableWriter._store, [False]

    def asleep(self: TableWriter, *given: Any) -> None:
        if not slept[0]:
            slept[0] = True
            new.write(batch(change))
        store(self, *given)

    monkeypatch.setattr(TableWriter, "_store", asleep)
    with pytest.raises(Unfinished):
        old.write(batch(put({"pk": "late"}, 2)))
    assert "late" not in [row["pk"] for row in rows(folder)]


def test_a_compaction_by_others_meanwhile_is_no_takeover(
    folder: Path, opened: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        opened.write(batch(put({"pk": f"{n}"}, n + 1)))
    store, done = TableWriter._store, [False]

    def compacted(self: TableWriter, *given: Any) -> None:
        if not done[0]:
            done[0] = True
            DeltaTable(f"{folder}/contract").optimize.compact()
        store(self, *given)

    monkeypatch.setattr(TableWriter, "_store", compacted)
    opened.write(batch(put({"pk": "0", "n": 2}, 9)))
    assert [row["pk"] for row in rows(folder)] == ["0", "1", "2"]


# tombstones


def test_readers_never_see_a_tombstone(folder: Path, opened: Delta) -> None:
    opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
    opened.write(batch(remove("a", 2), remove("c", 2), tombstones=True))
    assert [row["pk"] for row in rows(folder)] == ["b"]
    assert [row["pk"] for row in kit.with_polars(f"{folder}/contract")] == ["b"]
    assert opened.write(batch(put({"pk": "c"}, 1), tombstones=True)).superseded == {"shard:contract": 1}
    assert exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1))) == 2


def test_a_row_whose_tombstone_was_stored_before_a_crash_is_removed_all_the_same(folder: Path, build: Build) -> None:
    first = build()
    first.open([table()], FIRST_EPOCH)
    first.write(batch(put({"pk": "a"}, 1)))
    first._open["contract"].writer.tombstones.add([(("a",), at(2))])
    later = build()
    later.open([table()], FIRST_EPOCH)
    later.write(batch(remove("a", 2), tombstones=True))
    assert rows(folder) == []


def test_a_purge_leaves_a_tombstone_that_another_run_has_put_again(opened: Delta, build: Build) -> None:
    """It has the same version, and the other run may rely on it."""
    opened.write(batch(remove("a", 2), tombstones=True))
    later = at(0, FIRST_EPOCH + 1)
    assert opened.purge(table(), later) == 1
    other = build()
    other.open([table()], FIRST_EPOCH)
    other._open["contract"].writer.tombstones.add([(("a",), at(2))])
    assert opened.purge(table(), later) == 1
    assert other.write(batch(put({"pk": "a"}, 1), tombstones=True)).superseded == {"shard:contract": 1}


# upkeep


def test_small_files_become_few_and_old_ones_are_removed(folder: Path, build: Build) -> None:
    target = build(compact_hours=1, keep_days=0)
    target.open([table()], FIRST_EPOCH)
    for n in range(12):
        target.write(batch(put({"pk": f"{n:02}"}, n + 1)))
    assert len(DeltaTable(f"{folder}/contract").file_uris()) > 8
    upkeep = target._open["contract"].maintenance
    clock = [0.0]
    upkeep.now = lambda: clock[0]
    upkeep.begin()
    target.recheck([table()])
    assert len(DeltaTable(f"{folder}/contract").file_uris()) > 8
    clock[0] = 3600.0
    assert target.recheck([table()]) == []
    assert len(DeltaTable(f"{folder}/contract").file_uris()) == 1
    assert len(list((folder / "contract").glob("*.parquet"))) == 1
    assert (folder / "contract" / "_tombstones" / "_delta_log").is_dir()
    target.write(batch(put({"pk": "zz"}, 20)))
    assert len(rows(folder)) == 13
    assert not upkeep.is_due()


def test_files_whose_removal_the_log_has_forgotten_are_removed_and_young_ones_are_not(
    folder: Path, build: Build
) -> None:
    """A checkpoint of the log leaves out removals that are older than what is kept, as files of killed commits are."""
    target = build(keep_days=2)
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a", "n": 1}, 1)))
    (live,) = (folder / "contract").glob("*.parquet")
    for name, hours in (("part-forgotten", 49), ("part-uncommitted", 47)):
        copy = shutil.copy(live, live.with_name(f"{name}.parquet"))
        os.utime(copy, (time.time() - hours * 3600,) * 2)
    target.write(batch(put({"pk": "a", "n": 2}, 2)))
    os.utime(live, (time.time() - 90 * 3600,) * 2)  # removed just now, however old it is
    target._open["contract"].maintenance.run()
    left = {path.name for path in (folder / "contract").glob("*.parquet")}
    assert left == {live.name, "part-uncommitted.parquet", *_files(folder)}
    assert (folder / "contract" / "_tombstones" / "_delta_log").is_dir()
    assert target.write(batch(put({"pk": "b"}, 3))) == Outcome()


def test_no_file_of_a_partition_is_removed_whatever_its_name(folder: Path, build: Build) -> None:
    target = build(keep_days=1)
    target.open([of(columns={"_c": "string"}, partition_by=("_c",))], FIRST_EPOCH)
    marks = ["fr / ü", "a=b", "50%", "%2F", "..", "a\nb", "#?&", "+", None, "_x", ".x", "a:b", "\x7f", "\\"]
    target.write(batch(*(put({"pk": f"{n}", "_c": mark}, 1) for n, mark in enumerate(marks))))
    before = rows(folder)
    for path in (folder / "contract").glob("**/*.parquet"):
        os.utime(path, (1, 1))
    target._open["contract"].maintenance.run()
    assert rows(folder) == before
    assert len(before) == len(marks)


def test_files_of_a_table_inside_the_folder_are_not_removed(
    folder: Path, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither its log, however young that is, nor its rows; files that this table's log has as removed are."""
    target = build(keep_days=1)
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a", "n": 1}, 1)))
    (own,) = (folder / "contract").glob("*.parquet")
    write_deltalake(folder / "contract" / "other" / "inner", pa.table({"id": ["b"]}))
    (inner,) = (folder / "contract" / "other").glob("**/*.parquet")
    for path in (own, inner):
        os.utime(path, (1, 1))
    target.write(batch(put({"pk": "a", "n": 2}, 2)))
    target._open["contract"].maintenance.options = target._options.model_copy(update={"keep_days": 0})
    target._open["contract"].maintenance.run()
    assert not own.exists()
    assert kit.rows(str(folder / "contract" / "other" / "inner")) == [{"id": "b"}]
    (said,) = [record for record in caplog.records if "another Delta table is inside" in record.message]
    assert (said.table, said.has) == (f"{folder}/contract", "other/inner")  # type: ignore[attr-defined]


def _files(folder: Path) -> list[str]:
    return [path.rpartition("/")[2] for path in DeltaTable(f"{folder}/contract").file_uris()]


def test_another_time_to_keep_files_is_noted_with_a_table_that_is_there(folder: Path, build: Build) -> None:
    build(keep_days=7).open([table()], FIRST_EPOCH + 1)
    build(keep_days=30).open([table()], FIRST_EPOCH)
    notes = DeltaTable(f"{folder}/contract").metadata().configuration
    assert notes["delta.deletedFileRetentionDuration"] == "interval 720 hours"
    assert notes["replicator.epoch"] == f"{FIRST_EPOCH + 1}"
    stored = commits(folder)
    build(keep_days=30).open([table()], FIRST_EPOCH)
    assert commits(folder) == stored


def test_the_log_gets_checkpoints_and_the_settings_of_the_config(folder: Path, build: Build) -> None:
    target = build(log_days=10, keep_days=3)
    target.open([table()], FIRST_EPOCH)
    notes = DeltaTable(f"{folder}/contract").metadata().configuration
    assert notes["delta.logRetentionDuration"] == "interval 10 days"
    assert notes["delta.deletedFileRetentionDuration"] == "interval 72 hours"
    for n in range(102):
        target.write(batch(put({"pk": "a", "n": n}, n + 1)))
    assert (folder / "contract" / "_delta_log" / "_last_checkpoint").exists()
    later = build(keep_days=3)
    later.open([table()], FIRST_EPOCH)
    assert later._open["contract"].writer.stored.number == target._open["contract"].writer.stored.number


# what is refused


def test_a_table_of_others_and_of_another_pipeline_is_refused_and_stays(folder: Path, build: Build) -> None:
    build("first").open([table()], FIRST_EPOCH)
    (problem,) = build("second").check([table()])
    assert "is written by the pipeline first; two copies in one table would overwrite each other" in problem
    with pytest.raises(ConfigError, match="written by the pipeline first"):
        build("second").epoch([table()])
    shutil.rmtree(folder)
    import pyarrow as pa

    write_deltalake(f"{folder}/contract", pa.table({"x": [1]}))
    (problem,) = build().check([table()])
    assert "is a Delta table that replicator did not create" in problem
    with pytest.raises(ConfigError, match="did not create"):
        build().open([table()], FIRST_EPOCH)


def test_a_folder_with_other_files_is_refused(folder: Path, build: Build) -> None:
    (folder / "contract").mkdir(parents=True)
    (folder / "contract" / "notes.txt").write_text("mine")
    (problem,) = build().check([table()])
    assert problem.endswith("has files, and is not a Delta table. Choose another table or path")


@pytest.mark.parametrize("path", ["contract", "contract/deeper", "link/deeper"])
def test_a_path_inside_another_table_is_refused_by_check_and_run(folder: Path, build: Build, path: str) -> None:
    """Whose upkeep would remove this one's files."""
    build().open([table()], FIRST_EPOCH)
    (folder / "contract" / "to").mkdir()
    (folder / "link").symlink_to(folder / "contract" / "to")
    target = build(path=str(folder / path))
    (problem,) = target.check([table()])
    assert f"is inside the Delta table {folder}/contract, whose upkeep removes files that it does not have" in problem
    with pytest.raises(ConfigError, match="is inside the Delta table"):
        target.open([table()], FIRST_EPOCH)
    assert not (folder / path / "contract").exists()


def test_a_table_that_is_inside_another_one_since_is_refused(folder: Path, build: Build) -> None:
    build().open([table()], FIRST_EPOCH)
    write_deltalake(folder, pa.table({"id": ["a"]}))
    (problem,) = build().check([table()])
    assert problem.startswith(f"{folder}/contract is inside the Delta table {folder}, whose upkeep removes files")


def test_a_file_where_the_folder_should_be_is_refused(folder: Path, build: Build) -> None:
    folder.write_text("a file")
    (problem,) = build().check([table()])
    assert problem == f"{folder} is a file, not a folder. Correct target.path"


def test_a_folder_without_permission_is_named(folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    (problem,) = build().check([table()])
    assert problem.endswith("is not writable for this user. Change its permissions, or correct target.path")


@pytest.mark.parametrize(("number", "is_named"), [(errno.ENOENT, True), (errno.EROFS, True), (errno.ENOSPC, False)])
def test_a_file_system_that_takes_no_folders_is_named_by_check_and_run_and_a_full_one_is_waited_for(
    folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch, number: int, is_named: bool
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    said = f"no folder can be created in {folder.parent if not folder.exists() else folder} ({os.strerror(number)})"
    assert build().check([table()]) == ([f"{said}. Correct target.path"] if is_named else [])
    if is_named:
        with pytest.raises(ConfigError, match="no folder can be created in"):
            build().open([table()], FIRST_EPOCH)


def test_a_check_leaves_nothing_in_the_folder(folder: Path, build: Build) -> None:
    folder.mkdir(exist_ok=True)
    assert build().check([table()]) == []
    assert list(folder.iterdir()) == []


def test_other_columns_types_and_partitions_are_named(build: Build) -> None:
    build().open([of(columns={"x": "string", "y": "bigint"}, partition_by=("x",))], FIRST_EPOCH)
    problems = build().check([of(columns={"x": "bigint", "z": "string"})])
    assert [problem.partition("/contract")[2] for problem in problems] == [
        ": the column x is string, but the config says int64",
        " has no column z",
        " has columns that are not in the config: y",
        " is partitioned by x, which cannot be changed; the config says nothing. Choose another table",
    ]


def test_a_column_that_was_added_for_an_epoch_that_did_not_begin_may_be_left_out_again(
    folder: Path, build: Build
) -> None:
    old, new = of(columns={"a": "string"}), of(columns={"a": "string", "b": "string"})
    first = build()
    first.open([old], FIRST_EPOCH)
    first.write(batch(put({"pk": "k", "a": "x"}, 1)))
    first.close()
    extending = build()
    extending.extend([new], changes({"contract": extending.parts(old)}, {"contract": extending.parts(new)}))
    extending.close()

    back = build()
    assert back.check([old]) == []
    back.open([old], FIRST_EPOCH)
    back.write(batch(put({"pk": "k", "a": "y"}, 2), put({"pk": "l", "a": "z"}, 2)))
    back.write(batch(remove("l", 3)))
    assert [(row["pk"], row["a"], row["b"]) for row in rows(folder)] == [("k", "y", None)]
    back.close()

    begun = build()
    assert begun.check([new]) == []
    begun.open([new], FIRST_EPOCH + 1)
    begun.write(batch(put({"pk": "k", "a": "y", "b": "w"}, 4)))
    assert [row["b"] for row in rows(folder)] == ["w"]
    (problem,) = build().check([old])
    assert "has columns that are not in the config: b" in problem


def test_a_table_that_is_removed_or_replaced_during_a_run_is_a_gap(folder: Path, opened: Delta, build: Build) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    shutil.rmtree(folder / "contract")
    with pytest.raises(GapFound, match="was removed or replaced") as found:
        opened.recheck([table()])
    assert found.value.of_target  # what is left in the stream does not repair it
    build().open([table()], FIRST_EPOCH)
    with pytest.raises(GapFound, match="was removed or replaced") as found:
        opened.recheck([table()])
    assert found.value.of_target


def test_a_sweep_of_a_table_that_was_removed_or_replaced_is_a_gap(folder: Path, opened: Delta, build: Build) -> None:
    """It has ended if it finds nothing: then all gaps count as repaired."""
    opened.write(batch(put({"pk": "a"}, 1)))
    assert opened.sweep(table(), 1, []) == 0
    shutil.rmtree(folder / "contract")
    with pytest.raises(GapFound, match="was removed or replaced while this run wrote to it") as found:
        opened.sweep(table(), at(1), [])
    assert found.value.of_target
    build().open([table()], FIRST_EPOCH)
    with pytest.raises(GapFound, match="was removed or replaced") as found:
        opened.sweep(table(), at(1), [])
    assert found.value.of_target


@pytest.mark.parametrize("more", [-2, 0, 3], ids=["shorter", "as long", "longer"])
def test_a_run_writes_nothing_into_a_table_that_replaced_its_own(folder: Path, build: Build, more: int) -> None:
    """Between two looks at the tables, and however many commits the other one has."""
    own = build()
    own.open([table()], FIRST_EPOCH)
    for n in range(6):
        own.write(batch(put({"pk": f"{n}"}, n + 1)))
    length = commits(folder)
    shutil.rmtree(folder / "contract")
    other = build("other")
    other.open([table()], FIRST_EPOCH)
    while commits(folder) < length + more:
        other.write(batch(put({"pk": f"theirs {commits(folder)}"}, commits(folder) + 1)))
    before, again = rows(folder), batch(put({"pk": "x"}, 99), *(remove(row["pk"], 99) for row in rows(folder)))
    for _ in range(2):
        with pytest.raises(GapFound, match="was removed or replaced") as found:
            own.write(again)
        assert found.value.of_target
    assert (rows(folder), commits(folder)) == (before, length + more)
    assert other.write(batch(put({"pk": "y"}, 99))) == Outcome()


def test_a_run_writes_nothing_once_its_table_or_its_tombstones_are_removed(folder: Path, opened: Delta) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    shutil.rmtree(folder / "contract" / "_tombstones")
    with pytest.raises(GapFound, match="_tombstones was removed or replaced"):
        opened.write(batch(remove("a", 2), tombstones=True))
    shutil.rmtree(folder / "contract")
    for _ in range(2):
        with pytest.raises(GapFound, match="contract was removed or replaced"):
            opened.write(batch(put({"pk": "a"}, 2)))
    assert not (folder / "contract").exists()


def test_a_commit_that_the_client_repeats_because_its_response_is_lost_is_counted_once(
    folder: Path, opened: Delta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 refuses the repeated request: the file is there. It looks like the commit of another."""
    opened.write(batch(put({"pk": "a", "n": 5}, 5)))
    store = TableWriter._store

    def refused(self: TableWriter, *given: Any) -> None:
        store(self, *given)
        raise Conflict("contract")

    monkeypatch.setattr(TableWriter, "_store", refused)
    again = batch(put({"pk": "a"}, 4, weight=3), put({"pk": "b"}, 6), remove("c", 6))
    assert opened.write(again).superseded == {"shard:contract": 3}
    monkeypatch.undo()
    assert opened.write(batch(put({"pk": "c"}, 7))) == Outcome()
    assert [row["pk"] for row in rows(folder)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("<Code>NoSuchBucket</Code>", ConfigError, "there is no bucket bucket. Create it, or correct target.path"),
        ("status 403 AccessDenied", NotPermitted, "may not be read or written"),
        ("InvalidAccessKeyId", NotAuthenticated, "S3 refuses the credentials"),
        ("No space left on device (os error 28)", TransientError, "no space is left on the device"),
        (
            "1 rows failed validation check. Preview: | secret |",
            ConfigError,
            "refuses rows since its columns or constr",
        ),
        ("Cannot cast schema, number of fields does not match: 3 vs 4", ConfigError, "replicator check names columns"),
        ("Read-only file system (os error 30)", ConfigError, "is on a file system that is mounted read-only"),
        ("error sending request\n \x1b[31mfor url", TransientError, "cannot be read or written: error sending request"),
    ],
)
def test_what_the_client_reports_says_what_to_do(text: str, kind: type[Exception], said: str) -> None:
    error = failure(text, "s3://bucket/lake/orders")
    assert type(error) is kind
    assert said in str(error)
    assert "\x1b" not in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("https://bucket/x", "must be a folder, or have the form s3://bucket/prefix"),
        ("s3://", "must be a folder, or have the form s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "must be a folder, or have the form s3://bucket/prefix"),
    ],
)
def test_a_path_is_a_folder_or_a_prefix_in_s3(path: str, problem: str) -> None:
    _, problems = destination({"type": "delta", "path": path, "table": "orders"})
    assert [problem in p.text for p in problems] == [True]


@pytest.mark.parametrize("mark", ["%", "\\", "[", "]", "|", "^", "\t", "\x01", "\x85"])
@pytest.mark.parametrize("start", ["", "s3://bucket/"])
def test_a_path_with_a_mark_that_clients_do_not_take_as_it_is_is_refused(start: str, mark: str) -> None:
    _, problems = destination({"type": "delta", "path": f"{start}a{mark}b", "table": "orders"})
    assert ["which clients of Delta Lake" in p.text for p in problems] == [True]


ODD = "a b#c?d{e} Zürich 日本~!$&'()*+,;=:@"


def test_a_folder_with_marks_of_addresses_is_the_one_that_is_written_and_read(tmp_path: Path, build: Build) -> None:
    """Of polars, only with ``use_pyarrow``: the client gives it names of files with percent codes."""
    lake = tmp_path / ODD
    target = build(path=str(lake), compact_hours=0.0001)
    assert target.check([table()]) == []
    target.open([table()], FIRST_EPOCH)
    target.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
    target.write(batch(put({"pk": "a"}, 2), remove("b", 2), tombstones=True))
    target._open["contract"].maintenance.run()
    assert sorted(f.name for f in tmp_path.iterdir()) == [ODD]
    assert (lake / "contract" / "_tombstones" / "_delta_log").is_dir()
    assert [row["_version"] for row in kit.rows(f"{lake}/contract")] == [at(2)]
    assert [row["_version"] for row in kit.with_polars(f"{lake}/contract", use_pyarrow=True)] == [at(2)]
    with pytest.raises(FileNotFoundError):  # once that works, the documentation can do without the note
        kit.with_polars(f"{lake}/contract")


@pytest.mark.parametrize("part", ["", ".", ".."])
def test_a_prefix_in_s3_with_a_part_that_clients_leave_out_is_refused(part: str) -> None:
    _, problems = destination({"type": "delta", "path": f"s3://bucket/a/{part}/b", "table": "orders"})
    assert ["has an empty part, . or .. between its slashes" in p.text for p in problems] == [True]


def test_the_most_seconds_between_commits_leave_time_for_the_commit_while_the_copy_is_live(build: Build) -> None:
    assert build(commit_seconds=LIVE - 4).batch_size.seconds == 6
    _, problems = destination({"type": "delta", "path": "lake", "table": "orders", "commit_seconds": LIVE - 3.9})
    assert ["must be at most 6" in p.text for p in problems] == [True]


def test_a_folder_is_relative_to_the_config(tmp_path: Path) -> None:
    found, _ = destination({"type": "delta", "path": "lake", "table": "orders"}, tmp_path)
    assert found is not None
    assert found.options.path == str(tmp_path / "lake")  # type: ignore[attr-defined]
    assert isinstance(built({"type": "delta", "path": "lake"}), Delta)


def test_a_table_is_known_by_its_last_number(build: Build, opened: Delta) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    stored: StoredTable = opened._open["contract"].writer.stored
    assert stored.last_number(stored.current()) == stored.number


def test_a_path_that_clients_read_as_another_one_is_refused(tmp_path: Path) -> None:
    """Clients would write to one folder and read another. A folder may have any other name."""
    for path in ("a%20b", "100%", "s3://bucket/a%2Fb", "a\\b", str(tmp_path / "%61" / "lake")):
        found, problems = destination({"type": "delta", "path": path, "table": "orders"}, tmp_path)
        assert found is None
        assert "which clients of Delta Lake read" in problems[0].text
    for path in ("a b", "a+b", "ü#?", "a:b;c&d='"):
        found, problems = destination({"type": "delta", "path": path, "table": "contract"}, tmp_path)
        assert found is not None, problems
        target = found.build("contract")
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        assert len(kit.rows(f"{tmp_path}/{path}/contract")) == 1


def test_the_policy_has_the_bucket_and_the_prefix_and_nothing_for_a_folder() -> None:
    found, _ = destination({"type": "delta", "path": "s3://bucket/lake", "table": "orders"})
    assert found is not None
    files, bucket = Delta.permissions(found.options, [table()], keep_expired=False)  # type: ignore[arg-type]
    assert (files.statement.resource, files.names) == ("arn:aws:s3:::LAKE/*", {"LAKE": "bucket/lake"})
    assert (bucket.actions, bucket.names) == (("s3:ListBucket",), {"LAKE": "bucket"})
    found, _ = destination({"type": "delta", "path": "/lake", "table": "orders"})
    assert found is not None
    assert Delta.permissions(found.options, [table()], keep_expired=False) == []  # type: ignore[arg-type]


def test_new_rows_are_appended_and_only_others_need_a_merge(folder: Path, opened: Delta) -> None:
    opened.write(batch(*(put({"pk": pk}, 1) for pk in "abc")))
    opened.write(batch(put({"pk": "d"}, 2), remove("absent", 2)))
    opened.write(batch(put({"pk": "e"}, 3), put({"pk": "a", "n": 1}, 3), remove("b", 3), remove("absent", 3)))
    opened.write(batch(remove("absent", 4), put({"pk": "a"}, 1)))
    history = [entry["operation"] for entry in DeltaTable(f"{folder}/contract").history(4)]
    assert history == ["WRITE", "MERGE", "WRITE", "WRITE"]
    assert [row["pk"] for row in rows(folder)] == ["a", "c", "d", "e"]


def test_versions_are_looked_up_in_those_files_only_that_may_have_the_documents(
    folder: Path, build: Build, opened: Delta
) -> None:
    opened.write(batch(*(put({"pk": f"a{n:03}"}, 1) for n in range(100))))
    (early,) = (folder / "contract").glob("*.parquet")
    early.unlink()
    later = [put({"pk": f"b'{n:03}"}, 1) for n in range(100)]
    assert opened.write(batch(*later)) == Outcome()
    assert build().versions(table(), [write.id for write in later]) == [at(1)] * 100
    with pytest.raises(TransientError, match="cannot be read or written"):
        opened.write(batch(put({"pk": "a050"}, 2)))


def test_documents_with_the_parts_of_each_others_ids_are_told_apart(build: Build) -> None:
    keys = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "S")))
    target, wanted = build(), Table("contract", keys, {})
    target.open([wanted], FIRST_EPOCH)
    ids = [("a", "x"), ("b", "y"), ("é", "it's"), ("z", "")]
    target.write(batch(*(put({"pk": pk}, 1, id=(pk, sk)) for pk, sk in ids)))
    assert target.versions(wanted, [*ids, ("a", "y"), ("b", "x"), ("a", "it's")]) == [at(1)] * 4 + [None] * 3


def test_a_batch_may_have_any_number_of_documents(folder: Path, opened: Delta) -> None:
    """In a process of its own, which more ids in one query would crash."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_write_many, args=(str(folder),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert DeltaTable(f"{folder}/contract").count() == 30_000


def _write_many(folder: str) -> None:
    found, _ = destination({"type": "delta", "path": folder, "table": "contract"})
    assert found is not None
    target = found.build("contract")
    assert isinstance(target, Delta)
    target.open([table()], FIRST_EPOCH)
    ids = [f"{n}" for n in range(30_000)]
    target.write(batch(*(put({"pk": pk}, 1) for pk in ids)))
    target.write(batch(*(put({"pk": pk, "n": 2}, 2) for pk in ids)))
    puts = [put({"pk": pk, "n": 2}, 2) for pk in ids]
    assert target.compare(table(), puts) == [Comparison(at(2))] * len(ids)
    assert target.versions(table(), [(pk,) for pk in ids]) == [at(2)] * len(ids)


def test_two_targets_in_one_folder_are_told_apart_by_their_tables(tmp_path: Path) -> None:
    one, same, other = (
        destination({"type": "delta", "path": path, "table": name}, tmp_path)[0]
        for path, name in (("lake", "orders"), ("./x/../lake", "orders"), ("lake", "lines"))
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.places()["orders"] == same.places()["orders"]
    assert one.places()["orders"] != other.places()["lines"]


def test_a_walk_begins_again_if_a_file_is_gone_and_waits_if_it_cannot_be_read(folder: Path, opened: Delta) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    (file,) = (folder / "contract").glob("*.parquet")
    file.write_bytes(b"no Parquet")
    with pytest.raises(TransientError, match="contract cannot be read or written"):
        opened.walk(table(), None)
    file.unlink()
    with pytest.raises(CursorExpired):
        opened.walk(table(), None)


def test_a_walk_reads_each_row_once_whatever_is_written_and_compacted_meanwhile(
    folder: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, and from any of their cursors in another process."""
    target = build()
    target.open([of(columns={"c": "string"}, partition_by=("c",))], FIRST_EPOCH)
    for commit in range(3):
        ids = [f"{commit}-{n:03}" for n in range(20)]
        target.write(batch(*(put({"pk": id, "c": f"{n % 2}"}, commit + 1) for n, id in enumerate(ids))))
    read = list[int]()

    def counted(rows: pa.RecordBatch, keys: Sequence[str]) -> Iterator[tuple[tuple[str, ...], int]]:
        read.append(rows.num_rows)
        return ids_and_versions(rows, keys)

    monkeypatch.setattr(walk, "ids_and_versions", counted)
    monkeypatch.setattr(walk, "_PIECE", 7)
    pieces = [target.walk(of(), None)]
    while pieces[-1].cursor is not None:
        target.write(batch(put({"pk": f"new{len(pieces)}", "c": "0"}, 50 + len(pieces))))
        DeltaTable(f"{folder}/contract").optimize.compact()
        pieces.append(target.walk(of(), pieces[-1].cursor))
    found = [id for piece in pieces for id in piece.ids]
    assert sorted(found) == [(f"{commit}-{n:03}",) for commit in range(3) for n in range(20)]
    assert sum(read) == len(found)
    assert len(pieces) > 5
    assert [v for piece in pieces for v in piece.versions or ()] == [at(int(id[0]) + 1) for (id,) in found]
    behind, seen = pieces[2].behind, sum(len(piece.ids) for piece in pieces[:2])
    assert behind is not None
    for n in range(len(pieces[2].ids)):
        cursor, rest = behind(n), list[tuple[str, ...]]()
        other = build()
        while cursor is not None:
            piece = other.walk(of(), cursor)
            rest, cursor = [*rest, *piece.ids], piece.cursor  # type: ignore[assignment]
        assert rest == found[seen + n + 1 :]


def test_a_cursor_of_an_earlier_release_has_expired(opened: Delta) -> None:
    with pytest.raises(CursorExpired):
        opened.walk(table(), "1 2000")


def test_tombstones_that_are_removed_or_replaced_between_two_runs_make_it_another_table(
    folder: Path, opened: Delta, build: Build
) -> None:
    """A run that resumed in the middle of a scan would store what was deleted meanwhile."""
    before = opened.identities([table()])
    opened.close()
    assert build().identities([table()]) == before
    shutil.rmtree(folder / "contract" / "_tombstones")
    for _ in range(2):
        now = build().identities([table()])
        assert list(recreated_tables(before, now)) == [f"{folder}/contract"]
        assert forgotten_deletes(before, now) == [f"{folder}/contract/_tombstones"]
        build().open([table()], FIRST_EPOCH)
    shutil.rmtree(folder / "contract")
    build().open([table()], FIRST_EPOCH)
    assert forgotten_deletes(before, build().identities([table()])) == []


def test_tombstones_that_are_removed_during_a_run_are_a_gap(folder: Path, opened: Delta) -> None:
    shutil.rmtree(folder / "contract" / "_tombstones")
    said = "_tombstones was removed or replaced while this run wrote to it: it remembers deleted documents, and without"
    with pytest.raises(GapFound, match=said):
        opened.recheck([table()])


def test_a_table_that_is_gone_has_a_message_for_commands(folder: Path, opened: Delta) -> None:
    shutil.rmtree(folder / "contract")
    with pytest.raises(ConfigError, match="there is no Delta table at"):
        opened.walk(table(), None)


def test_a_file_that_cannot_be_read_is_waited_for(folder: Path, opened: Delta) -> None:
    opened.write(batch(put({"pk": "a"}, 1)))
    (file,) = (folder / "contract").glob("*.parquet")
    away = file.rename(folder / "away")
    again = batch(put({"pk": "a", "n": 2}, 2))
    for _ in range(2):
        with pytest.raises(TransientError, match="contract cannot be read or written"):
            opened.write(again)
    away.rename(file)
    opened.write(again)
    assert [row["_version"] for row in rows(folder)] == [at(2)]


def test_a_function_on_aws_lambda_is_refused(tmp_path: Path) -> None:
    text = "pipeline: orders\nsource: {table: orders}\ntarget: {type: delta, path: s3://lake/copies, table: orders}\n"
    text += "engine: {type: lambda}\ncheckpoints: {type: dynamodb, table: kept}\n"
    (tmp_path / "orders.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"engine\.type: delta is written by one process only"):
        load(tmp_path / "orders.yaml")
