"""``replicator check`` and ``preview``: all problems are reported at once, and nothing is changed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import orjson
import pytest
from botocore.stub import Stubber

from replicator.aws import boto
from replicator.errors import TransientError
from replicator.operations.finding import failed
from tests.cli.command_line import World, pristine
from tests.security.canary import VALUE

TABLE = "arn:aws:dynamodb:us-east-1:"  # how a table's ARN begins

FAN_OUT = """
from replicator import Document, documents

@documents
def hook(item):
    for tag in item.get("tags", ()):
        yield Document(id=tag, body={"tag": tag})
"""


def texts(world: World, *verdicts: str) -> list[str]:
    findings = world.lines("check", world.config)
    return [f"{f['subject']}: {f['text']}" for f in findings if f["verdict"] in verdicts]


def test_a_ready_pipeline_is_exit_code_0_and_every_permission_is_named(world: World) -> None:
    arn = world.db.create_table("orders")
    code, out, _ = world.call("check", world.config, "--human")

    assert code == 0
    for action in ("DescribeStream", "GetShardIterator", "GetRecords"):
        assert f"ok    permission: dynamodb:{action} on {arn}" in out
    assert "ok    permission: dynamodb:Scan on arn:aws:dynamodb:us-east-1:" in out
    assert 'CREATE TABLE "public"."orders"' in out
    assert "FAIL" not in out


def test_an_empty_table_leaves_hook_and_target_untried_and_check_says_so(world: World) -> None:
    world.db.create_table("orders")
    assert "source.table: the table is empty, so what the target can store was not tried on an item" in texts(
        world, "note"
    )
    world.hook("def hook(item):\n    return {'n': item['no such attribute']}\n")
    untried = "source.table: the table is empty, so neither hook nor the target was tried on an item"
    assert untried in texts(world, "note")
    world.db.put("orders", {"id": "1"})
    assert untried not in texts(world, "note")


def test_nothing_is_changed(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.call("check", world.config)
    world.call("preview", world.config)
    world.call("status", world.config)

    assert not world.has_table("orders")
    assert not world.rows("SELECT 1 FROM information_schema.schemata WHERE schema_name = 'replicator'")


SCHEDULING = ("events", "scheduler")


def test_of_a_function_on_aws_lambda_settings_and_mapping_are_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.db.create_table("orders")
    world.change("target:", "engine: {type: lambda, function: orders-copy}\ntarget:")
    arn = "arn:aws:lambda:us-east-1:123456789012:function:orders-copy"
    client = boto3.client("lambda", "us-east-1", aws_access_key_id="local", aws_secret_access_key="local")
    schedules = [boto3.client(s, "us-east-1", aws_access_key_id="", aws_secret_access_key="") for s in SCHEDULING]
    monkeypatch.setattr(boto, "connect_lambda", lambda access: client)
    monkeypatch.setattr(boto, "connect_schedules", lambda access: schedules)
    with Stubber(client) as aws, Stubber(schedules[0]) as rules, Stubber(schedules[1]) as others:
        rules.add_response("list_rule_names_by_target", {"RuleNames": []}, {"TargetArn": arn})
        others.add_response("list_schedules", {"Schedules": []})
        aws.add_response("get_function_configuration", {"FunctionArn": arn, "Timeout": 3})
        aws.add_response("get_function_concurrency", {"ReservedConcurrentExecutions": 0})
        for _ in range(2):
            aws.add_response("list_event_source_mappings", {"EventSourceMappings": []})
        code, out, _ = world.call("check", world.config, "--human")
    assert code == 2
    assert "FAIL  engine.function: Timeout is 3 s" in out
    assert "FAIL  engine.function: ReservedConcurrentExecutions of orders-copy is 0: the function never runs" in out
    assert "FAIL  schedule: no schedule of EventBridge invokes orders-copy" in out
    assert "FAIL  mapping: no event source mapping delivers the table's stream to orders-copy" in out


def test_what_a_function_cannot_use_is_named_also_offline(world: World) -> None:
    world.db.create_table("orders")
    engine = "engine: {type: lambda}\ncheckpoints: {type: dynamodb, table: kept, profile: shop}\n"
    path = Path(world.config)
    text = path.read_text()
    path.write_text(
        text[: text.index("target:")] + engine + "target:\n  type: elasticsearch\n  url: https://127.0.0.1:1\n"
        "  client_cert: client.pem\n  client_key: client.key\n  table: orders\n"
    )
    for options in (["--offline"], []):
        code, out, _ = world.call("check", world.config, *options, "--human")
        assert code == 2
        assert "FAIL  checkpoints.profile: a function has no profiles, but the permissions of its role" in out
        assert "FAIL  target.client_key: in a zip or a layer, everyone who may read that" in out
    path.write_text(
        path.read_text().replace(engine, engine.replace(", profile: shop", "")).replace("client.", "/mnt/c.")
    )
    code, out, _ = world.call("check", world.config, "--offline", "--human")
    assert (code, "FAIL" in out) == (0, False), out


def test_documents_without_versions_are_refused_for_a_function(world: World) -> None:
    path = Path(world.config)
    text = path.read_text()
    path.write_text(
        text[: text.index("target:")] + "engine: {type: lambda}\ncheckpoints: {type: dynamodb, table: kept}\n"
        "target: {type: dynamodb, pristine: true, table: copies}\n"
    )
    code, out, _ = world.call("check", world.config, "--offline", "--human")
    assert code == 2
    assert "target.pristine: without versions in the items, writes of several workers to one item" in out


def test_every_missing_permission_is_named_with_its_action_and_arn(world: World) -> None:
    arn = world.db.create_table("orders")
    for operation in ("GetShardIterator", "Scan"):
        world.db.fail(operation, "AccessDeniedException", times=None)
    code, _, _ = world.call("check", world.config)
    problems = texts(world, "forbidden")

    assert code == 4
    assert problems[0].startswith(f"permission: dynamodb:GetShardIterator on {arn} is not permitted (AccessDenied")
    assert problems[1].startswith("permission: dynamodb:Scan on ")


def test_a_missing_permission_for_lookups_is_named_for_a_keys_only_stream(world: World) -> None:
    world.db.create_table("orders", view="KEYS_ONLY")
    assert world.call("check", world.config)[0] == 0
    world.db.fail("BatchGetItem", "AccessDeniedException", times=None)
    world.db.fail("GetRecords", "AccessDeniedException", times=None)
    world.db.fail("DescribeStream", "AccessDeniedException", times=None)

    assert [t.split(" on ")[0] for t in texts(world, "forbidden")] == [
        "permission: dynamodb:DescribeStream",
        "permission: dynamodb:BatchGetItem",
    ]
    world.db.heal()
    world.db.fail("GetRecords", "AccessDeniedException", times=None)
    assert [t.split(" on ")[0] for t in texts(world, "forbidden")] == ["permission: dynamodb:GetRecords"]


def test_a_missing_permission_to_read_single_items_is_named_for_a_pristine_table(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`parked retry` stores only what the source still has."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    world.db.create_table("orders")
    pristine(world)
    assert "permission: dynamodb:GetItem on arn:" in world.call("check", world.config, "--human")[1]
    looked_up = world.db.call

    def forbidden(operation: str, request: Any) -> Any:
        if operation == "GetItem" and request["TableName"] == "orders":
            world.db.fail("GetItem", "AccessDeniedException", times=1)
        return looked_up(operation, request)

    monkeypatch.setattr(world.db, "call", forbidden)
    assert [t.split(" on ")[0] for t in texts(world, "forbidden")] == ["permission: dynamodb:GetItem"]


def test_a_pristine_target_is_refused_for_several_workers_by_check_as_by_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")
    world.db.create_table("orders")
    pristine(world)
    world.change("target:", "engine: {type: ray, workers: 1}\ntarget:")
    for command in ("check", "run"):
        code, out, err = world.call(command, world.config)
        assert code == 2, out
        assert "without versions in the items" in out + err


def test_without_any_permission_the_target_is_checked_all_the_same(world: World) -> None:
    world.db.create_table("orders")
    world.db.fail("DescribeTable", "AccessDeniedException", times=None)
    findings = world.lines("check", world.config)

    assert world.call("check", world.config)[0] == 4
    assert [f["subject"] for f in findings] == ["source", "target"]
    assert findings[0]["text"].startswith("dynamodb:DescribeTable on orders is not permitted (AccessDeniedException")
    assert findings[0]["do"].startswith("Allow it in the policy of the role or user that replicator runs as")


def test_missing_credentials_are_exit_code_4(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    bare = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}
    code, out, _ = World(world.db, world.postgres, world.folder, bare).call("check", world.config)

    assert code == 4
    assert "no AWS credentials for DescribeTable on orders" in out
    assert "Provide them (AWS_PROFILE, source.profile or an instance role)" in out
    assert "policy" not in out


def test_unknown_credentials_are_not_reported_as_missing_permissions(world: World) -> None:
    world.db.create_table("orders")
    world.db.fail("DescribeTable", "UnrecognizedClientException", times=None)
    findings = world.lines("check", world.config)

    assert findings[0]["text"].startswith("AWS does not accept the credentials for dynamodb:DescribeTable on orders")
    assert findings[0]["do"].startswith("Fix the credentials, or use others (AWS_PROFILE, source.profile")


def test_a_wrong_password_is_distinguished_from_a_missing_grant(world: World) -> None:
    world.db.create_table("orders")
    password = world.postgres.server.password
    assert password
    world.change(f":{password}@", ":wr0ng-pass@")
    (findings,) = [f for f in world.lines("check", world.config) if f["verdict"] == "forbidden"]

    assert world.call("check", world.config)[0] == 4
    assert 'refuses the login: password authentication failed for user "postgres"' in findings["text"]
    assert findings["do"] == "Correct the user and the password of target.url"
    code, _, err = world.call("run", world.config, "--until", "caught-up")
    assert (code, "GRANT" in err, "wr0ng" in err) == (4, False, False)
    assert "refuses the login" in err


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (None, "has no enabled stream, so changes cannot be read; enable it: aws dynamodb update-table"),
        ("OLD_IMAGE", "has view type OLD_IMAGE, which does not include new images"),
    ],
)
def test_a_stream_that_cannot_be_read_says_what_to_do(world: World, view: str | None, message: str) -> None:
    world.db.create_table("orders", view=view)

    assert world.call("check", world.config)[0] == 2
    assert any(message in text for text in texts(world, "problem"))


def test_a_disabled_stream_is_a_problem(world: World) -> None:
    world.db.create_table("orders")
    world.db.disable_stream("orders")

    assert world.call("check", world.config)[0] == 2
    assert any("has no enabled stream" in text for text in texts(world, "problem"))


@pytest.mark.parametrize("view", ["KEYS_ONLY", "NEW_IMAGE"])
def test_document_ids_chosen_by_a_hook_need_old_images(world: World, view: str) -> None:
    world.db.create_table("orders", view=view)
    world.hook(FAN_OUT)

    assert world.call("check", world.config)[0] == 2
    assert any(
        f"has view type {view}, but the hook chooses document ids (@documents)" in t for t in texts(world, "problem")
    )


def test_every_mismatch_of_an_existing_table_is_named(world: World) -> None:
    world.db.create_table("orders")
    with world.postgres.connect() as connection:
        connection.execute("CREATE TABLE orders (id bigint PRIMARY KEY, document text, _version bigint NOT NULL)")
    problems = texts(world, "problem")
    assert any("id" in p for p in problems), problems
    assert any("document" in p for p in problems), problems


def test_all_problems_are_reported_at_once(world: World) -> None:
    world.hook("def other(item):\n    return None\n")
    world.change(world.postgres.url, "postgresql://me@127.0.0.1:1/none")
    code, _, _ = world.call("check", world.config)
    problems = texts(world, "problem", "unreachable")

    assert code == 2
    assert any("hooks.py has no function hook; it has other (line 1)" in p for p in problems)
    assert any(p.startswith("source.table: no table orders") for p in problems)
    assert any("cannot be reached" in p for p in problems)


def test_an_unreachable_server_has_its_remedy(world: World) -> None:
    world.db.create_table("orders")
    world.change(world.postgres.url, "postgresql://me@127.0.0.1:1/none")
    findings = [line for line in world.lines("check", world.config) if line["verdict"] == "unreachable"]

    assert world.call("check", world.config)[0] == 8
    assert findings
    assert all(f["do"].startswith("check the address, and that the server is up") for f in findings)


def test_an_unreachable_address_of_aws_may_have_a_wrong_region() -> None:
    error = TransientError('Could not connect to the endpoint URL: "https://dynamodb.eu-wset-1.amazonaws.com/"')
    assert str(failed("source", error).do).startswith("check the region and the address, and that the server is up")


def test_a_nondeterministic_hook_is_a_problem(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.hook("import itertools\ncount = itertools.count()\ndef hook(item):\n    return {'n': next(count)}\n")

    assert world.call("check", world.config)[0] == 2
    assert texts(world, "problem") == ['transform: hook is not deterministic: two calls differ for item ["1"]']


@pytest.mark.parametrize("command", ["check", "preview", "parked retry --all"])
def test_what_a_hook_prints_is_not_part_of_a_commands_output(world: World, command: str) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.hook("print('imported')\n\n\ndef hook(item):\n    print('called')\n    return {'n': item['n']}\n")
    if command.startswith("parked"):
        world.catch_up()
    name, *options = command.split(" --")
    _, out, err = world.call(*name.split(), world.config, *(f"--{option}" for option in options), "--json")

    assert err.startswith("imported\ncalled\n")
    assert all(isinstance(orjson.loads(line), dict) for line in out.splitlines())
    assert out


def test_a_nondeterministic_hook_with_its_own_ids_too(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "tags": ["a"]})
    world.hook(FAN_OUT.replace("id=tag", "id=next(count)") + "\nimport itertools\ncount = itertools.count()\n")

    assert texts(world, "problem") == ['transform: hook is not deterministic: two calls differ for item ["1"]']


def test_items_that_would_be_parked_are_a_note(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.db.put("orders", {"id": "2", "total": 1})
    world.hook("def hook(item):\n    return {'total': item['total']}\n")

    assert world.call("check", world.config)[0] == 0
    (note,) = (t for t in texts(world, "note") if t.startswith("transform"))
    assert note == (
        'transform: 1 of 2 live items would be parked, e.g. item ["1"]: '
        "hook hook raised KeyError at hooks.py:2: no attribute 'total'"
    )


def test_a_hook_that_parks_every_item_is_a_problem(world: World) -> None:
    world.db.create_table("orders")
    for n in range(2):
        world.db.put("orders", {"id": str(n)})
    world.hook("def hook(item):\n    return {'total': item['total']}\n")

    assert world.call("check", world.config)[0] == 2
    (problem,) = texts(world, "problem")
    assert problem.startswith("transform: 2 of 2 live items would be parked, e.g. item ")


def test_a_hook_that_makes_nothing_of_any_item_is_a_note(world: World) -> None:
    """As one without a return; but one that filters may return None for all items of a sample."""
    world.db.create_table("orders")
    for n in range(2):
        world.db.put("orders", {"id": str(n)})
    world.hook("def hook(item):\n    document = {'id': item['id']}\n")

    code, out, _ = world.call("check", world.config)
    assert code == 0
    assert "0 of 2 sampled items would be stored: hook returns no document for any of them" in out
    assert "does it lack a return? A hook that filters may keep others" in out


@pytest.mark.parametrize("kept", ["{}", "item if item['id'] == '1' else None"])
def test_a_hook_that_makes_something_of_some_item_is_not(world: World, kept: str) -> None:
    world.db.create_table("orders")
    for n in range(2):
        world.db.put("orders", {"id": str(n)})
    world.hook(f"def hook(item):\n    return {kept}\n")
    assert not any("would be stored" in text for text in texts(world, "note"))


def test_a_hook_that_does_not_end_is_tried_on_three_items_only(world: World) -> None:
    world.db.create_table("orders")
    for n in range(5):
        world.db.put("orders", {"id": str(n)})
    world.hook("def hook(item):\n    while True:\n        pass\n")
    path = Path(world.config)
    path.write_text(path.read_text() + "\nhook_timeout: 0.1\n")

    (problem,) = texts(world, "problem")
    assert problem.startswith("transform: 3 of 3 live items would be parked, e.g. item ")
    assert "took longer than 0.1 s (hook_timeout)" in problem


def with_columns(world: World, *cities: object) -> None:
    """A target with a column ``city``, and items that have one."""
    url = f"url: {world.postgres.url}\n"
    world.change(f"{url}  table: orders", f"{url}  tables: {{orders: {{columns: {{city: text}}}}}}")
    world.db.create_table("orders")
    for number, city in enumerate(cities):
        world.db.put("orders", {"id": f"{number}", "city": city})


def test_items_that_the_target_would_reject_are_reported(world: World) -> None:
    with_columns(world, "Ulm", 5)
    assert world.call("check", world.config)[0] == 0
    assert texts(world, "note")[-1] == (
        'target: 1 of 2 live items would be parked, because the target cannot store them, e.g. item ["1"]: '
        "column city is text, but the attribute is a number"
    )
    problems = {line["key"][0]: line["problem"] for line in world.lines("preview", world.config)}
    assert problems == {"0": None, "1": "column city is text, but the attribute is a number"}
    assert not world.has_table("orders")


def test_it_is_a_problem_if_the_target_would_refuse_all_sampled_items(world: World) -> None:
    """E.g. for a misspelled name: the run would park everything."""
    with_columns(world, "Ulm", "Bonn")
    world.hook("def hook(item):\n    return {'citty': item['city']}\n")
    assert world.call("check", world.config)[0] == 2
    (problem,) = texts(world, "problem")
    assert problem.startswith("target: 2 of 2 live items would be parked, because the target cannot store them, e.g. ")
    assert problem.endswith(
        "the hook returned a field citty, which no column of orders is made from; did you mean city? "
        "(extra: ignore leaves such fields out)"
    )
    (first, _) = world.lines("preview", world.config)
    assert (first["writes"], first["problem"]) == ([], problem.partition('"]: ')[2])
    assert [write["document"] for write in first["refused"]] == [{"citty": first["before"]["city"]}]
    assert "  would be parked: the hook returned a field citty" in world.call("preview", world.config, "--human")[1]


def test_the_run_parks_what_check_predicted(world: World) -> None:
    with_columns(world, "Ulm", 5, "Bonn", None, True)
    predicted = {line["problem"] for line in world.lines("preview", world.config)} - {None}
    world.catch_up()
    parked = world.rows("SELECT value::json->>'reason' FROM replicator.checkpoints WHERE kind = 'parked'")
    assert {reason for (reason,) in parked} == predicted
    assert len(parked) == 2


@pytest.mark.parametrize("value", ["float('nan')", "{'deep': [float('nan')]}", "__import__('decimal').Decimal('NaN')"])
def test_nan_is_deterministic_but_rejected(world: World, value: str) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.hook(f"def hook(item):\n    return {{'n': {value}}}\n")
    (problem,) = texts(world, "problem")
    assert problem.startswith("target: 1 of 1 live items would be parked, because the target cannot store them")
    assert not [t for t in texts(world, "problem", "note") if "pure" in t]


def test_a_hook_that_cannot_be_imported_names_file_and_line(world: World) -> None:
    world.db.create_table("orders")
    world.hook("import json\nimport nonsense_that_is_not_there\n")
    code, out, _ = world.call("check", world.config)

    assert code == 2
    assert "hooks.py, line 2" in out


class TestPreview:
    def test_preview_shows_items_documents_and_writes(self, world: World) -> None:
        world.db.create_table("orders")
        world.db.put("orders", {"id": "1", "total": 5, "secret": "x"})
        world.hook("def hook(item):\n    return {'total': item['total'] * 2}\n")

        assert world.lines("preview", world.config) == [
            {
                "key": ["1"],
                "before": {"id": "1", "total": 5, "secret": "x", "canary": VALUE},
                "writes": [{"write": "upsert", "table": "orders", "id": ["1"], "document": {"total": 10}}],
                "problem": None,
            }
        ]
        code, out, _ = world.call("preview", world.config, "--human")
        assert code == 0
        assert 'item ["1"]' in out
        assert 'upsert ["1"] in orders' in out

    def test_preview_shows_items_that_would_be_parked_or_filtered(self, world: World) -> None:
        world.db.create_table("orders")
        world.db.put("orders", {"id": "1"})
        world.hook("def hook(item):\n    return 5\n")
        assert "a plain hook must return a mapping or None" in world.lines("preview", world.config)[0]["problem"]
        assert "would be parked: " in world.call("preview", world.config, "--human")[1]

        world.hook("def hook(item):\n    return None\n")
        assert "  no writes\n" in world.call("preview", world.config, "--human")[1]

    def test_preview_shows_documents_with_their_own_ids(self, world: World) -> None:
        world.db.create_table("orders")
        world.db.put("orders", {"id": "1", "tags": {"b", "a"}})
        world.hook(FAN_OUT)
        (item,) = world.lines("preview", world.config)

        assert sorted(w["id"] for w in item["writes"]) == [['["1"]', "a"], ['["1"]', "b"]]

    def test_preview_accepts_a_limit_or_a_key(self, world: World) -> None:
        world.db.create_table("orders", keys={"id": "B", "n": "N"})
        for n in range(250):
            world.db.put("orders", {"id": b"\x01", "n": n})

        assert len(world.lines("preview", world.config)) == 5
        assert len(world.lines("preview", world.config, "--limit", "230")) == 230
        (item,) = world.lines("preview", world.config, "--key", '{"id": "AQ==", "n": 17}')
        assert item["key"] == ["AQ==", "17"]

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ('{"id": "9"}', "no item"),
            ('{"id": 9}', 'key attribute id is of type S (string): write it in quotes, such as "5"'),
            ('{"pk": "9"}', "the key has the attributes id, not pk"),
            ("[1]", "a key is a JSON object"),
            ("{", "--key: "),
        ],
    )
    def test_preview_says_what_is_wrong_with_a_key(self, world: World, key: str, message: str) -> None:
        world.db.create_table("orders")
        code, out, err = world.call("preview", world.config, "--key", key)

        assert (code, out) == (2, "")
        assert message in err

    def test_a_hook_calculates_with_all_digits_as_in_a_run(self, world: World) -> None:
        world.db.create_table("orders")
        digits = "1234567890123456789012345678901234567.8"
        world.db.put("orders", {"id": "1", "n": Decimal(digits)})
        world.hook("def hook(item):\n    return {'n': item['n'] + 1}\n")
        shown = world.call("preview", world.config, "--json")[1]
        world.catch_up()

        assert '"n":1234567890123456789012345678901234568.8' in shown
        assert world.rows("SELECT document->'n' = '1234567890123456789012345678901234568.8' FROM orders") == [(True,)]

    def test_preview_shows_every_type_of_value(self, world: World) -> None:
        world.db.create_table("orders")
        world.db.put("orders", {"id": "1", "n": 10**37})
        world.hook(
            "import datetime\ndef hook(item):\n"
            "    return {'n': item['n'], 'b': b'x', 's': {2, 1}, 'i': 2**70, 'item': item, 'o': object(),\n"
            "            't': datetime.datetime(2026, 1, 31)}\n"
        )
        code, out, _ = world.call("preview", world.config, "--json")

        assert code == 0
        assert f'"n":{10**37},"b":"eA==","s":[1,2],"i":{2**70}' in out
        assert '"t":"2026-01-31T00:00:00"' in out


RAISING = """
from collections.abc import Mapping

class Broken(Mapping):
    def __getitem__(self, name): raise RuntimeError(name)
    def __iter__(self): return iter(["a"])
    def __len__(self): return 1
    def __eq__(self, other): raise RuntimeError("no")
    __hash__ = None

def hook(item):
    loop = {"half": "\\ud800"}
    loop["itself"] = loop
    return {"id": item["id"], "value": [Broken(), loop]} if item["id"] == "bad" else item
"""


def test_a_value_whose_methods_raise_ends_neither_check_nor_preview_nor_run(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "bad"})
    world.db.put("orders", {"id": "good"})
    world.hook(RAISING)
    code, out, _ = world.call("check", world.config, "--human")
    assert code == 0
    assert '1 of 2 live items would be parked, because the target cannot store them, e.g. item ["bad"]' in out
    code, out, _ = world.call("preview", world.config, "--human")
    assert code == 0
    assert '"<Broken whose code raised RuntimeError>"' in out
    assert "would be parked: column document contains a value that cannot be read" in out
    assert world.lines("preview", world.config)
    world.catch_up()
    assert [row[0] for row in world.rows("SELECT id FROM orders")] == ["good"]
