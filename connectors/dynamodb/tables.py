"""The tables as a run needs them: compared with what is wanted, made where they are absent, and their epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from connectors.dynamodb import catalog, creation
from connectors.dynamodb.account import Account
from connectors.dynamodb.catalog import Described
from connectors.dynamodb.creation import Plan
from connectors.dynamodb.epochs import KEYS, Note
from connectors.dynamodb.layout import Layout
from connectors.dynamodb.options import DynamoDBOptions
from replicator.errors import ConfigError, TransientError
from replicator.source import SourceTable
from replicator.wire import Wire, WireError, failure


class Tables:
    """What is asked about tables of one account. ``source``: what they are to be a copy of, once that is known."""

    def __init__(self, account: Account, options: DynamoDBOptions, pipeline: str) -> None:
        self._account = account
        self._options = options
        self._pipeline = pipeline
        self.source: tuple[SourceTable, Wire] | None = None

    def problems(self, wanted: Mapping[str, Layout]) -> list[str]:
        found = {name: self._described(name) for name in wanted}
        return [text for name, layout in wanted.items() for text in self._problems(layout, found[name])]

    def plan(self, wanted: Mapping[str, Layout]) -> list[str]:
        found: list[str] = []
        for name, layout in wanted.items():
            table = self._described(name)
            found += self._plan(layout).commands if table is None else catalog.notes(layout, table)
        if self._account.epochs.found() is None:
            found += Plan(self._account.epochs.request).commands
        return found

    def epoch(self, wanted: Mapping[str, Layout]) -> int | None:
        """The highest epoch that is noted, 0 without one, None if a table is absent."""
        described = [self._described(name) for name in wanted]
        found = [table for table in described if table is not None]
        if len(found) < len(described):
            return None
        noted = [self._noted(table) for table in found]
        return max((note.epoch for note in noted if note is not None), default=0)

    def make(self, wanted: Mapping[str, Layout], epoch: int) -> None:
        """Make what is absent, and note the epoch. TransientError while a table is being made."""
        epochs = self._account.epochs
        self._ready(epochs.name, epochs.found() or self._made(Plan(epochs.request)))
        for name, layout in wanted.items():
            plan = self._plan(layout) if self._options.create else None
            table = self._described(name)
            if table is None and plan is not None:
                table = self._made(plan)
            self._ready(name, table)
            assert table is not None
            if plan is not None and plan.ttl is not None and epochs.read(table) is None:
                self._expiring(name, plan.ttl)
            epochs.write(table, Note(self._pipeline, epoch))

    def _described(self, name: str) -> Described | None:
        return catalog.describe(self._account.wire, name)

    def _noted(self, table: Described) -> Note | None:
        return self._account.epochs.read(table) if self._account.epochs.found() is not None else None

    def _plan(self, layout: Layout) -> Plan:
        return creation.plan(layout, self.source, tags=self._options.tags)

    def _problems(self, layout: Layout, found: Described | None) -> Iterator[str]:
        if found is None:
            if not self._options.create:
                commands = "\n".join(self._plan(layout).commands)
                yield (
                    f"the target has no table {layout.name}; let replicator make it (create: true), or make it "
                    f"yourself:\n{commands}"
                )
            return
        yield from catalog.mismatches(layout, found, self.source[0] if self.source is not None else None)
        note = self._noted(found)
        if note is not None and note.pipeline != self._pipeline:
            yield (
                f"the target's table {layout.name} is written by the pipeline {note.pipeline} (so says the table "
                f"{self._options.epochs_table}); two copies in one table would overwrite each other. Name another "
                "table, or remove that item if the other pipeline is gone"
            )

    def _made(self, plan: Plan) -> Described | None:
        name = str(plan.create["TableName"])
        try:
            self._account.wire.call("CreateTable", plan.create)
        except WireError as e:
            if e.code != "ResourceInUseException":  # another run makes it just now
                raise failure(e, "CreateTable", name, place="target") from e
        return self._described(name)

    def _ready(self, name: str, table: Described | None) -> None:
        if table is None or not table.ready:
            raise TransientError(f"the target's table {name} is being made")
        if name == self._options.epochs_table and table.keys != KEYS:
            raise ConfigError(
                f"the table {name} is not what replicator keeps epochs in: its key is to be table (S). "
                "Name another one (target.epochs_table)"
            )

    def _expiring(self, name: str, attribute: str) -> None:
        """Let items expire as they do in the source; nothing if they do so already."""
        wire = self._account.wire
        found = catalog.ask(wire, "DescribeTimeToLive", {"TableName": name}, name)["TimeToLiveDescription"]
        if found.get("TimeToLiveStatus") == "DISABLED":
            wanted = {"Enabled": True, "AttributeName": attribute}
            catalog.ask(wire, "UpdateTimeToLive", {"TableName": name, "TimeToLiveSpecification": wanted}, name)
