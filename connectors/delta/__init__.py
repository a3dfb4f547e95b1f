"""Delta Lake as a target: tables in a local folder or in S3."""

from connectors.delta.target import Delta

__all__ = ["Delta"]
