"""Verifies everything a run needs without changing anything; one finding per fact, all problems at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from replicator.aws import boto
from replicator.aws.client import Client, completed
from replicator.aws.errors import AwsError, decoded, failure
from replicator.checkpoints.contract import AccessChecking, Checkpoints, Listed, Migrating, Noting, Store
from replicator.config.engine import Lambda, Ray
from replicator.config.targets import is_of_a_target
from replicator.duration import duration
from replicator.engine import coordinator, function
from replicator.engine.assembly import ends, introduce, target_tables
from replicator.engine.gap_repair import check_supported
from replicator.engine.generations import decoded as rebuild_of
from replicator.engine.generations import generations, rebuild_entry, resolved
from replicator.engine.startup import check_expiries, check_source
from replicator.errors import ConfigError
from replicator.hooks.hook import DocumentMapping, Hook, Poison
from replicator.hooks.time_limit import HookLimit, HookTimeout
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.items.to_json import unreadable
from replicator.key import key_text
from replicator.marks import unmarked
from replicator.monitoring.server import require_packages, require_usable
from replicator.operations.check_export import existing_findings, export_findings
from replicator.operations.check_lambda import lambda_findings
from replicator.operations.check_offline import choices, gathered, hook_of, tried
from replicator.operations.check_ray import ray_findings
from replicator.operations.dry_run import Outlook, outlook
from replicator.operations.estimate import pass_units
from replicator.operations.finding import Finding, Verdict, exit_code, failed, problem
from replicator.operations.parked import is_unguarded
from replicator.operations.preview import Refusals, forecast, preview
from replicator.options import aws_options
from replicator.source import sample
from replicator.source.decoding import KeyReader
from replicator.source.stream import describe_stream
from replicator.source.table import SourceTable, describe_table
from replicator.state import Rebuild
from replicator.target.contract import (
    NO_STATEMENT,
    SECOND,
    Denied,
    Table,
    Target,
    keeps_history,
    marks_of,
    with_history,
)
from replicator.target.verification import Verifiable

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.config.verification import Verify

_INTERRUPTED = 3  # items; a hook that takes too long for so many is not tried on more of them
SAMPLED = 50  # items that the hook is run on


class _Iterator(msgspec.Struct):
    ShardIterator: str


def check_given(config: Config, *, create: bool = False) -> list[Finding]:
    """All findings for a config as it was loaded, during a rebuild of both copies; see ``check``."""
    if config.replaces is None:
        return list(gathered("pipeline", _of_one_copy(config, create=create)))
    unread: list[Finding] = []
    entry = tried(unread, "target", lambda: [rebuild_entry(config)])
    if entry is None:
        return list(dict.fromkeys([*check(config, create=create), *unread]))
    return list(gathered("pipeline", _of_both_copies(config, rebuild_of(entry[0]), create=create)))


def _of_one_copy(config: Config, *, create: bool) -> Iterator[Finding]:
    used = resolved(config)
    yield from check(used, of_run=config if used is not config else None, create=create)


def _of_both_copies(config: Config, rebuild: Rebuild | None, *, create: bool) -> Iterator[Finding]:
    """Of the new copy, if there is one, and what keeps the old one from running: a run follows both."""
    both = generations(config, rebuild)
    if both.second is not None:
        yield from check(both.second, create=create)
    if both.first is None:
        return
    if both.second is None:
        text = f"the rebuild was canceled: run follows the copy of {config.replaces} alone"
        yield Finding("pipeline", "note", text, "to build a new copy again: replicator rebuild start CONFIG")
    for finding in check(both.first):
        if both.second is None or finding.verdict not in ("ok", "note"):
            yield finding
        elif (finding.subject, finding.verdict) == ("pipeline", "ok"):
            yield replace(finding, text=f"the old copy, of {config.replaces}: {finding.text}")


def check(config: Config, *, of_run: Config | None = None, create: bool = False) -> list[Finding]:
    """All findings. ``create``: create the table or schema for the checkpoints; nothing else is ever changed.

    ``of_run``: what a run would do with the config, if commands apply it to the old copy of a rebuild.
    """
    findings: list[Finding] = []
    images: list[bytes] = []
    starts: list[Outlook] = []
    hook = hook_of(config, findings)
    client = tried(findings, "source", lambda: boto.connect(config.source))
    table = None if client is None else tried(findings, "source", lambda: describe_table(client, config.source.table))
    findings += choices(config)
    if client is not None and table is not None:
        findings += _source(config, client, table, hook, images)
    if isinstance(config.engine, Ray):
        findings += gathered("engine", ray_findings(config, hook))
    if isinstance(config.engine, Lambda):
        findings += gathered("engine", lambda_findings(config, None if table is None else table.stream_arn))
    if config.monitoring is not None:
        tried(findings, "monitoring", lambda: _monitoring(findings, config))
    findings += gathered("target", _destination(config, client, table, hook, images, starts, create=create))
    if client is not None and table is not None and config.exports:
        start = starts[0] if starts else None
        findings += gathered("backfill", existing_findings(config, client, table, start))
    if of_run is not None and client is not None and table is not None:
        findings += gathered("pipeline", _refused_to_run(of_run, client, table, hook))
    findings = list(dict.fromkeys(findings))  # several questions may have met the same problem
    if exit_code(findings):  # a run would not start
        return [f for f in findings if (f.subject, f.verdict) != ("pipeline", "ok")]
    return findings


def _monitoring(findings: list[Finding], config: Config) -> None:
    """ConfigError if a run could not listen. A port in use is no error: the pipeline's own run may be up."""
    assert config.monitoring is not None
    address = config.monitoring.address
    require_packages()
    if require_usable(address):
        findings.append(Finding("monitoring", "ok", f"http://{address}/"))
    else:
        text = f"{address} is in use: by this pipeline's run, if that is up; if not, a run would end with exit code 2"
        findings.append(Finding("monitoring", "note", text, "give each pipeline its own port"))
    if not address.loopback:
        text = "others can see the page: it has no login, and shows keys, errors and names of tables"
        findings.append(Finding("monitoring", "note", text))


