"""What ``check`` says of the function on AWS Lambda, its event source mapping and its schedule.

Responses are those of AWS' service model: botocore's stubber refuses others. The template is read back through moto.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
import yaml
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber
from click.testing import CliRunner
from moto import mock_aws

from replicator.aws import boto
from replicator.aws.functions import (
    GET_CONCURRENCY,
    GET_FUNCTION,
    LIST_MAPPINGS,
    Configuration,
    Functions,
    Schedule,
    Schedules,
)
from replicator.cli import main
from replicator.config.engine import Lambda
from replicator.config.settings import Config, Source
from replicator.config.target import Destination
from replicator.errors import NotPermitted, TransientError
from replicator.operations import check_lambda
from replicator.operations.check_lambda import Asked, lambda_findings, of_configuration, of_function, of_schedules
from replicator.operations.check_offline import gathered
from replicator.operations.finding import Finding, exit_code
from replicator.operations.lambda_package import HANDLER
from replicator.operations.lambda_template import MAPPING
from tests.security.policy import Permission, documented

STREAM = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000"
OTHER = STREAM.replace("2026", "2025")
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:orders-copy"
UUID = "14e0db71-5d35-4eb5-b481-8945cf9d10c2"
SECOND = UUID[::-1]
ASKED = Asked("orders-copy", STREAM, " --region eu-west-1")
UPDATE = f"aws lambda update-event-source-mapping --uuid {UUID} "
RIGHT = {"UUID": UUID, "EventSourceArn": STREAM, "FunctionArn": FUNCTION, "State": "Enabled", **MAPPING}
KEYS = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
RULE = Schedule("each-quarter", True, rule=True)
NONE = {"ReservedConcurrentExecutions": 0}
SCHEDULED = Finding("schedule", "ok", "each-quarter invokes orders-copy")
DEPLOYED = {"FunctionArn": FUNCTION, "Handler": HANDLER, "Timeout": 300, "MemorySize": 512}


@pytest.fixture
def client() -> Any:
    return boto3.client("lambda", region_name="eu-west-1", **KEYS)


class OneRule(Schedules):
    """What invokes the function is a rule."""

    def __init__(self) -> None: ...

    def of(self, name: str, arns: Iterable[str]) -> Iterator[Schedule]:
        yield RULE


def found(
    client: Any,
    *mappings: Mapping[str, Any],
    function: Mapping[str, Any] = DEPLOYED,
    of_versions: int = 0,
    concurrency: Mapping[str, int] | None = None,
) -> list[Finding]:
    """But for its schedule, which is right. ``of_versions``: how many mappings, the last ones, invoke a version: these
    are only listed by stream.
    """
    own, others = mappings[: len(mappings) - of_versions], mappings[len(mappings) - of_versions :]
    with Stubber(client) as aws:
        aws.add_response("get_function_configuration", dict(function), {"FunctionName": "orders-copy"})
        aws.add_response("get_function_concurrency", dict(concurrency or {}), {"FunctionName": "orders-copy"})
        responses: list[Mapping[str, Any]] = [{"EventSourceMappings": [m]} for m in own] or [
            {"EventSourceMappings": []}
        ]
        for page, response in enumerate(responses):  # one a page
            more = {"NextMarker": str(page + 1)} if page + 1 < len(responses) else {}
            marker = {"Marker": str(page)} if page else {}
            aws.add_response(
                "list_event_source_mappings", {**response, **more}, {"FunctionName": "orders-copy", **marker}
            )
        reading = [m for m in mappings if m["EventSourceArn"] == STREAM]
        aws.add_response("list_event_source_mappings", {"EventSourceMappings": reading}, {"EventSourceArn": STREAM})
        assert len(others) <= len(reading)
        *checked, scheduled = of_function(Functions(client), OneRule(), ASKED)
    assert scheduled == SCHEDULED
    return checked


def problems(findings: list[Finding], verdict: str = "problem") -> list[Finding]:
    return [finding for finding in findings if finding.verdict == verdict]


def test_a_mapping_with_the_settings_of_the_template_is_right(client: Any) -> None:
    text = f"{UUID} delivers the stream to orders-copy"
    assert found(client, RIGHT) == [Finding("mapping", "ok", text)]


@pytest.mark.parametrize(
    ("setting", "text", "option"),
    [
        ({"TumblingWindowInSeconds": 0}, "TumblingWindowInSeconds is not set", "--tumbling-window-in-seconds 60"),
        ({"ParallelizationFactor": 2}, "ParallelizationFactor is 2", "--parallelization-factor 1"),
        (
            {"FunctionResponseTypes": []},
            "FunctionResponseTypes does not hold ReportBatchItemFailures",
            "--function-response-types ReportBatchItemFailures",
        ),
        ({"MaximumRetryAttempts": 0}, "MaximumRetryAttempts is 0", "--maximum-retry-attempts=-1"),
        (
            {"MaximumRecordAgeInSeconds": 3600},
            "MaximumRecordAgeInSeconds is 3600",
            "--maximum-record-age-in-seconds=-1",
        ),
        ({"State": "Disabled"}, "State is Disabled: nothing is delivered", "--enabled"),
        (
            {"FilterCriteriaError": {"ErrorCode": "KMSKeyNotFound", "Message": "the key is gone"}},
            "FilterCriteria cannot be read",
            "--filter-criteria '{}'",
        ),
    ],
)
def test_each_wrong_setting_is_a_problem_with_the_command_that_corrects_it(
    client: Any, setting: dict[str, Any], text: str, option: str
) -> None:
    (problem,) = found(client, RIGHT | setting)
    assert (problem.verdict, problem.text[: len(text)]) == ("problem", text)
    assert problem.do == f"{UPDATE}{option} --region eu-west-1"


def test_a_mapping_that_is_being_deleted_is_a_problem_that_no_update_corrects(client: Any) -> None:
    (problem,) = found(client, RIGHT | {"State": "Deleting"})
    assert problem.text.startswith("State is Deleting: nothing is delivered")
    assert problem.do == "create it again, with the settings in docs/lambda.md"


@pytest.mark.parametrize("stream", [STREAM, OTHER])
def test_a_mapping_that_is_being_deleted_beside_its_successor_is_no_problem(client: Any, stream: str) -> None:
    going = RIGHT | {"UUID": SECOND, "State": "Deleting", "EventSourceArn": stream}
    note, ok = found(client, RIGHT, going)
    assert note == Finding("mapping", "note", f"{SECOND} is being deleted, and is of no matter")
    assert ok.verdict == "ok"


@pytest.mark.parametrize("missing", ["TumblingWindowInSeconds", "FunctionResponseTypes"])
def test_a_setting_that_the_response_leaves_out_is_wrong_if_its_default_is(client: Any, missing: str) -> None:
    (problem,) = found(client, {k: v for k, v in RIGHT.items() if k != missing})
    assert problem.text.startswith(missing)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"BisectBatchOnFunctionError": True}, "BisectBatchOnFunctionError has no use"),
        ({"StartingPosition": "LATEST"}, "StartingPosition is LATEST"),
        ({"MaximumBatchingWindowInSeconds": 300}, "MaximumBatchingWindowInSeconds is 300: a change waits that long"),
        ({"State": "Enabling"}, f"{UUID} is not ready yet: State is Enabling"),
        ({"LastProcessingResult": "PROBLEM: Function call failed"}, "the last invocation failed (PROBLEM: Function"),
    ],
)
def test_what_costs_nothing_but_time_is_a_note(client: Any, setting: dict[str, Any], text: str) -> None:
    findings = found(client, RIGHT | setting)
    assert exit_code(findings) == 0
    assert problems(findings, "note")[0].text.startswith(text)


@pytest.mark.parametrize(
    ("pattern", "verdict"),
    [
        ('{"dynamodb": {"NewImage": {"status": {"S": ["open"]}}}}', "problem"),
        ('{"dynamodb": {"Keys": {"id": {"S": ["1"]}}, "NewImage": {"n": {"N": ["1"]}}}}', "problem"),
        ('{"eventName": ["INSERT", "MODIFY"]}', "problem"),
        ('{"userIdentity": [{"exists": false}]}', "problem"),
        ("no json", "problem"),
        ('["dynamodb"]', "problem"),
        ('{"dynamodb": {"Keys": {"id": {"S": [{"prefix": "eu-"}]}}}}', "note"),
    ],
)
def test_a_filter_that_lets_an_item_leave_unnoticed_is_refused(client: Any, pattern: str, verdict: str) -> None:
    findings = found(client, RIGHT | {"FilterCriteria": {"Filters": [{"Pattern": pattern}]}})
    (finding,) = problems(findings, verdict)
    assert finding.text.startswith(f"FilterCriteria {pattern} le")
    assert "let the hook return None" in finding.text
    assert ("unnoticed" in finding.text) == (verdict == "problem")
    assert finding.do == f"{UPDATE}--filter-criteria '{{}}' --region eu-west-1"


def test_a_mapping_of_another_stream_is_named_with_the_command_that_deletes_it(client: Any) -> None:
    other, missing = found(client, RIGHT | {"EventSourceArn": OTHER})
    assert other.text == f"{UUID} reads {OTHER}, but the table's stream is {STREAM}"
    assert other.do == f"aws lambda delete-event-source-mapping --uuid {UUID} --region eu-west-1"
    assert missing.text == "no event source mapping delivers the table's stream to orders-copy"


def test_no_mapping_is_a_problem_once_the_function_is_deployed(client: Any) -> None:
    (problem,) = found(client)
    assert problem.verdict == "problem"
    assert problem.text == "no event source mapping delivers the table's stream to orders-copy"


@pytest.mark.parametrize("of_versions", [0, 1])
def test_two_mappings_of_the_stream_are_named_also_if_one_invokes_a_version(client: Any, of_versions: int) -> None:
    second = RIGHT | {"UUID": SECOND, "FunctionArn": f"{FUNCTION}:live" if of_versions else FUNCTION}
    first, *_ = problems(found(client, RIGHT, second, of_versions=of_versions))
    assert first.text == f"2 mappings deliver the stream, and delay each other: {UUID}, {SECOND}"


@pytest.mark.parametrize(("qualifier", "notes"), [("", 0), (":$LATEST", 0), (":3", 1), (":live", 1)])
def test_a_mapping_to_a_version_or_alias_says_that_another_one_was_checked(
    client: Any, qualifier: str, notes: int
) -> None:
    findings = found(client, RIGHT | {"FunctionArn": FUNCTION + qualifier})
    assert [f.text for f in problems(findings, "note")] == [
        f"{UUID} invokes {qualifier[1:]}, a version or alias; the function's newest code was checked"
    ] * notes
    assert exit_code(findings) == 0


def test_a_function_with_the_variable_of_another_target_is_a_problem(client: Any) -> None:
    def said(variables: dict[str, str]) -> list[Finding]:
        function = Functions(client)
        with Stubber(client) as aws:
            environment = {"Environment": {"Variables": variables}} if variables else {}
            aws.add_response("get_function_configuration", {**DEPLOYED, **environment})
            configuration = function.configuration("orders-copy")
        assert configuration is not None
        return list(of_configuration(configuration, replace(ASKED, target="shop")))

    assert said({}) == said({"REPLICATOR_TARGET": "shop"}) == said({"REPLICATOR_TARGET": ""}) == []
    (finding,) = said({"REPLICATOR_TARGET": "warehouse", "URL": "secret"})
    assert (finding.verdict, finding.subject) == ("problem", "engine.function")
    assert finding.text.startswith("REPLICATOR_TARGET of orders-copy is warehouse")


@pytest.mark.parametrize("name", ["State", "LastUpdateStatus"])
def test_a_function_that_aws_could_not_deploy_is_a_problem_with_its_reason(client: Any, name: str) -> None:
    function = {**DEPLOYED, name: "Failed", f"{name}Reason": "the VPC has no free address"}
    (problem,) = problems(found(client, RIGHT, function=function))
    assert problem.text == f"{name} of orders-copy is Failed: the VPC has no free address"
    assert problem.do == "deploy it again, as docs/lambda.md says"


def test_what_delivers_the_stream_to_another_function_is_of_no_matter(client: Any) -> None:
    another = RIGHT | {"UUID": SECOND, "FunctionArn": f"{FUNCTION}-2"}
    assert [f.verdict for f in found(client, RIGHT, another, of_versions=1)] == ["ok"]


@pytest.mark.parametrize(
    ("setting", "verdict", "text", "option"),
    [
        ({"Timeout": 29}, "problem", "Timeout is 29 s", "--timeout 300"),
        ({"MemorySize": 128}, "note", "MemorySize is 128 MB", "--memory-size 512"),
        ({"Handler": "own.handler"}, "note", "Handler is own.handler", f"--handler {HANDLER}"),
    ],
)
def test_a_function_with_too_little_is_named_with_the_command_that_gives_it_more(
    client: Any, setting: dict[str, Any], verdict: str, text: str, option: str
) -> None:
    first, _ = found(client, RIGHT, function=DEPLOYED | setting)
    assert (first.verdict, first.text[: len(text)]) == (verdict, text)
    assert first.do.endswith(
        f"aws lambda update-function-configuration --function-name orders-copy {option} --region eu-west-1"
    )


@pytest.mark.parametrize(
    ("limit", "timeout", "option"),
    [(10.0, 30, None), (11.0, 30, "--timeout 300"), (145.0, 300, None), (200.0, 300, "--timeout 410")],
)
def test_a_timeout_in_which_a_hook_that_hangs_is_not_parked_is_a_problem(
    client: Any, limit: float, timeout: int, option: str | None
) -> None:
    function = Functions(client)
    with Stubber(client) as aws:
        aws.add_response("get_function_configuration", DEPLOYED | {"Timeout": timeout})
        configuration = function.configuration("orders-copy")
    assert configuration is not None
    findings = list(of_configuration(configuration, replace(ASKED, hook_timeout=limit)))
    assert [finding.verdict for finding in findings] == ([] if option is None else ["problem"])
    if option is not None:
        said = f"Timeout is {timeout} s, which is too short for hook_timeout ({limit:g} s)"
        assert findings[0].text.startswith(said)
        assert option in findings[0].do
    assert list(of_configuration(configuration, ASKED)) == []


@pytest.mark.parametrize(("limit", "option"), [(58.0, None), (59.0, "--timeout 305")])
def test_with_a_history_a_hook_that_hangs_is_called_more_often_until_its_item_is_parked(
    limit: float, option: str | None
) -> None:
    asked = replace(ASKED, hook_timeout=limit, history=True)
    findings = list(of_configuration(Configuration(FUNCTION, handler=HANDLER, timeout=300, memory_size=512), asked))
    assert [finding.verdict for finding in findings] == ([] if option is None else ["problem"])
    assert all(option in finding.do for finding in findings if option is not None)


@pytest.mark.parametrize(
    ("concurrency", "runs"), [({}, True), ({"ReservedConcurrentExecutions": 1}, True), (NONE, False)]
)
def test_a_function_whose_reserved_concurrency_is_0_never_runs(
    client: Any, concurrency: Mapping[str, int], runs: bool
) -> None:
    never = problems(found(client, RIGHT, concurrency=concurrency))
    assert [(p.text, p.do) for p in never] == (
        []
        if runs
        else [
            (
                "ReservedConcurrentExecutions of orders-copy is 0: the function never runs",
                "aws lambda delete-function-concurrency --function-name orders-copy --region eu-west-1",
            )
        ]
    )


WITHOUT = "a shard without records looks like a gap after a day, and a stream that was disabled is not noticed"


@pytest.mark.parametrize(
    ("schedules", "text", "do"),
    [
        (
            [],
            "no schedule of EventBridge invokes orders-copy",
            "create the rule that `replicator lambda template` prints",
        ),
        (
            [Schedule("each-quarter", False, rule=True)],
            "each-quarter is disabled, so it does not invoke orders-copy",
            "aws events enable-rule --name each-quarter --region eu-west-1",
        ),
        ([Schedule("night", False, rule=False)], "night is disabled, so it does not invoke orders-copy", "enable it"),
    ],
)
def test_a_function_that_no_schedule_invokes_is_a_problem(schedules: list[Schedule], text: str, do: str) -> None:
    assert list(of_schedules(schedules, ASKED)) == [Finding("schedule", "problem", f"{text}: {WITHOUT}", do)]


@pytest.mark.parametrize(
    "expression",
    [
        "rate(7 days)",
        "rate(1 day)",
        "rate(13 hours)",
        "rate(721 minutes)",
        "cron(0 6,20 * * ? *)",
        "cron(0 * ? * MON-FRI *)",
        "at(2026-01-31T12:00:00)",
    ],
)
def test_a_schedule_that_is_rarer_than_what_it_reads_lasts_is_a_problem(expression: str) -> None:
    (found,) = of_schedules([Schedule("week", True, rule=True, expression=expression)], ASKED)
    assert found.verdict == "problem"
    assert found.text == (
        f"week invokes orders-copy too rarely, with {expression}: what it has to read is gone after a day"
    )
    assert "events put-rule" in found.do
    assert "--name week --schedule-expression 'rate(15 minutes)'" in found.do
    (found,) = of_schedules([Schedule("week", True, rule=False, expression=expression)], ASKED)
    assert (found.verdict, found.do) == ("problem", "set its expression to rate(15 minutes)")


@pytest.mark.parametrize("expression", ["rate(1 minute)", "rate(12 hours)", "cron(0 * * * ? *)", ""])
def test_a_schedule_that_is_often_enough_or_whose_times_are_not_known_is_none(expression: str) -> None:
    found = of_schedules([Schedule("each-quarter", True, rule=True, expression=expression)], ASKED)
    assert list(found) == [SCHEDULED]


RULE_ARN = "arn:aws:events:eu-west-1:123456789012:rule/quarter"
PERMISSION = {
    "Effect": "Allow",
    "Principal": {"Service": "events.amazonaws.com"},
    "Action": "lambda:InvokeFunction",
    "Resource": FUNCTION,
    "Condition": {"ArnLike": {"AWS:SourceArn": RULE_ARN}},
}


@pytest.mark.parametrize(
    ("statements", "lets"),
    [
        ([PERMISSION], True),
        ([{**PERMISSION, "Condition": {"ArnLike": {"AWS:SourceArn": RULE_ARN.replace("quarter", "*")}}}], True),
        ([{**PERMISSION, "Condition": {"StringEquals": {"AWS:SourceAccount": "123456789012"}}}], True),
        ([{**PERMISSION, "Principal": "*", "Action": ["lambda:*"]}], True),
        ([{**PERMISSION, "Condition": {"ArnLike": {"AWS:SourceArn": RULE_ARN + "-2"}}}], False),
        ([{**PERMISSION, "Principal": {"Service": "s3.amazonaws.com"}}], False),
        ([{**PERMISSION, "Principal": {"AWS": "*"}}], True),
        ([{**PERMISSION, "Principal": {"Service": "s3.amazonaws.com", "AWS": ["*"]}}], True),
        ([{**PERMISSION, "Principal": {"AWS": "arn:aws:iam::123456789012:root"}}], False),
        ([{**PERMISSION, "Action": "lambda:GetFunction"}], False),
        ([{**PERMISSION, "Effect": "Deny"}], False),
        ([{**PERMISSION, "Action": "lambda:GetFunction"}, PERMISSION], True),
        ([], False),
        (None, False),
    ],
)
def test_a_rule_that_the_functions_policy_does_not_let_invoke_it_is_a_problem(
    client: Any, statements: list[Any] | None, lets: bool
) -> None:
    """A rule that was created with the command line has no permission by itself."""
    rule = Schedule("quarter", True, rule=True, arn=RULE_ARN, qualifier="live")
    with Stubber(client) as aws:
        if statements is None:
            aws.add_client_error("get_policy", "ResourceNotFoundException", "there is no policy", 404)
        else:
            policy = {"Policy": json.dumps({"Version": "2012-10-17", "Statement": statements})}
            aws.add_response("get_policy", policy, {"FunctionName": "orders-copy", "Qualifier": "live"})
        assert Functions(client).lets_invoke("orders-copy", rule) is lets
    (finding,) = of_schedules([rule], ASKED, () if lets else ["quarter"])
    assert finding.verdict == ("ok" if lets else "problem")
    if not lets:
        assert finding.text == f"the policy of orders-copy does not let quarter invoke it: {WITHOUT}"
        assert finding.do == (
            "aws lambda add-permission --function-name orders-copy --qualifier live --statement-id quarter --action "
            f"lambda:InvokeFunction --principal events.amazonaws.com --source-arn {RULE_ARN} --region eu-west-1"
        )


LIVE = f"{FUNCTION}:live"
ROLE = "arn:aws:iam::123456789012:role/invoke"


@pytest.mark.parametrize(
    ("targets", "verdict"),
    [
        ([[{"Id": "1", "Arn": LIVE, "RoleArn": ROLE}]], "ok"),
        ([[{"Id": "1", "Arn": f"{FUNCTION}-2", "RoleArn": ROLE}], [{"Id": "2", "Arn": LIVE, "RoleArn": ROLE}]], "ok"),
        ([[{"Id": "1", "Arn": LIVE}]], "problem"),
        ([[{"Id": "1", "Arn": f"{FUNCTION}-2:live", "RoleArn": ROLE}, {"Id": "2", "Arn": LIVE}]], "problem"),
        ([[{"Id": "1", "Arn": FUNCTION, "RoleArn": ROLE}]], "problem"),
        ([], "problem"),
    ],
)
def test_a_rule_whose_target_has_a_role_needs_no_policy_of_the_function(
    client: Any, targets: list[list[dict[str, str]]], verdict: str
) -> None:
    """``targets``: by page; none of a rule that is gone."""
    alias = {**RIGHT, "FunctionArn": LIVE}
    events, scheduler = (boto3.client(service, region_name="eu-west-1", **KEYS) for service in ("events", "scheduler"))
    described = {"Arn": RULE_ARN, "ScheduleExpression": "rate(15 minutes)", "State": "ENABLED"}
    with Stubber(client) as aws, Stubber(events) as rules, Stubber(scheduler) as schedules:
        aws.add_response("get_function_configuration", DEPLOYED)
        aws.add_response("get_function_concurrency", {})
        aws.add_response("list_event_source_mappings", {"EventSourceMappings": []})
        aws.add_response("list_event_source_mappings", {"EventSourceMappings": [alias]})
        rules.add_response("list_rule_names_by_target", {"RuleNames": []}, {"TargetArn": FUNCTION})
        rules.add_response("list_rule_names_by_target", {"RuleNames": ["quarter"]}, {"TargetArn": LIVE})
        rules.add_response("describe_rule", described)
        schedules.add_response("list_schedules", {"Schedules": []})
        aws.add_client_error("get_policy", "ResourceNotFoundException", "there is no policy", 404)
        for page, listed in enumerate(targets):
            more = {"NextToken": str(page + 1)} if page + 1 < len(targets) else {}
            given = {"NextToken": str(page)} if page else {}
            rules.add_response("list_targets_by_rule", {"Targets": listed, **more}, {"Rule": "quarter", **given})
        if not targets:
            rules.add_client_error("list_targets_by_rule", "ResourceNotFoundException", "no such rule", 400)
        *_, finding = of_function(Functions(client), Schedules((events, scheduler)), ASKED)
        aws.assert_no_pending_responses()
    assert (finding.subject, finding.verdict) == ("schedule", verdict)


@pytest.mark.parametrize("qualifier", ["", "live"])
def test_a_missing_permission_to_read_the_functions_policy_is_named(client: Any, qualifier: str) -> None:
    named = "orders-copy:live" if qualifier else "orders-copy"
    rule = Schedule("quarter", True, rule=True, arn=RULE_ARN, qualifier=qualifier)
    with Stubber(client) as aws:
        aws.add_client_error("get_policy", "AccessDeniedException", "no policy allows it", 403)
        with pytest.raises(NotPermitted, match=rf"^lambda:GetPolicy on function {named} is not permitted"):
            Functions(client).lets_invoke("orders-copy", rule)
    versions = ":*" if qualifier else ""
    resource = f"arn:aws:lambda:REGION:ACCOUNT:function:FUNCTION{versions}"
    assert Permission(resource, "lambda:GetPolicy") in documented()


def test_a_missing_permission_to_read_the_targets_of_a_rule_is_named() -> None:
    clients = [boto3.client(name, region_name="eu-west-1", **KEYS) for name in ("events", "scheduler")]
    with Stubber(clients[0]) as rules:
        rules.add_client_error("list_targets_by_rule", "AccessDeniedException", "no policy allows it", 403)
        with pytest.raises(NotPermitted, match=r"^events:ListTargetsByRule on \* is not permitted"):
            Schedules((clients[0], clients[1])).has_role("orders-copy", Schedule("quarter", True, rule=True))
    assert Permission("*", "events:ListTargetsByRule") in documented()


def test_a_schedule_has_a_role_for_it_and_one_that_may_invoke_the_function_is_enough(client: Any) -> None:
    assert Functions(client).lets_invoke("orders-copy", Schedule("night", True, rule=False)), "nothing is asked"
    rules = [Schedule(name, True, rule=True, arn=f"{RULE_ARN}-{name}") for name in ("one", "two")]
    assert [f.verdict for f in of_schedules(rules, ASKED, ["one"])] == ["ok"]


def test_one_of_several_schedules_is_enough() -> None:
    assert list(of_schedules([Schedule("off", False, rule=True), RULE], ASKED)) == [SCHEDULED]


@pytest.mark.parametrize(
    ("others", "zone", "verdict"),
    [
        (["cron(0 12 * * ? *)"], "UTC", "ok"),
        (["cron(0 8 * * ? *)", "cron(0 16 * * ? *)"], "UTC", "ok"),
        (["cron(0 13 * * ? *)"], "UTC", "problem"),
        (["cron(0 12 ? * MON-FRI *)"], "UTC", "problem"),
        (["rate(1 day)"], "UTC", "problem"),
        (["cron(0 12 * * ? *)"], "Europe/Vienna", "problem"),
    ],
)
def test_schedules_that_are_often_enough_together_are_none(others: list[str], zone: str, verdict: str) -> None:
    midnight = Schedule("0", True, rule=True, expression="cron(0 0 * * ? *)")
    more = [Schedule(str(n), True, rule=False, expression=e, zone=zone) for n, e in enumerate(others, 1)]
    (found,) = of_schedules([midnight, *more], ASKED)
    assert found.verdict == verdict
    if verdict == "ok":
        assert found.text == f"{' and '.join('012'[: len(more) + 1])} invoke orders-copy"


@pytest.mark.parametrize(
    ("dates", "said"),
    [
        ({"EndDate": datetime(2020, 1, 1, tzinfo=UTC)}, "one has ended (EndDate 2020-01-01), so it does not invoke"),
        ({"StartDate": datetime(2040, 1, 1, tzinfo=UTC)}, "one has not begun (StartDate 2040-01-01), so it does not"),
        ({"StartDate": datetime(2020, 1, 1, tzinfo=UTC), "EndDate": datetime(2040, 1, 1, tzinfo=UTC)}, ""),
    ],
)
def test_a_schedule_outside_of_its_dates_is_a_problem(dates: dict[str, Any], said: str) -> None:
    clients = [boto3.client(name, region_name="eu-west-1", **KEYS) for name in ("events", "scheduler")]
    with Stubber(clients[0]) as rules, Stubber(clients[1]) as schedules:
        rules.add_response("list_rule_names_by_target", {"RuleNames": []})
        schedules.add_response("list_schedules", {"Schedules": [{"Name": "one", "Target": {"Arn": FUNCTION}}]})
        schedules.add_response("get_schedule", {"ScheduleExpression": "rate(1 hour)", "State": "ENABLED", **dates})
        now = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
        found = list(Schedules((clients[0], clients[1]), lambda: now).of("orders-copy", [FUNCTION]))
    (finding,) = of_schedules(found, ASKED)
    assert finding.verdict == ("problem" if said else "ok")
    assert said in finding.text
    assert finding.do == ("remove its dates" if said else "")


def test_rules_and_schedules_of_the_function_and_its_versions_are_found() -> None:
    events, scheduler = (boto3.client(service, region_name="eu-west-1", **KEYS) for service in ("events", "scheduler"))
    with Stubber(events) as rules, Stubber(scheduler) as schedules:
        rules.add_response(
            "list_rule_names_by_target", {"RuleNames": ["one"], "NextToken": "2"}, {"TargetArn": FUNCTION}
        )
        rules.add_response(
            "describe_rule", {"ScheduleExpression": "rate(15 minutes)", "State": "ENABLED"}, {"Name": "one"}
        )
        second = {"TargetArn": FUNCTION, "NextToken": "2"}
        rules.add_response("list_rule_names_by_target", {"RuleNames": ["of events"]}, second)
        rules.add_response("describe_rule", {"EventPattern": "{}", "State": "ENABLED"}, {"Name": "of events"})
        rules.add_response("list_rule_names_by_target", {"RuleNames": ["live"]}, {"TargetArn": f"{FUNCTION}:live"})
        rules.add_response("describe_rule", {"ScheduleExpression": "cron(0 * * * ? *)", "State": "DISABLED"})
        summaries = [
            {"Name": "four", "GroupName": "ours", "State": "ENABLED", "Target": {"Arn": f"{FUNCTION}:live"}},
            {"Name": "of another", "State": "ENABLED", "Target": {"Arn": f"{FUNCTION}-2"}},
        ]
        schedules.add_response("list_schedules", {"Schedules": summaries}, {})
        full = {"Name": "four", "GroupName": "ours", "State": "ENABLED", "ScheduleExpression": "rate(1 hour)"}
        schedules.add_response("get_schedule", full, {"Name": "four", "GroupName": "ours"})
        found = list(Schedules((events, scheduler)).of("orders-copy", [FUNCTION, f"{FUNCTION}:live", FUNCTION]))
    assert found == [
        Schedule("one", True, rule=True, expression="rate(15 minutes)"),
        Schedule("live", False, rule=True, expression="cron(0 * * * ? *)", qualifier="live"),
        Schedule("four", True, rule=False, expression="rate(1 hour)"),
    ]


@pytest.mark.parametrize(
    ("input", "found"),
    [
        ('{"FunctionName": "orders-copy", "Payload": "{}"}', True),
        (f'{{"FunctionName": "{FUNCTION}:live"}}', True),
        ('{"FunctionName": "123456789012:function:orders-copy"}', True),
        ('{"FunctionName": "orders-copy-2"}', False),
        ('{"Payload": "{}"}', False),
        ("no JSON", False),
    ],
)
def test_a_schedule_that_invokes_the_function_by_the_operation_is_found(input: str, found: bool) -> None:
    events, scheduler = (boto3.client(service, region_name="eu-west-1", **KEYS) for service in ("events", "scheduler"))
    target = {"Arn": "arn:aws:scheduler:::aws-sdk:lambda:invoke", "RoleArn": f"{FUNCTION}-role"}
    with Stubber(events) as rules, Stubber(scheduler) as schedules:
        rules.add_response("list_rule_names_by_target", {"RuleNames": []})
        schedules.add_response("list_schedules", {"Schedules": [{"Name": "one", "Target": {"Arn": target["Arn"]}}]})
        full = {"ScheduleExpression": "rate(1 hour)", "State": "ENABLED"}
        full |= {"Target": {**target, "Input": input}, "FlexibleTimeWindow": {"Mode": "OFF"}}  # type: ignore[dict-item]
        schedules.add_response("get_schedule", full)
        of_it = list(Schedules((events, scheduler)).of("orders-copy", [FUNCTION]))
    assert of_it == ([Schedule("one", True, rule=False, expression="rate(1 hour)")] if found else [])


def test_a_rule_or_a_schedule_that_is_gone_before_it_is_described_is_left_out() -> None:
    clients = [boto3.client(name, region_name="eu-west-1", **KEYS) for name in ("events", "scheduler")]
    with Stubber(clients[0]) as rules, Stubber(clients[1]) as schedules:
        rules.add_response("list_rule_names_by_target", {"RuleNames": ["gone", "kept"]})
        rules.add_client_error("describe_rule", "ResourceNotFoundException", "no such rule", 400)
        rules.add_response("describe_rule", {"ScheduleExpression": "rate(15 minutes)", "State": "ENABLED"})
        listed = [{"Name": name, "Target": {"Arn": FUNCTION}} for name in ("once", "hourly")]
        schedules.add_response("list_schedules", {"Schedules": listed})
        schedules.add_client_error("get_schedule", "ResourceNotFoundException", "no such schedule", 404)
        schedules.add_response("get_schedule", {"ScheduleExpression": "rate(1 hour)", "State": "ENABLED"})
        found = list(Schedules((clients[0], clients[1])).of("orders-copy", [FUNCTION]))
    assert [schedule.name for schedule in found] == ["kept", "hourly"]


def test_a_missing_permission_to_read_the_expression_of_a_schedule_is_named() -> None:
    clients = [boto3.client(name, region_name="eu-west-1", **KEYS) for name in ("events", "scheduler")]
    with Stubber(clients[0]) as rules, Stubber(clients[1]) as schedules:
        rules.add_response("list_rule_names_by_target", {"RuleNames": []})
        schedules.add_response("list_schedules", {"Schedules": [{"Name": "one", "Target": {"Arn": FUNCTION}}]})
        schedules.add_client_error("get_schedule", "AccessDeniedException", "no policy allows it", 403)
        with pytest.raises(NotPermitted, match=r"^scheduler:GetSchedule on \* is not permitted"):
            list(Schedules((clients[0], clients[1])).of("orders-copy", [FUNCTION]))


@pytest.mark.parametrize("service", ["events", "scheduler"])
def test_a_missing_permission_to_read_schedules_is_named(service: str) -> None:
    clients = [boto3.client(name, region_name="eu-west-1", **KEYS) for name in ("events", "scheduler")]
    with Stubber(clients[0]) as rules, Stubber(clients[1]) as schedules:
        if service == "events":
            rules.add_client_error("list_rule_names_by_target", "AccessDeniedException", "no policy allows it", 403)
        else:
            rules.add_response("list_rule_names_by_target", {"RuleNames": []})
            schedules.add_client_error("list_schedules", "AccessDeniedException", "no policy allows it", 403)
        with pytest.raises(NotPermitted) as denied:
            list(Schedules((clients[0], clients[1])).of("orders-copy", [FUNCTION]))
    action = "events:ListRuleNamesByTarget" if service == "events" else "scheduler:ListSchedules"
    assert str(denied.value).startswith(f"{action} on * is not permitted")
    assert action in {permission.action for permission in documented()}


def test_a_function_that_is_not_deployed_yet_is_a_note(client: Any) -> None:
    with Stubber(client) as aws:
        aws.add_client_error("get_function_configuration", "ResourceNotFoundException", http_status_code=404)
        (note,) = of_function(Functions(client), OneRule(), ASKED)
    assert note.verdict == "note"
    assert note.text.startswith("function orders-copy does not exist yet")


@pytest.mark.parametrize("operation", [GET_FUNCTION, GET_CONCURRENCY, LIST_MAPPINGS])
def test_a_missing_permission_is_named(client: Any, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    monkeypatch.setattr(boto, "connect_lambda", lambda access: client)
    resources = dict.fromkeys((GET_FUNCTION, GET_CONCURRENCY), "function orders-copy") | {LIST_MAPPINGS: "*"}
    with Stubber(client) as aws:
        if operation != GET_FUNCTION:
            aws.add_response("get_function_configuration", DEPLOYED)
        if operation == LIST_MAPPINGS:
            aws.add_response("get_function_concurrency", {})
        method = {
            GET_FUNCTION: "get_function_configuration",
            GET_CONCURRENCY: "get_function_concurrency",
            LIST_MAPPINGS: "list_event_source_mappings",
        }[operation]
        aws.add_client_error(method, "AccessDeniedException", "no policy allows it", 403)
        (denied,) = gathered("engine", lambda_findings(config("orders-copy"), STREAM))
    assert denied.verdict == "forbidden"
    assert denied.text.startswith(f"lambda:{operation} on {resources[operation]} is not permitted")
    assert f"lambda:{operation}" in {permission.action for permission in documented()}


def config(function: str | None) -> Config:
    target = Destination("memory", None, None, {})  # type: ignore[arg-type]
    return Config("orders", Source(table="orders", region="eu-west-1"), target, engine=Lambda(function=function))


def test_without_the_functions_name_nothing_is_asked_and_check_says_so() -> None:
    (note,) = lambda_findings(config(None), STREAM)
    assert note.verdict == "note"
    assert note.text.startswith("not checked: the function and its event source mapping")
    assert note.do == "engine.function: NAME"


def test_the_function_of_one_of_several_targets_is_asked_about_that_target(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Asked] = []
    monkeypatch.setattr(boto, "connect_lambda", lambda access: client)

    def of(*given: Any) -> list[Finding]:
        asked.append(given[-1])
        return []

    monkeypatch.setattr(check_lambda, "of_function", of)
    of_several: Any = SimpleNamespace(name="shop")
    list(lambda_findings(replace(config("orders-shop"), of_targets=of_several), STREAM))
    assert [one.target for one in asked] == ["shop"]


def test_a_response_that_is_not_from_aws_is_transient(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise ResponseParserError("<html>secret</html>")

    monkeypatch.setattr(client, "get_function_configuration", fail, raising=False)
    with pytest.raises(
        TransientError, match=r"^lambda:GetFunctionConfiguration on function .*the response is not from AWS Lambda$"
    ):
        Functions(client).configuration("orders-copy")


TEMPLATED = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: postgres, url: "postgresql://me@localhost/x", table: orders}
engine: {type: lambda, function: orders-copy}
"""


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    with mock_aws(config={"lambda": {"use_docker": False}}):
        yield


