"""``replicator rebuild`` beside a real run and a reader that never stops, into a real Postgres."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.engine.generations import resolved
from replicator.operations import rebuild
from replicator.state import Gap, Heartbeat, Repair, ResyncRequest, Save, Verified, encode
from tests.cli.command_line import World
from tests.cli.test_run import await_that

DOCUMENT = Path(__file__).parents[2] / "docs" / "rebuilding.md"
BLOCKS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

OLD = "def hook(item):\n    assert item['n'] != 1000\n    return {'made': 'old', 'n': int(item['n'])}\n"
NEW = "def hook(item):\n    return {'made': 'new', 'n': int(item['n']) * 10}\n"
ITEMS = 50


def use(world: World, hook: str) -> None:
    """Keep the config and its hook under other names, and change both, as docs/rebuilding.md says."""
    folder = world.folder
    (folder / "hooks-old.py").write_text((folder / "hooks.py").read_text())
    text = (folder / "orders.yaml").read_text()
    (folder / "orders-old.yaml").write_text(text.replace("hooks.py", "hooks-old.py"))
    (folder / "orders.yaml").write_text(text + "replaces: orders-old.yaml\n")
    (folder / "hooks.py").write_text(hook)


@pytest.fixture
def orders(world: World) -> World:
    """A copy that the old hook made, and the config of a new one."""
    world.db.create_table("orders")
    for n in range(ITEMS):
        world.db.put("orders", {"id": f"{n:02}", "n": n})
    world.hook(OLD)
    world.catch_up()
    use(world, NEW)
    return world


@contextmanager
def running(world: World) -> Iterator[subprocess.Popen[str]]:
    with world.shell.start("run", world.config, "--json") as process:
        yield process
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


def phases(world: World) -> list[str]:
    return [str(line["phase"]) for line in world.lines("status", world.config)]


def done(world: World, step: str, *more: str) -> None:
    code, out, err = world.call("rebuild", step, world.config, *more)
    assert code == 0, out + err


@dataclass
class Reader:
    """Reads a table and a view over it all the time, until it is stopped; each answer is of one copy, and whole."""

    url: str
    reads: int = 0
    seen: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        queries = [f"SELECT document->>'made', count(*) FROM {name} GROUP BY 1" for name in ("orders", "seen")]  # noqa: S608
        with psycopg.connect(self.url, autocommit=True) as connection:
            while not self.stop.is_set():
                for query in queries:
                    self._take(connection, query)

    def _take(self, connection: psycopg.Connection[Any], query: str) -> None:
        try:
            found = connection.execute(query.encode()).fetchall()
        except psycopg.Error as e:
            self.errors.append(str(e))
            return
        self.reads += 1
        if len(found) != 1 or found[0][1] < ITEMS:
            self.errors.append(str(found))
        elif not self.seen or self.seen[-1] != found[0][0]:
            self.seen.append(found[0][0])


@contextmanager
def reading(world: World) -> Iterator[Reader]:
    with world.postgres.connect() as connection:
        connection.execute("CREATE VIEW seen AS SELECT id, document FROM orders")
    reader = Reader(world.postgres.url)
    thread = threading.Thread(target=reader)
    thread.start()
    try:
        yield reader
    finally:
        reader.stop.set()
        thread.join()


def documents(world: World, table: str) -> dict[str, Any]:
    return dict(world.rows(f"SELECT id, document FROM {table}"))  # noqa: S608


def expected(world: World, made: str, factor: int) -> dict[str, Any]:
    items = [f"{n:02}" for n in range(ITEMS)], range(ITEMS)
    more = [f"more {n}" for n in range(20)], range(20)
    return {key: {"made": made, "n": n * factor} for part in (items, more) for key, n in zip(*part, strict=True)}


def exchanged(world: World, process: subprocess.Popen[str], numbers: range) -> None:
    """Switch and roll back by turns, each time as soon as the command agrees, and change an item after each."""
    for n in numbers:
        step, how = ("rollback", "--unchecked") if n % 2 else ("switch", "--unverified")
        await_that(lambda: refusal(world, step, how) == (0, []), process)  # noqa: B023  # not while it catches up
        world.db.put("orders", {"id": f"more {n}", "n": n})


def test_twenty_switches_and_rollbacks_beside_a_run_and_a_reader_that_never_stops(orders: World) -> None:
    """The run finds itself fenced off in whatever it does, and is killed on the way."""
    done(orders, "start")
    with reading(orders) as reader:
        with orders.shell.start("run", orders.config, "--json") as killed:
            await_that(lambda: phases(orders) == ["live", "live"], killed)
            exchanged(orders, killed, range(9))
            killed.kill()
            killed.communicate()
        with running(orders) as process:
            exchanged(orders, process, range(9, 20))
            await_that(lambda: documents(orders, "orders") == expected(orders, "old", 1), process)
            await_that(lambda: documents(orders, "orders_new") == expected(orders, "new", 10), process)
    assert reader.errors == []
    assert reader.seen == ["old", *["new", "old"] * 10]
    assert reader.reads > 1000
    assert [line["parked"] for line in orders.lines("status", orders.config)] == [0, 0]


def test_the_documented_steps_lead_from_a_changed_hook_to_a_new_copy(
    orders: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for text in BLOCKS.findall(DOCUMENT.read_text()) for line in text.splitlines()]
    commands = [line.split()[1:] for line in lines if "orders.yaml" in line]
    start, run, status, verify, switch, rollback, _cancel, finish = commands
    monkeypatch.chdir(orders.folder)

    def carry_out(command: list[str]) -> None:
        code, out, err = orders.call(*command)
        assert code == 0, out + err

    carry_out(start)
    carry_out(start)  # again, as after a kill
    assert phases(orders) == ["stopped", "stopped"]
    assert run == ["run", "orders.yaml"]
    with running(orders) as process:
        carry_out([*start, "--wait"])
        carry_out(status)
        assert "orders (live)" in orders.call(*status, "--human")[1]
        assert refusal(orders, "switch") == (7, ["the copy was not verified; run: replicator verify CONFIG"])
        carry_out(verify)
        carry_out(switch)
        live, other = orders.lines("status", orders.config)
        assert (live["live_copy"], live["pipeline"], live["verified"]["differences"]) == (True, "orders@new", 0)
        assert (other["live_copy"], other["pipeline"]) == (False, "orders")
        orders.db.put("orders", {"id": "later", "n": 1})
        await_that(lambda: len(documents(orders, "orders_old")) == ITEMS + 1, process)
        await_that(lambda: phases(orders) == ["live", "live"], process)
        with ends(load(str(orders.folder / "orders-old.yaml"))) as (_, checkpoints):  # a verify that was killed
            note = Verified(started=time.time(), updated=time.time(), epoch=1024, scope="full", total=4)
            checkpoints.save([Save("verified", "pass", 0, encode(note))])
            assert refusal(orders, "rollback") == (7, ["a verify pass is in progress; wait for its end"])
            carry_out([*rollback, "--unchecked"])
            checkpoints.save([Save("verified", "pass", 1, None)])
        assert documents(orders, "orders")["later"] == {"made": "old", "n": 1}
        await_that(lambda: phases(orders) == ["live", "live"], process)
        carry_out(switch)
        orders.db.put("orders", {"id": "later", "n": 2})  # once it is stored, the run has resumed, so it sees no gap
        await_that(lambda: documents(orders, "orders")["later"] == {"made": "new", "n": 20}, process)
        with ends(resolved(load(orders.config))) as (_, checkpoints):
            lost = [
                ("gap", "lost", Gap("trimmed", 1.0, 1024)),
                ("repair", "", Repair("token")),
                ("request", "", ResyncRequest(1.0, "another config")),
            ]
            checkpoints.save([Save(kind, id, 0, encode(value)) for kind, id, value in lost])
            assert refusal(orders, "finish") == (
                3,
                [
                    "records were lost: trimmed; repair the copy with: replicator resync CONFIG",
                    "a resync of the new copy is requested or in progress; wait for its end",
                    "a verify --repair of these tables is in progress; wait for its end",
                ],
            )
            assert orders.has_table("orders_old")
            checkpoints.save([Save(kind, id, 1, None) for kind, id, _ in lost])
        carry_out(finish)
        carry_out(finish)
        orders.db.put("orders", {"id": "latest", "n": 2})
        await_that(lambda: documents(orders, "orders").get("latest") == {"made": "new", "n": 20}, process)
    assert not orders.has_table("orders_old")
    assert not orders.has_table("orders_new")
    (left,) = orders.lines("status", orders.config)
    assert left["pipeline"] == "orders"
    assert orders.rows("SELECT DISTINCT pipeline FROM replicator.checkpoints") == [("orders",)]
    orders.change("replaces: orders-old.yaml\n", "")
    orders.catch_up()


def refusal(world: World, step: str, *more: str) -> tuple[int, list[str]]:
    code, out, err = world.call("rebuild", step, world.config, "--json", *more)
    return code, json.loads(out)["reasons"] if out else err.rstrip().split("\n")


def test_check_names_what_keeps_the_old_copy_from_being_followed_as_run_would(orders: World) -> None:
    done(orders, "start")
    (ready,) = [f["text"] for f in orders.lines("check", orders.config) if f["text"].startswith("the old copy, of ")]
    assert ready.startswith("the old copy, of orders-old.yaml: run will resume")

    (orders.folder / "hooks-old.py").write_text("hook = None\n")
    code, out, _ = orders.call("check", orders.config, "--json")
    wrong = [f for f in map(json.loads, out.splitlines()) if f["verdict"] == "problem"]
    run_code, run_out, _ = orders.call("run", orders.config, "--until", "caught-up")
    failed = [event for event in map(json.loads, run_out.splitlines()) if event["event"] == "pipeline failed"]
    assert (code, run_code) == (2, 2)
    assert [f["subject"] for f in wrong] == ["transform"]
    assert [(event["pipeline"], event["problems"]) for event in failed] == [
        ("orders", [f"transform: {wrong[0]['text']}"])
    ]


def test_a_rebuild_that_is_canceled_leaves_the_pipeline_as_it_was(orders: World) -> None:
    before = orders.rows("SELECT kind, id, revision FROM replicator.checkpoints ORDER BY 1, 2")
    done(orders, "start")
    assert orders.has_table("orders_new")
    assert refusal(orders, "switch", "--unverified") == (
        7,
        ["no run is up, so nothing is copied; start it with: replicator run CONFIG"],
    )
    with ends(load(orders.config)) as (_, checkpoints):
        note = Verified(started=time.time(), updated=time.time(), epoch=1024, scope="full", total=4)
        checkpoints.save([Save("verified", "pass", 0, encode(note)), Save("repair", "", 0, encode(Repair("token")))])
        assert refusal(orders, "switch", "--unverified")[1][1:] == [
            "a verify --repair of these tables is in progress; wait for its end",
            "a verify pass is in progress; wait for its end",
        ]
        checkpoints.save([Save("verified", "pass", 1, None), Save("repair", "", 1, None)])
    code, (text,) = refusal(orders, "finish")
    assert (code, text.partition(". ")[0]) == (2, "the new tables are not live, so the old ones are not removed")
    done(orders, "cancel")
    done(orders, "cancel")
    assert not orders.has_table("orders_new")
    assert orders.rows("SELECT kind, id, revision FROM replicator.checkpoints ORDER BY 1, 2") == before
    assert refusal(orders, "switch") == (
        2,
        ["no rebuild is in progress; start one with: replicator rebuild start CONFIG"],
    )


def test_a_gap_of_the_copy_that_is_left_after_a_cancel_ends_the_run_as_any_gap_does(orders: World) -> None:
    done(orders, "start")
    with orders.shell.start("run", orders.config, "--json") as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "cancel")
        orders.db.disable_stream("orders")
        out, err = process.communicate(timeout=60)
    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert process.returncode == 3, out + err
    assert "rebuild canceled" in events
    assert "tables switched; resuming" not in events
    assert "pipeline failed" in events


def test_a_rollback_and_a_cancel_right_after_it_leave_the_run_with_the_old_copy(orders: World) -> None:
    """Both are done before the run finds itself fenced off."""
    done(orders, "start")
    with orders.shell.start("run", orders.config, "--json") as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
        await_that(lambda: phases(orders) == ["live", "live"], process)
        process.send_signal(signal.SIGSTOP)
        done(orders, "rollback", "--unchecked")
        done(orders, "cancel")
        process.send_signal(signal.SIGCONT)
        orders.db.put("orders", {"id": "99", "n": 5})
        await_that(lambda: documents(orders, "orders").get("99") == {"made": "old", "n": 5}, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert "replacing another run" not in out, "it is the same process that starts again"


def test_the_hook_of_a_canceled_copy_never_writes_to_the_one_that_is_left(orders: World) -> None:
    """With a flag that would have a run with the new config go on with the old one's copy."""
    done(orders, "start")
    with orders.shell.start("run", orders.config, "--json", "--accept-hook-change") as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "cancel")
        orders.db.put("orders", {"id": "99", "n": 5})
        await_that(lambda: "99" in documents(orders, "orders"), process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert {document["made"] for document in documents(orders, "orders").values()} == {"old"}
    assert "rebuild canceled" in [json.loads(line)["event"] for line in out.splitlines()]


@pytest.mark.parametrize("step", ["cancel", "finish"])
def test_a_step_that_ends_a_rebuild_says_if_none_is_in_progress(orders: World, step: str) -> None:
    code, out, err = orders.call("rebuild", step, orders.config, "--human")
    assert (code, out) == (0, "nothing to do: no rebuild is in progress\n"), err


def test_a_changed_hook_or_column_leads_to_rebuild(orders: World) -> None:
    code, out, _ = orders.shell.run("run", orders.config, "--until", "caught-up")
    assert code == 2
    assert (
        "in a second copy, with a switch at the end (replicator rebuild start NEW_CONFIG), or in place "
        "(replicator resync CONFIG)" in out
    )


def test_start_needs_the_config_and_the_hook_that_made_the_copy(orders: World) -> None:
    old = orders.folder / "orders-old.yaml"
    text = old.read_text()
    cases = {
        text.replace("pipeline: orders", "pipeline: other"): "replaces: orders-old.yaml is of the pipeline other",
        text + "replaces: x.yaml\n": "replaces: orders-old.yaml must be the config that the pipeline was last run with",
        text.replace("table: orders\n", "table: others\n").replace("others\n  region", "orders\n  region"): (
            "target.tables: the new config must name the same tables as the one that it replaces: others"
        ),
        text.replace("hooks-old.py", "hooks.py"): "transform: the hook changed since the last run",
    }
    for changed, sentence in cases.items():
        old.write_text(changed)
        code, (text, *_) = refusal(orders, "start")
        assert (code, text[: len(sentence)]) == (2, sentence)
    old.unlink()
    assert refusal(orders, "start")[0] == 2
    orders.change("replaces: orders-old.yaml\n", "")
    code, (text,) = refusal(orders, "start")
    assert (code, text.partition(". ")[0]) == (2, "replaces: is missing")
    assert not orders.has_table("orders_new")


def test_a_hook_that_would_get_a_file_of_the_old_one_is_refused_by_start_check_and_run(orders: World) -> None:
    late = "def hook(item):\n    import rules\n    return {'made': rules.made}\n"
    for folder, hook in ((orders.folder, NEW), (orders.folder / "old", OLD)):
        folder.mkdir(exist_ok=True)
        (folder / "rules.py").write_text(f"made = {folder.name!r}\n")
        (folder / "hooks.py").write_text(hook)
    (orders.folder / "hooks.py").write_text(late)
    old = orders.folder / "orders-old.yaml"
    old.write_text(old.read_text().replace("hooks-old.py", "old/hooks.py"))
    both = f"{orders.folder}/rules.py, which the hook of {orders.config} imports, and {orders.folder}/old/rules.py"

    for command in (("rebuild", "start"), ("check", "--offline"), ("run",)):
        code, out, err = orders.call(*command, orders.config)
        assert (code, both in out + err) == (2, True), out + err
    assert not orders.has_table("orders_new")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (
            "type: dynamodb\n  region: eu-west-1",
            "a DynamoDB table cannot be renamed, so applications must change the name that they read (orders and "
            "orders-2)",
        ),
        (
            "type: redis\n  url: redis://127.0.0.1:1",
            "there is no rebuild for the target type redis. Use a second config with another pipeline: and another "
            "prefix for each table (orders and orders-2), run both, verify the new one, and let readers change to it; "
            "or rebuild in place: replicator resync CONFIG",
        ),
    ],
)
def test_targets_without_a_rebuild_say_what_to_do_instead_and_check_and_run_refuse_replaces(
    world: World, target: str, sentence: str
) -> None:
    world.change(f"type: postgres\n  url: {world.postgres.url}", target)
    steps = ("start", "switch", "rollback", "finish", "cancel")
    for step in steps:
        code, (text, *_) = refusal(world, step)
        assert (code, text[: len(sentence)]) == (2, sentence)
    with Path(world.config).open("a") as file:
        file.write("replaces: old.yaml\n")
    for command in (*(("rebuild", step) for step in steps), ("check", "--offline"), ("check",), ("run",)):
        code, out, err = world.call(*command, world.config)
        assert (code, f"replaces: {sentence}" in out + err) == (2, True), out + err


