"""A target in one file: documents as rows of an SQLite database. A row without a document is a tombstone."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from replicator import options
from replicator.batch import Delete, Outcome, Rejection
from replicator.errors import ConfigError, TransientError
from replicator.items.to_json import DocumentText, Unfit

TABLE = """CREATE TABLE "{0}" (id TEXT PRIMARY KEY, version INTEGER NOT NULL, document TEXT)"""
EPOCHS = "CREATE TABLE replicator_epochs (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL)"
NOTE = "INSERT INTO replicator_epochs VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET epoch = max(epoch, excluded.epoch)"
PUT = """INSERT INTO "{0}" VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
SET version = excluded.version, document = excluded.document WHERE version < excluded.version"""
FORGET = 'DELETE FROM "{0}" WHERE document IS NULL AND version < ?'
TOMBSTONES = 'SELECT id FROM "{0}" WHERE document IS NULL AND version < ?'
OLDER = 'SELECT id FROM "{0}" WHERE document IS NOT NULL AND version < ?'


class SQLite:
    class Options(options.Options):
        path: options.FileName

    class TableOptions(options.Options):
        pass

    def __init__(self, options, pipeline):
        self.path, self.text = options.path, DocumentText()

    def run(self, work):
        """Run ``work`` in one transaction. A lock or a full disk is waited for; a file that is no database is not."""
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
                return work(connection.execute)
        except sqlite3.Error as e:
            error = ConfigError if type(e) is sqlite3.DatabaseError else TransientError
            raise error(f"SQLite in {self.path}: {e}") from e

    def plan(self, tables):
        new = Path(self.path).parent.is_dir() and not Path(self.path).exists()  # connecting would create the file
        there = [] if new else self.run(lambda sql: [name for (name,) in sql("SELECT name FROM sqlite_master")])
        names = {"replicator_epochs": EPOCHS, **{t.name: TABLE.format(t.name) for t in tables}}
        return [statement for name, statement in names.items() if name not in there]

    def check(self, tables):
        self.plan(tables)  # raises if the file is unreachable
        return [f"table {t.name}: use letters and digits only" for t in tables if not t.name.isalnum()]

    def epoch(self, tables):
        noted = {} if self.plan(tables) else self.run(lambda sql: dict(sql("SELECT * FROM replicator_epochs")))
        return max((noted[t.name] for t in tables if t.name in noted), default=None)

    def open(self, tables, epoch):
        statements = self.plan(tables)
        self.run(lambda sql: [sql(s) for s in statements] + [sql(NOTE, (t.name, epoch)) for t in tables])

    def write(self, batch):
        rows, rejections = [], []
        for source, write in ((part.source, write) for part in batch.parts for write in part.writes):
            try:
                text = None if isinstance(write, Delete) else self.text(write.body).decode()
                rows.append((source, write, (json.dumps(write.id), write.version, text)))
            except Unfit as e:
                rejections.append(Rejection(write, f"a value {e}"))
        return Outcome(rejections) if rejections else self.run(lambda sql: self.put(sql, rows, batch.tombstones))

    def put(self, sql, rows, tombstones):
        superseded = {}
        for source, write, row in rows:
            if not sql(PUT.format(write.table), row).rowcount:
                superseded[source] = superseded.get(source, 0) + write.weight
            elif row[2] is None and not tombstones:
                sql(FORGET.format(write.table) + " AND id = ?", (write.version + 1, row[0]))
        return Outcome(superseded={source: weight for source, weight in superseded.items() if weight})

    def sweep(self, table, below, spare):
        begins = tuple(json.dumps(id)[:-1] for id in spare)

        def bury(sql):
            ids = [id for (id,) in sql(OLDER.format(table.name), (below,)) if not id.startswith(begins)]
            return sum(sql(PUT.format(table.name), (id, below, None)).rowcount for id in ids)

        return self.run(bury)

    def purge(self, table, below, spare=()):
        begins = tuple(json.dumps(id)[:-1] for id in spare)

        def forget(sql):
            ids = [id for (id,) in sql(TOMBSTONES.format(table.name), (below,)) if not id.startswith(begins)]
            return sum(sql(FORGET.format(table.name) + " AND id = ?", (below, id)).rowcount for id in ids)

        return self.run(forget)

    def close(self):
        pass
