"""Postgres keeps the contract of stores: beside its own rows, and for a target that has no transactions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from connectors.postgres import PostgresStore
from connectors.postgres.options import Server
from replicator.errors import ConfigError, NotPermitted, TransientError
from replicator.state import Counts, Save
from replicator.testing.checkpoints_contract import Build, CheckpointsContract, SlottedContract, owner
from replicator.testing.proxy import Proxy
from tests.connectors.postgres.postgres_kit import run, target
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres


def store(url: str, pipeline: str = "contract") -> PostgresStore:
    return PostgresStore(Server.model_validate({"url": url}), pipeline, Path("/"))


class TestPostgresStore(CheckpointsContract, SlottedContract):
    @pytest.fixture
    def store(self, postgres: Database) -> Build:
        return lambda pipeline: store(postgres.url, pipeline)


class TestPostgresTarget(CheckpointsContract, SlottedContract):
    """The checkpoints that a Postgres target keeps beside its rows."""

    @pytest.fixture
    def store(self, one_postgres: Database) -> Build:
        return lambda pipeline: target(one_postgres, pipeline).checkpoints


def test_its_schema_is_created_by_check_create_or_by_the_first_run(one_postgres: Database) -> None:
    one = store(one_postgres.url)
    server = f"127.0.0.1:{one_postgres.server.port}/"
    assert one.check() == []
    (plan,) = one.plan()
    assert plan.startswith(f"CREATE SCHEMA replicator, at {server}")
    assert one.place.startswith(f"the schema replicator of Postgres at {server}")
    one.create()
    assert one.plan() == []
    one.close()


def test_a_role_without_privileges_is_told_which_to_grant(one_postgres: Database) -> None:
    run(one_postgres, "DROP ROLE IF EXISTS guest")
    run(one_postgres, "CREATE ROLE guest LOGIN PASSWORD 'guest'")
    one = store(one_postgres.url.replace("//postgres", "//guest:guest", 1))
    (problem,) = one.check()
    words, _, grant = problem.partition(": GRANT")
    assert words == "checkpoints: the schema replicator cannot be created"
    with pytest.raises(NotPermitted, match=re.escape(f"GRANT{grant} (for the schema replicator)")):
        one.claim(owner())
    one.close()
    run(one_postgres, "DROP ROLE guest")


def test_an_error_in_its_address_names_the_checkpoints_section(one_postgres: Database) -> None:
    with pytest.raises(ConfigError, match=r'database "nowhere" does not exist; correct checkpoints\.url'):
        store(one_postgres.url.rpartition("/")[0] + "/nowhere").claim(owner())


def test_a_save_whose_response_was_lost_is_applied_once(one_postgres: Database) -> None:
    port = one_postgres.server.port
    with Proxy("127.0.0.1", port) as proxy:
        one = store(one_postgres.url.replace(f":{port}/", f":{proxy.port}/"))
        one.claim(owner())
        saves, more = [Save("shard", "a", 0, '"1"')], {"shard:a": Counts(read=3, applied=1, superseded=2)}
        proxy.lose_responses()
        with pytest.raises(TransientError):
            one.save(saves, more)
        proxy.heal()
        one.save(saves, more)
        assert one.read().counts == more
        one.close()
