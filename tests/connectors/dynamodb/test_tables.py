"""The tables of a DynamoDB target: compared, created like the source's, or refused with a reason."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson
import pytest

from connectors.dynamodb import catalog
from connectors.dynamodb.documents import layout
from connectors.dynamodb.epochs import Epochs, EpochScan
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.tables import Tables
from connectors.dynamodb.target import DynamoDB as Target
from replicator.aws.client import Client
from replicator.aws.errors import AwsError
from replicator.batch import Delete, Upsert
from replicator.config.target import destination
from replicator.errors import ConfigError, NotPermitted, TransientError
from replicator.identity import other_tables
from replicator.key import KeyAttribute, KeySchema
from replicator.source.table import SourceTable, describe_table
from replicator.target.contract import OWN_IDS, Mirroring, Table
from replicator.testing.contract import at, batch, put
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import UnsignedClient
from replicator.version import FIRST_EPOCH
from tests.connectors.dynamodb import dynamodb_kit as kit
from tests.servers.dynamodb_fixtures import StartLocal

PAIR = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("at", "N")))
COPY = Table("copy", PAIR)
INDEXED: dict[str, Any] = {
    "TableName": "orders",
    "AttributeDefinitions": [
        {"AttributeName": "pk", "AttributeType": "S"},
        {"AttributeName": "at", "AttributeType": "N"},
        {"AttributeName": "city", "AttributeType": "S"},
    ],
    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "at", "KeyType": "RANGE"}],
    "BillingMode": "PROVISIONED",
    "ProvisionedThroughput": {"ReadCapacityUnits": 3, "WriteCapacityUnits": 4},
    "GlobalSecondaryIndexes": [
        {
            "IndexName": "by_city",
            "KeySchema": [{"AttributeName": "city", "KeyType": "HASH"}],
            "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["name"]},
            "ProvisionedThroughput": {"ReadCapacityUnits": 1, "WriteCapacityUnits": 2},
        }
    ],
    "LocalSecondaryIndexes": [
        {
            "IndexName": "local",
            "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "city", "KeyType": "RANGE"}],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        }
    ],
    "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
}
EXPIRING = {"Enabled": True, "AttributeName": "x"}
Make = Callable[..., Target]


@dataclass
class Scripted:
    """A client whose calls are a function."""

    call: Callable[[str, Mapping[str, Any]], bytes]


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds targets, and closes them at the end."""
    made: list[Target] = []

    def target(endpoint: str, pipeline: str = "copying", **options: Any) -> Target:
        where, problems = destination({**kit.options(endpoint, **options), "table": "copy"})
        assert where is not None, problems
        found = where.build(pipeline)
        assert isinstance(found, Target)
        made.append(found)
        return found

    yield target
    for one in made:
        one.close()


def ask(client: Client, operation: str, **request: Any) -> Any:
    return orjson.loads(client.call(operation, request))


def source(client: Client, request: dict[str, Any] = INDEXED) -> SourceTable:
    ask(client, "CreateTable", **request)
    return describe_table(client, request["TableName"])


def time_to_live(client: Client, name: str) -> Any:
    return ask(client, "DescribeTimeToLive", TableName=name)["TimeToLiveDescription"]


def created_without_response(again: bool) -> Callable[[Client, Mapping[str, Any]], None]:
    """In place of ``catalog.create``. ``again``: its second request finds the table."""

    def create(client: Client, request: Mapping[str, Any]) -> None:
        client.call("CreateTable", request)
        if request["TableName"] != kit.EPOCHS and not again:
            raise TransientError("no response")

    return create


def throttled(epochs: Epochs, table: Any, note: Any) -> None:
    """In place of ``Epochs.write``."""
    raise TransientError("throttled")


def being_created(tables: Tables, name: str, table: Any) -> None:
    """In place of ``Tables._check_ready``: of the tables, only that of the epochs is ready."""
    if name != kit.EPOCHS:
        raise TransientError(f"the target's table {name} is being created")


def shape(client: Client, name: str) -> Any:
    """Keys, indexes and capacity of a table, without what no two tables share."""
    table = ask(client, "DescribeTable", TableName=name)["Table"]
    indexes = {
        kind: {i["IndexName"]: (i["KeySchema"], i["Projection"], _units(i)) for i in table.get(kind, ())}
        for kind in ("GlobalSecondaryIndexes", "LocalSecondaryIndexes")
    }
    return table["KeySchema"], _units(table), indexes, table.get("BillingModeSummary", {}).get("BillingMode")


