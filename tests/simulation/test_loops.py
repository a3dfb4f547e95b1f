"""Claims about two opposite pipelines: they settle, never echo, and lose nothing that an application wrote."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from msgspec import structs

from connectors.dynamodb.documents import Layout
from connectors.dynamodb.encode import Encoder, Entry
from replicator.batch import Delete, DocumentId
from replicator.change import Page
from replicator.key import Key
from replicator.marks import Marked
from replicator.pipeline import advance
from replicator.pipeline.compaction import Compacted
from replicator.state import ShardState
from tests.simulation.loops import Pipeline, simulate

SEEDS = int(os.environ.get("REPLICATOR_SEEDS", "400")) // 20
MOST = 100  # seeds that may pass until a wrong design is noticed
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _silent() -> None:
    logging.getLogger("replicator").setLevel(logging.CRITICAL)


def test_writers_on_both_sides_at_different_times_end_with_equal_tables() -> None:
    for seed in range(SEEDS):
        simulate(seed)


def echo(patch: Patch) -> None:
    """Nothing is passed over."""
    patch.setattr(Marked, "is_own", lambda self, key, old: False)


def any_version(patch: Patch) -> None:
    """What has a version was written by a pipeline."""
    patch.setattr(Marked, "is_own", lambda self, key, old: self.version is not None)


def changed_version(patch: Patch) -> None:
    """What has another version than before was written by a pipeline, wherever the version comes from."""

    def is_own(self: Marked, key: Key, old: Marked | None) -> bool:
        return self.version is not None and self.version != (None if old is None else old.version)

    patch.setattr(Marked, "is_own", is_own)


def any_mark(patch: Patch) -> None:
    """The mark fits, though an application may have kept it."""
    right = Marked.is_own
    patch.setattr(Marked, "is_own", lambda self, key, old: right(self, key, None))


def any_guard(patch: Patch) -> None:
    """The version of another item, whose copy an application stored here, turns writes away."""
    right = Encoder.__init__

    def without_mark(self: Encoder, layout: Layout, same: bool = False) -> None:
        right(self, layout, same)
        self._guard_of = self._guard_of.replace(b" OR (attribute_exists(#m) AND #m <> :m)", b"").replace(
            b'"#m":"_replicator_mark",', b""
        )

    def unbound(self: Encoder, id: DocumentId) -> bytes:
        return self._guard_of.removesuffix(b'":m":{"S":"') + b'":v":'

    patch.setattr(Encoder, "__init__", without_mark)
    patch.setattr(Encoder, "_guard", unbound)


def unmarked_deletes(patch: Patch) -> None:
    """Deletes leave no tombstone, so the removal looks like an application's."""
    right = Encoder._removal

    def plainly(self: Encoder, write: Delete, source: str) -> Entry:
        entry = right(self, write, source)
        return Entry(entry.write, entry.source, entry.body, entry.plain)

    patch.setattr(Encoder, "_removal", plainly)


def copied_expiry(patch: Patch) -> None:
    """An expiry is copied like an application's delete, although the other table's item may have been renewed."""
    right = advance.streamed

    def blindly(state: ShardState, pages: Sequence[Page], *given: Any, **named: Any) -> tuple[ShardState, Compacted]:
        seen = [
            structs.replace(page, records=[structs.replace(r, expired=False) for r in page.records]) for page in pages
        ]
        return right(state, seen, *given, **named)

    patch.setattr("replicator.pipeline.pipeline.streamed", blindly)


def resync_alone(patch: Patch) -> None:
    """After a resync nothing is removed by its key, as if a sweep found what only applications wrote."""
    patch.setattr(Pipeline, "request", lambda self, keys: None)


WRONG: Mapping[Callable[[Patch], None], int] = {
    echo: 0,
    any_version: 0,
    changed_version: 2,
    any_mark: 1,
    any_guard: 55,
    unmarked_deletes: 0,
    copied_expiry: 0,
    resync_alone: 0,
}
"""A seed that noticed it is tried first."""


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_design_is_noticed(wrong: Callable[[Patch], None], monkeypatch: Patch) -> None:
    wrong(monkeypatch)
    for seed in [WRONG[wrong], *range(MOST)]:
        try:
            simulate(seed)
        except AssertionError:
            return
    pytest.fail(f"{MOST} seeds did not notice: {wrong.__doc__}")