def _source(
    config: Config, client: Client, table: SourceTable, hook: Hook | None, images: list[bytes]
) -> Iterator[Finding]:
    """The source's findings. Appends the images of some live items to ``images``."""
    yield Finding("source.table", "ok", f"{table.arn or table.name}, about {table.items:,} items")
    yield from gathered("ttl_deletes", _expiries(config, table))
    yield from _stream(config, table, hook)
    if table.stream_arn is not None and table.streaming:
        yield from _stream_calls(client, table.stream_arn)
    yield from _table_calls(config, client, table, hook, images)
    if config.exports:
        yield from gathered("backfill", export_findings(config, client, table))


def _expiries(config: Config, table: SourceTable) -> Iterator[Finding]:
    check_expiries(table, config.ttl_deletes)
    yield from ()


def _stream(config: Config, table: SourceTable, hook: Hook | None) -> Iterator[Finding]:
    loops = marks_of(config.target.build(config.pipeline)) is not None
    options = aws_options(config.source, table.arn)
    try:
        own_ids, kept = hook is not None and hook.declared, any(map(keeps_history, config.target.tables.values()))
        check_source(table, own_ids=own_ids, loops=loops, history=kept, options=options)
    except ConfigError as e:
        yield from (Finding("source.stream", "problem", p) for p in e.problems)
    else:
        yield Finding("source.stream", "ok", f"{table.stream_arn}, {table.view}")


def _stream_calls(client: Client, arn: str) -> Iterator[Finding]:
    """Test the three permissions on the stream: describe it, get an iterator, read a record."""
    findings: list[Finding] = []
    listing = tried(findings, "permission", lambda: completed(client, describe_stream(arn)))
    yield from findings or [_allowed("DescribeStream", arn)]
    shards = listing.shards if listing is not None else []
    if not shards:
        return
    request = {"StreamArn": arn, "ShardId": shards[-1].id, "ShardIteratorType": "LATEST"}
    body, finding = _permitted(client, "GetShardIterator", request, arn)
    yield finding
    if body is not None:
        iterator = tried(findings, "stream", lambda: decoded(body, _Iterator, "GetShardIterator").ShardIterator)
        yield from findings
        if iterator is not None:
            _, finding = _permitted(client, "GetRecords", {"ShardIterator": iterator, "Limit": 1}, arn)
            yield finding


def _allowed(operation: str, resource: str) -> Finding:
    return Finding("permission", "ok", f"dynamodb:{operation} on {resource}")


