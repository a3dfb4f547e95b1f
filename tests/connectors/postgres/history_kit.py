"""What the tests of the history share: a config that keeps one, and what ``replicator history`` shows."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.cli.command_line import World


def keep_history(world: World, options: str = "history: true") -> None:
    old = f"url: {world.postgres.url}\n  table: orders"
    world.change(old, f"url: {world.postgres.url}\n  tables:\n    orders:\n      {options}")


def changes(world: World, id: str, *more: str) -> list[tuple[str, Any, Any]]:
    """Operation, and the value of ``n`` before and after."""
    lines = world.lines("history", world.config, "--key", json.dumps({"id": id}), *more)
    return [(line["operation"], n_of(line["old"]), n_of(line["new"])) for line in lines]


def n_of(document: dict[str, Any] | None) -> Any:
    return None if document is None else document["n"]


def as_of(world: World, at: datetime, *more: str) -> dict[str, Any]:
    lines = world.lines("history", world.config, "--at", at.isoformat(), *more)
    return {line["key"]["id"]: n_of(line["document"]) for line in lines}


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=1)


def resync(world: World) -> None:
    assert world.call("resync", world.config, "--now", "--until", "caught-up")[0] == 0
