"""Decides whether applications may switch to the copy: yes with a certificate, no with reasons. Changes nothing."""

from __future__ import annotations

import json
import math
import platform
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from msgspec import structs

from replicator import __version__
from replicator.aws.boto import connect
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded
from replicator.change import Record
from replicator.checkpoints.contract import Claimed
from replicator.checkpoints.presence import check_known
from replicator.config.settings import Config
from replicator.engine.assembly import ends
from replicator.engine.heartbeat import HEARTBEAT_INTERVAL
from replicator.errors import ReplicatorError
from replicator.hooks import loading
from replicator.key import key_text
from replicator.operations.verify import checked_tables
from replicator.options import aws_options
from replicator.pipeline import lanes
from replicator.pipeline.coordination import slots_of, writers
from replicator.pipeline.lineage import childless, readable
from replicator.pipeline.parked import item_of
from replicator.pipeline.progress import Progress, passes_of, progress
from replicator.source.decoding import RecordsDecoder
from replicator.source.table import SourceTable, describe_table
from replicator.state import FORMAT, FULL_SCOPE, Heartbeat, PipelineState, ShardState, Slot, Verified, decode
from replicator.target.contract import ComparingSettings, marks_of
from replicator.target.verification import Verifiable, cannot_compare

READ_WITHIN = 15.0  # seconds in which a live run reads every shard: even without --wait, the command waits that long
LISTED_WITHIN = 45.0  # seconds in which a live run lists the shards, and says so
INTERVAL = 1.0  # seconds between reads of the checkpoints
REPORT_INTERVAL = 10.0  # seconds between two reports of what it is waiting for
_NAMED = 3  # parked items that a reason names
_WRITES = (  # IAM actions to deny; none of them is called
    *("dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:DeleteItem", "dynamodb:BatchWriteItem"),
    *("dynamodb:PartiQLInsert", "dynamodb:PartiQLUpdate", "dynamodb:PartiQLDelete"),
)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What must hold for a yes. ``asked``: every shard must be read after this moment, seconds since 1970.

    ``quiet``: seconds without a record. ``verified_within``: seconds since a verify pass began, as that is when the
    copy was equal. ``ttl_deletes``: the config's, by which the pass must have compared; None: it is not looked at.
    ``incomparable``: why the target's documents cannot be verified at all; empty if they can.
    """

    asked: float
    quiet: float = 30.0
    verified_within: float = 86_400.0
    ttl_deletes: str | None = None
    incomparable: str = ""

    def __post_init__(self) -> None:
        if self.quiet <= 0 or self.verified_within <= 0:
            raise ValueError("durations are positive")


@dataclass(frozen=True, slots=True)
class Standing:
    """What the checkpoints say of a pipeline ``at`` a moment.

    ``in_doubt``: seconds for which requests without a response may still be applied. ``verification``: the newest pass
    over the whole table that ended, else a sample, else one that did not end. ``parked``: keys of items.
    ``heartbeat``: when the run, or one of its workers, showed last that it is up, by its own clock. ``requested``: a
    resync is pending. ``listed``: when the run last asked for a listing that was complete and had every shard's
    parent, by its own clock. ``by_lambda``: invocations of AWS Lambda follow the stream.
    """

    at: float
    progress: Progress
    state: PipelineState | None
    shards: Mapping[str, ShardState]
    in_doubt: float | None = None
    verification: Verified | None = None
    other_passes: Sequence[Verified] = ()
    parked: Sequence[str] = ()
    heartbeat: float | None = None
    requested: bool = False
    listed: float | None = None
    by_lambda: bool = False

    @property
    def read_through(self) -> float | None:
        """Every record created before this time is stored; None if that is unknown."""
        times = [self.shards[id].through for id in readable(self.shards)]
        known = [through for through in times if through is not None]
        return min(known) if known and len(known) == len(times) else None

    @property
    def last(self) -> tuple[str, ShardState] | None:
        """The shard with the newest stored record."""
        read = [(s.created, id) for id, s in self.shards.items() if s.created is not None]
        return (max(read)[1], self.shards[max(read)[1]]) if read else None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the answer is no. ``code``: the exit code. ``passing``: waiting may help."""

    code: Literal[3, 6, 7]
    text: str
    passing: bool = False
    about: Literal["", "unread", "unlisted", "late"] = ""


