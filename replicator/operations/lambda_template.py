"""The CloudFormation template of a function on AWS Lambda with its mapping, schedule, role and log group. Pure but for
reading the config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, SecretStr

from replicator.config.engine import TARGET_NAME, Lambda, shortest_timeout
from replicator.config.settings import STAND_IN, Config
from replicator.config.targets import OF_A_TARGET, TARGETS
from replicator.config.yaml_file import PathInFile, texts
from replicator.engine.aws_lambda import TARGET
from replicator.errors import ConfigError
from replicator.operations import policy
from replicator.operations.lambda_package import HANDLER, loaded, placeholders_of, runtime
from replicator.target.contract import keeps_history

STREAM_ARN = "^arn:aws[a-z-]*:dynamodb:[a-z0-9-]+:[0-9]{12}:table/.+/stream/.+$"
TIMEOUT, MEMORY = 300, 512  # seconds, and MB
OFTEN = "rate(15 minutes)"  # of the schedule
MAPPING = {
    "StartingPosition": "TRIM_HORIZON",
    "BatchSize": 1000,
    "MaximumBatchingWindowInSeconds": 1,
    "TumblingWindowInSeconds": 60,
    "FunctionResponseTypes": ["ReportBatchItemFailures"],
    "ParallelizationFactor": 1,
    "MaximumRetryAttempts": -1,
    "MaximumRecordAgeInSeconds": -1,
    "BisectBatchOnFunctionError": False,
}
"""Settings of the event source mapping; why each is so is in docs/lambda.md."""

OWN_PREFIXES = ("AWS_LAMBDA_", "LAMBDA_")
OWN_VARIABLES = frozenset(
    {
        *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_EXECUTION_ENV", "_HANDLER", "_X_AMZN_TRACE_ID"),
        *("AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    }
)
"""Variables that Lambda sets, and refuses in a function's configuration."""

MARK = "\0"  # around what a template's text refers to; no config has it
ACCOUNT, PARTITION = "AWS::AccountId", "AWS::Partition"
OF_STACK = {"AWS_REGION": "AWS::Region", "AWS_DEFAULT_REGION": "AWS::Region"}
"""What the stack knows, by the variables that Lambda sets to it."""


def _mark(name: str) -> str:
    """What stands for a parameter, or for what the stack knows. Without colons, which divide an ARN."""
    return f"{MARK}{name.replace('::', '_')}{MARK}"


NAMED = {"DOMAIN": "Domain", "COLLECTION": "Collection"}
"""Parameters for what the config's address of a target does not name, by the placeholders in policies."""

FILLED = {"ACCOUNT": _mark(ACCOUNT), "REGION": _mark("AWS::Region")} | {w: _mark(n) for w, n in NAMED.items()}
"""What the stack knows, by the placeholders in policies."""

_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]+")

Resource = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


def timeout_for(hook_timeout: float | None, *, history: bool = False) -> int:
    """Seconds for a function with such a hook; None: without one. ``history``: of any table."""
    return max(TIMEOUT, 0 if hook_timeout is None else math.ceil(shortest_timeout(hook_timeout, history=history)))


def template(path: Path, architecture: str, *, keys_only: bool, target: str | None = None) -> str:
    """The template of the config's function, as YAML."""
    config = loaded(path, target)
    names = _parameters_of(_variables(config))
    config = _referring(config, {**names, **OF_STACK})
    own = policy.policies([config], policy.PolicyContext(keys_only=keys_only, setup=False, function=True))
    _check_known(config, own)
    named = [name for word, name in NAMED.items() if word in policy.unknown(own)]
    known = [*names.values(), *named]
    document = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"replicator: pipeline {config.pipeline} on AWS Lambda",
        "Parameters": _parameters(names, named),
        "Conditions": {"InVpc": {"Fn::Not": [{"Fn::Equals": [{"Fn::Join": ["", {"Ref": "SubnetIds"}]}, ""]}]}},
        "Resources": {
            "LogGroup": {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 30}} | _DELETED,
            "Role": _role(own.get("default", {"Statement": []})["Statement"], config.source.table, known),
            "Function": _function(config, names, architecture),
            "Mapping": _mapping(),
            **_schedule(),
        },
        "Outputs": {"Function": {"Value": {"Ref": "Function"}}},
    }
    return yaml.safe_dump(document, sort_keys=False, width=120)