def _units(described: dict[str, Any]) -> Any:
    throughput = described.get("ProvisionedThroughput", {})
    return throughput.get("ReadCapacityUnits"), throughput.get("WriteCapacityUnits")


class TestMaking:
    def test_a_table_is_created_like_the_source(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint, tags=True)
        table = source(db)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"})
        ask(
            db,
            "TagResource",
            ResourceArn=table.arn,
            Tags=[{"Key": "team", "Value": "a"}, {"Key": "aws:b", "Value": ""}],
        )
        target.mirror(table, db)
        assert isinstance(target, Mirroring)
        target.open([COPY], FIRST_EPOCH)
        assert shape(db, "copy") == shape(db, "orders")
        assert ask(db, "DescribeTimeToLive", TableName="copy")["TimeToLiveDescription"]["AttributeName"] == "x"
        arn = ask(db, "DescribeTable", TableName="copy")["Table"]["TableArn"]
        assert ask(db, "ListTagsOfResource", ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "a"}]
        assert "StreamSpecification" not in ask(db, "DescribeTable", TableName="copy")["Table"]

    def test_a_copy_that_keeps_what_expires_has_no_time_to_live(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target, table = make(endpoint), source(db)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"})
        target.mirror(table, db, keep_expired=True)
        assert "time-to-live" not in "".join(target.plan([COPY]))
        target.open([COPY], FIRST_EPOCH)
        assert ask(db, "DescribeTimeToLive", TableName="copy")["TimeToLiveDescription"] == {
            "TimeToLiveStatus": "DISABLED"
        }
        assert target.check([COPY]) == []

    def test_a_table_that_would_remove_what_the_copy_keeps_is_refused(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        target = make(endpoint)
        table = source(db)
        target.mirror(table, db, keep_expired=True)
        target.open([COPY], FIRST_EPOCH)
        ask(db, "UpdateTimeToLive", TableName="copy", TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"})
        (problem,) = target.check([COPY])
        assert problem.startswith(
            "the target's table copy has a time to live, so it removes the items that ttl_deletes"
        )
        assert "aws dynamodb update-time-to-live --table-name copy --region us-east-1 --endpoint-url" in problem
        assert problem.endswith(" --time-to-live-specification Enabled=false,AttributeName=x")
        with pytest.raises(ConfigError, match="update-time-to-live"):
            target.open([COPY], FIRST_EPOCH)
        target.mirror(table, db)
        assert target.check([COPY]) == []

    @pytest.mark.parametrize("adopt", [False, True])
    def test_a_table_that_exists_gets_no_time_to_live_which_would_remove_items_of_others(
        self, db: DynamoDB, endpoint: str, make: Make, adopt: bool
    ) -> None:
        table, target = source(db), make(endpoint, adopt=adopt)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification=EXPIRING)
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        if adopt:
            db.put("copy", {"pk": "own", "at": 1, "x": 1000})
        target.mirror(table, db)
        assert target.check([COPY]) == []
        (note,) = [line for line in target.plan([COPY]) if line.startswith("nothing, but note")]
        assert "the source has a time to live (x), and the target's table copy has not the same. create: true" in note
        for epoch in (FIRST_EPOCH, FIRST_EPOCH + 1):
            target.open([COPY], epoch)
            assert time_to_live(db, "copy") == {"TimeToLiveStatus": "DISABLED"}

    def test_a_copy_with_loops_needs_the_time_to_live_that_an_existing_table_is_not_given(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        table, target = source(db), make(endpoint, loops=True)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification=EXPIRING)
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        target.mirror(table, db)
        (problem,) = target.check([COPY])
        assert "Turn it on: aws dynamodb update-time-to-live --table-name copy" in problem
        with pytest.raises(ConfigError, match="Turn it on: aws dynamodb update-time-to-live"):
            target.open([COPY], FIRST_EPOCH)
        ask(db, "UpdateTimeToLive", TableName="copy", TimeToLiveSpecification=EXPIRING)
        assert target.check([COPY]) == []

    @pytest.mark.parametrize("loops", [False, True])
    def test_a_table_whose_run_ended_while_it_was_being_created_gets_its_time_to_live_from_the_next_run(
        self, db: DynamoDB, endpoint: str, make: Make, monkeypatch: pytest.MonkeyPatch, loops: bool
    ) -> None:
        table, first, second = source(db), make(endpoint, loops=loops), make(endpoint, loops=loops)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification=EXPIRING)
        first.mirror(table, db)
        second.mirror(table, db)
        with monkeypatch.context() as creating:
            creating.setattr(Tables, "_check_ready", being_created)
            with pytest.raises(TransientError, match="copy is being created"):
                first.open([COPY], FIRST_EPOCH)
        assert time_to_live(db, "copy") == {"TimeToLiveStatus": "DISABLED"}
        assert second.check([COPY]) == []
        second.open([COPY], FIRST_EPOCH)
        assert time_to_live(db, "copy")["AttributeName"] == "x"
        ask(db, "UpdateTimeToLive", TableName="copy", TimeToLiveSpecification=EXPIRING | {"Enabled": False})
        make(endpoint).open([COPY], FIRST_EPOCH)
        assert time_to_live(db, "copy") == {"TimeToLiveStatus": "DISABLED"}

    @pytest.mark.parametrize("loops", [False, True])
    @pytest.mark.parametrize("lost", ["response", "response, and the client tried again", "note"])
    def test_a_table_counts_as_created_also_if_its_note_or_the_response_was_lost(
        self, db: DynamoDB, endpoint: str, make: Make, monkeypatch: pytest.MonkeyPatch, loops: bool, lost: str
    ) -> None:
        table, target = source(db), make(endpoint, loops=loops)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification=EXPIRING)
        target.mirror(table, db)
        with monkeypatch.context() as failing:
            failing.setattr(Epochs, "write", throttled)
            if lost != "note":
                failing.setattr(catalog, "create", created_without_response(again=lost != "response"))
            with pytest.raises(TransientError):
                target.open([COPY], FIRST_EPOCH)
        assert target.check([COPY]) == []
        target.open([COPY], FIRST_EPOCH)
        assert time_to_live(db, "copy")["AttributeName"] == "x"

    @pytest.mark.parametrize("code", ["AccessDeniedException", "LimitExceededException", "ThrottlingException"])
    def test_a_table_that_others_create_after_a_refusal_does_not_count_as_created(
        self, db: DynamoDB, endpoint: str, make: Make, code: str
    ) -> None:
        table, target = source(db), make(endpoint)
        ask(db, "UpdateTimeToLive", TableName="orders", TimeToLiveSpecification=EXPIRING)
        target.mirror(table, db)
        db.fail("CreateTable", code, when=lambda request: request["TableName"] == "copy")
        with pytest.raises((NotPermitted, TransientError)):
            target.open([COPY], FIRST_EPOCH)
        db.heal()
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        target.open([COPY], FIRST_EPOCH)
        assert time_to_live(db, "copy") == {"TimeToLiveStatus": "DISABLED"}

    @pytest.mark.dynamodb_local
    def test_dynamodb_local_creates_it_too(self, dynamodb_local: StartLocal, make: Make) -> None:
        server = dynamodb_local()
        client = UnsignedClient(server.endpoint)
        table = source(client)
        ask(
            client,
            "UpdateTimeToLive",
            TableName="orders",
            TimeToLiveSpecification={"Enabled": True, "AttributeName": "x"},
        )
        target = make(server.endpoint)
        target.mirror(table, client)
        target.open([COPY], FIRST_EPOCH)
        assert shape(client, "copy") == shape(client, "orders")
        assert ask(client, "DescribeTimeToLive", TableName="copy")["TimeToLiveDescription"]["AttributeName"] == "x"
        same = make(server.endpoint)
        same.mirror(table, client)
        assert "is the source itself" in same.check([Table("orders", PAIR)])[0]

    def test_the_plan_shows_what_open_would_do_as_commands(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint)
        target.mirror(source(db), db)
        create, epochs = target.plan([COPY])
        assert create.startswith("aws dynamodb create-table --region us-east-1 --endpoint-url http://127.0.0.1:")
        assert ' --cli-input-json \'{"TableName":"copy"' in create
        assert '"by_city"' in create
        assert '"replicator-epochs"' in epochs
        assert ask(db, "ListTables")["TableNames"] == ["orders"]

    def test_documents_with_their_own_ids_get_a_table_with_that_key(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        target = make(endpoint)
        target.mirror(source(db), db)
        target.open([Table("copy", OWN_IDS)], FIRST_EPOCH)
        assert [k["AttributeName"] for k in shape(db, "copy")[0]] == ["_item", "_id"]
        assert shape(db, "copy")[3] == "PAY_PER_REQUEST"

    def test_without_create_a_missing_table_is_reported_with_the_command_to_create_it(
        self, endpoint: str, make: Make
    ) -> None:
        target = make(endpoint, create=False)
        (problem,) = target.check([COPY])
        assert problem.startswith("the target has no table copy; let replicator create it (create: true)")
        assert "aws dynamodb create-table --region us-east-1 --endpoint-url http://127.0.0.1:" in problem
        with pytest.raises(ConfigError, match="the target has no table copy"):
            target.open([COPY], FIRST_EPOCH)

    def test_a_table_that_is_not_ready_is_waited_for(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint)
        target.open([COPY], FIRST_EPOCH)
        db._catalog.tables["copy"].definition["TableStatus"] = "CREATING"
        with pytest.raises(TransientError, match="the target's table copy is being created"):
            target.open([COPY], FIRST_EPOCH)


class TestComparing:
    def test_the_source_itself_is_refused(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint)
        target.mirror(source(db), db)
        (problem,) = target.check([Table("orders", PAIR)])
        assert "is the source itself" in problem
        assert "Name another table, region or account" in problem

    def test_a_table_of_the_same_name_in_another_account_or_region_is_accepted(self, endpoint: str, make: Make) -> None:
        elsewhere = DynamoDB(now=time.time, random=random.Random(8))
        target = make(endpoint)
        target.mirror(source(elsewhere), elsewhere)
        assert target.check([Table("orders", PAIR)]) == []

    def test_a_replica_of_the_source_is_refused(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint)
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        table = source(db)
        there = replace(table, arn=table.arn.replace("us-east-1", "eu-west-1").replace("orders", "copy"), identity="x")
        db._catalog.tables["copy"].definition["Replicas"] = [{"RegionName": "eu-west-1"}]
        target.mirror(there, db)
        assert "and the source are replicas of one global table" in target.check([COPY])[0]

    @pytest.mark.parametrize(
        ("expires", "options", "words"),
        [
            (True, {"loops": True}, "the source orders has a time to live (x), and is a replica of a global table"),
            (False, {"loops": True}, ""),
            (True, {}, ""),
        ],
    )
    def test_an_expiry_that_looks_like_a_delete_is_not_copied_back(
        self, db: DynamoDB, endpoint: str, make: Make, expires: bool, options: Mapping[str, Any], words: str
    ) -> None:
        db.call("CreateTable", INDEXED)
        if expires:
            db.call("UpdateTimeToLive", {"TableName": "orders", "TimeToLiveSpecification": EXPIRING})
        db._catalog.tables["orders"].definition["Replicas"] = [{"RegionName": "eu-west-1"}, {}]
        client, arn, asked = UnsignedClient(endpoint), "arn:aws:dynamodb:us-east-1:1:table/orders", set()

        def call(operation: str, request: Mapping[str, Any]) -> bytes:
            """Of another account, whose tables are named by their ARNs."""
            asked.add((operation, request["TableName"]))
            return client.call(operation, {**request, "TableName": request["TableName"].rpartition("/")[2]})

        target = make(endpoint, **options)
        target.mirror(replace(describe_table(client, "orders"), requested=arn), Scripted(call))
        problems = target.check([COPY])
        assert {table for operation, table in asked if operation == "DescribeTimeToLive"} <= {arn}
        assert len(problems) == bool(words)
        assert all(words in text and "others in eu-west-1, another region" in text for text in problems)
        if words:
            with pytest.raises(ConfigError, match="could remove an item that was renewed in the target"):
                target.open([COPY], FIRST_EPOCH)

    @pytest.mark.parametrize("exists", [False, True])
    def test_a_hook_that_chooses_ids_is_refused_with_loops_also_before_there_is_a_table(
        self, db: DynamoDB, endpoint: str, make: Make, exists: bool
    ) -> None:
        table, target = Table("copy", OWN_IDS), make(endpoint, loops=True)
        target.mirror(source(db), db)
        if exists:
            make(endpoint).open([table], FIRST_EPOCH)
        (problem,) = target.check([table])
        assert "no opposite pipeline can copy it back; remove loops from the config" in problem
        with pytest.raises(ConfigError, match="the hook chooses document ids"):
            target.open([table], FIRST_EPOCH)
        assert ("copy" in ask(db, "ListTables")["TableNames"]) == exists

    def test_a_name_that_no_table_can_have_is_refused(self, endpoint: str, make: Make) -> None:
        (problem,) = make(endpoint).check([Table("t0", PAIR)])
        assert problem == "target.table: 't0' must be a DynamoDB table name (3 to 255 letters, digits, _ . -)"

    def test_an_arn_is_refused_with_what_to_name_instead(self, endpoint: str, make: Make) -> None:
        (problem,) = make(endpoint).check([Table("arn:aws:dynamodb:us-east-1:222222222222:table/copy", PAIR)])
        assert "named without its ARN, and written with a role of that account (target.role_arn)" in problem

    def test_another_key_is_refused(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        db.create_table("copy", keys={"id": "S"}, view=None)
        (problem,) = make(endpoint).check([COPY])
        assert "has the key id (S), but the documents' key is pk (S) and at (N)" in problem

    def test_replicators_attributes_must_not_be_keys(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        (problem,) = make(endpoint, version_attribute="at").check([COPY])
        assert "at is a key attribute of the target's table copy" in problem

    def test_a_stream_on_the_target_is_noted(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        db.create_table("copy", keys={"pk": "S", "at": "N"})
        target = make(endpoint)
        assert target.check([COPY]) == []
        assert "has a stream. Its readers" in target.plan([COPY])[0]

    def test_a_table_of_another_pipeline_is_refused(self, endpoint: str, make: Make) -> None:
        make(endpoint, pipeline="first").open([COPY], FIRST_EPOCH)
        second = make(endpoint, pipeline="second")
        (problem,) = second.check([COPY])
        assert "is written by the pipeline first, according to the table replicator-epochs" in problem
        for use in (second.epoch, lambda tables: second.open(tables, FIRST_EPOCH + 1)):
            with pytest.raises(ConfigError, match="is written by the pipeline first"):
                use([COPY])

    def test_of_two_pipelines_that_start_on_a_table_at_once_one_is_refused(
        self, endpoint: str, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second one read the table before the first one noted its ownership."""
        first, second = make(endpoint, pipeline="first"), make(endpoint, pipeline="second")
        right = Tables.make

        def overtaken(tables: Tables, wanted: Any, epoch: int) -> None:
            monkeypatch.setattr(Tables, "make", right)
            first.open([COPY], FIRST_EPOCH)
            right(tables, wanted, epoch)

        monkeypatch.setattr(Tables, "make", overtaken)
        with pytest.raises(ConfigError, match="is written by the pipeline first"):
            second.open([COPY], FIRST_EPOCH)
        first.open([COPY], FIRST_EPOCH)
        with pytest.raises(ConfigError, match="is written by the pipeline first"):
            second.open([COPY], FIRST_EPOCH + 1)

    def test_a_table_with_items_is_taken_over_only_with_adopt(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        db.put("copy", {"pk": "a", "at": 1, "old": True})
        (problem,) = make(endpoint).check([COPY])
        assert "already has items, and no record that this pipeline wrote them" in problem
        target = make(endpoint, adopt=True)
        assert target.check([COPY]) == []
        target.open([COPY], FIRST_EPOCH)
        target.write(batch(put({"pk": "a", "at": 1, "new": True}, 1, id=("a", "1"), table="copy")))
        assert db.items("copy") == [{"pk": "a", "at": 1, "new": True, kit.VERSION: at(1)}]


class TestEpochs:
    def test_a_recreated_table_has_no_epoch(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        make(endpoint).open([COPY], FIRST_EPOCH + 3)
        ask(db, "DeleteTable", TableName="copy")
        assert make(endpoint).epoch([COPY]) is None
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        assert make(endpoint).epoch([COPY]) == 0

    def test_if_the_epoch_is_lost_it_is_derived_from_the_items(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        """Otherwise the versions of a new copy would be lower than theirs, and every write superseded."""
        target = make(endpoint)
        target.open([COPY], FIRST_EPOCH)
        target.write(batch(put({"pk": "a", "at": 1}, 7, id=("a", "1"), table="copy")))
        ask(db, "DeleteTable", TableName="replicator-epochs")
        assert make(endpoint).epoch([COPY]) == FIRST_EPOCH

    def test_the_newest_version_counts_on_whatever_page_it_is(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        """Also past the first page of a scan."""
        target = make(endpoint)
        target.open([COPY], FIRST_EPOCH)
        ids = [(f"p{n:03}", "1") for n in range(120)]
        newer = at(3, FIRST_EPOCH + 4)
        puts = [put({"pk": pk, "at": 1}, 7, id=(pk, at_), table="copy") for pk, at_ in ids]
        target.write(batch(*puts, Upsert("copy", ("z", "1"), {"pk": "z", "at": 1}, newer, ("z", "1"))))
        ask(db, "DeleteTable", TableName="replicator-epochs")
        db.page_sizes(items=50)
        assert make(endpoint).epoch([COPY]) == FIRST_EPOCH + 4

    def test_versions_written_by_other_tools_belong_to_no_epoch(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        make(endpoint).open([COPY], FIRST_EPOCH)
        db.put("copy", {"pk": "a", "at": 1, kit.VERSION: 1764288000000000})
        db.put("copy", {"pk": "b", "at": 1, kit.VERSION: "text"})
        ask(db, "DeleteTable", TableName="replicator-epochs")
        assert make(endpoint).epoch([COPY]) == 0

    def test_a_recreated_table_has_another_id_at_the_same_place(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        make(endpoint).open([COPY], FIRST_EPOCH)
        first = make(endpoint).identities([COPY])["copy"]
        ask(db, "DeleteTable", TableName="copy")
        gone = make(endpoint).identities([COPY])["copy"]
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        second = make(endpoint).identities([COPY])["copy"]
        assert first.place == gone.place == second.place
        assert first.place.endswith(":table/copy")
        assert gone.id == ""
        assert first.id != second.id != ""

    def test_an_account_with_nothing_of_the_pipeline_is_another_place(self, endpoint: str, make: Make) -> None:
        identity = make(endpoint).identities([COPY])["copy"]
        assert identity.place.startswith("the table copy at 127.0.0.1:")
        assert identity.place.endswith("where nothing of this pipeline is")
        assert not identity.known

    def test_an_account_is_identified_once_the_epochs_table_exists(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        """A first run may end between making the two tables, for want of a right."""
        ask(db, "CreateTable", **Epochs(UnsignedClient(endpoint), kit.EPOCHS).request)
        early = make(endpoint).identities([COPY])
        assert early["copy"].known
        make(endpoint).open([COPY], FIRST_EPOCH)
        assert other_tables(early, make(endpoint).identities([COPY])) is None

    def test_a_table_with_an_item_or_a_tombstone_is_not_empty(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        target = make(endpoint)
        assert target.empty([COPY]) == []
        target.open([COPY], FIRST_EPOCH)
        assert target.empty([COPY]) == ["copy"]
        target.write(batch(Delete("copy", ("a", "1"), at(1), ("a",)), tombstones=True))
        assert target.empty([COPY]) == []

    def test_an_empty_table_with_a_time_to_live_may_have_been_emptied_by_that(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        target = make(endpoint)
        target.open([COPY], FIRST_EPOCH)
        ttl = {"Enabled": True, "AttributeName": "ttl"}
        ask(db, "UpdateTimeToLive", TableName="copy", TimeToLiveSpecification=ttl)
        assert target.empty([COPY]) == []
        db.fail("DescribeTimeToLive", "AccessDeniedException")
        assert target.empty([COPY]) == ["copy"]

    def test_an_interrupted_scan_of_all_versions_resumes(self, db: DynamoDB, endpoint: str, make: Make) -> None:
        db.create_table("copy", keys={"pk": "S", "at": "N"}, view=None)
        for n in range(5):
            db.put("copy", {"pk": str(n), "at": 1, kit.VERSION: at(n, FIRST_EPOCH + n), "big": "x" * 300_000})
        before, found = db.calls["Scan"], EpochScan(UnsignedClient(endpoint), layout(COPY, DynamoDBOptions()))
        pages: list[Any] = []

        def call(operation: str, request: Mapping[str, Any]) -> bytes:
            pages.append(request.get("ExclusiveStartKey"))
            if len(pages) == 2:
                raise AwsError("ProvisionedThroughputExceededException", "slow down", 400)
            return db.call(operation, dict(request))

        found.client = Scripted(call)
        with pytest.raises(TransientError):
            found()
        assert found() == FIRST_EPOCH + 4
        assert pages[0] is None
        assert pages[1] == pages[2] is not None
        asked, calls = len(pages), db.calls["Scan"] - before
        assert found() == FIRST_EPOCH + 4
        assert (len(pages), db.calls["Scan"] - before) == (asked, calls)

    def test_the_attributes_that_replicator_adds_are_part_of_the_definition(self, endpoint: str, make: Make) -> None:
        usual = make(endpoint)
        assert usual.parts(COPY) == {"version_attribute": kit.VERSION, "deleted_attribute": "_replicator_deleted"}
        assert make(endpoint, version_attribute="v").parts(COPY) != usual.parts(COPY)
        assert make(endpoint, pristine=True).parts(COPY) == {"pristine": "true"}
        assert usual.additions([COPY], []) is None

    @pytest.mark.parametrize("loops", [False, True])
    def test_a_note_of_an_earlier_version_learns_the_attributes_once_the_pipeline_resumes(
        self, db: DynamoDB, endpoint: str, make: Make, loops: bool
    ) -> None:
        db.call("CreateTable", INDEXED)
        source = describe_table(UnsignedClient(endpoint), "orders")

        def target(**options: Any) -> Target:
            made = make(endpoint, loops=loops, **options)
            made.mirror(source, UnsignedClient(endpoint))
            return made

        first = target()
        first.open([COPY], FIRST_EPOCH)
        first.write(batch(Upsert("copy", ("a", "1"), {"pk": "a", "at": 1}, at(1), ("a", "1"), 1)))
        note = kit.items(endpoint, kit.EPOCHS)[0]
        assert note.pop("attributes") == {"L": [{"S": kit.VERSION}, {"S": kit.DELETED}]}
        kit.client(endpoint).put_item(TableName=kit.EPOCHS, Item=note)
        assert target(version_attribute="_v").epoch_problems([COPY]) == []

        target().open([COPY], FIRST_EPOCH)
        (problem,) = target(version_attribute="_v").epoch_problems([COPY])
        assert "stored with version_attribute: _replicator_version, and the config has version_attribute: _v" in problem
        assert target(adopt=True).epoch_problems([COPY]) == []

    def test_a_later_epoch_is_not_overwritten(self, endpoint: str, make: Make) -> None:
        make(endpoint).open([COPY], FIRST_EPOCH + 1)
        make(endpoint).open([COPY], FIRST_EPOCH)
        assert make(endpoint).epoch([COPY]) == FIRST_EPOCH + 1

    def test_a_foreign_table_named_like_the_epochs_table_is_refused(
        self, db: DynamoDB, endpoint: str, make: Make
    ) -> None:
        db.create_table("replicator-epochs", keys={"id": "S"}, view=None)
        with pytest.raises(ConfigError, match="is not a table of epochs"):
            make(endpoint).open([COPY], FIRST_EPOCH)
        db.create_table("copy", keys={"pk": "S", "sk": "S"}, view=None)
        with pytest.raises(
            ConfigError, match=r"beside the target is not a table of epochs: .* \(target.epochs_table\)"
        ):
            make(endpoint).check([COPY])


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ({"endpoint_url": "http://example.com"}, "endpoint_url", "items would be sent unencrypted"),
        ({"endpoint_url": "ftp://x"}, "endpoint_url", "must have the form https://host"),
        ({"external_id": "x"}, "external_id", "requires role_arn"),
        ({"tags": True}, "tags", "has no effect without create: true"),
        ({"adopt": True, "pristine": True}, "adopt", "starts with an empty table"),
        ({"version_attribute": "v", "deleted_attribute": "v"}, "deleted_attribute", "must differ from version"),
        ({"version_attribute": ""}, "version_attribute", "1 to 255 bytes"),
        ({"epochs_table": "a b"}, "epochs_table", "a DynamoDB table name"),
        ({"write_units": 0}, "write_units", "at least 1"),
        ({"in_flight": 0}, "in_flight", "at least 1"),
    ],
)
def test_invalid_options_are_named(given: dict[str, Any], path: str, words: str) -> None:
    _, problems = destination({"type": "dynamodb", "table": "copy", **given})
    assert [p.path for p in problems] == [("target", path)]
    assert words in problems[0].text


def test_plain_http_to_another_host_requires_insecure() -> None:
    given = {"type": "dynamodb", "table": "copy", "endpoint_url": "http://example.com", "insecure": True}
    assert destination(given)[1] == []
