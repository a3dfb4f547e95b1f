"""Every AWS action that replicator takes, as statements of IAM policies: the one table of them.

``replicator policy`` fills it in for a config. The policies in docs/permissions.md and the tests, which record every
call to AWS, are compared with it. Pure: nothing here calls AWS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from replicator.options import Access

Place = Literal["source", "target", "checkpoints"]
"""The section of a config whose credentials are used."""

_TABLE = "arn:aws:dynamodb:REGION:ACCOUNT:table/"


@dataclass(frozen=True, slots=True)
class Statement:
    """Actions on one kind of resource, whose name has CAPITALIZED placeholders, or on * where AWS has no resource.

    ``setup``: only needed until the resource exists.
    """

    sid: str
    actions: tuple[str, ...]
    resource: str
    setup: bool = False

    def __post_init__(self) -> None:
        if not self.actions or not (self.resource == "*" or self.resource.startswith("arn:aws:")):
            raise ValueError(f"{self.sid}: a statement allows actions on a resource")


def _dynamodb(sid: str, name: str, *actions: str, setup: bool = False) -> Statement:
    return Statement(sid, tuple(f"dynamodb:{action}" for action in actions), f"{_TABLE}{name}", setup)


STATEMENTS: Mapping[str, Statement] = {
    statement.sid: statement
    for statement in (
        _dynamodb("Items", "TABLE", "DescribeTable", "Scan"),
        _dynamodb("Changes", "TABLE/stream/*", "DescribeStream", "GetShardIterator", "GetRecords"),
        _dynamodb("LookUpsForKeysOnly", "TABLE", "BatchGetItem"),
        _dynamodb("SingleItems", "TABLE", "GetItem"),
        _dynamodb("PatternForAnotherTable", "TABLE", "DescribeTimeToLive", "ListTagsOfResource"),
        _dynamodb("SettingsOfSource", "TABLE", "DescribeContinuousBackups"),
        _dynamodb("EpochsOfSource", "EPOCHS_OF_SOURCE", "GetItem"),
        _dynamodb("Export", "TABLE", "ExportTableToPointInTime"),
        _dynamodb("ExportProgress", "TABLE/export/*", "DescribeExport"),
        Statement("ExportFiles", ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"), "arn:aws:s3:::BUCKET/*"),
        Statement("ExportFilesOfAnotherAccount", ("s3:PutObjectAcl",), "arn:aws:s3:::BUCKET/*"),
        Statement("ExportBucket", ("s3:ListBucket",), "arn:aws:s3:::BUCKET"),
        Statement("ExportKey", ("kms:GenerateDataKey", "kms:Decrypt"), "arn:aws:kms:REGION:ACCOUNT:key/KEY"),
        _dynamodb("Copies", "TARGET", "DescribeTable", "Scan", "PutItem", "DeleteItem"),
        _dynamodb("VerifyCopies", "TARGET", "BatchGetItem", "Query"),
        _dynamodb("StripCopies", "TARGET", "UpdateItem"),
        _dynamodb("Epochs", "EPOCHS", "DescribeTable", "GetItem", "PutItem"),
        _dynamodb("ExpiryOfCopies", "TARGET", "DescribeTimeToLive"),
        _dynamodb("SettingsOfCopies", "TARGET", "ListTagsOfResource", "DescribeContinuousBackups"),
        _dynamodb("CreateEpochs", "EPOCHS", "CreateTable", setup=True),
        _dynamodb("CreateCopies", "TARGET", "CreateTable", "UpdateTimeToLive", "TagResource", setup=True),
        _dynamodb(
            "Checkpoints",
            "CHECKPOINTS",
            "DescribeTable",
            "GetItem",
            "Query",
            "PutItem",
            "DeleteItem",
            "ConditionCheckItem",
        ),
        _dynamodb("CreateCheckpoints", "CHECKPOINTS", "CreateTable", setup=True),
        Statement("Role", ("sts:AssumeRole",), "arn:aws:iam::ACCOUNT:role/ROLE"),
        Statement(
            "Domain",
            ("es:ESHttpGet", "es:ESHttpPost", "es:ESHttpPut"),
            "arn:aws:es:REGION:ACCOUNT:domain/DOMAIN/*",
        ),
        Statement("RemoveIndices", ("es:ESHttpDelete",), "arn:aws:es:REGION:ACCOUNT:domain/DOMAIN/INDEX"),
        Statement(
            "LakeFiles",
            ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"),
            "arn:aws:s3:::LAKE/*",
        ),
        Statement("LakeBucket", ("s3:ListBucket",), "arn:aws:s3:::LAKE"),
        Statement(
            "Function",
            ("lambda:GetFunctionConfiguration", "lambda:GetFunctionConcurrency", "lambda:GetPolicy"),
            "arn:aws:lambda:REGION:ACCOUNT:function:FUNCTION",
        ),
        Statement("Versions", ("lambda:GetPolicy",), "arn:aws:lambda:REGION:ACCOUNT:function:FUNCTION:*"),
        Statement("EventSourceMappings", ("lambda:ListEventSourceMappings",), "*"),
        Statement(
            "Schedules",
            (
                "events:ListRuleNamesByTarget",
                "events:DescribeRule",
                "events:ListTargetsByRule",
                "scheduler:ListSchedules",
                "scheduler:GetSchedule",
            ),
            "*",
        ),
        Statement("Serverless", ("aoss:APIAccessAll",), "arn:aws:aoss:REGION:ACCOUNT:collection/COLLECTION"),
    )
}
"""By Sid. What each statement is for, and when it can be left out, is in docs/permissions.md."""


@dataclass(frozen=True, slots=True)
class Needed:
    """A statement that a config needs. ``names``: what its placeholders stand for; those left out are unknown.

    ``access``: whose credentials make the calls. ``without``: actions of the statement that it does not need.
    ``setup``: only until something exists.
    """

    place: Place
    sid: str
    access: Access
    names: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    setup: bool = False

    def __post_init__(self) -> None:
        if not self.actions:
            raise ValueError(f"{self.sid}: nothing is left of it without {', '.join(sorted(self.without))}")

    @property
    def statement(self) -> Statement:
        return STATEMENTS[self.sid]

    @property
    def actions(self) -> tuple[str, ...]:
        return tuple(action for action in self.statement.actions if action not in self.without)

    @property
    def only_for_setup(self) -> bool:
        return self.setup or self.statement.setup
