"""How events are sent, and what each response of a receiver means."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook as Verifier

from connectors.webhook.breaker import CLOSED, LONGEST_PAUSE, LONGEST_WISH, PAUSE, THRESHOLD
from connectors.webhook.client import Client, ResponseLost
from connectors.webhook.options import WebhookOptions
from connectors.webhook.target import Webhook
from replicator.batch import Batch, Delete, Outcome, Part, Upsert
from replicator.config.target import destination
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, TransientError, Unfinished
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Denied, Table
from replicator.target.in_doubt import TRUSTED
from replicator.testing.contract.kit import at, batch, put, remove, table
from replicator.version import FIRST_EPOCH
from tests.connectors.webhook.receiver_kit import SECRET, running
from tests.connectors.webhook.scripted import LOST, Answer, Request, Scripted, always, serving, willing

OLD_SECRET = "whsec_" + "b2xk" * 8
SHOWN = "http://127.0.0.1"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with serving() as scripted:
        yield scripted


@pytest.fixture
def receiver(server: Scripted) -> Scripted:
    server.requests.clear()
    server.answer = willing
    return server


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Held:
    """An answer that comes when the test lets it."""

    def __init__(self, then: Callable[[Request], Answer]) -> None:
        self.may_come, self.then = threading.Event(), then

    def __call__(self, request: Request) -> Answer:
        assert self.may_come.wait(60)
        return self.then(request)


@dataclass
class Made:
    target: Webhook
    clock: Clock = field(default_factory=Clock)


Make = Callable[..., Made]


@pytest.fixture
def make(receiver: Scripted) -> Iterator[Make]:
    made: list[Webhook] = []

    def another(*, opened: bool = True, **given: Any) -> Made:
        clock = Clock()
        options = WebhookOptions(**{"url": receiver.url, "secret": SECRET, "timeout": 1, **given})
        target = Webhook(options, "contract", Client(options, clock, clock), clock)
        made.append(target)
        if opened:
            target.open([table()], FIRST_EPOCH)
            receiver.requests.clear()
        return Made(target, clock)

    yield another
    for target in made:
        target.close()


def eight() -> Batch:
    return batch(*(put({"pk": pk}, 1) for pk in "abcdefgh"))


# what is sent


def test_an_event_has_everything_that_a_receiver_needs(make: Make, receiver: Scripted) -> None:
    made = make(opened=False)
    keys = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "N")))
    made.target.open([Table("orders", keys)], FIRST_EPOCH)
    scanned = Upsert("orders", ("é", "1.50"), {"total": 3}, at(0), ("é", "1.50"))
    gone = Delete("orders", ("b", "2"), at(7), ("b", "2"), created=1_799_999_999.0)
    made.target.write(Batch([Part("segment:0", [scanned]), Part("shard:s", [gone])], tombstones=True))
    (sent,) = receiver.changes
    assert sent.message == {
        "type": "replicator.changes",
        "timestamp": "2027-01-15T08:00:00.000Z",
        "data": {
            "pipeline": "contract",
            "tombstones": True,
            "replaces_same": False,
            "events": [
                {
                    "operation": "upsert",
                    "kind": "snapshot",
                    "table": "orders",
                    "id": ["é", "1.50"],
                    "key": {"pk": "é", "sk": 1.5},
                    "version": "0288230376151711744",
                    "document": {"total": 3},
                },
                {
                    "operation": "delete",
                    "kind": "change",
                    "table": "orders",
                    "id": ["b", "2"],
                    "key": {"pk": "b", "sk": 2},
                    "version": "0288230376151711751",
                    "deleted_at": "2027-01-15T07:59:59.000Z",
                },
            ],
        },
    }


def test_versions_compare_as_texts_also_where_numbers_have_53_bits(make: Make, receiver: Scripted) -> None:
    """As in JavaScript: successive versions must not become equal, nor a sweep's limit lower than it is."""
    made = make()
    ordinals = (0, 1, 2, 9, 10, 1 << 40)
    for ordinal in ordinals:
        made.target.write(batch(put({"pk": "a"}, ordinal)))
    made.target.sweep(table(), at(0, 4000), [])  # the first digit of 19 is smaller than that of 18
    *events, sweep = (json.loads(request.body, parse_int=float)["data"] for request in receiver.requests)
    found = [event["version"] for data in events for event in data["events"]]
    assert found == sorted(set(found))
    assert [int(version) for version in found] == [at(ordinal) for ordinal in ordinals]
    assert sweep["below"] > max(found)


