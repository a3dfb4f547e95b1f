"""``check`` and ``run`` agree about separate checkpoint stores."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from replicator.config import settings
from replicator.engine.assembly import ends
from replicator.state import Owner
from tests.cli.command_line import World, endpoint, keep
from tests.cli.test_check_agrees_with_run import Wrong, assert_agreed, forbidden

DYNAMODB = "{type: dynamodb, table: kept, region: us-east-1, endpoint_url: ENDPOINT}"
POSTGRES = "{type: postgres, url: POSTGRES}"


def kept(section: str, *acts: Callable[[World], Any], made: bool = True) -> Callable[[World], None]:
    """Checkpoints as configured, in a store that is created unless told otherwise; then something is done to it."""

    def act(world: World) -> None:
        text = section.replace("ENDPOINT", endpoint(world)).replace("POSTGRES", world.postgres.url)
        keep(world, text.replace("FOLDER", str(world.folder)))
        if made:
            assert world.call("check", world.config, "--create")[0] == 0
        for more in acts:
            more(world)

    return act


def of_another_pipeline(world: World) -> None:
    world.change("pipeline: orders", "pipeline: other")
    with ends(settings.load(world.config)) as (_, checkpoints):
        checkpoints.claim(Owner("run", "here", 1, 0.0))
    world.change("pipeline: other", "pipeline: orders")


def folder(world: World) -> None:
    (world.folder / "kept.db").mkdir()


def garbage(world: World) -> None:
    (world.folder / "kept.db").write_text("no database")


def empty(world: World) -> None:
    (world.folder / "kept.db").touch()


def link(world: World) -> None:
    os.symlink(world.folder / "elsewhere.db", world.folder / "kept.db")


def sql(world: World, statements: str) -> None:
    """``ROLE`` and ``OTHER`` are two roles of this test."""
    with world.postgres.connect() as client:
        client.execute(statements.replace("ROLE", world.postgres.name).replace("OTHER", f"{world.postgres.name}o"))


def as_a_role(statements: str = "") -> Callable[[World], None]:
    """The config's user is a role without other privileges in this database."""

    def act(world: World) -> None:
        parts = psycopg.conninfo.conninfo_to_dict(world.postgres.url)
        sql(world, f"CREATE USER ROLE PASSWORD '{parts['password']}'; {statements}")
        world.change(f"{parts['user']}:{parts['password']}@", f"{world.postgres.name}:{parts['password']}@")

    return act


def with_other_keys(world: World) -> None:
    world.db.create_table("kept")


def of_a_newer_format(world: World) -> None:
    head: dict[str, object] = {"pipeline": "orders", "entry": "h", "claim": 1, "commit": 1, "format": 99}
    world.db.put("kept", {**head, "owner": "", "last": ""})


def newer_schema(world: World) -> None:
    sql(world, "UPDATE replicator.version SET number = 99")


WRONG = {
    "SQLite: a folder that is absent": Wrong(kept("{path: none/kept.db}", made=False), 2, "there is no folder"),
    "SQLite: a folder without writers": Wrong(kept("{path: /proc/kept.db}", made=False), 2, "cannot be written"),
    "SQLite: a folder in the file's place": Wrong(kept("{path: kept.db}", folder, made=False), 2, "cannot be written"),
    "SQLite: no database": Wrong(kept("{path: kept.db}", garbage, made=False), 3, "cannot be trusted"),
    "SQLite: an empty file": Wrong(kept("{path: kept.db}", empty, made=False), 3, "it is empty"),
    "SQLite: a link": Wrong(kept("{path: kept.db}", link, made=False), 2, "is a symbolic link"),
    "SQLite: another pipeline's": Wrong(kept("{path: kept.db}", of_another_pipeline), 2, "belongs to pipeline 'other'"),
    "DynamoDB: no table": Wrong(kept(DYNAMODB, made=False), 2, "there is no arn:aws:dynamodb:us-east-1:*:table/kept"),
    "DynamoDB: other keys": Wrong(
        kept(DYNAMODB, with_other_keys, made=False), 2, "pipeline (HASH, S) and entry (RANGE, S)"
    ),
    "DynamoDB: read-only": Wrong(kept(DYNAMODB, forbidden("PutItem")), 4, "dynamodb:PutItem on"),
    "DynamoDB: reading forbidden": Wrong(kept(DYNAMODB, forbidden("GetItem")), 4, "dynamodb:GetItem on"),
    "DynamoDB: of a newer format": Wrong(kept(DYNAMODB, of_a_newer_format), 3, "have format 99"),
    "Postgres: no database": Wrong(kept("{type: postgres, url: POSTGRESx}", made=False), 2, "does not exist"),
    "Postgres: a schema of another role": Wrong(
        kept(POSTGRES, as_a_role("CREATE USER OTHER; ALTER SCHEMA replicator OWNER TO OTHER")),
        2,
        "belongs to the role",
    ),
    "Postgres: no rights": Wrong(kept(POSTGRES, as_a_role(), made=False), 4, "GRANT CREATE ON DATABASE"),
    "Postgres: of a newer format": Wrong(kept(POSTGRES, newer_schema), 2, "the schema replicator has version 99"),
}


@pytest.mark.parametrize("name", WRONG)
def test_check_ends_as_run_would_if_checkpoints_cannot_be_stored(mirror: World, name: str) -> None:
    mirror.db.put("orders", {"id": "1"})
    WRONG[name].make(mirror)
    assert_agreed(mirror, WRONG[name])
