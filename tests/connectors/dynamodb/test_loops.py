"""Two opposite pipelines between two tables of real servers, by the command line."""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors.dynamodb.catalog import describe
from connectors.dynamodb.epochs import Epochs, Note
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.target import DynamoDB as Target
from replicator.aws.errors import AwsError
from replicator.config.settings import load
from replicator.errors import ConfigError
from replicator.source.table import describe_table
from replicator.target.contract import Table
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Shell
from tests.connectors.dynamodb import dynamodb_kit as kit
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal

OURS = {"_replicator_version", "_replicator_deleted", "_replicator_mark"}


@dataclass
class Loop:
    """A table ``here`` and its copy ``there``, a pipeline in each direction, and a plain client."""

    folder: Path
    endpoint: str
    here: str
    there: str

    def __post_init__(self) -> None:
        self.api = kit.client(self.endpoint)
        self.shell = Shell({"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
        self.api.create_table(
            TableName=self.here,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        self.configure("forward", self.here, self.there, create=True)
        self.configure("back", self.there, self.here, adopt=True)

    def configure(self, name: str, source: str, target: str, **options: Any) -> None:
        access = {"region": "us-east-1", "endpoint_url": self.endpoint}
        config = {
            "pipeline": f"{name}-{self.here}",
            "source": {"table": source, **access},
            "target": {"type": "dynamodb", "table": target, "loops": True, **access, **options},
            **({"backfill": {"enabled": False}} if options.get("adopt") else {}),
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(config))

    def run(self, name: str, command: str = "run") -> dict[str, Any]:
        """Catch up; the counts."""
        path = str(self.folder / f"{name}.yaml")
        code, _, err = self.shell.run(command, path, "--until", "caught-up")
        assert code == 0, err
        code, out, err = self.shell.run("status", path, "--json", "--no-exit-code")
        assert code == 0, err
        counts: dict[str, Any] = json.loads(out)["counts"]
        return counts

    def enable_stream_there(self) -> None:
        self.api.update_table(
            TableName=self.there,
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )

    def put(self, table: str, key: str, n: int, **more: Any) -> None:
        self.api.put_item(TableName=table, Item={"pk": {"S": key}, "n": {"N": str(n)}, **more})

    def update(self, table: str, key: str, n: int) -> None:
        values = {":n": {"N": str(n)}}
        self.api.update_item(
            TableName=table, Key={"pk": {"S": key}}, UpdateExpression="SET n = :n", ExpressionAttributeValues=values
        )

    def items(self, table: str) -> dict[str, int]:
        """What people see."""
        return {
            item["pk"]["S"]: int(item["n"]["N"])
            for item in kit.items(self.endpoint, table)
            if "_replicator_deleted" not in item
        }


@pytest.fixture(scope="module")
def server(dynamodb_local: StartLocal) -> DynamoDBLocal:
    return dynamodb_local()


@pytest.fixture(params=["memory", pytest.param("local", marks=pytest.mark.dynamodb_local)])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loop]:
    here = f"here-{uuid.uuid4().hex[:8]}"
    if request.param == "memory":
        with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
            yield Loop(tmp_path, endpoint, here, f"copy-of-{here}")
    else:
        server: DynamoDBLocal = request.getfixturevalue("server")
        yield Loop(tmp_path, server.endpoint, here, f"copy-of-{here}")


def test_two_opposite_pipelines_settle_whoever_writes(loop: Loop) -> None:
    for n in range(4):
        loop.put(loop.here, f"k{n}", n)
    loop.run("forward")
    loop.enable_stream_there()
    loop.run("back")
    loop.update(loop.there, "k0", 10)  # keeps the marks
    loop.put(loop.there, "k1", 11)  # drops them
    copied = loop.api.get_item(TableName=loop.there, Key={"pk": {"S": "k2"}})["Item"]
    loop.api.put_item(TableName=loop.there, Item={**copied, "pk": {"S": "new"}})
    loop.api.delete_item(TableName=loop.there, Key={"pk": {"S": "k3"}})
    loop.run("back")
    wanted = {"k0": 10, "k1": 11, "k2": 2, "new": 2}
    assert loop.items(loop.here) == loop.items(loop.there) == wanted
    forward = loop.run("forward")
    assert forward["filtered"] == 3 + 2, "the upserts of the opposite pipeline are skipped, a tombstone and its removal"
    loop.put(loop.here, "k0", 20)
    loop.update(loop.here, "new", 21)
    loop.api.delete_item(TableName=loop.here, Key={"pk": {"S": "k1"}})
    loop.run("forward")
    before = loop.run("back")
    wanted = {"k0": 20, "k2": 2, "new": 21}
    assert loop.items(loop.here) == loop.items(loop.there) == wanted
    assert loop.run("back") == before
    assert loop.run("forward")["applied"] == forward["applied"] + 3, "each change was copied once"


def test_the_source_gets_no_attribute_of_the_pipeline_that_copied_it(loop: Loop) -> None:
    loop.put(loop.here, "k", 1, word={"S": "x"})
    loop.run("forward")
    loop.enable_stream_there()
    loop.run("back")
    assert set(next(i for i in kit.items(loop.endpoint, loop.here))) == {"pk", "n", "word"}, "nothing came back"
    loop.update(loop.there, "k", 2)
    loop.run("back")
    (item,) = kit.items(loop.endpoint, loop.here)
    assert set(item) - OURS == {"pk", "n", "word"}
    assert item["n"] == {"N": "2"}


def test_copies_in_both_directions_are_verified_without_their_marks(loop: Loop) -> None:
    for n in range(3):
        loop.put(loop.here, f"k{n}", n)
    loop.run("forward")
    loop.enable_stream_there()
    loop.run("back")
    loop.update(loop.there, "k1", 9)
    loop.run("back")
    loop.run("forward")
    for name in ("forward", "back"):
        code, out, err = loop.shell.run("verify", str(loop.folder / f"{name}.yaml"), "--json")
        assert code in (0, 7), err  # 7: with no run up, a difference would be unconfirmed
        assert '"differences": 0' in out, out


def test_a_repair_is_refused_because_it_could_undo_what_applications_wrote_to_the_copy(loop: Loop) -> None:
    loop.put(loop.here, "a", 1)
    loop.run("forward")
    loop.update(loop.there, "a", 2)  # it keeps the version: a repair could not tell
    code, _, err = loop.shell.run("verify", str(loop.folder / "forward.yaml"), "--repair")
    assert code == 2
    assert "with loops: true applications may write to this table, too" in err
    assert loop.items(loop.there) == {"a": 2}


@pytest.mark.parametrize(
    ("more", "options", "said"),
    [
        ({}, {"loops": True, "adopt": True}, "backfill.enabled: must be false with target.loops and adopt"),
        ({"on_gap": "resync"}, {"loops": True}, "on_gap: would overwrite what applications wrote to the target since"),
        ({}, {"loops": True, "pristine": True}, "target.pristine: cannot be combined with loops: true"),
        ({}, {"loops": True, "mark_attribute": "_replicator_version"}, "must differ from version_attribute"),
    ],
)
def test_what_would_undo_the_other_sides_writes_is_refused(
    tmp_path: Path, more: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    target = {"type": "dynamodb", "region": "eu-west-1", "table": "copy", **options}
    path = tmp_path / "loop.yaml"
    path.write_text(json.dumps({"pipeline": "p", "source": {"table": "orders"}, "target": target, **more}))
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert said in str(refused.value)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_stream_without_old_images_is_refused(tmp_path: Path, resumes: bool) -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("orders", view="NEW_IMAGE")
    with served(db) as endpoint:
        access = {"region": "us-east-1", "endpoint_url": endpoint}
        target = {"type": "dynamodb", "table": "copy", "create": True, **access}
        path = tmp_path / "loop.yaml"
        config = {"pipeline": "p", "source": {"table": "orders", **access}, "target": target}
        shell = Shell({"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"})
        if resumes:  # a copy that was made without loops
            path.write_text(json.dumps(config))
            assert shell.run("run", str(path), "--until", "caught-up")[0] == 0
        path.write_text(json.dumps({**config, "target": {**target, "loops": True}}))
        for command in (("check", str(path)), ("run", str(path), "--until", "caught-up")):
            code, out, err = shell.run(*command)
            assert code == 2
            assert "has view type NEW_IMAGE, but target.loops needs old images" in out + err


def test_after_a_gap_a_run_and_the_command_say_that_a_resync_overwrites_what_applications_wrote(tmp_path: Path) -> None:
    with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        loop.put("orders", "a", 1)
        loop.run("forward")
        for specification in (
            {"StreamEnabled": False},
            {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        ):
            loop.api.update_table(TableName="orders", StreamSpecification=specification)
        path = str(tmp_path / "forward.yaml")
        for code, command in ((3, ("run", path, "--until", "caught-up")), (0, ("resync", path))):
            ended, _, err = loop.shell.run(*command)
            assert ended == code
            assert "a resync overwrites what applications wrote to the target" in err


@dataclass
class Reading:
    """A client of the source's account; it may read the notes about who writes to which table, or not."""

    db: DynamoDB
    permitted: bool
    server: str = "memory"

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        if operation == "GetItem" and not self.permitted:
            raise AwsError("AccessDeniedException", "not authorized to perform: dynamodb:GetItem", 400)
        return self.db.call(operation, request)


def test_a_copy_that_is_not_copied_back_but_on_is_refused_by_check_and_run(tmp_path: Path) -> None:
    with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        loop.run("forward")
        loop.enable_stream_there()
        loop.configure("onward", "copy", "third", create=True)
        path = str(tmp_path / "onward.yaml")
        for command in (("check", path), ("run", path, "--until", "caught-up")):
            code, out, err = loop.shell.run(*command)
            assert code == 2
            assert re.search(
                "the source copy is a copy that the pipeline forward-orders makes of arn:[^ ]+:table/orders, according "
                "to the table replicator-epochs there. With loops: true whatever a pipeline writes",
                out + err,
            )
        assert "third" not in loop.api.list_tables()["TableNames"]
        note = loop.api.get_item(TableName=kit.EPOCHS, Key={"table": {"S": "copy"}})["Item"]
        del note["source"]
        loop.api.put_item(TableName=kit.EPOCHS, Item=note)  # as an earlier version wrote it
        loop.run("forward")  # adds it, in the same epoch
        assert loop.shell.run("check", path)[0] == 2
        loop.run("back")  # the opposite one is none
        loop.api.delete_item(TableName=kit.EPOCHS, Key={"table": {"S": "copy"}})
        assert loop.shell.run("check", path)[0] == 0


def test_a_copy_whose_writes_are_not_marked_may_be_copied_on(tmp_path: Path) -> None:
    """Every write is marked with `loops`, and passed over then; without it, it looks like an application's."""
    with served(DynamoDB(now=time.time, random=random.Random(1))) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        loop.configure("plain", "orders", "copy", create=True, loops=False)
        loop.run("plain")
        loop.enable_stream_there()
        loop.configure("onward", "copy", "third", create=True)
        loop.run("onward")
        loop.put("orders", "late", 1)
        loop.run("plain")
        loop.run("onward")
        assert loop.items("third") == loop.items("orders")


def test_notes_that_may_not_be_read_or_do_not_exist_keep_no_pipeline_from_its_work() -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    db.create_table("orders")
    source = describe_table(db, "orders")
    with served(db) as endpoint:
        access: Mapping[str, Any] = {"region": "us-east-1", "endpoint_url": endpoint}
        for permitted, problems in ((True, 0), (False, 0), (True, 1)):
            target = Target(DynamoDBOptions(**access, loops=True, create=True), "onward")
            with closing(target):
                target.mirror(source, Reading(db, permitted))
                assert len(target.check([Table("copy", source.keys)])) == problems
                settings = target.differing_settings([Table("copy", source.keys)])
                assert any("no opposite pipeline has run yet" in line for line in settings) == (permitted > problems)
            if not permitted:
                db.call("CreateTable", Epochs(Reading(db, True), kit.EPOCHS).request)
                note = Note("another", 1024, source="arn:aws:dynamodb:us-east-1:1:table/far")
                table = describe(Reading(db, True), "orders")
                assert table is not None
                Epochs(Reading(db, True), kit.EPOCHS).write(table, note)


def test_a_foreign_table_with_the_name_of_the_notes_beside_the_source_is_named_and_keeps_no_pipeline_from_its_work(
    tmp_path: Path,
) -> None:
    """It is the source's account, where this pipeline needs no notes."""
    here, far = (DynamoDB(now=time.time, random=random.Random(1)) for _ in range(2))
    here.create_table(kit.EPOCHS, keys={"id": "S"}, view=None)
    with served(here) as endpoint, served(far) as elsewhere:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        loop.configure("forward", "orders", "copy", create=True, endpoint_url=elsewhere)
        loop.put("orders", "a", 1)
        loop.run("forward")
        code, out, err = loop.shell.run("check", str(tmp_path / "forward.yaml"))
        assert code == 0, out + err
        assert (
            "whether another pipeline fills the source cannot be told, as the table replicator-epochs beside the "
            "source is not a table of epochs: its key must be table (S). Name another one (target.epochs_table), in "
        ) in out
        loop.configure("back", "copy", "orders", adopt=True)
        path = tmp_path / "back.yaml"
        path.write_text(path.read_text().replace(endpoint, elsewhere, 1))
        loop.api = kit.client(elsewhere)
        loop.enable_stream_there()
        code, _, err = loop.shell.run("run", str(path), "--until", "caught-up")
        assert (code, "the table replicator-epochs beside the target is not a table of epochs" in err) == (2, True)


def expiring(db: DynamoDB, table: str, attribute: str, *, enabled: bool = True) -> None:
    wanted = {"Enabled": enabled, "AttributeName": attribute}
    db.call("UpdateTimeToLive", {"TableName": table, "TimeToLiveSpecification": wanted})


def test_an_item_that_was_renewed_in_one_table_survives_the_expiry_of_its_older_copy(tmp_path: Path) -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        expiring(db, "orders", "ttl")
        loop.put("orders", "lasting", 1)
        loop.put("orders", "session", 1, ttl={"N": str(int(time.time()) - 60)})
        loop.run("forward")
        loop.enable_stream_there()
        loop.run("back")
        loop.put("orders", "session", 2, ttl={"N": str(int(time.time()) + 86400)})  # not copied yet
        db.expire("copy", {"pk": "session"})
        passed_over = loop.run("back")
        assert loop.items("orders") == {"lasting": 1, "session": 2}
        assert passed_over["applied"] == 0
        loop.run("forward")
        loop.run("back")
        assert loop.items("orders") == loop.items("copy") == {"lasting": 1, "session": 2}


@pytest.mark.parametrize("attribute", [None, "other"])
def test_a_copy_whose_items_would_not_expire_like_the_sources_is_refused(tmp_path: Path, attribute: str | None) -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        loop.run("forward")
        expiring(db, "orders", "ttl")
        expiring(db, "copy", attribute or "x", enabled=attribute is not None)
        path = str(tmp_path / "forward.yaml")
        for command in (("check", path), ("run", path, "--until", "caught-up")):
            code, out, err = loop.shell.run(*command)
            assert code == 2
            assert "the source has a time to live (ttl), and the target's table copy has not the same" in out + err
            assert "Enabled=true,AttributeName=ttl" in out + err
        expiring(db, "copy", "ttl")
        loop.run("forward")


def test_an_item_past_its_time_is_no_difference_in_whichever_table_it_expired_first(tmp_path: Path) -> None:
    db = DynamoDB(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        loop = Loop(tmp_path, endpoint, "orders", "copy")
        expiring(db, "orders", "ttl")
        past, future = ({"N": str(int(time.time()) + seconds)} for seconds in (-60, 86400))
        for key, due in (("here", past), ("there", past), ("lasting", future)):
            loop.put("orders", key, 1, ttl=due)
        loop.run("forward")
        db.expire("copy", {"pk": "here"})
        db.expire("orders", {"pk": "there"})
        loop.run("forward")
        verify = ("verify", str(tmp_path / "forward.yaml"), "--json")
        code, out, err = loop.shell.run(*verify)
        assert (code, json.loads(out)["result"]) == (0, "equal"), err
        for key in ("here", "there", "lasting"):
            code, out, err = loop.shell.run(*verify, "--key", json.dumps({"pk": key}))
            assert (code, json.loads(out)["result"]) == (0, "equal"), (key, err)
        loop.api.delete_item(TableName="copy", Key={"pk": {"S": "lasting"}})
        loop.put("copy", "extra", 1, ttl=future)
        code, out, err = loop.shell.run(*verify)
        assert (code, json.loads(out.splitlines()[-1])["unconfirmed"]) == (7, 2), "no run is up that could confirm them"
