"""``replicator verify`` on real servers: every injected difference is found, none is reported that lag explains."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest

from tests.end_to_end.pipeline import Ended, Run
from tests.end_to_end.world import Copy, Load, Source

DIFFERENCES = int(os.environ.get("REPLICATOR_DIFFERENCES", "56"))
"""Injected at once; 10,000 is the number to prove it with."""

FIRST, SECOND = Decimal("1" * 37 + "1"), Decimal("1" * 37 + "2")
HOOK = """
def hook(item):
    if item.get("hidden"):
        return None
    return {"n": item.get("n"), "big": item.get("big"), "tags": item.get("tags"), "load": item.get("load")}
"""
COLUMNS = {"n": "numeric", "big": "numeric", "tags": "text[]", "load": "text"}


def filled(source: Source, count: int, prefix: str = "v") -> None:
    source.fill(count, prefix=prefix, big=FIRST, tags={"a", "b"})


def breathe(done: int) -> None:
    """DynamoDB Local dates records to the minute, so only a shard that is read to its end shows how far that is."""
    if done % 25 == 0:
        threading.Event().wait(2.5)


def live(run: Run, copy: Copy) -> None:
    run.until("progress", phase="live")


def differences(ended: Ended) -> dict[str, str]:
    """The kind of each difference by the key of its item."""
    return {line["id"][0]: line["kind"] for line in ended.lines if line["result"] == "difference"}


def summary(ended: Ended) -> dict[str, Any]:
    return ended.lines[-1]


def test_an_equal_copy_is_equal_while_both_change(copy: Copy, source: Source) -> None:
    filled(source, 300)
    with copy.start() as run:
        live(run, copy)
        with Load(source, seed=5, keys=150, every=breathe) as load:
            load.wait(50)
            ended = copy.command("verify", "--json")
        assert run.stop().code == 0
    assert (ended.code, summary(ended)["result"]) == (0, "equal"), ended
    assert summary(ended)["items"] >= 300
    assert ended.lines == [summary(ended)]
    assert copy.status()["verified"]["differences"] == 0


def inject(copy: Copy, count: int) -> dict[str, str]:
    """Change rows behind replicator's back; which kind each is."""
    column = "document" if copy.name == "jsonb" else None
    wanted: dict[str, str] = {}
    rows = [row["pk"] for row in copy.query("SELECT pk FROM {} WHERE pk LIKE 'v%%' ORDER BY pk", copy.name)]
    acts = [
        ("missing", "DELETE FROM {} WHERE pk = '%s'"),
        ("different", _set(column, "n", "-7")),
        ("different", _set(column, "big", str(SECOND))),
        ("different", _set(column, "tags", '["a", "c"]' if column else "ARRAY['a', 'c']")),
        ("different", _set(column, "n", "-8") + " AND (SELECT true)"),
        ("extra", "UPDATE {} SET pk = 'gone-' || pk WHERE pk = '%s'"),
        ("different", "UPDATE {} SET _version = 5 WHERE pk = '%s'"),
    ]
    for number, pk in enumerate(rows[:count]):
        kind, statement = acts[number % len(acts)]
        copy.execute(statement % pk)
        wanted[pk] = "missing" if kind == "extra" else kind
        if kind == "extra":
            wanted[f"gone-{pk}"] = kind
    return wanted


def _set(column: str | None, name: str, value: str) -> str:
    change = f"{name} = {value}" if column is None else f"{column} = jsonb_set({column}, '{{{{{name}}}}}', '{value}')"
    return " ".join(("UPDATE {} SET", change, "WHERE pk = '%s'"))


def make_neighbor(copy: Copy) -> None:
    """Someone else's table of the same name, whose rows have the keys of all differences."""
    copy.execute(
        "CREATE SCHEMA other; CREATE TABLE other.{0} (pk text PRIMARY KEY, document jsonb, _version bigint DEFAULT 1); "
        "INSERT INTO other.{0} (pk) SELECT p || n FROM generate_series(0, 200) n, unnest('{{v,gone-v}}'::text[]) p"
    )


