"""Checkpoints in the schema ``replicator``: beside the rows of a Postgres target, or for any other target."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg

from connectors.postgres.encode import Statement
from connectors.postgres.errors import StoredAlready
from connectors.postgres.hazards import missing_privileges
from connectors.postgres.migrations import exists, install, migration
from connectors.postgres.options import Server, address
from connectors.postgres.session import Session
from connectors.postgres.text import literal
from replicator.batch import Part
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.errors import ConfigError, Fenced
from replicator.identity import UNKNOWN, Definition
from replicator.state import (
    FORGOTTEN,
    Counts,
    Entry,
    Owner,
    Parked,
    PipelineState,
    Save,
    decode_definition,
    decode_history,
    decode_parked,
    decode_pipeline,
    encode,
    forgotten,
    shard_of,
)
from replicator.target.contract import SECOND
from replicator.version import epoch_of

_ADVANCE = b"""SELECT replicator.advance($1::text, $2::bigint, $3::text[], $4::text[], $5::bigint[], $6::text[],
  $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[])"""
_HOLDS = b"SELECT replicator.holds($1::text, $2::text, $3::bigint)"
_FOLD = b"""WITH gone AS (
  DELETE FROM replicator.counts AS c WHERE c.pipeline = $1::text AND c.source = ANY ($2::text[]) AND NOT EXISTS (
    SELECT FROM replicator.checkpoints AS e
    WHERE e.pipeline = c.pipeline AND e.kind = 'shard' AND e.id = pg_catalog.substr(c.source, 7))
  RETURNING c.read, c.applied, c.stale, c.dropped, c.parked
)
INSERT INTO replicator.counts AS c (pipeline, source, read, applied, stale, dropped, parked)
SELECT $1::text, $3::text, pg_catalog.sum(g.read)::bigint, pg_catalog.sum(g.applied)::bigint,
  pg_catalog.sum(g.stale)::bigint, pg_catalog.sum(g.dropped)::bigint, pg_catalog.sum(g.parked)::bigint