def _permitted(client: Client, operation: str, request: dict[str, Any], resource: str) -> tuple[bytes | None, Finding]:
    try:
        return client.call(operation, request), _allowed(operation, resource)
    except AwsError as e:
        return None, failed("permission", failure(e, operation, resource))


def _table_calls(
    config: Config, client: Client, table: SourceTable, hook: Hook | None, images: list[bytes]
) -> Iterator[Finding]:
    arn = table.arn or table.name
    if table.view == "KEYS_ONLY" or config.verify is not None or config.on_gap == "export":
        request = {"RequestItems": {config.source.table: {"Keys": [_no_key(table)]}}}
        yield _permitted(client, "BatchGetItem", request, arn)[1]
    if hook is not None and hook.declared:  # parked retry looks at items that a scan found
        yield _single_item(config, client, table)
    if not config.backfill.enabled:
        return
    findings: list[Finding] = []
    tried(findings, "permission", lambda: images.extend(_sampled(config, client)))
    yield from findings or [_allowed("Scan", arn)]
    if not findings and not images:
        untried = "what the target can store was not" if hook is None else f"neither {hook.name} nor the target was"
        yield Finding("source.table", "note", f"the table is empty, so {untried} tried on an item")
    if hook is not None and images:
        yield from _determinism(config, hook, table, images)


def _sampled(config: Config, client: Client) -> Iterator[bytes]:
    """The images of some items, as the hook sees them."""
    marks = marks_of(config.target.build(config.pipeline))
    items = (unmarked(marks, image) for image in sample.some(client, config.source.table, SAMPLED))
    return (image for image in items if image is not None)


def marked_by_others(configs: Sequence[Config]) -> Mapping[str | None, Finding]:
    """A note for each target without ``loops`` of a config in which another has it, by its name: it copies the source
    with what the opposite pipeline adds to it.
    """
    marks = {config.target_name: marks_of(config.target.build(config.pipeline)) for config in configs}
    added = next((one for one in marks.values() if one is not None), None)
    if added is None:
        return {}
    text = (
        "another target has loops: true, so an opposite pipeline writes to the source. This one stores as documents "
        f"what that one adds: tombstones (items with {added.deleted}, until they are removed), and the attributes "
        f"{added.version} and {added.mark}"
    )
    advice = "let a transform hook leave them out, see docs/several-targets.md#alongside-an-opposite-pipeline"
    return {name: Finding("transform", "note", text, advice) for name, one in marks.items() if one is None}


def _single_item(config: Config, client: Client, table: SourceTable) -> Finding:
    request = {"TableName": config.source.table, "Key": _no_key(table)}
    return _permitted(client, "GetItem", request, table.arn or table.name)[1]


def _no_key(table: SourceTable) -> dict[str, dict[str, str]]:
    """A key of the right types; there may be no such item."""
    return {a.name: {a.kind: {"N": "0", "B": "AA=="}.get(a.kind, "-")} for a in table.keys.attributes}


def _determinism(config: Config, hook: Hook, table: SourceTable, images: list[bytes]) -> Iterator[Finding]:
    """Run the hook twice on each sampled item: the same image must give the same documents."""
    tables, reader = tuple(config.target.tables), KeyReader(table.keys)
    parked: list[str] = []
    called = stored = interrupted = 0
    for image in images:
        if interrupted == _INTERRUPTED:
            del images[called:]  # nor for what the target can store
            break
        called += 1
        key = key_text(reader.of(image))
        try:
            with HookLimit(config.hook_timeout):
                first, second = (_documents(hook, Item(image), tables) for _ in range(2))
        except (Poison, Malformed) as e:
            parked.append(f"item {key}: {e}")
            interrupted += isinstance(e.__cause__, HookTimeout)
            continue
        stored += bool(first) or (first is not None and not hook.declared)
        if not _alike(first, second):
            text = f"{hook.name} is not deterministic: two calls differ for item {key}"
            yield Finding("transform", "problem", text, "remove clocks, random numbers and lookups from the hook")
            return
    if parked:
        text = f"{len(parked)} of {called} live items would be parked, e.g. {parked[0]}"
        verdict: Verdict = "problem" if len(parked) == called else "note"
        yield Finding("transform", verdict, text, "replicator preview shows the hook's result for an item")
    if (left := called - len(parked)) and not stored:
        text = f"0 of {called} sampled items would be stored: {hook.name} returns no document for any of them"
        yield Finding("transform", "note", text, "does it lack a return? A hook that filters may keep others")
    if left:
        yield Finding("transform", "ok", f"{hook.name} is deterministic ({left} items sampled)")


