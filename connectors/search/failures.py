"""What a refused or broken request means, sorted by what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from replicator.errors import ConfigError, NotPermitted, ReplicatorError, TransientError


class AnswerLost(TransientError):
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
    def cause(self) -> tuple[str, str]:
        """The engine's error: its type and its reason, empty where it names none."""
        found = self.json
        error = found.get("error") if isinstance(found, dict) else None
        if isinstance(error, dict):
            return str(error.get("type", "")), str(error.get("reason", ""))
        said = (found.get(name) for name in ("error", "message", "Message")) if isinstance(found, dict) else ()
        return "", next((text for text in said if isinstance(text, str)), "")


def failure(answer: Answer, server: str, doing: str) -> ReplicatorError:
    """The error for an answer that is no success. ``doing``: what was asked, for the message."""
    type, reason = answer.cause
    found = None if answer.json is None else engine_failure(answer.status, type, reason, server)
    if found is not None:
        return found
    match answer.status:
        case 401:
            return NotPermitted(f"{server} refuses the login; correct target.username and password, or its key")
        case 403:
            said = reason or type or "403 without a reason"
            return NotPermitted(f"{server} does not permit {doing}: {said}", action=doing, resource=server)
        case 429:
            return TransientError(f"{server} has too much to do ({type or 429})")
        case status if status >= 500:
            return AnswerLost(f"{server} fails to answer {doing}: {_said(answer)}")
    if answer.json is None:
        return ConfigError(
            f"{server} answers with {_said(answer)}, which no search engine would: a proxy or a login page? "
            "Look at target.url"
        )
    return ConfigError(f"{server} refuses {doing}: {reason or type or _said(answer)}")


def engine_failure(status: int, type: str, reason: str, server: str) -> ReplicatorError | None:
    """The error for what concerns an index or the cluster rather than one document; None for everything else."""
    match type:
        case "index_closed_exception":
            return TransientError(f"{server}: the index is closed; waiting until it is opened (POST INDEX/_open)")
        case "cluster_block_exception":
            return TransientError(f"{server}: {_block(status, reason)}")
        case "index_not_found_exception":
            return ConfigError(
                f"{server}: the index, or the alias that leads to it, is gone: {reason}. "
                "If its documents are lost, copy everything again with: replicator resync"
            )
        case "security_exception" if status == 403:
            return NotPermitted(f"{server}: {reason}", action="write", resource=server)
        case "routing_missing_exception":
            return ConfigError(f"{server}: the index requires routing; say routing: ATTRIBUTE in target.tables")
        case "unavailable_shards_exception" | "no_shard_available_action_exception":
            return AnswerLost(f"{server}: a shard of the index is not available (its health is red)")
        case "master_not_discovered_exception":
            return AnswerLost(f"{server}: the cluster has no master")
    if "no write index is defined" in reason:
        return ConfigError(f"{server}: the alias leads to several indices now; leave it to the one that check names")
    if "pipeline with id [" in reason:
        return ConfigError(f"{server}: {reason}; the index names an ingest pipeline that is not there")
    if status >= 500:
        return AnswerLost(f"{server} fails to store documents: {type or status}")
    return None


def _block(status: int, reason: str) -> str:
    if ("read-only" in reason and "allow delete" in reason) or status == 429:
        return (
            "the index is read-only because a disk is nearly full (flood stage); waiting until there is room. "
            'OpenSearch keeps the block until: PUT INDEX/_settings {"index.blocks.read_only_allow_delete": null}'
        )
    if "no master" in reason or "not recovered" in reason or "state" in reason:
        return "the cluster is not ready (no master, or its state is not recovered yet)"
    return "somebody blocked writes to the index; waiting until the block is gone (index.blocks.*)"


def _said(answer: Answer) -> str:
    page = "a web page" if answer.body.lstrip()[:1] == b"<" else "a body that is no JSON"
    return (
        f"status {answer.status}" if answer.json is not None or not answer.body else f"{page} (status {answer.status})"
    )
