"""What the receiver accepted of batches that came back, because it rejected other events of theirs.

Their changes come again in other batches, and those may be cut in another way: an older event of a document may come
first that a batch had left out. So an event is spared only while it is the last one that was sent of its document.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from connectors.webhook.messages import Event
from replicator.batch import Delete, DocumentId

Document = tuple[str, DocumentId]
Answered = tuple[Event, bool]
"""An event that was accepted, and whether the receiver said that it had that version or a newer one."""


@dataclass(slots=True)
class Accepted:
    """``_last``: the last event that was sent of a document, and whether the receiver remembers its version, also if it
    is a delete. ``_versions``: what was accepted of a document, and whether the receiver had it already.
    """

    _last: dict[Document, tuple[bytes, bool]] = field(default_factory=dict)
    _versions: dict[Document, dict[int, bool]] = field(default_factory=dict)

    def spared(self, events: Sequence[Event], *, tombstones: bool) -> list[Event]:
        """Those of a batch's events that the receiver has, so that they need not be sent again.

        None of a document with several, as where the segments of a rescan overlap: another one would come behind it.
        """
        if not self._last:
            return []
        of_document = Counter(map(_document, events))
        return [e for e in events if of_document[_document(e)] == 1 and self._has(e, tombstones=tombstones)]

    def _has(self, event: Event, *, tombstones: bool) -> bool:
        text, is_remembered = self._last.get(_document(event), (b"", False))
        return text == event.text and (is_remembered or not tombstones)

    def sending(self, events: Iterable[Event]) -> None:
        """They may be carried out from now on, whatever the receiver says."""
        if self._last:
            for event in events:
                self._last.pop(_document(event), None)

    def superseded(self, event: Event, said: bool) -> bool:
        """Whether the receiver had that version already, before this run sent it for the first time."""
        return self._versions.get(_document(event), {}).get(event.write.version, said)

    def came_back(self, answered: Iterable[Answered], *, tombstones: bool) -> None:
        """The batch of these events was rejected in part."""
        for event, superseded in answered:
            self._last[_document(event)] = event.text, tombstones or not isinstance(event.write, Delete)
            self._versions.setdefault(_document(event), {})[event.write.version] = superseded

    def stored(self, events: Sequence[Event]) -> None:
        """The batch of these events is stored. If they are of none of the documents, all that came back is."""
        if not self._versions or not events:  # one of entries alone may come before what came back
            return
        known = [event for event in events if _document(event) in self._versions]
        if not known:
            self.clear()
        for event in known:
            document = _document(event)
            if document not in self._versions:
                continue  # of an event before
            left = {version: had for version, had in self._versions[document].items() if version > event.write.version}
            if left:
                self._versions[document] = left
            else:
                del self._versions[document]
                self._last.pop(document, None)

    def clear(self) -> None:
        self._last.clear()
        self._versions.clear()


def _document(event: Event) -> Document:
    return event.write.table, event.write.id
