"""boto3 itself, with its signing and its parser, reads from the in-memory DynamoDB over HTTP."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from replicator.aws.boto import Boto
from replicator.aws.errors import AwsError
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import UnsignedClient, served

NOW = 1_800_000_000.0


@pytest.fixture
def db() -> DynamoDB:
    return DynamoDB(now=lambda: NOW, random=random.Random(1))


@pytest.fixture
def endpoint(db: DynamoDB) -> Iterator[str]:
    with served(db) as url:
        yield url


def client(service: str, endpoint: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
        config=Config(retries={"total_max_attempts": 1}),
    )


def resource(endpoint: str) -> Any:
    return boto3.resource(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="local",
        aws_secret_access_key="local",
    )


def test_boto3_makes_a_table_writes_it_and_scans_it(endpoint: str) -> None:
    made = resource(endpoint).create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    )
    made.wait_until_exists()
    with made.batch_writer() as batch:
        for n in range(60):
            batch.put_item(Item={"id": f"i{n}", "n": Decimal("1.5"), "raw": b"\x00", "tags": {"a", "b"}})
    made.delete_item(Key={"id": "i0"})
    made.update_item(
        Key={"id": "i1"},
        UpdateExpression="SET #n = :n REMOVE tags",
        ExpressionAttributeNames={"#n": "n"},
        ExpressionAttributeValues={":n": 2},
    )
    assert made.scan(ConsistentRead=True)["Count"] == 59
    assert made.get_item(Key={"id": "i1"})["Item"] == {"id": "i1", "n": 2, "raw": b"\x00"}


def test_boto3_reads_the_stream_of_several_shards(db: DynamoDB, endpoint: str) -> None:
    arn = db.create_table("orders", shards=3)
    for n in range(30):
        db.put("orders", {"id": f"i{n}", "raw": b"\x00\xff"})
    db.expire("orders", {"id": "i0"})
    streams = client("dynamodbstreams", endpoint)
    assert streams.list_streams(TableName="orders")["Streams"][0]["StreamArn"] == arn
    found = []
    for shard in streams.describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]:
        where = {"StreamArn": arn, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        found += streams.get_records(ShardIterator=streams.get_shard_iterator(**where)["ShardIterator"])["Records"]
    assert len(found) == 31
    assert found[0]["dynamodb"]["ApproximateCreationDateTime"] == datetime.fromtimestamp(NOW, UTC)
    assert found[0]["dynamodb"]["NewImage"]["raw"] == {"B": b"\x00\xff"}
    (expired,) = (r for r in found if r["eventName"] == "REMOVE")
    assert expired["userIdentity"] == {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}


def test_boto3_knows_the_errors_by_name(db: DynamoDB, endpoint: str) -> None:
    dynamodb, streams = client("dynamodb", endpoint), client("dynamodbstreams", endpoint)
    with pytest.raises(dynamodb.exceptions.ResourceNotFoundException):
        dynamodb.describe_table(TableName="orders")
    with pytest.raises(ClientError, match="ValidationException"):
        streams.get_records(ShardIterator="garbage")
    db.fail("GetRecords", "ExpiredIteratorException")
    db.create_table("orders")
    db.fail("Scan", "InternalServerError")
    with pytest.raises(dynamodb.exceptions.InternalServerError) as raised:
        dynamodb.scan(TableName="orders")
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 500


def test_the_wire_over_boto3_gives_the_very_bytes(db: DynamoDB, endpoint: str) -> None:
    db.create_table("orders")
    db.put("orders", {"id": "a", "n": Decimal("1E-130")})
    wire = Boto(client("dynamodb", endpoint), client("dynamodbstreams", endpoint))
    request = {"TableName": "orders", "ConsistentRead": True}
    assert wire.call("Scan", request) == db.call("Scan", request)
    with pytest.raises(AwsError) as raised:
        wire.call("Scan", {"TableName": "nowhere"})
    assert (raised.value.code, raised.value.status) == ("ResourceNotFoundException", 400)


def test_the_plain_wire_gives_the_very_bytes_and_errors(db: DynamoDB, endpoint: str) -> None:
    db.create_table("orders")
    wire = UnsignedClient(endpoint)
    assert wire.call("DescribeTable", {"TableName": "orders"}) == db.call("DescribeTable", {"TableName": "orders"})
    db.fail("DescribeTable", "ThrottlingException", message="slow down")
    with pytest.raises(AwsError) as raised:
        wire.call("DescribeTable", {"TableName": "orders"})
    assert (raised.value.code, raised.value.message, raised.value.status) == ("ThrottlingException", "slow down", 400)


def test_several_connections_are_served_at_once(db: DynamoDB, endpoint: str) -> None:
    db.create_table("orders")

    def write(name: str) -> None:
        wire = UnsignedClient(endpoint)
        for n in range(20):
            wire.call("PutItem", {"TableName": "orders", "Item": {"id": {"S": f"{name}{n}"}}})

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(db.items("orders")) == 80


def test_no_server_responds_after_the_block(db: DynamoDB) -> None:
    """Not even on a connection that was kept."""
    with served(db) as url:
        kept = client("dynamodb", url)
        kept.list_tables()
    with pytest.raises((EndpointConnectionError, ConnectionClosedError)):
        kept.list_tables()
    with pytest.raises(AwsError) as raised:
        UnsignedClient(url).call("ListTables", {})
    assert raised.value.status == 0


def test_it_runs_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "replicator.testing.dynamodb.http", "--shards", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
            assert UnsignedClient(url).call("ListTables", {}) == b'{"TableNames":[]}'
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
