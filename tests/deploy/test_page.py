"""docs/deploying.md: its commands carried out, and what it says of hooks, upgrades and restored backups."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from replicator.testing.dynamodb import DynamoDB
from replicator.testing.servers.postgres import programs
from tests.cli.command_line import World
from tests.cli.test_run import await_that
from tests.deploy.page import PAGE, blocks, table
from tests.deploy.runs import dynamodb_config
from tests.deploy.test_container import instructions

ROOT = Path(__file__).parents[2]
ELSEWHERE = ("docker", "kubectl", "aws", "useradd", "systemctl", "journalctl")  # not on the machine of a test


def commands(heading: str) -> list[list[str]]:
    lines = "".join(blocks("bash", heading)).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


def carry_out(folder: Path, commands: str, environ: dict[str, str] | None = None) -> None:
    """Commands in a folder that stands for the root, as far as this machine has their programs."""
    script = re.sub(r"(?<=[ \"=])/(etc|var|opt)/", rf"{folder}/\1/", commands)
    script = script.replace(" -o replicator -g replicator", "")
    stubs = "".join(f"{name}() {{ :; }}\n" for name in ELSEWHERE)
    done = subprocess.run(
        ["bash", "-euc", stubs + script],
        cwd=folder,
        env={**os.environ, "PATH": f"{programs('wheel')}:{os.environ['PATH']}", **(environ or {})},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), script


def test_every_file_that_a_command_names_is_there() -> None:
    words = {word.rpartition("://")[2] for text in blocks("bash") for word in text.split() if "deploy/" in word}

    assert len(words) == 6
    for word in words:
        assert (ROOT / word).exists(), word
    for file in (ROOT / "deploy").iterdir():
        assert f"../deploy/{file.name})" in PAGE.read_text(), f"{file.name} is not explained"


def test_the_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "README.md").read_text() + PAGE.read_text()
    named = [set(found.split(",")) for found in re.findall(r"(?:replicator|'\.)\[([a-z,]+)\]", text)]

    assert len(named) >= 4
    assert set().union(*named) <= extras.keys()
    for kind in own_targets():
        assert f"`{kind}`" in text, f"the extra of {kind} is not explained"
        assert kind in extras


def own_targets() -> set[str]:
    return {point.name for point in entry_points(group="replicator.targets") if point.value.startswith("connectors.")}


def test_an_image_with_config_and_hook_extends_the_one_that_was_built() -> None:
    (_, tagged), *_ = [("", command) for command in commands("## Container") if command[1] == "build"]
    image, copied = (line.split() for line in blocks("dockerfile", "## Container")[0].splitlines())

    assert image[1] == tagged[tagged.index("-t") + 1]
    assert copied[-1] == [rest for name, rest in instructions() if name == "WORKDIR"][-1] + "/"


def test_the_unit_is_installed_with_its_config_beside_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    for name in ("orders.yaml", "hooks.py", "orders.env"):
        (tmp_path / name).write_text("")
    carry_out(tmp_path, blocks("bash", "## systemd")[0])

    found = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in (tmp_path / "etc").rglob("*.*")}
    assert {name: mode for name, mode in found.items() if "systemd" not in name} == {
        "etc/replicator/orders.yaml": 0o644,
        "etc/replicator/hooks.py": 0o644,
        "etc/replicator/orders.env": 0o600,
    }
    assert (tmp_path / "etc/systemd/system/replicator@.service").exists()


def test_every_exit_code_of_a_run_says_whether_to_restart() -> None:
    documented = (ROOT / "docs" / "operations.md").read_text().partition("\n## Exit codes\n")[2]
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", documented, re.MULTILINE)}

    assert {int(code) for code, *_ in table("## Exit codes and restarts")} == codes - {6, 7}, "of commands that end"


@pytest.fixture
def copied(world: World) -> World:
    """Five items, copied. Polls often, because a run ends only after several empty reads."""
    world.change("  region: us-east-1", "  region: us-east-1\n  poll_interval: 50ms")
    world.db.create_table("orders")
    for n in range(5):
        world.db.put("orders", {"id": str(n), "total": n})
    assert run(world)[0] == 0
    return world


def change(db: DynamoDB) -> None:
    """Two new items, and one less."""
    for n in (5, 6):
        db.put("orders", {"id": str(n), "total": n})
    db.delete("orders", {"id": "0"})


CHANGED = [(str(n),) for n in range(1, 7)]


def ids(world: World) -> list[tuple[str]]:
    return world.rows("SELECT id FROM orders ORDER BY id")


def test_all_configs_of_a_folder_run_in_one_process_with_a_connection_each(copied: World) -> None:
    (command,) = blocks("bash", "## Many tables")
    (copied.folder / "configs").mkdir()
    text = Path(copied.config).read_text()
    for name in ("orders", "users", "events"):
        (copied.folder / "configs" / f"{name}.yaml").write_text(text.replace("orders", name))
    for name in ("users", "events"):
        copied.db.create_table(name)
    environ = {**os.environ, **copied.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=copied.folder, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        live: set[str] = set()
        while len(live) < 3:
            event = json.loads(process.stdout.readline())
            live |= {event["pipeline"]} if event.get("phase") == "live" else set()
        used = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert copied.rows(used) == [(3,)]
        process.terminate()
        process.communicate(timeout=60)

    assert process.returncode == 0


def run(world: World) -> tuple[int, str]:
    code, _, err = world.call("run", world.config, "--until", "caught-up")
    return code, err


def test_a_changed_hook_is_rolled_out_by_a_request_and_a_restart(copied: World) -> None:
    copied.hook("def hook(item):\n    return {'total': item['total']}\n")
    assert copied.call("run", copied.config, "--accept-hook-change", "--until", "caught-up")[0] == 0
    with copied.shell.start("run", copied.config, "--json") as up:
        copied.db.put("orders", {"id": "5", "total": 5})
        await_that(lambda: ("5",) in ids(copied), up)
        copied.hook("def hook(item):\n    return {'total': -item['total']}\n")
        requested, told, _ = copied.call("resync", copied.config, "--human")
        assert "has another hook or definition, so restart it: the next run starts it" in told
        assert up.stdout is not None
        said = next(line for line in up.stdout if "requested resync not started" in line)
        up.terminate()
        up.communicate(timeout=60)
    code, err = run(copied)

    assert (requested, up.returncode) == (0, 0), said
    assert code == 0, err
    documents = copied.rows("SELECT DISTINCT sign((document->>'total')::int) FROM orders WHERE id <> '0'")
    assert documents == [(-1,)]


def test_without_the_request_a_changed_hook_is_refused_and_both_choices_are_named(copied: World) -> None:
    copied.hook("def hook(item):\n    return {'total': -item['total']}\n")
    code, err = run(copied)

    assert code == 2
    assert "run --accept-hook-change" in err
    assert "resync" in err


def stored(world: World) -> list[tuple[object, ...]]:
    return world.rows("SELECT kind, id, revision, value::text FROM replicator.checkpoints ORDER BY kind, id")


NEWER = {
    "schema": ("UPDATE replicator.version SET number = number + 1", 2),
    "format": (
        """UPDATE replicator.checkpoints SET value = replace(value::text, '"format":1', '"format":2')::json
        WHERE kind = 'pipeline'""",
        3,
    ),
    "entry": ("INSERT INTO replicator.checkpoints VALUES ('orders', 'later', '', 1, '{}')", 3),
}


def test_check_says_that_a_run_would_migrate_the_schema_and_migrates_nothing(copied: World) -> None:
    assert "migrate" not in copied.call("check", copied.config, "--human")[1]
    with copied.postgres.connect() as connection:
        connection.execute(b"UPDATE replicator.version SET number = number - 1")
    before = copied.rows("SELECT number FROM replicator.version")
    code, out, _ = copied.call("check", copied.config, "--human")

    assert (code, "note  checkpoints: run will migrate the schema replicator from version" in out) == (0, True), out
    assert copied.rows("SELECT number FROM replicator.version") == before


def forms(rows: Sequence[Sequence[str]]) -> list[tuple[re.Pattern[str], int]]:
    """Messages of a table as patterns, with their exit codes."""
    messages = [(row[0].partition("`")[2].rpartition("`")[0], int(row[1])) for row in rows]
    return [(re.compile(".*".join(map(re.escape, message.split("…")))), code) for message, code in messages]


@pytest.mark.parametrize("what", NEWER)
def test_an_older_version_refuses_what_a_newer_one_wrote_and_changes_nothing(copied: World, what: str) -> None:
    statement, expected = NEWER[what]
    with copied.postgres.connect() as connection:
        connection.execute(statement.encode())
    before = stored(copied)
    change(copied.db)
    code, err = run(copied)

    assert code == expected
    assert [code for form, code in forms(table("## Upgrade")) if form.search(err)] == [expected], err
    assert stored(copied) == before
    assert len(ids(copied)) == 5


@pytest.mark.parametrize(("what", "step"), [("entry", 0), ("schema", 1)])
def test_going_back_without_checkpoints_starts_over(copied: World, tmp_path: Path, what: str, step: int) -> None:
    statement, refusal = NEWER[what]
    with copied.postgres.connect() as connection:
        connection.execute(statement.encode())
    change(copied.db)
    refused = copied.call("resync", copied.config, "--now", "--until", "caught-up")[0]
    quiet = {"PGOPTIONS": "-c client_min_messages=error"}
    carry_out(tmp_path, blocks("bash", "## Upgrade")[step], {"POSTGRES_URL": copied.postgres.url, **quiet})
    lost, err = run(copied)
    again = copied.call("resync", copied.config, "--now", "--until", "caught-up")[0]

    assert (refused, lost, again) == (refusal, 3, 0), err
    assert ids(copied) == CHANGED


@pytest.fixture
def dumped(copied: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Backed up as documented, changed, and copied again."""
    dump, _ = blocks("bash", "### Postgres, with its checkpoints")
    monkeypatch.setenv("POSTGRES_URL", copied.postgres.url)
    carry_out(tmp_path, dump)
    change(copied.db)
    assert run(copied)[0] == 0
    assert ids(copied) == CHANGED
    return copied


