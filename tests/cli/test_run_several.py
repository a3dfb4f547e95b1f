"""``replicator run`` with several configs: their pipelines run in one process, and do not depend on one another."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.cli.run import _in_this_process, _loaded
from replicator.config.settings import load_each
from replicator.engine import run as engine_run
from replicator.engine import several
from tests.cli.command_line import World
from tests.cli.test_run import _read, await_that

NAMES = ("orders", "users", "events")


@pytest.fixture
def configs(world: World) -> list[str]:
    """Three configs, each of a table with as many items as its name has letters."""
    text = Path(world.config).read_text()
    paths = []
    for name in NAMES:
        world.db.create_table(name)
        for n in range(len(name)):
            world.db.put(name, {"id": str(n)})
        path = world.folder / f"{name}.yaml"
        path.write_text(text.replace("orders", name))
        paths.append(str(path))
    return paths


def copied(world: World) -> dict[str, int]:
    return {
        name: world.rows(f"SELECT count(*) FROM {name}")[0][0] if world.has_table(name) else 0  # noqa: S608
        for name in NAMES
    }


def events(out: str, name: str) -> list[dict[str, Any]]:
    return [event for event in map(orjson.loads, out.splitlines()) if event["event"] == name]


ALL = {name: len(name) for name in NAMES}


def caught_up(world: World, configs: Sequence[str], *more: str) -> tuple[int, str]:
    code, out, _ = world.call("run", *configs, "--until", "caught-up", *more)
    return code, out


def test_each_is_copied_and_each_event_names_its_pipeline(world: World, configs: list[str]) -> None:
    code, out = caught_up(world, configs)

    assert code == 0
    assert copied(world) == ALL
    assert {event["pipeline"] for event in events(out, "caught up")} == set(NAMES)
    assert {event["pipeline"] for event in events(out, "progress")} == set(NAMES)
    assert {event["pipeline"] for event in events(out, "snapshot started")} == set(NAMES)


def test_one_that_fails_does_not_end_the_others(world: World, configs: list[str]) -> None:
    Path(configs[0]).write_text(
        Path(configs[0]).read_text().replace("table: orders\n  region", "table: gone\n  region")
    )
    code, out = caught_up(world, configs)

    (failed,) = events(out, "pipeline failed")
    assert code == failed["exit_code"] == 2
    assert failed["pipeline"] == "orders"
    assert "gone" in failed["problems"][0]
    assert copied(world) == {**ALL, "orders": 0}


def test_a_gap_in_one_decides_the_exit_code_and_says_how_to_repair_it(world: World, configs: list[str]) -> None:
    caught_up(world, configs)
    world.db.put("users", {"id": "lost"})
    world.db.trim("users", world.db.open_shards("users")[0], 100)
    world.db.put("orders", {"id": "new"})
    (world.folder / "broken.yaml").write_text("pipeline: broken\n")
    code, out = caught_up(world, [*configs, str(world.folder / "broken.yaml")])

    assert code == 3
    (gap,) = [event for event in events(out, "pipeline failed") if event["exit_code"] == 3]
    assert (gap["pipeline"], gap["do"]) == ("users", "replicator resync CONFIG")
    assert copied(world) == {**ALL, "orders": len("orders") + 1}


def test_a_config_that_is_wrong_is_named_and_the_others_run(world: World, configs: list[str]) -> None:
    Path(configs[1]).write_text("pipeline: users\nsource: {}\n")
    code, out = caught_up(world, configs)

    assert code == 2
    (failed,) = events(out, "pipeline failed")
    assert failed["config"] == configs[1]
    assert "source.table" in "".join(failed["problems"])
    assert copied(world) == {**ALL, "users": 0}


def test_one_that_wants_workers_of_its_own_is_named_and_the_others_run(world: World, configs: list[str]) -> None:
    Path(configs[0]).write_text(Path(configs[0]).read_text() + "engine: {type: ray}\n")

    code, out = caught_up(world, configs)

    assert code == 2
    assert copied(world) == ALL | {"orders": 0}
    (failed,) = events(out, "pipeline failed")
    assert "engine: only local runs several pipelines" in failed["problems"][0]
    code, out = caught_up(world, configs, "--engine", "local")
    assert (code, copied(world)) == (0, ALL)


def test_two_configs_of_the_same_pipeline_are_not_run_against_each_other(world: World, configs: list[str]) -> None:
    twin = world.folder / "twin.yaml"
    twin.write_text(Path(configs[0]).read_text())
    code, out = caught_up(world, [*configs, str(twin)])

    assert code == 2
    (failed,) = events(out, "pipeline failed")
    assert failed["config"] == str(twin)
    assert failed["problems"] == [f"{twin}: pipeline 'orders' is also that of {configs[0]}; names must differ"]
    assert copied(world) == ALL


def test_a_config_whose_hook_would_get_the_file_of_another_is_refused_and_both_files_are_named(
    world: World, configs: list[str]
) -> None:
    for path, name in zip(configs, NAMES, strict=True):
        folder = world.folder / f"of {name}"
        folder.mkdir()
        (folder / "hooks.py").write_text("def hook(item):\n    import rules\n    return {'id': rules.which}\n")
        (folder / "rules.py").write_text(f"which = {name!r}\n")
        text = Path(path).read_text().replace("target:", f"transform: 'of {name}/hooks.py:hook'\ntarget:")
        Path(path).write_text(text)
    code, out = caught_up(world, configs)

    assert code == 2
    refused = events(out, "pipeline failed")
    assert [event["config"] for event in refused] == configs[1:]
    for event, name in zip(refused, NAMES[1:], strict=True):
        for file in (world.folder / "of orders" / "rules.py", world.folder / f"of {name}" / "rules.py"):
            assert str(file) in event["problems"][0]
    assert copied(world) == {"orders": len("orders"), "users": 0, "events": 0}


def test_a_signal_ends_all_of_them_in_good_order(world: World, configs: list[str]) -> None:
    with world.shell.start("run", *configs) as process:
        await_that(lambda: copied(world) == ALL, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")
    assert {event["pipeline"] for event in events(out, "stopped")} == set(NAMES)


def test_pipelines_that_wait_for_a_server_and_are_stopped_have_not_caught_up(world: World, configs: list[str]) -> None:
    world.postgres.server.stop("immediate")
    with world.shell.start("run", *configs, "--until", "caught-up") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if orjson.loads(line)["event"] == "waiting":
                break
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    world.postgres.server.start()
    assert (process.returncode, "replicator run CONFIG... --until caught-up" in err) == (7, True), err


def test_pipelines_that_are_stopped_before_they_caught_up_do_not_exit_with_0(world: World, configs: list[str]) -> None:
    slow = Path(configs[0])
    (world.folder / "hooks.py").write_text("import time\n\ndef hook(item):\n    time.sleep(1000)\n")
    slow.write_text(slow.read_text().replace("target:", "transform: hooks.py:hook\ntarget:"))
    with world.shell.start("run", *configs, "--until", "caught-up") as process:
        await_that(lambda: copied(world) == {**ALL, "orders": 0}, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 7, err


def test_two_of_the_same_table_share_one_reader_and_each_gets_every_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "before"})
    copy = world.folder / "copy.yaml"
    copy.write_text(
        Path(world.config)
        .read_text()
        .replace("pipeline: orders", "pipeline: copy")
        .replace("  table: orders\n", "  table: copy\n")
        .replace("source:\n  table: copy", "source:\n  poll_interval: 100ms\n  table: orders")
    )
    returned: list[str] = []
    call = world.db.call

    def counted(operation: str, request: Mapping[str, Any]) -> bytes:
        body = call(operation, request)
        if operation == "GetRecords":
            returned.extend(record["dynamodb"]["SequenceNumber"] for record in orjson.loads(body)["Records"])
        return body

    def has_all(items: int) -> bool:
        tables = ("orders", "copy")
        return all(world.has_table(t) and world.rows(f"SELECT count(*) FROM {t}") == [(items,)] for t in tables)  # noqa: S608

    monkeypatch.setattr(world.db, "call", counted)
    with world.shell.start("run", world.config, str(copy)) as process:
        await_that(lambda: has_all(1), process)
        for n in range(8):
            world.db.put("orders", {"id": str(n)})
            await_that(partial(has_all, n + 2), process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)

    assert process.returncode == 0
    assert len(returned) <= 8 + 3, "but for the first page, and records at which iterators open"


def test_a_hook_that_never_returns_is_reported_and_delays_only_its_own_pipeline(
    world: World, configs: list[str]
) -> None:
    """Nor does it hide that another has failed."""
    (world.folder / "broken.yaml").write_text("pipeline: broken\n")
    (world.folder / "hooks.py").write_text("def hook(item):\n    while True:\n        pass\n")
    slow = Path(configs[0])
    slow.write_text(slow.read_text().replace("target:", "hook_timeout: 0.2\ntransform: hooks.py:hook\ntarget:"))
    seen: list[str] = []
    with world.shell.start("run", *configs, str(world.folder / "broken.yaml")) as process:
        await_that(lambda: copied(world) == {**ALL, "orders": 0}, process)
        assert process.stdout is not None
        while not seen or "hook does not return" not in seen[-1]:
            seen.append(process.stdout.readline())
        process.terminate()
        process.communicate(timeout=30)

    event = orjson.loads(seen[-1])
    assert (event["pipeline"], event["hook_timeout"]) == ("orders", 0.2)
    assert "start a separate replicator run for it" in event["do"]
    assert process.returncode == 2


def test_one_whose_items_are_parked_ends_with_6_and_the_others_are_copied(world: World, configs: list[str]) -> None:
    (world.folder / "hooks.py").write_text("def hook(item):\n    raise ValueError\n")
    path = Path(configs[0])
    path.write_text(path.read_text().replace("target:", "transform: hooks.py:hook\ntarget:"))
    code, out = caught_up(world, configs)

    assert code == 6
    assert [event["pipeline"] for event in events(out, "pipeline failed")] == ["orders"]
    assert copied(world) == {**ALL, "orders": 0}


def test_a_terminal_shows_a_line_for_each(world: World, configs: list[str]) -> None:
    screen, terminal = os.openpty()
    command = [sys.executable, "-m", "replicator", "run", *configs, "--until", "caught-up"]
    environ = {**os.environ, **world.environ, "TERM": "xterm", "COLUMNS": "140"}
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environ) as process:
        os.close(terminal)
        shown = b"".join(iter(lambda: _read(screen), b"")).decode()
    os.close(screen)

    assert process.returncode == 0, shown
    for part in ("3 pipelines", "retention left", *NAMES, "live"):
        assert part in shown


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux shows how much memory a process ever had")
def test_twenty_take_less_than_four_times_the_memory_of_one(world: World) -> None:
    text, configs = Path(world.config).read_text(), []
    for n in range(20):
        world.db.create_table(f"table{n}")
        world.db.put(f"table{n}", {"id": "1"})
        configs.append(str(world.folder / f"{n}.yaml"))
        Path(configs[-1]).write_text(text.replace("orders", f"table{n}"))

    def peak(*run: str) -> int:
        live: set[str] = set()
        with world.shell.start_interpreter("run", *run) as process:
            assert process.stdout is not None
            while len(live) < len(run):
                event = orjson.loads(process.stdout.readline())
                if event["event"] == "progress" and event["phase"] == "live":
                    live.add(event.get("pipeline", "the only one"))
            (most,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            process.terminate()
            process.communicate(timeout=60)
        return int(most)

    assert peak(*configs) < 4 * peak(configs[0])


TO_SEARCH = """\
source: {table: products, region: eu-west-1}
target: {type: elasticsearch, url: 'http://127.0.0.1:1', table: %s}
"""


def test_two_configs_that_replace_a_third_one_leave_it_out_once(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("pipeline: old\n" + TO_SEARCH % "old")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"pipeline: {name}\nreplaces: old.yaml\n" + TO_SEARCH % name)
    codes: list[int] = []
    paths = [str(tmp_path / f"{name}.yaml") for name in ("old", "one", "two")]
    loaded = _loaded(paths, lambda path: load_each(path, {}), codes)
    assert [config.pipeline for config in loaded] == ["one", "two"]
    assert set(codes) == {2}


@pytest.mark.parametrize("targets_of", ["new", "old"])
def test_a_config_with_one_target_and_the_targets_that_replace_it_are_not_run_against_each_other(
    tmp_path: Path, targets_of: str
) -> None:
    one = "target: {{type: elasticsearch, url: 'http://127.0.0.1:1', table: t{}}}\n{}"
    several = "targets:\n  a: {{type: elasticsearch, url: 'http://127.0.0.1:1', table: t{}{}}}\n"
    index = ", tables: {t: {index: t-2}}"
    for name in ("old", "new"):
        replaces = "replaces: old.yaml" if name == "new" else ""
        text = several if name == targets_of else one
        more = f", {replaces}" if replaces and text == several else replaces
        body = text.format("", more).replace(", table: t", index if name == "new" else ", table: t")
        (tmp_path / f"{name}.yaml").write_text(
            f"pipeline: {name}\nsource: {{table: products, region: eu-west-1}}\n{body}"
        )
    codes: list[int] = []
    paths = [str(tmp_path / f"{name}.yaml") for name in ("old", "new")]
    loaded = _loaded(paths, lambda path: load_each(path, {}), codes)
    assert [config.path.name for config in loaded] == ["new.yaml"]
    assert codes == [2]


def test_another_engine_on_the_command_line_counts_before_anything_is_refused(tmp_path: Path) -> None:
    """check advises --engine local where the engine of the file runs one pipeline only."""
    path = tmp_path / "shop.yaml"
    path.write_text(
        "pipeline: shop\nsource: {table: products, region: eu-west-1}\nengine: {type: lambda}\ntargets:\n"
        "  a: {type: postgres, url: postgresql://127.0.0.1:1/y, table: a}\n"
        "  b: {type: postgres, url: postgresql://127.0.0.1:1/y, table: b}\n"
    )
    result = CliRunner().invoke(main, ["run", str(path), "--json"])
    assert result.exit_code == 2
    assert "add --until backfilled --target NAME to copy what exists, or --engine local" in result.output
    result = CliRunner().invoke(main, ["run", str(path), "--until", "backfilled", "--json"])
    assert result.exit_code == 2
    assert "hand over one pipeline at a time, each with a command of its own; with several targets" in result.output
    assert len(_in_this_process(load_each(path, {}, engine="local"))) == 2


@pytest.mark.parametrize(("stopped", "code"), [("once all have ended", 0), ("before", 7)])
def test_pipelines_that_all_caught_up_exit_with_0_also_if_a_signal_comes_as_the_last_one_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str, code: int
) -> None:
    def run_each(*given: Any) -> None:
        if stopped == "before":
            stop.set()
        each(*given)
        stop.set()

    stop, each = threading.Event(), several.run_each
    monkeypatch.setattr(several, "run_each", run_each)
    monkeypatch.setattr(engine_run, "run", lambda *_, **__: None)
    monkeypatch.setattr(sys.modules["replicator.cli.run"], "stop_on_signals", lambda *_: stop)
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(f"pipeline: {name}\n" + TO_SEARCH % name)
    paths = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    result = CliRunner().invoke(main, ["run", *paths, "--json", "--until", "caught-up"])
    assert result.exit_code == code, result.output
