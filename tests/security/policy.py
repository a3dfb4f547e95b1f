"""The one table of permissions, the policies in docs/permissions.md, and how recorded calls map to them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from replicator.aws.permissions import STATEMENTS
from tests.security.process.aws_calls import Note

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "permissions.md"
_DYNAMODB = "arn:aws:dynamodb:REGION:ACCOUNT:table/"
RESOURCES = {
    ("source", "table"): f"{_DYNAMODB}TABLE",
    ("source", "stream"): f"{_DYNAMODB}TABLE/stream/*",
    ("source", "export"): f"{_DYNAMODB}TABLE/export/*",
    ("source", "objects"): "arn:aws:s3:::BUCKET/*",
    ("source", "epochs"): f"{_DYNAMODB}EPOCHS_OF_SOURCE",
    ("target", "table"): f"{_DYNAMODB}TARGET",
    ("target", "epochs"): f"{_DYNAMODB}EPOCHS",
    ("checkpoints", "table"): f"{_DYNAMODB}CHECKPOINTS",
    ("role", "role"): "arn:aws:iam::ACCOUNT:role/ROLE",
    ("source", "function"): "arn:aws:lambda:REGION:ACCOUNT:function:FUNCTION",
    ("source", "version"): "arn:aws:lambda:REGION:ACCOUNT:function:FUNCTION:*",
    ("source", "mappings"): "*",
    ("source", "schedules"): "*",
    ("search", "es"): "arn:aws:es:REGION:ACCOUNT:domain/DOMAIN/*",
    ("search", "aoss"): "arn:aws:aoss:REGION:ACCOUNT:collection/COLLECTION",
}


@dataclass(frozen=True, order=True)
class Permission:
    """An action on a resource, whose name has CAPITALIZED placeholders."""

    resource: str
    action: str

    def __str__(self) -> str:
        return f"{self.action} on {self.resource}"


def permission(note: Note) -> Permission:
    place, kind, action = note
    return Permission(RESOURCES.get((place, kind), f"the {kind} of {place}"), action)


def documented() -> dict[Permission, str]:
    """Every permission of the table, which the documents repeat, with the Sid of its statement."""
    listed = [(Permission(s.resource, action), s.sid) for s in STATEMENTS.values() for action in s.actions]
    assert len({p for p, _ in listed}) == len(listed), "a permission is listed twice"
    return dict(listed)


def in_documents() -> Iterator[tuple[Permission, str]]:
    """Every permission in docs/permissions.md, with the Sid of its statement."""
    for block in re.findall(r"^```json\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL):
        for statement in json.loads(block)["Statement"]:
            assert statement["Effect"] == "Allow"
            listed = statement["Action"]
            for action in [listed] if isinstance(listed, str) else listed:
                yield Permission(statement["Resource"], action), statement["Sid"]
