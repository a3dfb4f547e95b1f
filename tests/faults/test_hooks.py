"""Misbehaving hooks: the item is parked with the reason; the run and other items continue."""

from __future__ import annotations

import sys
import threading
from importlib import import_module

import pytest
from click.testing import CliRunner

from replicator.aws import boto
from replicator.cli import main
from replicator.engine import imports
from replicator.engine.cleanup import Cleanup
from replicator.operations import parked as parking
from replicator.operations.parked import drop, parked_items
from replicator.state import Parked
from replicator.target.in_doubt import WINDOW
from replicator.testing.memory import MemoryCheckpoints
from replicator.testing.memory_index import MemoryIndex
from tests.faults.world import TABLE, World

PLAIN = """
import sys
def hook(item):
    if item["id"] == "k1" and "mended" not in item:
        {}
    return dict(item)
"""
MISBEHAVES: dict[str, tuple[str, str]] = {
    "raises": ("raise ValueError('no')", "hook hook raised ValueError at hooks.py:5"),
    "cancels a task that there is not": (
        "import asyncio; raise asyncio.CancelledError",
        "hook hook raised CancelledError at hooks.py:5",
    ),
    "raises half a surrogate pair": ("raise ValueError('x\\ud800')", "hook hook raised ValueError at hooks.py:5: x"),
    "raises half a pair that it made": (
        "raise ValueError('x' + chr(0xd800))",
        "hook hook raised ValueError at hooks.py:5",
    ),
    "gives a mapping that cannot be read": (
        "from collections import ChainMap; return type('M', (ChainMap,), {'__getitem__': None})(dict(item))",
        "hook hook raised TypeError",
    ),
    "exits": ("sys.exit(3)", "hook hook raised SystemExit at hooks.py:5"),
    "never comes back": ("return hook(item)", "hook hook raised RecursionError at hooks.py:"),
    "gives a list": ("return [1]", "hook hook returned a list; a plain hook must return a mapping or None"),
    "gives a generator": (
        "return (n for n in [1])",
        "hook hook returned a generator; a plain hook must return",
    ),
    "gives a text": ("return 'secret'", "hook hook returned a str; a plain hook must return a mapping or None"),
    "writes into the item": ("item['n'] = 1", "hook hook raised TypeError at hooks.py:5"),
    "removes from the item": ("item.clear()", "hook hook raised AttributeError at hooks.py:5"),
}


BROKEN = "def hook(item):\n    return {'total': item['total']}\n"


