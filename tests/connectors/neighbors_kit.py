"""Shared by the tests that no command touches foreign tables or indices: the commands and their exit codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from replicator.testing.dynamodb import DynamoDB
from tests.cli.command_line import Shell


@dataclass(frozen=True)
class Command:
    """A command, its options, and its exit code for a pipeline with one parked item."""

    name: str
    code: int
    options: str = ""

    def run(self, shell: Shell, config: str) -> str:
        """Return its output on both streams."""
        code, out, err = shell.run(*self.name.split(), config, *self.options.split())
        assert code == self.code, out + err
        return out + err


COMMANDS: Mapping[str, Command] = {
    command.name: command
    for command in (
        Command("check", 0),
        Command("preview", 0),
        Command("status", 7),  # nothing runs
        Command("run", 6, "--until caught-up"),
        Command("resync", 6, "--now --until caught-up"),  # it parks the item again
        Command("parked list", 0),
        Command("parked show", 0, "--all"),
        Command("parked retry", 6, "--all"),  # the hook refuses it still
        Command("parked drop", 0, "--all --yes"),
        Command("verify", 6, "--repair"),  # the parked item
        Command("cutover", 6),
        Command("strip", 2, "--yes"),  # the parked item; of another target nothing can be stripped
        Command("infer", 0),
        Command("estimate", 0),
        Command("policy", 0),
        Command("history", 2, "--at 2026-01-31T12:00:00Z"),  # none of the tables has one
    )
}
WRITING = ("run", "resync", "parked retry", "parked drop", "verify")
GROUPS: Mapping[str, Sequence[str]] = {
    **{name: (name,) for name in WRITING},
    "those that only read": [name for name in COMMANDS if name not in WRITING],
}
"""Commands that one pipeline is enough for, one after the other."""
REBUILD = ("start", "cancel", "start", "switch", "rollback", "switch", "finish")
WITHOUT_TARGET = {"demo", "init", "schema", "version", "lambda package", "lambda template"}
HOOK = "def hook(item):\n    return {'n': item['n']}\n"
IDS = ("a", "b", "gone", "parked")


def fill(db: DynamoDB) -> None:
    """Fill a table so that its pipeline has work in each stage: the hook refuses one item."""
    db.create_table("orders")
    for id in ("a", "b", "gone"):
        db.put("orders", {"id": id, "n": 1})
    db.put("orders", {"id": "parked"})


def change(db: DynamoDB) -> None:
    """Change what the next run must store or sweep."""
    db.delete("orders", {"id": "gone"})
    db.put("orders", {"id": "b", "n": 2})
