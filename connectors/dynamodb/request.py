"""A request to DynamoDB, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Request:
    """``operation`` with its JSON ``body``. ``units``: about what it costs, in write capacity units.

    Afterwards: ``status`` and ``answer``; or ``lost``, the reason why nobody knows whether it was carried out; or none
    of them, if it was not sent.
    """

    operation: str
    body: bytes
    units: float = 1.0
    status: int = 0
    answer: bytes = b""
    lost: str = ""