def neighbors(copy: Copy) -> list[dict[str, Any]]:
    """Its rows, each with its place and the transaction that wrote it."""
    return copy.query("SELECT ctid::text, xmin::text, * FROM other.{} ORDER BY ctid", copy.name)


@pytest.mark.parametrize("form", ["typed", "jsonb"])
def test_every_injected_difference_is_found_and_repaired_beside_live_writes(
    copy: Copy, source: Source, form: str
) -> None:
    copy.name = form
    hook, tables = (HOOK, {"typed": {"columns": COLUMNS}}) if form == "typed" else (None, {"jsonb": {}})
    copy.configure(hook, tables)
    make_neighbor(copy)
    others = neighbors(copy)
    filled(source, 2 * DIFFERENCES + 100)
    with copy.start() as run:
        live(run, copy)
        with Load(source, seed=6, keys=100, every=breathe) as load:
            load.wait(20)
            wanted = inject(copy, DIFFERENCES)
            found = copy.command("verify", "--json")
            repaired = copy.command("verify", "--repair", "--json")
            again = copy.command("verify", "--json")
        run.eventually(lambda: copy.query("SELECT count(*) AS n FROM replicator.tombstones")[0]["n"] == 0, "a purge")
        assert run.stop().code == 0
    assert (found.code, differences(found)) == (6, wanted), found
    assert (repaired.code, differences(repaired)) == (0, wanted), repaired
    assert summary(repaired)["repaired"] == len(wanted)
    assert (again.code, again.lines) == (0, [summary(again)]), again
    assert neighbors(copy) == others
    assert Counter(
        json.dumps(line).count("123") for line in found.lines
    )  # a report has no values, checked by the canary


def test_without_a_run_a_difference_is_unconfirmed(copy: Copy, source: Source) -> None:
    filled(source, 20)
    copy.caught_up()
    equal = copy.command("verify", "--json")
    source.delete("v3")
    source.put("new", n=1)
    ended = copy.command("verify", "--json")
    assert (equal.code, summary(equal)["result"]) == (0, "equal")
    assert (ended.code, summary(ended)["unconfirmed"]) == (7, 2), ended
    assert {line["result"] for line in ended.lines[:-1]} == {"unconfirmed"}
    assert "no run of this pipeline is up" in ended.lines[0]["reason"]


def test_a_killed_run_goes_on_with_its_own_verification(copy: Copy, source: Source) -> None:
    """And with its stream; what its pass finds is named by key, and changes no exit code."""
    copy.configure(None, None, verify={"every": "1h", "read_units": 5})
    for n in range(60):  # several pages of each segment
        source.put(f"v{n}", text="x" * 150_000)
    with copy.start() as run:
        run.until("verify started")
        run.eventually(lambda: (copy.status()["verifying"] or {}).get("items"), "a part of the scan is recorded")
        before = copy.status()["verifying"]
        run.kill()
    with copy.start() as run:
        run.until("verify resumed")
        assert run.stop().code == 0
    copy.execute("INSERT INTO {0} SELECT 'gone', document, _version FROM {0} WHERE pk = 'v7'")
    copy.configure(None, None, verify={"every": "1h", "read_units": 1000})
    with copy.start() as run:
        run.until("verify resumed")
        source.put("new", n=1)
        ended = run.until("verify ended")
        found = run.events("difference")
        assert run.stop().code == 0
    after = copy.status()
    assert (before["by"], after["verifying"]) == ("run", None)
    assert after["verified"]["started_at"] == before["started_at"]
    assert [(e["kind"], e["id"]) for e in found] == [("extra", '["gone"]')]
    assert 0 < before["items"] < 60
    counts = (ended["items"], ended["extra"], after["verified"]["differences"])
    assert counts == (60, 1, 1), "what was read before is not read again"
    assert len(copy.query("SELECT pk FROM {} WHERE pk = 'new'", copy.name)) == 1
