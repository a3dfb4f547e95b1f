"""Two generations of tables during a rebuild: creates the second, exchanges their names, and removes one of them.

Views, grants, triggers and the names of indexes go with the name of the live table, not with its rows. What cannot move
is refused by name before anything changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, LiteralString

import psycopg
from psycopg import errors, sql

from connectors.postgres import catalog, cleanup
from connectors.postgres.errors import FENCED
from connectors.postgres.migrations import exists
from connectors.postgres.table_schema import DELETED, LONGEST_NAME, VERSION, TableSchema
from replicator.errors import ConfigError, Fenced, TransientError
from replicator.state import Save
from replicator.target.contract import Continued, Exchange, TablesBusy

Connection = psycopg.Connection[Any]

LONGEST_CALM = 10_000  # ms for the locks that readers and writers do not notice
LONGEST_WAIT = 500  # ms for all locks: readers queue behind us, and one of them may hold a table that we wait for

_SAVE = """
SELECT replicator.advance(%s, NULL, ARRAY[%s], ARRAY[%s], ARRAY[%s::bigint], ARRAY[%s],
  '{}', '{}', '{}', '{}', '{}', '{}')"""
_FENCE = """
UPDATE replicator.checkpoints SET revision = revision + 1
WHERE pipeline = ANY (%s) AND kind = 'owner' AND id = ''"""
_HOLD = "SELECT FROM replicator.checkpoints WHERE pipeline = ANY (%s) AND kind = 'owner' FOR UPDATE"
_RELABEL = "UPDATE replicator.tombstones SET target = %s WHERE target = %s"
_FORGOTTEN: tuple[LiteralString, ...] = (
    "DELETE FROM replicator.checkpoints WHERE pipeline = %s",
    "DELETE FROM replicator.counts WHERE pipeline = %s",
)
_SUCCEED: tuple[LiteralString, ...] = (
    "UPDATE replicator.checkpoints SET pipeline = %s WHERE pipeline = %s",
    "UPDATE replicator.counts SET pipeline = %s WHERE pipeline = %s",
)
_SPANS = """
UPDATE replicator.checkpoints SET pipeline = %(second)s WHERE pipeline = %(first)s AND kind = 'history'"""
_EARLIER = """
DELETE FROM replicator.checkpoints WHERE pipeline = %(second)s AND kind = 'history' AND id::int < %(epoch)s"""
_SPAN = """
UPDATE replicator.checkpoints SET value = %s::json, revision = revision + 1
WHERE pipeline = %s AND kind = 'history' AND id = %s AND revision = %s"""
_OWNERS = (
    "SELECT coalesce(max(revision), 0) + 1 FROM replicator.checkpoints WHERE pipeline = ANY (%s) AND kind = 'owner'"
)
_OWNED = "UPDATE replicator.checkpoints SET revision = %s WHERE pipeline = %s AND kind = 'owner'"

_TAKEN = """
SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s"""

_BOUND: LiteralString = """
SELECT 'the foreign key ' || conname || ' of ' || conrelid::regclass FROM pg_catalog.pg_constraint
WHERE contype = 'f' AND confrelid = %(table)s
UNION ALL
SELECT 'the materialized view ' || v.oid::regclass FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind <> 'v' AND v.oid <> %(table)s
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s
UNION ALL
SELECT 'the view ' || v.oid::regclass || ', which belongs to the role ' || pg_catalog.pg_get_userbyid(v.relowner)
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s AND NOT pg_catalog.pg_has_role(v.relowner, 'USAGE')
UNION ALL
SELECT 'the function ' || d.objid::regprocedure FROM pg_catalog.pg_depend d
WHERE d.classid = 'pg_proc'::regclass AND (
  d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s
  OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
    SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON t.oid = c.reltype OR t.typelem = c.reltype
    WHERE c.oid = %(table)s))