def test_a_rebuild_with_ray_is_refused_by_check_and_run_and_goes_on_with_the_engine_local(orders: World) -> None:
    with Path(orders.config).open("a") as file:
        file.write("engine: {type: ray}\n")
    text = (
        "only local runs both copies of a rebuild (replaces), in one process; add --engine local to replicator run "
        "until the rebuild has ended, or set engine.type: local"
    )
    for command in (("check", "--offline"), ("check",), ("run",)):
        code, out, err = orders.call(*command, orders.config)
        assert (code, (out + err).count(text)) == (2, 1), out + err
    done(orders, "start")
    for command in (("check", "--offline"), ("check",)):
        code, out, err = orders.call(*command, orders.config, "--engine", "local")
        assert code == 0, out + err
    assert orders.call("run", orders.config, "--engine", "local", "--until", "caught-up")[0] == 0


def test_after_the_switch_the_old_config_alone_writes_nothing(orders: World) -> None:
    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
    code, _, err = orders.shell.run("run", str(orders.folder / "orders-old.yaml"), "--until", "caught-up")
    assert (code, "is written by the pipeline orders@new: a rebuild has switched to its new copy" in err) == (2, True)
    assert "or of the new one without replaces: (put that back until rebuild finish)" in err
    assert "COMMENT ON" not in err  # how to take a table over
    assert {d["made"] for d in documents(orders, "orders").values()} == {"new"}
    for step in ("start", "cancel"):
        code, (text,) = refusal(orders, step)
        assert (code, text.partition(":")[0]) == (2, "the new tables are live")
    with ends(load(orders.config)) as (_, checkpoints):
        checkpoints.save([Save("pulse", "", None, encode(Heartbeat(1.0, "stopped")))])
    assert refusal(orders, "rollback") == (
        7,
        ["no run is up, so nothing is copied; start it with: replicator run CONFIG"],
    )
    done(orders, "rollback", "--unchecked")
    assert {d["made"] for d in documents(orders, "orders").values()} == {"old"}


