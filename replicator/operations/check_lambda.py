"""What ``check`` says of the function on AWS Lambda, and of the event source mapping and schedule that invoke it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import orjson

from replicator.aws import boto
from replicator.aws.functions import UNLIMITED, Configuration, EventSourceMapping, Functions, Schedule, Schedules
from replicator.aws.schedule_expression import daily_times, pause_between
from replicator.config.engine import Lambda, longest_hook
from replicator.config.settings import Config
from replicator.engine.aws_lambda import TARGET
from replicator.operations.finding import Finding, Verdict
from replicator.operations.lambda_package import HANDLER, unusable_options
from replicator.operations.lambda_template import MAPPING, MEMORY, OFTEN, timeout_for
from replicator.options import aws_options
from replicator.target.contract import keeps_history

SHORTEST, LEAST = 30, 256  # seconds of the timeout, and MB of memory
LONGEST_BATCHING = 10  # seconds
RAREST = 12.0  # hours between two invocations by the schedule: records are gone after 24
PARTIAL = "ReportBatchItemFailures"
_AGAIN = "create it again, with the settings in docs/lambda.md"
_NO_FILTER = "--filter-criteria '{}'"
DELETING = "Deleting"
_STARTING = ("Creating", "Enabling", "Updating")


def lambda_findings(config: Config, stream_arn: str | None) -> Iterator[Finding]:
    """``stream_arn``: the table's stream, None if it is unknown. A function that does not exist yet is a note."""
    assert isinstance(config.engine, Lambda)
    yield from unusable_findings(config)
    name = config.engine.function
    if name is None:
        text = "not checked: the function and its event source mapping, because the config does not name the function"
        yield Finding("engine", "note", text, "engine.function: NAME")
        return
    functions, schedules = (
        Functions(boto.connect_lambda(config.source)),
        Schedules(boto.connect_schedules(config.source)),
    )
    options = aws_options(config.source.model_copy(update={"endpoint_url": None}), stream_arn or "")
    hook_timeout = None if config.transform is None else config.hook_timeout
    history = any(map(keeps_history, config.target.tables.values()))
    asked = Asked(name, stream_arn, options, config.target_name, hook_timeout, history)
    try:
        yield from of_function(functions, schedules, asked)
    finally:
        functions.close()
        schedules.close()


def unusable_findings(config: Config) -> Iterator[Finding]:
    """Of options that the machine that makes the backfill can use, and the function cannot."""
    yield from (Finding(key, "problem", why) for key, why in unusable_options(config))


@dataclass(frozen=True, slots=True)
class Asked:
    """The function's name, the table's stream if it is known, and the options of ``aws`` that select the account.

    ``target``: which one of the config's targets the function is for. ``hook_timeout``: of its hook, if it has one.
    ``history``: of any table.
    """

    function: str
    stream_arn: str | None
    options: str
    target: str | None = None
    hook_timeout: float | None = None
    history: bool = False

    @property
    def timeout(self) -> int:
        """Seconds, for the function."""
        return timeout_for(self.hook_timeout, history=self.history)

    def command(self, verb: str, arguments: str, service: str = "lambda") -> str:
        return f"aws {service} {verb} {arguments}{self.options}"


def of_function(functions: Functions, schedules: Schedules, asked: Asked) -> Iterator[Finding]:
    configuration = functions.configuration(asked.function)
    if configuration is None:
        text = f"function {asked.function} does not exist yet, so neither it nor its mapping was checked"
        yield Finding("engine.function", "note", text, "docs/lambda.md says how it is deployed")
        return
    yield from of_configuration(configuration, asked)
    yield from of_concurrency(functions.reserved(asked.function), asked)
    mappings = functions.mappings(asked.function, asked.stream_arn)
    yield from of_mappings(mappings, asked)
    arns = [configuration.function_arn, *(m.function_arn for m in mappings if m.qualifier)]
    found = list(schedules.of(asked.function, arns))
    refused = {
        s.name
        for s in found
        if s.enabled and not functions.lets_invoke(asked.function, s) and not schedules.has_role(asked.function, s)
    }
    yield from of_schedules(found, asked, refused)