def restore(*more: str) -> str:
    _, command = blocks("bash", "### Postgres, with its checkpoints")
    return " ".join([command.strip(), *more])


def restored_row(name: str) -> str:
    (row,) = [row for row in table("### One without the other") if row[0].startswith(name)]
    return " | ".join(row)


def is_told(name: str, code: int, err: str) -> bool:
    """Whether the run ended as the table of restores says."""
    row = restored_row(name)
    messages = [m for m in re.findall(r"`([^`]+)`", row.split(" | ")[1]) if " " in m]
    said = any(re.search(".*".join(map(re.escape, m.split("…"))), err) for m in messages)
    return f"exit code {code}" in row and said


def test_a_whole_database_that_is_restored_is_read_on_from_its_positions(dumped: World, tmp_path: Path) -> None:
    carry_out(tmp_path, restore())
    assert len(ids(dumped)) == 5, "the older rows"
    code, err = run(dumped)

    assert code == 0, err
    assert ids(dumped) == CHANGED


def test_a_table_that_is_restored_without_the_checkpoints_is_noticed(dumped: World, tmp_path: Path) -> None:
    carry_out(tmp_path, restore("--table=orders"))
    code, err = run(dumped)
    assert is_told("a table of Postgres", code, err), err

    code, _, err = dumped.call("resync", dumped.config)
    assert (code, "the primary key must be (id), but it is none" in err) == (2, True), err
    with dumped.postgres.connect() as connection:
        connection.execute("ALTER TABLE orders ADD PRIMARY KEY (id)")
    assert dumped.call("resync", dumped.config)[0] == 0
    assert run(dumped)[0] == 0
    assert ids(dumped) == CHANGED