def _referring(config: Config, names: Mapping[str, str]) -> Config:
    """The config with a mark for each variable in what the template says of the source and the function.

    ``names``: the parameter, or what the stack knows, by variable. What it stands for on this machine may be another
    table than the function's.
    """
    written = {place: _marked(text, names) for place, text in _sections(config)}
    source = _with_marks(config.source, ("source",), written)
    if MARK in source.table and source.table.startswith("arn:"):
        source = source.model_copy(update={"region": source.table.split(":")[3]})
    target = replace(config.target, options=_with_marks(config.target.options, ("target",), written))
    if MARK in (table := written.get(("target", "table"), "")):
        (of_table,) = target.tables.values()
        target = replace(target, tables={table: of_table})
    config = replace(config, source=source, target=target)
    if config.checkpoints is not None:
        options = _with_marks(config.checkpoints.options, ("checkpoints",), written)
        config = replace(config, checkpoints=replace(config.checkpoints, options=options))
    name = written.get(("engine", "function"), "")
    if isinstance(config.engine, Lambda) and MARK in name:
        name = name.replace(TARGET_NAME, config.target_name or "")
        config = replace(config, engine=config.engine.model_copy(update={"function": name}))
    return config


MARKED = ("table", "epochs_table", "region", "role_arn", "url")
"""The options of sections that say what the role is for."""


def _with_marks(options: M, place: PathInFile, written: Mapping[PathInFile, str]) -> M:
    """The options, as they are written if they refer to variables."""
    update: dict[str, Any] = {}
    for name in type(options).model_fields:
        text = written.get((*place, name), "")
        if name in MARKED and MARK in text:
            is_secret = isinstance(getattr(options, name), SecretStr)
            update[name] = SecretStr(text) if is_secret else text
    access = getattr(options, "aws", None)
    if isinstance(access, BaseModel):
        update["aws"] = _with_marks(access, (*place, "aws"), written)
    return options.model_copy(update=update)


def _sections(config: Config) -> Iterator[tuple[PathInFile, str]]:
    """Every text of the sections that a config of this target alone would have, with its path there."""
    prefix, written = (TARGETS, config.target_name), list(texts(config.path))
    own = [(place[2:], text) for place, text in written if place[:2] == prefix]
    sections = {place[0] for place, _ in own} & {*OF_A_TARGET}
    yield from ((place, text) for place, text in written if place[0] not in (TARGETS, *sections))
    yield from ((place if place[0] in sections else ("target", *place), text) for place, text in own)


def _marked(text: str, names: Mapping[str, str]) -> str:
    for variable, name in names.items():
        text = text.replace(f"${{{variable}}}", _mark(name))
    return text


def _substituted(text: str, names: Iterable[str]) -> str | dict[str, str]:
    """The text; CloudFormation fills it in if it refers to a parameter, or to what the stack knows."""
    filled = text
    for name in (*names, *OF_STACK.values(), ACCOUNT, PARTITION):
        filled = filled.replace(_mark(name), f"${{{name}}}")
    return text if filled == text else {"Fn::Sub": filled}


def _check_known(config: Config, policies: Mapping[str, Any]) -> None:
    """ConfigError if nothing says what the role is for, or which function: then it would be another one's."""
    name = config.engine.function if isinstance(config.engine, Lambda) else None
    unknown = [word for word in policy.unknown(policies) if word not in FILLED]
    if unknown or STAND_IN in (name or ""):
        what = "engine.function" if not unknown else f"what the role may use ({', '.join(unknown)})"
        raise ConfigError(
            f"{config.path}: {what}: its name is in a file that this machine does not have: write it into the config, "
            "or use a variable of the environment, which becomes a parameter of the stack"
        )


_DELETED = {"DeletionPolicy": "Delete", "UpdateReplacePolicy": "Delete"}


def _variables(config: Config) -> Iterator[str]:
    """The variables of the environment that the function must be given: Lambda has some of its own."""
    for name in placeholders_of(config):
        if name.startswith(("file:", *OWN_PREFIXES)) or name in OWN_VARIABLES:
            continue
        if _VARIABLE.fullmatch(name) is None:
            raise ConfigError(
                f"{config.path}: ${{{name}}}: Lambda's variables have at least two characters, and begin with a "
                "letter: name it otherwise"
            )
        yield name


def _parameters_of(variables: Iterable[str]) -> dict[str, str]:
    """The parameter for each variable of the environment, whose name may have no underscores."""
    names: dict[str, str] = {}
    for variable in variables:
        name = "Env" + "".join(word[:1].upper() + word[1:].lower() for word in variable.split("_"))
        while name in names.values():
            name += "X"
        names[variable] = name
    return names


def _parameters(names: Mapping[str, str], named: Iterable[str]) -> dict[str, Any]:
    text = {"Type": "String", "MinLength": 1}
    return {
        "CodeBucket": text | {"Description": "Bucket with the zip that replicator lambda package has built"},
        "CodeKey": text | {"Description": "Key of the zip in that bucket"},
        "StreamArn": text | {"AllowedPattern": STREAM_ARN, "Description": "LatestStreamArn of the source table"},
        "SubnetIds": _network("Subnets that reach the target, its checkpoints and AWS' endpoints; empty: no VPC"),
        "SecurityGroupIds": _network("Security groups of the function in these subnets"),
        **{name: text | {"Description": f"The {name.lower()} of OpenSearch, by its name"} for name in named},
        **{
            name: text | {"NoEcho": True, "Description": f"{variable} of the config"}
            for variable, name in names.items()
        },
    }