def test_after_the_switch_the_old_config_repairs_the_old_copy_so_that_a_rollback_is_possible(orders: World) -> None:
    old = str(orders.folder / "orders-old.yaml")

    def carry_out(*command: str) -> str:
        code, out, err = orders.call(*command)
        assert code == 0, out + err
        return out

    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
        orders.db.put("orders", {"id": "00", "n": 1000})  # the old hook refuses it
        await_that(lambda: [line["parked"] for line in orders.lines("status", orders.config)] == [0, 1], process)
    with ends(load(old)) as (_, checkpoints):
        checkpoints.save([Save("gap", "s", 0, encode(Gap("trimmed", time.time(), 1024)))])
    code, out, _ = orders.call("rebuild", "rollback", orders.config, "--human")
    assert code == 3
    assert "records were lost: trimmed; repair the copy with: replicator resync orders-old.yaml\n" in out
    assert 'are parked: ["00"]; see: replicator parked list orders-old.yaml\n' in out
    assert "note: to go back to the old copy as it is: replicator rebuild rollback CONFIG --unchecked" in out

    carry_out("resync", old)
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        orders.db.put("orders", {"id": "00", "n": 0})
        await_that(lambda: orders.call("parked", "retry", old, "--all")[0] == 0, process)  # once the run has read it
        assert carry_out("parked", "list", old) == ""
        carry_out("verify", old, "--repair")
        code, text, _ = orders.call("check", old, "--human")  # a run refuses it
        (failure,) = [line for line in text.splitlines() if line.startswith("FAIL")]
        assert (code, "is written by the pipeline orders@new: a rebuild has switched" in failure) == (2, True)
        await_that(lambda: refusal(orders, "rollback") == (0, []), process)
    assert documents(orders, "orders") == {f"{n:02}": {"made": "old", "n": n} for n in range(ITEMS)}
    assert {d["made"] for d in documents(orders, "orders_new").values()} == {"new"}


