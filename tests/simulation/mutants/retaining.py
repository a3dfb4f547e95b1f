"""Rules 2 and 3 over months: shards are forgotten, left for hours, and never get children; gaps that are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from replicator import retention
from replicator.change import Page, Record
from replicator.pipeline import lineage, progress
from replicator.pipeline.discovery import Discovery
from replicator.source import shard_reader
from replicator.testing import memory
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import hours_away, over_months, suspended_for_hours, trimmed_shards


@mutant("the children of a closed shard are looked up forever", 3, over_months)
def every_shard_has_children(patch: Patch) -> None:
    patch.setattr(Discovery, "_leaves", lambda self, *_: None)


@mutant("a trimmed position is skipped, however long the run was away", 2, over_months)
def trimmed_is_passed(patch: Patch) -> None:
    patch.setattr(shard_reader, "_complete", lambda stream, at: True)


@mutant("an ended shard without known children is never a gap", 3, over_months, 10_000)
def lost_children(patch: Patch) -> None:
    patch.setattr(
        lineage, "vanished", lambda known, listed: {i for i, s in known.items() if not s.ended} - listed.keys()
    )


@mutant("an ended shard is forgotten before its parent, which then seems childless", 3, shape=hours_away)
def forgotten_before_their_parents(patch: Patch) -> None:
    inner = shard_reader._page

    def as_old_as_its_last_record(at: shard_reader._Cursor, records: Sequence[Record], *rest: Any) -> Page:
        page = inner(at, records, *rest)
        return msgspec.structs.replace(page, through=at.created) if page.ended and records else page

    patch.setattr(shard_reader, "_page", as_old_as_its_last_record)
    patch.setattr(lineage, "_last_children", lambda known, gone: set())


@mutant("the counts of a shard outlive its entry", 13, over_months)
def counts_stay(patch: Patch) -> None:
    patch.setattr(memory, "forgotten", lambda saves: [])


@mutant("empty pages before the last record reappears count as those after it", 2, shape=suspended_for_hours)
def counts_before_the_record(patch: Patch) -> None:
    inner = shard_reader._count_empty

    def counts(at: shard_reader._Cursor, started: float) -> None:
        expected, at.expected = at.expected, None
        inner(at, started)
        at.expected = expected

    patch.setattr(shard_reader, "_count_empty", counts)


@mutant("the age of children is bounded by how far their ended parent was read", 3, over_months)
def children_are_young(patch: Patch) -> None:
    inner = progress._lag
    patch.setattr(
        progress,
        "_lag",
        lambda shards, *rest: inner({i: replace(s, since=s.through or 0.0) for i, s in shards.items()}, *rest),
    )


@mutant("the age of a quiet shard is that of its last record, however far it was read", 2, shape=trimmed_shards)
def quiet_is_old(patch: Patch) -> None:
    patch.setattr(shard_reader, "_complete", lambda stream, at: stream.now() - at.since < retention.SAFE_AGE)