UNION ALL
SELECT 'the table ' || d.objid::regclass || ', which has a column of its row type' FROM pg_catalog.pg_depend d
WHERE d.classid = 'pg_class'::regclass AND d.objsubid > 0 AND d.refclassid = 'pg_type'::regclass AND d.refobjid IN (
  SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_class c ON t.oid = c.reltype OR t.typelem = c.reltype
  WHERE c.oid = %(table)s)
UNION ALL
SELECT 'row level security' FROM pg_catalog.pg_class c WHERE c.oid = %(table)s AND (
  c.relrowsecurity OR EXISTS (SELECT FROM pg_catalog.pg_policy p WHERE p.polrelid = c.oid))
UNION ALL
SELECT 'the rule ' || r.rulename FROM pg_catalog.pg_rewrite r WHERE r.ev_class = %(table)s
UNION ALL
SELECT 'the publication ' || p.pubname FROM pg_catalog.pg_publication p WHERE p.oid IN (
  SELECT m.prpubid FROM pg_catalog.pg_publication_rel m WHERE m.prrelid = %(table)s)
OR EXISTS (
  SELECT FROM pg_catalog.pg_publication_tables m JOIN pg_catalog.pg_class c ON c.relname = m.tablename
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = m.schemaname
  WHERE m.pubname = p.pubname AND c.oid = %(table)s)
UNION ALL
SELECT 'the replica identity, the index ' || i.indexrelid::regclass FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indrelid AND c.relreplident = 'i'
WHERE i.indrelid = %(table)s AND i.indisreplident
UNION ALL
SELECT 'the policy ' || p.polname || ' of ' || p.polrelid::regclass FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid AND p.polrelid <> %(table)s
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s
UNION ALL
SELECT 'the rule ' || r.rulename || ' of ' || r.ev_class::regclass FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %(table)s AND r.rulename <> '_RETURN'
UNION ALL
SELECT 'its partitions' FROM pg_catalog.pg_class c WHERE c.oid = %(table)s AND c.relkind = 'p'
ORDER BY 1"""
_PARENTS = "SELECT inhparent::regclass::text FROM pg_catalog.pg_inherits WHERE inhrelid = %s"
_CONSTRAINTS = """
SELECT conname::text FROM pg_catalog.pg_constraint
WHERE conrelid = %s AND contype IN ('c', 'f', 'x', 'u') ORDER BY 1"""
_INDEXES = """
SELECT c.relname::text, i.indisprimary,
       pg_catalog.format('CREATE %%sINDEX %%I ON %%I.%%I ', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END,
         c.relname, n.nspname, t.relname),
       pg_catalog.pg_get_indexdef(i.indexrelid), i.indisunique
FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_class t ON t.oid = i.indrelid JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE i.indrelid = %s AND i.indisvalid ORDER BY 1"""
_VIEWS = """
SELECT DISTINCT v.oid, n.nspname::text, v.relname::text, pg_catalog.pg_get_viewdef(v.oid), v.reloptions,
       pg_catalog.pg_get_userbyid(v.relowner)::text
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind = 'v'
JOIN pg_catalog.pg_namespace n ON n.oid = v.relnamespace
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s ORDER BY v.oid"""
_TRIGGERS = """
SELECT tgname::text, pg_catalog.pg_get_triggerdef(oid), tgenabled::text FROM pg_catalog.pg_trigger
WHERE tgrelid = %s AND NOT tgisinternal ORDER BY 1"""
_GRANTS = """
SELECT '', coalesce(r.rolname::text, ''), a.privilege_type, a.is_grantable
FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE c.oid = %(table)s AND a.grantee <> c.relowner
UNION ALL
SELECT t.attname::text, coalesce(r.rolname::text, ''), a.privilege_type, a.is_grantable
FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE t.attrelid = %(table)s AND NOT t.attisdropped"""
_IDENTITY = "SELECT relreplident::text FROM pg_catalog.pg_class WHERE oid = %s"
_IDENTITIES: Mapping[str, LiteralString] = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}  # an index's is refused
_ENABLED: Mapping[str, LiteralString] = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


def named(shape: TableSchema, suffix: str) -> TableSchema:
    """The table of that generation: a live one's name with a suffix."""
    return replace(shape, name=shape.name + suffix)


