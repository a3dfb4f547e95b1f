"""Commands with a target that stores no checkpoints: each type of store, chosen in the config and reported."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import Any

import jsonschema
import pytest

from replicator.checkpoints.sqlite.store import SqliteCheckpoints
from replicator.config import settings
from replicator.engine.assembly import ends
from replicator.errors import ConfigError, Fenced
from replicator.state import Owner
from tests.cli.command_line import World, endpoint, keep

NEEDS_TOTAL = "def hook(item):\n    return {'total': item['total']}\n"
FIXED = "def hook(item):\n    return {'total': item.get('total', 0)}\n"


def rows(mirror: World) -> dict[str, Any]:
    with closing(sqlite3.connect(mirror.folder / "rows.db")) as client:
        rows = client.execute("SELECT id, document FROM orders WHERE document IS NOT NULL").fetchall()
    return {json.loads(id)[0]: json.loads(document) for id, document in rows}


SECTIONS = {
    "default": "",
    "sqlite": "{type: sqlite, path: kept.db}",
    "dynamodb": "{type: dynamodb, table: kept, region: us-east-1, endpoint_url: ENDPOINT}",
    "postgres": "{type: postgres, url: POSTGRES}",
}
PLACES = {
    "default": "the file FOLDER/orders.checkpoints",
    "sqlite": "the file FOLDER/kept.db",
    "dynamodb": "the DynamoDB table kept (us-east-1)",
    "postgres": "the schema replicator of Postgres at 127.0.0.1:",
}


@pytest.fixture(params=SECTIONS)
def kept(mirror: World, request: pytest.FixtureRequest) -> str:
    """Creates the store; returns its location as commands print it."""
    section = SECTIONS[request.param].replace("ENDPOINT", endpoint(mirror)).replace("POSTGRES", mirror.postgres.url)
    if section:
        keep(mirror, section)
    code, out, _ = mirror.call("check", mirror.config, "--create", "--human")
    place = PLACES[request.param].replace("FOLDER", str(mirror.folder))
    assert code == 0
    assert f"ok    checkpoints: stored in {place}" in out
    return place


def test_a_pipeline_works_with_every_store(mirror: World, kept: str) -> None:
    """Backfill and restart; parked changes are listed, retried and discarded between runs."""
    mirror.hook(NEEDS_TOTAL)
    mirror.db.put("orders", {"id": "good", "total": 1})
    for id in ("bad", "worse"):
        mirror.db.put("orders", {"id": id})
    code, out, err = mirror.shell.run("run", mirror.config, "--until", "caught-up", "--json")
    assert code == 6, err
    events = [json.loads(line) for line in (out + err).splitlines() if line.startswith("{")]
    assert [line["place"].startswith(kept) for line in events if "place" in line] == [True]

    mirror.db.delete("orders", {"id": "good"})
    mirror.db.put("orders", {"id": "late", "total": 2})
    mirror.catch_up()
    assert rows(mirror) == {"late": {"total": 2}}

    mirror.hook(FIXED)
    loaded = settings.load(mirror.config)
    with ends(loaded) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))
        assert mirror.call("parked", "retry", mirror.config, '["bad"]')[0] == 0
        assert mirror.call("parked", "drop", mirror.config, "--yes", '["worse"]')[0] == 0
        status = mirror.lines("status", mirror.config)[0]
        checkpoints.save([])  # still the owner
    assert rows(mirror) == {"late": {"total": 2}, "bad": {"total": 0}}
    counts = status["counts"]
    assert status["parked"] == 0
    assert counts["filtered"] in (1, 2), "the item was scanned, and streamed too if the stream came first"
    assert counts["read"] == counts["applied"] + counts["superseded"] + counts["filtered"] + counts["parked"]


NEED_A_PIPELINE = {
    "status": ("status",),
    "parked list": ("parked", "list"),
    "parked show": ("parked", "show", "--all"),
    "parked retry": ("parked", "retry", "--all"),
    "parked drop": ("parked", "drop", "--all", "--yes"),
    "resync": ("resync", "--now", "--until", "caught-up"),
}


def called(world: World, command: str) -> tuple[int, str]:
    """Its exit code, and what it prints."""
    name, *rest = NEED_A_PIPELINE[command]
    words = [name, rest.pop(0)] if name == "parked" else [name]
    code, out, err = world.shell.run(*words, world.config, *rest, "--human")
    return code, out + err


def test_a_pipeline_that_never_ran_is_reported_and_nothing_is_stored(mirror: World, kept: str) -> None:
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))
    mirror.change("pipeline: orders", "pipeline: ordres")
    place = kept.replace("orders.checkpoints", "ordres.checkpoints")
    of_another = "kept.db" in kept
    for command in NEED_A_PIPELINE:
        code, said = called(mirror, command)
        assert code == 2, (command, said)
        if of_another:
            assert "kept.db belongs to pipeline 'orders', not to 'ordres'" in said, command
            continue
        assert f"pipeline: there is no pipeline ordres in {place}" in said, command
        existing = "; existing pipelines: orders. If the name is a typo, correct it in the config; " in said
        assert existing is ("DynamoDB" not in kept), command
        assert "start it with: replicator run CONFIG" in said, command
    if of_another:
        return
    assert not list(mirror.folder.glob("ordres*"))
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        assert not checkpoints.read().entries
    assert mirror.call("check", mirror.config)[0] == 0  # a new pipeline is no mistake
    assert mirror.shell.run("run", mirror.config, "--until", "caught-up")[0] == 0


def test_an_item_that_a_run_parks_again_meanwhile_is_neither_retried_nor_discarded(mirror: World) -> None:
    from replicator.operations import parked

    mirror.hook(NEEDS_TOTAL)
    mirror.db.put("orders", {"id": "bad"})
    mirror.catch_up()
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        (seen,) = parked.parked_items(checkpoints)
        checkpoints.save([seen.removal])
        assert parked.drop(seen, checkpoints) == "a run has changed it in the meantime; look at it again"


def test_check_without_create_creates_nothing_and_says_how_to(mirror: World) -> None:
    keep(mirror, SECTIONS["dynamodb"].replace("ENDPOINT", endpoint(mirror)))
    code, out, _ = mirror.call("check", mirror.config, "--human")

    assert code == 2
    assert "FAIL  checkpoints.table: there is no arn:aws:dynamodb:us-east-1:*:table/kept; create it with: " in out
    assert "aws dynamodb create-table --table-name kept --region us-east-1" in out
    assert "# permissions a run needs: dynamodb:GetItem, dynamodb:Query, " in out
    code, _, err = mirror.shell.run("run", mirror.config)
    assert code == 2
    assert "replicator check --create CONFIG" in err


def test_check_and_run_warn_of_a_file_that_others_may_read(mirror: World) -> None:
    mirror.catch_up()
    (mirror.folder / "orders.checkpoints").chmod(0o644)
    code, out, _ = mirror.call("check", mirror.config, "--human")

    assert code == 0
    assert "note  checkpoints.path: other users may access " in out
    events = mirror.lines("run", mirror.config, "--until", "caught-up")
    assert "(mode 0644); chmod 600 " in next(e["reason"] for e in events if e["event"] == "checkpoints exposed")


def test_a_missing_permission_is_exit_code_4(mirror: World) -> None:
    keep(mirror, SECTIONS["dynamodb"].replace("ENDPOINT", endpoint(mirror)))
    mirror.call("check", mirror.config, "--create")
    mirror.db.fail("PutItem", "AccessDeniedException", times=None)
    code, out, _ = mirror.call("check", mirror.config, "--human")

    assert code == 4
    assert "dynamodb:PutItem on arn:aws:dynamodb:us-east-1:*:table/kept is not permitted" in out


def test_a_second_run_of_a_file_is_exit_code_5_and_names_the_owner(mirror: World) -> None:
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "other-machine", 77, 0.0))
        code, _, err = mirror.shell.run("run", mirror.config)
    assert code == 5
    assert "another run has locked this pipeline: process 77 on other-machine, since 1970-01-01 00:00:00 UTC" in err


def test_with_a_checkpoint_table_a_later_run_takes_over(mirror: World) -> None:
    keep(mirror, SECTIONS["dynamodb"].replace("ENDPOINT", endpoint(mirror)))
    mirror.call("check", mirror.config, "--create")
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "other-machine", 77, 0.0))
        mirror.catch_up()
        with pytest.raises(Fenced):
            checkpoints.save([])


# the section in the config


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("{table: abc}", "checkpoints.table: unknown key; "),
        ("{type: null}", "checkpoints.type: unknown checkpoint store; expected one of: dynamodb, postgres, sqlite"),
        ("{type: sqlit}", "checkpoints.type: unknown checkpoint store; did you mean sqlite?"),
        ("{type: sqlite, pth: x}", "checkpoints.pth: unknown key; "),
        ("{type: sqlite, path: ''}", "checkpoints.path: is empty"),
        ("{type: dynamodb}", "checkpoints.table: is missing"),
        ("{type: dynamodb, table: a/b}", "checkpoints.table: must be a DynamoDB table name"),
        ("{type: dynamodb, table: abc, external_id: x}", "checkpoints.external_id: requires role_arn"),
        (
            "{type: dynamodb, table: abc, endpoint_url: 'http://far.example'}",
            "checkpoints.endpoint_url: is plain http to",
        ),
        ("{type: postgres}", "checkpoints.url: is missing"),
        (
            "{type: postgres, url: 'postgresql://u:secret@far.example/d'}",
            "the remote host is not authenticated",
        ),
        ("{type: postgres, url: 'nonsense'}", "checkpoints.url: is not a Postgres address"),
        ("file", "checkpoints: must be a mapping"),
    ],
)
def test_an_error_in_the_checkpoints_section_is_named_with_its_place(mirror: World, section: str, problem: str) -> None:
    keep(mirror, section)
    with pytest.raises(ConfigError) as caught:
        settings.load(mirror.config)
    assert any(p.startswith("orders.yaml:6: ") and problem in p for p in caught.value.problems), caught.value.problems
    assert "secret" not in str(caught.value)


def test_a_checkpoint_file_needs_no_type(mirror: World) -> None:
    keep(mirror, "{path: here.db}")
    with ends(settings.load(mirror.config)) as (_, checkpoints):
        assert isinstance(checkpoints, SqliteCheckpoints)
        assert checkpoints.place == f"the file {mirror.folder / 'here.db'}"


def test_a_target_that_stores_its_own_checkpoints_accepts_no_checkpoints_section(world: World) -> None:
    world.change("target:", "checkpoints: {type: sqlite}\ntarget:")
    with pytest.raises(ConfigError) as caught:
        settings.load(world.config)
    assert caught.value.problems == (
        "orders.yaml:6: checkpoints: this target stores checkpoints itself, in the transaction that stores the "
        "rows; leave this section out",
    )


def test_secrets_in_the_checkpoints_section_are_not_shown(mirror: World) -> None:
    keep(mirror, "{type: postgres, url: 'postgresql://u:pass-word@127.0.0.1/d'}")
    assert "pass-word" not in repr(settings.load(mirror.config))


@pytest.mark.parametrize(("section", "right"), [(s or None, True) for s in SECTIONS.values()] + [("{type: x}", False)])
def test_the_json_schema_includes_the_checkpoints_section(section: str | None, right: bool) -> None:
    import yaml

    given = yaml.safe_load(
        "{pipeline: p, source: {table: abc}, target: {type: postgres, url: 'postgresql://u@127.0.0.1/d', table: t}}"
    )
    if section is not None:
        given["checkpoints"] = yaml.safe_load(section)
    assert jsonschema.Draft202012Validator(settings.schema()).is_valid(given) is right
