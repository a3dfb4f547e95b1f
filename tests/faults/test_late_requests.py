"""Requests that are applied as late as promised, sent as late as a replaced run or a command behind its note may."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest

from replicator.batch import Upsert, Write
from replicator.engine.delivery import CONFIRMED, Delivery
from replicator.engine.retry import RetryPolicy
from replicator.hooks.hook import DocumentMapping
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.operations import parked
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Owner, Save, decode_pipeline, encode
from replicator.target.in_doubt import TRUSTED, WINDOW, is_late
from replicator.testing.memory import MemoryCheckpoints
from replicator.testing.memory_index import MemoryIndex, Request
from tests.faults.world import TABLE, World

LATEST = 299.0  # seconds; "within 5 minutes" is promised
X = ("x",)


class Forgetful(MemoryIndex):
    """DynamoDB remembers no deletes; a search engine does for a minute, unless it restarts."""

    def _remembered(self, write: Write) -> int:
        return -1


@pytest.fixture
def world(faults: World) -> World:
    faults.target = lambda: Forgetful(faults.database, now=faults.clock)
    faults.fill(2)
    return faults


def test_a_request_of_a_replaced_run_brings_nothing_back(world: World) -> None:
    """It confirmed its ownership just before the next claim, and sent the last request of a batch just in time."""
    assert world.run().code == 0
    store, target = MemoryCheckpoints(world.database), Forgetful(world.database, now=world.clock)
    claimed = store.claim(Owner("replaced", "elsewhere", 1, world.clock()))
    revision, text = world.database.entries["pipeline", ""]
    store.save([Save("pipeline", "", revision, encode(replace(decode_pipeline(text), lingers=WINDOW)))])
    policy = RetryPolicy(Event(), lambda _: None, world.clock, world.random)
    replaced = Delivery(target, store, Pipeline(DocumentMapping(None, (TABLE,)), claimed), policy, world.clock)
    replaced.confirm()
    applied: list[bool] = []

    def begin() -> None:
        replaced.confirm()  # it still trusts what it saw before the claim
        began = world.clock()
        world.clock.plan(TRUSTED - 0.1, lambda: send(began))

    def send(began: float) -> None:
        assert not is_late(began, world.clock())
        version, _ = world.database.rows[TABLE][X]
        request = Request(Upsert(TABLE, X, Item(image({"id": "x", "n": 1})), version, X), "shard:s", keep=False)
        world.clock.plan(LATEST, lambda: applied.append(target.carry_out(request)))

    world.clock.plan(2.0, lambda: world.put("x", n=1))
    world.clock.plan(0.1 + CONFIRMED - 0.2, begin)
    world.clock.plan(200.0, lambda: world.db.delete(TABLE, {"id": "x"}))
    world.clock.move(world.clock() + 0.05)
    world.run(seconds=900.0)

    assert applied == [False]
    assert sorted(world.documents) == sorted(item["id"] for item in world.db.items(TABLE))
    assert not world.database.tombstones[TABLE]


def test_the_write_of_a_retry_that_was_killed_brings_nothing_back(world: World) -> None:
    """The run read its note at once; the write was sent as late as a command may send it."""
    world.hook("def hook(item):\n    if item['id'] == 'x': raise ValueError('no')\n    return dict(item)\n")
    world.run()
    world.put("x", n=1)
    world.run()
    world.run(seconds=400.0)
    target, store = Forgetful(world.database, now=world.clock), MemoryCheckpoints(world.database)
    applied: list[bool] = []

    def begin() -> None:
        (item,) = parked.parked_items(store)
        note = parked._Note(item, {(TABLE, X[0])}, store, world.clock)
        note.save()
        world.clock.plan(TRUSTED - 0.1, lambda: send(item, note))

    def send(item: parked.ParkedItem, note: parked._Note) -> None:
        assert not note.is_late
        assert item.entry.new is not None
        write = Upsert(TABLE, X, Item(item.entry.new.encode()), item.entry.version, X)
        request = Request(write, "s", keep=False, same=True)
        world.clock.plan(LATEST, lambda: applied.append(target.carry_out(request)))

    world.clock.plan(60.0, begin)
    world.clock.plan(160.0, lambda: world.db.delete(TABLE, {"id": "x"}))
    world.run(seconds=900.0)

    assert applied == [False]
    assert sorted(world.documents) == sorted(item["id"] for item in world.db.items(TABLE))
    assert not world.database.tombstones[TABLE]
