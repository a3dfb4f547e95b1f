"""Turns error responses into our errors, by what to do about them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from replicator.aws.errors import THROTTLED
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError

WRITING, READING = "writing documents", "reading versions"  # requests that contain documents or their ids


class ResponseLost(TransientError):
    """The request may have been applied, or may still be."""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded body; None if it is not JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def code(self) -> str:
        """The error code of an AWS service in front of the engine; empty if there is none."""
        value = self.json
        code = value.get("__type") if isinstance(value, dict) else None
        return code.rpartition("#")[2] if isinstance(code, str) else ""

    @property
    def throttled(self) -> bool:
        return self.code in THROTTLED

    @property
    def cause(self) -> tuple[str, str]:
        """The engine's error: type and reason, each empty if absent."""
        value = self.json
        error = value.get("error") if isinstance(value, dict) else None
        if isinstance(error, dict):
            return str(error.get("type", "")), _first_line(error.get("reason", ""))
        texts = (value.get(name) for name in ("error", "message", "Message")) if isinstance(value, dict) else ()
        return "", _first_line(next((text for text in texts if isinstance(text, str)), ""))


def _first_line(text: object) -> str:
    """Without Amazon's further lines, which repeat the request and its session token."""
    return next(iter(str(text).splitlines()), "")


def failure(response: Response, server: str, doing: str) -> ReplicatorError:
    """The error for an unsuccessful response. ``doing``: what the request was for, e.g. "writing documents"."""
    type, reason = response.cause
    known = None if response.json is None else engine_failure(response.status, type, reason, server)
    if known is not None:
        return known
    match response.status:
        case 401:
            advice = "Correct target.username and target.password, or the API key"
            return NotAuthenticated(f"{server} refuses the login", "login", server, advice)
        case 403:
            return _forbidden(reason or type or "403 without a reason", server, doing)
        case 408:
            return ResponseLost(f"{server} gave up {doing} (status 408): the request took too long to arrive")
        case status if status == 429 or response.throttled:
            return TransientError(f"{server} is overloaded ({type or response.code or 429})")
        case status if status >= 500:
            return ResponseLost(f"{server} failed while {doing}: {_summary(response)}")
        case status if status < 300 and not response.body:
            return ResponseLost(
                f"{server} returned an empty response while {doing} (status {status}): it was truncated on the way"
            )
    if response.json is None:
        return ConfigError(
            f"{server} responded with {_summary(response)}, which does not come from a search engine: "
            "is there a proxy or a login page in between? Check target.url"
        )
    text = type if doing in (WRITING, READING) else reason or type  # the reason may quote the request
    return ConfigError(f"{server} returned an error while {doing}: {text or _summary(response)}")


def _forbidden(reason: str, server: str, doing: str) -> NotPermitted:
    if _UNKNOWN_CALLER.search(reason):
        return NotAuthenticated(f"{server} refuses the login: {reason}", "login", server, _CREDENTIALS)
    return NotPermitted(f"{server} does not permit {doing}: {reason}", doing, server, _GRANT)


def engine_failure(status: int, type: str, reason: str, server: str) -> ReplicatorError | None:
    """The error for a failure that concerns the index or the cluster; None if it may concern a single document."""
    for known, kind, text in _KNOWN:
        if type == known or (known.startswith("*") and type == _ARGUMENT and reason.startswith(known[1:])):
            return kind(f"{server}: {text.format(reason=reason.rstrip('.'))}")
    if type == "cluster_block_exception":
        return TransientError(f"{server}: {_block(status, reason)}")
    if type == "security_exception" and status == 403:
        return NotPermitted(f"{server}: {reason}", "write", server, _GRANT)
    lost = status >= 500 or status == 408
    return ResponseLost(f"{server} fails to store documents: {type or status}") if lost else None


def is_own(status: int, type: str) -> bool:
    """Whether a failed write may be about its document alone rather than about its shard or the cluster."""
    return status >= 500 and type != "cluster_block_exception" and all(type != known for known, _, _ in _KNOWN)


_UNKNOWN_CALLER = re.compile("security token|signature|authorization header", re.IGNORECASE)  # in Amazon's words
_CREDENTIALS = "Correct the AWS credentials, or give others (AWS_PROFILE, target.profile, target.role_arn)"
_GRANT = "Grant it to the login of the target"
_ARGUMENT = "illegal_argument_exception"  # only the beginning of its reason is fixed text: a value may follow
_KNOWN: tuple[tuple[str, type[ReplicatorError], str], ...] = (
    ("index_closed_exception", TransientError, "the index is closed; waiting until it is opened (POST INDEX/_open)"),
    (
        "index_not_found_exception",
        ConfigError,
        "the index, or the alias that points to it, is gone: {reason}. If its documents are lost, copy everything "
        "again with: replicator resync CONFIG",
    ),
    (
        "invalid_index_name_exception",  # of an alias that is gone: auto-creation cannot create an index of this name
        ConfigError,
        "the alias that replicator writes through is gone, and perhaps the index too: {reason}. If its documents are "
        "lost, copy everything again with: replicator resync CONFIG",
    ),
    (
        "resource_already_exists_exception",
        TransientError,
        "another process created the index at the same time; looking again",
    ),
    (
        "routing_missing_exception",
        ConfigError,
        "the index requires routing; set routing: ATTRIBUTE under the table in target.tables",
    ),
    ("unavailable_shards_exception", ResponseLost, "a shard of the index is not available (its health is red)"),
    ("no_shard_available_action_exception", ResponseLost, "a shard of the index is not available (its health is red)"),
    ("master_not_discovered_exception", ResponseLost, "the cluster has no master"),
    (
        "*no write index is defined",
        ConfigError,
        "the alias now points to several indices; keep only the one that check names",
    ),
    (
        "*number of documents in the",
        ConfigError,
        "a shard is full ({reason}); create an index with more shards (index: NAME, shards: NUMBER)",
    ),
    ("*pipeline with id [", ConfigError, "{reason}; the index refers to an ingest pipeline that does not exist"),
)


def _block(status: int, reason: str) -> str:
    if ("read-only" in reason and "allow delete" in reason) or status == 429:
        return (
            "the index is read-only because a disk is nearly full (flood stage); waiting until there is room. "
            'OpenSearch keeps the block until: PUT INDEX/_settings {"index.blocks.read_only_allow_delete": null}'
        )
    if "no master" in reason or "not recovered" in reason or "state" in reason:
        return "the cluster is not ready (no master, or its state is not recovered yet)"
    return "writes to the index are blocked; waiting until the block is removed (index.blocks.*)"


def _summary(response: Response) -> str:
    if response.json is not None or not response.body:
        return f"status {response.status}"
    page = "a web page" if response.body.lstrip()[:1] == b"<" else "a body that is not JSON"
    return f"{page} (status {response.status})"