def test_after_the_switch_the_new_config_without_replaces_writes_nothing_to_the_old_copy(orders: World) -> None:
    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
    orders.change("replaces: orders-old.yaml\n", "")
    for command in ("check", "resync", "verify"):
        code, out, err = orders.call(command, orders.config)
        assert (code, "needs replaces: until rebuild finish" in out + err) == (2, True), out + err


def test_no_step_leaves_readers_a_copy_that_a_run_could_not_continue_with_the_hooks_as_they_are_now(
    orders: World,
) -> None:
    new, old = orders.folder / "hooks.py", orders.folder / "hooks-old.py"

    def refused(step: str, edited: Path, *more: str) -> None:
        text = edited.read_text()
        edited.write_text(text + "# for the next release\n")
        code, problems = refusal(orders, step, *more)
        edited.write_text(text)
        config = edited.name.replace("hooks", "orders").replace(".py", ".yaml")
        said = f"nothing was changed, as a run could not continue the copy of {config} afterwards: transform: the hook"
        assert (code, [problem[: len(said)] for problem in problems]) == (2, [said])

    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        refused("switch", new, "--unverified")
        refused("switch", old, "--unverified")  # there would be no way back
        done(orders, "switch", "--unverified")
        await_that(lambda: phases(orders) == ["live", "live"], process)
        refused("rollback", old)
        refused("finish", new)
        orders.db.put("orders", {"id": "99", "n": 5})
        await_that(lambda: documents(orders, "orders").get("99") == {"made": "new", "n": 50}, process)


