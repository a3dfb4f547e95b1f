"""What a refused or broken request means, sorted by what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from replicator.aws.errors import THROTTLED
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError

WRITING, READING = "writing documents", "reading versions"  # what is asked with documents, or their ids, in it


class ResponseLost(TransientError):
    """The request may have been carried out, or may still be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: HTTP status, whether the product says that it is Elasticsearch, and the body."""

    status: int
    body: bytes
    elasticsearch: bool = False

    @property
    def json(self) -> Any:
        """The body's value; None if it is no JSON."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    @property
    def code(self) -> str:
        """The error as AWS's own services before an engine name it; empty where they do not."""
        found = self.json
        named = found.get("__type") if isinstance(found, dict) else None
        return named.rpartition("#")[2] if isinstance(named, str) else ""

    @property
    def throttled(self) -> bool:
        return self.code in THROTTLED

    @property
    def cause(self) -> tuple[str, str]:
        """The engine's error: its type and its reason, empty where it names none."""
        found = self.json
        error = found.get("error") if isinstance(found, dict) else None
        if isinstance(error, dict):
            return str(error.get("type", "")), _first_line(error.get("reason", ""))
        said = (found.get(name) for name in ("error", "message", "Message")) if isinstance(found, dict) else ()
        return "", _first_line(next((text for text in said if isinstance(text, str)), ""))


def _first_line(text: object) -> str:
    """Amazon's further lines repeat the request with its session token."""
    return next(iter(str(text).splitlines()), "")


def failure(answer: Answer, server: str, doing: str) -> ReplicatorError:
    """The error for an answer that is no success. ``doing``: what was asked, for the message."""
    type, reason = answer.cause
    found = None if answer.json is None else engine_failure(answer.status, type, reason, server)
    if found is not None:
        return found
    match answer.status:
        case 401:
            advice = "Correct target.username and target.password, or the API key"
            return NotAuthenticated(f"{server} refuses the login", "login", server, advice)
        case 403:
            return _forbidden(reason or type or "403 without a reason", server, doing)
        case 408:
            return ResponseLost(f"{server} gave up {doing} (status 408): the request took too long to arrive")
        case status if status == 429 or answer.throttled:
            return TransientError(f"{server} is overloaded ({type or answer.code or 429})")
        case status if status >= 500:
            return ResponseLost(f"{server} failed while {doing}: {_said(answer)}")
        case status if status < 300 and not answer.body:
            return ResponseLost(
                f"{server} returned an empty response while {doing} (status {status}): it was truncated on the way"
            )
    if answer.json is None:
        return ConfigError(
            f"{server} responded with {_said(answer)}, which does not come from a search engine: "
            "is there a proxy or a login page in between? Check target.url"
        )
    said = type if doing in (WRITING, READING) else reason or type  # the reason may quote what could not be read
    return ConfigError(f"{server} returned an error while {doing}: {said or _said(answer)}")


def _forbidden(said: str, server: str, doing: str) -> NotPermitted:
    if _UNKNOWN_CALLER.search(said):
        return NotAuthenticated(f"{server} refuses the login: {said}", "login", server, _CREDENTIALS)
    return NotPermitted(f"{server} does not permit {doing}: {said}", doing, server, _GRANT)


def engine_failure(status: int, type: str, reason: str, server: str) -> ReplicatorError | None:
    """The error for what concerns an index or the cluster rather than one document; None for everything else."""
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
    """Whether a failure of one line may be about its document alone: nothing known of a shard or the cluster."""
    return status >= 500 and type != "cluster_block_exception" and all(type != known for known, _, _ in _KNOWN)


_UNKNOWN_CALLER = re.compile("security token|signature|authorization header", re.IGNORECASE)  # as Amazon says it
_CREDENTIALS = "Correct the AWS credentials, or give others (AWS_PROFILE, target.profile, target.role_arn)"
_GRANT = "Grant it to the login of the target"
_ARGUMENT = "illegal_argument_exception"  # of its words only the first are the engine's own: a value may follow
_KNOWN: tuple[tuple[str, type[ReplicatorError], str], ...] = (
    ("index_closed_exception", TransientError, "the index is closed; waiting until it is opened (POST INDEX/_open)"),
    (
        "index_not_found_exception",
        ConfigError,
        "the index, or the alias that points to it, is gone: {reason}. If its documents are lost, copy everything "
        "again with: replicator resync",
    ),
    (
        "invalid_index_name_exception",  # of an alias that is gone: what makes indices by accident cannot make this one
        ConfigError,
        "the alias that replicator writes through is gone, and perhaps the index too: {reason}. If its documents are "
        "lost, copy everything again with: replicator resync",
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


def _said(answer: Answer) -> str:
    page = "a web page" if answer.body.lstrip()[:1] == b"<" else "a body that is not JSON"
    return (
        f"status {answer.status}" if answer.json is not None or not answer.body else f"{page} (status {answer.status})"
    )