FROM gone AS g HAVING pg_catalog.count(*) > 0
ON CONFLICT (pipeline, source) DO UPDATE SET
  read = c.read + EXCLUDED.read, applied = c.applied + EXCLUDED.applied, stale = c.stale + EXCLUDED.stale,
  dropped = c.dropped + EXCLUDED.dropped, parked = c.parked + EXCLUDED.parked"""
_CLAIM = """
INSERT INTO replicator.checkpoints AS c (pipeline, kind, id, revision, value) VALUES (%s, 'owner', %s, 1, %s)
ON CONFLICT (pipeline, kind, id) DO UPDATE SET revision = c.revision + 1, value = EXCLUDED.value RETURNING revision"""
_RUN = """
SELECT FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'owner' AND id = '' AND revision = %s FOR SHARE"""
_REBUILD = "SELECT FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'rebuild' FOR SHARE"
_OWNERS = "SELECT id, revision FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'owner'"
_ENTRIES = """
SELECT kind, id, revision, CASE kind WHEN 'parked' THEN '' ELSE value::text END
FROM replicator.checkpoints WHERE pipeline = %s ORDER BY kind, id"""
_PIPELINES = "SELECT DISTINCT pipeline FROM replicator.checkpoints ORDER BY pipeline"
_COUNTS = "SELECT source, read, applied, stale, dropped, parked FROM replicator.counts WHERE pipeline = %s"
_STATE = """
SELECT value::text FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'pipeline' AND id = ''"""
_DEFINITION = """
SELECT value::text FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'definition' AND id = ''"""
_BEGAN = """
SELECT value::text FROM replicator.checkpoints WHERE pipeline = %s AND kind = 'history' AND id = %s"""
_REQUEST = """
SELECT kind, id, revision, value::text FROM replicator.checkpoints
WHERE pipeline = %s AND kind = 'request' AND id = ''"""
_PARKED = """
SELECT id FROM replicator.checkpoints
WHERE pipeline = %s AND kind = 'parked' AND pg_catalog.starts_with(id, %s::text) ORDER BY id"""
_IMAGES = """
SELECT id, value::text FROM replicator.checkpoints
WHERE pipeline = %s AND kind = 'parked' AND id = ANY (%s::text[]) ORDER BY id"""
_AT_ONCE = 10  # parked changes to read at a time: each has up to two images of 400 KB or more


class PostgresCheckpoints:
    """One pipeline's entries and counts, saved in a batch's transaction (``advance``) or in their own (``save``).

    After ``claim``, saves fail once another run has claimed the pipeline. Without it (a command beside a run), only the
    entries' revisions are compared.
    """

    def __init__(self, session: Session, pipeline: str) -> None:
        self._session = session
        self._pipeline = pipeline
        self._claims: dict[str, int] = {}  # revisions of the owner entries that were claimed, by id
        self._stale: Counter[str] = (
            Counter()
        )  # superseded changes as stored, by source: tells what a lost response said

    @property
    def claimed(self) -> bool:
        """Whether this is a run's session: one that another run would fence off."""
        return bool(self._claims)

    def migration(self) -> str:
        with self._session.connection() as connection:
            return migration(connection)

    def claim(self, owner: Owner) -> Claimed:
        with self._session.connection() as connection:
            install(connection)
            with connection.transaction():
                self._claim(connection, owner, "")
                self._check_rebuild(connection)
                claimed = self._read(connection)
        return self._claimed({"": claimed.revision}, claimed)

    def claim_slot(self, owner: Owner, slot: str, run: int) -> Claimed:
        with self._session.connection() as connection, connection.transaction():
            held = connection.execute(_RUN, (self._pipeline, run)).fetchone()
            if held is None:
                raise Fenced("another run owns this pipeline now: this worker must stop")
            revision = self._claim(connection, owner, slot)
            claimed = self._read(connection)
        return self._claimed({"": run, slot: revision}, replace(claimed, revision=revision))

    def _claim(self, connection: psycopg.Connection[Any], owner: Owner, slot: str) -> int:
        row = connection.execute(_CLAIM, (self._pipeline, slot, encode(owner))).fetchone()
        assert row is not None
        return int(row[0])

    def _check_rebuild(self, connection: psycopg.Connection[Any]) -> None:
        """Fenced if this is a second generation whose rebuild has ended: nothing would ever remove its claim.

        After the claim, because what ends a rebuild locks the owner first, too.
        """
        first = self._pipeline.removesuffix(SECOND)
        if first != self._pipeline and connection.execute(_REBUILD, (first,)).fetchone() is None:
            raise Fenced("the rebuild has ended while the run started")

    def _claimed(self, claims: dict[str, int], claimed: Claimed) -> Claimed:
        self._claims = claims
        self._stale = Counter({source: counts.superseded for source, counts in claimed.counts.items()})
        return claimed

    def check_claims(self, connection: psycopg.Connection[Any]) -> None:
        """Fenced if another run has claimed what this one has, or a rebuild has exchanged or removed its tables."""
        if self._claims:
            owners = dict(connection.execute(_OWNERS, (self._pipeline,)).fetchall())
            if any(owners.get(id) != revision for id, revision in self._claims.items()):
                raise Fenced("another run owns this pipeline now, or a rebuild has moved on")

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        try:
            with self._session.aside() if _are_heartbeats(saves) else contextlib.nullcontext():
                self._session.send([*self._advance(saves, counts), *self.folding(saves, counts)])
                self._session.collect()
        except psycopg.Error as e:
            found = self._session.translated(e)
            if not isinstance(found, StoredAlready):
                raise found from e

    def read(self) -> Claimed:
        with self._session.connection() as connection, connection.transaction():
            return self._read(connection) if exists(connection) else Claimed(0)

    def pipelines(self) -> Sequence[str]:
        with self._session.connection() as connection:
            rows = connection.execute(_PIPELINES).fetchall() if exists(connection) else []
        return [name for (name,) in rows]

    def pipeline(self) -> PipelineState | None:
        with self._session.connection() as connection:
            row = connection.execute(_STATE, (self._pipeline,)).fetchone() if exists(connection) else None
        return None if row is None else decode_pipeline(row[0])

    def definition(self, connection: psycopg.Connection[Any]) -> Definition:
        """What the pipeline was bound to when a run last opened its tables."""
        row = connection.execute(_DEFINITION, (self._pipeline,)).fetchone() if exists(connection) else None
        return UNKNOWN if row is None else decode_definition(row[0])

    def began(self, below: int) -> float:
        """When the epoch began that a sweep of everything ``below`` a version belongs to."""
        with self._session.connection() as connection:
            row = connection.execute(_BEGAN, (self._pipeline, str(epoch_of(below)))).fetchone()
        if row is None:
            raise ConfigError(
                "the checkpoints do not tell when the epoch began, which a history needs: replicator resync CONFIG"
            )
        return decode_history(row[0]).began

    def request(self) -> Entry | None:
        with self._session.connection() as connection:
            row = connection.execute(_REQUEST, (self._pipeline,)).fetchone() if exists(connection) else None
        return None if row is None else Entry(*row)

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        with self._session.connection() as connection:
            rows = connection.execute(_PARKED, (self._pipeline, prefix)).fetchall() if exists(connection) else []
        wanted = [id for (id,) in rows if ids is None or id in ids]
        for at in range(0, len(wanted), _AT_ONCE):
            yield from self._images(wanted[at : at + _AT_ONCE])

    def _images(self, ids: Sequence[str]) -> Sequence[tuple[str, Parked]]:
        with self._session.connection() as connection:
            rows = connection.execute(_IMAGES, (self._pipeline, list(ids))).fetchall()
        return [(id, decode_parked(id, text)) for id, text in rows]

    def advance(self, saves: Sequence[Save], parts: Sequence[Part]) -> list[Statement]:
        """The statements that save entries and counts. First in their transaction, since they also fence and lock.

        It counts all writes as applied; the statements that find some of them superseded correct that.
        """
        return self._advance(saves, _by_source(parts))

    def folding(self, saves: Sequence[Save], sources: Iterable[str]) -> list[Statement]:
        """The statements, last in the transaction, that fold the counts of forgotten shards into one row."""
        shards = [source for source in sources if shard_of(source) is not None] if not self._claims else []
        gone = sorted({*forgotten(saves), *shards})
        parameters = [self._pipeline.encode(), literal(gone), FORGOTTEN.encode()]
        return [Statement(_FOLD, parameters)] if gone else []

    def _advance(self, saves: Sequence[Save], counts: Mapping[str, Counts]) -> list[Statement]:
        run = str(self._claims[""]).encode() if self._claims else None
        name = self._pipeline.encode()
        slots = {slot: revision for slot, revision in self._claims.items() if slot}
        held = [Statement(_HOLDS, [name, slot.encode(), str(r).encode()]) for slot, r in slots.items()]
        ordered = sorted(saves, key=lambda save: (save.kind, save.id))
        parameters = [
            name,
            run,
            literal([save.kind for save in ordered]),
            literal([save.id for save in ordered]),
            literal([save.expected for save in ordered]),
            literal([save.text for save in ordered]),
            literal(list(counts)),
            literal([c.read for c in counts.values()]),
            literal([c.applied for c in counts.values()]),
            literal([c.superseded for c in counts.values()]),
            literal([c.filtered for c in counts.values()]),
            literal([c.parked for c in counts.values()]),
        ]
        return [*held, Statement(_ADVANCE, parameters)]

    def noted(self, stale: Mapping[str, int]) -> None:
        """Remember the superseded counts of a response."""
        self._stale.update(stale)

    def missed(self, parts: Sequence[Part]) -> dict[str, int]:
        """The superseded counts that a lost response contained: those stored, minus those noted."""
        if not self._claims:
            return {}  # a run updates the same counts
        with self._session.connection() as connection:
            stored = {row[0]: row[3] for row in connection.execute(_COUNTS, (self._pipeline,))}
        sources = {part.source for part in parts}
        found = {s: stored.get(s, 0) - self._stale[s] for s in sources}
        self.noted(found)
        return {source: count for source, count in found.items() if count > 0}

    def _read(self, connection: psycopg.Connection[Any]) -> Claimed:
        entries = [Entry(*row) for row in connection.execute(_ENTRIES, (self._pipeline,))]
        rows = connection.execute(_COUNTS, (self._pipeline,)).fetchall()
        owner = next((e.revision for e in entries if (e.kind, e.id) == ("owner", "")), 0)
        return Claimed(owner, entries, {row[0]: Counts(*row[1:]) for row in rows})


