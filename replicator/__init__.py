"""Keep DynamoDB tables somewhere else too: backfill and live changes at once, in order, without losing any."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replicator.hooks.hook import Document, documents

__version__ = "0.1.0"
__all__ = ["Document", "documents", "__version__"]


def __getattr__(name: str) -> Any:  # hooks import from here; the command line must not pay for it
    if name in ("Document", "documents"):
        from replicator.hooks import hook

        return getattr(hook, name)
    raise AttributeError(f"module 'replicator' has no attribute {name!r}")
