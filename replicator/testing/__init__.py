"""For tests: of hooks (``hook_test``), of targets (``contract``), and a DynamoDB in memory (``dynamodb``, ``http``)."""

from replicator.testing.hooks import HookTest, hook_test

__all__ = ["HookTest", "hook_test"]