def test_a_repair_that_was_killed_keeps_a_rollback_only_if_it_is_checked_and_a_finish_says_how_it_is_forgotten(
    orders: World,
) -> None:
    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
    with ends(load(orders.config)) as (_, checkpoints):
        stopped = Save("pulse", "", None, encode(Heartbeat(1.0, "stopped")))
        checkpoints.save([stopped, Save("repair", "", 0, encode(Repair("killed")))])
    reason = "a verify --repair of these tables is in progress; wait for its end"
    way_out = "a run forgets one that was killed 15 minutes after it starts: replicator run CONFIG"
    assert refusal(orders, "finish") == (7, [f"{reason}; {way_out}"])
    code, reasons = refusal(orders, "rollback")
    assert (code, reasons[1:]) == (7, [reason])
    done(orders, "rollback", "--unchecked")
    assert {d["made"] for d in documents(orders, "orders").values()} == {"old"}


def test_start_refuses_a_taken_name_of_the_old_copy_and_finish_and_cancel_wait_for_the_readers_of_what_they_remove(
    orders: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in orders.environ.items():
        monkeypatch.setenv(name, value)
    with orders.postgres.connect() as connection:
        connection.execute("CREATE TABLE orders_old (x int)")
        taken = '"public"."orders_old" exists already, and the live table would get that name; rename it or drop it'
        assert refusal(orders, "start") == (2, [taken])
        connection.execute("DROP TABLE orders_old")

    def removed(step: Callable[..., object], table: str) -> None:
        pauses: list[float] = []
        with orders.postgres.connect() as reader:
            reader.autocommit = False
            reader.execute(f"SELECT FROM {table}".encode())

            def pause(seconds: float) -> None:
                pauses.append(seconds)
                reader.rollback()

            step(load(orders.config), pause=pause)
        assert (pauses[:1], orders.has_table(table)) == ([rebuild.PAUSE], False)

    done(orders, "start")
    removed(rebuild.cancel, "orders_new")
    done(orders, "start")
    with running(orders) as process:
        await_that(lambda: phases(orders) == ["live", "live"], process)
        done(orders, "switch", "--unverified")
        await_that(lambda: phases(orders) == ["live", "live"], process)
        removed(rebuild.finish, "orders_old")


def test_a_run_keeps_the_hooks_that_it_has_loaded_when_the_tables_are_exchanged(orders: World) -> None:
    """Their files are edited right after each step, before the run has noticed it."""
    done(orders, "start")
    with running(orders) as process:
        steps = (("switch", "--unverified"), ("rollback", "--unchecked"), ("switch", "--unverified"), ("finish",))
        for n, step in enumerate(steps):
            made, factor = ("old", 1) if step[0] == "rollback" else ("new", 10)
            await_that(lambda: phases(orders) == ["live", "live"], process)
            process.send_signal(signal.SIGSTOP)
            done(orders, *step)
            for file in ("hooks.py", "hooks-old.py"):
                text = (orders.folder / file).read_text()
                (orders.folder / file).write_text(text + "# for the next release\n")
            orders.db.put("orders", {"id": "99", "n": n})
            process.send_signal(signal.SIGCONT)
            await_that(lambda: documents(orders, "orders").get("99") == {"made": made, "n": n * factor}, process)  # noqa: B023
            orders.folder.joinpath("hooks.py").write_text(NEW)
            orders.folder.joinpath("hooks-old.py").write_text(OLD)


def test_a_hook_or_column_that_changes_again_during_a_build_starts_over(world: World) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 7})
    text = Path(world.config).read_text().removesuffix("table: orders\n")
    Path(world.config).write_text(text + "tables: {orders: {columns: {made: text, n: bigint}}}\n")
    world.hook(OLD)
    world.catch_up()
    use(world, NEW)
    done(world, "start")
    world.catch_up()
    world.hook(NEW.replace("new", "newer"))
    again = "replicator rebuild cancel CONFIG, then replicator rebuild start CONFIG"
    for command in (("run", world.config, "--until", "caught-up"), ("rebuild", "start", world.config)):
        code, out, err = world.shell.run(*command)
        assert (code, "transform: the hook changed" in out + err, again in out + err) == (2, True, True), out + err
    world.call("resync", world.config)  # the other way: in place
    done(world, "start")
    world.catch_up()
    assert world.rows("SELECT made FROM orders_new") == [("newer",)]
    world.change("n: bigint", "n: text")
    code, (text, *_) = refusal(world, "start")
    assert (code, "columns.n" in text, again in text) == (2, True, True)
    world.hook(NEW.replace("int(item['n']) * 10", "str(item['n'])"))
    done(world, "cancel")
    done(world, "start")
    world.catch_up()
    assert world.rows("SELECT made, n FROM orders_new") == [("new", "7")]


