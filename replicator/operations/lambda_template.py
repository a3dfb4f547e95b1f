"""The CloudFormation template of a function on AWS Lambda with its mapping, schedule, role and log group. Pure but for
reading the config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from replicator.config.engine import Lambda, shortest_timeout
from replicator.config.settings import Config
from replicator.engine.aws_lambda import TARGET
from replicator.errors import ConfigError
from replicator.operations import policy
from replicator.operations.lambda_package import HANDLER, loaded, placeholders_of, runtime

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

_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]+")

Resource = dict[str, Any]


def timeout_for(hook_timeout: float | None) -> int:
    """Seconds for a function with such a hook; None: without one."""
    return max(TIMEOUT, 0 if hook_timeout is None else math.ceil(shortest_timeout(hook_timeout)))


def template(path: Path, architecture: str, *, keys_only: bool, target: str | None = None) -> str:
    """The template of the config's function, as YAML."""
    config = loaded(path, target)
    names = _parameters_of(_variables(config))
    own = policy.policies([config], policy.PolicyContext(keys_only=keys_only, setup=False, function=True))
    document = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"replicator: pipeline {config.pipeline} on AWS Lambda",
        "Parameters": _parameters(names),
        "Conditions": {"InVpc": {"Fn::Not": [{"Fn::Equals": [{"Fn::Join": ["", {"Ref": "SubnetIds"}]}, ""]}]}},
        "Resources": {
            "LogGroup": {"Type": "AWS::Logs::LogGroup", "Properties": {"RetentionInDays": 30}} | _DELETED,
            "Role": _role(own.get("default", {"Statement": []})["Statement"]),
            "Function": _function(config, names, architecture),
            "Mapping": _mapping(),
            **_schedule(),
        },
        "Outputs": {"Function": {"Value": {"Ref": "Function"}}},
    }
    return yaml.safe_dump(document, sort_keys=False, width=120)


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


def _parameters(names: Mapping[str, str]) -> dict[str, Any]:
    text = {"Type": "String", "MinLength": 1}
    return {
        "CodeBucket": text | {"Description": "Bucket with the zip that replicator lambda package has built"},
        "CodeKey": text | {"Description": "Key of the zip in that bucket"},
        "StreamArn": text | {"AllowedPattern": STREAM_ARN, "Description": "LatestStreamArn of the source table"},
        "SubnetIds": _network("Subnets that reach Postgres and AWS' endpoints; empty: no VPC"),
        "SecurityGroupIds": _network("Security groups of the function in these subnets"),
        **{
            name: text | {"NoEcho": True, "Description": f"{variable} of the config"}
            for variable, name in names.items()
        },
    }


def _network(description: str) -> dict[str, Any]:
    return {"Type": "CommaDelimitedList", "Default": "", "Description": description}


def _role(statements: Iterable[Mapping[str, Any]]) -> Resource:
    stream = ["dynamodb:DescribeStream", "dynamodb:GetShardIterator", "dynamodb:GetRecords"]
    allowed = [
        *({**s, "Resource": [_resource(arn) for arn in s["Resource"]]} for s in statements),
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


def _resource(arn: str) -> str | dict[str, str]:
    """The ARN, with the stack's account and region where the config does not say them."""
    parts = arn.split(":")
    filled = {"ACCOUNT": "${AWS::AccountId}", "REGION": "${AWS::Region}"}
    replaced = ":".join(filled.get(part, part) for part in parts)
    return arn if replaced == arn else {"Fn::Sub": replaced}


def _function(config: Config, names: Mapping[str, str], architecture: str) -> Resource:
    network = {"SubnetIds": {"Ref": "SubnetIds"}, "SecurityGroupIds": {"Ref": "SecurityGroupIds"}}
    variables: dict[str, Any] = {variable: {"Ref": name} for variable, name in names.items()}
    if config.target_name is not None:
        variables[TARGET] = config.target_name  # so that the package of another target is refused
    name = config.engine.function if isinstance(config.engine, Lambda) else None
    return {
        "Type": "AWS::Lambda::Function",
        "Properties": {
            **({} if name is None else {"FunctionName": name}),
            "Handler": HANDLER,
            "Runtime": runtime(),
            "Architectures": [architecture],
            "Timeout": timeout_for(None if config.transform is None else config.hook_timeout),
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
