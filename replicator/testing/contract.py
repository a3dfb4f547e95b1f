"""What every target must do, as tests: subclass ``TargetContract`` in a test module of your connector.

    class TestOurs(TargetContract):
        @pytest.fixture
        def config(self): ...       # target's part of a config, for an empty destination; without table or tables
        @pytest.fixture
        def unreachable(self): ...  # the same with an address where nobody answers
        @pytest.fixture
        def stored(self): ...       # a function: what a plain client finds in a table, see Stored
        @pytest.fixture
        def sever(self): ...        # a function that cuts the connections of every target

The suite reads the destination only through ``stored``, so what it sees is what anybody else sees.
"""

from __future__ import annotations

import base64
import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import pairwise
from typing import Any, ClassVar, cast

import pytest

from replicator.attributes import Item, image
from replicator.batch import Batch, Counts, Delete, DocumentId, Outcome, Part, Upsert, Write
from replicator.change import KeyAttribute, KeySchema
from replicator.checkpoints import Owner, Save
from replicator.config_target import OWN_IDS, destination
from replicator.errors import Fenced, TransientError
from replicator.position import FIRST_EPOCH, version
from replicator.target import Overlapping, Table, Target, Transactional

Stored = Callable[[Table], Mapping[DocumentId, Mapping[str, Any]]]
"""The documents of a table by id, each as its JSON says: numbers as Decimal, binary as base64, sets as sorted lists."""

Document = Mapping[str, object]

PK = KeySchema((KeyAttribute("pk", "S"),))
PAIR = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "N")))

EVERY_TYPE: Document = {
    "pk": "types",
    "empty": "",
    "text": 'tab\t newline\n quote" backslash\\ brace{} comma, é 漢 \U0001f600 \x01\x1f\x7f',
    "digits38": Decimal("12345678901234567890123456789012345678"),
    "smallest": Decimal("1E-130"),
    "largest": Decimal("9.9999999999999999999999999999999999999E+125"),
    "negative": Decimal("-0.10"),
    "zero": 0,
    "binary": b"\x00\x01\xfe\xff",
    "no_bytes": b"",
    "true": True,
    "false": False,
    "null": None,
    "list": ["a", 1, None, [], {"b": [True]}],
    "map": {"": "", "null": None, "deep": {"deeper": {"deepest": [Decimal("1.5")]}}},
    "texts": {"b", "a", "NULL", ""},
    "numbers": {Decimal("2"), Decimal("10"), Decimal("-1.5")},
    "binaries": {b"\xff", b"\x00"},
}


def table(name: str = "contract", keys: KeySchema = PK) -> Table:
    return Table(name, keys)


def at(ordinal: int, epoch: int = FIRST_EPOCH) -> int:
    return version(epoch, ordinal)


def put(
    document: Document, ordinal: int, *, id: DocumentId | None = None, table: str = "contract", weight: int = 1
) -> Upsert:
    """An item without a hook, filed under its ``pk``."""
    key = (cast(str, document["pk"]),) if id is None else id
    return Upsert(table, key, Item(image(document)), at(ordinal), key, weight)


def remove(pk: str, ordinal: int, *, table: str = "contract", weight: int = 1) -> Delete:
    return Delete(table, (pk,), at(ordinal), (pk,), weight)


def batch(*writes: Write, saves: Sequence[Save] = (), tombstones: bool = False) -> Batch:
    counts = Counts(read=sum(write.weight for write in writes))
    return Batch([Part("shard:contract", writes, counts)], saves, tombstones)


