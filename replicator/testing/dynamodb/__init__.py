"""A DynamoDB in memory, with streams that split, roll over, are trimmed and misbehave on request."""

from replicator.testing.dynamodb.faults import (
    AWS,
    LOCAL,
    Dialect,
    Distortion,
    Listed,
    Misreport,
    children_first,
    duplicated,
    imageless,
    lingering,
    nulls,
    parentless,
    reopened,
    stale,
    unordered,
)
from replicator.testing.dynamodb.sequences import Numbering
from replicator.testing.dynamodb.server import DynamoDB

__all__ = [
    "DynamoDB",
    "Numbering",
    "Dialect",
    "AWS",
    "LOCAL",
    "Listed",
    "Misreport",
    "Distortion",
    "duplicated",
    "unordered",
    "children_first",
    "stale",
    "reopened",
    "parentless",
    "lingering",
    "nulls",
    "imageless",
]