def _alike(one: object, other: object) -> bool:
    """Whether two results are the same. Values that cannot be compared (too deep, or their code raises) count as equal:
    they cannot be stored either, and the target reports that.
    """
    try:
        return _same(one, other)
    except BaseException as e:
        unreadable(e)  # re-raises KeyboardInterrupt
        return True


def _same(one: object, other: object) -> bool:
    """Equality, except that NaN equals itself: a hook that always returns NaN is deterministic."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other or (one != one and other != other)


def _documents(hook: Hook, item: Item, tables: Sequence[str]) -> object:
    if hook.declared:
        return {place: dict(body) for place, body in hook.many(item, tables).items()}
    body = hook.one(item)
    return None if body is None else dict(body)


def _destination(
    config: Config,
    client: Client | None,
    table: SourceTable | None,
    hook: Hook | None,
    images: Sequence[bytes],
    starts: list[Outlook],
    *,
    create: bool,
) -> Iterator[Finding]:
    """Findings about the target, and about the checkpoint store if the target is not one. Appends to ``starts`` how a
    run would start, if that is known.
    """
    with ends(config) as (target, checkpoints):
        if client is not None and table is not None:
            introduce(config, target, table, client)
            if is_unguarded(target) and not (hook is not None and hook.declared):
                yield _single_item(config, client, table)  # parked retry looks at every item
        findings = [*gathered("target", _target(config, target, table, hook, images))]
        if config.verify is not None and table is not None and not exit_code(findings):
            tables = target_tables(config, table, hook)
            findings += gathered("verify", _verification(config.verify, target, table, tables))
        if isinstance(checkpoints, Store):
            findings += gathered("checkpoints", _store(checkpoints, create=create))
        if isinstance(checkpoints, Migrating) and _readable(findings):
            findings += gathered("checkpoints", _migration(checkpoints))
        if _readable(findings):
            findings += gathered("checkpoints", _left_over(config, checkpoints))
        if table is not None and (hook is not None or config.transform is None) and _readable(findings):
            reported = {finding.text for finding in findings}
            start = gathered("pipeline", _start(config, target, checkpoints, table, hook, starts))
            findings += [finding for finding in start if finding.text not in reported]
        yield from findings


def _left_over(config: Config, checkpoints: Checkpoints) -> Iterator[Finding]:
    """The pipelines that may be of targets that the config no longer has. A rebuild has others beside its own."""
    of = config.of_targets
    if of is None or config.replaces is not None or not isinstance(checkpoints, Listed):
        return
    own = {*of.pipelines, *(name + SECOND for name in of.pipelines)}
    left = [name for name in checkpoints.pipelines() if is_of_a_target(name, of.pipeline) and name not in own]
    if left:
        text = (
            f"{', '.join(left)}: stored here, and no target of this config: copies of targets that were removed, of "
            "another config, or of a rebuild"
        )
        advice = "to resume a target, put it back; to remove it, see docs/several-targets.md#removing-a-target"
        yield Finding("checkpoints", "note", text, advice)


def _migration(checkpoints: Migrating) -> Iterator[Finding]:
    if text := checkpoints.migration():
        yield Finding("checkpoints", "note", text)


def _readable(findings: Sequence[Finding]) -> bool:
    """Whether the checkpoints can be read, going by the findings so far."""
    return not any(
        f.verdict in ("forbidden", "unreachable")
        or (f.verdict in ("problem", "gap") and f.subject.startswith("checkpoints"))
        for f in findings
    )


def _verdict(problem: str) -> Verdict:
    return "forbidden" if isinstance(problem, Denied) else "problem"


def _start(
    config: Config,
    target: Target,
    checkpoints: Checkpoints,
    table: SourceTable,
    hook: Hook | None,
    starts: list[Outlook],
) -> Iterator[Finding]:
    """How a run would start, or why it would not."""
    tables = target_tables(config, table, hook)
    names = tuple(table.name for table in tables)
    mapping = DocumentMapping(hook, names, histories=with_history(tables))
    check_supported(config, mapping, target)
    if isinstance(config.engine, Ray):
        coordinator.check_supported(target, checkpoints)
    if isinstance(config.engine, Lambda):
        function.check_supported(target, checkpoints)
    starts.append(outlook(config, target, checkpoints, table, tables, hook))
    yield Finding("pipeline", "ok", starts[0].text)


def _refused_to_run(config: Config, client: Client, table: SourceTable, hook: Hook | None) -> Iterator[Finding]:
    """Why no run would start, although commands work."""
    with ends(config) as (target, _):
        introduce(config, target, table, client)
        problems = target.check(target_tables(config, table, hook))
    yield from (Finding("pipeline", _verdict(p), p) for p in problems)


def _target(
    config: Config, target: Target, table: SourceTable | None, hook: Hook | None, images: Sequence[bytes]
) -> Iterator[Finding]:
    wanted = () if table is None else target_tables(config, table, hook)
    problems = target.check(wanted)
    yield from (_problem_of_target(p) for p in problems)
    if table is None:
        yield Finding("target", "note", "reachable; its tables are compared once the source can be read")
    elif not problems:
        plan = target.plan(wanted)
        yield from (Finding("target", "note", f"run will execute:\n{statement}") for statement in plan)
        yield Finding("target", "ok", f"{config.target.type}: {', '.join(config.target.tables)}")
        yield from _refused(config, forecast(target, wanted), table, hook, images)


def _problem_of_target(sentence: str) -> Finding:
    """Other sentences may begin with the name of a table, which is no config path."""
    if sentence.startswith("target."):
        return problem("target", sentence, _verdict(sentence))
    return Finding("target", _verdict(sentence), sentence)


def _verification(options: Verify, target: Target, table: SourceTable, tables: Sequence[Table]) -> Iterator[Finding]:
    """What the run's own passes take, and whether they may read the target. Tables that do not exist are not read."""
    if isinstance(target, Verifiable) and all(line.startswith(NO_STATEMENT) for line in target.plan(tables)):
        for each in tables:
            target.versions(each, target.walk(each, None).ids[:1])
        yield Finding("verify", "ok", "the target's documents can be read")
    units = pass_units(table.items, table.bytes)
    seconds = units.high / options.read_units
    text = (
        f"a pass takes up to {units.high:,.0f} read units of the source, which is {duration(seconds)} at "
        f"{options.read_units:g} a second, every {duration(options.every)}"
    )
    yield Finding("verify", "note", text)
    if seconds > options.every:
        advice = "raise verify.read_units or verify.every"
        yield Finding(
            "verify", "note", "a pass may take longer than verify.every; the next one follows at once", advice
        )