def as_json(value: object) -> Any:
    """A Python value as ``Stored`` shows it."""
    match value:
        case bool() | None | str():
            return value
        case int() | Decimal():
            return Decimal(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {name: as_json(inner) for name, inner in value.items()}
        case set() | frozenset():
            return sorted(as_json(member) for member in value)
        case list() | tuple():
            return [as_json(member) for member in value]
    raise TypeError(type(value))


class TargetContract:
    """Every promise of ``replicator.target``. ``races`` and ``seeds`` say how often chance is tried."""

    races = 50
    seeds = 10

    unacceptable: ClassVar[Document] = {"value": float("nan")}
    """What a hook may return and no target can store. Override it where a target can."""

    @pytest.fixture
    def build(self, config: Mapping[str, Any]) -> Iterator[Callable[[], Target]]:
        """Makes targets for one destination, as several runs would; all are closed in the end."""
        made: list[Target] = []

        def another(given: Mapping[str, Any] = config) -> Target:
            made.append(_built(given))
            return made[-1]

        yield another
        for target in made:
            target.close()

    @pytest.fixture
    def target(self, build: Callable[[], Target]) -> Target:
        return build()

    @pytest.fixture
    def opened(self, target: Target) -> Target:
        target.open([table()], FIRST_EPOCH)
        return target

    # one document

    def test_stores_a_new_item(self, opened: Target, stored: Stored) -> None:
        assert opened.write(batch(put({"pk": "a", "size": 1}, 1))) == Outcome()
        assert stored(table()) == {("a",): as_json({"pk": "a", "size": 1})}

    def test_replaces_the_whole_item(self, opened: Target, stored: Stored) -> None:
        """An attribute that is missing from the new image is gone, not left behind."""
        opened.write(batch(put({"pk": "a", "colour": "red", "size": 4}, 1)))
        opened.write(batch(put({"pk": "a", "colour": "blue"}, 2)))
        assert stored(table()) == {("a",): {"pk": "a", "colour": "blue"}}

    def test_removes_an_item(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 2)))
        assert opened.write(batch(remove("a", 3))) == Outcome()
        assert set(stored(table())) == {("b",)}

    def test_removing_an_absent_item_is_fine(self, opened: Target, stored: Stored) -> None:
        assert opened.write(batch(remove("a", 1))) == Outcome()
        assert stored(table()) == {}

    def test_keeps_every_type_exactly(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put(EVERY_TYPE, 1)))
        assert stored(table()) == {("types",): as_json(EVERY_TYPE)}

    def test_an_item_and_what_a_hook_makes_of_it_are_stored_alike(self, opened: Target, stored: Stored) -> None:
        body = {**EVERY_TYPE, "pk": "hook"}
        opened.write(batch(put(EVERY_TYPE, 1), Upsert("contract", ("hook",), body, at(1), ("hook",))))
        found = stored(table())
        assert {**found["hook",], "pk": "types"} == found["types",]

    def test_nul_characters_stop_nothing(self, opened: Target, stored: Stored) -> None:
        """They are kept, replaced, or refused in words; the target's options say which."""
        outcome = opened.write(batch(put({"pk": "a", "text": "x\0y", "map": {"n\0": "\0"}}, 1)))
        assert [r.write.id for r in outcome.rejections] in ([], [("a",)])
        assert set(stored(table())) == (set() if outcome.rejections else {("a",)})

    # keys

    def test_the_key_is_the_whole_key(self, target: Target, stored: Stored) -> None:
        """Equal partition, different sort: two items. Numbers are the same key however they were written."""
        pair = table(keys=PAIR)
        target.open([pair], FIRST_EPOCH)
        target.write(batch(*(put({"pk": "a", "sk": n}, 1, id=("a", str(n))) for n in (1, 10, -2))))
        target.write(batch(Delete("contract", ("a", "10"), at(2), ("a", "10"))))
        assert set(stored(pair)) == {("a", "1"), ("a", "-2")}

    def test_keys_of_any_text_stay_apart(self, opened: Target, stored: Stored) -> None:
        keys = ["a", "A", "a ", "á", "a\u0301", '"', "\\", "{}", "a,b", "NULL", "\n", "%s", "$1", "漢", "\U0001f600"]
        opened.write(batch(*(put({"pk": key}, 1) for key in keys)))
        assert set(stored(table())) == {(key,) for key in keys}

    def test_documents_with_ids_of_their_own(self, target: Target, stored: Stored) -> None:
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [('["a"]', "1"), ('["a"]', "2"), ('["b"]', "1")]
        target.write(batch(*(Upsert("contract", id, {"n": n}, at(1), ("a",)) for n, id in enumerate(ids))))
        target.write(batch(Delete("contract", ids[1], at(2), ("a",))))
        assert stored(own) == {ids[0]: {"n": Decimal(0)}, ids[2]: {"n": Decimal(2)}}

    # versions

    def test_writing_again_changes_nothing(self, opened: Target, stored: Stored) -> None:
        again = batch(put({"pk": "a"}, 1), remove("b", 1))
        opened.write(again)
        before = stored(table())
        opened.write(again)
        assert stored(table()) == before

    def test_an_equal_or_older_version_is_stale(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "a", "n": 5}, 5), put({"pk": "b"}, 5)))
        outcome = opened.write(
            batch(put({"pk": "a", "n": 4}, 4, weight=3), remove("b", 5, weight=2), put({"pk": "c"}, 1))
        )
        assert outcome == Outcome(stale={"shard:contract": 5})
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 5}), ("b",): {"pk": "b"}, ("c",): {"pk": "c"}}

    def test_stale_changes_are_told_apart_by_source(self, opened: Target) -> None:
        opened.write(batch(*(put({"pk": pk}, 5) for pk in "abc")))
        parts = [Part("shard:1", [put({"pk": "a"}, 5), put({"pk": "d"}, 5)]), Part("segment:2", [put({"pk": "b"}, 4)])]
        assert opened.write(Batch(parts)).stale == {"shard:1": 1, "segment:2": 1}

    def test_a_replayed_history_converges(self, target: Target, stored: Stored) -> None:
        """Any history, cut anywhere, resumed from anywhere earlier with other batches, ends like a dict."""
        names = [f"t{seed}" for seed in range(self.seeds)]
        target.open([table(name) for name in names], FIRST_EPOCH)
        for seed, name in enumerate(names):
            wanted = _replay(target, name, random.Random(seed))
            assert stored(table(name)) == wanted, f"seed {seed}"

    # batches

    def test_an_empty_batch_is_fine(self, opened: Target, stored: Stored) -> None:
        assert opened.write(Batch()) == Outcome()
        assert opened.write(Batch([Part("shard:1")])) == Outcome()
        assert stored(table()) == {}

    def test_several_tables_in_one_batch(self, target: Target, stored: Stored) -> None:
        target.open([table("orders"), table("lines")], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1, table="orders"), put({"pk": "a"}, 1, table="lines")))
        target.write(batch(remove("a", 2, table="orders"), put({"pk": "b"}, 2, table="lines")))
        assert (set(stored(table("orders"))), set(stored(table("lines")))) == (set(), {("a",), ("b",)})

    def test_the_largest_item(self, opened: Target, stored: Stored) -> None:
        large = {"pk": "a", "text": 'é"\n' * 75_000, "binary": os.urandom(90_000)}
        opened.write(batch(put(large, 1)))
        assert stored(table()) == {("a",): as_json(large)}

    def test_a_full_page(self, opened: Target, stored: Stored) -> None:
        page = [{"pk": f"{n:04}", "note": "x" * 1000, "n": n} for n in range(1000)]
        assert opened.write(batch(*(put(item, 1) for item in page))) == Outcome()
        assert stored(table()) == {(item["pk"],): as_json(item) for item in page}

    def test_what_cannot_be_stored_is_a_rejection_and_nothing_moves(self, opened: Target, stored: Stored) -> None:
        """One such item comes back with the reason; the rest of its batch is stored when it comes again without it."""
        good, poor = put({"pk": "a"}, 1), Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        outcome = opened.write(batch(good, poor))
        assert [r.write for r in outcome.rejections] == [poor]
        assert len(outcome.rejections[0].reason) > 10
        opened.write(batch(good))
        assert set(stored(table())) == {("a",)}

    def test_sending_and_collecting_is_writing(self, opened: Target, stored: Stored) -> None:
        if not isinstance(opened, Overlapping):
            pytest.skip("this target does not overlap")
        for ordinal in (1, 2):
            opened.send(opened.encode(batch(put({"pk": "a", "n": ordinal}, ordinal))))
            assert opened.collect() == Outcome()
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        opened.send(opened.encode(batch(poor)))
        assert [r.write for r in opened.collect().rejections] == [poor]
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 2})}

    # tombstones, sweep, purge

    def test_a_scanned_item_does_not_undo_a_live_delete(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(remove("a", 5), tombstones=True))
        assert opened.write(batch(put({"pk": "a"}, 0), put({"pk": "b"}, 0), tombstones=True)).stale == {
            "shard:contract": 1
        }
        assert set(stored(table())) == {("b",)}

    def test_after_a_delete_the_items_next_change_applies(self, opened: Target, stored: Stored) -> None:
        """Before the tombstones are forgotten and after."""
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1), tombstones=True))
        opened.write(batch(remove("a", 5), remove("b", 5), tombstones=True))
        assert opened.write(batch(put({"pk": "a", "n": 6}, 6), tombstones=True)) == Outcome()
        _exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1)))
        assert opened.write(batch(put({"pk": "b", "n": 6}, 6))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    def test_scans_and_live_deletes_race_without_ghosts(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        scanner = build()
        scanner.open([table()], FIRST_EPOCH)
        with ThreadPoolExecutor(2) as threads:
            for race in range(self.races):
                start = threading.Barrier(2)
                page = Batch([Part("segment:1", [put({"pk": f"{race}"}, 0)], Counts(read=1))], tombstones=True)
                live = Batch([Part("shard:1", [remove(f"{race}", 5)], Counts(read=1))], tombstones=True)
                racing = [
                    threads.submit(_at_once, start, scanner, page),
                    threads.submit(_at_once, start, opened, live),
                ]
                assert all(not done.result().rejections for done in racing)
        assert stored(table()) == {}

    def test_a_sweep_removes_what_is_older(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "old"}, 9), put({"pk": "parked"}, 9)))
        opened.write(Batch([Part("", [_in_epoch("new", 1), _in_epoch("seen", 0)])], tombstones=True))
        _exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), [("parked",)]))
        assert set(stored(table())) == {("new",), ("seen",), ("parked",)}

    def test_a_sweep_leaves_tombstones(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 9), put({"pk": "b"}, 9)))
        _exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), []))
        opened.write(Batch([Part("", [_in_epoch("a", 0), _in_epoch("b", 1)])], tombstones=True))
        assert set(stored(table())) == {("b",)}

    def test_a_sweep_spares_all_documents_of_an_item(self, target: Target, stored: Stored) -> None:
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [("a", "1"), ("a", "2"), ("b", "1")]
        target.write(batch(*(Upsert("contract", id, {}, at(1), (id[0],)) for id in ids)))
        _exhaust(lambda: target.sweep(own, at(0, FIRST_EPOCH + 1), [("a",)]))
        assert set(stored(own)) == {("a", "1"), ("a", "2")}

    def test_sweeps_and_purges_go_through_tables_of_any_size(self, opened: Target, stored: Stored) -> None:
        for start in range(0, 6000, 1000):
            opened.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(start, start + 1000))))
        assert _exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), [("77",)])) == 5999
        assert set(stored(table())) == {("77",)}
        assert _exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 2))) == 5999

    # opening

    def test_opening_what_is_there_keeps_it(self, opened: Target, build: Callable[[], Target], stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 1)))
        opened.close()
        later = build()
        assert (later.check([table()]), later.plan([table()])) == ([], [])
        later.open([table()], FIRST_EPOCH)
        assert set(stored(table())) == {("a",)}

    def test_checking_changes_nothing(self, target: Target) -> None:
        assert list(target.check([table()])) == []
        assert target.epoch([table()]) is None
        assert len(target.plan([table()])) >= 1

    def test_remembers_the_epoch(self, target: Target, build: Callable[[], Target]) -> None:
        target.open([table()], FIRST_EPOCH + 3)
        assert build().epoch([table()]) == FIRST_EPOCH + 3
        target.open([table(), table("later")], FIRST_EPOCH + 4)
        assert build().epoch([table(), table("later")]) == FIRST_EPOCH + 4
        assert build().epoch([table(), table("never")]) is None

    # trouble

    def test_recovers_from_a_cut_connection(self, opened: Target, sever: Callable[[], None], stored: Stored) -> None:
        """TransientError once, then the same write succeeds."""
        opened.write(batch(put({"pk": "a"}, 1)))
        sever()
        with pytest.raises(TransientError):
            opened.write(batch(put({"pk": "b"}, 2)))
        assert opened.write(batch(put({"pk": "b"}, 2))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    def test_an_unreachable_address_is_a_transient_error(
        self, unreachable: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Target]
    ) -> None:
        target = build(unreachable)
        with pytest.raises(TransientError):
            target.check([table()])
        with pytest.raises(TransientError):
            target.open([table()], FIRST_EPOCH)
        target.close()

    def test_each_missing_or_unknown_option_is_named(self, config: Mapping[str, Any]) -> None:
        _, problems = destination({**config, "table": "contract", "no_such_option": 1})
        assert [p.path for p in problems] == [("target", "no_such_option")]
        connector = _destination(config).connector
        for name, field in connector.Options.model_fields.items():
            if field.is_required():
                rest = {option: value for option, value in config.items() if option != name}
                assert [p.path for p in destination({**rest, "table": "contract"})[1]] == [("target", name)]

    def test_closing_leaves_no_thread_and_no_socket(
        self, build: Callable[[], Target], unreachable: Mapping[str, Any]
    ) -> None:
        threads, sockets = threading.active_count(), _sockets()
        target, lost = build(), _built(unreachable)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        with pytest.raises(TransientError):
            lost.open([table()], FIRST_EPOCH)
        for closing in (target, lost, target, lost, _built(unreachable)):
            closing.close()
        assert (threading.active_count(), _sockets()) == (threads, sockets)

    # targets with transactions

    def test_entries_commit_with_the_rows(self, opened: Target, build: Callable[[], Target], stored: Stored) -> None:
        checkpoints = _transactional(opened).checkpoints
        checkpoints.claim(_owner("first"))
        saves = [Save("shard", "s", 0, "{}"), Save("pulse", "", None, "{}")]
        opened.write(batch(put({"pk": "a"}, 1), saves=saves))
        found = {(e.kind, e.id): e.revision for e in _transactional(build()).checkpoints.read().entries}
        assert found == {("owner", ""): 1, ("shard", "s"): 1, ("pulse", ""): 1}
        assert set(stored(table())) == {("a",)}

    def test_a_rejection_moves_no_entry(self, opened: Target) -> None:
        checkpoints = _transactional(opened).checkpoints
        checkpoints.claim(_owner("first"))
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        opened.write(batch(poor, saves=[Save("shard", "s", 0, "{}")]))
        assert [e.kind for e in checkpoints.read().entries] == ["owner"]

    def test_a_refused_save_stores_nothing(self, opened: Target, stored: Stored) -> None:
        _transactional(opened).checkpoints.claim(_owner("first"))
        with pytest.raises(Fenced):
            opened.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 7, "{}")]))
        assert stored(table()) == {}

    def test_a_later_claim_fences_the_earlier_run(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        _transactional(opened).checkpoints.claim(_owner("first"))
        opened.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "{}")]))
        later = build()
        later.open([table()], FIRST_EPOCH)
        claimed = _transactional(later).checkpoints.claim(_owner("second"))
        assert [(e.kind, e.revision) for e in claimed.entries] == [("owner", 2), ("shard", 1)]
        assert claimed.counts == {"shard:contract": Counts(read=1, applied=1)}
        for fenced in (batch(put({"pk": "b"}, 2)), batch(remove("a", 2)), Batch()):
            with pytest.raises(Fenced):
                opened.write(fenced)
        with pytest.raises(Fenced):
            opened.sweep(table(), at(9), [])
        with pytest.raises(Fenced):
            _transactional(opened).checkpoints.save([Save("pulse", "", None, "{}")])
        assert set(stored(table())) == {("a",)}

    def test_counts_always_add_up(self, opened: Target) -> None:
        checkpoints = _transactional(opened).checkpoints
        checkpoints.claim(_owner("first"))
        opened.write(batch(put({"pk": "a"}, 5, weight=2), remove("b", 5)))
        opened.write(batch(put({"pk": "a"}, 4, weight=4), put({"pk": "c"}, 4), remove("a", 5, table="contract")))
        parked = Part("shard:contract", (), Counts(read=3, dropped=2, parked=1))
        opened.write(Batch([parked]))
        (counts,) = checkpoints.read().counts.values()
        assert counts == Counts(read=12, applied=4, stale=5, dropped=2, parked=1)


