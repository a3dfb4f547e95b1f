"""Questions to a real index: does it keep versions as it must, and did another tool fill it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import orjson

from connectors.search import hazards
from connectors.search.bulk import Bulk
from connectors.search.connection import Connection
from connectors.search.layout import Layout
from connectors.search.names import OURS
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
            f"{server} does not keep versions as a copy needs it: versions 2, 1, 2 of a document and its removal "
            f"gave {', '.join(map(_said, found))} instead of {', '.join(_EXPECTED)}. Documents could go back in time"
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
            f"{layout.index}: another tool filled it with versions up to {highest}, above what a copy begins with, so "
            "that writes to its documents would have no effect. Empty the index, or choose another one with "
            "index: NAME (adopt: true would accept it as it is)"
        )


def templates(connection: Connection, layout: Layout) -> Iterator[str]:
    """What index templates would make of an absent index, where the cluster tells. The config's settings win."""
    path = f"/_index_template/_simulate_index/{quote(layout.index, safe='')}"
    answer = connection.request("POST", path)
    found = answer.json
    template = found.get("template", {}) if answer.status == 200 and isinstance(found, dict) else {}
    settings = hazards.flat(template.get("settings", {})) | hazards.flat(layout.settings)
    problems = *hazards.of_settings(settings), *hazards.of_mapping(template.get("mappings", {}))
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