def of_concurrency(reserved: int | None, asked: Asked) -> Iterator[Finding]:
    """Of the invocations that may run at a time; None if that is not limited."""
    if reserved == 0:
        text = f"ReservedConcurrentExecutions of {asked.function} is 0: the function never runs"
        do = asked.command("delete-function-concurrency", f"--function-name {asked.function}")
        yield Finding("engine.function", "problem", text, do)


def _permission(rule: Schedule, asked: Asked) -> str:
    """The options that let a rule invoke the function."""
    version = f" --qualifier {rule.qualifier}" if rule.qualifier else ""
    return (
        f"--function-name {asked.function}{version} --statement-id {rule.name} --action lambda:InvokeFunction "
        f"--principal events.amazonaws.com --source-arn {rule.arn}"
    )


def of_schedules(schedules: Sequence[Schedule], asked: Asked, refused: Collection[str] = ()) -> Iterator[Finding]:
    """A problem unless one is enabled: no event tells of a shard without records, or of a stream that was disabled.

    ``refused``: the rules that the function's policy does not let invoke it, and that have no role for it.
    """
    enabled = [s for s in schedules if s.enabled and not s.outside and s.name not in refused]
    often = [[schedule] for schedule in enabled if (schedule.hours or 0) <= RAREST] or _often_together(enabled)
    if often:
        names = [schedule.name for schedule in often[0]]
        verb = "invokes" if len(names) == 1 else "invoke"
        yield Finding("schedule", "ok", f"{' and '.join(names)} {verb} {asked.function}")
        return
    if enabled:
        first = enabled[0]
        text = (
            f"{first.name} invokes {asked.function} too rarely, with {first.expression}: what it has to read is gone "
            "after a day"
        )
        put = asked.command("put-rule", f"--name {first.name} --schedule-expression '{OFTEN}'", "events")
        yield Finding("schedule", "problem", text, put if first.rule else f"set its expression to {OFTEN}")
        return
    without = "a shard without records looks like a gap after a day, and a stream that was disabled is not noticed"
    if not schedules:
        text = f"no schedule of EventBridge invokes {asked.function}: {without}"
        yield Finding("schedule", "problem", text, "create the rule that `replicator lambda template` prints")
        return
    if rule := next((s for s in schedules if s.name in refused), None):
        text = f"the policy of {asked.function} does not let {rule.name} invoke it: {without}"
        yield Finding("schedule", "problem", text, asked.command("add-permission", _permission(rule, asked)))
        return
    first = next((schedule for schedule in schedules if schedule.enabled), schedules[0])
    do = asked.command("enable-rule", f"--name {first.name}", "events") if first.rule else "enable it"
    is_not, do = (first.outside, "remove its dates") if first.enabled else ("is disabled", do)
    yield Finding(
        "schedule", "problem", f"{first.name} {is_not}, so it does not invoke {asked.function}: {without}", do
    )


def _often_together(schedules: Sequence[Schedule]) -> list[list[Schedule]]:
    """Schedules of each day that are often enough together. Those of other time zones may come at the same times."""
    daily = {schedule.name: daily_times(schedule.expression) for schedule in schedules}
    zones = {
        schedule.zone: [s for s in schedules if s.zone == schedule.zone and daily[s.name]] for schedule in schedules
    }
    return [of for of in zones.values() if pause_between({t for s in of for t in daily[s.name]}) <= RAREST]


