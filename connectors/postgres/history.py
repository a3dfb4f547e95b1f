"""The history beside a table (``history: true``): its tables and partitions, and the rows of a batch.

``NAME_history`` has one row per document, time and sequence number of the stream record, so that a record adds nothing
when it is read again, be it in another epoch, which gives it another version. It is partitioned by time.
``NAME_history_base`` has the state of the documents whose last row was in a partition that retention has removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg import sql

from connectors.postgres import catalog
from connectors.postgres.cells import python_encoder
from connectors.postgres.columns import UNUSUAL
from connectors.postgres.history_note import Partition, base_of, gone, losses, note, note_partitions, partitions, since
from connectors.postgres.options import Nul
from connectors.postgres.table_schema import HISTORY_COLUMNS, LONGEST_NAME, TableSchema, continued_by, history_of
from connectors.postgres.text import JsonText, json_literal, literal
from replicator.batch import Past
from replicator.errors import ConfigError
from replicator.items.attributes import Malformed
from replicator.items.item import Item
from replicator.target.contract import SECOND
from replicator.target.verification import HISTORY_FIELD, HISTORY_ORDER

DAY = 86_400
_PERIODS = ((31, 1), (366, 7))  # days kept, at most; days per partition
_LONGEST_PERIOD = 30  # days
AHEAD = 2  # days for which partitions are made ahead

_ORDER = {"_changed_at", "_sequence"}  # the columns of the primary key after those of the table's key
_COLUMNS = """  _changed_at timestamptz NOT NULL,
  _sequence text COLLATE "C" NOT NULL,
  _version bigint NOT NULL,
  _operation text NOT NULL,
  _old jsonb,
  _new jsonb,
  _problem text,
  PRIMARY KEY ({})"""

_INSERT = """INSERT INTO {history} AS h
  ({keys}, _changed_at, _sequence, _version, _operation, _old, _new, _problem)
SELECT {values}, pg_catalog.to_timestamp(d.at), d.s, d.v, d.op, d.o, d.n, d.p
FROM (SELECT {rows}) AS d{unless_known}
ON CONFLICT ({keys}, _changed_at, _sequence) DO UPDATE
SET _operation = EXCLUDED._operation, _old = EXCLUDED._old, _new = EXCLUDED._new, _problem = NULL
WHERE h._problem IS NOT NULL AND EXCLUDED._problem IS NULL"""

# A document's changes are ordered by time and sequence number: versions are of the epoch that has added a row, and a
# later epoch may add one in between. What a scan or a sweep found is newer than a change that an earlier epoch has
# added, unless that is of a later time (as after an export); and older than one that its own epoch or a later one has.
# A record may be in the base and again in the history: its change was parked, and is retried after retention has moved
# it. The row with a document tells the state then, of two the one that was added last.
_NEWEST = (
    "t._changed_at DESC, pg_catalog.length(t._sequence) DESC, t._sequence DESC, t._problem IS NULL DESC, "
    "t._version DESC"
)
_IS_NEWER = "l._version >= s._version OR l._changed_at >= s._changed_at"

# What a scan finds is news only if it differs from the last row, and if the stream has said nothing since.
_LAST_OF_ONE = """
LEFT JOIN LATERAL (
  SELECT * FROM (SELECT * FROM {history} UNION ALL SELECT * FROM {base}) AS t
  WHERE {matches} AND t._sequence <> '' ORDER BY {newest} LIMIT 1) AS l ON true