def standing(claimed: Claimed, now: float) -> Standing:
    """The standing at ``now``, from a pipeline's entries."""
    entries = claimed.entries
    values = {(e.kind, e.id): decode(e.kind, e.id, e.text) for e in entries if e.kind in ("pipeline", "pulse", "shard")}
    state = values.get(("pipeline", ""))
    beats = {id: beat for id in writers(entries) if isinstance(beat := values.get(("pulse", id)), Heartbeat)}
    slots = slots_of(entries) or {}
    if isinstance(state, PipelineState):
        slots = lanes.in_charge(slots, state)
    current = progress(entries, claimed.counts, now)
    verification, other_passes = _ranked(passes_of(entries).values())
    return Standing(
        at=now,
        progress=current,
        state=state if isinstance(state, PipelineState) else None,
        shards={id: s for (_, id), s in values.items() if isinstance(s, ShardState)},
        in_doubt=_in_doubt(beats.get(""), slots, now),
        verification=verification,
        other_passes=other_passes,
        parked=sorted({item_of(e.id) for e in entries if e.kind == "parked"}),
        heartbeat=max((beat.at for beat in beats.values()), default=None),
        requested=any(e.kind == "request" for e in entries),
        listed=_listed(beats.get("")),
        by_lambda=lanes.followed(writers(entries) - {""}),
    )


def _listed(heartbeat: Heartbeat | None) -> float | None:
    """None while shards wait for a parent that is not known: it may have records."""
    return None if heartbeat is None or heartbeat.orphans or heartbeat.orphaned else heartbeat.listed


def _in_doubt(heartbeat: Heartbeat | None, workers: Mapping[str, Slot], now: float) -> float | None:
    """Of the run, by its heartbeat, and of its workers, by what each stores before it relies on that."""
    of_workers = max((lanes.left_of(slot, now) for slot in workers.values()), default=0.0)
    if heartbeat is None or heartbeat.in_doubt is None:
        return of_workers or None
    return max(of_workers, heartbeat.in_doubt - max(0.0, now - heartbeat.at))


def _ranked(passes: Iterable[Verified]) -> tuple[Verified | None, Sequence[Verified]]:
    """The pass that proves most, and all others: what it began after, it has seen."""
    ranked = sorted(passes, key=lambda v: (v.ended is not None, v.scope == FULL_SCOPE, v.started), reverse=True)
    return (ranked[0] if ranked else None), ranked[1:]


def asked(at: Standing) -> float:
    """The moment that a look is made, or a little later, by the clock of the run: it says until when it has read.

    That clock may be ahead of this one, or may have been set back since the run noted what it had read.
    """
    beats = [] if at.heartbeat is None else [at.heartbeat + 2 * HEARTBEAT_INTERVAL]
    read = [math.nextafter(through, math.inf) for s in at.shards.values() if (through := s.through) is not None]
    return max([at.at, *beats, *read])


def reasons(at: Standing, criteria: Criteria) -> list[Reason]:
    """Why applications may not switch now, the most severe reason first; empty if they may."""
    return sorted([*ready(at, criteria), *_undrained(at, criteria)], key=lambda reason: reason.code)


def ready(at: Standing, criteria: Criteria, *, verified: bool = True) -> list[Reason]:
    """Why the copy is not as good as the source, if nothing new were written; ``verified``: and that is proven."""
    found = [*incomplete(at), *_not_live(at)]
    return [*found, *_unverified(at, criteria)] if verified else found


def incomplete(at: Standing) -> list[Reason]:
    """Why the copy is known not to equal the source."""
    return [*_gaps(at), *_unequal(at)]


def _gaps(at: Standing) -> Iterator[Reason]:
    for gap in at.progress.gaps:
        where = f" (shard {gap.shard})" if gap.shard else ""
        now = "" if at.state is not None else " --now"  # without checkpoints, in which a resync could be requested
        yield Reason(3, f"records were lost: {gap.reason}{where}; repair the copy with: replicator resync CONFIG{now}")


