"""The tables of a pipeline: checked, created where absent, and their epochs."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from connectors.dynamodb import catalog
from connectors.dynamodb.catalog import Described, gone, replaced
from connectors.dynamodb.connection import Account
from connectors.dynamodb.documents import Layout
from connectors.dynamodb.epochs import KEYS, Epochs, EpochScan, ForeignTable, Note, chained, ended, foreign, taken
from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.plan import Plan, enabled_attribute, expiring_attribute, table_plan
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, in_doubt
from replicator.errors import ConfigError, GapFound, NotPermitted, ReplicatorError, TransientError
from replicator.identity import Change, Identity
from replicator.options import aws_options, table_name
from replicator.source.table import SourceTable
from replicator.target.contract import NO_STATEMENT
from replicator.target.notes import superseding
from replicator.version import FIRST_EPOCH, epoch_of

_SAMPLED = 50  # items
_ELSEWHERE = (
    "delete and re-create this one, or name another in the config, then run: replicator resync CONFIG "
    "--accept-identity-change"
)


class Tables:
    """Tables of one account. ``source``: the table they copy, once known. ``keep_expired``: they keep expired items."""

    def __init__(self, account: Account, options: DynamoDBOptions, pipeline: str) -> None:
        self._account = account
        self._options = options
        self._pipeline = pipeline
        self._newest_of: dict[str, EpochScan] = {}  # by identity: a whole table is scanned only once
        self.source: tuple[SourceTable, Client] | None = None
        self.keep_expired = False
        self._created: set[str] = set()  # names of tables for which that is not noted yet
        self._opened: Mapping[str, Described] = {}
        self._epoch_opened = 0

    def problems(self, wanted: Mapping[str, Layout], epoch: int = 0) -> list[str]:
        """Reasons why a run cannot store documents, a sentence each. ``epoch``: the run's, 0 if not known yet."""
        if wrong := list(wrong_names(wanted)):
            return wrong
        described = {name: self._described(name) for name in wanted}
        found = [text for name, layout in wanted.items() for text in self._problems(layout, described[name], epoch)]
        targets = {table.arn for table in described.values() if table is not None}
        return [*found, *self._chain(targets), *self._replicated_expiries()]

    def plan(self, wanted: Mapping[str, Layout]) -> list[str]:
        """Commands that create what is absent, and notes about existing tables."""
        lines: list[str] = []
        options = aws_options(self._options)
        for name, layout in wanted.items():
            table = self._described(name)
            if table is None:
                lines += self._plan(layout).commands(options)
            else:
                lines += [*catalog.notes(layout, table), *self._without_expiry(layout, table)]
        if self._account.epochs.described() is None:
            lines += Plan(self._account.epochs.request).commands(options)
        return [*lines, *self._foreign_beside()]

    def epoch(self, wanted: Mapping[str, Layout]) -> int | None:
        """The highest epoch of the tables, 0 without one; None if a table is absent.

        ConfigError if a table belongs to another pipeline.
        """
        described = {layout: self._described(name) for name, layout in wanted.items()}
        existing = {layout: table for layout, table in described.items() if table is not None}
        if others := [text for of, table in existing.items() for text in self._others(of.name, self._note(table))]:
            raise ConfigError(*others)
        if len(existing) < len(described):
            return None
        return max((self._epoch(layout, table) for layout, table in existing.items()), default=0)

    def unnoted(self, wanted: Iterable[str]) -> bool:
        """Whether there is a table of which no note says that this pipeline wrote to it."""
        return any(table is not None and self._note(table) is None for table in map(self._described, wanted))

    def identities(self, wanted: Mapping[str, Layout]) -> dict[str, Identity]:
        """Each table's ARN, and its id, which changes when a table is re-created or restored.

        For an absent table, the table of epochs tells the account; without that one the place is unknown.
        """
        return {name: self._identity(name) for name in wanted}

    def _identity(self, name: str) -> Identity:
        table = self._described(name)
        if table is not None:
            return Identity(table.arn, table.identity)
        own = self._account.epochs.described()
        if own is None:
            place = f"the table {name} at {self._account.client.server}, where nothing of this pipeline is"
            return Identity(place, known=False)
        return Identity(f"{own.arn.rpartition('/')[0]}/{name}")

    def make(self, wanted: Mapping[str, Layout], epoch: int) -> None:
        """Create absent tables and note the epoch. TransientError while a table is being created."""
        opened: dict[str, Described] = {}
        epochs = self._account.epochs
        if epochs.described() is None:
            catalog.create(self._account.client, epochs.request)
        self._check_ready(epochs.name, epochs.described())
        for name, layout in wanted.items():
            table = self._described(name) or self._create(layout)
            self._note_created(layout, table)
            self._check_ready(name, table)
            assert table is not None
            if (note := epochs.read(table)) is not None and note.created:
                self._enable_ttl(name, self._plan(layout).ttl)
            epochs.write(table, self._own_note(layout, epoch))
            opened[name] = table
        self._opened, self._epoch_opened = opened, epoch

    def recheck(self) -> list[str]:
        """Why no run may go on writing to the tables that were opened, a sentence each.

        GapFound if one of them is another table by now, or was written by a later epoch, whose versions supersede all
        that this one writes.
        """
        problems: list[str] = []
        for name, before in self._opened.items():
            table = self._described(name)
            if table is None:
                problems.append(gone(name))
            elif table.identity != before.identity:
                raise GapFound(replaced(table), of_target=True)
            elif (note := self._note(table)) is not None:
                problems += self._seized(name, note)
        return problems

    def _seized(self, name: str, note: Note) -> Iterator[str]:
        if problems := [*self._others(name, note), *self._ended(name, note)]:
            yield from problems
        elif note.epoch > self._epoch_opened:
            raise GapFound(superseding(name, note.epoch, self._epoch_opened), of_target=True, by_hand=True)

    def try_writes(self, wanted: Iterable[str]) -> None:
        """Try every call that a run makes on existing tables, under conditions that never hold. NotPermitted if one is
        denied. Creating tables cannot be tried."""
        client, epochs = self._account.client, self._account.epochs
        for table in filter(None, map(self._described, wanted)):
            catalog.ask(client, "Scan", {"TableName": table.name, "Limit": 1}, table.arn)
            catalog.try_put(client, table)
            catalog.try_delete(client, table)
        if (own := epochs.described()) is not None:
            catalog.try_put(client, own)

    def expiry(self, name: str) -> str:
        """The attribute by which the table's items expire; empty without a time to live."""
        return enabled_attribute(self._time_to_live(name)) or ""

    def _described(self, name: str) -> Described | None:
        return catalog.describe(self._account.client, name)

    def _note(self, table: Described) -> Note | None:
        own = self._account.epochs.described()
        if own is not None:
            self._check_notes(own)
        return None if own is None else self._account.epochs.read(table)

    def empty(self, wanted: Mapping[str, Layout]) -> list[str]:
        """The existing tables without an item. Tombstones are items, so deletes alone never empty a table.

        A time to live may; so a table with one is left out.
        """
        there = [name for name in wanted if self._described(name) is not None]
        return [name for name in there if self._is_empty(name) and not self._may_expire(name)]

    def _may_expire(self, name: str) -> bool:
        """Whether items may have expired. Not if that cannot be asked: most roles have no need to."""
        with contextlib.suppress(NotPermitted):
            return bool(self.expiry(name))
        return False

    def _is_empty(self, name: str) -> bool:
        request: dict[str, Any] = {"TableName": name, "Limit": 1, "ConsistentRead": True}
        while True:
            response = catalog.ask(self._account.client, "Scan", request, name)
            if response["Items"] or "LastEvaluatedKey" not in response:
                return not response["Items"]
            request["ExclusiveStartKey"] = response["LastEvaluatedKey"]

    def _epoch(self, layout: Layout, table: Described) -> int:
        """From the note; if there is none for this table, from the versions of all its items."""
        note = self._note(table)
        if note is not None:
            return note.epoch
        if layout.pristine:
            return 0
        self._check_ready(layout.name, table)  # AWS refuses to scan one that is not
        return self._newest_of.setdefault(table.identity, EpochScan(self._account.client, layout))()

    def _sample(self, layout: Layout) -> list[int]:
        """The epochs of a few items, 0 for those without a version."""
        request = {"TableName": layout.name, "Limit": _SAMPLED, "ConsistentRead": True}
        items = catalog.ask(self._account.client, "Scan", request, layout.name)["Items"]
        versions = [item.get(layout.version, {}).get("N", "0") for item in items]
        return [epoch_of(int(digits)) if digits.isdecimal() else 0 for digits in versions]

    def _plan(self, layout: Layout) -> Plan:
        planned = table_plan(layout, self.source, tags=self._options.tags)
        return replace(planned, ttl=None) if self.keep_expired else planned

    def _problems(self, layout: Layout, table: Described | None, epoch: int) -> Iterator[str]:
        if layout.mark is not None and layout.own_ids:
            yield catalog.chooses_ids(layout)
            return
        if table is None:
            if not self._options.create:
                commands = "\n".join(self._plan(layout).commands(aws_options(self._options)))
                yield (
                    f"the target has no table {layout.name}; let replicator create it (create: true), or create it "
                    f"yourself:\n{commands}"
                )
            return
        wrong = list(catalog.mismatches(layout, table, self.source[0] if self.source is not None else None))
        note = self._note(table)
        yield from wrong or [
            *self._others(layout.name, note),
            *self._ended(layout.name, note),
            *self._contents(layout, table, note, epoch),
            *self._expiry(layout, note),
        ]

    def _chain(self, targets: Collection[str]) -> Iterator[str]:
        """With ``loops`` what a pipeline writes to the source is passed over, so it must come from the target.

        Not noticed if the notes beside the source may not be read, or have no such table: most sources have none.
        ``plan`` says if a foreign table has that name.
        """
        if not self._options.loops or self.source is None:
            return
        with contextlib.suppress(NotPermitted, ForeignTable):
            note = self._note_beside(*self.source)
            if note is not None and note.source and not note.stripped and note.source not in targets:
                yield chained(self.source[0], note, self._options.epochs_table)

    def _replicated_expiries(self) -> Iterator[str]:
        """With ``loops`` an expiry must not be copied, and that of another replica looks like a delete."""
        if not self._options.loops or self.keep_expired or self.source is None or not self.source[0].replicas:
            return
        source, client = self.source
        if (attribute := expiring_attribute(client, source)) is not None:
            yield (
                f"the source {source.name} has a time to live ({attribute}), and is a replica of a global table, with "
                f"others in {', '.join(source.replicas)}. Items that expire there are removed here as if they had been "
                "deleted: the stream does not tell the difference, so with loops: true such an expiry would be copied, "
                "and could remove an item that was renewed in the target. Turn the time to live off in the source and "
                "in the target, or copy a table without replicas"
            )

    def _foreign_beside(self) -> Iterator[str]:
        """That the notes beside the source cannot be read, as another table has their name."""
        if self._options.loops and self.source is not None:
            with contextlib.suppress(ReplicatorError):
                try:
                    self._note_beside(*self.source)
                except ForeignTable as e:
                    yield f"{NO_STATEMENT}: whether another pipeline fills the source cannot be told, as {e}"

    def opposite(self) -> Iterator[str]:
        """With ``loops``: that the opposite pipeline has not run yet, if that can be told."""
        if not self._options.loops or self.source is None:
            return
        with contextlib.suppress(ReplicatorError):
            if self._note_beside(*self.source) is None:
                yield (
                    f"no opposite pipeline has run yet, according to {self._options.epochs_table} beside the source: "
                    "what applications write to the target before it starts is not copied back"
                )

    def _note_beside(self, source: SourceTable, client: Client) -> Note | None:
        return Epochs(client, self._options.epochs_table).beside(source)

    def _others(self, table: str, note: Note | None) -> Iterator[str]:
        if note is not None and note.pipeline != self._pipeline:
            yield taken(table, note, self._options.epochs_table)

    def _ended(self, table: str, note: Note | None) -> Iterator[str]:
        if note is not None and note.stripped:
            yield ended(table, self._options.epochs_table)

    def end(self, layout: Layout) -> None:
        """Note that nothing of the pipeline may write to the table any more."""
        if (table := self._described(layout.name)) is not None:
            self._account.epochs.end(table, self._pipeline)

    def _expiry(self, layout: Layout, note: Note | None) -> Iterator[str]:
        if layout.mark is not None and not self.keep_expired:
            yield from self._unequal_expiry(layout, note)
        ttl = self._time_to_live(layout.name) if self.keep_expired else {}
        if ttl.get("TimeToLiveStatus") in ("ENABLED", "ENABLING"):
            yield (
                f"the target's table {layout.name} has a time to live, so it removes the items that ttl_deletes: "
                "ignore keeps. Turn it off: aws dynamodb update-time-to-live --table-name "
                f"{layout.name}{aws_options(self._options)} --time-to-live-specification "
                f"Enabled=false,AttributeName={ttl.get('AttributeName', '')}"
            )

    def _without_expiry(self, layout: Layout, table: Described) -> Iterator[str]:
        """That ``create`` does not give the source's time to live to a table that others have created."""
        if not self._options.create or self._options.loops or self.source is None or self._note(table) is not None:
            return
        with contextlib.suppress(NotPermitted):  # only tables that a run creates need that permission
            wanted = self._plan(layout).ttl
            if wanted is not None and wanted != self.expiry(layout.name):
                yield (
                    f"{NO_STATEMENT}: the source has a time to live ({wanted}), and the target's table "
                    f"{layout.name} has not the same. create: true turns it on only in a table that it creates, since "
                    "this one may have items of others, which it would remove. What expires in the source is deleted "
                    "here by its stream"
                )

    def _unequal_expiry(self, layout: Layout, note: Note | None) -> Iterator[str]:
        """With ``loops`` each table expires its own items, so the copy needs the source's time to live."""
        if self.source is None:
            return
        wanted = expiring_attribute(self.source[1], self.source[0])
        existing = self._time_to_live(layout.name)
        is_new = layout.name in self._created or (note is not None and note.created)
        will_be_enabled = is_new and existing.get("TimeToLiveStatus") == "DISABLED"
        if wanted is None or will_be_enabled or wanted == enabled_attribute(existing):
            return
        yield (
            f"the source has a time to live ({wanted}), and the target's table {layout.name} has not the same. With "
            "loops: true an expiry is not copied, because the other table's item may have been renewed: each table "
            "removes its own items. Turn it on: aws dynamodb update-time-to-live --table-name "
            f"{layout.name}{aws_options(self._options)} --time-to-live-specification "
            f"Enabled=true,AttributeName={wanted}"
        )

    def _contents(self, layout: Layout, table: Described, note: Note | None, epoch: int) -> Iterator[str]:
        """Why items that are already in the table prevent a run."""
        starts_epoch = note is None or note.epoch < epoch
        if not starts_epoch:
            return
        self._check_ready(layout.name, table)  # AWS refuses to scan one that is not
        if note is not None and not layout.pristine:
            if note.attributes not in (None, layout.guards) and not self._is_empty(layout.name):
                yield _guarded_otherwise(layout, note.attributes or ())
            return
        if self._options.adopt or not (epochs := self._sample(layout)):
            return
        if layout.pristine:
            yield _not_empty(layout.name)
        elif min(epochs) < FIRST_EPOCH or not self._may_be_own(table):
            yield (
                f"the target's table {layout.name} already has items, and no record that this pipeline wrote them. "
                "Name an empty table, or take this one over (adopt: true): the source's items replace those with the "
                "same key, all others stay"
            )

    def _may_be_own(self, table: Described) -> bool:
        """Whether a table of items with versions is taken for this pipeline's: restored, or its note was lost.

        If it is not, a start finds in its items the epoch of a pipeline that it has no checkpoints of: a gap.
        """
        epochs = self._account.epochs
        return epochs.described() is None or epochs.may_be_of(table, self._pipeline)

    def refused_changes(self, wanted: Mapping[str, Layout], changes: Sequence[Change]) -> list[str]:
        """Why the items of tables that are not empty cannot be brought to a changed definition, a sentence each."""
        return [text for name, layout in wanted.items() for text in self._refused(layout, _former(layout, changes))]

    def _refused(self, layout: Layout, former: tuple[str, ...]) -> Iterator[str]:
        if former == layout.guards or self._described(layout.name) is None or self._is_empty(layout.name):
            return
        yield _not_empty(layout.name) if layout.pristine else _guarded_otherwise(layout, former)

    def _create(self, layout: Layout) -> Described | None:
        """Create the table. It also counts as created if it is not known whether it was: ``make`` is called again.

        So it does if it is there by now, although it was absent just before: the client may have repeated a request
        whose response was lost. Not if CreateTable is refused, throttled included: a table that is there later was
        created by others.
        """
        if not self._options.create:
            return None
        plan = self._plan(layout)
        try:
            table = catalog.create(self._account.client, plan.create)
        except ReplicatorError as e:
            if not isinstance(e.__cause__, AwsError) or in_doubt(e.__cause__):
                self._created.add(layout.name)
            elif not isinstance(e, TransientError):
                self._created.discard(layout.name)
            raise
        self._created.add(layout.name)
        return table or self._described(layout.name)

    def _note_created(self, layout: Layout, table: Described | None) -> None:
        """Note that this pipeline created the table: only such a table gets the source's time to live."""
        if table is not None and layout.name in self._created:
            self._account.epochs.write(table, replace(self._own_note(layout, 0), created=True))
            self._created.remove(layout.name)

    def _own_note(self, layout: Layout, epoch: int) -> Note:
        source = self.source[0].arn if self.source is not None and self._options.loops else ""
        return Note(self._pipeline, epoch, source=source, attributes=layout.guards)

    def _check_ready(self, name: str, table: Described | None) -> None:
        if table is None or not table.ready:
            raise TransientError(f"the target's table {name} is being created, or restored")
        if name == self._options.epochs_table:
            self._check_notes(table)

    def _check_notes(self, own: Described) -> None:
        if own.keys != KEYS:
            raise ForeignTable(foreign(own.name, "beside the target"))

    def _enable_ttl(self, name: str, attribute: str | None) -> None:
        """Enable time to live as in the source, unless it has none, or it is configured already."""
        if attribute is not None and self._time_to_live(name).get("TimeToLiveStatus") == "DISABLED":
            specification = {"Enabled": True, "AttributeName": attribute}
            request = {"TableName": name, "TimeToLiveSpecification": specification}
            catalog.ask(self._account.client, "UpdateTimeToLive", request, name)

    def _time_to_live(self, name: str) -> Mapping[str, Any]:
        response = catalog.ask(self._account.client, "DescribeTimeToLive", {"TableName": name}, name)
        ttl: Mapping[str, Any] = response["TimeToLiveDescription"]
        return ttl