def problems(
    connection: Connection, live: Sequence[TableSchema], new: Sequence[TableSchema], retired: Sequence[TableSchema]
) -> Iterator[str]:
    """Why these tables cannot be built, or could not be exchanged later."""
    for shape in live:
        table = catalog.found(connection, shape)
        if table is not None:
            yield from bound(connection, shape, table)
    yield from existing(connection, new)
    yield from in_the_way(connection, retired)


def existing(connection: Connection, new: Sequence[TableSchema]) -> Iterator[str]:
    """Why these tables cannot be created."""
    for shape in new:
        if len(shape.name.encode()) > LONGEST_NAME:
            yield f"the name {shape.name} is longer than Postgres' {LONGEST_NAME} bytes"
        elif connection.execute(_TAKEN, (shape.schema, shape.name)).fetchone() is not None:
            yield f"{shape.label} exists already, and a rebuild would create it; rename it or drop it"


def in_the_way(connection: Connection, retired: Sequence[TableSchema]) -> Iterator[str]:
    """What has a name that the live tables must get in an exchange."""
    for shape in retired:
        if connection.execute(_TAKEN, (shape.schema, shape.name)).fetchone() is not None:
            yield f"{shape.label} exists already, and the live table would get that name; rename it or drop it"


def bound(connection: Connection, shape: TableSchema, table: catalog.Found) -> Iterator[str]:
    """What would stay with the old table, not with its name."""
    for (parent,) in connection.execute(_PARENTS, (table.oid,)):
        yield (
            f"{shape.label} cannot be exchanged: it is a partition or child of {parent}, whose readers would keep the "
            "old table. Detach it, and attach it again after the switch"
        )
    for (what,) in connection.execute(_BOUND, {"table": table.oid}):
        yield (
            f"{shape.label} cannot be exchanged because of {what}, which would stay with the old table: drop it, and "
            "create it again after the switch"
        )


def create(connection: Connection, live: TableSchema, new: TableSchema, pipeline: str) -> Iterator[str]:
    """Create a table of the second generation, with the indexes of the live one. Yields what it lacks."""
    connection.execute(catalog.create_table(new))
    connection.execute(catalog.comment(new, pipeline, 0))
    connection.execute(cleanup.FORGET, (new.label,))
    old = catalog.found(connection, live)
    if old is None:
        return
    _give(connection, new, old.owner)
    for name, primary, prefix, definition, unique in connection.execute(_INDEXES, (old.oid,)).fetchall():
        if primary:
            continue
        try:
            with connection.transaction():
                connection.execute(
                    _index(name + new.name.removeprefix(live.name), new, definition.removeprefix(prefix), unique=unique)
                )
        except psycopg.Error as e:
            yield f"{new.label} lacks the index {name}: {e.diag.message_primary}"
    for (name,) in connection.execute(_CONSTRAINTS, (old.oid,)):
        yield f"{new.label} lacks the constraint {name}; add it if you need it"


def _give(connection: Connection, shape: TableSchema, owner: str) -> None:
    """Have the table belong to that role, whose members and whose views read the live table by its rights."""
    if _there(connection, shape).owner == owner:
        return
    try:
        connection.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(shape.qualified, sql.Identifier(owner)))
    except errors.InsufficientPrivilege as e:
        raise ConfigError(
            f'{shape.label} cannot belong to the role "{owner}", as the live table does: {e.diag.message_primary}. '
            f'GRANT CREATE ON SCHEMA "{shape.schema}" TO "{owner}", and let replicator\'s role SET ROLE to it; or '
            "give the live table to replicator's role"
        ) from e


