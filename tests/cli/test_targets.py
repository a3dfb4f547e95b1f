"""Several targets in one config: which commands answer for all of them, and which ask for one."""

from __future__ import annotations

import importlib
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
import yaml
from click.testing import CliRunner

from replicator.cli import main
from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.operations.finding import Finding
from replicator.state import Gap, Save, encode
from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World, words
from tests.cli.test_run import await_that
from tests.cli.test_run_several import events
from tests.monitoring.client import get

NAMES = ("rows", "copies")


@pytest.fixture
def both(world: World) -> World:
    """The world's config with two targets: the tables ``orders`` and ``copies`` of the same database."""
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.change(f"target:\n  type: postgres\n  url: {world.postgres.url}\n  table: orders\n", targets(world, NAMES))
    return world


def targets(world: World, names: Sequence[str]) -> str:
    table = {"rows": "orders"}
    return "targets:\n" + "".join(
        f"  {name}:\n    type: postgres\n    url: {world.postgres.url}\n    table: {table.get(name, name)}\n"
        for name in names
    )


def configure(world: World, *names: str) -> None:
    """Give the config these targets."""
    path = Path(world.config)
    text = path.read_text()
    path.write_text(text[: text.index("targets:")] + targets(world, names))


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that takes a config."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        elif any(isinstance(p, click.Argument) and p.name in ("config", "configs") for p in command.params):
            yield (*path, name), command


def refused(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [*arguments])
    return result.exit_code, words(result.stderr) + result.stdout


FOR_ALL = {"run", "check", "status", "estimate", "policy"}
NEEDED: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("rebuild", "start"): (),
    ("history",): ("--at", "2026-01-31T12:00:00Z"),
    ("parked", "retry"): ("--all",),
    ("parked", "drop"): ("--all", "--yes"),
}


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=" ".join(one[0])) for one in commands()])
def test_every_command_takes_a_target_and_asks_for_one_unless_it_is_for_all(
    tmp_path: Path, path: tuple[str, ...], command: click.Command
) -> None:
    table = "type: postgres, url: postgresql://127.0.0.1:1/x, table:"
    given = {"pipeline": "orders", "source": {"table": "orders"}}
    text = yaml.safe_dump(given) + f"targets:\n  rows: {{{table} orders}}\n  copies: {{{table} copies}}\n"
    (tmp_path / "orders.yaml").write_text(text)
    config = str(tmp_path / "orders.yaml")
    more = NEEDED.get(path, ())
    assert "target" in {parameter.name for parameter in command.params}

    code, err = refused(*path, config, *more, "--target", "row")
    assert (code, "--target: orders.yaml has no target row; did you mean rows?" in err) == (2, True), err
    if path[0] in FOR_ALL:
        return
    code, err = refused(*path, config, *more)
    assert code == 2
    assert "orders.yaml has several targets: choose one, --target NAME, of rows, copies" in err


def snapshots(out: str) -> set[str]:
    return {event["pipeline"] for event in events(out, "snapshot started")}


def ids(world: World, table: str) -> list[str]:
    return [id for (id,) in world.rows(f"SELECT id FROM {table} ORDER BY id")]  # noqa: S608


def catch_up(world: World, *more: str) -> tuple[int, str]:
    code, out, _ = world.call("run", world.config, "--until", "caught-up", *more)
    return code, out


