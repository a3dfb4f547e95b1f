"""What a receiver accepted of a batch is not posted again because it rejected another event of it; order stays."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from connectors.webhook.client import Response, ResponseLost
from connectors.webhook.messages import Message
from connectors.webhook.options import WebhookOptions
from connectors.webhook.target import Webhook
from replicator.batch import Batch, Delete, Outcome, Part, Write
from replicator.errors import TransientError
from replicator.testing.contract.kit import batch, put, remove, table
from replicator.version import FIRST_EPOCH
from tests.connectors.webhook.receiver_kit import SECRET

Rejects = Callable[[dict[str, Any]], bool]


@dataclass
class Receiver:
    """Accepts all events but those that it ``rejects``. ``compares``: it applies newer versions only, and forgets
    deletes without tombstones, as it may; otherwise it applies what comes. ``loses``: whether a response is lost.
    """

    rejects: Rejects = lambda event: False
    compares: bool = True
    accepts_none: bool = True
    loses: Callable[[], bool] = lambda: False
    documents: dict[str, tuple[int, Any]] = field(default_factory=dict)
    accepted: list[tuple[str, str]] = field(default_factory=list)  # key and version
    server = "http://receiver"

    def send(self, message: Message) -> Response:
        data = json.loads(message.body)["data"]
        events = data.get("events")
        if events is None:
            return Response(200)
        if any(map(self.rejects, events)) or not (events or self.accepts_none):
            return Response(422)
        had = [place for place, event in enumerate(events) if not self._apply(event, tombstones=data["tombstones"])]
        self.accepted += [(event["id"][0], event["version"]) for event in events]
        if events and self.loses():
            raise ResponseLost("lost")
        return Response(200, json.dumps({"superseded": had}).encode())

    def _apply(self, event: dict[str, Any], *, tombstones: bool) -> bool:
        (key,), version = event["id"], int(event["version"])
        if self.compares and self.documents.get(key, (-1, None))[0] >= version:
            return False
        self.documents[key] = version, event.get("document")
        if self.compares and event["operation"] == "delete" and not tombstones:
            del self.documents[key]
        return True

    def close(self) -> None:
        pass

    @property
    def live(self) -> dict[str, Any]:
        return {key: document for key, (_, document) in self.documents.items() if document is not None}


def webhook(receiver: Receiver, **options: Any) -> Webhook:
    given = WebhookOptions(**{"url": "http://127.0.0.1/in", "secret": SECRET, **options})
    target = Webhook(given, "contract", receiver)  # type: ignore[arg-type]
    target.open([table()], FIRST_EPOCH)
    return target


def rejecting(*keys: str, **more: Any) -> Receiver:
    return Receiver(lambda event: event["id"][0] in keys, **more)


def rejected(outcome: Outcome) -> list[str]:
    return [rejection.write.id[0] for rejection in outcome.rejections]


def keys(receiver: Receiver) -> str:
    return "".join(key for key, _ in receiver.accepted)


def test_what_was_accepted_is_not_posted_again_and_counts_as_applied() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(*(put({"pk": pk}, 1) for pk in "abcdef")))) == ["c"]
    receiver.accepted.clear()
    assert target.write(batch(*(put({"pk": pk}, 1) for pk in "abdefgh"))) == Outcome()
    assert keys(receiver) == "gh"
    assert target.write(batch(put({"pk": "a"}, 2))) == Outcome()


def test_a_batch_without_changes_in_between_does_not_make_it_post_them_again() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(*(put({"pk": pk}, 1) for pk in "abcd")))) == ["c"]
    assert target.write(Batch([])) == Outcome()
    receiver.accepted.clear()
    assert target.write(batch(*(put({"pk": pk}, 1) for pk in "abd"))) == Outcome()
    assert not keys(receiver)
    assert not target._accepted._versions


def test_what_the_receiver_had_before_is_counted_as_it_said_at_first() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    target.write(batch(put({"pk": "a"}, 5)))
    assert rejected(target.write(batch(put({"pk": "a"}, 3), put({"pk": "b"}, 1), put({"pk": "c"}, 1)))) == ["c"]
    outcome = target.write(Batch([Part("shard:1", [put({"pk": "a"}, 3, weight=2), put({"pk": "b"}, 1)])]))
    assert outcome.superseded == {"shard:1": 2}


@pytest.mark.parametrize("compares", [True, False])
def test_an_event_is_posted_again_once_an_older_one_of_its_document_was(compares: bool) -> None:
    """A batch that comes back may be divided. The delete left no tombstone, so the older document would be back."""
    receiver = rejecting("c", compares=compares)
    target = webhook(receiver)
    assert rejected(target.write(batch(remove("a", 7), put({"pk": "b"}, 1), put({"pk": "c"}, 1)))) == ["c"]
    assert target.write(batch(put({"pk": "a"}, 5))) == Outcome()
    assert set(receiver.live) == {"a", "b"}
    assert target.write(batch(remove("a", 7), put({"pk": "b"}, 1))) == Outcome()
    assert set(receiver.live) == {"b"}
    assert keys(receiver).count("b") == 1


@pytest.mark.parametrize("compares", [True, False])
def test_a_document_with_two_events_in_a_batch_ends_as_the_last_of_them_says(compares: bool) -> None:
    """As where the segments of a rescan overlap."""
    receiver = rejecting("c", compares=compares)
    target = webhook(receiver)
    twice = [Part("segment:0", [put({"pk": "a", "n": 5}, 5)]), Part("segment:1", [put({"pk": "a", "n": 7}, 7)])]
    assert rejected(target.write(Batch([*twice, Part("segment:2", [put({"pk": "c"}, 1)])]))) == ["c"]
    assert target.write(Batch(twice)) == Outcome()
    assert receiver.live == {"a": {"pk": "a", "n": 7}}
    assert not target._accepted._versions


def test_an_event_that_is_posted_again_is_not_counted_as_superseded_by_itself() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a"}, 7), put({"pk": "c"}, 1)))) == ["c"]
    assert target.write(batch(put({"pk": "a"}, 5))).superseded == {"shard:contract": 1}
    assert target.write(batch(put({"pk": "a"}, 7))) == Outcome()
    assert keys(receiver) == "aaa"


def test_an_event_is_posted_again_if_the_response_to_an_older_one_was_lost() -> None:
    losing = iter([False, True])
    receiver = rejecting("c", compares=False, loses=lambda: next(losing, False))
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a", "n": 7}, 7), put({"pk": "c"}, 1)))) == ["c"]
    with pytest.raises(TransientError):
        target.write(batch(put({"pk": "a", "n": 5}, 5)))
    target.write(batch(put({"pk": "a", "n": 7}, 7)))
    assert receiver.live["a"]["n"] == 7


def test_a_delete_is_posted_again_once_it_must_leave_a_tombstone() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    target.write(batch(put({"pk": "a"}, 1)))
    refused: list[Write] = [remove("a", 7), put({"pk": "b"}, 1)]
    assert rejected(target.write(batch(*refused, put({"pk": "c"}, 1)))) == ["c"]
    receiver.accepted.clear()
    assert target.write(batch(*refused, tombstones=True)) == Outcome()
    assert keys(receiver) == "a"
    assert receiver.documents["a"][1] is None


def test_another_document_of_the_same_version_is_posted() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a", "n": 1}, 1), put({"pk": "c"}, 1)))) == ["c"]
    target.write(batch(put({"pk": "a", "n": 2}, 1)))
    assert keys(receiver) == "aa"
    target.write(batch(put({"pk": "b"}, 1)))
    assert rejected(target.write(batch(put({"pk": "b"}, 2), put({"pk": "c"}, 1)))) == ["c"]
    target.write(Batch(batch(put({"pk": "b"}, 2)).parts, replaces_same=True))
    assert keys(receiver) == "aabbb"


def test_an_epoch_that_begins_remembers_nothing() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a"}, 1), put({"pk": "c"}, 1)))) == ["c"]
    target.open([table()], FIRST_EPOCH + 1)
    target.write(batch(put({"pk": "a"}, 1)))
    assert keys(receiver) == "aa"


def test_nothing_is_remembered_of_what_is_stored_or_does_not_come_again() -> None:
    receiver = rejecting("c")
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1), put({"pk": "c"}, 1)))) == ["c"]
    target.write(batch(put({"pk": "a"}, 1)))
    assert len(target._accepted._versions) == len(target._accepted._last) == 1
    target.write(batch(put({"pk": "d"}, 1)))
    assert not target._accepted._versions
    assert not target._accepted._last


@pytest.mark.parametrize("accepts_none", [True, False])
def test_an_event_is_found_to_be_rejected_though_all_its_neighbors_are_there(accepts_none: bool) -> None:
    """Also by a receiver that rejects messages without events: it is asked with one that it accepted."""
    receiver = rejecting("c", "z", accepts_none=accepts_none)
    target = webhook(receiver)
    assert rejected(target.write(batch(put({"pk": "a"}, 1), put({"pk": "c"}, 1)))) == ["c"]
    assert rejected(target.write(batch(put({"pk": "a"}, 1), put({"pk": "z"}, 1)))) == ["z"]
    assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()


def history(chance: random.Random) -> list[tuple[str, Write]]:
    """Changes of some documents, in order, with their keys."""
    changes: list[tuple[str, Write]] = []
    for version in range(1, chance.randrange(5, 40)):
        key = chance.choice("abcdefgh")
        changes.append(
            (key, remove(key, version) if chance.random() < 0.4 else put({"pk": key, "n": version}, version))
        )
    return changes


def copied(changes: Sequence[tuple[str, Write]], target: Webhook, chance: random.Random) -> set[str]:
    """As the pipeline cuts batches: the last write of each document. What it parks: the keys."""
    at, parked = 0, set[str]()
    while at < len(changes):
        size = chance.randrange(1, 12)
        last = {key: write for key, write in changes[at : at + size] if key not in parked}
        refused = rejected(delivered(target, batch(*last.values(), tombstones=chance.random() < 0.2)))
        parked.update(refused)
        at += 0 if refused else size
    return parked


@pytest.mark.parametrize("compares", [True, False])
def test_however_batches_are_cut_each_document_ends_as_its_last_event_says(compares: bool) -> None:
    for seed in range(300):
        chance = random.Random(seed)
        changes, refused = history(chance), frozenset(chance.sample("abcdefgh", 3))
        after = chance.randrange(20)
        receiver = Receiver(
            lambda event, refused=refused, after=after: (  # type: ignore[misc]
                event["id"][0] in refused and int(event["version"]) % (1 << 48) > after
            ),
            compares=compares,
            loses=lambda chance=chance: chance.random() < 0.1,  # type: ignore[misc]
        )
        parked = copied(changes, webhook(receiver, max_events=chance.randrange(1, 6)), chance)
        last = {key: write for key, write in changes if key not in parked}
        wanted = {key: write.body for key, write in last.items() if not isinstance(write, Delete)}
        assert {key: one for key, one in receiver.live.items() if key not in parked} == wanted, f"seed {seed}"


def delivered(target: Webhook, given: Batch) -> Outcome:
    while True:
        try:
            return target.write(given)
        except TransientError:
            continue


def test_each_event_is_accepted_once_if_batches_are_cut_as_before() -> None:
    receiver = rejecting(*"abcde")
    target = webhook(receiver, max_events=7)
    names = [*"abcde", *(f"x{n}" for n in range(60))]
    random.Random(1).shuffle(names)
    left = names
    while bad := rejected(target.write(batch(*(put({"pk": pk}, 1) for pk in left)))):
        left = [name for name in left if name not in bad]
    counted = Counter(receiver.accepted)
    assert {key for key, _ in counted} == set(left)
    assert sum(count > 1 for count in counted.values()) <= 7, "a message that proves that the receiver accepts others"
