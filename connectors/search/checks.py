"""Checks against a live cluster: probes before the first write, and a watch for changes during a run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import catalog, ingest, mappings
from connectors.search.bulk import Bulk
from connectors.search.connection import Connection
from connectors.search.layout import Layout
from connectors.search.mappings import OURS
from connectors.search.responses import Verdict, worst
from replicator.errors import ConfigError, GapFound
from replicator.target.contract import Denied
from replicator.target.notes import superseding
from replicator.version import FIRST_EPOCH, version

_SAMPLED = 100  # documents of other tools
_EXPECTED = ("stored", "conflict", "conflict", "stored")
_NEEDED = ("manage", "read", "index", "delete")


def check_versioning(bulk: Bulk, layout: Layout, server: str) -> None:
    """Check that the engine rejects older and equal versions, with a scratch tombstone, which no search shows.

    Raises ConfigError if it does not; NotPermitted and TransientError as for any write.
    """
    verdicts = bulk.together(layout, list(_trial(layout, f"replicator-probe-{uuid.uuid4().hex}")))
    error = worst(verdicts)
    if error is not None:
        raise error
    if tuple(verdict.kind for verdict in verdicts) != _EXPECTED:
        raise ConfigError(
            f"{server} does not compare versions as replicator needs: writing versions 2, 1, 2 of a document and "
            f"deleting it gave {', '.join(map(_described, verdicts))} instead of {', '.join(_EXPECTED)}. Older "
            "changes could overwrite newer ones"
        )


def _trial(layout: Layout, id: str) -> Iterator[bytes]:
    routing = {} if layout.routed_by is None else {"routing": "replicator"}
    for number in (2, 1, 2):
        action = {"_id": id, "version": number, "version_type": "external", **routing}
        own = {"version": number, "deleted": True}
        yield orjson.dumps({"index": action}) + b"\n" + orjson.dumps({OURS: own}) + b"\n"
    yield orjson.dumps({"delete": {"_id": id, "version": 2, "version_type": "external_gte", **routing}}) + b"\n"


def _described(verdict: Verdict) -> str:
    return f"{verdict.kind} ({verdict.reason})" if verdict.reason else verdict.kind


def foreign_versions(connection: Connection, layout: Layout) -> Iterator[str]:
    """Whether another tool stored versions so high that the engine would reject all of ours as older."""
    foreign = {"bool": {"must_not": {"exists": {"field": f"{OURS}.version"}}}}
    wanted = {"size": _SAMPLED, "version": True, "_source": False, "query": foreign}
    path = f"/{quote(layout.index, safe='')}/_search?filter_path=hits.hits._version"
    response: Any = connection.ask("POST", path, orjson.dumps(wanted), doing="searching for documents of other tools")
    highest = max((hit["_version"] for hit in response.get("hits", {}).get("hits", ())), default=0)
    if highest >= version(FIRST_EPOCH, 0):
        yield (
            f"{layout.index}: another tool filled it with versions up to {highest}, above those of a new copy, so "
            "that writes to its documents would have no effect. Empty the index, or choose another one with "
            "index: NAME (adopt: true would accept it as it is)"
        )


def templates(connection: Connection, layout: Layout) -> Iterator[str]:
    """Hazards that index templates would bring to an absent index, if the cluster tells. The config overrides them."""
    path = f"/_index_template/_simulate_index/{quote(layout.index, safe='')}"
    response = connection.request("POST", path)
    simulated = response.json
    template = simulated.get("template", {}) if response.status == 200 and isinstance(simulated, dict) else {}
    settings = mappings.flatten_settings(template.get("settings", {})) | mappings.flatten_settings(layout.settings)
    problems = *mappings.settings_hazards(settings), *mappings.mapping_hazards(template.get("mappings", {}))
    yield from (f"{layout.index}: an index template would make it so that {text}" for text in problems)


def missing_privileges(connection: Connection, layouts: Sequence[Layout]) -> Iterator[str]:
    """Privileges the login lacks, if the cluster tells (Elasticsearch with security); otherwise errors reveal them."""
    names = [name for layout in layouts for name in (layout.index, layout.alias, layout.writer)]
    wanted = {"index": [{"names": names, "privileges": list(_NEEDED)}]}
    response = connection.request("POST", "/_security/user/_has_privileges", orjson.dumps(wanted))
    privileges = response.json
    if response.status != 200 or not isinstance(privileges, dict) or privileges.get("has_all_requested", True):
        return
    for name, granted in privileges.get("index", {}).items():
        missing = [privilege for privilege in _NEEDED if not granted.get(privilege, True)]
        if missing:
            login = f"{connection.server}: the login {privileges.get('username', '')}"
            yield Denied(f"{login} lacks {', '.join(missing)} on {name}")


EVERY = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Opened:
    """An index as it was opened: its id, and the notes stored in it."""

    layout: Layout
    id: str
    notes: Mapping[str, Any]


@dataclass(slots=True)
class Watch:
    """Watches the opened indices for changes by others.

    Noticing a change after the fact is enough: the index's id reveals that it was replaced or restored, to the next run
    as well, and each bulk response names the index that was written to.
    """

    connection: Connection
    now: Callable[[], float] = time.monotonic
    _opened: Sequence[Opened] = ()
    _looked: float = 0.0
    _superseding: str = ""

    def begin(self, opened: Sequence[Opened]) -> None:
        """Start watching indices that were inspected just now."""
        self._opened, self._looked, self._superseding = opened, self.now(), ""

    def look(self) -> None:
        """Raise ConfigError, naming every change, if the run cannot continue. Queries the cluster at most every 5 s.

        A run that was suspended while it opened the index, and was replaced, may have overwritten a later epoch in the
        notes with its own. This restores the later one; otherwise the next start would take the index for an older one.
        """
        if not self._opened or self.now() - self._looked < EVERY:
            return
        states = catalog.states(self.connection, [opened.layout for opened in self._opened])
        watched = list(zip(self._opened, states, strict=True))
        if other := list(self.other_pipelines([opened.layout for opened in self._opened])):
            raise ConfigError(*other)
        changed = [text for o, state in watched for text in catalog.changed(o.layout, state, o.id)]
        if problems := changed or [t for o, state in watched for t in catalog.taken_over(o.layout, state, o.notes)]:
            raise ConfigError(*(f"{self.connection.server}: {text}" for text in problems))
        self._superseding = ""
        for opened, state in watched:
            epoch = int(opened.notes["epoch"])
            if state.index is not None and state.index.epoch < epoch:
                self._note_again(opened)
            if state.index is not None and state.index.epoch > epoch:
                place = f"{self.connection.server}: {opened.layout.index}"
                self._superseding = superseding(place, state.index.epoch, epoch)
        self._looked = self.now()

    def recheck(self) -> None:
        """The same, also without writes. GapFound if a later epoch, which supersedes all of this run, writes there.

        A run that was replaced is told so as it stores the gap; any other writer of the epoch has its own checkpoints.
        """
        self.look()
        if self._superseding:
            raise GapFound(self._superseding, of_target=True, by_hand=True)

    def other_pipelines(self, layouts: Sequence[Layout]) -> Iterator[str]:
        """Whether documents of this run went through an ingest pipeline that has changed since.

        Also before another epoch: it may be one that copies only a few items again.
        """
        for opened in self._opened:
            if opened.layout in layouts:
                yield from ingest.changed(self.connection, opened.layout, opened.notes)

    def _note_again(self, opened: Opened) -> None:
        """Note the epoch again, and keep what others noted."""
        now = catalog.state(self.connection, opened.layout).index
        if now is not None and now.id == opened.id and now.epoch < opened.notes["epoch"]:
            catalog.note(self.connection, opened.layout, now, opened.notes)
