"""The template of the function on AWS Lambda: AWS' own rules accept it, and it allows what the function needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cfnlint.api import lint_all  # type: ignore[import-untyped]
from click.testing import CliRunner

from replicator.cli import main

CONFIG = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: postgres, url: "postgresql://me:${PG_PASSWORD}@${PG_HOST}/${pg_password}", table: orders}
engine: {type: lambda}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "orders.yaml"
    path.write_text(CONFIG)
    return path


def template(config: Path, *options: str) -> tuple[str, dict[str, Any]]:
    result = CliRunner().invoke(main, ["lambda", "template", str(config), *options], env={"AWS_REGION": ""})
    assert result.exit_code == 0, result.output
    return result.stdout, yaml.safe_load(result.stdout)


def statements(document: dict[str, Any]) -> dict[str, Any]:
    (of_role,) = document["Resources"]["Role"]["Properties"]["Policies"]
    return {s["Sid"]: s for s in of_role["PolicyDocument"]["Statement"]}


def mistakes(text: str) -> list[str]:
    """Errors and warnings; what is only said for information asks for metadata."""
    return [str(match) for match in lint_all(text) if not match.rule.id.startswith("I")]


def test_aws_own_rules_accept_the_template(config: Path) -> None:
    text, document = template(config, "--arch", "arm64")
    assert mistakes(text) == []
    wrong = text.replace("StartingPosition: TRIM_HORIZON", "StartingPosition: SOMEWHERE")
    assert mistakes(wrong), "a mistake is noticed"
    function = document["Resources"]["Function"]["Properties"]
    assert function["Architectures"] == ["arm64"]
    assert function["Timeout"] >= 30


TARGETS = """
pipeline: orders
source: {table: orders, region: eu-west-1}
engine: {type: lambda, function: "orders-{target}"}
targets:
  shop: {type: postgres, url: "${SHOP_URL}", table: orders}
  audit: {type: postgres, url: "${AUDIT_URL}", table: orders}
"""


def test_each_of_several_targets_has_a_function_with_its_own_name_and_variables(config: Path) -> None:
    config.write_text(TARGETS)
    text, document = template(config, "--target", "audit")
    assert mistakes(text) == []
    function = document["Resources"]["Function"]["Properties"]
    assert function["FunctionName"] == "orders-audit"
    assert function["Environment"]["Variables"] == {
        "AUDIT_URL": {"Ref": "EnvAuditUrl"},
        "REPLICATOR_TARGET": "audit",
    }
    assert document["Description"] == "replicator: pipeline orders.audit on AWS Lambda"
    result = CliRunner().invoke(main, ["lambda", "template", str(config)])
    assert result.exit_code == 2
    assert "--target" in result.output


def test_the_role_may_do_what_the_function_does_and_no_more(config: Path) -> None:
    allowed = statements(template(config)[1])
    actions = {
        action for s in allowed.values() for action in ([s["Action"]], s["Action"])[isinstance(s["Action"], list)]
    }
    assert actions == {
        "dynamodb:DescribeTable",
        "dynamodb:DescribeStream",
        "dynamodb:GetShardIterator",
        "dynamodb:GetRecords",
        "dynamodb:ListStreams",
        "logs:CreateLogStream",
        "logs:PutLogEvents",
    }
    table = {"Fn::Sub": "arn:aws:dynamodb:eu-west-1:${AWS::AccountId}:table/orders"}
    assert allowed["Items"]["Resource"] == [table]
    looked_up = statements(template(config, "--keys-only")[1])["LookUpsForKeysOnly"]
    assert looked_up["Action"] == ["dynamodb:BatchGetItem"]


INTO_DYNAMODB = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: dynamodb, region: eu-central-1, table: copies}
checkpoints: {type: dynamodb, region: eu-central-1, table: kept}
engine: {type: lambda}
"""
TABLE_IN_FRANKFURT = "arn:aws:dynamodb:eu-central-1:${AWS::AccountId}:table/"


def test_for_a_dynamodb_table_the_role_may_write_and_scan_it_and_save_checkpoints(config: Path) -> None:
    config.write_text(INTO_DYNAMODB)
    text, document = template(config)
    assert mistakes(text) == []
    allowed = statements(document)
    assert allowed["Items"]["Action"] == ["dynamodb:DescribeTable"], "the source is never scanned"
    assert allowed["Copies"]["Resource"] == [{"Fn::Sub": f"{TABLE_IN_FRANKFURT}copies"}]
    assert allowed["Copies"]["Action"] == [f"dynamodb:{a}" for a in ("DescribeTable", "Scan", "PutItem", "DeleteItem")]
    assert allowed["Epochs"]["Resource"] == [{"Fn::Sub": f"{TABLE_IN_FRANKFURT}replicator-epochs"}]
    assert allowed["Checkpoints"]["Resource"] == [{"Fn::Sub": f"{TABLE_IN_FRANKFURT}kept"}]
    assert "dynamodb:ConditionCheckItem" in allowed["Checkpoints"]["Action"]
    others = {"Changes", "Mapping", "MappingStreams", "Log"}
    assert allowed.keys() == {"Items", "Copies", "Epochs", "Checkpoints", *others}, "nothing is created"