def _former(layout: Layout, changes: Sequence[Change]) -> tuple[str, ...]:
    """The attributes with which a table's items were stored."""
    was = {change.part: change.was for change in changes if change.table == layout.name}
    if was.get("pristine"):
        return ()
    return was.get("version_attribute") or layout.version, was.get("deleted_attribute") or layout.deleted


def _not_empty(name: str) -> str:
    return (
        f"the target's table {name} is not empty, but a pristine copy starts with an empty table: without versions, "
        f"obsolete items cannot be told from current ones. To start with one, {_ELSEWHERE}"
    )


def _guarded_otherwise(layout: Layout, former: tuple[str, ...]) -> str:
    """That the sweep would not find the table's items: their versions are in ``former`` attributes, or nowhere.

    Removing whatever has no version is no remedy: items that others wrote to an adopted table have none, either.
    """
    if not former:
        return (
            f"the items of the target's table {layout.name} have no versions, because they were stored with pristine: "
            "true: without it, no resync could tell obsolete items from current ones. Restore pristine: true. Or, to "
            f"start with an empty table, {_ELSEWHERE}"
        )
    options = ("version_attribute", "deleted_attribute")
    changed = [of for of in zip(options, former, layout.guards, strict=True) if of[1] != of[2]]
    before, after = (" and ".join(f"{of[0]}: {of[which]}" for of in changed) for which in (1, 2))
    return (
        f"the items of the target's table {layout.name} were stored with {before}, and the config has {after}: a "
        "resync would leave obsolete items, or show tombstones as items. Restore the former name. Or, to start with an "
        f"empty table, {_ELSEWHERE}"
    )


def wrong_names(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        try:
            table_name(name)
        except ValueError as e:
            of_another = f"; {_NO_ARN}" if name.startswith("arn:") else ""
            yield f"target.table: {name!r} {e}{of_another}"


_NO_ARN = (
    "a table of another account is named without its ARN, and written with a role of that account (target.role_arn)"
)
