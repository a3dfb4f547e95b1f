"""Consistent reads of the table as of one save, and atomic saves of any size.

A save that fits is a single transaction. A larger one is written as a journal first, and is committed once the head
refers to that journal. From then on its items are written before anything else happens, by any process that needs to
save; processes that only read apply the journal to what they read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import msgspec

from replicator.checkpoints.dynamodb import layout as layout
from replicator.checkpoints.dynamodb.layout import HEAD, Action, Blob, Head, Item, Known, Place
from replicator.checkpoints.dynamodb.table import Changed, CheckpointTable, absent, is_, portions
from replicator.errors import TransientError
from replicator.state import FORGOTTEN, Counts, DamagedCheckpoint, Entry, Save, forgotten, shard_of

TRIES = 30  # attempts of a save or a read while other processes change the table
EXACT_TRIES = 3  # of these, how many reads without a claim must be as of one save
_LISTED = ("revision", "sum", "blob")
_ITEM_ENTRIES = layout.entry_key("item", "")
_actions = msgspec.json.Decoder(list[Action])


class States:
    """Reads and writes the table's successive states, one per save."""

    def __init__(self, table: CheckpointTable, place: str) -> None:
        self._table, self._place = table, place
        self.parked_pages = 1  # of the table's, when they were last listed

    # Reading

    def head(self) -> Head:
        found = self._table.get(HEAD)
        return Head() if found is None else layout.head_of(found, self._place)

    def settled_head(self) -> Head:
        """The head, after completing a pending journal."""
        while (head := self.head()).journal is not None:
            self.finish(head)
        return head

    def all(self, *, settled: bool) -> tuple[Known, dict[Place, str]]:
        """All entries and counts, and the texts of entries that are not parked.

        ``settled``: as of one save, after completing a pending journal. If not, that is tried a few times only: while
        others save all the time, what was read may be of several saves.
        """
        for attempt in range(TRIES):
            before = self.settled_head() if settled else self.head()
            # Parked entries before the notes of what commands have made of them, as a run that knows what was made must
            # know that it was; what workers compare to park an item once comes before it, as they must know the entry.
            items = self._items({_ITEM_ENTRIES: (), "p#": _LISTED, "c#": (), "e#": ()}, before)
            known, texts = None, None
            if items is not None:
                known, texts = self._known(before, items), self._texts(items)
            now = self.head()
            exact = settled or attempt < EXACT_TRIES
            quiet = now.commit == before.commit if exact else now.journal == before.journal
            if known is not None and texts is not None and quiet:
                return known, texts
        raise TransientError(f"the checkpoints in {self._place} change all the time")

    def touched(self, head: Head, saves: Sequence[Save], sources: Iterable[str]) -> Known:
        """The state that a save builds on, read item by item."""
        known = Known(head)
        sources = [*sources, FORGOTTEN, *forgotten(saves)]
        shards = [("shard", shard) for source in sources if (shard := shard_of(source)) is not None]
        for kind, id in dict.fromkeys([*((save.kind, save.id) for save in saves), *shards]):
            item = self._table.get(layout.entry_key(kind, id))
            if item is not None:
                known.entries[kind, id] = layout.stored_of(item)
        for source in dict.fromkeys(sources):
            item = self._table.get(f"c#{source}")
            if item is not None:
                known.counts[source] = layout.counts_of(item)
        return known

    def parked(self, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, str]]:
        """Ids and texts of parked entries, in order; only those ``wanted``, if given.

        Keeps one page of the table and one large text in memory at a time.
        """
        after: str | None = None
        while True:
            page, after = self._parked_page(f"p#{prefix}", after)
            items = {k: item for k, item in page.items() if wanted is None or layout.place_of(k)[1] in wanted}
            small = {key: item for key, item in items.items() if layout.stored_of(item).blob is None}
            texts = self._texts(small, "p#") or {}
            for key in sorted(items):
                place = layout.place_of(key)
                text = texts[place] if key in small else self.text(*place)
                if text is not None:
                    yield place[1], text
            if after is None:
                return

    def parked_among(self, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Ids and texts of those parked entries among ``ids`` that exist, read one by one."""
        for id in ids:
            if (text := self.text("parked", id)) is not None:
                yield id, text

    def _parked_page(self, prefix: str, after: str | None) -> tuple[dict[str, Item], str | None]:
        """One page of parked entries behind the key ``after``, with a pending journal applied."""
        for _ in range(TRIES):
            before = self.head()
            page, last = self._table.page(prefix, (), after)
            items = dict(page)
            journal = [] if before.journal is None else self._journal(before.journal)
            for action in journal or ():
                if (
                    action.key.startswith(prefix)
                    and (after or "") < action.key
                    and (last is None or action.key <= last)
                ):
                    _see(items, action)
            if journal is not None and self.head().journal == before.journal:
                return items, last
        raise TransientError(f"the checkpoints in {self._place} change all the time")

    def text(self, kind: str, id: str) -> str | None:
        """The text of one entry; None if it does not exist."""
        entry = self.entry(kind, id)
        return None if entry is None else entry.text

    def entry(self, kind: str, id: str) -> Entry | None:
        """One entry; None if it does not exist."""
        key = layout.entry_key(kind, id)
        for _ in range(TRIES):
            before = self.head()
            item = self._table.get(key)
            if before.journal is not None:
                item = {action.key: action.item for action in self._journal(before.journal) or ()}.get(key, item)
            texts = self._texts({} if item is None else {key: item}, key[:2])
            if texts and item is not None:
                return Entry(kind, id, layout.stored_of(item).revision, texts[kind, id])
            if texts is not None and self.head().journal == before.journal:
                return None
        raise TransientError(f"the checkpoints in {self._place} change all the time")

    def _items(self, wanted: Mapping[str, Sequence[str]], head: Head) -> dict[str, Item] | None:
        """The items under each prefix (all or some of their attributes), with a pending journal applied.

        None if the journal was completed in the meantime.
        """
        found: dict[str, Item] = {}
        read = list[str]()
        for prefix, attributes in wanted.items():
            pages = 0
            for page in self._table.pages(prefix, attributes):
                found.update({key: item for key, item in page if not key.startswith(tuple(read))})
                pages += 1
            read.append(prefix)
            if prefix == "p#":
                self.parked_pages = pages
        if head.journal is None:
            return found
        journal = self._journal(head.journal)
        for action in journal or ():
            if action.key.startswith(tuple(wanted)):
                _see(found, action)
        return None if journal is None else found

    def _known(self, head: Head, items: Mapping[str, Item]) -> Known:
        entries = {layout.place_of(k): layout.stored_of(item) for k, item in items.items() if k[0] in "ep"}
        return Known(head, entries, {k[2:]: layout.counts_of(item) for k, item in items.items() if k[0] == "c"})

    def _texts(self, items: Mapping[str, Item], prefix: str = "e#") -> dict[Place, str] | None:
        """Texts by place; None if one was replaced in the meantime."""
        found: dict[Place, str] = {}
        for key, item in items.items():
            if key.startswith(prefix):
                text = self._text(item)
                if text is None:
                    return None
                if layout.text_sum(text) != item["sum"]["S"]:
                    kind, id = layout.place_of(key)
                    raise self._damaged(f"its entry {kind} {id!r} does not match its checksum")
                found[layout.place_of(key)] = text
        return found

    def _text(self, item: Item) -> str | None:
        blob = layout.stored_of(item).blob
        return item["text"]["S"] if blob is None else self._table.read_blob(blob)

    def _damaged(self, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"the checkpoints in {self._place} cannot be trusted: {what}; something else changed the table. Restore it "
            "to an earlier point in time, or remove the pipeline's items from it and start over with: "
            "replicator resync CONFIG --now"
        )

    # Writing

    def commit(self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], name: tuple[str, str]) -> Known:
        """Save if the head is still the ``known`` one; Changed if it is not.

        ``name``: a token for the save's blobs, and the name that the head records for it.
        """
        token, last = name
        blobs = self._blobs(saves, token)
        actions = layout.actions(known, saves, counts, blobs)
        obsolete = [b for s in saves if (e := known.entries.get((s.kind, s.id))) is not None and (b := e.blob)]
        try:
            head = self._committed(known.head, actions, token, last)
        except Changed:
            self._forget(blobs.values())
            raise
        self._forget(obsolete)
        return layout.after(known, head, actions)

    def _committed(self, head: Head, actions: Sequence[Action], token: str, last: str) -> Head:
        (first, *more) = portions(actions)
        if not more:
            new = layout.committed(head, last, None)
            self._table.transact(self._table.putting(HEAD, layout.head_item(new), _unchanged(head)), first)
            return new
        journal = self._table.write_blob(f"{token}-journal", msgspec.json.encode(actions).decode())
        new = layout.committed(head, last, journal)
        try:
            self._table.put(HEAD, layout.head_item(new), _unchanged(head))
        except Changed:
            self._forget([journal])
            raise
        return self.finish(new)

    def _blobs(self, saves: Sequence[Save], token: str) -> dict[Place, Blob]:
        large = [(n, s) for n, s in enumerate(saves) if s.text is not None and len(s.text.encode()) > layout.INLINE]
        return {(s.kind, s.id): self._table.write_blob(f"{token}-{n}", s.text or "") for n, s in large}

    def finish(self, head: Head) -> Head:
        """Complete the journal that ``head`` refers to, unless that has been done. Returns the head without it."""
        assert head.journal is not None
        for _ in range(TRIES):
            actions = self._journal(head.journal)
            if actions is None and self.head().journal == head.journal:
                raise self._damaged("a journal is missing")
            try:
                return self._carried_out(head, head.journal, actions or ())
            except Changed:  # another process is completing the journal, but may not finish
                if self.head().journal != head.journal:
                    return replace(head, journal=None)
        raise TransientError(f"the checkpoints in {self._place} keep being changed by other processes")

    def _carried_out(self, head: Head, journal: Blob, actions: Sequence[Action]) -> Head:
        pending = is_("journal", msgspec.json.encode(journal).decode())
        for portion in portions([_unconditional(a) for a in actions]):
            self._table.transact(self._table.checking(HEAD, pending), portion)
        done = replace(head, journal=None)
        self._table.put(HEAD, layout.head_item(done), pending)
        self._forget([journal])
        return done

    def _journal(self, blob: Blob) -> list[Action] | None:
        text = self._table.read_blob(blob)
        return None if text is None else _actions.decode(text)

    def take_over(self, head: Head, owner: str) -> Head:
        """Make ``owner`` the only run that may save; Changed if ``head`` is outdated."""
        new = replace(head, owner=owner, claim=head.claim + 1, commit=head.commit + 1, last="-")
        self._table.put(HEAD, layout.head_item(new), _unchanged(head))
        return new

    def pieces(self) -> list[str]:
        """The keys of all blob pieces. A takeover after this call makes saves in progress fail."""
        return [key for key, _ in self._table.query("b#", ("revision",))]

    def collect_garbage(self, pieces: Sequence[str], known: Known) -> None:
        """Remove ``pieces`` that no entry refers to, left by killed runs."""
        used = {blob.token for e in known.entries.values() if (blob := e.blob) is not None}
        self._table.forget([key for key in pieces if key.split("#")[1] not in used])

    def _forget(self, blobs: Iterable[Blob]) -> None:
        self._table.forget(list(_keys(blobs)))


def _see(items: dict[str, Item], action: Action) -> None:
    """Apply the action to ``items``."""
    if action.item is None:
        items.pop(action.key, None)
    else:
        items[action.key] = action.item


def _unconditional(action: Action) -> Action:
    """A journal is committed already, so its items are written unconditionally."""
    return Action(action.key, action.item)


def _unchanged(head: Head) -> dict[str, object]:
    """The condition that nothing was saved since, and no journal is pending."""
    return is_("commit", head.commit, without="journal") if head.commit else absent()


def _keys(blobs: Iterable[Blob]) -> Iterator[str]:
    for blob in blobs:
        yield from blob.keys
