"""How far a segment is after its pages."""

from __future__ import annotations

from replicator.change import ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline.advance import scanned
from replicator.pipeline.compaction import BatchContext
from replicator.pipeline.parked import ParkedItems
from replicator.state import SegmentState
from replicator.version import FIRST_EPOCH

AT = BatchContext({}, ParkedItems.of([]), FIRST_EPOCH, "segment:0", 5.0)
FOUND = [((key,), b'{"id":{"S":"%b"}}' % key.encode()) for key in "abc"]


def items(before: int | None) -> int:
    """The items of a segment that has 50, after a page with three."""
    page = ScanPage(0, FOUND, {"file": 0}, before=before)
    return scanned(SegmentState(1, items=50), [page], DocumentMapping(None, ("orders",)), AT)[0].items


def test_what_a_file_is_read_again_for_is_counted_once() -> None:
    assert items(before=None) == 53
    assert items(before=40) == 43
