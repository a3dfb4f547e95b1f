"""Two generations of indices behind the readers' aliases: moving the aliases from one to the other, removing one.

What the table's alias points to is the only record of which generation is live, so the move is a single request, and
there is nothing else to keep in step with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog
from connectors.search.catalog import Index, State
from connectors.search.connection import Connection
from connectors.search.layout import LIVE, Layout
from replicator.errors import ConfigError, TransientError


@dataclass(frozen=True, slots=True)
class Generation:
    """One table's index as it should be and as it is, and the pipeline that writes to it."""

    layout: Layout
    state: State
    pipeline: str

    @property
    def seen(self) -> bool:
        """Whether readers see it, and nothing else, through the table's alias."""
        return self.state.searched == (self.layout.index,)

    @property
    def carried(self) -> dict[str, Mapping[str, Any]]:
        """The aliases that move with the readers: the table's, and those that are not replicator's."""
        aliases = {} if self.state.index is None else self.state.index.aliases
        return {name: body for name, body in sorted(aliases.items()) if name != self.layout.writer}

    @property
    def others(self) -> dict[str, Mapping[str, Any]]:
        """The aliases that are not replicator's."""
        return {name: body for name, body in self.carried.items() if name != self.layout.alias}


def read(connection: Connection, layouts: Sequence[Layout], pipeline: str) -> list[Generation]:
    return [Generation(layout, catalog.state(connection, layout), pipeline) for layout in layouts]


def refused(away: Generation, here: Generation) -> Iterator[str]:
    """Why the aliases cannot be moved from one index to the other.

    Whatever is wrong with the index that they leave, or if it is gone, readers are better off with the other one.
    """
    yield from _unfit(here)
    yield from _foreign(away, here)
    yield from _uncarried(away)
    for name in here.others:
        yield (
            f"{here.layout.index} has the alias {name}, but while there are two copies, only the one that the readers "
            "see may have aliases of yours, which go along. Remove it"
        )


def _unfit(one: Generation) -> Iterator[str]:
    yield from not_its_own(one)
    if one.state.index is not None:
        broken = catalog.broken_guarantees(one.layout, one.state.index)
        yield from (f"{one.layout.index}: {text}" for text in broken)


def _uncarried(away: Generation) -> Iterator[str]:
    if away.state.index is not None:
        yield from catalog.alias_hazards(away.layout, away.state.index)
    for name, body in away.carried.items():
        if body.get("is_write_index"):
            yield (
                f"the alias {name} of {away.layout.index} has is_write_index, so something else may write through it, "
                "and must not write to the new copy: remove that from the alias, or remove the alias"
            )


def _foreign(away: Generation, here: Generation) -> Iterator[str]:
    ours = {away.layout.index, here.layout.index}
    if strangers := sorted({*away.state.searched, *here.state.searched} - ours):
        yield f"the alias {here.layout.alias} points to {', '.join(strangers)}, too: remove it from there"


def not_its_own(one: Generation) -> Iterator[str]:
    """Why the index is not the one that its pipeline wrote to."""
    layout, index = one.layout, one.state.index
    if one.state.instead:
        yield from catalog.renamed(layout, one.state)
    elif index is None:
        yield f"the index {layout.index} does not exist"
    elif index.notes.get("pipeline") != one.pipeline:
        yield f"{layout.index} is not of the pipeline {one.pipeline}: its notes name {_noted(index)}"
    elif index.replaced:
        yield catalog.replaced(layout)


def _noted(index: Index) -> str:
    return str(index.notes.get("pipeline", "none"))


def unbuildable(live: Generation, new: Generation) -> Iterator[str]:
    """Why the new index cannot be built beside the live one, as far as that can be told before."""
    if new.state.instead or new.state.index is not None:
        yield (
            f"{new.layout.index} exists already, and a rebuild would create it: choose another name with index: NAME "
            "under the table, or remove it if nothing needs it"
        )
    elif not live.seen:
        found = ", ".join(live.state.searched) or "nothing"
        yield f"the alias {live.layout.alias} points to {found}, not to {live.layout.index} alone; correct that first"
    else:
        yield from _unfit(live)
        yield from _uncarried(live)


def actions(away: Generation, here: Generation) -> Iterator[dict[str, Any]]:
    """The actions that move all aliases, as they are. ``must_exist`` makes the request fail as a whole if another
    one has moved an alias since it was read.
    """
    if here.layout.alias not in away.carried:
        yield {"add": {"index": here.layout.index, "alias": here.layout.alias, "filter": LIVE}}
    for name, body in away.carried.items():
        yield {"remove": {"index": away.layout.index, "alias": name, "must_exist": True}}
        yield {"add": {"index": here.layout.index, "alias": name, **body}}


def point(connection: Connection, away: Sequence[Generation], here: Sequence[Generation]) -> bool:
    """Move all aliases, in one request. False if they were there already."""
    pairs = [pair for pair in zip(away, here, strict=True) if not pair[1].seen]
    wanted = [action for pair in pairs for action in actions(*pair)]
    if not wanted:
        return False
    if problems := [text for pair in pairs for text in refused(*pair)]:
        raise ConfigError(*(f"{connection.server}: {text}" for text in problems))
    doing = f"moving the aliases to {', '.join(one.layout.index for one in here)} (needs manage)"
    connection.ask("POST", "/_aliases", orjson.dumps({"actions": wanted}), doing=doing)
    now = [catalog.state(connection, one.layout) for one in here]
    if any(state.searched != (one.layout.index,) for one, state in zip(here, now, strict=True)):
        raise TransientError(f"{connection.server} has not moved the aliases yet; run the command again")
    return True


def undroppable(one: Generation) -> Iterator[str]:
    """Why the index cannot be removed."""
    index = one.state.index
    if index is None and not one.state.instead:
        return
    yield from not_its_own(one)
    used = sorted(one.others) + ([one.layout.alias] if one.layout.index in one.state.searched else [])
    if used:
        yield f"{one.layout.index} is still read through the alias {', '.join(used)}, so it is not removed"


def drop(connection: Connection, doomed: Sequence[Generation]) -> None:
    if problems := [text for one in doomed for text in undroppable(one)]:
        raise ConfigError(*(f"{connection.server}: {text}" for text in problems))
    for one in doomed:
        if one.state.index is not None:
            path = f"/{quote(one.layout.index, safe='')}"
            connection.ask("DELETE", path, doing=f"removing the index {one.layout.index} (needs delete_index)")
