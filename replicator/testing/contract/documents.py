"""One document at a time: what is stored, under which key, in which types."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from replicator.batch import Delete, Outcome, Upsert
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import OWN_IDS, Target
from replicator.testing.contract.kit import (
    HOSTILE,
    PAIR,
    RAISING,
    Contract,
    Document,
    Stored,
    as_json,
    at,
    batch,
    put,
    remove,
    table,
)
from replicator.version import FIRST_EPOCH


class Documents(Contract):
    """One document at a time: what is stored, under which key, in which types."""

    def test_stores_a_new_item(self, opened: Target, stored: Stored) -> None:
        assert opened.write(batch(put({"pk": "a", "size": 1}, 1))) == Outcome()
        assert stored(table()) == {("a",): as_json({"pk": "a", "size": 1})}

    def test_replaces_the_whole_item(self, opened: Target, stored: Stored) -> None:
        """An attribute that is missing from the new image is removed."""
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
        opened.write(batch(put(self.every_type, 1)))
        assert stored(table()) == {("types",): as_json(self.every_type)}

    def test_an_item_and_what_a_hook_makes_of_it_are_stored_alike(self, opened: Target, stored: Stored) -> None:
        body = {**self.every_type, "pk": "hook"}
        opened.write(batch(put(self.every_type, 1), Upsert("contract", ("hook",), body, at(1), ("hook",))))
        found = stored(table())
        assert {**found["hook",], "pk": "types"} == found["types",]

    def test_an_item_with_values_that_a_hook_put_in_place_is_stored_with_them(
        self, opened: Target, stored: Stored
    ) -> None:
        """``item | {...}`` in every document of a batch, with every type kept, replaced and added."""
        wanted: Document = {"text": "theirs", "added": Decimal("0.10"), "texts": {"b", "a"}, "map": {"bytes": b"\xff"}}
        items: dict[str, Document] = {"one": {**self.every_type, "pk": "one"}, "other": {"pk": "other", "text": "old"}}
        writes = [Upsert("contract", (pk,), Item(image(item)) | wanted, at(1), (pk,)) for pk, item in items.items()]
        assert opened.write(batch(*writes)) == Outcome()
        assert stored(table()) == {(pk,): as_json({**item, **wanted}) for pk, item in items.items()}

    def test_stores_items_of_any_shape(self, opened: Target, stored: Stored) -> None:
        """Ten thousand attributes, names of 255 bytes that differ in the last one, any characters, deep nesting."""
        deep: object = "deepest"
        for _ in range(15):
            deep = {"deeper": [deep]}  # with the attribute itself 31 levels; DynamoDB stores 32
        long = {"x" * 254 + end: end for end in "ab"}
        odd = {
            name: name for name in ("a.b", "a..b", ".", '"', "'", "`", "%s", "$1", "{}", "\\", " ", "漢", "\U0001f600")
        }
        items = [{"pk": "many", **{f"a{n}": n for n in range(10_000)}}, {"pk": "odd", **long, **odd, "deep": deep}]
        assert opened.write(batch(*(put(item, 1) for item in items))) == Outcome()
        assert stored(table()) == {(str(item["pk"]),): as_json(item) for item in items}

    @pytest.mark.parametrize("raising", RAISING, ids=lambda value: type(value).__name__)
    def test_a_value_whose_own_code_raises_is_refused_alone(
        self, opened: Target, stored: Stored, raising: object
    ) -> None:
        """A hook may return any object; the target is the first to read it."""
        poor = [
            Upsert("contract", (name,), {"pk": name, "value": value}, at(1), (name,))
            for name, value in (("direct", raising), ("nested", {"a": [raising]}))
        ]
        good = Upsert("contract", ("good",), {"pk": "good", "value": None}, at(1), ("good",))
        assert [r.write for r in opened.write(batch(*poor, good)).rejections] == poor
        poor = [Upsert("contract", ("put",), Item(image({"pk": "put"})) | {"value": raising}, at(1), ("put",))]
        outcome = opened.write(batch(*poor, good))
        assert [r.write for r in outcome.rejections] == poor
        assert len(outcome.rejections[0].reason) > 10
        assert opened.write(batch(good)) == Outcome()
        assert set(stored(table())) == {("good",)}

    def test_nul_characters_stop_nothing(self, opened: Target, stored: Stored) -> None:
        """They are kept, replaced or rejected with a reason, depending on the target's options."""
        outcome = opened.write(batch(put({"pk": "a", "text": "x\0y", "map": {"n\0": "\0"}}, 1)))
        assert [r.write.id for r in outcome.rejections] in ([], [("a",)])
        assert set(stored(table())) == (set() if outcome.rejections else {("a",)})

    # keys

    def test_the_key_is_the_whole_key(self, target: Target, stored: Stored) -> None:
        """Same partition key, different sort key: two items. Numbers are equal however they are written."""
        pair = table(keys=PAIR)
        target.open([pair], FIRST_EPOCH)
        target.write(batch(*(put({"pk": "a", "sk": n}, 1, id=("a", str(n))) for n in (1, 10, -2))))
        target.write(batch(Delete("contract", ("a", "10"), at(2), ("a", "10"))))
        assert set(stored(pair)) == {("a", "1"), ("a", "-2")}

    def test_key_attributes_may_have_any_name(self, target: Target, stored: Stored) -> None:
        """Quotes, backslashes, placeholder look-alikes: names are escaped in the target's query language."""
        for number, (one, other) in enumerate(HOSTILE):
            named = table(f"named{number}", KeySchema((KeyAttribute(one, "S"), KeyAttribute(other, "N"))))
            target.open([named], FIRST_EPOCH)
            items = [{one: pk, other: n, f"{one}{other}": {other: one}} for n, pk in enumerate("abcd")]
            writes = [put(i, 1, id=(str(i[one]), str(i[other])), table=named.name) for i in items]
            writes[1] = msgspec.structs.replace(writes[1], body=items[1])  # as a hook gives it
            assert target.write(batch(*writes)) == Outcome()
            gone = [Delete(named.name, writes[n].id, at(2), writes[n].id) for n in (2, 3)]
            target.write(batch(gone[0]))
            target.write(batch(gone[1], tombstones=True))
            assert target.write(batch(writes[3], tombstones=True)).superseded == {"shard:contract": 1}
            assert stored(named) == {writes[n].id: as_json(items[n]) for n in (0, 1)}
            while target.sweep(named, at(2), [writes[0].id]):
                pass
            while target.purge(named, at(3)):
                pass
            assert set(stored(named)) == {writes[0].id}

    def test_keys_of_any_text_stay_apart(self, opened: Target, stored: Stored) -> None:
        keys = ["a", "A", "a ", "á", "a\u0301", '"', "\\", "{}", "a,b", "NULL", "\n", "%s", "$1", "漢", "\U0001f600"]
        opened.write(batch(*(put({"pk": key}, 1) for key in keys)))
        assert set(stored(table())) == {(key,) for key in keys}

    @pytest.mark.parametrize("id", ["", "x" * 3000, "x\0y"], ids=["empty", "long", "nul"])
    @pytest.mark.parametrize("tombstones", [False, True], ids=["plain", "remembered"])
    def test_what_nothing_can_be_stored_under_is_removed_all_the_same(
        self, target: Target, stored: Stored, id: str, tombstones: bool
    ) -> None:
        """A hook returned such an id, so the item was parked; its next change deletes the earlier documents."""
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        place = ('["a"]', id)
        taken = not target.write(batch(Upsert("contract", place, {"n": 1}, at(1), ("a",)))).rejections
        assert set(stored(own)) == ({place} if taken else set())
        removal = Delete("contract", place, at(2), ("a",), weight=0)
        good = Upsert("contract", ('["a"]', "1"), {"n": 2}, at(2), ("a",))
        assert target.write(batch(removal, good, tombstones=tombstones)) == Outcome()
        assert set(stored(own)) == {good.id}

    def test_documents_with_ids_of_their_own(self, target: Target, stored: Stored) -> None:
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [('["a"]', "1"), ('["a"]', "2"), ('["b"]', "1")]
        target.write(batch(*(Upsert("contract", id, {"n": n}, at(1), ("a",)) for n, id in enumerate(ids))))
        target.write(batch(Delete("contract", ids[1], at(2), ("a",))))
        assert stored(own) == {ids[0]: {"n": Decimal(0)}, ids[2]: {"n": Decimal(2)}}
