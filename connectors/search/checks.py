"""Checks of a live index: probes before the first write, and a watch while a run writes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, mappings
from connectors.search.bulk import Bulk
from connectors.search.connection import Connection
from connectors.search.layout import Layout
from connectors.search.mappings import OURS
from connectors.search.responses import Verdict, worst
from replicator.errors import ConfigError
from replicator.target.contract import Denied
from replicator.version import FIRST_EPOCH, version

_SAMPLED = 100  # documents of another tool
_EXPECTED = ("stored", "conflict", "conflict", "stored")
_NEEDED = ("manage", "read", "index", "delete")


def versions_kept(bulk: Bulk, layout: Layout, server: str) -> None:
    """Write, overwrite and remove a scratch document, which is a tombstone, so that no search ever shows it.

    ConfigError if older and equal versions are not refused; NotPermitted and TransientError as for any write.
    """
    found = bulk.together(layout, list(_trial(layout, f"replicator-probe-{uuid.uuid4().hex}")))
    error = worst(found)
    if error is not None:
        raise error
    if tuple(verdict.kind for verdict in found) != _EXPECTED:
        raise ConfigError(
            f"{server} does not compare versions as replicator needs: writing versions 2, 1, 2 of a document and "
            f"deleting it gave {', '.join(map(_said, found))} instead of {', '.join(_EXPECTED)}. Older changes could "
            "overwrite newer ones"
        )


def _trial(layout: Layout, id: str) -> Iterator[bytes]:
    routing = {} if layout.routed_by is None else {"routing": "replicator"}
    for number in (2, 1, 2):
        action = {"_id": id, "version": number, "version_type": "external", **routing}
        own = {"version": number, "deleted": True}
        yield orjson.dumps({"index": action}) + b"\n" + orjson.dumps({OURS: own}) + b"\n"
    yield orjson.dumps({"delete": {"_id": id, "version": 2, "version_type": "external_gte", **routing}}) + b"\n"


def _said(verdict: Verdict) -> str:
    return f"{verdict.kind} ({verdict.reason})" if verdict.reason else verdict.kind


def swallowed(connection: Connection, layout: Layout) -> Iterator[str]:
    """Documents that another tool wrote with versions so high that every write of ours would be taken for old."""
    foreign = {"bool": {"must_not": {"exists": {"field": f"{OURS}.version"}}}}
    wanted = {"size": _SAMPLED, "version": True, "_source": False, "query": foreign}
    path = f"/{quote(layout.index, safe='')}/_search?filter_path=hits.hits._version"
    found: Any = connection.ask("POST", path, orjson.dumps(wanted), doing="searching for documents of other tools")
    highest = max((hit["_version"] for hit in found.get("hits", {}).get("hits", ())), default=0)
    if highest >= version(FIRST_EPOCH, 0):
        yield (
            f"{layout.index}: another tool filled it with versions up to {highest}, above those of a new copy, so "
            "that writes to its documents would have no effect. Empty the index, or choose another one with "
            "index: NAME (adopt: true would accept it as it is)"
        )


def templates(connection: Connection, layout: Layout) -> Iterator[str]:
    """What index templates would make of an absent index, where the cluster tells. The config's settings win."""
    path = f"/_index_template/_simulate_index/{quote(layout.index, safe='')}"
    answer = connection.request("POST", path)
    found = answer.json
    template = found.get("template", {}) if answer.status == 200 and isinstance(found, dict) else {}
    settings = mappings.flatten_settings(template.get("settings", {})) | mappings.flatten_settings(layout.settings)
    problems = *mappings.settings_hazards(settings), *mappings.mapping_hazards(template.get("mappings", {}))
    yield from (f"{layout.index}: an index template would make it so that {text}" for text in problems)


def missing_privileges(connection: Connection, layouts: Sequence[Layout]) -> Iterator[str]:
    """What the login may not do, if the cluster tells (Elasticsearch with security). Else each refusal says it."""
    names = [name for layout in layouts for name in (layout.index, layout.alias, layout.writer)]
    wanted = {"index": [{"names": names, "privileges": list(_NEEDED)}]}
    answer = connection.request("POST", "/_security/user/_has_privileges", orjson.dumps(wanted))
    found = answer.json
    if answer.status != 200 or not isinstance(found, dict) or found.get("has_all_requested", True):
        return
    for name, granted in found.get("index", {}).items():
        missing = [privilege for privilege in _NEEDED if not granted.get(privilege, True)]
        if missing:
            login = f"{connection.server}: the login {found.get('username', '')}"
            yield Denied(f"{login} lacks {', '.join(missing)} on {name}")


EVERY = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Opened:
    """An index as it was opened: its id, and what was noted in it."""

    layout: Layout
    id: str
    notes: Mapping[str, Any]


@dataclass(slots=True)
class Watch:
    """The indices that were opened.

    A look after the fact is enough: an index that was replaced or restored is told by its id, also by the next run, and
    where a write arrived is said by each answer.
    """

    connection: Connection
    now: Callable[[], float] = time.monotonic
    _opened: Sequence[Opened] = ()
    _looked: float = 0.0

    def begin(self, opened: Sequence[Opened]) -> None:
        """They were looked at just now."""
        self._opened, self._looked = opened, self.now()

    def look(self) -> None:
        """ConfigError, with everything that changed, if a copy cannot go on with it. Asks at most every 5 s.

        A run that was stopped while it opened the index, and replaced, may have noted its own epoch over a later one:
        engines compare nothing there. That is put right, or the next start would take the index for an older one.
        """
        if not self._opened or self.now() - self._looked < EVERY:
            return
        states = catalog.states(self.connection, [opened.layout for opened in self._opened])
        found = list(zip(self._opened, states, strict=True))
        if problems := [text for o, state in found for text in catalog.changed(o.layout, state, o.id)]:
            raise ConfigError(*(f"{self.connection.server}: {text}" for text in problems))
        for opened, state in found:
            if state.index is not None and state.index.epoch < opened.notes["epoch"]:
                self._note_again(opened)
        self._looked = self.now()

    def _note_again(self, opened: Opened) -> None:
        """As it is now, with all that others noted."""
        now = catalog.state(self.connection, opened.layout).index
        if now is not None and now.id == opened.id and now.epoch < opened.notes["epoch"]:
            catalog.note(self.connection, opened.layout, now, opened.notes)
