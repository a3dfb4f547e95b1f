"""`check` names what a backfill from an export lacks, and starts or changes nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest

from replicator.config.settings import Backfill, Config, Source
from replicator.config.target import Destination
from replicator.errors import ConfigError, NotPermitted
from replicator.operations.check_export import existing_findings, export_findings
from replicator.operations.finding import Finding, exit_code
from replicator.source.table import describe_table
from replicator.testing.dynamodb import DynamoDB

OPTIONS = {"from": "export", "bucket": "exports", "prefix": "some", "bucket_owner": "123456789012", "kms_key": "key"}
NEW = Backfill.model_validate(OPTIONS)


@pytest.fixture
def db() -> DynamoDB:
    clock = [time.time() - 3600]
    made = DynamoDB(now=lambda: clock[0], random=random.Random(1))
    made.create_table("orders")
    made.exports.enable("orders")
    clock[0] += 3600  # an export is refused that was made while the stream was being enabled
    return made


def findings(db: DynamoDB, backfill: Backfill = NEW) -> Sequence[Finding]:
    target = Destination("memory", None, None, {})  # type: ignore[arg-type]
    config = Config("orders", Source(table="orders"), target, backfill=backfill)
    table = describe_table(db, "orders")
    return [*export_findings(config, db, table), *existing_findings(config, db, table, None)]


def test_each_permission_is_tested_and_no_export_is_made(db: DynamoDB) -> None:
    found = findings(db)

    assert exit_code(found) == 0
    assert [finding.text.split()[0] for finding in found] == [
        "dynamodb:ExportTableToPointInTime",
        "dynamodb:DescribeExport",
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:GetObject",
    ]
    assert not db.exports.known
    assert not db.exports.objects


def test_point_in_time_recovery_that_is_off_is_named_with_the_command_that_enables_it(db: DynamoDB) -> None:
    db.create_table("orders2")
    target = Destination("memory", None, None, {})  # type: ignore[arg-type]
    config = Config("orders", Source(table="orders2", region="eu-west-1"), target, backfill=NEW)
    first = next(iter(export_findings(config, db, describe_table(db, "orders2"))))

    assert first.text == "point-in-time recovery of orders2 is off, which an export needs"
    assert "update-continuous-backups --table-name orders2 --region eu-west-1 " in first.do

    arn = "arn:aws:dynamodb:us-east-1:123456789012:table/orders2"
    first = next(iter(export_findings(config, db, describe_table(db, arn))))
    assert f"update-continuous-backups --table-name {arn} " in first.do


@pytest.mark.parametrize(
    ("operation", "action"),
    [
        ("CreateMultipartUpload", "s3:PutObject"),
        ("AbortMultipartUpload", "s3:AbortMultipartUpload"),
        ("GetObject", "s3:GetObject"),
    ],
)
def test_a_missing_permission_on_the_bucket_is_named(db: DynamoDB, operation: str, action: str) -> None:
    db.fail(operation, "AccessDenied")
    found = findings(db)

    assert exit_code(found) == 4
    (denied,) = [finding for finding in found if finding.verdict == "forbidden"]
    assert denied.text.startswith(f"{action} on s3://exports/some/replicator-check is not permitted")


def test_a_missing_permission_on_the_key_is_named(db: DynamoDB) -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/1"
    message = (
        f"User: me is not authorized to perform: kms:GenerateDataKey on resource: {key} because no policy allows it"
    )
    db.fail("CreateMultipartUpload", "AccessDenied", message=message)

    assert f"kms:GenerateDataKey on {key} is not permitted" in findings(db)[-1].text


def test_a_bucket_that_does_not_exist_is_named(db: DynamoDB) -> None:
    db.fail("CreateMultipartUpload", "NoSuchBucket")
    last = findings(db)[-1]

    assert (last.subject, last.verdict, last.text) == ("backfill.bucket", "problem", "there is no bucket exports")


def of_existing(db: DynamoDB, polls: int = 1) -> tuple[str, Finding]:
    """An export that was described before as often, and what check says of it."""
    db.call("ExportTableToPointInTime", {"TableArn": "table/orders", "S3Bucket": "exports"})
    (arn,) = db.exports.known
    for _ in range(polls):
        db.call("DescribeExport", {"ExportArn": arn})
    (found,) = findings(db, Backfill.model_validate({"from": "export", "export": arn}))
    return arn, found


def test_an_existing_export_is_named_with_its_time_and_its_files_are_looked_at(db: DynamoDB) -> None:
    db.put("orders", {"id": "a"})
    arn, found = of_existing(db)

    assert found.verdict == "ok"
    assert found.text.startswith(f"the export {arn} of 20")
    assert found.text.endswith("1 items can be read")


def test_an_existing_export_that_is_not_complete_is_said_to_be_waited_for(db: DynamoDB) -> None:
    db.exports.polls = 5
    _, found = of_existing(db)

    assert (found.verdict, "is not complete yet: a run waits for it" in found.text) == ("ok", True)


@pytest.mark.parametrize(
    ("code", "end", "text"),
    [
        ("AccessDenied", "manifest-summary.json", "s3:GetObject on s3://exports/AWSDynamoDB/"),
        ("NoSuchKey", ".json.gz", "does not exist (NoSuchKey), but belongs to the export"),
    ],
)
def test_files_of_an_existing_export_that_a_run_could_not_read_are_a_problem(
    db: DynamoDB, code: str, end: str, text: str
) -> None:
    db.fail("GetObject", code, when=lambda request: request["Key"].endswith(end))
    with pytest.raises((ConfigError, NotPermitted)) as refused:  # which check gathers
        of_existing(db)
    assert text in str(refused.value)


def test_repairs_of_gaps_need_the_times_of_recovery_besides(db: DynamoDB) -> None:
    target = Destination("memory", None, None, {})  # type: ignore[arg-type]
    backfill = Backfill.model_validate({"bucket": "exports"})
    config = Config("orders", Source(table="orders"), target, backfill=backfill, on_gap="export")
    found = list(export_findings(config, db, describe_table(db, "orders")))
    assert "dynamodb:DescribeContinuousBackups on arn:" in found[1].text

    db.fail("DescribeContinuousBackups", "AccessDeniedException")
    with pytest.raises(NotPermitted) as denied:
        list(export_findings(config, db, describe_table(db, "orders")))
    assert denied.value.action == "dynamodb:DescribeContinuousBackups"

    db.call("DeleteTable", {"TableName": "orders"})
    db.create_table("orders")
    first = next(iter(export_findings(config, db, describe_table(db, "orders"))))
    assert (first.subject, first.verdict) == ("on_gap", "problem")
