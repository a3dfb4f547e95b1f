"""Other roles of the database: what they put where we look must never run with our rights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.postgres import Postgres, PostgresStore
from connectors.postgres.liveness import _state
from connectors.postgres.options import Server
from replicator.batch import Outcome
from replicator.errors import ConfigError
from replicator.state import Save
from replicator.target.contract import Table
from replicator.testing.contract import at, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.postgres.postgres_kit import PK, owner, run, target, typed
from tests.servers.postgres_fixtures import Database

pytestmark = pytest.mark.postgres

TABLE = typed(total="numeric", seen="timestamptz", tags="text[]", more="jsonb")

# Each would be chosen over the system's own by a call or an operator that names no schema and fits them better.
TRAPS = """
CREATE TABLE public.loot (who text); GRANT INSERT ON public.loot TO PUBLIC;
CREATE FUNCTION public.trap() RETURNS bigint LANGUAGE sql AS
'INSERT INTO public.loot VALUES (current_user) RETURNING 1';
CREATE FUNCTION public.hashtextextended(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT public.trap()';
CREATE FUNCTION public.pg_advisory_xact_lock(int) RETURNS bigint LANGUAGE sql AS 'SELECT public.trap()';
CREATE FUNCTION public.encode(bytea, varchar) RETURNS text LANGUAGE sql AS 'SELECT public.trap()::text';
CREATE FUNCTION public.starts_with(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()=1';
CREATE FUNCTION public.has_schema_privilege(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()=1';
CREATE FUNCTION public.has_table_privilege(varchar, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()=1';
CREATE FUNCTION public.has_database_privilege(name, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()=1';
CREATE FUNCTION public.pg_has_role(oid, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap()=1';
CREATE FUNCTION public.col_description(oid, smallint) RETURNS text LANGUAGE sql AS 'SELECT public.trap()::text';
CREATE FUNCTION public.same(name, varchar) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap() = 1';
CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = varchar, FUNCTION = public.same);
CREATE FUNCTION public.same(int, smallint) RETURNS boolean LANGUAGE sql AS 'SELECT public.trap() = 1';
CREATE OPERATOR public.= (LEFTARG = int, RIGHTARG = smallint, FUNCTION = public.same);
CREATE FUNCTION public.joined(text, varchar) RETURNS text LANGUAGE sql AS 'SELECT public.trap()::text';
CREATE OPERATOR public.|| (LEFTARG = text, RIGHTARG = varchar, FUNCTION = public.joined);
CREATE FUNCTION public.pg_backend_pid() RETURNS int LANGUAGE sql AS 'SELECT public.trap()::int';
CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT public.trap(); SELECT pg_catalog.now()';
CREATE FUNCTION public.count(anyelement) RETURNS bigint LANGUAGE sql AS 'SELECT public.trap()';
CREATE VIEW public.pg_namespace AS SELECT public.trap() AS oid, 'replicator'::name AS nspname;
CREATE VIEW public.pg_class AS SELECT public.trap() AS oid, 'contract'::name AS relname;
CREATE VIEW public.pg_stat_activity AS SELECT public.trap()::int AS pid, 'idle'::text AS state;
CREATE DOMAIN public.numeric AS pg_catalog.numeric CHECK (public.trap() = 1);
CREATE DOMAIN public.jsonb AS pg_catalog.jsonb CHECK (public.trap() = 1);
GRANT SELECT ON public.pg_namespace, public.pg_class, public.pg_stat_activity TO PUBLIC;
"""


@pytest.fixture
def shared(one_postgres: Database) -> Iterator[Database]:
    """A database of the role ``ours``, in whose schema ``public`` the role ``mallory`` may create things."""
    run(one_postgres, "CREATE ROLE ours LOGIN; CREATE ROLE mallory LOGIN")
    run(one_postgres, f'ALTER DATABASE "{one_postgres.name}" OWNER TO ours; GRANT CREATE ON SCHEMA public TO mallory')
    run(one_postgres, f'GRANT CREATE ON DATABASE "{one_postgres.name}" TO mallory')
    yield one_postgres
    run(one_postgres, f'ALTER DATABASE "{one_postgres.name}" OWNER TO postgres')
    run(one_postgres, "DROP OWNED BY mallory, ours CASCADE; DROP ROLE mallory; DROP ROLE ours")


def _url(database: Database, user: str = "ours") -> str:
    return database.server.url(database.name, user)


def _as(database: Database, user: str, statement: str) -> None:
    with psycopg.connect(_url(database, user), autocommit=True) as client:
        client.execute(statement)


def _ours(database: Database) -> Postgres:
    return target(database, url=_url(database))


def _loot(database: Database) -> list[Any]:
    with database.connect() as client:
        return client.execute("SELECT who FROM public.loot").fetchall()


def test_a_table_with_row_level_security_for_replicators_role_is_refused(shared: Database) -> None:
    """A policy would hide rows from deletes, which count as done."""
    run(shared, "GRANT CREATE ON SCHEMA public TO ours")
    one = _ours(shared)
    one.open([TABLE], FIRST_EPOCH)
    _as(shared, "ours", "ALTER TABLE contract ENABLE ROW LEVEL SECURITY")
    assert list(one.check([TABLE])) == [], "an owner is not concerned"
    _as(shared, "ours", "ALTER TABLE contract FORCE ROW LEVEL SECURITY")
    problem = (
        '"public"."contract" has row level security that applies to the role "ours": rows that a policy hides would '
        'be neither updated nor deleted. ALTER TABLE "public"."contract" NO FORCE ROW LEVEL SECURITY, or ALTER ROLE '
        '"ours" BYPASSRLS'
    )
    assert list(one.check([TABLE])) == [problem]
    with pytest.raises(ConfigError) as refused:
        one.open([TABLE], FIRST_EPOCH)
    assert list(refused.value.problems) == [problem]
    run(shared, "ALTER ROLE ours BYPASSRLS")
    assert list(one.check([TABLE])) == []
    one.open([TABLE], FIRST_EPOCH)


def test_the_tables_of_a_history_must_belong_to_replicators_role(shared: Database) -> None:
    """Only their owner may add and remove partitions."""
    run(shared, "GRANT CREATE ON SCHEMA public TO ours")
    one, kept = _ours(shared), replace(TABLE, options={**TABLE.options, "history": {"keep": "2d"}})
    one.open([kept], FIRST_EPOCH)
    for name in ("contract_history", "contract_history_base"):
        run(shared, f"ALTER TABLE {name} OWNER TO mallory; GRANT ALL ON {name} TO ours")
        (problem,) = one.check([kept])
        assert problem.startswith(f'"public"."{name}" belongs to the role mallory')
        run(shared, f"ALTER TABLE {name} OWNER TO ours")
    ((partition,),) = _partitions(shared)[:1]
    run(shared, f"ALTER TABLE {partition} OWNER TO mallory")
    assert list(one.check([kept])) == [], "the owner of the history may remove it"


def _partitions(database: Database) -> list[Any]:
    with database.connect() as client:
        return client.execute("SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1").fetchall()


@pytest.mark.parametrize("path", [None, "public, pg_catalog"])
def test_no_function_in_a_schema_that_others_can_write_to_is_called(shared: Database, path: str | None) -> None:
    """Every statement of the target, with functions, operators, types and views around that fit it better."""
    _as(shared, "mallory", TRAPS)
    if path is not None:
        run(shared, f'ALTER DATABASE "{shared.name}" SET search_path = {path}')
    _everything(_ours(shared))
    _url_of_store = Server.model_validate({"url": _url(shared)})
    store = PostgresStore(_url_of_store, "store", Path())
    store.create()
    assert (store.check(), store.plan()) == ([], [])
    store.claim(owner())
    store.save([Save("shard", "s", 0, "1")])
    assert list(store.parked("a")) == []
    store.close()
    assert _state(_url(shared), {}, 5.0, 0) is not None
    assert _loot(shared) == []


def _everything(one: Postgres) -> None:
    assert one.check([TABLE]) == []
    assert len(one.plan([TABLE])) == 1
    assert one.epoch([TABLE]) is None
    one.open([TABLE], FIRST_EPOCH)
    assert one.check([TABLE]) == []
    one.checkpoints.claim(owner())
    row = {"pk": "a", "total": 1, "seen": "2026-01-31T12:00:00Z", "tags": {"x"}, "more": {"y": 1}}
    for tombstones in (False, True):
        saves = [Save("shard", f"{tombstones}", 0, "1")]
        given = batch(put(row, 5), remove("b", 5), saves=saves, tombstones=tombstones)
        assert not one.write(given).rejections
    assert one.write(batch(put(row, 1), remove("a", 1))).superseded == {"shard:contract": 2}
    one.checkpoints.read()
    assert one.sweep(TABLE, at(9), [("b",)]) == 1
    assert one.purge(TABLE, at(10)) > 0


def test_every_connection_has_only_the_catalog_in_its_search_path(shared: Database) -> None:
    with _ours(shared)._session.connection() as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("pg_catalog, pg_temp",)


# a schema, a table or a function of another role


SQUATTED = "the schema replicator, or something in it, belongs to the role {0}, whose functions and triggers"


def _refused(shared: Database, role: str = '"mallory"') -> None:
    words = SQUATTED.format(role)
    one = _ours(shared)
    assert [p for p in one.check([TABLE]) if p.startswith(words)]
    with pytest.raises(ConfigError, match=words):
        one.open([TABLE], FIRST_EPOCH)
    for call in (lambda: one.checkpoints.claim(owner()), one.checkpoints.read, lambda: list(one.checkpoints.parked())):
        with pytest.raises(ConfigError, match=words):
            call()
    store = PostgresStore(Server.model_validate({"url": _url(shared)}), "store", Path())
    (problem,) = store.check()
    assert problem.startswith(f'checkpoints: {words} would run as "ours". If you trust that role: GRANT {role} TO')
    for act in (store.plan, store.create):
        with pytest.raises(ConfigError, match=words):
            act()
    store.close()


def test_a_schema_created_by_another_role_is_refused(shared: Database) -> None:
    _as(shared, "mallory", "CREATE SCHEMA replicator; GRANT ALL ON SCHEMA replicator TO ours")
    _refused(shared)


@pytest.mark.parametrize(
    "planted",
    [
        "CREATE FUNCTION replicator.advance() RETURNS void LANGUAGE sql AS ''",
        "CREATE TABLE replicator.checkpoints (pipeline text, kind text, id text, revision bigint, value json)",
        "CREATE VIEW replicator.version AS SELECT 1 AS number",
    ],
)
def test_an_object_of_another_role_in_the_schema_is_refused(shared: Database, planted: str) -> None:
    _as(shared, "ours", "CREATE SCHEMA replicator; GRANT ALL ON SCHEMA replicator TO mallory")
    _as(shared, "mallory", planted)
    _refused(shared)


def test_both_remedies_for_a_schema_of_another_role_work(shared: Database) -> None:
    """Either a role that is trusted, or a schema of our own."""
    _as(shared, "mallory", "CREATE SCHEMA replicator")
    run(shared, "GRANT mallory TO ours")
    one = _ours(shared)
    one.open([TABLE], FIRST_EPOCH)
    run(shared, "REVOKE mallory FROM ours; ALTER SCHEMA replicator RENAME TO replicator_before")
    one.close()
    one.open([TABLE], FIRST_EPOCH)
    assert one.check([TABLE]) == []


def test_a_schema_created_by_a_superuser_is_accepted(shared: Database) -> None:
    target(shared).open([TABLE], FIRST_EPOCH)
    run(shared, "GRANT USAGE ON SCHEMA replicator TO ours; GRANT ALL ON ALL TABLES IN SCHEMA replicator TO ours")
    run(shared, "ALTER TABLE contract OWNER TO ours")
    one = _ours(shared)
    assert one.check([TABLE]) == []
    one.checkpoints.claim(owner())


def test_a_table_created_by_another_role_is_refused(shared: Database) -> None:
    """Also with our note on it: else its triggers would run with our rights."""
    _as(
        shared,
        "mallory",
        """CREATE TABLE public.contract (pk text COLLATE "C" PRIMARY KEY, document jsonb, _version bigint NOT NULL);
        COMMENT ON COLUMN public.contract._version IS 'replicator: pipeline contract, epoch 1024';
        GRANT ALL ON public.contract TO ours""",
    )
    wanted = Table("contract", PK)
    words = (
        '"public"."contract" belongs to the role mallory, whose triggers would run as ours, and only its owner may '
        'note the epoch. If you trust what is in it: ALTER TABLE "public"."contract" OWNER TO "ours"'
    )
    one = _ours(shared)
    assert words in one.check([wanted])
    with pytest.raises(ConfigError) as refused:
        one.open([wanted], FIRST_EPOCH)
    assert words in refused.value.problems


def test_a_trigger_that_needs_a_search_path_is_explained(shared: Database) -> None:
    one = _ours(shared)
    one.open([TABLE], FIRST_EPOCH)
    trigger = """CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql {} AS $$
    BEGIN INSERT INTO audits VALUES (NEW.pk); RETURN NEW; END $$"""
    run(shared, f"CREATE TABLE public.audits (pk text); GRANT ALL ON public.audits TO ours; {trigger.format('')}")
    run(shared, "CREATE TRIGGER audit BEFORE INSERT ON contract FOR EACH ROW EXECUTE FUNCTION public.audit()")
    with pytest.raises(ConfigError) as refused:
        one.write(batch(put({"pk": "a"}, 1)))
    assert str(refused.value).endswith(
        "a trigger or function raised UndefinedTable (SQLSTATE 42P01); replicator's sessions have "
        "search_path = pg_catalog, pg_temp, so a function that needs another one must say so: "
        "ALTER FUNCTION … SET search_path = …"
    )
    run(shared, "ALTER FUNCTION public.audit() SET search_path = public")
    assert one.write(batch(put({"pk": "a"}, 1))) == Outcome()


def test_a_view_of_another_role_keeps_tables_from_being_exchanged(shared: Database) -> None:
    """Only its owner could make it again, and it would go on with the old table."""
    run(shared, "GRANT CREATE ON SCHEMA public TO ours")
    one = _ours(shared)
    one.open([TABLE], FIRST_EPOCH)
    _as(shared, "ours", "GRANT SELECT ON contract TO mallory; CREATE VIEW public.mine AS SELECT pk FROM contract")
    _as(shared, "mallory", "CREATE VIEW public.theirs AS SELECT pk FROM public.contract")
    assert one.rebuild_problems([TABLE], [replace(TABLE, stored_as="contract_new")]) == [
        '"public"."contract" cannot be exchanged because of the view public.theirs, which belongs to the role mallory, '
        "which would stay with the old table: drop it, and create it again after the switch"
    ]


def test_a_rebuild_of_a_table_whose_owner_could_not_own_the_new_one_is_refused_at_the_start(shared: Database) -> None:
    run(shared, "GRANT CREATE ON SCHEMA public TO ours; GRANT mallory TO ours")
    run(shared, "REVOKE CREATE ON SCHEMA public FROM mallory")
    one = _ours(shared)
    one.open([TABLE], FIRST_EPOCH)
    run(shared, "ALTER TABLE public.contract OWNER TO mallory")
    new = replace(TABLE, stored_as="contract_new")
    with pytest.raises(ConfigError) as refused:
        one.prepare([TABLE], [new], "contract@new", Save("rebuild", "", 0, "{}"))
    (problem,) = refused.value.problems
    assert problem == (
        '"public"."contract_new" cannot belong to the role "mallory", as the live table does: permission denied for '
        'schema public. GRANT CREATE ON SCHEMA "public" TO "mallory", and let replicator\'s role SET ROLE to it; or '
        "give the live table to replicator's role"
    )
    assert one.epoch([new]) is None
    run(shared, "GRANT CREATE ON SCHEMA public TO mallory")
    assert one.prepare([TABLE], [new], "contract@new", Save("rebuild", "", 0, "{}")) == []
