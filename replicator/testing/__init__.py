"""Test kits: for hooks (``hook_test``), targets (``contract``), checkpoint stores (``checkpoints_contract``), and an
in-memory DynamoDB (``dynamodb``, ``dynamodb.http``).
"""

from replicator.testing.hooks import HookTest, hook_test

__all__ = ["HookTest", "hook_test"]
