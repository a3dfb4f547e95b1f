"""A poison item is kept, others go on, and somebody decides."""

from __future__ import annotations

from tests.end_to_end.world import Copy, Source

PICKY = """
def hook(item):
    if item["n"] < 0:
        raise ValueError("no negative numbers")
    return {"n": item["n"]}
"""
GENEROUS = PICKY.replace('raise ValueError("no negative numbers")', "return {'n': 0}")


def poisoned(copy: Copy) -> Copy:
    """Three items parked by the hook, one by Postgres, while others go on."""
    copy.configure(PICKY, tables={"copy": {"columns": {"n": "bigint"}}})
    source = copy.source
    source.fill(10)
    source.put("scanned", n=-1)
    copy.caught_up()
    source.put("streamed", n=-2)
    source.put("k1", n=-3)
    source.put("k2", n=10**20)
    source.put("k3", n=33)
    source.delete("k4")
    copy.caught_up()
    return copy


def rows(copy: Copy) -> dict[str, int]:
    return {row["pk"]: row["n"] for row in copy.query("SELECT pk, n FROM copy")}


def test_poison_items_are_parked_with_their_reasons_and_others_go_on(copy: Copy) -> None:
    poisoned(copy)

    assert rows(copy) == {"k0": 0, "k1": 1, "k2": 2, "k3": 33, **{f"k{n}": n for n in range(5, 10)}}
    assert copy.status()["parked"] == 4
    assert copy.counts()["parked"] >= 4
    reasons = {line["item"]: line["reason"] for line in copy.command("parked list").lines}
    assert reasons.keys() == {'["scanned"]', '["streamed"]', '["k1"]', '["k2"]'}
    assert "ValueError" in reasons['["k1"]']
    assert "no negative numbers" in reasons['["k1"]']
    assert "bigint" in reasons['["k2"]']
    assert "Traceback" in copy.command("parked show", '["streamed"]').lines[0]["traceback"]
    assert "new" not in copy.command("parked show", '["streamed"]').lines[0]
    assert '"-2"' in copy.command("parked show", '["streamed"]', "--show-values").lines[0]["new"]


def test_parked_items_are_healed_by_a_later_change_or_retried_or_dropped(copy: Copy, source: Source) -> None:
    poisoned(copy)
    source.put("streamed", n=5)
    source.delete("scanned")
    copy.caught_up()
    assert copy.status()["parked"] == 2  # the others healed

    assert copy.command("parked retry", "--all").code == 6
    copy.configure(GENEROUS, tables={"copy": {"columns": {"n": "bigint"}}})
    assert copy.command("parked retry", '["k1"]').code == 0
    assert copy.command("parked drop", '["k2"]', "--yes").code == 0
    unknown = copy.command("parked drop", '["k2"]', "--yes")
    copy.caught_up("run", "--accept-hook-change")

    assert unknown.code == 2
    assert "is not parked" in unknown.err
    assert copy.status()["parked"] == 0
    assert rows(copy) == {"k0": 0, "k1": 0, "k2": 2, "k3": 33, "streamed": 5, **{f"k{n}": n for n in range(5, 10)}}
    copy.counts()
