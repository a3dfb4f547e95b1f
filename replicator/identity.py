"""What a copy is a copy of, where it is kept, and what decides its documents. Pure comparisons.

Two questions are kept apart. A config that names *another* source or another table of the target is a mistake, unless a
person says otherwise. The *same* table made anew since the last run is lost data: a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Parts = Mapping[str, str]
"""What decides which documents a table holds, part by part: equal parts make equal documents."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which table (or index) of a target a name in the config leads to.

    ``place``: where it is, in words that people understand; different places hold different tables. ``id`` tells the
    table from a later one, or a copy, at the same place; empty where it is absent or the target cannot tell.
    ``within``: what gave out the id. Ids of different givers say nothing about each other, as after a database was
    restored. ``at``: the place as the server knows it, however it is reached; empty where the server does not tell, so
    that the words have to do. ``known``: False as long as nothing there tells which place it is: such a one is not
    remembered.
    """

    place: str
    id: str = ""
    within: str = ""
    at: str = ""
    known: bool = True


@dataclass(frozen=True, slots=True)
class Definition:
    """What a pipeline is bound to, beside what its PipelineState says: stored with its entries.

    ``server``: the endpoint that the source is read from. ``tables``: the target's tables by their names in the config.
    ``parts``: see Parts, by table.
    """

    server: str = ""
    tables: Mapping[str, Identity] = field(default_factory=dict)
    parts: Mapping[str, Parts] = field(default_factory=dict)


UNKNOWN = Definition()  # of a pipeline that an earlier version of replicator has stored


@dataclass(frozen=True, slots=True)
class Origin:
    """The source table as its descriptions tell it from others; ``server``: the endpoint that it is read from."""

    arn: str
    id: str
    stream: str | None
    server: str

    def __str__(self) -> str:
        return f"{self.arn} at {self.server}" if self.server else self.arn


def same_source(was: Origin, now: Origin) -> bool:
    """Whether the config still leads to the table that was copied, or to a later one in its place, which is a gap.

    An ARN tells region, account and name. Behind another endpoint a table of the same ARN (DynamoDB Local gives every
    table of a name the same) is the same one if its id or its stream is.
    """
    if was.arn != now.arn:
        return False
    moved = "" not in (was.server, now.server) and was.server != now.server
    known = was.stream == now.stream or (was.id == now.id and was.id != was.arn)
    return known or not moved


def other_tables(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> tuple[str, str] | None:
    """The stored tables of the target and those that the config leads to, in words, if they are not the same."""
    if not was or (was.keys() == now.keys() and all(_same_place(was[name], now[name]) for name in was)):
        return None
    moved = [name for name in was if name not in now or not _same_place(was[name], now[name])]
    new = [name for name in now if name not in was or not _same_place(was[name], now[name])]
    before, after = (was, moved or list(was)), (now, new or list(now))
    told = _places(*before), _places(*after)
    return told if told[0] != told[1] else (_exactly(*before), _exactly(*after))


def _same_place(was: Identity, now: Identity) -> bool:
    if was.id != "" and (was.id, was.within) == (now.id, now.within):
        return True
    return was.at == now.at if was.at and now.at else was.place == now.place


def _places(tables: Mapping[str, Identity], names: list[str]) -> str:
    return ", ".join(tables[name].place for name in sorted(names))


def _exactly(tables: Mapping[str, Identity], names: list[str]) -> str:
    """The same where words alone do not tell them apart: the same address may lead to another cluster."""
    known = {name: f" ({tables[name].at})" if tables[name].at else "" for name in sorted(names)}
    return ", ".join(f"{name}: {tables[name].place}{at}" for name, at in known.items())


def recreated_tables(was: Mapping[str, Identity], now: Mapping[str, Identity]) -> Iterator[str]:
    """The places whose table is not the one that was written to."""
    for name, before in was.items():
        after = now.get(name)
        if after is not None and before.id and after.id and before.within == after.within and before.id != after.id:
            yield after.place


@dataclass(frozen=True, slots=True)
class Change:
    """A part of a table's definition that is not what it was; "" where there was, or is, none."""

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
    """In what the definitions of the tables that both know differ."""
    return [
        Change(name, part, before.get(part, ""), after.get(part, ""))
        for name, before in sorted(was.items())
        if (after := now.get(name)) is not None
        for part in sorted(before.keys() | after.keys())
        if before.get(part, "") != after.get(part, "")
    ]