def _index(name: str, table: TableSchema, rest: str, *, unique: bool) -> sql.Composed:
    """CREATE INDEX with the ``rest`` of the server's own definition. Without a name that Postgres would truncate."""
    short = sql.Identifier(name) if len(name.encode()) <= LONGEST_NAME else sql.SQL("")
    kind = sql.SQL("UNIQUE " if unique else "")
    return sql.SQL("CREATE {}INDEX {} ON {} {}").format(kind, short, table.qualified, _from_catalog(rest))


def _from_catalog(text: str) -> sql.SQL:
    """SQL that the server itself wrote, from its catalog."""
    return sql.SQL(text)


def begin_removal(
    connection: Connection,
    pipeline: str,
    entry: Save,
    ended: Sequence[str],
    tables: Sequence[tuple[str, Sequence[TableSchema]]],
) -> None:
    """Save the rebuild's entry, which is ``pipeline``'s, and lock the ``tables`` that will be dropped, or TablesBusy.

    ``ended``: pipelines that the removal ends. Tables come with the pipeline that wrote them, as the note on the first
    one must say. Locks come in the same order as in ``exchange``, for the same reasons, and runs wait no longer than
    readers; a claim, too, locks its owner first.
    """
    own = [shapes for writer, shapes in tables if shapes and _writer(connection, shapes[0]) == writer]
    there = [shape for shapes in own for shape in shapes if catalog.found(connection, shape) is not None]
    if there:
        _lock(connection, [], there, LONGEST_CALM, "SHARE UPDATE EXCLUSIVE")
    connection.execute(_HOLD, (list(ended),))
    save(connection, pipeline, entry)
    if there:
        _lock(connection, [], there, LONGEST_WAIT, "ACCESS EXCLUSIVE")


def save(connection: Connection, pipeline: str, entry: Save) -> None:
    """Save the entry in this transaction; another revision is an error that counts as Fenced."""
    connection.execute(_SAVE, (pipeline, entry.kind, entry.id, entry.expected, entry.text))


@dataclass(frozen=True, slots=True)
class _Dependents:
    """What goes with a live table's name: read before it is renamed, and applied afterwards."""

    views: Mapping[int, tuple[str, sql.Composed]]  # names and statements
    triggers: Sequence[tuple[str, str, str]]
    owner: str
    grants: Sequence[tuple[str, str, str, bool]]
    identity: str  # what UPDATE and DELETE log for logical replication


def exchange(connection: Connection, live: Sequence[TableSchema], wanted: Exchange) -> None:
    """Exchange the tables, in the transaction that is open. Both runs' next batches find their pipelines claimed.

    The locks come in the order of a batch: first the owners' entries, then the tables. Before both, one that only a
    VACUUM has to wait for: an automatic one gives way after a second, which is longer than readers may wait.
    """
    waiting = [named(shape, wanted.here) for shape in live]
    _lock(connection, [], [*live, *waiting], LONGEST_CALM, "SHARE UPDATE EXCLUSIVE")
    connection.execute(_FENCE, (list(wanted.pipelines),))
    save(connection, wanted.pipelines[0], wanted.save)
    views = _views(connection, live)
    _lock(connection, list(views.values()), [*live, *waiting], LONGEST_WAIT, "ACCESS EXCLUSIVE")
    if _views(connection, live).keys() != views.keys():
        raise TablesBusy("a view over the tables was created or dropped at the same time")
    pairs = [
        (shape, _there(connection, shape), _there(connection, other))
        for shape, other in zip(live, waiting, strict=True)
    ]
    refused = [
        text for shape, leaving, coming in pairs for text in _refused(connection, shape, leaving, coming, wanted)
    ]
    if refused:
        raise ConfigError(*refused)
    dependents = [_dependents(connection, leaving) for _, leaving, _ in pairs]
    for shape, leaving, coming in pairs:
        _rename(connection, shape, (leaving, coming), wanted)
    for shape, found in zip(live, dependents, strict=True):
        _move(connection, shape, named(shape, wanted.away), found)
    for label, statement in {oid: view for found in dependents for oid, view in found.views.items()}.values():
        _replace_view(connection, label, statement)


