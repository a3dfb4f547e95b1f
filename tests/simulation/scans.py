"""Of which table a scan has read the ends of its segments: nothing follows on pages of another one of its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from replicator.pipeline import stages
from replicator.state import PipelineState, SegmentState
from tests.simulation import truth

if TYPE_CHECKING:
    from tests.simulation.world import Universe


class Scans:
    """The last pages of segments that were read: epoch, the table's id, and the segment."""

    def __init__(self) -> None:
        self._ended: set[tuple[int, str, int]] = set()

    def answered(self, world: Universe, request: Mapping[str, Any], response: bytes) -> None:
        if "LastEvaluatedKey" not in orjson.loads(response):
            table = world.source._catalog.table(world.TABLE).definition["TableId"]
            self._ended.add((truth.epoch_of(world.database.entries), table, request["Segment"]))

    def check(self, world: Universe) -> None:
        """A scan has ended only if each of its segments was read to its end in the epoch's own table."""
        entries = world.database.entries
        stored = entries.get(("pipeline", ""))
        state = None if stored is None else truth.decoded("pipeline", stored[1])
        if not isinstance(state, PipelineState) or state.stage == stages.SCANNING or state.export is not None:
            return
        if state.partial or state.repair is not None:
            return
        for (kind, id), (_, text) in entries.items():
            segment = truth.decoded(kind, text) if kind == "segment" else None
            if isinstance(segment, SegmentState) and not segment.keys:
                number = int(id) if segment.number is None else segment.number
                ended = state.epoch, state.table_id, number
                assert ended in self._ended, f"segment {id} of epoch {state.epoch} ended with a page of another table"
