"""``replicator cutover`` beside a real run, into a real Postgres and into another table."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.state import Save
from tests.cli.command_line import World, endpoint
from tests.cli.test_run import await_that

HOSTILE = "k\x1b[31m<script>"


def verified(world: World, **change: Any) -> None:
    """Note a pass of verify, as it does itself."""
    with ends(load(world.config)) as (_, checkpoints):
        state = checkpoints.pipeline()
        assert state is not None
        now = time.time()
        note = {"started": now, "updated": now, "epoch": state.epoch, "scope": "full", "total": 1, "ended": now}
        checkpoints.save([Save("verified", "", None, json.dumps(note | change))])


@contextmanager
def live(world: World) -> Iterator[subprocess.Popen[str]]:
    """A run that is live."""
    with world.shell.start("run", world.config, "--json") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("phase") == "live":
                break
        yield process
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def asked(world: World, *more: str) -> tuple[int, dict[str, Any]]:
    code, out, err = world.call("cutover", world.config, "--json", *more)
    assert out, err
    return code, json.loads(out)


@pytest.fixture
def orders(world: World) -> World:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 1})
    return world


def test_yes_comes_with_a_certificate_once_the_stream_is_quiet(orders: World) -> None:
    with live(orders):
        verified(orders)
        code, certificate = asked(orders, "--wait", "--quiet", "1s")
    assert (code, certificate["verdict"], certificate["reasons"]) == (0, "yes", [])
    (position,) = certificate["positions"].values()
    assert position["read_through"] >= certificate["asked_at"]
    assert position["sequence"].isdigit()
    assert certificate["counts"]["applied"] + certificate["counts"]["superseded"] == certificate["counts"]["read"]
    assert certificate["verify"]["differences"] == 0
    assert certificate["versions"]["checkpoints"] == 1
    assert orders.db.calls["PutResourcePolicy"] == 0


def test_a_late_writer_is_named_by_its_key_which_is_escaped(orders: World) -> None:
    with live(orders):
        verified(orders)
        orders.db.put("orders", {"id": HOSTILE, "n": 1})
        deadline = time.monotonic() + 60
        text = ""
        while "by a change of item" not in text and time.monotonic() < deadline:
            code, text, _ = orders.call("cutover", orders.config, "--human", "--quiet", "1h")
    assert code == 7
    assert re.search(r"not drained: the last record is of .*, by a change of item .*<script>.*; stop its writer", text)
    assert "\x1b" not in text
    assert "to freeze the source's writers: aws dynamodb put-resource-policy" in text


def test_a_removal_by_the_time_to_live_is_named_as_no_writer_can_be_stopped(orders: World) -> None:
    orders.db.put("orders", {"id": "old", "n": 1})
    with live(orders) as run:
        verified(orders)
        orders.db.expire("orders", {"id": "old"})
        await_that(lambda: len(orders.rows("SELECT FROM orders")) == 1, run)
        code, text, _ = orders.call("cutover", orders.config, "--human", "--quiet", "1h")
    assert code == 7
    assert 'when the time to live removed item ["old"]; turn the time to live of orders off until the switch' in text


def test_while_it_waits_it_says_for_what_and_names_the_late_writer(orders: World) -> None:
    with live(orders) as run:
        verified(orders)
        orders.db.put("orders", {"id": "late", "n": 1})
        await_that(lambda: len(orders.rows("SELECT FROM orders")) == 2, run)
        with orders.shell.start("cutover", orders.config, "--wait", "--quiet", "6s", "--json") as process:
            out, err = process.communicate(timeout=90)
    told = [line for line in err.splitlines() if line.startswith("waiting: ")]

    assert process.returncode == 0, err
    assert json.loads(out)["verdict"] == "yes", "and standard output has the certificate alone"
    assert any('by a change of item ["late"]; stop its writer' in line for line in told), err
    assert len(told) <= 2, "not every second"


def test_without_a_run_the_answer_is_no_and_waiting_is_useless(orders: World) -> None:
    orders.catch_up()
    code, certificate = asked(orders, "--wait")
    assert code == 7
    texts = " ".join(reason["text"] for reason in certificate["reasons"])
    assert "no run is up" in texts
    assert "the copy was not verified" in texts


def test_parked_items_are_exit_code_6(orders: World) -> None:
    orders.hook("def hook(item):\n    return {'n': item['missing']}\n")
    orders.catch_up()
    code, certificate = asked(orders)
    assert code == 6
    assert '1 item(s) are parked: ["a"]' in certificate["reasons"][0]["text"]


def test_settings_of_a_table_that_differ_are_printed(orders: World) -> None:
    orders.change(
        f"type: postgres\n  url: {orders.postgres.url}\n  table: orders",
        f"type: dynamodb\n  region: us-east-1\n  endpoint_url: {endpoint(orders)}\n  create: true\n  table: copy",
    )
    orders.catch_up()
    arn = json.loads(orders.db.call("DescribeTable", {"TableName": "orders"}))["Table"]["TableArn"]
    orders.db.call("TagResource", {"ResourceArn": arn, "Tags": [{"Key": "team", "Value": "shop"}]})
    specification = {"Enabled": True, "AttributeName": "until"}
    orders.db.call("UpdateTimeToLive", {"TableName": "orders", "TimeToLiveSpecification": specification})
    recovery = {"PointInTimeRecoveryEnabled": True}
    orders.db.call("UpdateContinuousBackups", {"TableName": "orders", "PointInTimeRecoverySpecification": recovery})
    _, certificate = asked(orders)
    lines = certificate["settings"]
    assert "time to live of copy: off, but in the source: by until" in lines
    assert "stream of copy: off, but in the source: NEW_AND_OLD_IMAGES" in lines
    assert "tags of copy: none, but in the source: team" in lines
    assert "point-in-time recovery of copy: off, but in the source: on" in lines
    assert not any(line.startswith(("key of", "indexes of", "capacity of")) for line in lines)
    copy = arn.replace("table/orders", "table/copy")
    orders.db.call("TagResource", {"ResourceArn": copy, "Tags": [{"Key": "team", "Value": "other"}]})
    _, certificate = asked(orders)
    assert "tags of copy: team, but with other values in the source" in certificate["settings"]
    assert not {"shop", "other"} & set(
        re.findall(r"[a-z]+", json.dumps(certificate["settings"]).replace("other values", ""))
    )


@pytest.mark.parametrize(
    ("action", "setting"),
    [
        ("DescribeTimeToLive", "time to live"),
        ("ListTagsOfResource", "tags"),
        ("DescribeContinuousBackups", "point-in-time recovery"),
    ],
)
def test_a_setting_that_may_not_be_read_is_named_and_decides_nothing(orders: World, action: str, setting: str) -> None:
    orders.change(
        f"type: postgres\n  url: {orders.postgres.url}\n  table: orders",
        f"type: dynamodb\n  region: us-east-1\n  endpoint_url: {endpoint(orders)}\n  create: true\n  table: copy",
    )
    orders.catch_up()
    orders.db.fail(action, "AccessDeniedException", times=None)
    code, certificate = asked(orders)
    assert code == 7, "no run is up"
    assert any(line.startswith(f"{setting} of copy cannot be compared: ") for line in certificate["settings"])


def test_an_unknown_pipeline_is_an_error(world: World) -> None:
    world.db.create_table("orders")
    code, _, err = world.call("cutover", world.config)
    assert code == 2
    assert "there is no pipeline orders" in err


@pytest.mark.parametrize("given", ["30", "0s", "-1s", "1w", "s"])
def test_a_duration_has_a_unit(world: World, given: str) -> None:
    code, _, err = world.call("cutover", world.config, "--quiet", given)
    assert code == 2
    assert "is not a duration such as 30s, 5m, 24h or 7d" in err


@pytest.mark.parametrize(
    ("end", "wanted"),
    [("source", "source: this pipeline copies"), ("target", 'but the config names "public"."elsewhere"')],
)
def test_a_config_that_is_not_the_pipelines_is_an_error_and_no_yes_for_a_copy_that_was_never_made(
    orders: World, end: str, wanted: str
) -> None:
    orders.db.create_table("elsewhere")
    before, table, after = (orders.folder / "orders.yaml").read_text().partition("target:")
    with live(orders):
        verified(orders)
        changed = [part.replace("  table: orders", "  table: elsewhere") for part in (before, after)]
        text = changed[0] + table + after if end == "source" else before + table + changed[1]
        (orders.folder / "orders.yaml").write_text(text)
        code, _, err = orders.call("cutover", orders.config)
    assert code == 2
    assert wanted in err


def test_a_hook_that_has_changed_since_the_run_is_an_error(orders: World) -> None:
    orders.hook("def hook(item):\n    return item\n")
    with live(orders):
        verified(orders)
        orders.hook("def hook(item):\n    return item and None\n")
        code, _, err = orders.call("cutover", orders.config)
    assert code == 2
    assert "the hook changed since the last run" in err
