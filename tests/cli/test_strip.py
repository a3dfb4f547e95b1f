"""``replicator strip`` on an in-memory DynamoDB and on DynamoDB Local, with applications that write meanwhile."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from connectors.dynamodb import catalog, stripping
from connectors.dynamodb.sender import Pace
from connectors.dynamodb.writer import Writer
from replicator.checkpoints.contract import Claimed
from replicator.cli import main
from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.operations import strip as operation
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.state import (
    LONGEST_IN_DOUBT,
    Entry,
    Gap,
    Heartbeat,
    Owner,
    PipelineState,
    Retried,
    Save,
    Slot,
    Stripped,
    decode,
    encode,
)
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell, words
from tests.connectors.dynamodb import dynamodb_kit as kit
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal

ENVIRON = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
OURS = {"_replicator_version", "_replicator_deleted", "_replicator_mark"}
ITEMS = 40


@dataclass(frozen=True)
class Copy:
    """A table and its copy, which a pipeline has made; the pipeline is stopped."""

    folder: Path
    endpoint: str
    table: str

    @property
    def api(self) -> Any:
        return kit.client(self.endpoint)

    @property
    def config(self) -> str:
        return str(self.folder / "orders.yaml")

    def configure(self, checkpoints: str = "", **target: Any) -> None:
        access = {"region": "us-east-1", "endpoint_url": self.endpoint}
        target = {"type": "dynamodb", "table": f"{self.table}-copy", "create": True, **access, **target}
        config = {"pipeline": self.table, "source": {"table": self.table, **access}, "target": target}
        if target.get("adopt"):
            config["backfill"] = {"enabled": False}
        if checkpoints:
            config["checkpoints"] = {"type": "dynamodb", "table": checkpoints, **access}
        (self.folder / "orders.yaml").write_text(json.dumps(config))

    def make(self, **target: Any) -> None:
        self.api.create_table(
            TableName=self.table,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        for n in range(ITEMS):
            self.api.put_item(TableName=self.table, Item={"pk": {"S": f"k{n}"}, "n": {"N": str(n)}})
        self.configure(**target)
        self.run()

    def run(self) -> None:
        code, _, err = Shell(ENVIRON).run("run", self.config, "--until", "caught-up")
        assert code == 0, err

    def call(self, *arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, [*arguments], env=ENVIRON)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, words(result.stderr)

    def strip(self) -> dict[str, int]:
        code, out, err = self.call("strip", self.config, "--yes", "--json")
        assert code == 0, err
        found: dict[str, int] = json.loads(out)
        return found

    def put(self, key: str, **item: Any) -> None:
        self.api.put_item(TableName=f"{self.table}-copy", Item={"pk": {"S": key}, **item})

    def update(self, key: str, n: int) -> None:
        self.api.update_item(
            TableName=f"{self.table}-copy",
            Key={"pk": {"S": key}},
            UpdateExpression="SET n = :n",
            ExpressionAttributeValues={":n": {"N": str(n)}},
        )

    def items(self) -> dict[str, dict[str, Any]]:
        return {item["pk"]["S"]: item for item in kit.items(self.endpoint, f"{self.table}-copy")}

    def tombstone(self, key: str, **more: Any) -> None:
        """What a deleted item leaves for a while."""
        version = self.items()["k0"]["_replicator_version"]
        self.put(key, _replicator_version=version, _replicator_deleted={"BOOL": True}, **more)

    def note(self, **kinds: object) -> None:
        with ends(load(self.config)) as (_, checkpoints):
            for kind, value in kinds.items():
                checkpoints.save([Save(kind, "", None, encode(value))])

    def noted(self, kind: str) -> Any:
        with ends(load(self.config)) as (_, checkpoints):
            ((id, text),) = [(e.id, e.text) for e in checkpoints.read().entries if e.kind == kind]
        return decode(kind, id, text)


@pytest.fixture(scope="module")
def server(dynamodb_local: StartLocal) -> DynamoDBLocal:
    return dynamodb_local()


@pytest.fixture(params=["memory", pytest.param("local", marks=pytest.mark.dynamodb_local)])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    name = f"orders-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
            copy = Copy(tmp_path, endpoint, name)
            copy.make()
            yield copy
    else:
        local: DynamoDBLocal = request.getfixturevalue("server")
        copy = Copy(tmp_path, local.endpoint, name)
        copy.make()
        yield copy


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copy]:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
        copy = Copy(tmp_path, endpoint, "orders")
        copy.make()
        yield copy


def scans_of(pages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scan so many items a page."""
    whole = stripping._scan
    monkeypatch.setattr(stripping, "_scan", lambda *given: {**whole(*given), "Limit": pages})


