"""DynamoDB as a target: another table, in whichever account and region."""

from connectors.dynamodb.target import DynamoDB

__all__ = ["DynamoDB"]