def of_configuration(configuration: Configuration, asked: Asked) -> Iterator[Finding]:
    def update(option: str) -> str:
        return asked.command("update-function-configuration", f"--function-name {asked.function} {option}")

    for name, status, reason in (
        ("State", configuration.state, configuration.state_reason),
        ("LastUpdateStatus", configuration.last_update_status, configuration.last_update_status_reason),
    ):
        if status == "Failed":
            text = f"{name} of {asked.function} is Failed: {reason or 'AWS names no reason'}"
            yield Finding("engine.function", "problem", text, "deploy it again, as docs/lambda.md says")
    named = configuration.environment.variables.get(TARGET)
    if asked.target is not None and named not in (None, "", asked.target):
        text = f"{TARGET} of {asked.function} is {named}: it stores changes for that target, or refuses its package"
        yield Finding("engine.function", "problem", text, f"set the variable to {asked.target}, as the template does")
    if configuration.timeout < SHORTEST:
        text = f"Timeout is {configuration.timeout} s, of which an invocation has three less to store a batch"
        yield Finding("engine.function", "problem", text, update(f"--timeout {asked.timeout}"))
    elif asked.hook_timeout is not None and asked.hook_timeout > longest_hook(
        configuration.timeout, history=asked.history
    ):
        text = (
            f"Timeout is {configuration.timeout} s, which is too short for hook_timeout ({asked.hook_timeout:g} s): an "
            "item whose hook never ends would not be parked, and keep all later changes of its shard from the copy"
        )
        yield Finding("engine.function", "problem", text, update(f"--timeout {asked.timeout}"))
    if configuration.memory_size < LEAST:
        text = f"MemorySize is {configuration.memory_size} MB; batches of many or large items need more"
        yield Finding("engine.function", "note", text, update(f"--memory-size {MEMORY}"))
    if configuration.handler != HANDLER:
        text = f"Handler is {configuration.handler or 'not set'}, which is not replicator's"
        yield Finding("engine.function", "note", text, f"unless it calls {HANDLER}: {update(f'--handler {HANDLER}')}")


def of_mappings(mappings: Sequence[EventSourceMapping], asked: Asked) -> Iterator[Finding]:
    """``mappings``: all that invoke the function, or read the stream for a version of it."""
    stream = asked.stream_arn
    going = [m for m in mappings if m.state == DELETING and len(mappings) > 1]
    there = [m for m in mappings if m not in going]
    reading = [m for m in there if stream in (None, m.stream_arn)]
    for mapping in going:
        yield Finding("mapping", "note", f"{mapping.uuid} is being deleted, and is of no matter")
    for mapping in there:
        if mapping not in reading:
            text = f"{mapping.uuid} reads {mapping.stream_arn or 'no stream'}, but the table's stream is {stream}"
            yield Finding("mapping", "problem", text, asked.command("delete-event-source-mapping", _uuid(mapping)))
    if not reading:
        text = f"no event source mapping delivers the table's stream to {asked.function}"
        yield Finding("mapping", "problem", text, "create it with the settings in docs/lambda.md")
    if len(reading) > 1:
        text = f"{len(reading)} mappings deliver the stream, and delay each other: {', '.join(m.uuid for m in reading)}"
        yield Finding("mapping", "problem", text, "delete all but one")
    for mapping in reading:
        if mapping.qualifier not in ("", "$LATEST"):
            version = f"{mapping.qualifier}, a version or alias"
            text = f"{mapping.uuid} invokes {version}; the function's newest code was checked"
            yield Finding("mapping", "note", text, "look at the timeout, memory and handler of that version yourself")
        found = list(of_mapping(mapping, asked))
        yield from found
        if all(finding.verdict != "problem" for finding in found):
            yield Finding("mapping", "ok", f"{mapping.uuid} delivers the stream to {asked.function}")


def of_mapping(mapping: EventSourceMapping, asked: Asked) -> Iterator[Finding]:
    """A problem if changes would be refused, given up or noticed late; a note if they would only be read twice."""

    def finding(verdict: Verdict, text: str, option: str) -> Finding:
        is_option = option.startswith("--")
        do = asked.command("update-event-source-mapping", f"{_uuid(mapping)} {option}") if is_option else option
        return Finding("mapping", verdict, text, do)

    for wrong in (*_state(mapping), *_delivery(mapping), *_failures(mapping), *_filters(mapping)):
        yield finding(*wrong)


Wrong = tuple[Verdict, str, str]
"""The verdict, the sentence, and the option of an update that corrects it, or other advice."""


def _uuid(mapping: EventSourceMapping) -> str:
    return f"--uuid {mapping.uuid}"


