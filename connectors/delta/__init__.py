"""Delta Lake as a target: tables in a local folder or in S3."""

import os

# Read when the client is imported. It asks the instance's metadata for a region that it has, and warns if it gets none.
os.environ.setdefault("RUST_LOG", "warn,aws_config=error")

from connectors.delta.target import Delta

__all__ = ["Delta"]