def test_while_secrets_are_rotated_receivers_with_either_one_verify(make: Make, receiver: Scripted) -> None:
    made = make(secret=[SECRET, OLD_SECRET], headers={"Authorization": "Bearer TOKEN"})
    made.clock.now = datetime.now(UTC).timestamp()
    made.target.write(eight())
    (sent,) = receiver.changes
    for secret in (SECRET, OLD_SECRET):
        Verifier(secret).verify(sent.body, dict(sent.headers))
    assert sent.headers["authorization"] == "Bearer TOKEN"
    assert sent.headers["webhook-timestamp"] == str(int(made.clock.now))
    assert sent.path == "/hooks/TOKEN"


def test_messages_are_bounded_and_in_order(make: Make, receiver: Scripted) -> None:
    made = make(max_events=3, max_bytes=1024)
    large = put({"pk": "large", "text": "x" * 500}, 1)
    assert made.target.write(batch(*(put({"pk": pk}, 1) for pk in "abcd"), large, put({"pk": "z"}, 1))) == Outcome()
    assert [sent.keys for sent in receiver.changes] == [["a", "b", "c"], ["d"], ["large"], ["z"]]
    assert max(len(sent.body) for sent in receiver.changes) <= 1024


def test_an_event_that_no_request_may_hold_is_rejected_before_anything_is_sent(make: Make, receiver: Scripted) -> None:
    made = make(max_bytes=1024)
    large = put({"pk": "large", "text": "x" * 1024}, 1)
    (rejection,) = made.target.write(batch(put({"pk": "a"}, 1), large)).rejections
    assert (rejection.write, receiver.changes) == (large, [])
    assert "more than a request may have (target.max_bytes)" in rejection.reason
    assert [r.write for r in made.target.refusals([table()], [large, put({"pk": "a"}, 1)])] == [large]


# what responses mean