def _unequal(at: Standing) -> Iterator[Reason]:
    if at.parked:
        more = " and others" if len(at.parked) > _NAMED else ""
        named = ", ".join(at.parked[:_NAMED])
        yield Reason(6, f"{len(at.parked):,} item(s) are parked: {named}{more}; see: replicator parked list CONFIG")
    if (last := at.verification) is not None and last.known:
        repaired = f", {last.repaired:,} of them repaired" if last.repaired else ""
        yield Reason(6, f"the last verify pass found {last.known:,} difference(s){repaired}; verify again")
    for other in at.other_passes:
        if last is not None and other.found_since(last):
            which = f"a later verify pass ({other.scope}{'' if other.ended else ', in progress'})"
            which += ", or one that it replaced," if other.earlier else ""
            yield Reason(6, f"{which} found {other.known:,} difference(s); verify again")


def _not_live(at: Standing) -> Iterator[Reason]:
    phase, waiting_for = at.progress.phase, at.progress.waiting_for
    if phase == "stopped" and at.by_lambda:
        text = "no invocation of the function came in 45 minutes, so nothing is copied; see: replicator check CONFIG"
        yield Reason(7, text)
    elif phase == "stopped":
        yield Reason(7, "no run is up, so nothing is copied; start it with: replicator run CONFIG")
    elif waiting_for is not None:
        yield Reason(7, f"the run waits: {waiting_for}", passing=True)
    elif phase not in ("live", "gap"):
        yield Reason(7, f"the pipeline is not live yet, but in phase {phase}", passing=True)
    if at.requested:
        yield Reason(7, "a requested resync has not begun yet", passing=True)


def _unverified(at: Standing, criteria: Criteria) -> Iterator[Reason]:
    if criteria.incomparable:
        yield Reason(7, f"{criteria.incomparable}. The copy cannot be verified, so the answer is never yes")
        return
    text = "the copy was not verified" if at.verification is None else _unproven(at, at.verification, criteria)
    if text:
        yield Reason(7, f"{text}; run: replicator verify CONFIG")


def _unproven(at: Standing, last: Verified, criteria: Criteria) -> str:
    """Why the ``last`` pass does not prove that the copy was equal lately; empty if it does."""
    if last.ended is None:
        return "the last verify pass did not end"
    if (since := _changed_since(at, last, criteria)) or last.scope != FULL_SCOPE:
        return since or f"the last verify pass compared only a part ({last.scope})"
    if last.parked:
        return f"the last verify pass could not compare {last.parked:,} item(s), which were parked"
    if last.unconfirmed:
        return f"the last verify pass left {last.unconfirmed:,} item(s) unconfirmed"
    for what, moment in (("ended", last.ended), ("began", last.started)):
        if at.at - moment > criteria.verified_within:
            hours = (at.at - moment) / 3600
            more = "" if what == "ended" else ", because it proves that the copy was equal then"
            return f"the last verify pass {what} {hours:,.1f} hours ago, too long for --verified-within{more}"
    return ""


def _changed_since(at: Standing, last: Verified, criteria: Criteria) -> str:
    """What determines the documents and has changed since the ``last`` pass; empty if nothing has."""
    if at.state is not None and last.epoch != at.state.epoch:
        return "the table was rescanned since the last verify pass"
    if at.state is not None and last.hook != at.state.hook:
        return "the hook has changed since the last verify pass"
    if criteria.ttl_deletes not in (None, last.ttl_deletes):
        return "ttl_deletes has changed since the last verify pass"
    return ""