def test_rows_that_are_restored_into_the_table_are_repaired_by_the_resync_alone(dumped: World, tmp_path: Path) -> None:
    with dumped.postgres.connect() as connection:
        connection.execute("TRUNCATE orders")
    carry_out(tmp_path, restore("--table=orders", "--data-only").replace("--clean --if-exists", ""))
    unnoticed = run(dumped)[0]
    old = ids(dumped)
    assert "nothing but `verify` reveals it" in restored_row("rows into the existing table")

    assert (unnoticed, len(old)) == (0, 5)
    assert dumped.call("resync", dumped.config)[0] == 0
    assert run(dumped)[0] == 0
    assert ids(dumped) == CHANGED


def test_checkpoints_that_are_restored_without_rows_are_read_on_unless_a_resync_came_after(
    dumped: World, tmp_path: Path
) -> None:
    carry_out(tmp_path, restore("--schema=replicator"))
    code, err = run(dumped)
    assert code == 0, err
    assert ids(dumped) == CHANGED

    assert dumped.call("resync", dumped.config, "--now", "--until", "caught-up")[0] == 0
    carry_out(tmp_path, restore("--schema=replicator"))
    code, err = run(dumped)
    assert is_told("the schema `replicator`", code, err), err


@pytest.fixture
def filed(world: World, tmp_path: Path) -> World:
    """A DynamoDB target, with checkpoints in a file where the page has it; backed up, changed, and copied again."""
    place = tmp_path / "var/lib/replicator"
    (tmp_path / "var/backups").mkdir(parents=True)
    place.mkdir(parents=True)
    section = f"checkpoints: {{type: sqlite, path: {place}/orders.checkpoints}}"
    Path(world.config).write_text(dynamodb_config(world, section))
    assert run(world)[0] == 0
    backup, _ = blocks("bash", "### An SQLite checkpoint file")
    carry_out(tmp_path, backup)
    world.db.put("orders", {"id": "2"})
    world.db.delete("orders", {"id": "1"})
    assert run(world)[0] == 0
    return world