LEFT JOIN LATERAL (
  SELECT * FROM (SELECT * FROM {history} UNION ALL SELECT * FROM {base}) AS t
  WHERE {matches} AND t._sequence = '' ORDER BY t._version DESC LIMIT 1) AS s ON true"""
_UNLESS_KNOWN = """{last}
WHERE NOT CASE
  WHEN l._version IS NOT NULL AND (s._version IS NULL OR {is_newer})
    THEN l._version > d.v OR l._changed_at >= pg_catalog.to_timestamp(d.at)
      OR (l._new IS NOT DISTINCT FROM d.n AND l._problem IS NOT DISTINCT FROM d.p)
  WHEN s._version IS NOT NULL
    THEN s._version > d.v OR (s._version = d.v AND s._problem IS NULL)
      OR (s._new IS NOT DISTINCT FROM d.n AND s._problem IS NOT DISTINCT FROM d.p)
  ELSE d.n IS NULL AND d.p IS NULL END"""

_LAST = """
  WITH l AS (SELECT DISTINCT ON ({names}) t.* FROM {rows} AS t WHERE t._sequence <> '' ORDER BY {names}, {newest}),
  s AS (SELECT DISTINCT ON ({names}) t.* FROM {rows} AS t WHERE t._sequence = '' ORDER BY {names}, t._version DESC)
  SELECT l.* FROM l LEFT JOIN s ON {same} WHERE s._version IS NULL OR {is_newer}
  UNION ALL SELECT s.* FROM s LEFT JOIN l ON {same} WHERE l._version IS NULL OR NOT ({is_newer})"""

_FOLD = """
WITH known AS (SELECT * FROM {part} UNION ALL SELECT b.* FROM {base} AS b JOIN {part} AS p ON {same}),
last AS ({last})
INSERT INTO {base} AS b ({keys}, {columns}) SELECT DISTINCT {keys}, {columns} FROM last
ON CONFLICT ({keys}) DO UPDATE SET ({columns}) = ({values})"""
_FOLDING = """
SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('replicator history ' || %s::text, 0::bigint))"""
_MAY_DROP = "LOCK TABLE ONLY {history}, ONLY {part} IN ACCESS EXCLUSIVE MODE"
_STAYS = "LOCK TABLE ONLY {part} IN SHARE MODE"  # else a parked change that is retried meanwhile would be dropped
_GONE = "DELETE FROM {base} AS b USING {part} AS p WHERE {same} AND b._new IS NULL AND b._problem IS NULL"

# Whether the last state that a history tells is another than the expected one, and whether the order of the newest
# changes is not that of their versions. A document that is expected to have none, or is not known, is not compared.
_DIFFERS = """CASE WHEN d.h IS NOT NULL AND NOT coalesce((
  SELECT CASE WHEN l._version IS NOT NULL AND (s._version IS NULL OR {is_newer})
    THEN l._problem IS NOT NULL OR l._new IS NOT DISTINCT FROM d.h
    ELSE s._problem IS NOT NULL OR s._new IS NOT DISTINCT FROM d.h END
  FROM (SELECT) AS one{last}
  WHERE l._version IS NOT NULL OR s._version IS NOT NULL), false) THEN {state} END"""
_UNORDERED = """CASE WHEN EXISTS (
  SELECT FROM (
    SELECT r._version AS later, pg_catalog.lead(r._version) OVER (ORDER BY r.place) AS earlier
    FROM (
      SELECT t._version, pg_catalog.row_number() OVER (ORDER BY {newest}) AS place FROM {history} AS t
      WHERE {matches} AND t._sequence <> '' ORDER BY {newest} LIMIT {most}) AS r
  ) AS pair WHERE pair.later >> 48 = pair.earlier >> 48 AND pair.later <= pair.earlier) THEN {order} END"""
_ORDERED = 100  # newest changes of a document whose order is checked

# Documents that the history has, and the table has not after a scan: they were parked, or the table was made anew.
_SWEEP = """
WITH known AS (SELECT * FROM {history} UNION ALL SELECT * FROM {base}),
last AS ({last})
INSERT INTO {history} ({keys}, _changed_at, _sequence, _version, _operation)
SELECT {keys}, pg_catalog.to_timestamp({began}), '', {below}, 'remove' FROM last AS t
WHERE (t._new IS NOT NULL OR t._problem IS NOT NULL) AND t._version < {below}
  AND NOT EXISTS (SELECT FROM {table} AS o WHERE {same} AND o._version >= {below}){spared}
ON CONFLICT DO NOTHING"""
_TAKEN = """
SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s"""
_SINCE = "replicator: changes are kept since "  # then seconds since 1970


def missing_tables(connection: psycopg.Connection[Any], shape: TableSchema) -> list[sql.Composed]:
    """The statements that create what a table's history lacks."""
    statement = sql.SQL("CREATE TABLE {} (\n{},\n{}\n){}")
    key_columns = sql.SQL(",\n").join(
        sql.SQL("  {} {} NOT NULL").format(sql.Identifier(k.name), catalog.key_type(k.type)) for k in shape.keys
    )
    keys = _names(shape)
    by_time = sql.SQL("{}, _changed_at, _sequence").format(keys), " PARTITION BY RANGE (_changed_at)"
    return [
        statement.format(table.qualified, key_columns, sql.SQL(_COLUMNS).format(primary), sql.SQL(partitioned))
        for table, (primary, partitioned) in ((history_of(shape), by_time), (base_of(shape), (keys, "")))
        if catalog.found(connection, table) is None
    ]