def test_only_the_applications_attributes_are_left_and_no_tombstone(anywhere: Copy) -> None:
    anywhere.tombstone("gone")
    anywhere.tombstone("revived", n={"N": "7"})  # an application's UpdateItem of a deleted item
    anywhere.put("marked", _replicator_mark={"S": "an application's own"}, n={"N": "8"})
    assert anywhere.strip() == {"items": ITEMS + 1, "tombstones": 1, "left": 0}
    expected = {f"k{n}": {"pk": {"S": f"k{n}"}, "n": {"N": str(n)}} for n in range(ITEMS)}
    expected["revived"] = {"pk": {"S": "revived"}, "n": {"N": "7"}}
    items = anywhere.items()
    assert items.pop("marked")["_replicator_mark"] == {"S": "an application's own"}
    assert items == expected


def test_another_pipelines_copy_of_the_same_items_is_left_as_it_is(anywhere: Copy) -> None:
    other = replace(anywhere, folder=anywhere.folder / "other")
    other.folder.mkdir()
    other.configure(table=f"{anywhere.table}-another-copy")
    other.run()
    before = kit.items(anywhere.endpoint, f"{anywhere.table}-another-copy")
    assert len(before) == ITEMS
    assert all("_replicator_version" in item for item in before)
    assert anywhere.strip()["items"] == ITEMS
    assert kit.items(anywhere.endpoint, f"{anywhere.table}-another-copy") == before