LINES = """from replicator import Document, documents


@documents
def hook(item):
    yield Document(item["id"], {{"made": "{made}"}}, "orders")
    yield Document(item["id"], {{"n": {n}}}, "lines")
"""


def test_several_tables_with_changed_columns_are_exchanged_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "ready", lambda *_, **__: [])  # without a run
    world.db.create_table("orders")
    world.db.put("orders", {"id": "a", "n": 7})
    tables = "tables:\n    orders: {columns: {made: text}}\n    lines: {columns: {n: text}}\n"
    text = Path(world.config).read_text()
    Path(world.config).write_text(text.removesuffix("table: orders\n") + tables)
    world.hook(LINES.format(made="old", n="str(item['n'])"))
    world.catch_up()
    use(world, LINES.format(made="new", n="int(item['n']) * 10"))
    world.change("{n: text}", "{n: bigint}")
    done(world, "start")
    world.catch_up()
    both = "SELECT made, n FROM orders JOIN lines USING (_item, _id)"
    assert world.rows(both) == [("old", "7")]
    done(world, "switch")
    assert world.rows(both) == [("new", 70)]
    done(world, "rollback")
    assert world.rows(both) == [("old", "7")]
    done(world, "switch")
    world.db.put("orders", {"id": "a", "n": 8})
    world.catch_up()
    assert world.rows(both) == [("new", 80)]
    assert world.rows("SELECT n FROM lines_old") == [("8",)]
    done(world, "finish")
    world.db.put("orders", {"id": "a", "n": 9})
    world.catch_up()
    assert world.rows(both) == [("new", 90)]
    assert not world.has_table("lines_old")


def test_a_run_of_a_rebuild_that_is_stopped_before_it_caught_up_does_not_exit_with_0(orders: World) -> None:
    """Also while it cannot read which of the copies there are."""
    done(orders, "start")
    orders.postgres.server.stop("immediate")
    with orders.shell.start("run", orders.config, "--until", "caught-up") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if '"waiting"' in line:
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    orders.postgres.server.start()
    assert process.returncode == 7, out + err