def _undrained(at: Standing, criteria: Criteria) -> Iterator[Reason]:
    current, ended = readable(at.shards), childless(at.shards)
    waiting = sum(not s.ended for s in at.shards.values()) - len(current) + len(ended)
    if not current or waiting:
        yield Reason(7, f"not drained: {waiting} shard(s) cannot be read yet", passing=True)
        return
    unread = [id for id in current if (at.shards[id].through or 0.0) < criteria.asked]
    if unread:
        text = (
            f"not drained: {len(unread)} of {len(current)} open shard(s) were not read after {moment(criteria.asked)}"
        )
        yield Reason(7, text, passing=True, about="unread")
    elif (
        at.heartbeat is not None and (at.listed or 0.0) < criteria.asked
    ):  # an earlier listing may have omitted a shard
        text = f"not drained: the stream's shards were not listed completely after {moment(criteria.asked)}"
        yield Reason(7, text, passing=True, about="unlisted")
    through, last = at.read_through, at.last
    created = None if last is None else last[1].created
    if through is not None and created is not None and through - created < criteria.quiet:
        text = f"not drained: the last record is of {moment(created)}, not {criteria.quiet:g} s before the last read"
        yield Reason(7, text, passing=True, about="late")
    if at.in_doubt:
        text = f"requests without a response may still be applied to the target for {at.in_doubt:.0f} s"
        yield Reason(7, text, passing=True)


def moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True, slots=True)
class Answer:
    """``reasons``: empty for yes. ``settings``: table settings that differ from the source's.

    ``freeze``: commands for the user to run: stop all writers of the source, and allow them again; None if no freeze
    can lead to a yes.
    """

    reasons: Sequence[Reason]
    certificate: Mapping[str, Any]
    settings: Sequence[str]
    freeze: tuple[str, str] | None

    @property
    def code(self) -> int:
        return self.reasons[0].code if self.reasons else 0


def cutover(
    config: Config,
    *,
    wait: bool,
    quiet: float,
    verified_within: float,
    tell: Callable[[str], object] = lambda text: None,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], object] = time.sleep,
) -> Answer:
    """The answer. ``wait``: as long as waiting may help; else only until every shard is read. ConfigError if the config
    is not the pipeline's: it would speak of a copy that was never made.

    ``tell`` gets what the command is waiting for, at most every ``REPORT_INTERVAL`` seconds.
    """
    told: float | None = None
    client = connect(config.source)
    table = describe_table(client, config.source.table)
    Criteria(now(), quiet, verified_within)  # before anything is asked
    criteria: Criteria | None = None
    hook = loading.load(config.transform, config.base) if config.transform is not None else None
    with ends(config) as (target, checkpoints):
        check_known(config.pipeline, checkpoints, checkpoints.read())
        tables = checked_tables(config, hook, client, table, target, checkpoints)
        incomparable = "" if isinstance(target, Verifiable) else cannot_compare(config.target.type, target)
        while True:
            claimed = checkpoints.read()
            check_known(config.pipeline, checkpoints, claimed)
            at = standing(claimed, now())
            criteria = criteria or Criteria(asked(at), quiet, verified_within, config.ttl_deletes, incomparable)
            found = reasons(at, criteria)
            overdue = at.at - criteria.asked > (LISTED_WITHIN if _only_unlisted(found) else READ_WITHIN)
            if not _waits(found, wait=wait, overdue=overdue):
                break
            notable = overdue or any(reason.about not in ("unread", "unlisted") for reason in found)  # seconds anyway
            if wait and notable and (told is None or at.at - told >= REPORT_INTERVAL):
                tell("; ".join(_named(reason, at, client, table).text for reason in found))
                told = at.at
            pause(INTERVAL)
        found = [_named(reason, at, client, table) for reason in found]
        settings = target.differing_settings(tables) if isinstance(target, ComparingSettings) else ()
        loops = marks_of(target) is not None
        freeze = None if incomparable else freezing(table, aws_options(config.source, table.arn), loops=loops)
    return Answer(found, certificate(config, table, at, criteria, found, settings), settings, freeze)


def _waits(found: Sequence[Reason], *, wait: bool, overdue: bool) -> bool:
    if not found or not all(reason.passing for reason in found):
        return False
    return wait or (not overdue and (_only_unlisted(found) or any(reason.about == "unread" for reason in found)))


def _only_unlisted(found: Sequence[Reason]) -> bool:
    return all(reason.about == "unlisted" for reason in found)