def still(opened: Mapping[str, int]) -> Iterator[bytes]:
    """Statements that fail, as if another run had taken over, unless these names still mean the same tables.

    For commands beside a run: an exchange fences off runs only. They lock the tables, so that none follows in between.
    """
    for label, oid in sorted(opened.items()):
        yield f"LOCK TABLE {label} IN ROW EXCLUSIVE MODE".encode()
        name = sql.Literal(label).as_string(None)
        body = (
            f"BEGIN IF pg_catalog.to_regclass({name}) IS DISTINCT FROM {oid}::oid::regclass THEN "
            f"RAISE EXCEPTION 'the tables were exchanged' USING ERRCODE = '{FENCED}'; END IF; END"
        )
        yield b"DO " + sql.Literal(body).as_bytes(None)


def explained(translated: Exception, error: psycopg.Error) -> Exception:
    """The error of an exchange. What the server refuses is a matter of the tables: nothing has changed."""
    if isinstance(translated, Fenced | TransientError) or error.sqlstate is None:
        return translated
    return ConfigError(
        f"the tables cannot be exchanged, and nothing was changed: {error.diag.message_primary}"
        f"{'; ' + error.diag.message_hint if error.diag.message_hint else ''}"
    )


def _views(connection: Connection, tables: Sequence[TableSchema]) -> Mapping[int, sql.Composed]:
    """For each view over the tables, by oid: a statement that only locks it. LOCK would also lock what it reads."""
    found = [row for t in tables for row in connection.execute(_VIEWS, (_there(connection, t).oid,))]
    lock = sql.SQL("ALTER VIEW {} OWNER TO {}")
    return {row[0]: lock.format(sql.Identifier(*row[1:3]), sql.Identifier(row[5])) for row in found}


def _lock(
    connection: Connection,
    views: Sequence[sql.Composed],
    tables: Sequence[TableSchema],
    limit: int,
    mode: Literal["SHARE UPDATE EXCLUSIVE", "ACCESS EXCLUSIVE"],
) -> None:
    """Lock all of them within ``limit`` milliseconds, or none: with the second mode readers wait behind us meanwhile.

    Views first, as readers do. One that locks tables in another order and waits for us would be told of a deadlock
    after a second (Postgres' deadlock_timeout); we give up before. One statement, because the limit is that of each.
    """
    names = sql.SQL(", ").join(shape.qualified for shape in tables)
    locks = sql.SQL("; ").join([*views, sql.SQL("LOCK TABLE {} IN " + mode + " MODE").format(names)])
    connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(limit)))
    try:
        connection.execute(sql.SQL("DO {}").format(sql.Literal(f"BEGIN {locks.as_string(None)}; END")))
    except (errors.QueryCanceled, errors.LockNotAvailable, errors.DeadlockDetected) as e:
        raise TablesBusy("transactions hold the tables, or a backup, a VACUUM or CREATE INDEX does") from e
    connection.execute("SET LOCAL statement_timeout = 0")


def _writer(connection: Connection, shape: TableSchema) -> str | None:
    table = catalog.found(connection, shape)
    return None if table is None else table.pipeline


def _there(connection: Connection, shape: TableSchema) -> catalog.Found:
    table = catalog.found(connection, shape)
    if table is None:
        raise ConfigError(f"{shape.label} is gone")
    return table


def _refused(
    connection: Connection, shape: TableSchema, leaving: catalog.Found, coming: catalog.Found, wanted: Exchange
) -> Iterator[str]:
    """Why the tables cannot take each other's place."""
    other = named(shape, wanted.here)
    if {leaving.pipeline, coming.pipeline} != set(wanted.pipelines) or leaving.pipeline == coming.pipeline:
        yield f"{shape.label} and {other.label} are not those of the rebuild: their notes name other pipelines"
    yield from bound(connection, shape, leaving)
    yield from in_the_way(connection, [named(shape, wanted.away)])
    own = {VERSION, *leaving.primary, *(column.name for column in shape.columns)}
    if shape.marks:  # the other generation keeps no rows of deleted items
        own.add(DELETED)
    for name, column in leaving.columns.items():
        if name not in own and name not in coming.columns:
            yield (
                f"{shape.label} has a column {name} that is not in the config, and {other.label} lacks it: add it "
                f"there (it is {column.type}), or drop it"
            )