def problems(connection: psycopg.Connection[Any], shape: TableSchema, pipeline: str) -> Iterator[str]:
    """Why what exists cannot be the history of ``shape``, a sentence each."""
    history, base = history_of(shape), base_of(shape)
    keys = {key.name for key in shape.keys}
    table = catalog.found(connection, history)
    if table is not None and (table.kind != "p" or table.primary != keys | _ORDER):
        yield f"{history.label} exists, but is no history of {shape.label} with this key; rename it"
    elif table is not None:
        yield from catalog.taken(history, table, pipeline)
        yield from catalog.foreign(history, table)
        yield from catalog.column_differences(history, table, _columns(shape))
        yield from catalog.required_columns(history, table, _columns(shape))
    beside = catalog.found(connection, base)
    if beside is not None and (beside.primary != keys or "_problem" not in beside.columns):
        yield f"{base.label} exists, but does not belong to {history.label}; rename it"
    elif beside is not None:
        yield from catalog.foreign(base, beside)
        yield from catalog.column_differences(base, beside, _columns(shape))
        yield from catalog.required_columns(base, beside, _columns(shape))


def continuation_problems(connection: psycopg.Connection[Any], shape: TableSchema, pipeline: str) -> Iterator[str]:
    """If a rebuild makes ``shape``: why its history cannot continue the one that exists, a sentence each."""
    table, pipeline = continued_by(shape), pipeline.removesuffix(SECOND)
    if table is None:
        return
    history = history_of(table)
    there, keys = catalog.found(connection, history), [key.name for key in shape.keys]
    if there is None or there.pipeline != pipeline or there.primary == _ORDER.union(keys):
        yield from problems(connection, table, pipeline)
    else:
        before = ", ".join(name for name in there.columns if name in there.primary and name not in _ORDER)
        yield (
            f"{history.label} has the key ({before}), and documents of the new copy have ({', '.join(keys)}), so "
            f"that its history cannot continue that one. Leave history: out of the new config; after rebuild finish, "
            f"rename {history.label} and {base_of(table).label}, set history: again and begin a new one with: "
            "replicator resync CONFIG"
        )


def _columns(shape: TableSchema) -> Mapping[str, tuple[str, bool]]:
    """The type of each column, and whether it is NOT NULL."""
    return {key.name: (key.type, True) for key in shape.keys} | HISTORY_COLUMNS


def open_for(connection: psycopg.Connection[Any], shape: TableSchema, pipeline: str, epoch: int, before: int) -> None:
    """Create the history, or take it up in an epoch. ``before``: the one noted on the table, 0 for a new table.

    A new epoch begins with a scan, so that a history of which a part is lost tells everything from then on.
    ConfigError if it was removed during the epoch.
    """
    history = history_of(shape)
    there = catalog.found(connection, history)
    if there is None:
        if before >= epoch:
            raise ConfigError(gone(shape))
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(base_of(shape).qualified))  # of an earlier one
    begins = there is None or (there.epoch < epoch and any(losses(connection, shape, scanned=True)))
    first = epoch if begins or there is None else since(connection, there)
    for statement in missing_tables(connection, shape):
        connection.execute(statement)
    if there is None or there.epoch < epoch:
        connection.execute(catalog.comment(history, pipeline, epoch))
    if begins:
        note(connection, shape, first, {one.oid: (one.first, one.last) for one in partitions(connection, shape)})


def days_per_partition(keep: int | None) -> int:
    """How many days a partition covers, for history that is kept for ``keep`` days (None: for good)."""
    return next((days for most, days in _PERIODS if keep is not None and keep <= most), _LONGEST_PERIOD)