def copies(world: World) -> set[str]:
    return {str(item["id"]) for item in world.db.items("copy") if "_replicator_deleted" not in item}


def test_an_sqlite_file_is_backed_up_and_restored_by_the_steps(filed: World, tmp_path: Path) -> None:
    _, steps = blocks("bash", "### An SQLite checkpoint file")
    carry_out(tmp_path, steps)
    requested = filed.call("resync", filed.config)[0]
    code, err = run(filed)

    assert (requested, code) == (0, 0), err
    assert copies(filed) == {"2"}


def test_an_older_sqlite_file_beside_its_lock_is_noticed(filed: World, tmp_path: Path) -> None:
    file = tmp_path / "var/lib/replicator/orders.checkpoints"
    shutil.copy(tmp_path / "var/backups/orders.checkpoints", file)
    code, err = run(filed)

    assert is_told("an older SQLite file", code, err), err


def test_lost_checkpoints_are_noticed_and_a_resync_starts_over(filed: World, tmp_path: Path) -> None:
    for file in (tmp_path / "var/lib/replicator").iterdir():
        file.unlink()
    code, err = run(filed)
    assert is_told("nothing: the checkpoints are lost", code, err), err

    assert filed.call("resync", filed.config, "--now", "--until", "caught-up")[0] == 0
    assert copies(filed) == {"2"}


def test_a_dynamodb_table_that_is_restored_under_its_old_name_is_noticed(filed: World) -> None:
    items = filed.db.items("copy")
    filed.db.call("DeleteTable", {"TableName": "copy"})
    filed.db.create_table("copy")
    for item in items:
        filed.db.put("copy", item)
    code, err = run(filed)

    assert is_told("a search index, or a DynamoDB table", code, err), err