def _are_heartbeats(saves: Sequence[Save]) -> bool:
    return bool(saves) and all(save.kind == "pulse" and save.expected is None for save in saves)


def _by_source(parts: Sequence[Part]) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for part in parts:
        applied = Counts(applied=sum(write.weight for write in part.writes))
        found[part.source] = found.get(part.source, Counts()) + part.counts + applied
    return {source: counts for source, counts in sorted(found.items()) if counts != Counts()}


class PostgresStore(PostgresCheckpoints):
    """Checkpoints of a pipeline with another target, on their own connection."""

    Options = Server

    def __init__(self, options: Server, pipeline: str, base: Path) -> None:
        super().__init__(Session(options, "checkpoints"), pipeline)
        self._address = address(options.url.get_secret_value())

    @property
    def place(self) -> str:
        return f"the schema replicator of Postgres at {self._address}"

    def check(self) -> Sequence[str]:
        with self._session.connection() as connection:
            return [type(text)(f"checkpoints: {text}") for text in missing_privileges(connection, ())]

    def plan(self) -> Sequence[str]:
        with self._session.connection() as connection:
            return [] if exists(connection) else [f"CREATE SCHEMA replicator, at {self._address}"]

    def create(self) -> None:
        with self._session.connection() as connection:
            install(connection)

    def close(self) -> None:
        self._session.close()
