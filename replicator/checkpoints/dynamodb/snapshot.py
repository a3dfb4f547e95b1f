"""Consistent reads of the table as of one save, and atomic saves of any size.

A save that fits is a single transaction. A larger one is written as a journal first, and is committed once the heads of
all that it changes refer to that journal. From then on its items are written before anything else happens to what these
heads guard, by any process that needs to save; processes that only read apply the journal to what they read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from replicator.checkpoints.compare_and_set import check_owned
from replicator.checkpoints.dynamodb import layout as layout
from replicator.checkpoints.dynamodb.layout import FORMAT, MOST_HEADS, Action, Blob, Head, Item, Known, Place, head_key
from replicator.checkpoints.dynamodb.table import Changed, CheckpointTable, absent, is_, portions
from replicator.errors import TransientError
from replicator.state import Counts, DamagedCheckpoint, Entry, Save

TRIES = 30  # attempts of a save or a read while other processes change the table
EXACT_TRIES = 3  # of these, how many reads without a claim must be as of one save
EXACT_TRIES_BESIDE_WORKERS = 1  # the same where several save all the time
COMMON_TRIES = 4  # after these, reads beside workers that must be as of one save in all that ``h`` guards
FEW = 50  # items to read one by one rather than read all
_LISTED = ("revision", "sum", "blob")
_ITEM_ENTRIES = layout.entry_key("item", "")
Heed = Callable[[layout.Heads], None] | None
_actions = msgspec.json.Decoder(list[Action])


class Name(NamedTuple):
    """Of a save: ``token`` of its blobs; ``last``: as the worker's or run's own head records it, "" if not at all."""

    token: str
    last: str


class Journal(msgspec.Struct, frozen=True):
    """A save that more than ``h`` refers to. In the format 1, and where only ``h`` does, it is its actions alone."""

    slots: list[str]
    actions: list[Action]


_journal = msgspec.json.Decoder(Journal)


class States:
    """Reads and writes the table's successive states, one per save."""

    def __init__(self, table: CheckpointTable, place: str) -> None:
        self._table, self._place = table, place
        self.parked_pages = 1  # of the table's, when they were last listed

    # Reading

    def head(self, slot: str = "") -> Head:
        found = self._table.get(head_key(slot))
        return Head() if found is None else layout.head_of(found, self._place)

    def settled_head(self, slot: str = "", heed: Heed = None) -> Head:
        """The head, after completing a pending journal. ``heed``: called before that with what was read."""
        while True:
            head = self.head(slot)
            if heed is not None:
                heed({slot: head})
            if head.journal is None:
                return head
            self.finish(head.journal)

    def heads(self, *, settled: bool, heed: Heed = None) -> dict[str, Head]:
        """``h``, then those of the run's slots. ``settled``: after completing pending journals."""
        while True:
            main = self.head()
            found = {"": main, **(self._heads_of_slots(main) if main.slots else {})}
            if heed is not None:
                heed(found)
            pending = journals_of(found) if settled else ()
            for journal in pending:
                self.finish(journal)
            if not pending:
                return found

    def _heads_of_slots(self, main: Head) -> dict[str, Head]:
        prefix = head_key("") + "#"
        listed = {key.removeprefix(prefix): item for key, item in self._table.query(prefix)}
        return {s: layout.head_of(listed[s], self._place) if s in listed else Head() for s in main.slots}

    def all(self, *, settled: bool, own: str | None = None) -> tuple[Known, dict[Place, str]]:
        """All entries and counts, and the texts of entries that are not parked.

        ``settled``: as of one save, after completing pending journals. If not, or with a slot of one's ``own``, that is
        tried a few times only: while others save all the time, what was read may be of several saves. What the own
        slot's head guards is as of one even then; without one, what ``h`` guards, as that rests nearly always. Where it
        does not, what is parked is listed again after the positions, so that none is behind those and missing.
        """
        for attempt in range(TRIES):
            before = self.heads(settled=settled)
            # Parked entries before the notes of what commands have made of them, as a run that knows what was made must
            # know that it was; what workers compare to park an item once comes before it, as they must know the entry.
            items = self._items({_ITEM_ENTRIES: (), "p#": _LISTED, "c#": (), "e#": ()}, before)
            known, texts = None, None
            if items is not None:
                known, texts = self._known(before, items), self._texts(items)
            now = self.heads(settled=False)
            must_rest = before if settled and own is None else _must_rest(attempt, before, own)
            if known is not None and not must_rest:
                known = self._with_parked(known)
            if known is not None and texts is not None and _is_quiet(before, now, must_rest):
                return known, texts
        raise TransientError(f"the checkpoints in {self._place} change all the time")

    def _with_parked(self, known: Known) -> Known | None:
        """``known``, with what was parked since; None if a journal was completed, or a command changed such an entry.

        Entries that are known stay as they are: what a command makes of them may have a note that was not read.
        """
        listed = self._items({"p#": _LISTED}, self.heads(settled=False))
        if listed is None:
            return None
        since = {p: e for p, e in self._known(known.heads, listed).entries.items() if p not in known.entries}
        if any(stored.revision > 1 for stored in since.values()):
            return None
        return replace(known, entries={**known.entries, **since})

    def begin(self, slot: str | None, heed: Heed = None) -> Known:
        """The heads that a save builds on, before anything else is read: that of one slot, or all."""
        if slot is not None:
            head = self.settled_head(slot, heed)
            return Known({slot: head}, (slot,) if slot else head.slots)
        heads = self.heads(settled=True, heed=heed)
        return Known(heads, heads[""].slots)

    def have_moved(self, known: Known, slots: Iterable[str]) -> bool:
        """Whether any of these heads has, since it was read."""
        return any(self.head(slot).commit != known.heads[slot].commit for slot in slots)

    def fill(self, known: Known, saves: Sequence[Save], sources: Iterable[str]) -> None:
        """Add to ``known`` what the save may depend on."""
        missing = known.missing(layout.touched(saves, sources))
        if len(missing) > FEW:
            listed = self._items({"p#": _LISTED, "c#": (), "e#": ()}, {}) or {}
            everything = self._known(known.heads, listed)
            known.entries, known.counts, known.complete = everything.entries, everything.counts, True
            return
        for key in missing:
            item = self._table.get(key)
            if item is not None and key.startswith("c#"):
                known.counts[key[2:]] = layout.counts_of(item)
            elif item is not None:
                place = layout.place_of(key)
                known.entries[place] = layout.stored_of(item, place[0])
            known.read.add(key)

    def parked(self, prefix: str, wanted: Collection[str] | None) -> Iterator[tuple[str, str]]:
        """Ids and texts of parked entries, in order; only those ``wanted``, if given.

        Keeps one page of the table and one large text in memory at a time.
        """
        after: str | None = None
        while True:
            page, after = self._parked_page(f"p#{prefix}", after)
            items = {k: item for k, item in page.items() if wanted is None or layout.place_of(k)[1] in wanted}
            small = {key: item for key, item in items.items() if layout.stored_of(item, "").blob is None}
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
                return Entry(kind, id, layout.stored_of(item, kind).revision, texts[kind, id])
            if texts is not None and self.head().journal == before.journal:
                return None
        raise TransientError(f"the checkpoints in {self._place} change all the time")

    def _items(self, wanted: Mapping[str, Sequence[str]], heads: layout.Heads) -> dict[str, Item] | None:
        """The items under each prefix (all or some of their attributes), with pending journals applied.

        None if a journal was completed in the meantime.
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
        for blob in journals_of(heads):
            journal = self._journal(blob)
            if journal is None:
                return None
            for action in journal:
                if action.key.startswith(tuple(wanted)):
                    _see(found, action)
        return found

    def _known(self, heads: layout.Heads, items: Mapping[str, Item]) -> Known:
        places = {layout.place_of(k): item for k, item in items.items() if k[0] in "ep"}
        entries = {place: layout.stored_of(item, place[0]) for place, item in places.items()}
        counts = {k[2:]: layout.counts_of(item) for k, item in items.items() if k[0] == "c"}
        return Known(dict(heads), heads[""].slots if "" in heads else (), entries, counts, complete=True)

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
        blob = layout.stored_of(item, "").blob
        return item["text"]["S"] if blob is None else self._table.read_blob(blob)

    def _damaged(self, what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"the checkpoints in {self._place} cannot be trusted: {what}; something else changed the table. Restore it "
            "to an earlier point in time, or remove the pipeline's items from it and start over with: "
            "replicator resync CONFIG --now"
        )

    # Writing

    def commit(
        self, known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], name: Name, own: str | None
    ) -> Known:
        """Save if the heads of all that it changes are still the ``known`` ones; Changed if one is not.

        ``own``: the slot of this process, whose head moves, too; None for a command. If another one moves, ``h`` does.
        """
        slots = heads_of(known, saves, counts, own)
        blobs = self._blobs(saves, name.token)
        actions = layout.actions(known, saves, counts, blobs)
        obsolete = [b for s in saves if (e := known.entries.get((s.kind, s.id))) is not None and (b := e.blob)]
        before = {slot: known.heads[slot] for slot in slots}
        new = {
            slot: layout.committed(head, name.last if slot == own and name.last else head.last, None)
            for slot, head in before.items()
        }
        try:
            heads = self._committed(before, new, actions, name.token)
        except Changed:
            self._forget(blobs.values())
            raise
        self._forget(obsolete)
        return layout.after(known, heads, actions)

    def _committed(
        self, before: layout.Heads, new: layout.Heads, actions: Sequence[Action], token: str
    ) -> layout.Heads:
        (first, *more) = portions(actions, len(new))
        if not more:
            self._table.transact(self._moved(before, new), first)
            return new
        listed = list(actions)
        content = listed if list(new) == [""] else Journal(list(new), listed)
        journal = self._table.write_blob(f"{token}-journal", msgspec.json.encode(content).decode())
        try:
            self._move(before, {slot: replace(head, journal=journal) for slot, head in new.items()})
        except Changed:
            self._forget([journal])
            raise
        self.finish(journal)
        return new

    def _move(self, before: layout.Heads, new: layout.Heads) -> None:
        """Change heads, of which one is a single write, and several are a transaction."""
        if len(new) > 1:
            return self._table.transact(self._moved(before, new))
        for slot, head in new.items():
            self._table.put(head_key(slot), layout.head_item(head, slot), _unchanged(before[slot]))
        return None

    def _moved(self, before: layout.Heads, new: layout.Heads) -> list[dict[str, object]]:
        return [
            self._table.putting(head_key(slot), layout.head_item(head, slot), _unchanged(before[slot]))
            for slot, head in new.items()
        ]

    def _blobs(self, saves: Sequence[Save], token: str) -> dict[Place, Blob]:
        large = [(n, s) for n, s in enumerate(saves) if s.text is not None and layout.is_large(s.text)]
        return {(s.kind, s.id): self._table.write_blob(f"{token}-{n}", s.text or "") for n, s in large}

    def finish(self, journal: Blob) -> None:
        """Complete the journal that heads refer to, unless that has been done."""
        for _ in range(TRIES):
            content = self._content(journal)
            if content is None:
                if any(self.head(slot).journal == journal for slot in self._refer(journal)):
                    raise self._damaged("a journal is missing")
                return None
            heads = {slot: self.head(slot) for slot in content.slots}
            if all(head.journal != journal for head in heads.values()):
                return None
            try:
                return self._carried_out(journal, content, heads)
            except Changed:  # another process is completing the journal, but may not finish
                continue
        raise TransientError(f"the checkpoints in {self._place} keep being changed by other processes")

    def _refer(self, journal: Blob) -> list[str]:
        """The slots whose heads may refer to a journal that cannot be read."""
        return [slot for slot, head in self.heads(settled=False).items() if head.journal == journal]

    def _carried_out(self, journal: Blob, content: Journal, heads: layout.Heads) -> None:
        pending = is_("journal", msgspec.json.encode(journal).decode())
        check = self._table.checking(head_key(content.slots[0]), pending)
        for portion in portions([_unconditional(a) for a in content.actions]):
            self._table.transact([check], portion)
        done = {slot: layout.head_item(replace(head, journal=None), slot) for slot, head in heads.items()}
        if len(done) > 1:
            self._table.transact([self._table.putting(head_key(s), item, pending) for s, item in done.items()])
        else:
            for slot, item in done.items():
                self._table.put(head_key(slot), item, pending)
        self._forget([journal])

    def _content(self, blob: Blob) -> Journal | None:
        text = self._table.read_blob(blob)
        if text is None:
            return None
        return Journal([""], _actions.decode(text)) if text.startswith("[") else _journal.decode(text)

    def _journal(self, blob: Blob) -> list[Action] | None:
        content = self._content(blob)
        return None if content is None else content.actions

    def take_over(self, head: Head, owner: str) -> Head:
        """Make ``owner`` the only run that may save; Changed if ``head`` is outdated.

        First no worker of another run can claim a slot, and their saves fail once the head of their slot has moved.
        Until all have, the run has not begun. It begins without heads of slots: ``h`` guards everything again.
        """
        new = replace(head, owner=owner, claim=head.claim + 1, commit=head.commit + 1, last="-", held="")
        self._move({"": head}, {"": new})
        if not head.slots:
            return new
        for slot in head.slots:
            self._depose(slot)
        return self._begun(new)

    def _begun(self, main: Head) -> Head:
        """``h`` without slots. Commands may have moved it since the claim; Fenced if a later run has claimed."""
        claim = main.claim
        for _ in range(TRIES):
            check_owned({"": main.claim}, {"": claim})
            alone = replace(main, commit=main.commit + 1, slots=())
            with contextlib.suppress(Changed):
                self._move({"": main}, {"": alone})
                return alone
            main = self.settled_head()
        raise TransientError(f"the checkpoints in {self._place} keep being changed by other processes")

    def _depose(self, slot: str) -> None:
        """Move the head of a slot, so that the save that its worker has in flight fails."""
        for _ in range(TRIES):
            head = self.settled_head(slot)
            with contextlib.suppress(Changed):
                return self._move({slot: head}, {slot: layout.committed(head, "-", None)})
        raise TransientError(f"the checkpoints in {self._place} keep being changed by other processes")

    def take_slot(self, main: Head, head: Head, slot: str, claim: Save, known: Known) -> str:
        """Make the owner in ``claim`` the only worker of a slot; Changed if a head is outdated.

        Returns the slot whose head guards what is the worker's: "" if there are too many for one each.
        """
        (action,) = layout.actions(known, [claim], {}, {})
        new = {slot: layout.committed(head, "-", None)}
        if slot not in main.slots:
            more = (*main.slots, slot) if len(main.slots) < MOST_HEADS else main.slots
            new = {
                "": replace(layout.committed(main, main.last, None), slots=more, format=FORMAT),
                **(new if slot in more else {}),
            }
        self._table.transact(self._moved({"": main, slot: head}, new), [action])
        return slot if slot in new else ""

    def hold(self, slots: Iterable[str], token: str) -> None:
        """Have the workers of these slots wait a moment, as this process could not change what is theirs beside them.

        Nothing depends on it: a worker that waits too long goes on.
        """
        for slot in slots:
            head = self.settled_head(slot)
            if not head.held:
                with contextlib.suppress(Changed):
                    self._move({slot: head}, {slot: replace(head, commit=head.commit + 1, held=token)})

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


def journals_of(heads: layout.Heads) -> list[Blob]:
    """The pending journals, each once: several heads may refer to one."""
    return list({head.journal.token: head.journal for head in heads.values() if head.journal is not None}.values())


def _must_rest(attempt: int, heads: layout.Heads, own: str | None) -> Collection[str]:
    """The slots whose heads may not have moved during this attempt of a read."""
    tries = min(EXACT_TRIES, EXACT_TRIES_BESIDE_WORKERS) if heads[""].slots else EXACT_TRIES
    if attempt < tries:
        return heads
    if own is not None:
        return (own,)
    return ("",) if heads[""].slots and attempt < tries + COMMON_TRIES else ()


def _is_quiet(before: layout.Heads, now: layout.Heads, slots: Iterable[str]) -> bool:
    """Whether nothing that the heads of ``slots`` guard was saved between two looks, and no journal was completed."""
    if set(journals_of(before)) != set(journals_of(now)):
        return False
    return all(slot in now and before[slot].commit == now[slot].commit for slot in slots if slot in before)


def heads_of(known: Known, saves: Sequence[Save], counts: Mapping[str, Counts], own: str | None) -> list[str]:
    """The slots whose heads a save moves; "" comes first, as any process can find what that refers to."""
    slots = layout.guards(known, saves, counts) | ({own} if own is not None else set())
    return sorted(slots if slots == {own} else slots | {""})


def _keys(blobs: Iterable[Blob]) -> Iterator[str]:
    for blob in blobs:
        yield from blob.keys