def test_targets_are_copied_and_followed_by_one_run_and_each_can_be_added_and_removed(both: World) -> None:
    port = free_port()
    with both.shell.start("run", both.config, "--listen", f"127.0.0.1:{port}") as process:
        await_that(lambda: both.has_table("orders") and both.has_table("copies"), process)
        both.db.put("orders", {"id": "2"})
        await_that(lambda: ids(both, "orders") == ids(both, "copies") == ["1", "2"], process)
        shown = get(port, "/status.json").json["pipelines"]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert [one["pipeline"] for one in shown] == ["orders.copies", "orders.rows"]
    assert (process.returncode, snapshots(out)) == (0, {"orders.rows", "orders.copies"})

    configure(both, "rows", "copies", "more")
    both.db.put("orders", {"id": "3"})
    code, out = catch_up(both)
    assert (code, snapshots(out)) == (0, {"orders.more"})
    assert ids(both, "orders") == ids(both, "copies") == ids(both, "more") == ["1", "2", "3"]

    configure(both, "copies", "more")
    both.db.put("orders", {"id": "4"})
    code, out = catch_up(both)
    assert (code, snapshots(out)) == (0, set())
    assert ids(both, "copies") == ids(both, "more") == ["1", "2", "3", "4"]
    assert ids(both, "orders") == ["1", "2", "3"]
    left = [line for line in both.lines("check", both.config) if "orders.rows" in line["text"]]
    assert [(line["target"], line["verdict"]) for line in left] == [("copies", "note"), ("more", "note")]

    configure(both, "rows", "copies", "more")
    code, out = catch_up(both, "--target", "rows")
    assert (code, snapshots(out), ids(both, "orders")) == (0, set(), ["1", "2", "3", "4"])


def test_a_copy_is_kept_if_the_target_names_its_pipeline(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})
    world.catch_up()
    world.change(f"target:\n  type: postgres\n  url: {world.postgres.url}\n  table: orders\n", targets(world, NAMES))

    code, out, _ = world.call("run", world.config, "--until", "caught-up")
    assert code == 2
    (failed,) = events(out, "pipeline failed")
    assert failed["pipeline"] == "orders.rows"
    assert "is written by the pipeline orders;" in failed["problems"][0]
    assert "correct its pipeline: key" in failed["problems"][0]
    assert snapshots(out) == {"orders.copies"}

    world.change("  rows:\n", "  rows:\n    pipeline: orders\n")
    world.db.put("orders", {"id": "2"})
    code, out = catch_up(world)
    assert (code, snapshots(out)) == (0, set())
    assert ids(world, "orders") == ids(world, "copies") == ["1", "2"]


def test_one_that_fails_does_not_end_the_others_and_check_says_so_before(both: World) -> None:
    with both.postgres.connect() as connection:
        connection.execute("CREATE TABLE copies (id integer)")
    both.db.put("orders", {"id": "2"})

    findings = both.lines("check", both.config)
    code, out = catch_up(both)

    (failed,) = events(out, "pipeline failed")
    assert (code, failed["exit_code"], failed["pipeline"]) == (2, 2, "orders.copies")
    assert both.call("check", both.config)[0] == 2
    wrong = {finding["target"] for finding in findings if finding["verdict"] == "problem"}
    assert wrong == {"copies"}
    assert ids(both, "orders") == ["1", "2"]
    assert both.call("check", both.config, "--target", "rows")[0] == 0


@pytest.mark.parametrize("offline", [[], ["--offline"]])
def test_check_refuses_together_what_run_refuses_together(both: World, offline: list[str]) -> None:
    for name in NAMES:
        folder = both.folder / f"of_{name}"
        folder.mkdir()
        (folder / "hooks.py").write_text("def hook(item):\n    import rules\n    return {'id': rules.which}\n")
        (folder / "rules.py").write_text(f"which = {name!r}\n")
        both.change(f"  {name}:\n", f"  {name}:\n    transform: of_{name}/hooks.py:hook\n")

    code, out, _ = both.call("check", both.config, "--json", *offline)
    assert code == 2
    (wrong,) = [line for line in map(orjson.loads, out.splitlines()) if line["verdict"] == "problem"]
    assert (wrong["target"], wrong["subject"]) == ("copies", "transform")
    code, out = catch_up(both)
    assert code == 2
    (failed,) = events(out, "pipeline failed")
    assert (failed["target"], failed["problems"]) == ("copies", [f"transform: {wrong['text']}"])
    assert both.has_table("orders")
    assert not both.has_table("copies")
    assert both.call("check", both.config, "--target", "copies", *offline)[0] == 0