def missing(there: Sequence[Partition], times: Iterable[float], days: int) -> list[tuple[float, float]]:
    """The ranges of the partitions that ``times`` need, beside those that are ``there``, whatever length those have."""
    found = [(one.first, one.last) for one in there]
    made: list[tuple[float, float]] = []
    for time in sorted(times):
        if not any(first <= time < last for first, last in found):
            first = time // (days * DAY) * (days * DAY)
            last = first + days * DAY
            first = max([first, *(end for _, end in found if end <= time)])
            last = min([last, *(begin for begin, _ in found if begin > time)])
            made.append((first, last))
            found.append((first, last))
    return made


def add_partitions(connection: psycopg.Connection[Any], shape: TableSchema, times: Iterable[float]) -> list[Partition]:
    """Create the partitions that ``times`` need; returns all. In a transaction that no other process makes them in.

    They are attached, which lets readers and writers of the history go on.
    """
    there = partitions(connection, shape)
    history = history_of(shape)
    times_made = missing(there, times, days_per_partition(shape.keep))
    for first, last in times_made:
        made = sql.Identifier(history.schema, _free_name(connection, history, first))
        connection.execute(
            sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING ALL EXCLUDING COMMENTS)").format(made, history.qualified)
        )
        attach = "ALTER TABLE {} ATTACH PARTITION {} FOR VALUES FROM ({}) TO ({})"
        bounds = (sql.Literal(datetime.fromtimestamp(at, UTC).isoformat()) for at in (first, last))
        connection.execute(sql.SQL(attach).format(history.qualified, made, *bounds))
    if times_made:
        there = partitions(connection, shape)
    note_partitions(connection, shape, there)
    return there


def _free_name(connection: psycopg.Connection[Any], history: TableSchema, first: float) -> str:
    """The name of a partition, by its first day. A partition that was detached may have kept that name."""
    day = f"_{datetime.fromtimestamp(first, UTC):%Y%m%d}"
    for suffix in itertools.chain([day], (f"{day}_{n}" for n in itertools.count(2))):
        room = LONGEST_NAME - len(suffix.encode())
        name = history.name.encode()[:room].decode(errors="ignore") + suffix
        if connection.execute(_TAKEN, (history.schema, name)).fetchone() is None:
            return name
    raise AssertionError


def fold_oldest(
    connection: psycopg.Connection[Any], shape: TableSchema, limit_next: Callable[[], None] = lambda: None
) -> Partition | None:
    """Move to the base what the documents were last in the oldest partition, if all of it is older than what is kept.

    None if it is not. A document that was gone needs no row: it still is that, until its next change. In a transaction,
    in which ``drop`` follows; until its end, others that fold this history or write to the partition wait. A reader
    that holds the history is noticed first, after ``lock_timeout``. ``limit_next``: called before each long statement.
    """
    assert shape.keep is not None
    connection.execute(_FOLDING, (history_of(shape).label,))
    there = partitions(connection, shape)
    limit = _now(connection) - shape.keep * DAY
    if not there or there[0].last > limit:
        return None
    oldest = there[0]
    names: dict[str, sql.Composable] = {
        "history": history_of(shape).qualified,
        "part": sql.Identifier(oldest.schema, oldest.name),
        "base": base_of(shape).qualified,
        "keys": _names(shape),
        "columns": sql.SQL(", ").join(map(sql.SQL, HISTORY_COLUMNS)),
        "values": sql.SQL(", ").join(sql.SQL(f"EXCLUDED.{name}") for name in HISTORY_COLUMNS),
        "same": sql.SQL(" AND ").join(sql.SQL("b.{0} = p.{0}").format(sql.Identifier(k.name)) for k in shape.keys),
        "last": last_of(sql.SQL("known"), [key.name for key in shape.keys]),
    }
    with connection.transaction(force_rollback=True):  # which releases the lock
        connection.execute(sql.SQL(_MAY_DROP).format(**names))
    allow_joins(connection)
    for statement in (_STAYS, _FOLD, _GONE):
        limit_next()
        connection.execute(sql.SQL(statement).format(**names))
    return oldest


def drop(connection: psycopg.Connection[Any], shape: TableSchema, folded: Partition) -> list[Partition]:
    """Drop a partition that was folded in the same transaction; returns the others."""
    rest = [one for one in partitions(connection, shape) if one.oid != folded.oid]
    connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(folded.schema, folded.name)))
    # The partition of an older time may have been made after a later one was removed.
    note_kept_since(connection, shape, max(folded.last, kept_since(connection, shape) or 0.0))
    note_partitions(connection, shape, rest, [folded.oid])
    return rest