def _state(mapping: EventSourceMapping) -> Iterator[Wrong]:
    if mapping.state in _STARTING:
        yield "note", f"{mapping.uuid} is not ready yet: State is {mapping.state}", ""
    elif mapping.state != "Enabled":
        text = f"State is {mapping.state or 'unknown'}: nothing is delivered, and after 24 hours that is a gap"
        yield "problem", text, _AGAIN if mapping.state == DELETING else "--enabled"
    if "PROBLEM" in (mapping.last_result or ""):
        yield "note", f"the last invocation failed ({mapping.last_result}); the function's log says why", ""


def _delivery(mapping: EventSourceMapping) -> Iterator[Wrong]:
    if not mapping.window:
        text = "TumblingWindowInSeconds is not set: events do not name their shard, and the function refuses them"
        yield "problem", text, "--tumbling-window-in-seconds 60"
    if (mapping.batching or 0) > LONGEST_BATCHING:
        text = f"MaximumBatchingWindowInSeconds is {mapping.batching}: a change waits that long until it is delivered"
        yield "note", text, f"--maximum-batching-window-in-seconds {MAPPING['MaximumBatchingWindowInSeconds']}"
    if (factor := mapping.factor or 1) > 1:
        text = (
            f"ParallelizationFactor is {factor}: each of several batches of a shard at a time lacks records of the "
            "others, so the function reads the stream, and they delay each other"
        )
        yield "problem", text, "--parallelization-factor 1"
    if mapping.starting_position not in (None, "TRIM_HORIZON"):
        text = (
            f"StartingPosition is {mapping.starting_position}: what a new mapping skips is read from the stream, which "
            "is slower. It cannot be changed, and no longer matters once the mapping has delivered records"
        )
        yield "note", text, ""


def _failures(mapping: EventSourceMapping) -> Iterator[Wrong]:
    if PARTIAL not in (mapping.response_types or ()):
        text = (
            f"FunctionResponseTypes does not hold {PARTIAL}: Lambda takes a batch that is stored in part for a whole "
            "one, and the rest of it is read from the stream with the next batch or by the schedule"
        )
        yield "problem", text, f"--function-response-types {PARTIAL}"
    for name, limit, option in (
        ("MaximumRetryAttempts", mapping.retries, "--maximum-retry-attempts=-1"),
        ("MaximumRecordAgeInSeconds", mapping.record_age, "--maximum-record-age-in-seconds=-1"),
    ):
        if limit not in (None, UNLIMITED):
            text = (
                f"{name} is {limit}: Lambda gives up batches that fail for longer, and they are read from the stream "
                "with the next batch or by the schedule"
            )
            yield "problem", text, option
    if mapping.bisects:
        text = f"BisectBatchOnFunctionError has no use: {PARTIAL} already names the first record that is not stored"
        yield "note", text, "--no-bisect-batch-on-function-error"


def _filters(mapping: EventSourceMapping) -> Iterator[Wrong]:
    """Filters keep nothing out of the copy, because the function reads what they left out from the stream."""
    instead = "To keep items out of the copy, let the hook return None for them"
    if mapping.filter_error:
        yield "problem", f"FilterCriteria cannot be read, and must be none. {instead}", _NO_FILTER
    for pattern in mapping.patterns:
        if of_keys_alone(pattern):
            text = (
                f"FilterCriteria {pattern} leaves items out that the function then reads from the stream, more slowly"
            )
            yield "note", f"{text}. {instead}", _NO_FILTER
        else:
            text = (
                f"FilterCriteria {pattern} lets an item leave unnoticed: a delete, or a change after which it no "
                "longer matches, is not delivered, and is read from the stream with the next batch or by the schedule"
            )
            yield "problem", f"{text}. {instead}", _NO_FILTER


def of_keys_alone(pattern: str) -> bool:
    """Whether an item always matches or never does, whatever is done to it: only its key is asked for."""
    try:
        asked = orjson.loads(pattern)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(asked, dict) or asked.keys() != {"dynamodb"}:
        return False
    return isinstance(asked["dynamodb"], dict) and asked["dynamodb"].keys() == {"Keys"}