def _refused(
    config: Config, refusals: Refusals, table: SourceTable, hook: Hook | None, images: Sequence[bytes]
) -> Iterator[Finding]:
    """Sampled items whose documents the target would reject."""
    mapping, reader = DocumentMapping(hook, tuple(config.target.tables)), KeyReader(table.keys)
    previews = []
    for image in images:
        with HookLimit(config.hook_timeout):
            previews.append(preview(reader.of(image), image, mapping))
    accepted = [p for p in previews if p.problem is None]  # by the hook
    rejected = [(p.key, rejections[0].reason) for p in accepted if (rejections := refusals(p.writes))]
    if not rejected:
        return
    key, reason = rejected[0]
    share = f"{len(rejected)} of {len(images)} live items would be parked"
    text = f"{share}, because the target cannot store them, e.g. item {key_text(key)}: {reason}"
    verdict: Verdict = "problem" if len(rejected) == len(accepted) else "note"
    yield Finding("target", verdict, text, "replicator preview shows them")


def _store(checkpoints: Store, *, create: bool) -> Iterator[Finding]:
    if create:
        checkpoints.create()
    problems = checkpoints.check()
    yield from (problem("checkpoints", p, _verdict(p)) for p in problems)
    if plan := checkpoints.plan():
        text = "check --create will execute" if problems else "run will execute"
        yield from (Finding("checkpoints", "note", f"{text}:\n{statement}") for statement in plan)
    if isinstance(checkpoints, AccessChecking):
        yield from (problem("checkpoints", w, "note") for w in checkpoints.warnings())
    if not problems:
        if isinstance(checkpoints, Noting):
            yield from (problem("checkpoints", note, "note") for note in checkpoints.notes())
        yield Finding("checkpoints", "ok", f"stored in {checkpoints.place}")
