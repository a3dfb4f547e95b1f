"""What is DynamoDB's own about the target: throttling, lost answers, refusals, pristine tables."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from botocore.httpsession import where

from connectors.dynamodb import cleanup, sender
from connectors.dynamodb.encode import Request
from connectors.dynamodb.sender import Pace
from connectors.dynamodb.target import DynamoDB as Target
from replicator.aws.boto import Boto
from replicator.aws.endpoint import Endpoint
from replicator.aws.errors import AwsError
from replicator.aws.http_client import HttpClient, Route
from replicator.aws.sigv4 import Keys
from replicator.batch import Outcome, Upsert
from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError, Unfinished
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target import in_doubt
from replicator.testing.contract import at, batch, put, remove, table
from replicator.testing.contract.kit import built, exhaust
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH
from tests.certificates import certificate_in, presenting
from tests.connectors.dynamodb import dynamodb_kit as kit

Build = Callable[..., Target]


@pytest.fixture
def build(endpoint: str) -> Iterator[Build]:
    """Makes targets, opened at the first epoch; all are closed in the end."""
    made: list[Target] = []

    def opened(**options: Any) -> Target:
        one = built(kit.options(options.pop("endpoint_url", endpoint), **options))
        assert isinstance(one, Target)
        made.append(one)
        one.open([table()], FIRST_EPOCH)
        return one

    yield opened
    for target in made:
        target.close()


def found(db: DynamoDB) -> dict[str, Any]:
    return {item["pk"]: item for item in db.items("contract")}


class TestThrottling:
    def test_only_what_was_throttled_is_sent_again(self, db: DynamoDB, build: Build) -> None:
        target = build()
        writes = db.calls["PutItem"]
        db.fail("PutItem", times=15)
        assert target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(100)))) == Outcome()
        assert len(db.items("contract")) == 100
        assert db.calls["PutItem"] - writes == 115

    def test_a_table_that_throttles_every_write_is_waited_for(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run hears of it, and what is written already is not sent again."""
        monkeypatch.setattr(sender, "_PATIENCE", 0.2)
        target = build(in_flight=4)
        db.fail("PutItem", times=None, when=lambda request: request["Item"]["pk"]["S"] != "good")
        given = batch(*(put({"pk": pk}, 1) for pk in ("good", "a", "b")))
        with pytest.raises(TransientError, match="the table throttles every write"):
            target.write(given)
        db.heal()
        writes = db.calls["PutItem"]
        assert target.write(given) == Outcome()
        assert (set(found(db)), db.calls["PutItem"] - writes) == ({"good", "a", "b"}, 2)

    def test_a_transaction_that_holds_the_item_is_waited_for(self, db: DynamoDB, build: Build) -> None:
        target = build()
        db.fail("PutItem", "TransactionConflictException")
        assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()

    def test_fewer_requests_are_in_flight_while_throttled_and_more_afterwards(self) -> None:
        pace = Pace(32)
        pace.throttled(10.0)
        assert pace.wait(0, 10.0) == pytest.approx(0.05)
        assert pace.wait(22, 11.0) is None
        for _ in range(500):
            pace.answered()
        assert pace.wait(31, 11.0) == 0.0

    def test_simultaneous_throttled_requests_are_one_event(self) -> None:
        pace = Pace(32)
        for _ in range(32):
            pace.throttled(10.0)
        assert pace.wait(21, 11.0) == 0.0

    def test_pauses_grow_while_everything_is_throttled(self) -> None:
        pace = Pace(32)
        pauses = []
        for now in (10.0, 20.0, 30.0, 40.0):
            pace.throttled(now)
            pauses.append(pace.wait(0, now))
        assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4])

    def test_a_long_batch_is_sent_in_several_attempts(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that was replaced meanwhile would otherwise go on when the next one has purged its tombstones."""
        monkeypatch.setattr(sender, "is_late", kit.late_after(1))
        target, whole = build(), batch(*(put({"pk": f"{n}"}, 1) for n in range(5)))
        for sent in range(1, 5):
            with pytest.raises(Unfinished, match="the batch takes long; confirming that no other run took over"):
                target.write(whole)
            assert len(db.items("contract")) == sent
        assert target.write(whole) == Outcome()
        assert len(db.items("contract")) == 5
        assert db.calls["PutItem"] == 5 + 2  # and the notes of the new table and of the epoch

    def test_however_long_a_batch_takes_a_table_that_throttles_everything_is_named(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(in_doubt, "TRUSTED", 1.0)
        monkeypatch.setattr(sender, "_PATIENCE", 1.0)
        target = build()
        db.fail("PutItem", times=None)
        with pytest.raises(TransientError, match="the table throttles every write"):
            target.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))

    def test_write_units_are_a_budget(self) -> None:
        pace = Pace(32, write_units=10.0)
        for _ in range(5):
            assert pace.wait(0, 0.0) is not None
            pace.sent(1.0, 0.0)
        assert pace.wait(0, 0.0) == pytest.approx(0.5)
        pace.consumed(5.0)  # an index cost as much again
        assert pace.wait(0, 0.0) == pytest.approx(1.0)
        assert pace.wait(0, 2.0) == 0.0

    def test_with_write_units_responses_include_their_cost(self, db: DynamoDB, build: Build) -> None:
        asked: list[Mapping[str, Any]] = []

        def noted(request: Mapping[str, Any]) -> bool:
            asked.append(request)
            return False

        db.fail("PutItem", when=noted)
        build(write_units=1000).write(batch(put({"pk": "a"}, 1)))
        assert asked[-1]["ReturnConsumedCapacity"] == "TOTAL"


class TestLostResponses:
    def test_a_write_applied_despite_a_lost_response_counts_as_applied(
        self, db: DynamoDB, endpoint: str, build: Build
    ) -> None:
        with Proxy("127.0.0.1", kit.port(endpoint)) as proxy:
            target = build(endpoint_url=f"http://127.0.0.1:{proxy.port}")
            proxy.lose_responses()
            with pytest.raises(TransientError, match="no response to PutItem on contract"):
                target.write(batch(put({"pk": "a"}, 1)))
            assert target.in_doubt
            assert set(found(db)) == {"a"}
            proxy.heal()
            assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()

    def test_a_silent_server_is_given_up_after_the_timeout(self, endpoint: str, build: Build) -> None:
        with Proxy("127.0.0.1", kit.port(endpoint)) as proxy:
            target = build(endpoint_url=f"http://127.0.0.1:{proxy.port}", timeout=1)
            proxy.deafen()
            with pytest.raises(TransientError, match=r"no response within 1 s \(timeout\)"):
                target.write(batch(put({"pk": "a"}, 1)))
            assert target.in_doubt

    def test_a_request_that_failed_with_an_internal_error_may_have_been_applied(
        self, db: DynamoDB, build: Build
    ) -> None:
        target = build()
        db.fail("PutItem", "InternalServerError")
        with pytest.raises(TransientError, match="PutItem on contract: InternalServerError"):
            target.write(batch(put({"pk": "a"}, 1)))
        assert target.in_doubt
        assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()

    def test_a_late_write_finds_the_tombstone(self, db: DynamoDB, build: Build) -> None:
        target = build()
        target.in_doubt.begin()
        target.write(batch(remove("a", 5)))
        assert target.write(batch(put({"pk": "a"}, 4))).superseded == {"shard:contract": 1}
        assert found(db) == {"a": {"pk": "a", kit.VERSION: at(5), kit.DELETED: True}}

    def test_outside_the_in_doubt_window_a_delete_leaves_no_tombstone(self, db: DynamoDB, build: Build) -> None:
        target = build()
        target.write(batch(put({"pk": "a"}, 1)))
        target.write(batch(remove("a", 2)))
        assert found(db) == {}

    def test_a_delete_resent_inside_the_in_doubt_window_leaves_a_tombstone(self, db: DynamoDB, build: Build) -> None:
        """It was done plainly, and the answer to its neighbour was lost."""
        target = build()
        db.fail("PutItem", "InternalServerError")
        given = batch(remove("a", 2), put({"pk": "b"}, 1))
        with pytest.raises(TransientError):
            target.write(given)
        assert target.write(given) == Outcome()
        assert found(db)["a"] == {"pk": "a", kit.VERSION: at(2), kit.DELETED: True}

    def test_a_delete_of_a_returned_batch_is_applied_again_after_older_changes(
        self, db: DynamoDB, build: Build
    ) -> None:
        target = build()
        too_large = put({"pk": "b", "text": "x" * 409_590}, 3)
        assert [r.write.id for r in target.write(batch(remove("a", 2), too_large)).rejections] == [("b",)]
        assert target.write(batch(put({"pk": "a"}, 1), too_large)).rejections
        assert target.write(batch(remove("a", 2))) == Outcome()
        assert found(db) == {}

    def test_a_bug_in_the_other_thread_is_raised_and_not_waited_for(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(answer: object) -> bool:
            raise ZeroDivisionError

        target = build()
        db.fail("PutItem", times=1)
        monkeypatch.setattr(sender, "is_throttled", broken)
        with pytest.raises(ZeroDivisionError):
            target.write(batch(put({"pk": "a"}, 1)))


class TestRefusals:
    def test_an_item_that_becomes_too_large_is_refused_alone(self, db: DynamoDB, build: Build) -> None:
        """The source holds it; with the version it is over the limit."""
        target = build()
        largest = {"pk": "b", "x": "x" * (400 * 1024 - len("pk") - 1 - len("x"))}
        outcome = target.write(batch(put({"pk": "a"}, 1), put(largest, 1)))
        (rejection,) = outcome.rejections
        assert rejection.write.id == ("b",)
        assert rejection.reason == "the item with its version is larger than the 400 KB that DynamoDB stores"
        assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()

    def test_writes_stored_alongside_a_refused_one_count_as_applied(self, build: Build) -> None:
        target = build()
        good = put({"pk": "a"}, 1)
        poor = Upsert("contract", ("b",), Item(image({"pk": "b", "x": "x" * 500_000})), at(1), ("b",))
        assert target.write(batch(good, poor)).rejections
        assert target.write(batch(good)) == Outcome()

    @pytest.mark.parametrize(
        ("code", "message", "words"),
        [
            ("ItemCollectionSizeLimitExceededException", "Item collection is too large", "its item collection is full"),
            ("ValidationException", "Type mismatch for Index Key", "the key attribute of an index has another type"),
            ("ValidationException", "The value 4711 is not good", "refuses it as invalid"),
        ],
    )
    def test_each_refusal_has_a_reason_without_values(
        self, db: DynamoDB, build: Build, code: str, message: str, words: str
    ) -> None:
        target = build()
        db.fail("PutItem", code, message=message)
        (rejection,) = target.write(batch(put({"pk": "a"}, 1))).rejections
        assert words in rejection.reason
        assert "4711" not in rejection.reason

    def test_a_missing_permission_names_action_and_table(self, db: DynamoDB, build: Build) -> None:
        target = build()
        db.fail("PutItem", "AccessDeniedException", message="no")
        with pytest.raises(NotPermitted, match=r"dynamodb:PutItem on contract is not permitted.*target\.role_arn") as e:
            target.write(batch(put({"pk": "a"}, 1)))
        assert (e.value.exit_code, e.value.action, e.value.resource) == (4, "dynamodb:PutItem", "contract")

    def test_a_deleted_table_stops_the_run(self, db: DynamoDB, endpoint: str, build: Build) -> None:
        target = build()
        db.call("DeleteTable", {"TableName": "contract"})
        with pytest.raises(ConfigError, match="the target's table contract no longer exists"):
            target.write(batch(put({"pk": "a"}, 1)))

    def test_an_unknown_error_stops_the_run(self, db: DynamoDB, build: Build) -> None:
        target = build()
        db.fail("PutItem", "SomethingNewException")
        with pytest.raises(ReplicatorError, match="PutItem on contract was refused: SomethingNewException"):
            target.write(batch(put({"pk": "a"}, 1)))


class TestCleanup:
    def test_one_pass_of_cleanup_scans_the_table_once(self, db: DynamoDB, build: Build) -> None:
        target = build()
        target.write(batch(*(remove(f"{n}", 1) for n in range(35)), tombstones=True))
        db.page_sizes(items=10)
        scans = db.calls["Scan"]
        assert exhaust(lambda: target.purge(table(), at(5))) == 35
        assert (db.items("contract"), db.calls["Scan"] - scans) == ([], 4)

    def test_a_purge_ends_however_few_tombstones_a_piece_has_time_for(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A table may take fewer writes than a page of tombstones needs within the time of a piece."""
        target = build()
        target.write(batch(*(remove(f"{n}", 1) for n in range(35)), tombstones=True))
        monkeypatch.setattr(sender, "is_late", kit.late_after(10))
        exhaust(lambda: target.purge(table(), at(5)))
        assert db.items("contract") == []

    def test_an_update_of_a_tombstone_is_lost_but_not_a_put_and_the_documented_condition_tells(
        self, db: DynamoDB, build: Build
    ) -> None:
        target = build()
        target.write(batch(remove("a", 1), remove("b", 1), tombstones=True))
        update = {
            "TableName": "contract",
            "UpdateExpression": "SET n = :n",
            "ExpressionAttributeValues": {":n": {"N": "1"}},
        }
        db.call("UpdateItem", {**update, "Key": {"pk": {"S": "a"}}})
        condition = {"ConditionExpression": "attribute_not_exists(#d)", "ExpressionAttributeNames": {"#d": kit.DELETED}}
        with pytest.raises(AwsError, match="ConditionalCheckFailedException"):
            db.call("UpdateItem", {**update, **condition, "Key": {"pk": {"S": "b"}}})
        db.put("contract", {"pk": "b", "n": 2})
        exhaust(lambda: target.purge(table(), at(5)))
        assert db.items("contract") == [{"pk": "b", "n": 2}]

    def test_a_long_scan_yields_between_pages(self, db: DynamoDB, build: Build) -> None:
        """The next call resumes where this one stopped."""
        target = build()
        target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(25))))
        db.page_sizes(items=10)
        seconds = iter(range(0, 1000, 9))
        assert target._opened is not None
        target._opened[1]._now = lambda: float(next(seconds))
        scans = db.calls["Scan"]
        assert [target.purge(table(), at(5)) for _ in range(4)] == [1, 1, 1, 0]
        assert db.calls["Scan"] - scans == 3

    def test_a_sweep_resumes_after_a_lost_response(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would never end, where responses are lost more often than the table is looked through once."""
        monkeypatch.setattr(cleanup, "_LONGEST", 0.0)
        target = build()
        target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(35))))
        db.page_sizes(items=10)
        scans = db.calls["Scan"]
        for _ in range(3):
            assert target.sweep(table(), at(0), ()) == 1
            target.in_doubt.begin()
        assert exhaust(lambda: target.sweep(table(), at(0), ())) <= 1
        assert db.calls["Scan"] - scans == 4

        target.sweep(table(), at(0), ())
        target.in_doubt.begin(earlier=True)
        exhaust(lambda: target.sweep(table(), at(0), ()))
        assert db.calls["Scan"] - scans == 4 + 1 + 4, "others may have brought something back behind it"

    def test_a_long_sweep_is_made_in_several_attempts(
        self, db: DynamoDB, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = build()
        target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(5))))
        monkeypatch.setattr(sender, "is_late", kit.late_after(1))
        for buried in range(1, 6):
            assert target.sweep(table(), at(0, FIRST_EPOCH + 1), ()) == 1
            assert sum(kit.DELETED in item for item in db.items("contract")) == buried
        assert target.sweep(table(), at(0, FIRST_EPOCH + 1), ()) == 0

    def test_deletes_that_a_sweep_could_not_confirm_are_repeated(self, db: DynamoDB, build: Build) -> None:
        target = build()
        target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(5))))
        db.fail("PutItem", "InternalServerError", when=lambda request: "_replicator_deleted" in request["Item"])
        with pytest.raises(TransientError):
            target.sweep(table(), at(5), [])
        assert exhaust(lambda: target.sweep(table(), at(5), [])) >= 1
        assert all(kit.DELETED in item for item in db.items("contract"))


class TestPristine:
    def test_a_pristine_copy_adds_nothing_to_items(self, db: DynamoDB, build: Build) -> None:
        target = build(pristine=True)
        target.in_doubt.begin()
        target.write(batch(put({"pk": "a", "n": 1}, 1), remove("b", 1), tombstones=True))
        assert db.items("contract") == [{"pk": "a", "n": 1}]

    def test_a_scanned_item_does_not_undo_what_the_stream_did_meanwhile(self, db: DynamoDB, build: Build) -> None:
        target = build(pristine=True)
        target.write(batch(put({"pk": "a", "n": 5}, 5), remove("b", 6), tombstones=True))
        scanned = batch(put({"pk": "a", "n": 1}, 0), put({"pk": "b"}, 0), put({"pk": "c"}, 0), tombstones=True)
        assert target.write(scanned).superseded == {"shard:contract": 2}
        assert found(db) == {"a": {"pk": "a", "n": 5}, "c": {"pk": "c"}}

    def test_a_pristine_copy_must_start_with_an_empty_table(self, db: DynamoDB, build: Build) -> None:
        target = build(pristine=True)
        target.write(batch(put({"pk": "a"}, 1)))
        target.open([table()], FIRST_EPOCH)  # the next run of the same epoch
        with pytest.raises(ConfigError, match="a pristine copy starts with an empty table"):
            target.open([table()], FIRST_EPOCH + 1)

    def test_the_reduced_guarantee_is_explained(self, build: Build) -> None:
        assert "Let only one run write to the table" in build(pristine=True).reduced_guarantee

    def test_other_copies_have_the_full_guarantee(self, build: Build) -> None:
        assert build().reduced_guarantee == ""


def test_writes_go_through_the_proxy_that_the_environment_names(
    db: DynamoDB, endpoint: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", endpoint)
    monkeypatch.setenv("NO_PROXY", "")
    build(endpoint_url="http://dynamodb.example", insecure=True).write(batch(put({"pk": "a"}, 1)))
    assert set(found(db)) == {"a"}


def test_items_reach_the_table_byte_for_byte(db: DynamoDB, build: Build) -> None:
    item = {"pk": "a", "raw": os.urandom(50), "set": {"b", "a"}, "empty": "", "none": None}
    build().write(batch(put(item, 1)))
    got = orjson.loads(db.call("GetItem", {"TableName": "contract", "Key": {"pk": {"S": "a"}}}))["Item"]
    del got[kit.VERSION]
    assert got == orjson.loads(image(item))


class TestConnections:
    def test_a_refused_connection_opens_no_in_doubt_window(self, db: DynamoDB, build: Build) -> None:
        """Nothing was sent, so nothing can be applied later."""
        with served(db) as endpoint:
            target = build(endpoint_url=endpoint)
        with pytest.raises(TransientError, match=r"DynamoDB at 127.0.0.1:\d+: cannot be reached: .*refused"):
            target.write(batch(put({"pk": "a"}, 1)))
        assert not target.in_doubt

    def test_a_connection_closed_while_idle_is_not_reused(self, db: DynamoDB, endpoint: str, build: Build) -> None:
        """Else a write would be in doubt after each pause."""
        with Proxy("127.0.0.1", kit.port(endpoint)) as proxy:
            target = build(endpoint_url=f"http://127.0.0.1:{proxy.port}")
            target.write(batch(put({"pk": "a"}, 1)))
            proxy.cut()
            assert target.write(batch(put({"pk": "b"}, 1))) == Outcome()
        assert set(found(db)) == {"a", "b"}
        assert not target.in_doubt

    def test_a_reset_connection_ends_the_attempt(self, endpoint: str, build: Build) -> None:
        """Else the batch would wait for ever for a connection that is gone, and closing too."""
        with Proxy("127.0.0.1", kit.port(endpoint)) as proxy:
            target = build(endpoint_url=f"http://127.0.0.1:{proxy.port}")
            proxy.refuse()
            with pytest.raises(TransientError, match=r"DynamoDB at 127\.0\.0\.1"):
                target.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(50))))
            proxy.heal()
            assert target.write(batch(put({"pk": "a"}, 1))) == Outcome()

    def test_closing_does_not_wait_for_responses(self, db: DynamoDB, endpoint: str, build: Build) -> None:
        with Proxy("127.0.0.1", kit.port(endpoint)) as proxy:
            target = build(endpoint_url=f"http://127.0.0.1:{proxy.port}", timeout=60)
            proxy.deafen()
            target.send(target.encode(batch(put({"pk": "a"}, 1))))
            before = time.monotonic()
            target.close()
        assert time.monotonic() - before < 10

    def test_missing_credentials_are_reported_and_leave_nothing_in_doubt(
        self, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target = build()

        def none(self: Boto) -> Keys:
            raise NotPermitted("there are no AWS credentials")

        monkeypatch.setattr(Boto, "keys", none)
        with pytest.raises(NotPermitted, match="no AWS credentials"):
            target.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        assert not target.in_doubt


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        return certificate_in(tmp_path)

    @pytest.fixture
    def secure(self, db: DynamoDB, certificate: Path) -> Iterator[str]:
        with served(db, tls=presenting(certificate)) as found:
            yield found

    def test_writes_go_through_tls(
        self, db: DynamoDB, secure: str, certificate: Path, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the authorities that botocore is configured to trust."""
        monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
        build(endpoint_url=secure).write(batch(*(put({"pk": f"{n}"}, 1) for n in range(20))))
        assert len(db.items("contract")) == 20

    def test_an_untrusted_certificate_stops_the_run(self, secure: str) -> None:
        route = Route(Endpoint(secure, "us-east-1", where()), "DynamoDB_20120810.PutItem", "dynamodb")
        trying = sender.Sender("S", lambda: HttpClient(lambda _: route, lambda: Keys("a", "b"), 5.0), Pace(2))
        try:
            blocked_by = trying.start([Request("PutItem", "t", b"{}")]).result(20)
        finally:
            trying.close()
        assert re.search("cannot be reached: SSL validation failed .* self[- ]signed certificate", blocked_by)