def test_what_applications_write_meanwhile_stays_theirs(anywhere: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the scan of every page, each kind of write."""
    scans_of(10, monkeypatch)
    asked, deleted, expected = catalog.ask, set[str](), {f"k{n}": n for n in range(ITEMS)}

    def ask(*given: Any) -> Any:
        page = asked(*given)
        for at, key in enumerate([item["pk"]["S"] for item in page["Items"]][:4]):
            expected[key] = 100 + at
            if at == 0:
                anywhere.update(key, 100)
            elif at == 1:
                anywhere.put(key, n={"N": "101"})
            elif at == 2:
                anywhere.api.delete_item(TableName=f"{anywhere.table}-copy", Key={"pk": {"S": key}})
                deleted.add(key)
            else:
                anywhere.api.delete_item(TableName=f"{anywhere.table}-copy", Key={"pk": {"S": key}})
                anywhere.update(key, 103)
        return page

    monkeypatch.setattr(catalog, "ask", ask)
    anywhere.strip()
    assert len(deleted) >= 4
    assert {key: int(item["n"]["N"]) for key, item in anywhere.items().items()} == {
        key: n for key, n in expected.items() if key not in deleted
    }
    assert not any(OURS & item.keys() for item in anywhere.items().values())


def test_changes_of_the_source_that_no_run_has_copied_are_copied_first(copied: Copy) -> None:
    copied.api.put_item(TableName=copied.table, Item={"pk": {"S": "late"}, "n": {"N": "1"}})
    code, _, err = copied.call("strip", copied.config, "--yes")
    assert (code, 'orders has changes that are not copied yet, for example of item ["late"]' in err) == (2, True), err
    assert "start the run once more, until it is live, and stop it. Nothing was removed" in err
    assert all("_replicator_version" in item for item in copied.items().values())
    copied.run()
    assert copied.strip()["items"] == ITEMS + 1
    copied.api.put_item(TableName=copied.table, Item={"pk": {"S": "later"}, "n": {"N": "1"}})
    copied.strip()  # the pipeline has ended already


def test_what_the_opposite_pipeline_wrote_to_the_source_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
        there, back = Copy(tmp_path, endpoint, "orders"), Copy(tmp_path / "back", endpoint, "orders-copy")
        there.make(loops=True)
        stream = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        there.api.update_table(TableName="orders-copy", StreamSpecification=stream)
        back.folder.mkdir()
        back.configure(table="orders", create=False, adopt=True, loops=True)
        back.run()
        there.put("new", n={"N": "1"})
        there.update("k1", 100)
        there.api.delete_item(TableName="orders-copy", Key={"pk": {"S": "k2"}})
        back.run()
        assert {item["pk"]["S"]: item["n"]["N"] for item in kit.items(endpoint, "orders") if "n" in item}["k1"] == "100"
        there.configure()
        there.api.put_item(TableName="orders", Item={"pk": {"S": "late"}, "n": {"N": "1"}})
        assert there.call("strip", there.config, "--yes")[0] == 2
        there.api.delete_item(TableName="orders", Key={"pk": {"S": "late"}})
        there.configure(loops=True)
        there.run()
        there.put("newer", n={"N": "2"})
        back.run()
        there.configure()
        there.strip()


def test_without_the_records_that_followed_it_goes_on_only_unchecked(copied: Copy) -> None:
    for stream in ({"StreamEnabled": False}, {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}):
        copied.api.update_table(TableName=copied.table, StreamSpecification=stream)
    code, _, err = copied.call("strip", copied.config, "--yes")
    assert code == 2
    assert "it can no longer be told whether every change of orders was copied: its stream is not" in err
    assert all("_replicator_version" in item for item in copied.items().values())
    code, _, err = copied.call("strip", copied.config, "--yes", "--unchecked")
    assert code == 0, err


def test_it_may_be_killed_at_any_step_and_is_repeated(anywhere: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    scans_of(15, monkeypatch)
    anywhere.tombstone("gone")
    before = {key: item["n"] for key, item in anywhere.items().items() if "n" in item}
    scan, writes, saves = catalog.ask, Writer.write_all, operation._Stripping._save
    left = [0]

    def or_killed(step: Callable[..., Any], *, behind: bool) -> Callable[..., Any]:
        def taken(*given: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not behind:
                raise KeyboardInterrupt
            found = step(*given)
            if left[0] == 0:
                raise KeyboardInterrupt
            return found

        return taken

    kills = 0
    for behind in (False, True):
        for step in range(1, 100):
            with monkeypatch.context() as m:
                m.setattr(catalog, "ask", or_killed(scan, behind=behind))
                m.setattr(Writer, "write_all", or_killed(writes, behind=behind))
                m.setattr(operation._Stripping, "_save", or_killed(saves, behind=behind))
                left[0] = step
                code, _, err = anywhere.call("strip", anywhere.config, "--yes", "--json")
            if code == 0:
                break
            assert code == 130, err
            kills += 1
            assert not any("n" not in item for key, item in anywhere.items().items() if key != "gone")
    assert kills >= 10
    assert {key: item for key, item in anywhere.items().items()} == {
        key: {"pk": {"S": key}, "n": n} for key, n in before.items()
    }


def test_afterwards_nothing_of_the_pipeline_writes_any_more_and_says_why(copied: Copy) -> None:
    copied.strip()
    copied.update("k1", 100)
    copied.api.update_item(
        TableName=copied.table,
        Key={"pk": {"S": "k1"}},
        UpdateExpression="SET n = :n",
        ExpressionAttributeValues={":n": {"N": "5"}},
    )
    for command in (
        ["run", copied.config],
        ["run", copied.config, "--accept-hook-change"],
        ["resync", copied.config],
        ["resync", copied.config, "--now"],
        ["parked", "retry", copied.config, "--all"],
        ["verify", copied.config, "--repair"],
    ):
        code, _, err = copied.call(*command)
        assert code == 2, (command, err)
        assert "replicator strip has removed the versions from" in err
        assert "use another pipeline: name and another target table" in err
    assert copied.items()["k1"]["n"] == {"N": "100"}
    assert copied.strip() == {"items": ITEMS, "tombstones": 0, "left": 0}, "repeated, it finds nothing more"


def test_status_says_that_the_pipeline_was_stripped(copied: Copy) -> None:
    assert json.loads(copied.call("status", copied.config)[1])["stripped"] is None
    copied.strip()
    code, out, _ = copied.call("status", copied.config)
    stripped = json.loads(out)["stripped"]
    assert (code, stripped["started_at"] <= stripped["ended_at"]) == (7, True)
    said = " ".join(copied.call("status", copied.config, "--human")[1].split())
    assert "replicator strip has removed the versions in the target: this pipeline never runs again" in said


def test_lost_checkpoints_let_no_run_write_to_it_either(copied: Copy) -> None:
    copied.strip()
    copied.update("k1", 100)
    for file in copied.folder.glob("orders.checkpoints*"):
        file.unlink()
    assert copied.call("run", copied.config)[0] == 3
    code, _, err = copied.call("resync", copied.config, "--now")
    assert (code, "replicator strip has removed the versions from orders-copy" in err) == (2, True), err
    config = json.loads(Path(copied.config).read_text())
    Path(copied.config).write_text(json.dumps({**config, "on_gap": "resync"}))
    code, _, err = copied.call("run", copied.config, "--until", "caught-up")
    assert (code, "replicator strip has removed the versions from orders-copy" in err) == (2, True), err
    assert copied.items()["k1"]["n"] == {"N": "100"}


def test_a_run_that_takes_over_stops_it_before_the_next_page(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    scans_of(10, monkeypatch)
    copied.configure(checkpoints="kept", table="second")  # SQLite lets no other process in
    assert copied.call("check", copied.config, "--create")[0] == 0
    copied.run()
    written = Writer.write_all

    def write_all(*given: Any) -> int:
        with ends(load(copied.config)) as (_, checkpoints):
            checkpoints.claim(Owner("other", "host", 1, 0.0))
        return written(*given)

    monkeypatch.setattr(Writer, "write_all", write_all)
    code, _, err = copied.call("strip", copied.config, "--yes")
    assert code == 5
    assert "What was removed so far is noted; repeat the command once nothing else runs" in err
    assert sum("_replicator_version" in item for item in kit.items(copied.endpoint, "second")) == ITEMS - 10


def test_applications_that_write_attributes_back_are_noticed(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    old, written = copied.items()["k0"], Writer.write_all

    def write_all(*given: Any) -> int:
        done = written(*given)
        copied.api.put_item(TableName="orders-copy", Item=old)
        return done

    monkeypatch.setattr(Writer, "write_all", write_all)
    code, out, _ = copied.call("strip", copied.config, "--yes", "--human")
    assert code == 7
    assert "applications write the attributes back: let them not store what they read earlier, and repeat this" in out


def test_it_keeps_to_the_write_units_of_the_config(copied: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[float] = []
    sent = Pace.sent

    def pay(pace: Pace, units: float, now: float) -> None:
        paid.append(units)
        sent(pace, units, now)

    monkeypatch.setattr(Pace, "sent", pay)
    copied.configure(write_units=10_000)
    copied.api.put_item(TableName="orders-copy", Item={**copied.items()["k0"], "big": {"S": "x" * 5000}})
    copied.strip()
    assert len(paid) == ITEMS
    assert max(paid) >= 5.0


def test_it_asks_first_and_needs_a_yes_without_a_terminal(copied: Copy) -> None:
    code, _, err = copied.call("strip", copied.config)
    assert code == 2
    assert "this would remove replicator's attributes from orders-copy, which ends this pipeline for good" in err
    assert "_replicator_version" in copied.items()["k0"]
    copied.run()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"loops": True}, "an opposite pipeline needs these attributes (loops: true). Once both pipelines are stopped"),
        ({"pristine": True}, "a pristine table has nothing that replicator added"),
        ({"version_attribute": "_v"}, "version_attribute"),
    ],
)
def test_other_attributes_than_those_of_this_pipeline_are_refused(
    copied: Copy, options: dict[str, Any], problem: str
) -> None:
    copied.configure(**options)
    code, _, err = copied.call("strip", copied.config, "--yes")
    assert (code, problem in err) == (2, True), err
    assert "_replicator_version" in copied.items()["k0"]


def test_a_live_run_is_a_reason_not_to(copied: Copy) -> None:
    copied.note(pulse=Heartbeat(time.time(), "live"))
    code, _, err = copied.call("strip", copied.config, "--yes")
    assert code == 2
    assert "a run of this pipeline is up, or was killed seconds ago; stop it, and what restarts it, for good" in err
    assert "Nothing was removed" in err


def test_another_target_has_nothing_to_strip(tmp_path: Path) -> None:
    config = tmp_path / "p.yaml"
    config.write_text(
        "pipeline: p\nsource: {table: orders, region: us-east-1, endpoint_url: 'http://127.0.0.1:1'}\n"
        "target: {type: postgres, url: 'postgresql://127.0.0.1:1/x', table: t}\n"
    )
    result = CliRunner().invoke(main, ["strip", str(config), "--yes"], env=ENVIRON)
    assert result.exit_code == 2
    assert "only a DynamoDB table has attributes of replicator, and this is postgres" in result.stderr


# What is decided

STATE = PipelineState(1, "arn", "arn", "id", "following", lingers=None, lingers_earlier=None)
STOPPED = Heartbeat(1000.0, "stopped")


def view(state: PipelineState = STATE, heartbeat: Heartbeat | None = STOPPED, **more: object) -> CheckpointView:
    values = {"pipeline": state, "pulse": heartbeat, **more}
    entries = [Entry(kind, "", 1, encode(value)) for kind, value in values.items() if value is not None]
    return CheckpointView(Claimed(1, entries))


def needed(of: CheckpointView, *, parked: int = 0, repairing: bool = False, now: float = 1010.0) -> str:
    return operation.needed(of, parked=parked, repairing=repairing, now=now)


def test_a_worker_that_lives_is_a_run_that_is_up_although_its_coordinator_is_gone() -> None:
    beats = [
        Entry("pulse", id, 1, encode(Heartbeat(at, "live"))) for id, at in (("", 900.0), ("0", 900.0), ("1", 1005.0))
    ]
    of = CheckpointView(Claimed(1, [Entry("pipeline", "", 1, encode(STATE)), *beats]))
    assert "a run of this pipeline is up" in needed(of)


@pytest.mark.parametrize("phase", ["live", "stopped"])
def test_requests_of_a_worker_that_was_killed_after_its_coordinator_may_still_be_applied(phase: str) -> None:
    beats = [
        Entry("pulse", id, 1, encode(beat))
        for id, beat in (("", Heartbeat(1000.0, phase)), ("0", Heartbeat(1345.0, "live")))
    ]
    of = CheckpointView(Claimed(1, [Entry("pipeline", "", 1, encode(STATE)), *beats]))
    assert "may still be applied for 344 s" in needed(of, now=1361.0)
    assert needed(of, now=1345.0 + LONGEST_IN_DOUBT) == ""


def lingering(**seconds: float | None) -> PipelineState:
    return replace(STATE, **seconds)  # type: ignore[arg-type]


def test_a_pipeline_that_stopped_cleanly_needs_nothing() -> None:
    assert needed(view()) == ""
    assert needed(view(lingering(lingers=0.0))) == "", "tombstones are left, which strip removes"
    assert needed(view(stripped=Stripped(1.0))) == "", "it may be repeated"


@pytest.mark.parametrize(
    ("of", "more", "reason"),
    [
        (view(replace(STATE, stage="scanning")), {}, "the copy is not complete"),
        (view(gap=Gap("lost", 1.0, 1)), {}, "the copy is not complete"),
        (view(heartbeat=Heartbeat(1000.0, "live")), {}, "a run of this pipeline is up"),
        (view(heartbeat=Heartbeat(1000.0, "live")), {"now": 1016.0}, "may still be applied for 344 s"),
        (view(heartbeat=None), {}, f"may still be applied for {LONGEST_IN_DOUBT:.0f} s"),
        (view(lingering(lingers=50.0)), {}, "may still be applied for 40 s"),
        (view(lingering(lingers_earlier=60.0)), {}, "may still be applied for 50 s"),
        (view(slot=Slot(1, "following", lingers=30.0)), {}, "may still be applied for 20 s"),
        (view(), {"parked": 3}, "3 change(s) are parked, and cannot be stored afterwards"),
        (view(), {"repairing": True}, "verify --repair is running, or was killed"),
    ],
)
def test_reasons_why_versions_are_needed(of: CheckpointView, more: dict[str, Any], reason: str) -> None:
    assert reason in needed(of, **more)


def test_a_killed_run_is_no_reason_once_its_requests_must_have_been_applied() -> None:
    killed = view(lingering(lingers=360.0, lingers_earlier=360.0), Heartbeat(1000.0, "live"))
    assert needed(killed, now=1000.0 + LONGEST_IN_DOUBT) == ""
    assert needed(killed, now=999.0 + LONGEST_IN_DOUBT) != ""


def test_retries_since_the_last_run_are_a_reason() -> None:
    assert "parked changes were retried since the last run" in needed(view(retried=Retried(1)))