def _named(reason: Reason, at: Standing, client: Client, table: SourceTable) -> Reason:
    """The reason, with the key of the item that was written last."""
    if reason.about != "late" or at.last is None:
        return reason
    shard, state = at.last
    record = _record(client, table, shard, state.sequence or "")
    if record is None:
        named = "by a change whose record cannot be read; stop its writer"
    elif record.expired:
        named = (
            f"when the time to live removed item {key_text(record.key)}; turn the time to live of {table.name} off "
            "until the switch, or use a shorter --quiet"
        )
    else:
        named = f"by a change of item {key_text(record.key)}; stop its writer"
    return Reason(reason.code, f"{reason.text}, {named}", reason.passing, reason.about)


class _Iterator(msgspec.Struct):
    ShardIterator: str


def late_key(client: Client, table: SourceTable, shard: str, sequence: str) -> str:
    """The key of the item of one record, as text; empty if the record cannot be read."""
    record = _record(client, table, shard, sequence)
    return "" if record is None else key_text(record.key)


def _record(client: Client, table: SourceTable, shard: str, sequence: str) -> Record | None:
    position = {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "SequenceNumber": sequence}
    try:
        body = client.call("GetShardIterator", {"StreamArn": table.stream_arn or "", "ShardId": shard, **position})
        iterator = decoded(body, _Iterator, "GetShardIterator").ShardIterator
        page = client.call("GetRecords", {"ShardIterator": iterator, "Limit": 1})
        records = RecordsDecoder(table.keys, images=False)(page).records
    except (AwsError, ReplicatorError):
        return None
    return records[0] if records and records[0].sequence == sequence else None


def freezing(table: SourceTable, options: str, *, loops: bool) -> tuple[str, str]:
    """Commands that deny writes to the source, and allow them again. ``loops``: except the opposite pipeline's."""
    statement: dict[str, Any] = {
        "Sid": "FrozenForCutover",
        "Effect": "Deny",
        "Principal": "*",
        "Action": list(_WRITES),
        "Resource": table.arn,
    }
    if loops:
        statement["Condition"] = {"ArnNotEquals": {"aws:PrincipalArn": "ROLE_OF_THE_OPPOSITE_PIPELINE"}}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    resource = f"{options} --resource-arn {shlex.quote(table.arn)}"
    return (
        f"aws dynamodb put-resource-policy{resource} --policy {shlex.quote(policy)}",
        f"aws dynamodb delete-resource-policy{resource}",
    )


def certificate(
    config: Config,
    table: SourceTable,
    at: Standing,
    criteria: Criteria,
    found: Sequence[Reason],
    settings: Sequence[str],
) -> dict[str, Any]:
    """All that the answer is based on, as JSON values. Times are in seconds since 1970."""
    last = at.last
    return {
        "verdict": "no" if found else "yes",
        "reasons": [{"exit_code": reason.code, "text": reason.text} for reason in found],
        "pipeline": config.pipeline,
        "source": {"table": table.arn or table.name, "stream": table.stream_arn},
        "target": {"type": config.target.type, "tables": list(config.target.tables)},
        "asked_at": criteria.asked,
        "decided_at": at.at,
        "quiet_seconds": criteria.quiet,
        "read_through": at.read_through,
        "last_record_at": None if last is None else last[1].created,
        "phase": at.progress.phase,
        "epoch": at.progress.epoch,
        "positions": {id: _position(shard) for id, shard in sorted(at.shards.items())},
        "counts": structs.asdict(at.progress.counts),
        "parked": len(at.parked),
        "gaps": len(at.progress.gaps),
        "verify": None if at.verification is None else _verify_values(at.verification),
        "settings": list(settings),
        "versions": {"replicator": __version__, "checkpoints": FORMAT, "python": platform.python_version()},
    }


def _verify_values(last: Verified) -> dict[str, Any]:
    found = {name: getattr(last, name) for name in ("scope", "items", "documents", "differences", "repaired", "parked")}
    return {**found, "unconfirmed": last.unconfirmed, "started": last.started, "ended": last.ended}


def _position(shard: ShardState) -> dict[str, Any]:
    return {
        "sequence": shard.sequence,
        "ordinal": shard.ordinal,
        "last_record_at": shard.created,
        "read_through": shard.through,
        "ended": shard.ended,
    }