def allow_joins(connection: psycopg.Connection[Any]) -> None:
    """Permit, until the transaction ends, the plans that a whole history takes."""
    for setting in ("seqscan", "hashjoin", "mergejoin"):
        connection.execute(sql.SQL("SET LOCAL {} = on").format(sql.SQL(f"enable_{setting}")))


def last_of(rows: sql.Composable, keys: Sequence[str]) -> sql.Composed:
    """A query for each document's last change among ``rows`` of a history."""
    return sql.SQL(_LAST).format(
        rows=rows,
        names=sql.SQL(", ").join(sql.Identifier("t", key) for key in keys),
        newest=sql.SQL(_NEWEST),
        is_newer=sql.SQL(_IS_NEWER),
        same=sql.SQL(" AND ").join(sql.SQL("l.{0} = s.{0}").format(sql.Identifier(key)) for key in keys),
    )


def sweep(
    connection: psycopg.Connection[Any], shape: TableSchema, below: int, began: float, spared: sql.Composable
) -> None:
    """Record that documents are gone of which only the history knows, after the table was swept ``below`` a version.

    In a transaction. ``spared``: a condition after AND.
    """
    statement = sql.SQL(_SWEEP).format(
        history=history_of(shape).qualified,
        base=base_of(shape).qualified,
        table=shape.qualified,
        last=last_of(sql.SQL("known"), [key.name for key in shape.keys]),
        keys=_names(shape),
        began=sql.Literal(began),
        below=sql.Literal(below),
        same=sql.SQL(" AND ").join(sql.SQL("o.{0} = t.{0}").format(sql.Identifier(k.name)) for k in shape.keys),
        spared=spared,
    )
    allow_joins(connection)
    connection.execute(statement)


def note_kept_since(connection: psycopg.Connection[Any], shape: TableSchema, time: float) -> None:
    """Note the time before which changes have been removed."""
    text = sql.Literal(f"{_SINCE}{time:.0f}")
    connection.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(base_of(shape).qualified, text))


def kept_since(connection: psycopg.Connection[Any], shape: TableSchema) -> float | None:
    """The time before which changes have been removed, in seconds since 1970; None if none have."""
    base = catalog.found(connection, base_of(shape))
    if base is None:
        return None
    row = connection.execute("SELECT pg_catalog.obj_description(%s, 'pg_class')", (base.oid,)).fetchone()
    text = "" if row is None or row[0] is None else str(row[0])
    return float(text.removeprefix(_SINCE)) if text.startswith(_SINCE) else None


@dataclass(slots=True)
class KnownPartitions:
    """The partitions that this process knows of, by the history's label: so that most batches need no look-up."""

    _known: dict[str, list[Partition]] = field(default_factory=dict)

    def lacks(self, shape: TableSchema, times: Iterable[float]) -> bool:
        there = self._known.get(shape.label, ())
        return not all(any(one.first <= time < one.last for one in there) for time in times)

    def know(self, shape: TableSchema, there: Sequence[Partition]) -> None:
        self._known[shape.label] = list(there)

    def forget(self) -> None:
        self._known.clear()


