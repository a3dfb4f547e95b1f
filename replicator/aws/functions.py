"""What AWS says of a function, and of the event source mappings and schedules that invoke it. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import orjson

from replicator.aws.boto import ask
from replicator.aws.errors import AwsError, failure
from replicator.aws.schedule_expression import longest_pause

GET_FUNCTION, LIST_MAPPINGS = "GetFunctionConfiguration", "ListEventSourceMappings"
GET_CONCURRENCY, GET_POLICY = "GetFunctionConcurrency", "GetPolicy"
LIST_RULES, DESCRIBE_RULE, LIST_TARGETS = "ListRuleNamesByTarget", "DescribeRule", "ListTargetsByRule"
LIST_SCHEDULES, GET_SCHEDULE = "ListSchedules", "GetSchedule"
UNLIMITED = -1


class Variables(msgspec.Struct, frozen=True, rename="pascal"):
    """Of a function's environment. They may be secrets."""

    variables: Mapping[str, str] = {}


class Configuration(msgspec.Struct, frozen=True, rename="pascal"):
    """Of a function. ``timeout`` in seconds, ``memory_size`` in MB: AWS' defaults where it says nothing."""

    function_arn: str
    handler: str = ""
    timeout: int = 3
    memory_size: int = 128
    state: str = "Active"
    state_reason: str = ""
    last_update_status: str = "Successful"
    last_update_status_reason: str = ""
    environment: Variables = Variables()


class EventSourceMapping(msgspec.Struct, frozen=True, kw_only=True):
    """What delivers a stream to a function, with AWS' names and its defaults where it says nothing."""

    uuid: str = msgspec.field(name="UUID")
    stream_arn: str = msgspec.field(name="EventSourceArn", default="")
    function_arn: str = msgspec.field(name="FunctionArn", default="")
    state: str = msgspec.field(name="State", default="")
    last_result: str | None = msgspec.field(name="LastProcessingResult", default=None)
    starting_position: str | None = msgspec.field(name="StartingPosition", default=None)
    window: int | None = msgspec.field(name="TumblingWindowInSeconds", default=None)
    batching: int | None = msgspec.field(name="MaximumBatchingWindowInSeconds", default=None)
    response_types: Sequence[str] | None = msgspec.field(name="FunctionResponseTypes", default=None)
    factor: int | None = msgspec.field(name="ParallelizationFactor", default=None)
    retries: int | None = msgspec.field(name="MaximumRetryAttempts", default=None)
    record_age: int | None = msgspec.field(name="MaximumRecordAgeInSeconds", default=None)
    bisects: bool | None = msgspec.field(name="BisectBatchOnFunctionError", default=None)
    filter_criteria: dict[str, Any] | None = msgspec.field(name="FilterCriteria", default=None)
    filter_error: dict[str, Any] | None = msgspec.field(name="FilterCriteriaError", default=None)

    @property
    def qualifier(self) -> str:
        """The version or alias of the function that is invoked; "" for the newest code."""
        return _qualifier(self.function_arn)

    @property
    def patterns(self) -> Sequence[str]:
        """The filters; a record is delivered if it matches one of them."""
        filters = (self.filter_criteria or {}).get("Filters") or ()
        return [str(each.get("Pattern", "")) for each in filters]


