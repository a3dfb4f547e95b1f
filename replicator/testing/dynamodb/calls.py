"""Which calls there are and what they take. What is not understood is refused rather than overlooked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replicator.testing.dynamodb.refusals import invalid, refusal


@dataclass(frozen=True, slots=True)
class Call:
    """The parameters of an operation, as words."""

    required: str = ""
    optional: str = ""


_TERMS = "ExpressionAttributeNames ExpressionAttributeValues ReturnConsumedCapacity"
_CONDITION = f"ConditionExpression ReturnValuesOnConditionCheckFailure ReturnValues {_TERMS}"
_READ = f"ConsistentRead Limit ExclusiveStartKey FilterExpression ProjectionExpression {_TERMS}"

CALLS: Mapping[str, Call] = {
    "CreateTable": Call(
        "TableName KeySchema AttributeDefinitions",
        "BillingMode ProvisionedThroughput StreamSpecification GlobalSecondaryIndexes LocalSecondaryIndexes Tags "
        "TableClass",
    ),
    "DescribeTable": Call("TableName"),
    "TagResource": Call("ResourceArn Tags"),
    "ListTagsOfResource": Call("ResourceArn", "NextToken"),
    "ListTables": Call("", "Limit"),
    "UpdateTable": Call("TableName StreamSpecification"),
    "DeleteTable": Call("TableName"),
    "DescribeTimeToLive": Call("TableName"),
    "UpdateTimeToLive": Call("TableName TimeToLiveSpecification"),
    "PutItem": Call("TableName Item", _CONDITION),
    "DeleteItem": Call("TableName Key", _CONDITION),
    "UpdateItem": Call("TableName Key", f"UpdateExpression {_CONDITION}"),
    "TransactWriteItems": Call("TransactItems", "ClientRequestToken ReturnConsumedCapacity"),
    "GetItem": Call(
        "TableName Key", "ConsistentRead ReturnConsumedCapacity ProjectionExpression ExpressionAttributeNames"
    ),
    "BatchWriteItem": Call("RequestItems"),
    "BatchGetItem": Call("RequestItems", "ReturnConsumedCapacity"),
    "Scan": Call("TableName", f"Segment TotalSegments {_READ}"),
    "Query": Call("TableName KeyConditionExpression", f"ScanIndexForward {_READ}"),
    "ListStreams": Call("", "TableName Limit"),
    "DescribeStream": Call("StreamArn", "Limit ExclusiveStartShardId ShardFilter"),
    "GetShardIterator": Call("StreamArn ShardId ShardIteratorType", "SequenceNumber Timestamp"),
    "GetRecords": Call("ShardIterator", "Limit"),
}


def check(operation: str, request: Mapping[str, Any]) -> None:
    """WireError unless the operation exists and has every parameter it needs and none that is unknown here."""
    call = CALLS.get(operation)
    if call is None:
        raise refusal("UnknownOperationException", f"the in-memory DynamoDB has no {operation}")
    required = set(call.required.split())
    if missing := required - request.keys():
        raise invalid(f"{operation} needs {', '.join(sorted(missing))}")
    if unknown := request.keys() - required - set(call.optional.split()):
        raise invalid(f"the in-memory DynamoDB's {operation} does not know {', '.join(sorted(unknown))}")