def days(entries: Iterable[Past]) -> frozenset[float]:
    """A time for each day of the entries."""
    return frozenset(entry.time // DAY * DAY for entry in entries)


class HistoryEncoder:
    """Encodes the rows that a batch adds to one table's history."""

    def __init__(self, shape: TableSchema, nul: Nul) -> None:
        self._json = JsonText(nul)
        self._python = python_encoder("jsonb", nul)
        self.stream = _insert(shape, sql.SQL(""))
        self.scan = _insert(shape, _unless_known(shape))

    def literals(self, entries: Sequence[Past]) -> list[bytes]:
        """The parameters after the keys."""
        old, _ = self._documents([entry.old for entry in entries])
        new, refused = self._documents([entry.new for entry in entries])
        reasons = [refused.get(i, entry.problem) for i, entry in enumerate(entries)]
        return [
            literal([entry.time for entry in entries]),
            literal([entry.sequence for entry in entries]),
            literal([entry.version for entry in entries]),
            literal([entry.operation for entry in entries]),
            json_literal(old),
            json_literal(new),
            literal(reasons),
        ]

    def documents(self, bodies: Sequence[Mapping[str, object]]) -> bytes:
        """Documents as they would be kept, as an array; NULL for those that cannot be."""
        return json_literal(self._documents(bodies)[0])

    def _documents(self, bodies: Sequence[Mapping[str, object] | None]) -> tuple[list[str | None], dict[int, str]]:
        """Documents as JSON texts; and why some cannot be stored, by index."""
        if all(body is None or type(body) is Item for body in bodies):
            try:
                texts = iter(self._json.of_images([body.image for body in bodies if type(body) is Item]))
                return [None if body is None else next(texts) for body in bodies], {}
            except UNUSUAL:
                pass
        found: list[str | None] = []
        refused: dict[int, str] = {}
        for index, body in enumerate(bodies):
            try:
                found.append(None if body is None else self._one(body))
            except (*UNUSUAL, Malformed) as e:
                found.append(None)
                refused[index] = f"the document {e}"
        return found, refused

    def _one(self, body: Mapping[str, object]) -> str:
        return self._json.of_item(body.typed) if type(body) is Item else str(self._python(dict(body)))


def distinct(entries: Iterable[Past]) -> list[Past]:
    """The entries in the order of their rows, each row once."""
    rows = {(entry.id, entry.time, entry.sequence): entry for entry in entries}
    return [rows[row] for row in sorted(rows)]


def _insert(shape: TableSchema, unless_known: sql.Composable) -> bytes:
    names = [f"c{i}" for i in range(len(shape.keys))]
    types = [*(key.type for key in shape.keys), "float8", "text", "bigint", "text", "jsonb", "jsonb", "text"]
    arrays = zip(types, [*names, "at", "s", "v", "op", "o", "n", "p"], strict=True)
    rows = ", ".join(f"pg_catalog.unnest(${i + 1}::{type}[]) AS {name}" for i, (type, name) in enumerate(arrays))
    found = sql.SQL(_INSERT).format(
        history=history_of(shape).qualified,
        keys=_names(shape),
        values=sql.SQL(", ".join(f"d.{name}" for name in names)),
        rows=sql.SQL(rows),
        unless_known=unless_known,
    )
    return found.as_bytes(None)


def _unless_known(shape: TableSchema) -> sql.Composed:
    return sql.SQL(_UNLESS_KNOWN).format(last=_last_of_one(shape), is_newer=sql.SQL(_IS_NEWER))


def _last_of_one(shape: TableSchema) -> sql.Composed:
    """Joins ``l`` and ``s``, the last that the stream and that a scan has told of the document with the key ``d``."""
    return sql.SQL(_LAST_OF_ONE).format(
        history=history_of(shape).qualified,
        base=base_of(shape).qualified,
        matches=_is_that_of(shape),
        newest=sql.SQL(_NEWEST),
    )


def _is_that_of(shape: TableSchema) -> sql.Composed:
    pairs = (
        sql.SQL("t.{} = {}").format(sql.Identifier(key.name), sql.SQL(f"d.c{i}")) for i, key in enumerate(shape.keys)
    )
    return sql.SQL(" AND ").join(pairs)


def differing(shape: TableSchema) -> sql.Composed:
    """An array of texts: how the history of the document with the key ``d`` differs from the expected ``d.h``."""
    state = sql.SQL(_DIFFERS).format(
        last=_last_of_one(shape), is_newer=sql.SQL(_IS_NEWER), state=sql.Literal(HISTORY_FIELD)
    )
    order = sql.SQL(_UNORDERED).format(
        history=history_of(shape).qualified,
        matches=_is_that_of(shape),
        newest=sql.SQL(_NEWEST),
        most=sql.Literal(_ORDERED),
        order=sql.Literal(HISTORY_ORDER),
    )
    return sql.SQL("pg_catalog.array_remove(ARRAY[{}, {}]::text[], NULL)").format(state, order)


def _names(shape: TableSchema) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(key.name) for key in shape.keys)


def current_days(connection: psycopg.Connection[Any]) -> list[float]:
    """A time of each day for which partitions are made ahead, and of those whose records a stream may still have."""
    now = _now(connection)
    return [now + n * DAY for n in range(-1, AHEAD + 1)]


def _now(connection: psycopg.Connection[Any]) -> float:
    row = connection.execute("SELECT pg_catalog.date_part('epoch', pg_catalog.now())").fetchone()
    assert row is not None
    return float(row[0])