class Functions:
    """Of one account and region. ``client``: botocore's, for ``lambda``."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def configuration(self, name: str) -> Configuration | None:
        """The function's; None if there is no such function."""
        try:
            response = self._call(GET_FUNCTION, f"function {name}", FunctionName=name)
        except _Missing:
            return None
        return msgspec.convert(response, Configuration, strict=False)

    def reserved(self, name: str) -> int | None:
        """How many invocations may run at a time; None if that is not limited."""
        response = self._call(GET_CONCURRENCY, f"function {name}", FunctionName=name)
        reserved = response.get("ReservedConcurrentExecutions")
        return None if reserved is None else int(reserved)

    def mappings(self, name: str, stream_arn: str | None) -> Sequence[EventSourceMapping]:
        """Those of the function, whatever they read, and those of its versions and aliases that read the stream."""
        found = list(self._listed(FunctionName=name))
        if stream_arn is not None:
            found += (m for m in self._listed(EventSourceArn=stream_arn) if _is_of(m.function_arn, name))
        return list({mapping.uuid: mapping for mapping in found}.values())

    def lets_invoke(self, name: str, schedule: Schedule) -> bool:
        """Whether the function's own policy lets a rule of EventBridge invoke it: a schedule has a role for that.

        A rule's target may have one, too: see ``Schedules.has_role``.
        """
        if not schedule.rule or not schedule.arn:
            return True
        version = {"Qualifier": schedule.qualifier} if schedule.qualifier else {}
        named = ":".join(filter(None, (name, schedule.qualifier)))
        try:
            response = self._call(GET_POLICY, f"function {named}", FunctionName=name, **version)
        except _Missing:
            return False
        return _lets_invoke(orjson.loads(response["Policy"]), schedule.arn)

    def close(self) -> None:
        self._client.close()

    def _listed(self, **of: str) -> Iterator[EventSourceMapping]:
        while True:
            try:
                response = self._call(LIST_MAPPINGS, "*", **of)
            except _Missing:
                return
            for each in response.get("EventSourceMappings", ()):
                yield msgspec.convert(each, EventSourceMapping, strict=False)
            if not response.get("NextMarker"):
                return
            of = {**of, "Marker": response["NextMarker"]}

    def _call(self, operation: str, resource: str, **request: str) -> dict[str, Any]:
        try:
            return ask(self._client, "AWS Lambda", operation, request)
        except AwsError as e:
            if e.code == "ResourceNotFoundException":
                raise _Missing from e
            raise failure(e, f"lambda:{operation}", resource) from e


class Schedule(msgspec.Struct, frozen=True):
    """What invokes a function by time. ``rule``: of EventBridge; otherwise of EventBridge Scheduler.

    ``expression``: such as rate(15 minutes). ``zone``: of the times in it. ``outside``: why it invokes nothing at
    present although it is enabled; "" if it does. ``arn``: of a rule. ``qualifier``: the version or alias of the
    function that it invokes; "" for the newest code.
    """

    name: str
    enabled: bool
    rule: bool
    expression: str = ""
    zone: str = "UTC"
    outside: str = ""
    arn: str = ""
    qualifier: str = ""

    @property
    def hours(self) -> float | None:
        """The time between two invocations, at most; None if the expression does not tell."""
        return longest_pause(self.expression)


INVOKES = ":aws-sdk:lambda:invoke"  # end of the ARN of a target that is an operation, not a function


class Schedules:
    """Of one account and region. ``clients``: botocore's, for ``events`` and ``scheduler``."""

    def __init__(self, clients: tuple[Any, Any], now: Callable[[], float] = time.time) -> None:
        self._events, self._scheduler = clients
        self._now = now

    def of(self, name: str, arns: Iterable[str]) -> Iterator[Schedule]:
        """Those that invoke the function ``name``, or one of the ``arns``, which are of its versions and aliases."""
        for arn in dict.fromkeys(arns):
            for rule in self._paged(self._events, LIST_RULES, "RuleNames", TargetArn=arn):
                found = self._described(self._events, DESCRIBE_RULE, Name=rule)
                if expression := found.get("ScheduleExpression"):
                    enabled = found.get("State") != "DISABLED"
                    place = {"arn": str(found.get("Arn", "")), "qualifier": _qualifier(arn)}
                    yield Schedule(rule, enabled, rule=True, expression=expression, **place)
        for each in self._paged(self._scheduler, LIST_SCHEDULES, "Schedules"):
            arn = str(each.get("Target", {}).get("Arn", ""))
            if _is_of(arn, name) or arn.endswith(INVOKES):
                place = {"Name": str(each.get("Name", "")), "GroupName": str(each.get("GroupName") or "default")}
                found = self._described(self._scheduler, GET_SCHEDULE, **place)
                if not found or (arn.endswith(INVOKES) and not _is_of(_invoked(found), name)):
                    continue
                expression, enabled = str(found.get("ScheduleExpression", "")), found.get("State") != "DISABLED"
                zone = str(found.get("ScheduleExpressionTimezone") or "UTC")
                outside = _outside(found, self._now())
                yield Schedule(place["Name"], enabled, rule=False, expression=expression, zone=zone, outside=outside)

    def has_role(self, name: str, rule: Schedule) -> bool:
        """Whether the rule invokes the function ``name`` with a role of its own, and needs no policy of the function.

        What that role may do is not looked at.
        """
        return any(
            target.get("RoleArn") and _is_of(arn, name) and _qualifier(arn) == rule.qualifier
            for target in self._targets(rule.name)
            for arn in [str(target.get("Arn", ""))]
        )

    def close(self) -> None:
        self._events.close()
        self._scheduler.close()

    def _targets(self, rule: str) -> Iterator[Mapping[str, Any]]:
        """What a rule invokes; nothing if the rule is gone."""
        with suppress(_Missing):
            yield from self._paged(self._events, LIST_TARGETS, "Targets", Rule=rule)

    def _described(self, client: Any, operation: str, **request: str) -> Mapping[str, Any]:
        """One of those that were listed; empty if it is gone, as a schedule is that runs once."""
        try:
            return self._call(client, operation, **request)
        except _Missing:
            return {}

    def _paged(self, client: Any, operation: str, member: str, **request: str) -> Iterator[Any]:
        while True:
            response = self._call(client, operation, **request)
            yield from response.get(member, ())
            if not response.get("NextToken"):
                return
            request = {**request, "NextToken": response["NextToken"]}

    def _call(self, client: Any, operation: str, **request: str) -> dict[str, Any]:
        service = "scheduler" if client is self._scheduler else "events"
        try:
            return ask(client, "Amazon EventBridge", operation, request)
        except AwsError as e:
            if e.code == "ResourceNotFoundException" and operation in (DESCRIBE_RULE, LIST_TARGETS, GET_SCHEDULE):
                raise _Missing from e
            raise failure(e, f"{service}:{operation}", "*") from e