def test_an_engine_of_one_pipeline_is_refused_for_several_and_runs_each(both: World) -> None:
    path = Path(both.config)
    path.write_text(path.read_text() + "engine: {type: ray}\n")
    expected = (
        "only local runs several targets in one process; start a separate replicator run for each target, with "
        "--target NAME, or add --engine local"
    )

    code, out, _ = both.call("check", both.config, "--offline", "--json")
    assert code == 2
    wrong = [line for line in map(orjson.loads, out.splitlines()) if line["verdict"] == "problem"]
    assert [(line["subject"], line["text"]) for line in wrong] == [("engine", expected)] * 2
    code, out = catch_up(both)
    assert code == 2
    (failed,) = events(out, "pipeline failed")
    assert failed["problems"] == [f"{both.config}: engine: {expected}"]
    assert both.call("check", both.config, "--offline", "--target", "rows")[0] == 0
    assert catch_up(both, "--engine", "local")[0] == 0


def test_status_and_the_commands_for_one_target_are_about_that_one(both: World) -> None:
    code, out, _ = both.call("status", both.config, "--json")
    assert [(line["target"], line["phase"]) for line in map(orjson.loads, out.splitlines())] == [
        ("rows", None),
        ("copies", None),
    ]
    hook = "def hook(item):\n    return {'id': str(item['id']), 'n': 1 // (item['id'] != '1')}\n"
    (both.folder / "hooks.py").write_text(hook)
    both.change("  copies:\n", "  copies:\n    transform: hooks.py:hook\n")
    assert catch_up(both)[0] == 6

    assert [line["parked"] for line in both.lines("status", both.config)] == [0, 1]
    assert both.lines("status", both.config, "--target", "copies")[0]["pipeline"] == "orders.copies"
    assert [len(both.lines("parked", "list", both.config, "--target", name)) for name in NAMES] == [0, 1]
    assert both.call("resync", both.config, "--target", "copies")[0] == 0
    code, out = catch_up(both)
    assert (code, snapshots(out)) == (6, {"orders.copies"})
    previews = [both.lines("preview", both.config, "--target", name)[0] for name in NAMES]
    assert [preview["problem"] is None for preview in previews] == [True, False]


def test_the_estimate_counts_the_shared_reader_once(both: World) -> None:
    first, second = both.lines("estimate", both.config)
    (alone,) = both.lines("estimate", both.config, "--target", "copies")

    assert (first["target"], second["target"]) == ("rows", "copies")
    assert first["month_stream_requests"] == alone["month_stream_requests"]
    assert first["month_stream_requests"][0] > 1e6
    assert second["month_stream_requests"] == second["month_stream_usd"] == [0.0, 0.0]
    assert (
        "those of the target rows: a run of both reads the stream once"
        in both.call("estimate", both.config, "--human")[1]
    )


def test_the_policy_is_for_all_targets_or_for_one(both: World) -> None:
    path = Path(both.config)
    table = "    type: dynamodb\n    region: us-east-1\n    endpoint_url: http://127.0.0.1:1\n    table: {}\n"
    text = path.read_text()
    text = text[: text.index("targets:")] + "targets:\n"
    arn = "arn:aws:dynamodb:us-east-1:123456789012:table/orders/export/01-ab"
    made = "    backfill: {from: export, bucket: here}\n"  # more actions on the same kind of resource than what follows
    exists = f"    backfill: {{from: export, export: '{arn}'}}\n"
    path.write_text(f"{text}  a:\n{table.format('one')}{made}  b:\n{table.format('two')}{exists}")

    whole = statements(both, path)
    alone = {name: statements(both, path, "--target", name) for name in ("a", "b")}
    assert alone["a"] | alone["b"] == whole
    assert alone["a"] != whole != alone["b"]
    sids = [statement["Sid"] for statement in orjson.loads(both.call("policy", both.config)[1])["Statement"]]
    assert len(sids) == len(set(sids))


def statements(world: World, path: Path, *more: str) -> set[tuple[str, str]]:
    """Each action with its resource."""
    document = orjson.loads(world.call("policy", str(path), *more)[1])
    return {(a, r) for statement in document["Statement"] for a in statement["Action"] for r in statement["Resource"]}