def test_variables_in_what_the_target_and_the_checkpoints_name_are_parameters_there_too(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever values this machine has; also where one of several targets has checkpoints of its own."""
    written = INTO_DYNAMODB.replace("copies", '"${COPY}"').replace("kept", '"${KEPT}"')
    written = written.replace("eu-central-1", '"${PLACE}"')
    for name in ("COPY", "KEPT", "PLACE"):
        monkeypatch.setenv(name, "another")
    of_several = written.replace("target: {", "targets: {copy: {checkpoints: {type: dynamodb, table: '${KEPT}'}, ")
    of_several = of_several.replace('"${COPY}"}', '"${COPY}"}}').replace('table: "${KEPT}"', "table: other")
    for text in (written, of_several):
        config.write_text(text)
        allowed = statements(template(config)[1])
        place = "arn:${AWS::Partition}:dynamodb:${EnvPlace}:${AWS::AccountId}:table/"
        assert allowed["Copies"]["Resource"] == [{"Fn::Sub": f"{place}${{EnvCopy}}"}]
        assert allowed["Epochs"]["Resource"] == [{"Fn::Sub": f"{place}replicator-epochs"}]
        (kept,) = allowed["Checkpoints"]["Resource"]
        assert kept["Fn::Sub"].endswith(":table/${EnvKept}")


SEARCH = INTO_DYNAMODB.replace(
    "dynamodb, region: eu-central-1, table: copies", "opensearch, aws: {region: eu-west-3}, URL, table: o"
)


@pytest.mark.parametrize(
    ("url", "resource"),
    [
        (
            "https://search-shop-0123456789.eu-west-3.es.amazonaws.com",
            "arn:aws:es:eu-west-3:${AWS::AccountId}:domain/shop/*",
        ),
        ("${SEARCH_URL}", "arn:aws:es:eu-west-3:${AWS::AccountId}:domain/${Domain}/*"),
        ("https://search.example.com", "arn:aws:es:eu-west-3:${AWS::AccountId}:domain/${Domain}/*"),
    ],
)
def test_a_domain_that_its_address_does_not_name_is_a_parameter(
    config: Path, monkeypatch: pytest.MonkeyPatch, url: str, resource: str
) -> None:
    monkeypatch.setenv("SEARCH_URL", "https://search-another-0123456789.eu-west-3.es.amazonaws.com")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    config.write_text(SEARCH.replace("URL", f'url: "{url}"'))
    text, document = template(config)
    assert mistakes(text) == []
    assert statements(document)["Domain"]["Resource"] == [{"Fn::Sub": resource}]
    assert ("Domain" in document["Parameters"]) == ("${Domain}" in resource)


@pytest.mark.parametrize("kind", ["elasticsearch", "opensearch"])
def test_a_cluster_with_a_login_of_its_own_needs_no_permission_of_aws(config: Path, kind: str) -> None:
    login = f"type: {kind}, url: https://search:9200, username: me, password: '${{SEARCH_PASSWORD}}', table: orders"
    config.write_text(INTO_DYNAMODB.replace("type: dynamodb, region: eu-central-1, table: copies", login))
    text, document = template(config)
    assert mistakes(text) == []
    assert statements(document).keys() == {"Items", "Changes", "Checkpoints", "Mapping", "MappingStreams", "Log"}
    variables = document["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    assert variables == {"SEARCH_PASSWORD": {"Ref": "EnvSearchPassword"}}


def test_each_variable_of_the_config_is_a_parameter_that_nobody_sees(config: Path) -> None:
    document = template(config)[1]
    variables = document["Resources"]["Function"]["Properties"]["Environment"]["Variables"]
    assert variables == {
        "PG_PASSWORD": {"Ref": "EnvPgPassword"},
        "PG_HOST": {"Ref": "EnvPgHost"},
        "pg_password": {"Ref": "EnvPgPasswordX"},
    }
    assert all(document["Parameters"][v["Ref"]]["NoEcho"] for v in variables.values())


def test_the_function_has_the_name_in_the_config(config: Path) -> None:
    assert "FunctionName" not in template(config)[1]["Resources"]["Function"]["Properties"]
    config.write_text(CONFIG.replace("lambda}", "lambda, function: orders-copy}"))
    assert template(config)[1]["Resources"]["Function"]["Properties"]["FunctionName"] == "orders-copy"


def test_variables_that_lambda_sets_itself_are_not_set_again(config: Path) -> None:
    config.write_text(CONFIG.replace("eu-west-1", "'${AWS_REGION}'"))
    document = template(config)[1]
    assert "AWS_REGION" not in document["Resources"]["Function"]["Properties"]["Environment"]["Variables"]


def test_a_variable_whose_name_lambda_refuses_is_refused(config: Path) -> None:
    config.write_text(CONFIG.replace("PG_HOST", "_HOST"))
    result = CliRunner().invoke(main, ["lambda", "template", str(config)])
    assert result.exit_code == 2
    assert "${_HOST}: Lambda's variables have at least two characters, and begin with a letter" in result.stderr


def test_the_mapping_is_as_the_document_says(config: Path) -> None:
    mapping = template(config)[1]["Resources"]["Mapping"]["Properties"]
    text = (Path(__file__).parents[2] / "docs" / "lambda.md").read_text()
    for name, value in (("StartingPosition", "TRIM_HORIZON"), ("TumblingWindowInSeconds", "60")):
        assert f"| `{name}` | `{value}` |" in text
        assert str(mapping[name]) == value
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert "FilterCriteria" not in mapping


AWS = """
aws() {
    printf '%s ' "$@" >> told
    echo >> told
}
"""


def test_the_commands_in_the_document_give_every_parameter_and_each_zip_its_own_key(config: Path) -> None:
    config.write_text(CONFIG.replace("postgresql://me:${PG_PASSWORD}@${PG_HOST}/${pg_password}", "${POSTGRES_URL}"))
    text = (Path(__file__).parents[2] / "docs" / "lambda.md").read_text()
    (block,) = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "POSTGRES_URL": "postgresql://h/d?sslmode=verify-full",
    }
    keys = set()
    for content in ("one", "another", "another"):
        (config.parent / "function.zip").write_text(content)
        (config.parent / "told").unlink(missing_ok=True)
        subprocess.run(["bash", "-euc", AWS + block], cwd=config.parent, env=environment, check=True)
        copied, deployed = (line.split() for line in (config.parent / "told").read_text().splitlines())
        given = dict(word.split("=", 1) for word in deployed[deployed.index("--parameter-overrides") + 1 :])
        assert copied == ["s3", "cp", "function.zip", f"s3://{given['CodeBucket']}/{given['CodeKey']}"]
        keys.add(given["CodeKey"])
    assert len(keys) == 2
    parameters = yaml.safe_load((config.parent / "stack.yaml").read_text())["Parameters"]
    assert given.keys() == parameters.keys()
    assert deployed[:2] == ["cloudformation", "deploy"]
    assert "CAPABILITY_IAM" in deployed


@pytest.mark.parametrize("file", ["/opt/ca.pem", "/mnt/ca.pem"])
def test_a_file_of_a_layer_or_a_volume_need_not_be_on_the_machine_that_deploys(config: Path, file: str) -> None:
    target = "{type: elasticsearch, url: 'https://search:9200', ca_certs: FILE, table: orders}".replace("FILE", file)
    text = "pipeline: orders\nsource: {table: orders, region: eu-west-1}\nengine: {type: lambda}\n"
    config.write_text(f"{text}target: {target}\ncheckpoints: {{type: dynamodb, table: kept}}\n")
    result = CliRunner().invoke(main, ["lambda", "template", str(config)])
    assert result.exit_code == 0, result.output


def test_the_config_of_another_engine_has_no_template(config: Path) -> None:
    config.write_text(CONFIG.replace("lambda", "local"))
    result = CliRunner().invoke(main, ["lambda", "template", str(config)])
    assert result.exit_code == 2
    assert "engine.type must be lambda" in result.output + result.stderr


@pytest.mark.parametrize("there", ["", "payments"])
def test_a_variable_in_the_name_of_the_table_the_role_or_the_function_is_a_parameter_there_too(
    config: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    """Also if this machine has a value of it, which may be that of another stage."""
    for name in ("ORDERS_TABLE", "STAGE"):
        monkeypatch.setenv(name, there) if there else monkeypatch.delenv(name, raising=False)
    written = CONFIG.replace("table: orders, region", 'table: "${ORDERS_TABLE}", region')
    written = written.replace("type: lambda", 'type: lambda, function: "orders-${STAGE}"')
    config.write_text(written)
    text, document = template(config)
    assert mistakes(text) == []
    table = "arn:aws:dynamodb:eu-west-1:${AWS::AccountId}:table/${EnvOrdersTable}"
    assert statements(document)["Items"]["Resource"] == [{"Fn::Sub": table}]
    function = document["Resources"]["Function"]["Properties"]
    assert function["FunctionName"] == {"Fn::Sub": "orders-${EnvStage}"}
    assert {"EnvOrdersTable", "EnvStage"} <= document["Parameters"].keys()
    config.write_text(written.replace("region: eu-west-1}", 'region: "${AWS_REGION}", role_arn: "${ROLE}"}'))
    text, document = template(config)
    assert mistakes(text) == []
    assert statements(document)["Role"]["Resource"] == [{"Fn::Sub": "${EnvRole}"}]


@pytest.mark.parametrize("here", [None, "us-gov-west-1"])
@pytest.mark.parametrize(
    ("source", "arn"),
    [
        ('{table: orders, region: "${AWS_REGION}"}', "arn:${AWS::Partition}:dynamodb:${AWS::Region}"),
        ('{table: orders, region: "${REGION}"}', "arn:${AWS::Partition}:dynamodb:${EnvRegion}"),
        ("{table: orders, region: us-gov-west-1}", "arn:aws-us-gov:dynamodb:us-gov-west-1"),
        (
            '{table: "arn:aws-cn:dynamodb:${AWS_REGION}:123456789012:table/orders"}',
            "arn:aws-cn:dynamodb:${AWS::Region}",
        ),
    ],
)
def test_the_partition_is_the_stacks_where_the_region_is(
    config: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, source: str, arn: str
) -> None:
    """IAM refuses ``arn:aws`` in GovCloud and China; this machine may be in another partition."""
    config.write_text(CONFIG.replace("{table: orders, region: eu-west-1}", source))
    monkeypatch.setenv("REGION", here or "eu-west-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    result = CliRunner().invoke(main, ["lambda", "template", str(config)], env={"AWS_REGION": here})
    assert result.exit_code == 0, result.output
    assert mistakes(result.stdout) == []
    (table,) = statements(yaml.safe_load(result.stdout))["Items"]["Resource"]
    assert (table if isinstance(table, str) else table["Fn::Sub"]).startswith(arn + ":")


def test_the_partition_is_the_stacks_where_nothing_names_a_region(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(CONFIG.replace(", region: eu-west-1", ""))
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    result = CliRunner().invoke(main, ["lambda", "template", str(config)], env={"AWS_REGION": None})
    arn = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/orders"
    assert statements(yaml.safe_load(result.stdout))["Items"]["Resource"] == [{"Fn::Sub": arn}]


def test_a_region_and_an_account_that_are_variables_of_an_arn_keep_their_places(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever values this machine has."""
    arn = "arn:aws:dynamodb:${%s}:${ACCT}:table/${ORDERS_TABLE}"
    for region, stack_region in (("AWS_REGION", "${AWS::Region}"), ("RG", "${EnvRg}")):
        for name, value in ((region, "us-east-1"), ("ACCT", "123456789012"), ("ORDERS_TABLE", "orders")):
            monkeypatch.setenv(name, value)
        for name in ("PG_PASSWORD", "PG_HOST", "pg_password"):
            monkeypatch.setenv(name, "x")
        written = CONFIG.replace("{table: orders, region: eu-west-1}", f'{{table: "{arn % region}"}}')
        config.write_text(written.replace("${pg_password}", "${pg_password}?sslmode=verify-full"))
        result = CliRunner().invoke(main, ["lambda", "template", str(config)])
        assert result.exit_code == 0, result.output
        assert mistakes(result.stdout) == []
        filled = f"arn:aws:dynamodb:{stack_region}:${{EnvAcct}}:table/${{EnvOrdersTable}}"
        assert statements(yaml.safe_load(result.stdout))["Items"]["Resource"] == [{"Fn::Sub": filled}]


def test_a_variable_and_the_target_in_the_name_of_a_function_are_both_filled_in(config: Path) -> None:
    config.write_text(TARGETS.replace("orders-{target}", "orders-${STAGE}-{target}"))
    function = template(config, "--target", "audit")[1]["Resources"]["Function"]["Properties"]
    assert function["FunctionName"] == {"Fn::Sub": "orders-${EnvStage}-audit"}


def test_a_table_whose_name_is_in_a_file_that_is_not_here_is_refused(config: Path) -> None:
    config.write_text(CONFIG.replace("table: orders, region", 'table: "${file:/nowhere/table}", region'))
    result = CliRunner().invoke(main, ["lambda", "template", str(config)])
    assert result.exit_code == 2
    assert "what the role may use (TABLE)" in result.stderr


def test_the_timeout_has_room_for_a_hook_that_hangs_also_with_a_history(config: Path) -> None:
    (config.parent / "hooks.py").write_text("def hook(item):\n    return item\n")
    written = CONFIG + "transform: hooks.py:hook\nhook_timeout: 150\n"
    for options, timeout in (("table: orders}\nengine", 310), ("tables: {orders: {history: true}}}\nengine", 760)):
        config.write_text(written.replace("table: orders}\nengine", options))
        assert template(config)[1]["Resources"]["Function"]["Properties"]["Timeout"] == timeout
