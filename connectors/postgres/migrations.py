"""The schema ``replicator``: creates its tables and functions, and migrates older versions."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg
from psycopg import sql

from replicator.errors import ConfigError

_FIRST: LiteralString = """
CREATE TABLE replicator.checkpoints (
  pipeline text COLLATE "C" NOT NULL,
  kind text COLLATE "C" NOT NULL,
  id text COLLATE "C" NOT NULL,
  revision bigint NOT NULL,
  value json NOT NULL,
  saved timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (pipeline, kind, id)
);
COMMENT ON TABLE replicator.checkpoints IS 'Everything durable about each pipeline. Written by replicator only.';

CREATE TABLE replicator.counts (
  pipeline text COLLATE "C" NOT NULL,
  source text COLLATE "C" NOT NULL,
  read bigint NOT NULL,
  applied bigint NOT NULL,
  stale bigint NOT NULL DEFAULT 0,
  dropped bigint NOT NULL,
  parked bigint NOT NULL,
  PRIMARY KEY (pipeline, source)
);
COMMENT ON TABLE replicator.counts IS 'What became of each change: read = applied + stale + dropped + parked.';

CREATE TABLE replicator.tombstones (
  target text COLLATE "C" NOT NULL,
  id text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  PRIMARY KEY (target, id)
);
COMMENT ON TABLE replicator.tombstones IS 'Deletes that an older scanned item must not undo. Empty after a backfill.';

CREATE FUNCTION replicator.advance(
  _pipeline text, _owner bigint,
  _kinds text[], _ids text[], _expected bigint[], _values text[],
  _sources text[], _read bigint[], _applied bigint[], _stale bigint[], _dropped bigint[], _parked bigint[]
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
DECLARE
  compared int := 0;
  already int := 0;
BEGIN
  IF _owner IS NOT NULL THEN
    -- shared with other batches of this run; a new run's claim waits for them, and then they wait for no one
    PERFORM FROM replicator.checkpoints
      WHERE pipeline = _pipeline AND kind = 'owner' AND id = '' AND revision = _owner FOR SHARE;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'another run owns pipeline %', _pipeline USING ERRCODE = 'RP001';
    END IF;
  END IF;
  FOR i IN 1 .. cardinality(_kinds) LOOP
    IF _values[i] IS NULL AND _expected[i] = 0 THEN -- came and went within one batch: nothing to do, nothing to tell
      PERFORM FROM replicator.checkpoints WHERE pipeline = _pipeline AND kind = _kinds[i] AND id = _ids[i];
      IF FOUND THEN
        RAISE EXCEPTION 'entry % % of pipeline % is there', _kinds[i], _ids[i], _pipeline USING ERRCODE = 'RP001';
      END IF;
      CONTINUE;
    ELSIF _values[i] IS NULL THEN
      DELETE FROM replicator.checkpoints
        WHERE pipeline = _pipeline AND kind = _kinds[i] AND id = _ids[i]
          AND (_expected[i] IS NULL OR revision = _expected[i]);
    ELSIF _expected[i] IS NULL THEN
      INSERT INTO replicator.checkpoints AS c (pipeline, kind, id, revision, value)
        VALUES (_pipeline, _kinds[i], _ids[i], 1, _values[i]::json)
        ON CONFLICT (pipeline, kind, id)
        DO UPDATE SET revision = c.revision + 1, value = EXCLUDED.value, saved = now();
    ELSIF _expected[i] = 0 THEN
      INSERT INTO replicator.checkpoints (pipeline, kind, id, revision, value)
        VALUES (_pipeline, _kinds[i], _ids[i], 1, _values[i]::json) ON CONFLICT DO NOTHING;
    ELSE
      UPDATE replicator.checkpoints SET revision = revision + 1, value = _values[i]::json, saved = now()
        WHERE pipeline = _pipeline AND kind = _kinds[i] AND id = _ids[i] AND revision = _expected[i];
    END IF;
    CONTINUE WHEN _expected[i] IS NULL;
    compared := compared + 1;
    IF NOT FOUND THEN
      -- this very batch may be stored, and only the answer was lost on its way
      PERFORM FROM replicator.checkpoints
        WHERE pipeline = _pipeline AND kind = _kinds[i] AND id = _ids[i]
          AND revision = _expected[i] + 1 AND value::text = _values[i];
      IF NOT FOUND AND (_values[i] IS NOT NULL OR _owner IS NULL OR EXISTS (
        SELECT FROM replicator.checkpoints WHERE pipeline = _pipeline AND kind = _kinds[i] AND id = _ids[i])) THEN
        RAISE EXCEPTION 'entry % % of pipeline % is not at revision %', _kinds[i], _ids[i], _pipeline, _expected[i]
          USING ERRCODE = 'RP001';
      END IF;
      already := already + 1;
    END IF;
  END LOOP;
  IF already > 0 THEN
    RAISE EXCEPTION 'stored already' USING ERRCODE = CASE WHEN already = compared THEN 'RP002' ELSE 'RP001' END;
  END IF;
  INSERT INTO replicator.counts AS c (pipeline, source, read, applied, stale, dropped, parked)
    SELECT _pipeline, s.source, s.read, s.applied, s.stale, s.dropped, s.parked
    FROM unnest(_sources, _read, _applied, _stale, _dropped, _parked)
      AS s (source, read, applied, stale, dropped, parked)
    ON CONFLICT (pipeline, source) DO UPDATE SET
      read = c.read + EXCLUDED.read, applied = c.applied + EXCLUDED.applied, stale = c.stale + EXCLUDED.stale,
      dropped = c.dropped + EXCLUDED.dropped, parked = c.parked + EXCLUDED.parked;
END $$;
"""

_SECOND: LiteralString = """
CREATE FUNCTION replicator.skipped() RETURNS boolean LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  RAISE EXCEPTION 'a trigger skipped a row' USING ERRCODE = 'RP003';
END $$;
"""

_THIRD: LiteralString = """
CREATE FUNCTION replicator.holds(_pipeline text, _slot text, _owner bigint)
RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  -- shared, as in advance, which follows and compares the run's entry: that is locked first here, too, because a claim
  -- of the slot locks both in this order
  PERFORM FROM replicator.checkpoints WHERE pipeline = _pipeline AND kind = 'owner' AND id = '' FOR SHARE;
  PERFORM FROM replicator.checkpoints
    WHERE pipeline = _pipeline AND kind = 'owner' AND id = _slot AND revision = _owner FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'another worker owns slot % of pipeline %', _slot, _pipeline USING ERRCODE = 'RP001';
  END IF;
END $$;
"""

_LOCK: LiteralString = """
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('replicator schema'::text, 0::bigint))"""
# Append only: each step brings a database from one version to the next.
_STEPS: tuple[LiteralString, ...] = (_FIRST, _SECOND, _THIRD)

_UNLOGGED_OWN: LiteralString = """
SELECT n.nspname::text, c.relname::text
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'replicator' AND c.relkind = 'r' AND c.relpersistence <> 'p' ORDER BY 2"""


# Superusers can do anything anyway; a role that we are a member of was granted to us by an administrator.
_FOREIGN: LiteralString = """
SELECT r.rolname, current_user::text
FROM (
  SELECT n.nspowner AS owner FROM pg_catalog.pg_namespace AS n WHERE n.nspname = 'replicator'
  UNION
  SELECT c.relowner FROM pg_catalog.pg_class AS c
  JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'replicator'
  UNION
  SELECT p.proowner FROM pg_catalog.pg_proc AS p
  JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = 'replicator'
) AS o JOIN pg_catalog.pg_roles AS r ON r.oid = o.owner
WHERE NOT r.rolsuper AND NOT pg_catalog.pg_has_role(r.oid, 'USAGE')
ORDER BY 1 LIMIT 1"""


def exists(connection: psycopg.Connection[Any]) -> bool:
    """Whether the database has replicator's tables. ConfigError if they belong to another role."""
    if (problem := foreign(connection)) is not None:
        raise ConfigError(problem)
    return _there(connection, "checkpoints")