def test_infer_proposes_columns_for_the_target_and_writes_them_into_its_section(both: World) -> None:
    code, out, err = both.call("infer", both.config, "--target", "copies")
    assert code == 0, err
    assert list(yaml.safe_load(out)["targets"]) == ["copies"]

    new = both.folder / "new.yaml"
    code, _, err = both.call("infer", both.config, "--target", "copies", "--output", str(new))
    assert code == 0, err
    written = yaml.safe_load(new.read_text())["targets"]
    assert written["rows"] == yaml.safe_load(Path(both.config).read_text())["targets"]["rows"]
    assert list(written["copies"]["tables"]["copies"]) == ["columns"]


def test_the_readmes_targets_are_copied_by_one_run(world: World) -> None:
    """Into Postgres through a hook, and into a DynamoDB table as they are."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    (section,) = re.findall(r"```yaml\n(targets:\n.*?)```", text, re.DOTALL)
    path = Path(world.config)
    config = yaml.safe_load(path.read_text())
    del config["target"]
    config |= yaml.safe_load(section)
    config["targets"]["warehouse"]["url"] = world.postgres.url
    address = config["source"]["endpoint_url"]
    config["targets"]["backup"] |= {"endpoint_url": address, "region": "us-east-1"}  # the same server
    path.write_text(yaml.safe_dump(config))
    (world.folder / "hooks.py").write_text(
        "def order(item):\n    return {'id': item['id'], 'big': item['total'] > 9}\n"
    )
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "total": 10})

    code, _, err = world.shell.run("run", world.config, "--until", "caught-up")

    assert code == 0, err
    assert world.rows("SELECT id, document FROM orders") == [("1", {"id": "1", "big": True})]
    assert [item["total"] for item in world.db.items("orders_backup")] == [10]
    assert (world.folder / "orders.backup.checkpoints").exists()


def test_a_target_whose_rebuild_cannot_be_read_ends_only_its_own_check(both: World) -> None:
    (both.folder / "old.yaml").write_text(Path(both.config).read_text())
    address = f"  copies:\n    type: postgres\n    url: {both.postgres.url}\n"
    both.change(address, "  copies:\n    type: postgres\n    url: postgresql://127.0.0.1:1/x\n    replaces: old.yaml\n")

    code, out, err = both.call("check", both.config, "--json")
    findings = [orjson.loads(line) for line in out.splitlines()]
    assert (code, err) == (8, "")
    assert {f["target"] for f in findings if f["verdict"] == "unreachable"} == {"copies"}
    assert [f["text"] for f in findings if (f["target"], f["subject"]) == ("rows", "pipeline")]
    assert len([f for f in findings if (f["target"], f["subject"]) == ("copies", "source.table")]) == 1


def test_one_target_is_rebuilt_beside_the_others(both: World) -> None:
    hook = "def hook(item):\n    return {'id': str(item['id']), 'made': 'old'}\n"
    (both.folder / "old.py").write_text(hook)
    (both.folder / "new.py").write_text(hook.replace("old", "new"))
    both.change("  copies:\n", "  copies:\n    transform: old.py:hook\n")
    assert catch_up(both)[0] == 0
    path = Path(both.config)
    (both.folder / "old.yaml").write_text(path.read_text())
    both.change("    transform: old.py:hook\n", "    transform: new.py:hook\n    replaces: old.yaml\n")

    assert both.call("rebuild", "start", both.config, "--target", "rows")[0] == 2
    code, out, err = both.call("rebuild", "start", both.config, "--target", "copies")
    assert code == 0, out + err
    with both.shell.start("run", both.config) as process:
        await_that(lambda: [line["phase"] for line in both.lines("status", both.config)] == ["live"] * 3, process)
        assert [line["pipeline"] for line in both.lines("status", both.config)] == [
            "orders.rows",
            "orders.copies",
            "orders.copies@new",
        ]
        notes = [
            line["text"] for line in both.lines("check", both.config) if "no target of this config" in line["text"]
        ]
        switch = ("rebuild", "switch", both.config, "--target", "copies", "--unverified")
        await_that(lambda: both.call(*switch)[0] == 0, process)
        await_that(lambda: both.rows("SELECT document->>'made' FROM copies") == [("new",)], process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, err, notes) == (0, "", [])
    assert snapshots(out) == {"orders.copies@new"}
    with ends(load(str(both.folder / "old.yaml"), target="copies")) as (_, checkpoints):
        checkpoints.save([Save("gap", "s", 0, encode(Gap("trimmed", time.time(), 1024)))])
    code, out, _ = both.call("rebuild", "rollback", both.config, "--target", "copies", "--human")
    assert (code, "replicator resync old.yaml --target copies\n" in out) == (3, True), out


@pytest.mark.parametrize("end", ["cancel", "finish"])
def test_after_a_rebuild_the_shared_page_has_the_copy_that_is_left_and_no_failure(both: World, end: str) -> None:
    path, port = Path(both.config), free_port()
    assert catch_up(both)[0] == 0
    (both.folder / "old.yaml").write_text(path.read_text())
    (both.folder / "new.py").write_text("def hook(item):\n    return {'id': str(item['id']), 'made': 'new'}\n")
    both.change("  copies:\n", "  copies:\n    transform: new.py:hook\n    replaces: old.yaml\n")
    step = ("rebuild", both.config, "--target", "copies")
    assert both.call("rebuild", "start", *step[1:])[0] == 0
    with both.shell.start("run", both.config, "--listen", f"127.0.0.1:{port}") as process:
        await_that(lambda: [line["phase"] for line in both.lines("status", both.config)] == ["live"] * 3, process)
        assert [name for name, _ in shown(port)] == ["orders.copies", "orders.copies@new", "orders.rows"]
        if end == "finish":
            await_that(lambda: both.call("rebuild", "switch", *step[1:], "--unverified")[0] == 0, process)
        await_that(lambda: both.call("rebuild", end, *step[1:])[0] == 0, process)
        await_that(lambda: shown(port) == [("orders.copies", "live"), ("orders.rows", "live")], process)
        assert get(port, "/healthz").status == 200
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")


def shown(port: int) -> list[tuple[str, str]]:
    """The pipelines on the shared page, and their phases."""
    return [(one["pipeline"], one["phase"]) for one in get(port, "/status.json").json["pipelines"]]


def test_a_target_that_fails_before_its_pipeline_begins_is_on_the_shared_page(both: World) -> None:
    """Its hook would get the modules of another one's."""
    port = free_port()
    for name in NAMES:
        folder = both.folder / f"of_{name}"
        folder.mkdir()
        (folder / "hooks.py").write_text("def hook(item):\n    import rules\n    return {'id': rules.which}\n")
        (folder / "rules.py").write_text(f"which = {name!r}\n")
        both.change(f"  {name}:\n", f"  {name}:\n    transform: of_{name}/hooks.py:hook\n")
    with both.shell.start("run", both.config, "--listen", f"127.0.0.1:{port}") as process:
        await_that(lambda: both.has_table("orders"), process)
        await_that(lambda: shown(port) == [("orders.copies", "stopped"), ("orders.rows", "live")], process)
        assert "orders.copies" in get(port, "/healthz").json["reason"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 2


@pytest.mark.parametrize(
    ("old", "problem"),
    [
        (
            "targets: {rows: {type: postgres, url: postgresql://127.0.0.1:1/x, table: a}}",
            "old.yaml has no target copies: i",
        ),
        ("pipeline: other", "old.yaml is of the pipeline other.copies, not of orders.copies"),
    ],
)
def test_the_old_config_of_a_rebuild_needs_the_target_of_the_same_name(both: World, old: str, problem: str) -> None:
    text = Path(both.config).read_text()
    name = old.partition(":")[0]
    changed = re.sub(rf"^{name}:.*?(?=^\w|\Z)", old + "\n", text, flags=re.DOTALL | re.MULTILINE)
    (both.folder / "old.yaml").write_text(changed)
    both.change("  copies:\n", "  copies:\n    replaces: old.yaml\n")

    code, _, err = both.call("rebuild", "start", both.config, "--target", "copies")
    assert (code, problem in err) == (2, True), err


def test_targets_may_share_a_table_of_checkpoints_and_a_file_of_hooks(world: World) -> None:
    path = Path(world.config)
    text = path.read_text()
    address = yaml.safe_load(text)["source"]["endpoint_url"]
    place = f"region: us-east-1, endpoint_url: '{address}', table"
    path.write_text(
        text[: text.index("target:")] + f"checkpoints: {{type: dynamodb, {place}: places}}\n"
        "targets:\n"
        f"  a: {{type: dynamodb, create: true, {place}: copy_a, transform: 'hooks.py:one'}}\n"
        f"  b: {{type: dynamodb, create: true, {place}: copy_b, transform: 'hooks.py:two'}}\n"
    )
    (world.folder / "hooks.py").write_text(
        "def one(item):\n    return {'n': 1}\n\n\ndef two(item):\n    return {'n': 2}\n"
    )
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1"})

    assert world.call("check", world.config, "--create")[0] == 0
    code, out = catch_up(world)

    assert code == 0, out
    assert [world.db.items(table)[0]["n"] for table in ("copy_a", "copy_b")] == [1, 2]
    assert {item["pipeline"] for item in world.db.items("places")} >= {"orders.a", "orders.b"}


def test_a_target_alone_needs_no_port_that_the_run_of_all_has(both: World) -> None:
    """The others follow on while it is resynced."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        both.change("targets:", f"monitoring: {{listen: '127.0.0.1:{taken.getsockname()[1]}'}}\ntargets:")
        alone = ("run", both.config, "--target", "rows", "--until", "caught-up")
        code, out, _ = both.call(*alone)
        (warned,) = events(out, "monitoring disabled for target")
        refused_port, _, err = both.call(*alone, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
        together, _, _ = both.call("run", both.config, "--until", "caught-up")

    assert code == 0
    assert "is in use by another process" in warned["reason"]
    assert "--listen" in warned["do"]
    assert (refused_port, together) == (2, 2)
    assert "is in use by another process" in err


def test_the_commands_that_messages_advise_name_the_target(both: World) -> None:
    hook = "def hook(item):\n    return {'id': str(item['id']), 'n': 1 // (item['id'] != '1')}\n"
    (both.folder / "hooks.py").write_text(hook)
    both.change("  copies:\n", "  copies:\n    transform: hooks.py:hook\n")

    for alone in ((), ("--target", "copies")):
        code, out, err = both.shell.run("run", both.config, "--until", "caught-up", *alone)
        assert (code, "replicator parked list CONFIG --target copies;" in out + err) == (6, True), out + err
    with ends(load(both.config, target="copies")) as (_, checkpoints):
        checkpoints.save([Save("gap", "s", 0, encode(Gap("trimmed", 0.0, 1024)))])
    for human in ("--human", "--json"):
        code, out, _ = both.call("check", both.config, human)
        assert (code, "replicator resync CONFIG --target copies" in out) == (3, True), out
        assert "CONFIG --target rows" not in out
    code, out, err = both.shell.run("cutover", both.config, "--target", "copies", "--human")
    assert (code, "replicator resync CONFIG --target copies" in out) == (3, True), out + err


def test_check_says_of_each_target_how_it_would_start_and_facts_of_the_source_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = [Finding("source.table", "ok", "orders"), Finding("pipeline", "ok", "run will start with a backfill")]
    check = importlib.import_module("replicator.cli.check")
    check._print(both, "rows", ())
    check._print(both, "copies", both)
    assert capsys.readouterr().out.splitlines() == [
        "target rows",
        "ok    source.table: orders",
        "ok    pipeline: run will start with a backfill",
        "target copies",
        "ok    pipeline: run will start with a backfill",
    ]


def test_check_says_which_targets_store_what_an_opposite_pipeline_adds(tmp_path: Path) -> None:
    config = {
        "pipeline": "orders",
        "source": {"table": "orders"},
        "targets": {
            "back": {"type": "dynamodb", "region": "eu-west-1", "table": "copies", "loops": True},
            "rows": {"type": "postgres", "url": "postgresql://127.0.0.1:1/x", "table": "orders"},
        },
    }
    (tmp_path / "orders.yaml").write_text(yaml.safe_dump(config))
    arguments = ["check", str(tmp_path / "orders.yaml"), "--offline", "--json"]
    result = CliRunner().invoke(main, arguments)
    found = [orjson.loads(line) for line in result.stdout.splitlines()]
    ((verdict, target, text, do),) = [
        (one["verdict"], one["target"], one["text"], one["do"]) for one in found if "opposite pipeline" in one["text"]
    ]
    assert (verdict, target) == ("note", "rows")
    assert "_replicator_deleted" in text
    assert "docs/several-targets.md#alongside-an-opposite-pipeline" in do
    assert "opposite pipeline" not in CliRunner().invoke(main, [*arguments, "--target", "back"]).stdout


def test_the_documented_hook_leaves_out_what_an_opposite_pipeline_adds() -> None:
    text = Path("docs/several-targets.md").read_text()
    code = text.partition("## Alongside an opposite pipeline")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert names["hook"]({"id": "1", "n": 2, "_replicator_version": 3, "_replicator_mark": "m"}) == {"id": "1", "n": 2}
    assert names["hook"]({"id": "1", "_replicator_version": 3, "_replicator_deleted": True}) is None


def test_on_aws_lambda_the_estimate_has_the_requests_of_each_function(both: World) -> None:
    arguments = ("estimate", both.config, "--changes", "5")
    shared = "those of the target rows: a run of both reads the stream once"
    assert shared in both.call(*arguments, "--human")[1]
    Path(both.config).write_text(Path(both.config).read_text() + "engine: {type: lambda}\n")
    out = both.call(*arguments, "--human")[1]
    assert shared not in out
    lines = [line for line in out.splitlines() if line.startswith("  requests ")]
    assert (len(lines), len(set(lines)), "$" in lines[0]) == (2, 1, True), lines
    first, second = (line["month_stream_requests"] for line in both.lines(*arguments))
    assert first == second


def test_the_estimate_of_a_target_without_a_backfill_has_none(both: World) -> None:
    both.change("  copies:\n", "  copies:\n    backfill: {enabled: false}\n")
    out = both.call("estimate", both.config, "--human")[1]
    first, _, second = out.partition("target copies")
    assert "  read units " in first
    assert "backfill         none (backfill.enabled: false)" in second
    assert "read units" not in second
    with_it, without = both.lines("estimate", both.config)
    assert with_it["backfill_documents"][1] > 0
    assert [without[f"backfill_{name}"] for name in ("documents", "read_units", "seconds")] == [[0, 0]] * 3


def test_a_target_that_was_removed_as_documented_begins_again(both: World) -> None:
    """Nothing of it is left, in counts and in a history neither."""
    table = "    table: copies\n"
    both.change(table, "    tables: {copies: {history: true}}\n")
    for id in "234":
        both.db.put("orders", {"id": id})
    assert catch_up(both)[0] == 0
    read = both.lines("status", both.config, "--target", "copies")[0]["counts"]["read"]
    text = Path(both.config).read_text()
    configure(both, "rows")
    assert catch_up(both)[0] == 0
    section = Path("docs/several-targets.md").read_text().partition("## Removing a target")[2]
    statements = section.partition("```sql\n")[2].partition("```")[0]
    statements = statements.replace("shop.warehouse", "orders.copies").replace("products", "copies")
    with both.postgres.connect() as client:
        client.execute(statements.encode())
    assert not any(both.has_table(name) for name in ("copies", "copies_history", "copies_history_base"))
    Path(both.config).write_text(text)
    assert both.call("check", both.config)[0] == 0
    assert catch_up(both)[0] == 0
    assert both.lines("status", both.config, "--target", "copies")[0]["counts"]["read"] == read