def _dependents(connection: Connection, table: catalog.Found) -> _Dependents:
    found = connection.execute(_VIEWS, (table.oid,)).fetchall()
    views = {oid: (sql.Identifier(*view[:2]).as_string(None), _view(*view[:4])) for oid, *view in found}
    triggers = connection.execute(_TRIGGERS, (table.oid,)).fetchall()
    grants = connection.execute(_GRANTS, {"table": table.oid}).fetchall()
    (identity,) = connection.execute(_IDENTITY, (table.oid,)).fetchone() or ("d",)
    return _Dependents(views, triggers, table.owner, grants, identity)


def _view(schema: str, name: str, definition: str, options: Sequence[str] | None) -> sql.Composed:
    """The view again, with the same text: the names in it now mean other tables. It keeps its owner and its grants."""
    given = [option.partition("=") for option in options or ()]
    pairs = [sql.SQL("{} = {}").format(sql.Identifier(key), sql.Literal(value)) for key, _, value in given]
    also = sql.SQL("WITH ({}) ").format(sql.SQL(", ").join(pairs)) if pairs else sql.SQL("")
    return sql.SQL("CREATE OR REPLACE VIEW {} {}AS {}").format(
        sql.Identifier(schema, name), also, _from_catalog(definition)
    )


def _replace_view(connection: Connection, label: str, statement: sql.Composed) -> None:
    try:
        connection.execute(statement)
    except psycopg.ProgrammingError as e:
        raise ConfigError(
            f"the view {label} does not fit the new tables, so nothing was changed: {e.diag.message_primary}. Drop it, "
            "and create it again after the switch"
        ) from e


def _rename(
    connection: Connection, shape: TableSchema, tables: tuple[catalog.Found, catalog.Found], wanted: Exchange
) -> None:
    away, here = named(shape, wanted.away), named(shape, wanted.here)
    leaving, coming = (connection.execute(_INDEXES, (table.oid,)).fetchall() for table in tables)
    _rename_one(connection, "TABLE", shape, away.name)
    _rename_one(connection, "TABLE", here, shape.name)
    waiting = {name for name, *_ in coming}
    for name, primary, *_ in leaving:
        successor = next((n for n, p, *_ in coming if p), "") if primary else name + wanted.here
        if successor in waiting and len((name + wanted.away).encode()) <= LONGEST_NAME:
            _rename_one(connection, "INDEX", replace(shape, name=name), name + wanted.away)
            _rename_one(connection, "INDEX", replace(shape, name=successor), name)
    for now, before in ((away, shape), (shape, here)):
        connection.execute(cleanup.FORGET, (now.label,))
        connection.execute(_RELABEL, (now.label, before.label))


def _rename_one(connection: Connection, kind: LiteralString, shape: TableSchema, name: str) -> None:
    connection.execute(sql.SQL("ALTER " + kind + " {} RENAME TO {}").format(shape.qualified, sql.Identifier(name)))


