"""What a bulk response means for each document, and why a document was refused. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from connectors.search.errors import ResponseLost, engine_failure, is_own
from connectors.search.mappings import WRITER
from replicator.errors import ConfigError, ReplicatorError, TransientError

LONGEST = 4096  # characters of a reason that are read
_SHOWN = 255  # characters of a name that are shown

Say = Callable[[Sequence[str]], str]
_IMMENSE = ('immense term in field="', '"')
_FIELD = ("[", "] of type [", "]")

# From here on, a reason quotes the document.
_QUOTES = (" in document with id '", "Preview of field's value", "For input string: ")
_NO_NAME = ("field name cannot be", "ield name [", "contains only whitespace", "starts or ends with a")


def refusal(type: str, reason: str) -> str:
    """The reason why a document was refused, built only from parts of the engine's message that cannot quote a value.

    The message may be as long as the document and may contain text crafted to be parsed here. So it is truncated, and
    searched once from left to right, without backtracking.
    """
    reason = reason[:LONGEST]
    own = reason[: min((at for quote in _QUOTES if (at := reason.find(quote)) >= 0), default=LONGEST)]
    for marks, say in _KNOWN:
        texts = between(reason if marks is _IMMENSE else own, marks)
        if texts is not None and (sentence := say([text[:_SHOWN] for text in texts])):
            return f"{sentence}: {type}"
    return f"the engine refuses the document: {type}"


def between(text: str, marks: Sequence[str]) -> list[str] | None:
    """The texts between the first occurrences of the marks, in order; None unless all occur."""
    first, *rest = marks
    texts, at = [], text.find(first)
    for mark in rest if at >= 0 else ():
        at += len(first)
        first, end = mark, text.find(mark, at)
        if end < 0:
            return None
        texts.append(text[at:end])
        at = end
    return texts if at >= 0 else None


def _limit(texts: Sequence[str]) -> str:
    what, limit, _ = texts
    return f"the index is limited to {limit} {what}" if limit.isdecimal() and what.replace(" ", "").isalpha() else ""


def _cannot_hold(texts: Sequence[str]) -> str:
    field, type = texts
    if field == type:
        return f"the name {field} is reserved by the engine"
    hint = " (of more than 32,766 bytes? ignore_above in its mapping avoids this)" if type == "keyword" else ""
    return f"the field {field} is of type {type} and cannot hold the value{hint}" if type.isidentifier() else ""


def _path(where: str, field: str) -> str:
    return field if where == "_doc" else f"{where}.{field}"


_KNOWN: tuple[tuple[Sequence[str], Say], ...] = (
    (
        ("dynamic introduction of [", "] within [", "] is not allowed"),
        lambda texts: (
            f"the field {_path(texts[1], texts[0])} is not in the mapping, which is strict "
            "(add the field to it, or set dynamic: false there)"
        ),
    ),
    (("failed to parse field ", *_FIELD), lambda texts: _cannot_hold(texts[1:])),
    (("failed to parse date field ", *_FIELD), lambda texts: _cannot_hold(texts[1:])),
    (
        ("object mapping for [", "] tried to parse field [", "] as object"),
        lambda texts: f"the field {texts[0]} is an object in the mapping, but the value is not",
    ),
    (
        _IMMENSE,
        lambda texts: (
            f"the text in the field {texts[0]} is longer than the 32,766 bytes that a keyword can index "
            "(ignore_above in its mapping avoids this)"
        ),
    ),
    (("Limit of ", " [", "]", " has been exceeded"), _limit),
    (
        ("is a metadata field and cannot be added",),
        lambda _: "a field has a name that is reserved by the engine",
    ),
    (
        ("ield name [", "] is longer than the limit of [", "]"),
        lambda texts: (
            "it has a field whose name is longer than the index's limit (index.mapping.field_name_length.limit)"
        ),
    ),
    *(
        ((mark,), lambda _: "it has a field whose name is empty, or has a dot where the engine allows none")
        for mark in _NO_NAME
    ),
)


REJECTED_EXECUTION = ("es_rejected_execution_exception", "rejected_execution_exception", "circuit_breaking_exception")

Kind = Literal["stored", "conflict", "refused", "busy", "failed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one write.

    stored: done. conflict: the engine has that version or a newer one. refused: for good, for the ``reason``. busy: the
    engine is overloaded, for now or always for this document. failed: ``error`` says what to wait for or what to
    change. ``own``: the engine may be failing on this document alone.
    """

    kind: Kind
    reason: str = ""
    error: ReplicatorError | None = None
    own: bool = False