def foreign(connection: psycopg.Connection[Any]) -> str | None:
    """Why the existing schema must not be used: its owner's code would run with our rights."""
    row = connection.execute(_FOREIGN).fetchone()
    if row is None:
        return None
    owner, user = (sql.Identifier(name).as_string(None) for name in row)
    return (
        f"the schema replicator, or something in it, belongs to the role {owner}, whose functions and triggers would "
        f"run as {user}. If you trust that role: GRANT {owner} TO {user}; if not, have replicator create its own: "
        "ALTER SCHEMA replicator RENAME TO replicator_before"
    )


def outdated(connection: psycopg.Connection[Any]) -> str | None:
    """Why this version of replicator cannot use the existing tables."""
    found = _version(connection)
    if found <= len(_STEPS):
        return None
    return f"the schema replicator has version {found}, but this replicator knows up to {len(_STEPS)}: use a newer one"


def migration(connection: psycopg.Connection[Any]) -> str:
    """What ``install`` would migrate; empty if nothing."""
    found = _version(connection) if exists(connection) else 0
    if not 0 < found < len(_STEPS):
        return ""
    return (
        f"run will migrate the schema replicator from version {found} to {len(_STEPS)}, for all pipelines of the "
        "database; older versions of replicator refuse it then (docs/deploying.md#upgrade)"
    )


def install(connection: psycopg.Connection[Any]) -> None:
    """Create the tables, or migrate them.

    ConfigError if they belong to a newer replicator or another role, or are UNLOGGED.
    """
    if exists(connection) and _version(connection) == len(_STEPS):
        if problems := own_unlogged(connection):
            raise ConfigError(*problems)
        return
    with connection.transaction():
        connection.execute(_LOCK)
        found = _version(connection)
        if (problem := outdated(connection)) is not None:
            raise ConfigError(problem)
        if found == 0:
            connection.execute("CREATE SCHEMA IF NOT EXISTS replicator")
            if (problem := foreign(connection)) is not None:  # another role created it in between
                raise ConfigError(problem)
            connection.execute(
                "CREATE TABLE replicator.version (number int PRIMARY KEY)"
            )  # a primary key, so that it can be published
        for step in _STEPS[found:]:
            connection.execute(step)
        connection.execute("DELETE FROM replicator.version")
        connection.execute("INSERT INTO replicator.version VALUES (%s)", (len(_STEPS),))


def _version(connection: psycopg.Connection[Any]) -> int:
    if not _there(connection, "version"):
        return 0
    row = connection.execute("SELECT number FROM replicator.version").fetchone()
    return 0 if row is None else int(row[0])


def _there(connection: psycopg.Connection[Any], table: LiteralString) -> bool:
    """Queries the catalog, because to_regclass fails without USAGE on the schema."""
    query = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'replicator' AND c.relname = %s)"""
    row = connection.execute(query, (table,)).fetchone()
    return row is not None and bool(row[0])


def own_unlogged(connection: psycopg.Connection[Any]) -> list[str]:
    """A sentence for each of replicator's own tables that a crash would empty."""
    return [unlogged(*row) for row in connection.execute(_UNLOGGED_OWN)]


def unlogged(*name: str) -> str:
    quoted = sql.Identifier(*name).as_string(None)
    return (
        f"{quoted} is UNLOGGED: a crash or a failover of the server empties it without an error. "
        f"ALTER TABLE {quoted} SET LOGGED"
    )
