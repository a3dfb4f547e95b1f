"""Identities of a pipeline's source and target tables, and the definition of its documents. Pure comparisons.

Two cases are kept apart. A config that names *another* source or target table is a mistake, unless the user accepts it.
The *same* table recreated since the last run means lost data: a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Parts = Mapping[str, str]
"""The parts of a table's definition that determine its documents: equal parts produce equal documents."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The table (or index) of a target that a name in the config refers to.

    ``place``: its location, for messages; different places are different tables. ``id``: distinguishes the table from a
    later one, or a copy, at the same place; empty if it is absent or the target has no ids. ``within``: the scope of
    the id; ids of different scopes (a restored database) cannot be compared. ``at``: the server's own name for the
    place, independent of the address; empty if the server has none, so that ``place`` is compared instead. ``known``:
    False as long as the place cannot be determined; such an identity is not stored. ``beside``: the place of a table
    that remembers deleted documents, if they have one of their own; then ``id`` is that of the table, a space, and
    that of the other one. ``names``: further names of the place, which come and go one by one, as the nodes of a
    cluster do: with half of the earlier ones it is the same. ``columns``: by name, the id of each column that documents
    are stored in, which distinguishes it from a later one of that name; empty if the target has no such ids.
    """

    place: str
    id: str = ""
    within: str = ""
    at: str = ""
    known: bool = True
    beside: str = ""
    names: tuple[str, ...] = ()
    columns: Mapping[str, int] = field(default_factory=dict)


REMEMBERS = "it remembers deleted documents, and without that one of them could come back. Leave it to replicator"
"""What is said of ``beside``, if others have removed or replaced it."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a pipeline is bound to, in addition to its PipelineState; stored as a checkpoint entry.

    ``server``: the source's endpoint. ``tables``: identities of the target's tables, by name in the config. ``parts``:
    by table.
    """

    server: str = ""
    tables: Mapping[str, Identity] = field(default_factory=dict)
    parts: Mapping[str, Parts] = field(default_factory=dict)


UNKNOWN = Definition()  # of a pipeline stored by an earlier version of replicator


@dataclass(frozen=True, slots=True)
class Origin:
    """The identity of a source table. ``server``: the endpoint."""

    arn: str
    id: str
    stream: str | None
    server: str

    def __str__(self) -> str:
        return f"{self.arn} at {self.server}" if self.server else self.arn


def same_source(was: Origin, now: Origin) -> bool:
    """Whether the config still names the replicated table, or a later one in its place (which is a gap).

    An ARN identifies region, account and name. Behind a different endpoint, tables with equal ARNs (DynamoDB Local
    derives them from the name) are the same only if their ids or streams are equal.
    """
    if was.arn != now.arn:
        return False
    moved = "" not in (was.server, now.server) and was.server != now.server
    known = was.stream == now.stream or (was.id == now.id and was.id != was.arn)
    return known or not moved


def other_tables(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> tuple[str, str] | None:
    """The stored target tables and the configured ones, for messages; None if they are the same."""
    if not was or (was.keys() == now.keys() and all(_same_place(was[name], now[name]) for name in was)):
        return None
    moved = [name for name in was if name not in now or not _same_place(was[name], now[name])]
    new = [name for name in now if name not in was or not _same_place(was[name], now[name])]
    if not moved or not new:  # tables were only added, or only removed
        moved, new = list(was), list(now)
    before, after = (was, moved), (now, new)
    names = _places(*before), _places(*after)
    return names if names[0] != names[1] else (_exactly(*before), _exactly(*after))


def _same_place(was: Identity, now: Identity) -> bool:
    if was.id != "" and (was.id, was.within) == (now.id, now.within):
        return True
    if was.names and 2 * len(set(was.names) & set(now.names)) >= len(was.names):
        return True
    return was.at == now.at if was.at and now.at else was.place == now.place


def _places(tables: Mapping[str, Identity], names: list[str]) -> str:
    return ", ".join(tables[name].place for name in sorted(names))


def _exactly(tables: Mapping[str, Identity], names: list[str]) -> str:
    """Like ``_places``, with the servers' own names: the same address may lead to another cluster."""
    known = {name: f" ({tables[name].at})" if tables[name].at else "" for name in sorted(names)}
    return ", ".join(f"{name}: {tables[name].place}{at}" for name, at in known.items())


def recreated_tables(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> Iterator[str]:
    """The places whose table was recreated, so that it is not the one that was written to."""
    for name, before in was.items():
        after = now.get(name)
        if after is not None and before.id and after.id and before.within == after.within and before.id != after.id:
            yield after.place


def readded_columns(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> list[str]:
    """The columns, with their places, that were dropped and added again in tables that are the same."""
    return [
        f"{after.place}: column {column}"
        for name, after in now.items()
        if name in was and after.id and (was[name].id, was[name].within) == (after.id, after.within)
        for column, id in after.columns.items()
        if was[name].columns.get(column, id) != id
    ]


def forgotten_deletes(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> list[str]:
    """The places that remembered deleted documents of tables, if these are the same and only that was removed or
    replaced; empty if a table was, too."""
    recreated = list(recreated_tables(was, now))
    lost = [
        after.beside
        for name, after in now.items()
        if name in was and after.beside and _ids(was[name])[0] == _ids(after)[0] and _ids(was[name]) != _ids(after)
    ]
    return lost if len(lost) == len(recreated) else []


def _ids(identity: Identity) -> tuple[str, str]:
    own, _, beside = identity.id.partition(" ")
    return own, beside


@dataclass(frozen=True, slots=True)
class Change:
    """A changed part of a table's definition; ``was`` or ``now`` is "" if the part is new or removed."""

    table: str
    part: str
    was: str
    now: str

    @property
    def added(self) -> bool:
        return self.was == ""

    def __str__(self) -> str:
        if self.added:
            return f"{self.table}: {self.part} was added"
        return f"{self.table}: {self.part} was {'changed' if self.now else 'removed'}"


def changes(was: Mapping[str, Parts], now: Mapping[str, Parts]) -> list[Change]:
    """Differences between the definitions, for tables in both."""
    return [
        Change(name, part, before.get(part, ""), after.get(part, ""))
        for name, before in sorted(was.items())
        if (after := now.get(name)) is not None
        for part in sorted(before.keys() | after.keys())
        if before.get(part, "") != after.get(part, "")
    ]