def _network(description: str) -> dict[str, Any]:
    return {"Type": "CommaDelimitedList", "Default": "", "Description": description}


def _role(statements: Iterable[Mapping[str, Any]], source: str, names: Iterable[str]) -> Resource:
    stream = ["dynamodb:DescribeStream", "dynamodb:GetShardIterator", "dynamodb:GetRecords"]
    allowed = [
        *({**s, "Resource": [_resource(arn, source, names) for arn in s["Resource"]]} for s in statements),
        {"Sid": "Mapping", "Effect": "Allow", "Action": stream, "Resource": {"Ref": "StreamArn"}},
        {"Sid": "MappingStreams", "Effect": "Allow", "Action": "dynamodb:ListStreams", "Resource": "*"},
        {
            "Sid": "Log",
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": {"Fn::GetAtt": ["LogGroup", "Arn"]},
        },
    ]
    network = {"Fn::Sub": "arn:${AWS::Partition}:iam::aws:policy/service-role/AWSLambdaVPCAccessExecutionRole"}
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
                ],
            },
            "ManagedPolicyArns": {"Fn::If": ["InVpc", [network], {"Ref": "AWS::NoValue"}]},
            "Policies": [
                {"PolicyName": "replicator", "PolicyDocument": {"Version": "2012-10-17", "Statement": allowed}}
            ],
        },
    }


def _resource(arn: str, source: str, names: Iterable[str]) -> str | dict[str, str]:
    """The ARN, with the stack's account, region and partition where the config does not say them. ``source``: the
    table in the config, by its name or ARN."""
    parts = [FILLED.get(part, part) for part in arn.split(":")]
    if parts[2:3] in (["es"], ["aoss"]):
        parts[-1] = "/".join(FILLED.get(word, word) for word in parts[-1].split("/"))
    if len(parts) > 4 and MARK in parts[3]:
        parts[1] = source.split(":")[1] if source.startswith("arn:") else _mark(PARTITION)
    return _substituted(":".join(parts), names)


def _function(config: Config, names: Mapping[str, str], architecture: str) -> Resource:
    network = {"SubnetIds": {"Ref": "SubnetIds"}, "SecurityGroupIds": {"Ref": "SecurityGroupIds"}}
    variables: dict[str, Any] = {variable: {"Ref": name} for variable, name in names.items()}
    if config.target_name is not None:
        variables[TARGET] = config.target_name  # so that the package of another target is refused
    name = config.engine.function if isinstance(config.engine, Lambda) else None
    history = any(map(keeps_history, config.target.tables.values()))
    return {
        "Type": "AWS::Lambda::Function",
        "Properties": {
            **({} if name is None else {"FunctionName": _substituted(name, names.values())}),
            "Handler": HANDLER,
            "Runtime": runtime(),
            "Architectures": [architecture],
            "Timeout": timeout_for(None if config.transform is None else config.hook_timeout, history=history),
            "MemorySize": MEMORY,
            "Role": {"Fn::GetAtt": ["Role", "Arn"]},
            "Code": {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "CodeKey"}},
            "LoggingConfig": {"LogGroup": {"Ref": "LogGroup"}},
            "VpcConfig": {"Fn::If": ["InVpc", network, {"Ref": "AWS::NoValue"}]},
            **({"Environment": {"Variables": variables}} if variables else {}),
        },
    }


def _mapping() -> Resource:
    places = {"EventSourceArn": {"Ref": "StreamArn"}, "FunctionName": {"Ref": "Function"}}
    return {"Type": "AWS::Lambda::EventSourceMapping", "Properties": {**places, **MAPPING}}


def _schedule() -> dict[str, Resource]:
    arn = {"Fn::GetAtt": ["Function", "Arn"]}
    return {
        "Schedule": {
            "Type": "AWS::Events::Rule",
            "Properties": {
                "Description": "Reads shards that no record has moved",
                "ScheduleExpression": OFTEN,
                "Targets": [{"Id": "function", "Arn": arn}],
            },
        },
        "SchedulePermission": {
            "Type": "AWS::Lambda::Permission",
            "Properties": {
                "Action": "lambda:InvokeFunction",
                "FunctionName": {"Ref": "Function"},
                "Principal": "events.amazonaws.com",
                "SourceArn": {"Fn::GetAtt": ["Schedule", "Arn"]},
            },
        },
    }
