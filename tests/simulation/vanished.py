"""What tables with ``deletes: mark`` keep of documents that are gone: each one's last image, and when it vanished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from replicator.batch import DocumentId
from replicator.hooks.hook import Poison
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import Key, key_text
from replicator.testing.memory import Marked, body
from replicator.version import FIRST_EPOCH
from tests.simulation import hooks, truth

if TYPE_CHECKING:
    from replicator.hooks.hook import Hook
    from tests.simulation.world import Universe

Place = tuple[str, DocumentId]
BY_HAND = (b'{"by": "hand"}', b'{"by":"hand"}')  # as it was written, and once it was read
ROUNDED = 1.5  # seconds by which the stream's times differ from those of the writes, at most


class Lives:
    """The changes of each item, with their times, and which documents the target has held since it was last restored.

    A value is None where the item was removed.
    """

    def __init__(self) -> None:
        self.changes: dict[Key, list[tuple[float, int | None]]] = {}
        self.held: set[Place] = set()

    def changed(self, key: Key, at: float, value: int | None) -> None:
        self.changes.setdefault(key, []).append((at, value))

    def replaced(self, table: str, ids: Iterable[DocumentId]) -> None:
        """Others put another table in the place of this one."""
        self.held = {place for place in self.held if place[0] != table} | {(table, id) for id in ids}


def check(universe: Universe, table: str, passed_over: set[Key]) -> None:
    """A document that the target held is live or marked, not both; and what is marked was once the item's."""
    if not universe.scenario.marks:
        return
    rows, marked = universe.database.rows.get(table, {}), universe.database.marked.get(table, {})
    assert not (both := rows.keys() & marked.keys()), f"{table} has {sorted(both)} live and marked"
    lost = {id for of, id in universe.lives.held if of == table} - rows.keys() - marked.keys()
    assert not lost, f"{table} held {sorted(lost)}, and has not marked them"
    for id, one in marked.items():
        key = next((key for key in universe.lives.changes if id == key or id[0] == key_text(key)), None)
        if key is None:
            assert one.body in BY_HAND, f"{id} in {table} is marked, and never was"
        elif key not in passed_over:
            _check_image(universe, table, id, key, one)


def _check_image(universe: Universe, table: str, id: DocumentId, key: Key, marked: Marked) -> None:
    place = table, id
    lives = [life for hook in _hooks(universe) for life in _lives(universe, place, key, hook)]
    if _touched(universe):
        lives += [(by_hand, None) for by_hand in BY_HAND]
    assert marked.body in [of for of, _ in lives], f"{id} in {table} was marked as {marked.body!r}, which it never was"
    if _told_everything(universe):
        *_, (last, at) = _lives(universe, place, key, universe.hook())
        assert marked.body == last, f"{id} in {table} is marked as {marked.body!r}, and was {last!r} at last"
        assert at is not None, f"{id} in {table} is marked, and is there"
        if universe.scenario.view == "NEW_IMAGE":
            return  # no image tells of what was there before the first change of a batch
        if universe.scenario.keeps_expired:
            return  # what an expiry left behind vanishes with a later change of the item
        assert marked.at is not None
        assert abs(marked.at - at) <= ROUNDED, f"{id} in {table} vanished at {at}, and is marked as of {marked.at}"


def _told_everything(universe: Universe) -> bool:
    """Whether the stream, from the first record of the epoch, has told of every image of the documents that vanished.

    Only what a hook or the target refuses, what others change by hand, and what no image shows keep an older one.
    """
    scenario = universe.scenario
    kind = None if scenario.hook is None else hooks.HOOKS[scenario.hook]
    refuses = scenario.refuses or (kind is not None and kind.poisons)
    whole = truth.epoch_of(universe.database.entries) == FIRST_EPOCH and scenario.view != "KEYS_ONLY"
    return whole and not (refuses or _touched(universe) or universe.hook_version)


def _touched(universe: Universe) -> bool:
    """Whether others may have changed documents by hand."""
    return bool(universe.damage.ever) or "request items" in universe.scenario.rates


def _hooks(universe: Universe) -> Iterator[Hook | None]:
    if universe.scenario.hook is None:
        yield None
        return
    for hook_version in range(universe.hook_version + 2):  # a retry may use the next one
        yield hooks.load(universe.scenario.hook, hook_version)
        yield hooks.load(universe.scenario.hook, hook_version, fixed=True)


def _lives(universe: Universe, place: Place, key: Key, hook: Hook | None) -> Iterator[tuple[bytes, float | None]]:
    """What the document was, each time before it vanished or changed, and when it vanished; None: it is there."""
    last: bytes | None = None
    for at, value in universe.lives.changes[key]:
        now = None if value is None else _document(universe, place, {"pk": key[0], "v": value}, hook)
        if last is not None:
            yield last, at if now is None else None
        last = now
    if last is not None:
        yield last, None


def _document(universe: Universe, place: Place, item: dict[str, object], hook: Hook | None) -> bytes | None:
    encoded = Item(image(item))
    try:
        if hook is None:
            return body(encoded)
        if hook.declared:
            found = hook.many(encoded, tuple(universe.tables)).get((place[0], place[1][-1]))
        else:
            found = hook.one(encoded)
    except Poison:
        return None
    return None if found is None else body(found)
