"""The supported operations and their parameters. Unknown parameters are rejected rather than ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replicator.testing.dynamodb.refusals import invalid, refusal


@dataclass(frozen=True, slots=True)
class Call:
    """The parameters of an operation."""

    required: frozenset[str]
    known: frozenset[str]


def _call(required: str = "", optional: str = "") -> Call:
    """Parameters as words."""
    needed = frozenset(required.split())
    return Call(needed, needed | set(optional.split()))


_TERMS = "ExpressionAttributeNames ExpressionAttributeValues ReturnConsumedCapacity"
_CONDITION = f"ConditionExpression ReturnValuesOnConditionCheckFailure ReturnValues {_TERMS}"
_READ = f"ConsistentRead Limit ExclusiveStartKey FilterExpression ProjectionExpression {_TERMS}"

CALLS: Mapping[str, Call] = {
    "CreateTable": _call(
        "TableName KeySchema AttributeDefinitions",
        "BillingMode ProvisionedThroughput StreamSpecification GlobalSecondaryIndexes LocalSecondaryIndexes Tags "
        "TableClass",
    ),
    "DescribeTable": _call("TableName"),
    "TagResource": _call("ResourceArn Tags"),
    "ListTagsOfResource": _call("ResourceArn", "NextToken"),
    "ListTables": _call("", "Limit"),
    "UpdateTable": _call("TableName StreamSpecification"),
    "DeleteTable": _call("TableName"),
    "DescribeTimeToLive": _call("TableName"),
    "UpdateTimeToLive": _call("TableName TimeToLiveSpecification"),
    "DescribeContinuousBackups": _call("TableName"),
    "UpdateContinuousBackups": _call("TableName PointInTimeRecoverySpecification"),
    "ExportTableToPointInTime": _call(
        "TableArn S3Bucket",
        "ClientToken ExportFormat ExportTime ExportType IncrementalExportSpecification S3Prefix S3BucketOwner "
        "S3SseAlgorithm S3SseKmsKeyId",
    ),
    "DescribeExport": _call("ExportArn"),
    "GetObject": _call("Bucket Key", "Range ExpectedBucketOwner"),
    "CreateMultipartUpload": _call("Bucket Key", "ServerSideEncryption SSEKMSKeyId ExpectedBucketOwner"),
    "AbortMultipartUpload": _call("Bucket Key UploadId"),
    "PutItem": _call("TableName Item", _CONDITION),
    "DeleteItem": _call("TableName Key", _CONDITION),
    "UpdateItem": _call("TableName Key", f"UpdateExpression {_CONDITION}"),
    "TransactWriteItems": _call("TransactItems", "ClientRequestToken ReturnConsumedCapacity"),
    "GetItem": _call(
        "TableName Key", "ConsistentRead ReturnConsumedCapacity ProjectionExpression ExpressionAttributeNames"
    ),
    "BatchWriteItem": _call("RequestItems"),
    "BatchGetItem": _call("RequestItems", "ReturnConsumedCapacity"),
    "Scan": _call("TableName", f"Segment TotalSegments {_READ}"),
    "Query": _call("TableName KeyConditionExpression", f"ScanIndexForward {_READ}"),
    "ListStreams": _call("", "TableName Limit"),
    "DescribeStream": _call("StreamArn", "Limit ExclusiveStartShardId ShardFilter"),
    "GetShardIterator": _call("StreamArn ShardId ShardIteratorType", "SequenceNumber Timestamp"),
    "GetRecords": _call("ShardIterator", "Limit"),
}


def check(operation: str, request: Mapping[str, Any]) -> None:
    """AwsError unless the operation exists, has all required parameters, and no unknown ones."""
    call = CALLS.get(operation)
    if call is None:
        raise refusal("UnknownOperationException", f"the in-memory DynamoDB has no {operation}")
    if missing := call.required - request.keys():
        raise invalid(f"{operation} needs {', '.join(sorted(missing))}")
    if unknown := request.keys() - call.known:
        raise invalid(f"the in-memory DynamoDB's {operation} does not know {', '.join(sorted(unknown))}")