def _destination(config: Mapping[str, Any]) -> Any:
    found, problems = destination({**config, "table": "contract"})
    assert found is not None, problems
    return found


def _built(config: Mapping[str, Any]) -> Target:
    return cast(Target, _destination(config).build("contract"))


def _transactional(target: Target) -> Transactional:
    if not isinstance(target, Transactional):
        pytest.skip("this target has no transactions")
    return target


def _owner(run: str) -> Owner:
    return Owner(run, "host", 1, 0.0)


def _in_epoch(pk: str, ordinal: int) -> Upsert:
    return Upsert("contract", (pk,), Item(image({"pk": pk})), at(ordinal, FIRST_EPOCH + 1), (pk,))


def _at_once(start: threading.Barrier, target: Target, given: Batch) -> Outcome:
    start.wait(20)  # not for ever: the other one may have failed
    return target.write(given)


def _exhaust(step: Callable[[], int]) -> int:
    total = 0
    while (done := step()) > 0:
        total += done
    return total


def _sockets() -> int:
    """Open sockets of this process, where the system tells."""
    if not os.path.isdir("/proc/self/fd"):
        return 0
    return sum(_is_socket(fd) for fd in os.listdir("/proc/self/fd"))


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except FileNotFoundError:
        return False


def _replay(target: Target, name: str, chance: random.Random) -> dict[DocumentId, Any]:
    """Write a random history in batches, starting over from earlier places; what a dict makes of it."""
    history = [_change(name, ordinal, chance) for ordinal in range(1, 80)]
    reached = 0
    while reached < len(history):
        start = chance.randint(max(0, reached - 20), reached)
        reached = chance.randint(start, min(start + 25, len(history)))
        cuts = sorted({start, reached, *(chance.randint(start, reached) for _ in range(3))})
        for first, last in pairwise(cuts):
            target.write(batch(*{w.id: w for w in history[first:last]}.values(), tombstones=chance.random() < 0.5))
    wanted = {w.id: w for w in history}
    return {id: as_json(dict(w.body)) for id, w in wanted.items() if isinstance(w, Upsert)}


def _change(name: str, ordinal: int, chance: random.Random) -> Write:
    pk = chance.choice("abcdefg")
    if chance.random() < 0.3:
        return remove(pk, ordinal, table=name)
    return put({"pk": pk, "n": ordinal}, ordinal, table=name)
