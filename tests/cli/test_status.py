"""``replicator status`` of several pipelines, and of those whose servers are down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path

import orjson
import pytest

from replicator.config import settings
from replicator.engine.assembly import ends
from replicator.engine.several import worst
from replicator.state import Owner, Save, Verified, encode
from replicator.testing.proxy import Proxy
from replicator.testing.servers.programs import free_port
from tests.cli.command_line import World
from tests.monitoring.client import monitored
from tests.monitoring.test_run import fill

NOWHERE = "postgresql://me@127.0.0.1:1/none"
SEVERE = [((0,), 0), ((0, 8), 8), ((6, 8), 6), ((6, 7), 7), ((7, 2), 2), ((2, 3), 3), ((3, 6, 7, 0), 3), ((4, 8), 4)]


def copy(world: World, name: str, *changes: tuple[str, str]) -> str:
    """Another config beside the world's own."""
    text = Path(world.config).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = world.folder / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def claimed(config: str) -> str:
    """A pipeline that has begun and stopped."""
    with ends(settings.load(config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))
    return config


def test_several_configs_are_one_line_each_and_the_most_severe_code(world: World) -> None:
    fill(world)
    world.catch_up()
    down = copy(
        world, "down", (world.postgres.url, "postgresql://me@127.0.0.1:1/none"), ("pipeline: orders", "pipeline: far")
    )
    unknown = copy(world, "unknown", ("pipeline: orders", "pipeline: never-ran"))
    wrong = copy(world, "wrong", ("pipeline: orders", "pipeline: ''"))
    configs = [world.config, down, unknown, wrong]
    code, out, err = world.call("status", *configs, "--json")
    lines = [orjson.loads(line) for line in out.splitlines()]

    assert (code, err) == (2, ""), "wrong configs before servers that are down, and those before stopped runs"
    assert [line["config"] for line in lines] == configs
    narrow = world.call("status", *configs, "--human")[1]
    assert re.search(r"^orders +stopped ", narrow, re.MULTILINE), "long reasons of others leave room for the rest"
    assert [line["pipeline"] for line in lines] == ["orders", "far", "never-ran", None]
    assert [line["phase"] for line in lines] == ["stopped", None, None, None]
    assert [line["exit_code"] for line in lines] == [7, 8, 2, 2]
    assert lines[0]["counts"]["read"] >= 20
    assert "cannot be reached" in lines[1]["problems"][0]
    assert "there is no pipeline never-ran" in lines[2]["problems"][0]
    assert "pipeline: must be 1 to 63 letters" in lines[3]["problems"][0]


def test_for_people_each_is_a_line_with_the_reason(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with ends(settings.load(claimed(world.config))) as (_, checkpoints):
        found = Verified(1.0, 2.0, 1024, "full", 4, differences=3, repaired=1, ended=2.0)
        checkpoints.save([Save("verified", "run", 0, encode(found))])
    down = copy(
        world, "down", (world.postgres.url, "postgresql://me@127.0.0.1:1/none"), ("pipeline: orders", "pipeline: far")
    )
    alone = world.call("status", world.config, "--human")[1]
    assert "3 differences, 1 of them repaired; the pass ended" in re.sub(r"\s+", " ", alone)
    code, out, _ = world.call("status", world.config, down, "--human")
    heading, first, second = out.splitlines()

    assert code == 7
    assert heading.split() == ["pipeline", "phase", "lag", "left", "records", "parked", "gaps"]
    assert first.split()[:7] == ["orders", "stopped", "unknown", "unknown", "unknown", "0", "0"]
    assert first.rstrip().endswith("  2 differences: replicator verify")
    assert second.startswith("far       unknown")
    assert "Postgres at 127.0.0.1:1/none cannot be reached" in second


def test_without_a_terminal_no_reason_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    unknown = copy(world, "unknown", ("pipeline: orders", "pipeline: never-ran"))
    out = world.call("status", claimed(world.config), unknown, "--human")[1]
    assert (
        "if the pipeline is new, start it with: replicator run CONFIG. A first run that waits for a server has" in out
    )


def test_no_exit_code_still_reports_what_could_not_be_read(world: World) -> None:
    claimed(world.config)
    other = claimed(copy(world, "other", ("pipeline: orders", "pipeline: other")))
    unknown = copy(world, "unknown", ("pipeline: orders", "pipeline: never-ran"))

    assert world.call("status", world.config, other, "--no-exit-code")[0] == 0
    assert world.call("status", world.config, unknown, "--no-exit-code")[0] == 2


@pytest.mark.parametrize(("codes", "code"), SEVERE)
def test_a_gap_is_more_severe_than_what_time_fixes(codes: Sequence[int], code: int) -> None:
    assert {worst(order) for order in permutations(codes)} == {code}


def test_with_checkpoints_elsewhere_the_target_may_be_down(mirror: World) -> None:
    """Everything that status shows is in the checkpoints."""
    for target in (
        "type: elasticsearch\n  url: http://127.0.0.1:1",
        "type: dynamodb\n  region: us-east-1\n  endpoint_url: http://127.0.0.1:1",
    ):
        config = copy(mirror, "elsewhere", (f"type: sqlite\n  path: {mirror.folder / 'rows.db'}", target))
        claimed(config)
        code, out, err = mirror.call("status", config, "--json")

        assert (code, err) == (7, "")
        assert orjson.loads(out)["phase"] == "stopped"
        (mirror.folder / "orders.checkpoints").unlink()


def test_while_the_database_is_down_the_run_itself_is_asked(world: World) -> None:
    fill(world)
    port = int(world.postgres.url.rpartition(":")[2].partition("/")[0])
    listen = free_port()
    with Proxy("127.0.0.1", port) as proxy:
        world.change(f":{port}/", f":{proxy.port}/")
        world.change("target:", f"monitoring: {{listen: '127.0.0.1:{listen}'}}\ntarget:")
        with monitored(world, port=listen) as run:
            run.live()
            proxy.refuse()
            proxy.cut()
            run.eventually(lambda: run.get("/status.json").json["waiting_for"], "the run waits")
            code, out, err = world.call("status", world.config, "--json")
            several, lines, _ = world.call("status", world.config, world.config, "--json")
            proxy.heal()
        alone, nothing, unreachable = _while_down(world, proxy.port)

    values = orjson.loads(out)
    assert code == several == 7
    assert values["counts"]["read"] >= 20
    assert values["waiting_for"].startswith("Postgres at 127.0.0.1:")
    assert err.startswith("the checkpoints cannot be read (Postgres at ")
    assert err.endswith("this is what the run itself reports\n")
    assert orjson.loads(lines.splitlines()[0])["problems"]
    assert (alone, nothing) == (8, "")
    assert "cannot be reached" in unreachable


def _while_down(world: World, port: int) -> tuple[int, str, str]:
    """Without a run that could be asked."""
    world.change(f":{port}/", ":1/")
    return world.call("status", world.config, "--json")
