"""deploy/ecs-*.json: valid against the model of the API that boto3 comes with, and what Fargate allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from tests.deploy.page import blocks
from tests.deploy.test_container import last

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = {"ecs-task-definition.json": "RegisterTaskDefinition", "ecs-service.json": "CreateService"}


def read(name: str) -> Any:
    return json.loads((DEPLOY / name).read_text())


def problems(operation: str, given: Any) -> list[str]:
    """What the API's model says about a request, values of enumerations included."""
    model = botocore.session.get_session().get_service_model("ecs").operation_model(operation).input_shape
    report = ParamValidator().validate(given, model)
    return [*([report.generate_report()] if report.has_errors() else []), *other_values(model, given)]


def other_values(shape: Any, given: Any) -> Iterator[str]:
    if shape.type_name == "structure":
        for name, value in given.items():
            if name in shape.members:
                yield from other_values(shape.members[name], value)
    elif shape.type_name == "list":
        for value in given:
            yield from other_values(shape.member, value)
    elif shape.type_name == "string" and shape.enum and given not in shape.enum:
        yield f"{given} is not one of {shape.enum}"


@pytest.mark.parametrize("name", FILES)
def test_the_api_knows_every_parameter(name: str) -> None:
    assert problems(FILES[name], read(name)) == []


def test_what_the_api_does_not_know_is_found() -> None:
    given = read("ecs-task-definition.json")

    assert problems("RegisterTaskDefinition", given | {"memmory": "1"})
    assert problems("RegisterTaskDefinition", given | {"networkMode": "awsvpn"})


def test_the_old_task_ends_before_the_new_one_starts() -> None:
    service = read("ecs-service.json")

    assert service["desiredCount"] == 1
    assert service["deploymentConfiguration"] == {"minimumHealthyPercent": 0, "maximumPercent": 100}
    assert service["taskDefinition"] == read("ecs-task-definition.json")["family"]


def test_the_task_runs_the_image_as_it_is_built_within_the_limits_of_ecs() -> None:
    (container,) = read("ecs-task-definition.json")["containerDefinitions"]
    health = container["healthCheck"]

    assert container["user"] == last("USER")
    assert container["readonlyRootFilesystem"]
    assert health["command"] == ["CMD", *json.loads(last("HEALTHCHECK").partition("CMD ")[2])]
    assert 1 <= health["retries"] <= 10
    assert 5 <= health["interval"] <= 300
    assert health["retries"] * health["interval"] >= 600, "an outage of the target is no reason to restart"
    assert container["stopTimeout"] <= 120


def test_the_trust_policy_lets_tasks_assume_the_role() -> None:
    (policy,) = [json.loads(text) for text in blocks("json", "## ECS")]
    (statement,) = policy["Statement"]

    assert (statement["Principal"], statement["Action"]) == ({"Service": "ecs-tasks.amazonaws.com"}, "sts:AssumeRole")