def _move(connection: Connection, live: TableSchema, retired: TableSchema, found: _Dependents) -> None:
    """Give the owner, triggers, grants and the replica identity to the table that is live now.

    Triggers leave the other: it would fire them again. Columns that the other lacks keep their own grants.
    """
    _give(connection, live, found.owner)
    if found.identity in _IDENTITIES:
        identity = sql.SQL("ALTER TABLE {} REPLICA IDENTITY " + _IDENTITIES[found.identity])
        connection.execute(identity.format(live.qualified))
    for name, definition, enabled in found.triggers:
        trigger = sql.Identifier(name)
        connection.execute(sql.SQL("DROP TRIGGER {} ON {}").format(trigger, retired.qualified))
        connection.execute(_from_catalog(definition))
        if enabled in _ENABLED:
            state = sql.SQL("ALTER TABLE {} " + _ENABLED[enabled] + " TRIGGER {}")
            connection.execute(state.format(live.qualified, trigger))
    _grant(connection, live, found.grants, _there(connection, retired).columns)


def _grant(
    connection: Connection, live: TableSchema, given: Sequence[tuple[str, str, str, bool]], before: Collection[str]
) -> None:
    """Give the table these grants instead of its own; but for columns that are not among those of ``before``."""
    table = _there(connection, live)
    own = connection.execute(_GRANTS, {"table": table.oid}).fetchall()
    for grantee in {role for _, role, *_ in own}:
        connection.execute(sql.SQL("REVOKE ALL ON {} FROM {} CASCADE").format(live.qualified, _role(grantee)))
    kept = [grant for grant in own if grant[0] and grant[0] not in before]
    for column, grantee, privilege, grantable in (*given, *kept):
        if column and column not in table.columns:
            continue
        part = sql.SQL("({})").format(sql.Identifier(column)) if column else sql.SQL("")
        option = sql.SQL(" WITH GRANT OPTION" if grantable else "")
        connection.execute(
            sql.SQL("GRANT {} {} ON {} TO {}{}").format(
                _from_catalog(privilege), part, live.qualified, _role(grantee), option
            )
        )


def _role(name: str) -> sql.Composable:
    return sql.Identifier(name) if name else sql.SQL("PUBLIC")


def remove(connection: Connection, shape: TableSchema, pipeline: str) -> None:
    """Drop a table that ``pipeline`` wrote, as its note says, and its tombstones."""
    table = catalog.found(connection, shape)
    if table is not None:
        if table.pipeline != pipeline:
            raise ConfigError(
                f"{shape.label} is not of the pipeline {pipeline}, as its note says, so it is not dropped; rename it"
            )
        try:
            connection.execute(sql.SQL("DROP TABLE {}").format(shape.qualified))
        except errors.DependentObjectsStillExist as e:
            raise ConfigError(
                f"{shape.label} cannot be dropped, as other objects depend on it: {e.diag.message_detail}"
            ) from e
    connection.execute(cleanup.FORGET, (shape.label,))


def continue_spans(connection: Connection, first: str, second: str, how: Continued) -> None:
    """Give the second pipeline what is known of the first one's history. Before the first is forgotten."""
    connection.execute(_EARLIER, {"second": second, "epoch": how.epoch})
    connection.execute(_SPANS, {"first": first, "second": second})
    for span in how.spans:
        changed = connection.execute(_SPAN, (span.text, second, span.id, span.expected))
        if changed.rowcount != 1:
            raise Fenced("the history of the new copy has begun another epoch in the meantime: finish again")


def forget(connection: Connection, pipeline: str) -> None:
    """Remove all that is stored of a pipeline. Its run, if one is up, finds itself replaced."""
    for statement in _FORGOTTEN if exists(connection) else ():
        connection.execute(statement, (pipeline,))


def succeed(connection: Connection, live: Sequence[TableSchema], first: str, second: str) -> None:
    """Give the second pipeline the first one's name. The owner's revision is higher than both, so no run continues."""
    row = connection.execute(_OWNERS, ([first, second],)).fetchone()
    forget(connection, first)
    for statement in _SUCCEED:
        connection.execute(statement, (first, second))
    connection.execute(_OWNED, (row and row[0], first))
    for shape in live:
        table = _there(connection, shape)
        if table.pipeline != second:
            raise ConfigError(f"{shape.label} is not the new table: its note names the pipeline {table.pipeline}")
        connection.execute(catalog.comment(shape, first, table.epoch))
