"""The one way to AWS: a call goes out as JSON text and comes back as the raw body.

boto3 keeps what it is good at (credentials, signing, endpoints, connections); its parser, which costs ten times as much
as the call, never runs. The in-memory DynamoDB of ``replicator.testing`` answers the same two methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class WireError(Exception):
    """An answer that is an error: ``code`` as AWS names it, the HTTP ``status``, 0 where no answer came."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


class Wire(Protocol):
    """DynamoDB and its streams."""

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        """The raw JSON body that answers ``operation`` (``GetRecords``, ``Scan``, ...); WireError otherwise.

        ``request`` is in the wire's own form: binary values are base64 text. May be called from several threads.
        """