STORED, CONFLICT = Verdict("stored"), Verdict("conflict")


def verdicts(items: Sequence[Any], server: str, index: str) -> list[Verdict]:
    """One verdict per item of the response to a bulk request for ``index``."""
    try:
        return [_verdict(outcome, server, index) for item in items for (outcome,) in (item.values(),)]
    except (AttributeError, KeyError, TypeError, ValueError):
        lost = ResponseLost(f"{server} returned a malformed response to a bulk request")
        return [failed(lost)] * len(items)


def all_stored(body: bytes, count: int, index: str) -> bool:
    """Whether a response consists of ``count`` items stored in ``index`` and nothing else, without parsing it.

    Items cannot overlap. So if there are as many as were sent, and their total length plus the separators is the length
    of the body, it contains nothing else.
    """
    if not (body.startswith(_BEFORE) and body.endswith(_AFTER)):
        return False
    name = orjson.dumps(index)
    matched, length = 0, len(_BEFORE) + len(_AFTER) + max(0, count - 1)
    for item in (*_INDEXED, *_DELETED):
        if matched < count:
            text = item % name
            times = body.count(text)
            matched, length = matched + times, length + times * len(text)
    return matched == count and length == len(body)


_BEFORE, _AFTER = b'{"errors":false,"items":[', b"]}"
_INDEXED = (
    b'{"index":{"_index":%b,"result":"updated","status":200}}',
    b'{"index":{"_index":%b,"result":"created","status":201}}',
)
_DELETED = (
    b'{"delete":{"_index":%b,"result":"deleted","status":200}}',
    b'{"delete":{"_index":%b,"result":"not_found","status":404}}',
)


def _verdict(outcome: Any, server: str, index: str) -> Verdict:
    status, error = outcome["status"], outcome.get("error")
    stored = error is None and (status < 300 or status == 404)  # 404: a delete of an absent document
    if (stored or status == 409) and (went_to := outcome.get("_index", index)) != index:
        return failed(ConfigError(_astray(server, index, went_to)))
    if stored:
        dropped = outcome.get("result") == "noop"
        return failed(ConfigError(_dropped(server, index))) if dropped else STORED
    type, reason = _cause(error)
    if status == 409:
        return CONFLICT
    if status == 429 and type in REJECTED_EXECUTION:
        return busy(server)
    failure = engine_failure(status, type, reason, server)
    if failure is None and status == 429:
        return busy(server)
    if failure is None:
        return refused(refusal(type, reason))
    return Verdict("failed", error=failure, own=is_own(status, type))


def _astray(server: str, index: str, other: str) -> str:
    return (
        f"{server}: writes to the index {index} arrived in another one, {other}: its alias {index}{WRITER} "
        f"was moved there, as ILM's shrink or a reindexing script does. None of them counts as stored. Keep {other}, "
        f"perhaps the only copy; its documents with the same ids may be overwritten. To continue in {index}, move the "
        f"alias back; to continue in {other}, set index: {other} under the table. Then run: replicator resync CONFIG "
        "(with --accept-identity-change for another index)"
    )


def _dropped(server: str, index: str) -> str:
    return (
        f"{server}: an ingest pipeline dropped a document that was to be stored in {index}. Remove the index's setting "
        "index.final_pipeline, then copy everything again with: replicator resync CONFIG"
    )


def _cause(error: Any) -> tuple[str, str]:
    if not isinstance(error, dict):
        return "", str(error)
    cause = error.get("caused_by")
    inner = (cause.get("reason") or "") if isinstance(cause, dict) else ""
    return str(error.get("type", "")), f"{error.get('reason') or ''} {inner}".strip()


def busy(server: str) -> Verdict:
    return Verdict("busy", error=TransientError(f"{server} is overloaded; the rest will be sent again"))


def failed(error: ReplicatorError) -> Verdict:
    return Verdict("failed", error=error)


def refused(reason: str) -> Verdict:
    return Verdict("refused", reason)


def worst(verdicts: Sequence[Verdict]) -> ReplicatorError | None:
    """The error to report for a batch: permanent errors take precedence over transient ones."""
    errors = [verdict.error for verdict in verdicts if verdict.error is not None]
    for error in errors:
        if not isinstance(error, TransientError):
            return error
    lost = next((error for error in errors if isinstance(error, ResponseLost)), None)
    return lost or next(iter(errors), None)