def test_changes_parked_during_the_confirmation_are_not_discarded(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fill(2)
    faults.hook(BROKEN)
    faults.run()
    asked: list[int] = []

    def confirmed(count: int) -> bool:
        asked.append(count)
        faults.put("new", n=1)
        faults.run(seconds=60)
        return True

    monkeypatch.setattr(import_module("replicator.cli.parked"), "_confirmed", confirmed)
    done = CliRunner().invoke(main, ["parked", "drop", str(faults.folder / "orders.yaml"), "--all", "--human"])

    assert (asked, done.exit_code, done.stdout.count("dropped")) == ([2], 0, 2)
    assert [change.key for change in parked(faults)] == [("new",)]


def test_a_retry_overtaken_by_a_run_is_in_doubt_which_is_exit_code_6(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fill(1)
    faults.hook(BROKEN)
    faults.run()
    monkeypatch.setattr(parking, "retry", lambda *given, **named: parking.OVERTAKEN)
    monkeypatch.setattr(boto, "connect", lambda *given: faults.client)
    done = CliRunner().invoke(main, ["parked", "retry", str(faults.folder / "orders.yaml"), "--all", "--human"])

    assert done.exit_code == 6
    assert done.stdout.startswith('["k0"]  in doubt: a run changed it while this command was suspended')


def test_changes_that_are_parked_one_after_the_other_are_all_counted(faults: World) -> None:
    """A run looks at the entries in between, because a command may change them."""
    faults.fill(2)
    faults.hook(BROKEN)
    faults.run(seconds=30)
    for n in range(4):
        faults.clock.plan(20 + 60 * n, lambda: faults.put("x", n=int(faults.clock())))
    began = faults.clock()
    faults.run(seconds=300)
    change = faults.states("parked")[next(id for id in faults.states("parked") if id.startswith('["x"]'))]

    assert sum(change.changes.values()) == 4
    assert change.parked < began + 60


def parked(world: World) -> list[Parked]:
    return list(world.states("parked").values())


def test_a_hook_that_hangs_as_it_is_imported_is_reported(faults: World, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, report = threading.Event(), imports._report

    def reported(pipeline: str, seconds: float) -> None:
        report(pipeline, seconds)
        gate.set()

    monkeypatch.setattr(imports, "_report", reported)
    monkeypatch.setattr(imports, "IMPORT_TIMEOUT", 0.0)
    monkeypatch.setattr(sys, "hang", gate.wait, raising=False)
    faults.fill(1)
    faults.hook("import sys\nsys.hang()\ndef hook(item):\n    return item\n")
    ended = faults.run()
    (event,) = [e for e in ended.events if e["event"] == "hook is not imported"]
    assert (ended.code, event["level"]) == (0, "error")
    assert "code outside of functions that waits or loops" in event["do"]


@pytest.mark.parametrize(("body", "reason"), MISBEHAVES.values(), ids=MISBEHAVES)
def test_a_hook_that_misbehaves_parks_the_item_and_nothing_else(faults: World, body: str, reason: str) -> None:
    faults.fill()
    faults.hook(PLAIN.format(body))
    ended = faults.run()
    (change,) = parked(faults)

    assert ended.code == 6
    assert "caught up, except for 1 item(s) that are parked" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert change.reason.startswith(reason)
    assert list(change.key) == ["k1"]
    assert set(faults.documents) == {"k0", "k2", "k3", "k4", "k5"}
    assert faults.counts.parked == 2  # scanned, and streamed
    faults.put("k1", mended="yes")
    faults.copied()
    assert parked(faults) == []


def test_a_document_whose_id_is_not_text_parks_its_item_and_nothing_else(faults: World) -> None:
    """A parked entry could not be stored with that id, and every run would end there."""
    faults.fill()
    faults.hook("from replicator import Document, documents\n@documents\ndef hook(item):\n"
                "    bad = item['id'] == 'k1' and 'mended' not in item\n"
                "    return [Document('\\ud83d' if bad else 'd', {'id': item['id']})]\n")  # fmt: skip
    assert faults.run().code == 6
    (change,) = parked(faults)
    assert change.reason == "hook hook returned a document id with half of a surrogate pair, which is not valid text"
    assert change.leaves == ()

    faults.put("k1", mended="yes")
    assert faults.run().code == 0
    assert parked(faults) == []
    assert len(faults.documents) == len(faults.db.items("orders"))


def test_modifying_an_items_values_in_a_hook_affects_only_its_result(faults: World) -> None:
    """Each access to an attribute returns a new value."""
    faults.fill(0)
    faults.put("k1", tags=["a"])
    faults.hook("def hook(item):\n    item['tags'].append('lost')\n    tags = item['tags']\n    tags.append('kept')\n"
                "    return {'tags': tags, 'again': item['tags']}\n")  # fmt: skip
    assert faults.run().code == 0

    assert faults.documents["k1"] == {"tags": ["a", "kept"], "again": ["a"]}


@pytest.mark.parametrize("style", ["--json", "--human"])
def test_what_a_hook_prints_does_not_mix_with_the_events(faults: World, style: str) -> None:
    faults.fill(1)
    faults.hook("print('imported')\ndef hook(item):\n    print('called')\n    return dict(item)\n")
    out, err = faults.printed("run", "--until", "caught-up", style)

    assert "imported\ncalled\n" in err
    assert "called" not in out
    assert "caught up" in out


def test_a_hook_that_cannot_be_imported_ends_the_run_before_it_starts(faults: World) -> None:
    faults.fill()
    faults.hook("import no_such_module\n\n\ndef hook(item):\n    return item\n")
    ended = faults.run()

    assert ended.code == 2
    assert "hooks.py" in ended.err
    assert "no_such_module" in ended.err
    assert faults.documents == {}


def test_a_nondeterministic_hook_affects_documents_but_never_their_order(faults: World) -> None:
    """Not promised: that the copy is what such a hook last returned. Each comes from the newest image."""
    faults.fill(0)
    faults.hook("import itertools\ncount = itertools.count()\ndef hook(item):\n"
                "    return {'n': item['n'], 'count': next(count)}\n")  # fmt: skip
    for n in range(5):
        faults.put("k1", n=f"{n}")
        assert faults.run().code == 0
    assert faults.documents["k1"]["n"] == "4"


def test_documents_whose_ids_a_changed_hook_no_longer_produces_stay_until_a_resync(faults: World) -> None:
    """Not promised otherwise: the current hook cannot tell what an earlier one made of an item's images."""
    hook = (
        "from replicator import Document, documents\n@documents\ndef hook(item):\n    return [Document('{}', {{}})]\n"
    )
    faults.fill(2)
    faults.hook(hook.format("before"))
    assert faults.run().code == 0
    faults.hook(hook.format("after"))
    assert faults.run("--accept-hook-change").code == 0
    faults.put("k0", n="1")
    faults.db.delete(TABLE, {"id": "k1"})
    assert faults.run().code == 0
    ids = [id[-1] for id in faults.database.documents(TABLE)]
    assert sorted(ids) == ["after", "before", "before"]

    assert faults.run(name="resync").code == 0
    assert list(faults.database.documents(TABLE)) == [('["k0"]', "after")]


FAILS = "def hook(item):\n    if item['id'] == 'k1': raise ValueError('no')\n    return dict(item)\n"
FAILS_WITH_OWN_IDS = """
from replicator import Document, documents
@documents
def hook(item):
    if item["id"] == "k1" and {fails}: raise ValueError("no")
    yield Document(item["id"] + item.get("v", "-0"), dict(item))
"""


def test_documents_of_an_item_discarded_before_the_sweep_of_a_resync_stay_until_the_next_one(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.fill(2)
    assert faults.run().code == 0
    faults.hook(FAILS)
    right = Cleanup._sweep

    def dropped_before(self: Cleanup, epoch: int) -> bool:
        discard(faults)
        return right(self, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(Cleanup, "_sweep", dropped_before)
        faults.run(name="resync")
    assert not faults.states("parked")
    assert set(faults.documents) == {"k0", "k1"}

    faults.db.delete(TABLE, {"id": "k1"})
    assert faults.run().code == 0
    assert set(faults.documents) == {"k0"}


def discard(faults: World) -> None:
    store = MemoryCheckpoints(faults.database)
    for item in parked_items(store):
        assert drop(item, store) == ""


def test_documents_of_an_item_discarded_between_two_sweeps_of_a_resync_stay(faults: World) -> None:
    """The second follows minutes later, where requests may be applied late."""
    faults.target = lambda: MemoryIndex(faults.database, now=faults.clock)
    faults.fill(2)
    assert faults.run().code == 0
    faults.hook(FAILS)
    assert faults.run(name="resync").code == 6
    discard(faults)
    assert faults.run(seconds=2 * WINDOW).code == 0
    assert set(faults.documents) == {"k0", "k1"}


def test_documents_with_their_own_ids_of_an_item_discarded_after_a_resync_stay_until_its_next_change(
    faults: World,
) -> None:
    faults.fill(2)
    faults.hook(FAILS_WITH_OWN_IDS.format(fails="False"))
    assert faults.run().code == 0
    faults.hook(FAILS_WITH_OWN_IDS.format(fails="'v' not in item"))
    assert faults.run(name="resync").code == 6
    discard(faults)
    assert faults.run().code == 0
    assert sorted(id[-1] for id in faults.database.documents(TABLE)) == ["k0-0", "k1-0"]

    faults.put("k1", v="-1")
    assert faults.run().code == 0
    assert faults.run(seconds=60).code == 0
    assert sorted(id[-1] for id in faults.database.documents(TABLE)) == ["k0-0", "k1-1"]


def test_a_discarded_change_leaves_the_image_whose_documents_the_next_retry_must_remove(
    faults: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boto, "connect", lambda *given: faults.client)
    works = FAILS_WITH_OWN_IDS.format(fails="False")
    faults.fill(0)
    faults.put("k1", v="-1")
    faults.hook(works)
    assert faults.run().code == 0
    faults.hook(FAILS_WITH_OWN_IDS.format(fails="item['v'] in ('-1', '-3')"))
    assert faults.run("--accept-hook-change").code == 0
    faults.put("k1", v="-2")
    assert faults.run().code == 6
    discard(faults)
    faults.put("k1", v="-3")
    assert faults.run().code == 6
    faults.hook(works)
    assert faults.run("--accept-hook-change").code == 6
    assert retried_all(faults) == 0
    assert [id[-1] for id in faults.database.documents(TABLE)] == ["k1-3"]


def retried_all(faults: World) -> int:
    return CliRunner().invoke(main, ["parked", "retry", str(faults.folder / "orders.yaml"), "--all"]).exit_code
