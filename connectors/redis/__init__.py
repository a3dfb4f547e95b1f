"""Redis and Valkey as a target: a JSON string or a hash per document."""

from connectors.redis.target import Redis

__all__ = ["Redis"]
