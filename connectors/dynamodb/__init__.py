"""DynamoDB as a target: tables in any account and region."""

from connectors.dynamodb.target import DynamoDB

__all__ = ["DynamoDB"]