def stream_of_orders() -> str:
    created = boto3.client("dynamodb", region_name="eu-west-1").create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    return str(created["TableDescription"]["LatestStreamArn"])


def test_what_the_template_deploys_passes_the_check(account: None, tmp_path: Path) -> None:
    path = tmp_path / "orders.yaml"
    path.write_text(TEMPLATED)
    printed = CliRunner().invoke(main, ["lambda", "template", str(path)])
    resources = yaml.safe_load(printed.stdout)["Resources"]
    function, mapping = (resources[name]["Properties"] for name in ("Function", "Mapping"))
    stream, code = stream_of_orders(), io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("handler.py", "")
    role = boto3.client("iam").create_role(RoleName="orders", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    aws = boto3.client("lambda", region_name="eu-west-1")
    settings = {name: function[name] for name in ("FunctionName", "Handler", "Runtime", "Timeout", "MemorySize")}
    aws.create_function(**settings, Role=role, Code={"ZipFile": code.getvalue()})
    delivered = mapping | {"EventSourceArn": stream, "FunctionName": function["FunctionName"]}
    uuid = aws.create_event_source_mapping(**delivered)["UUID"]

    arn = aws.get_function(FunctionName="orders-copy")["Configuration"]["FunctionArn"]
    rule, events = resources["Schedule"]["Properties"], boto3.client("events", region_name="eu-west-1")
    events.put_rule(Name="each-quarter", ScheduleExpression=rule["ScheduleExpression"])
    events.put_targets(Rule="each-quarter", Targets=[{"Id": rule["Targets"][0]["Id"], "Arn": arn}])

    checked = config("orders-copy")
    *_, refused = lambda_findings(checked, stream)
    assert "the policy of orders-copy does not let each-quarter invoke it" in refused.text
    permission = resources["SchedulePermission"]["Properties"]
    aws.add_permission(
        FunctionName="orders-copy",
        StatementId="quarter",
        Action=permission["Action"],
        Principal=permission["Principal"],
        SourceArn=events.describe_rule(Name="each-quarter")["Arn"],
    )
    ok = [Finding("mapping", "ok", f"{uuid} delivers the stream to orders-copy"), SCHEDULED]
    assert list(lambda_findings(checked, stream)) == ok

    aws.update_event_source_mapping(UUID=uuid, TumblingWindowInSeconds=0)
    assert exit_code(list(lambda_findings(checked, stream))) == 2
    assert next(iter(lambda_findings(config("another"), stream))).verdict == "note"