def test_a_rejected_event_is_found_by_halving_and_its_neighbors_are_accepted(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = lambda request: Answer(422 if "f" in request.keys else 200)
    rejections = made.target.write(eight()).rejections
    assert [(r.write.id, r.reason) for r in rejections] == [(("f",), "the receiver rejects the event (status 422)")]
    accepted = [key for sent in receiver.changes if "f" not in sent.keys for key in sent.keys]
    assert accepted == ["a", "b", "c", "d", "e", "g", "h"]
    assert len(receiver.changes) <= 1 + 2 * 3 + 1


def test_a_message_that_is_too_large_is_halved_and_later_ones_are_small(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = lambda request: Answer(413 if len(request.body) > 600 else 200)
    assert made.target.write(eight()) == Outcome()
    assert [key for sent in receiver.changes if len(sent.body) <= 600 for key in sent.keys] == list("abcdefgh")
    receiver.requests.clear()
    made.target.write(eight())
    assert max(len(sent.body) for sent in receiver.changes) <= 600


def test_an_event_that_is_too_large_alone_is_rejected(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = lambda request: Answer(413 if request.keys else 200)
    (rejection,) = made.target.write(batch(put({"pk": "a"}, 1))).rejections
    assert rejection.reason == "the receiver says that the event alone is too large (status 413)"


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 408, 429, 500, 503])
def test_a_response_about_the_endpoint_parks_nothing_and_is_waited_for(
    make: Make, receiver: Scripted, status: int
) -> None:
    made = make()
    receiver.answer = always(status)
    with pytest.raises(TransientError, match=f"status {status}"):
        made.target.write(given := eight())
    receiver.answer = willing
    assert made.target.write(given) == Outcome()


def test_a_receiver_that_rejects_everything_parks_nothing(make: Make, receiver: Scripted) -> None:
    """As many do with signatures that they cannot verify."""
    made = make()
    receiver.answer = always(400)
    with pytest.raises(TransientError, match=r"rejects everything .* the same secret"):
        made.target.write(given := eight())
    receiver.answer = willing
    assert made.target.write(given) == Outcome()


@pytest.mark.parametrize(("status", "in_doubt"), [(408, True), (504, True), (425, False), (429, False), (403, False)])
def test_a_request_that_a_gateway_may_have_forwarded_is_in_doubt(
    make: Make, receiver: Scripted, status: int, in_doubt: bool
) -> None:
    made = make()
    receiver.answer = always(status)
    with pytest.raises(TransientError):
        made.target.write(eight())
    assert bool(made.target.in_doubt) == in_doubt


def strict(request: Request, *refused: str) -> Answer:
    """Of a receiver that validates: no message without events, and none with certain ids."""
    if request.message["type"] != "replicator.changes":
        return willing(request)
    return Answer(422 if not request.keys or set(request.keys) & set(refused) else 200)


@pytest.mark.parametrize("refused", ["a", "e", "h", "ab", "bh", "fgh"])
def test_a_rejected_event_is_parked_also_by_a_receiver_that_rejects_messages_without_events(
    make: Make, receiver: Scripted, refused: str
) -> None:
    made = make()
    receiver.answer = lambda request: strict(request, *refused)
    assert [r.write.id for r in made.target.write(eight()).rejections] == [(pk,) for pk in refused]
    accepted = {key for sent in receiver.changes if not set(sent.keys) & set(refused) for key in sent.keys}
    assert accepted == set("abcdefgh") - set(refused)


@pytest.mark.parametrize("refused", ["abc", "abcdefgh"])
def test_until_some_event_is_accepted_a_receiver_that_rejects_all_messages_parks_nothing(
    make: Make, receiver: Scripted, refused: str
) -> None:
    made = make()
    receiver.answer = lambda request: strict(request, *refused)
    for _ in range(2):
        with pytest.raises(TransientError, match="does it accept an empty list of events"):
            made.target.write(given := eight())
    assert len(receiver.changes) < 20
    receiver.answer = willing
    assert made.target.write(given) == Outcome()
    assert {key for sent in receiver.changes[-8:] for key in sent.keys} == set("abcdefgh")


def test_a_secret_that_changes_within_a_batch_parks_nothing(make: Make, receiver: Scripted) -> None:
    """What was accepted a moment ago is rejected, too."""
    made = make(max_events=4)
    answers = iter([200])
    receiver.answer = lambda _: Answer(next(answers, 400))
    with pytest.raises(TransientError, match="rejects everything"):
        made.target.write(given := eight())
    receiver.answer = willing
    assert made.target.write(given) == Outcome()
    assert [key for sent in receiver.changes[-3:] for key in sent.keys] == list("efgh")


def test_a_lost_response_to_an_accepted_message_sent_again_is_in_doubt(make: Make, receiver: Scripted) -> None:
    made = make(max_events=4)
    accepted: list[str] = []

    def answer(request: Request) -> Answer:
        if request.id in accepted:
            return LOST
        accepted.extend([request.id] if "a" in request.keys else [])
        return Answer(200 if "a" in request.keys else 422)

    receiver.answer = answer
    with pytest.raises(ResponseLost):
        made.target.write(given := eight())
    assert made.target.in_doubt
    receiver.answer = lambda request: strict(request, "e")
    assert [r.write.id for r in made.target.write(given).rejections] == [("e",)]


@pytest.mark.parametrize("kind", ["sweep", "purge"])
@pytest.mark.parametrize("status", [400, 412, 422])
def test_a_sweep_or_purge_that_is_rejected_during_a_run_is_waited_for(
    make: Make, receiver: Scripted, kind: str, status: int
) -> None:
    made = make()
    receiver.answer = always(status)
    with pytest.raises(TransientError, match=rf"rejects a replicator\.{kind} message \(status {status}\)"):
        getattr(made.target, kind)(table(), at(5), [("a",)])
    receiver.answer = willing
    assert getattr(made.target, kind)(table(), at(5), [("a",)]) == 0


@pytest.mark.parametrize("status", [400, 412, 422])
def test_a_begin_or_state_that_is_rejected_during_a_run_is_waited_for(
    make: Make, receiver: Scripted, status: int
) -> None:
    """As when its secret is being replaced just as a resync begins."""
    made = make()
    receiver.answer = always(status)
    with pytest.raises(TransientError, match=rf"rejects a replicator\.begin message \(status {status}\)"):
        made.target.open([table()], FIRST_EPOCH + 1)
    with pytest.raises(TransientError, match=rf"rejects a replicator\.state message \(status {status}\)"):
        made.target.epoch([table()])
    receiver.answer = always(409)
    with pytest.raises(ConfigError, match="its tables have a later epoch"):
        made.target.open([table()], FIRST_EPOCH + 1)
    receiver.answer = willing
    made.target.open([table()], FIRST_EPOCH + 1)
    assert made.target.epoch([table()]) is None


def test_a_begin_that_is_rejected_ends_a_run_that_has_none_yet(make: Make, receiver: Scripted) -> None:
    """Though the receiver was asked for its state, and answered."""
    made = make(opened=False)
    assert made.target.epoch([table()]) is None
    receiver.answer = always(400)
    with pytest.raises(ConfigError, match=r"rejects a replicator\.begin message"):
        made.target.open([table()], FIRST_EPOCH)


def test_a_sweep_that_is_too_large_is_waited_for_and_says_what_makes_it_large(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = always(413)
    with pytest.raises(TransientError, match=r"names all parked items \([0-9,]+ bytes\): retry or discard them"):
        made.target.sweep(table(), at(5), [("a" * 1500,) for _ in range(1000)])


def test_a_receiver_that_is_gone_for_good_ends_the_run(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = always(410)
    with pytest.raises(ConfigError, match="gone permanently"):
        made.target.write(eight())


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (always(302, location="https://login.example/TOKEN"), ConfigError, r"redirects to https://login\.example \("),
        (always(307, location="/TOKEN"), ConfigError, r"redirects \(status 307\). Redirects are never followed"),
        (always(401), NotAuthenticated, r"Compare target\.secret and target\.headers"),
        (always(403), NotPermitted, "does not permit"),
        (always(404), ConfigError, r"takes no webhooks at the path of target\.url \(status 404\)"),
        (always(402), ConfigError, r"refuses all requests \(status 402\); its operator can say why"),
        (always(400), ConfigError, r"rejects a replicator\.begin message \(status 400\)"),
        (always(409), ConfigError, "its tables have a later epoch, or belong to another pipeline"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_until_a_receiver_has_accepted_something_what_it_refuses_ends_the_run(
    make: Make, receiver: Scripted, answer: Callable[[Request], Answer], error: type[Exception], text: str
) -> None:
    made = make(opened=False)
    receiver.answer = answer
    with pytest.raises(error, match=text) as raised:
        made.target.open([table()], FIRST_EPOCH)
    assert len(receiver.requests) == 1
    assert "TOKEN" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_message_whose_response_was_lost_is_sent_again_as_it_was(make: Make, receiver: Scripted) -> None:
    """With the same id, so that the receiver can recognize it; deletes leave tombstones from then on."""
    made = make(max_events=4)
    receiver.answer = lambda request: LOST if "e" in request.keys else willing(request)
    with pytest.raises(ResponseLost, match="the connection was lost"):
        made.target.write(given := eight())
    assert made.target.in_doubt
    receiver.answer = willing
    assert made.target.write(given) == Outcome()
    first, lost, again = receiver.changes
    assert (lost.id, lost.body) == (again.id, again.body)
    assert first.id != lost.id
    made.target.write(batch(remove("a", 2)))
    assert receiver.changes[-1].message["data"]["tombstones"]


def test_a_response_that_takes_long_lets_the_run_save_a_heartbeat_and_each_message_is_sent_once(
    make: Make, receiver: Scripted
) -> None:
    made = make(max_events=4, timeout=30)
    receiver.answer = held = Held(lambda request: strict(request, "c"))
    made.target._background.patience = 0.0
    given, calls = eight(), 0
    for _ in range(3):
        with pytest.raises(Unfinished, match="the wait for a response of http://127"):
            made.target.write(given)
    held.may_come.set()
    made.target._background.patience = 0.01
    while calls < 1000:
        calls += 1
        try:
            outcome = made.target.write(given)
            break
        except Unfinished:
            continue
    assert [r.write.id for r in outcome.rejections] == [("c",)]
    ids = [sent.id for sent in receiver.changes]
    assert len(ids) == len(set(ids)) + 1, "the accepted one again, which proves that the receiver rejects an event"


@pytest.mark.parametrize("then", [always(200), always(500)])
def test_a_response_to_an_abandoned_batch_is_waited_for_and_in_doubt_if_it_is_lost(
    make: Make, receiver: Scripted, then: Callable[[Request], Answer]
) -> None:
    made = make(timeout=30)
    receiver.answer = held = Held(lambda request: then(request) if "a" in request.keys else willing(request))
    made.target._background.patience = 0.0
    with pytest.raises(Unfinished):
        made.target.write(batch(put({"pk": "a"}, 1)))
    threading.Timer(0.0, held.may_come.set).start()
    made.target._background.patience = None
    assert made.target.write(batch(put({"pk": "b"}, 1))) == Outcome()
    assert [sent.keys for sent in receiver.changes] == [["a"], ["b"]]
    assert bool(made.target.in_doubt) == (then(receiver.changes[0]).status == 500)


def test_a_batch_that_takes_long_is_continued_once_ownership_is_confirmed(make: Make, receiver: Scripted) -> None:
    made = make(max_events=4)

    def slow(request: Request) -> Answer:
        made.clock.now += TRUSTED + 1
        return willing(request)

    receiver.answer = slow
    with pytest.raises(Unfinished):
        made.target.write(given := eight())
    assert made.target.write(given) == Outcome()
    assert [sent.keys for sent in receiver.changes] == [list("abcd"), list("efgh")]


def test_what_the_receiver_had_already_is_counted_by_source(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = lambda _: Answer(body=b'{"superseded": [0, 2, 2, 3, 99, "x"]}')
    parts = [Part("shard:1", [put({"pk": "a"}, 1, weight=3), put({"pk": "b"}, 1)]), Part("shard:2", [remove("c", 1)])]
    parts.append(Part("shard:3", [remove("d", 1, weight=0)]))
    assert made.target.write(Batch(parts)).superseded == {"shard:1": 3, "shard:2": 1}


@pytest.mark.parametrize("body", [b"", b"ok", b"[]", b'{"superseded": true, "removed": true, "marked": []}', b"\xff"])
def test_a_receiver_need_not_say_anything(make: Make, receiver: Scripted, body: bytes) -> None:
    made = make(state_requests=False)
    receiver.answer = lambda _: Answer(202, body=body)
    assert made.target.write(eight()) == Outcome()
    assert made.target.sweep(table(), at(9), []) == made.target.purge(table(), at(9)) == 0


@pytest.mark.parametrize("places", [[{"id": "a"}], [["a"]], [True, 1.0, "0", None, -1, 8]])
def test_places_that_are_none_are_not_counted(make: Make, receiver: Scripted, places: object) -> None:
    made = make()
    receiver.answer = lambda _: Answer(body=json.dumps({"superseded": places}).encode())
    assert made.target.write(eight()) == Outcome()


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip"])
def test_an_accepted_message_is_accepted_even_if_the_body_cannot_be_read(
    make: Make, receiver: Scripted, encoding: str
) -> None:
    made = make()
    receiver.answer = lambda _: Answer(headers={"content-encoding": encoding}, body=b"damaged")
    assert made.target.write(eight()) == Outcome()
    assert len(receiver.requests) == 1


def test_a_compressed_body_is_read(make: Make, receiver: Scripted) -> None:
    made = make()
    body = gzip.compress(b'{"superseded": [0, 7]}')
    receiver.answer = lambda _: Answer(headers={"content-encoding": "gzip"}, body=body)
    assert made.target.write(eight()).superseded == {"shard:contract": 2}


def test_only_a_short_body_is_read_and_the_status_alone_says_that_a_message_is_accepted(
    make: Make, receiver: Scripted
) -> None:
    """A compressed body of 130 KB may hold 44 million objects."""
    made = make()
    large = b'{"superseded": [' + b"0," * (1 << 19) + b"0]}"
    compressed = gzip.compress(b'{"superseded": [0]' + b" " * (1 << 27) + b"}")
    for answer in (Answer(body=large), Answer(headers={"content-encoding": "gzip"}, body=compressed)):
        receiver.answer = lambda _, answer=answer: answer  # type: ignore[misc]
        assert made.target.write(eight()) == Outcome()


# when nothing is sent


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "date"])
def test_a_receivers_retry_after_is_honored(make: Make, receiver: Scripted, date: bool) -> None:
    made = make()
    later = datetime.fromtimestamp(made.clock.now + 120, UTC)
    receiver.answer = always(503, retry_after=format_datetime(later, usegmt=True) if date else "120")
    with pytest.raises(TransientError, match="status 503"):
        made.target.write(given := eight())
    receiver.answer = willing
    made.clock.now += 119
    with pytest.raises(TransientError, match=r"gets no request for 1 s more, after 1 failure.*status 503"):
        made.target.write(given)
    assert len(receiver.changes) == 1
    made.clock.now += 2
    assert made.target.write(given) == Outcome()


def test_after_some_failures_in_a_row_a_receiver_is_left_alone(make: Make, receiver: Scripted) -> None:
    made = make()
    receiver.answer = always(500)
    given = eight()
    for _ in range(THRESHOLD + 3):
        with pytest.raises(TransientError):
            made.target.write(given)
    assert len(receiver.changes) == THRESHOLD
    made.clock.now += PAUSE + 1
    receiver.answer = willing
    assert made.target.write(given) == Outcome()


def test_a_circuit_opens_for_longer_until_a_probe_succeeds() -> None:
    breaker = CLOSED
    pauses = []
    for _ in range(THRESHOLD + 4):
        breaker = breaker.failed(0.0)
        pauses.append(breaker.left(0.0))
    assert pauses == [0.0] * (THRESHOLD - 1) + [PAUSE, 2 * PAUSE, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert breaker.left(LONGEST_PAUSE) == 0.0
    assert CLOSED.failed(0.0, retry_after=1e9).left(0.0) == LONGEST_WISH


# the documented receiver


@pytest.mark.parametrize(("length", "status"), [("-1", 411), ("", 411), ("x", 411), ("33554433", 413)])
def test_the_documented_receiver_reads_no_body_without_a_length_that_it_accepts(
    tmp_path: Path, length: str, status: int
) -> None:
    with running(tmp_path) as documented, socket.create_connection(("127.0.0.1", documented.port), 30) as client:
        client.sendall(b"POST /in HTTP/1.1\r\nhost: a\r\n" + (f"content-length: {length}\r\n\r\n".encode()))
        assert client.recv(1 << 16).split()[1] == str(status).encode()


# before a run


def test_an_epoch_that_the_receiver_does_not_tell_is_an_error_with_the_way_out(make: Make, receiver: Scripted) -> None:
    made = make(opened=False)
    for body in (b"", b"ok", b'{"epochs": {}}', b'{"epochs": {"contract": "1024"}}', b'{"epochs": {"contract": true}}'):
        receiver.answer = lambda _, body=body: Answer(body=body)  # type: ignore[misc]
        (problem,) = made.target.check([table()])
        assert "set target.state_requests: false" in problem


def test_a_receiver_that_is_not_asked_gets_no_request_from_check(make: Make, receiver: Scripted) -> None:
    made = make(opened=False, state_requests=False)
    assert made.target.check([table()]) == []
    assert made.target.epoch([table()]) == 0
    assert len(made.target.plan([table()])) == 1
    assert receiver.requests == []
    assert "lost checkpoints" in made.target.reduced_guarantee


def test_check_names_what_a_permission_would_solve(make: Make, receiver: Scripted) -> None:
    receiver.answer = always(401)
    (problem,) = make(opened=False).target.check([table()])
    assert isinstance(problem, Denied)


def test_a_host_that_does_not_exist_or_does_not_speak_tls_is_named(make: Make, receiver: Scripted) -> None:
    tls = make(opened=False, url=receiver.url.replace("http:", "https:"))
    for problems in (
        tls.target.check([table()]),
        make(opened=False, url=receiver.url.replace("http:", "https:"), state_requests=False).target.check([table()]),
    ):
        assert "does not speak TLS" in problems[0]
    with pytest.raises(TransientError, match="cannot be reached"):
        make(opened=False, url="https://replicator.invalid/in").target.check([table()])


def test_another_address_is_another_receiver_and_only_its_host_is_shown(make: Make, receiver: Scripted) -> None:
    one, other = (make(opened=False, url=f"{receiver.url}{more}").target.identities([table()]) for more in ("", "2"))
    assert one["contract"].at != other["contract"].at
    assert "TOKEN" not in repr((one, other))


BASE = {"type": "webhook", "url": "https://hooks.example/in", "secret": SECRET, "table": "orders"}


@pytest.mark.parametrize(
    ("given", "path", "text"),
    [
        ({"url": "http://hooks.example/in"}, ("url",), "is plain http to another host"),
        ({"url": "ftp://hooks.example"}, ("url",), "must have the form https://host/path"),
        ({"url": "https://hooks.example:99999/in"}, ("url",), "must have the form https://host/path"),
        ({"url": "https://hooks.example:abc/in"}, ("url",), "must have the form https://host/path"),
        ({"url": "https://hooks..example/in"}, ("url",), "must have the form https://host/path"),
        ({"url": "https://hooks exa.mple/in"}, ("url",), "must have the form https://host/path"),
        ({"url": "https://hooks\u2028.example/in"}, ("url",), "must have the form https://host/path"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, ("headers",), "has a header twice"),
        ({"headers": {"Content-Encoding": "gzip"}}, ("headers", "Content-Encoding"), "is set by replicator itself"),
        ({"headers": {"TE": "trailers"}}, ("headers", "TE"), "is set by replicator itself"),
        ({"url": "https://me:pw@hooks.example"}, ("url",), "contains a user name; put a login under headers"),
        ({"secret": "hunter2"}, ("secret",), "must be whsec_ followed by 24 to 64 random bytes in base64"),
        ({"secret": "whsec_c2hvcnQ="}, ("secret",), "must be whsec_ followed by"),
        ({"secret": []}, ("secret",), "needs at least one secret"),
        ({"headers": {"Webhook-Id": "1"}}, ("headers", "Webhook-Id"), "is set by replicator itself"),
        ({"headers": {"a b": "1"}}, ("headers", "a b"), "must be the name of an HTTP header"),
        ({"headers": {"X": "a\nb"}}, ("headers", "X"), "must be printable ASCII"),
        ({"ca_certs": "none.pem"}, ("ca_certs",), "must be a file of certificates, and there is none at none.pem"),
        ({"ca_certs": __file__}, ("ca_certs",), "must be a file of certificates (PEM), and none can be read from"),
        ({"table": None, "tables": {"a": {"deletes": "mark"}}}, ("tables", "a", "deletes"), "mark is supported by"),
    ],
    ids=str,
)
def test_a_wrong_option_is_named_and_no_secret_is_shown(given: Any, path: Any, text: str) -> None:
    config = {name: value for name, value in {**BASE, **given}.items() if value is not None}
    _, (problem,) = destination(config)
    assert problem.path == ("target", *path)
    assert text in problem.text
    assert not any(secret in problem.text for secret in ("hunter2", "me:pw", "c2hvcnQ"))


def test_http_to_another_host_can_be_allowed() -> None:
    assert destination({**BASE, "url": "http://hooks.example/in", "insecure": True})[1] == []


def test_options_show_no_secret() -> None:
    found, _ = destination({**BASE, "headers": {"Authorization": "Bearer hunter2"}})
    assert found is not None
    assert not any(secret in repr(found.options) for secret in (SECRET, "hunter2", "/in"))
    assert json.loads(json.dumps(found.options.server)) == "https://hooks.example"  # type: ignore[attr-defined]