class _Missing(Exception):
    pass


def _lets_invoke(policy: Mapping[str, Any], rule: str) -> bool:
    """Whether a statement allows it: conditions but for the rule's ARN, and statements that deny, are left out."""
    for statement in policy.get("Statement", ()):
        principal = statement.get("Principal", {})
        kinds = {"AWS": principal} if isinstance(principal, str) else principal
        named = {name for kind in ("AWS", "Service") for name in _listing(kinds.get(kind, ()))}
        actions = [action.lower() for action in _listing(statement.get("Action", ()))]
        rules = [
            arn
            for condition in statement.get("Condition", {}).values()
            for key, value in condition.items()
            if key.lower() == "aws:sourcearn"
            for arn in _listing(value)
        ]
        if (
            statement.get("Effect") == "Allow"
            and not named.isdisjoint({"*", "events.amazonaws.com"})
            and any(fnmatchcase("lambda:invokefunction", action) for action in actions)
            and (not rules or any(fnmatchcase(rule, arn) for arn in rules))
        ):
            return True
    return False


def _listing(value: str | Sequence[str]) -> Sequence[str]:
    """The values of a policy's element, which is one or several."""
    return [value] if isinstance(value, str) else value


def _qualifier(arn: str) -> str:
    """The version or alias in a function's ARN; "" for the newest code."""
    return ":".join(arn.split(":")[7:])


def _is_of(function: str, name: str) -> bool:
    """Whether an ARN, arn:aws:lambda:REGION:ACCOUNT:function:NAME[:QUALIFIER], is of the function or a version.

    Or what else Lambda accepts in place of it: ACCOUNT:function:NAME[:QUALIFIER], or NAME[:QUALIFIER].
    """
    _, separator, named = function.partition(":function:")
    return (named if separator else function).split(":")[0] == name


def _outside(schedule: Mapping[str, Any], now: float) -> str:
    """Why a schedule with dates does not invoke its target now; "" if it does."""
    begins, ends = schedule.get("StartDate"), schedule.get("EndDate")
    if isinstance(ends, datetime) and ends.timestamp() <= now:
        return f"has ended (EndDate {ends:%Y-%m-%d})"
    if isinstance(begins, datetime) and begins.timestamp() > now:
        return f"has not begun (StartDate {begins:%Y-%m-%d})"
    return ""


def _invoked(schedule: Mapping[str, Any]) -> str:
    """The function that a schedule invokes by the operation of Lambda, which its input names; "" if it names none."""
    try:
        given = orjson.loads(str(schedule.get("Target", {}).get("Input", "")))
    except orjson.JSONDecodeError:
        return ""
    return str(given.get("FunctionName", "")) if isinstance(given, dict) else ""
