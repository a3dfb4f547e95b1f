"""Replicates DynamoDB tables to other databases: initial snapshot plus ongoing changes, in order."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicator.hooks.hook import Document, documents

__version__ = "0.1.0"
__all__ = ["Document", "documents", "__version__"]


def __getattr__(name: str) -> Any:  # lazy: hooks import these names, but the command line must start fast
    if name in ("Document", "documents"):
        from replicator.hooks import hook

        return getattr(hook, name)
    raise AttributeError(f"module 'replicator' has no attribute {name!r}")
