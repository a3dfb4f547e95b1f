"""A receiver of replicator's webhooks that keeps a copy in SQLite: python receiver.py copy.db 8080

It verifies signatures, answers a message that comes again as it did the first time, and applies an event only if its
version is newer than the stored one. A row without a document is a tombstone: what remains of a deleted document.
"""

import json
import os
import sqlite3
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

from standardwebhooks import Webhook, WebhookVerificationError

LARGEST = 32 << 20  # bytes of a request
TABLES = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS documents
  (name TEXT, id TEXT, version INTEGER, document TEXT, mark TEXT, PRIMARY KEY (name, id));
CREATE TABLE IF NOT EXISTS epochs (name TEXT PRIMARY KEY, pipeline TEXT, epoch INTEGER);
CREATE TABLE IF NOT EXISTS messages (id TEXT PRIMARY KEY, answer TEXT, time TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX IF NOT EXISTS messages_by_time ON messages (time);
"""
PUT = """INSERT INTO documents VALUES (?, ?, ?, ?, '') ON CONFLICT (name, id) DO UPDATE
SET version = excluded.version, document = excluded.document, mark = '' WHERE version < excluded.version + ?"""
DOCUMENTS = "SELECT value -> '$.document' FROM json_each(?, '$.data.events')"  # unlike json, keeps all digits


class Conflict(Exception):
    """Another pipeline, or an epoch that is over."""


def changes(sql, data, body):
    superseded = []
    documents = sql(DOCUMENTS, (body.decode(),)).fetchall()
    for place, (event, (document,)) in enumerate(zip(data["events"], documents, strict=True)):
        row = event["table"], json.dumps(event["id"])
        version = int(event["version"])
        if not sql(PUT, (*row, version, document, data["replaces_same"])).rowcount:
            superseded.append(place)
        elif document is None and not data["tombstones"]:  # no older event can follow
            sql("DELETE FROM documents WHERE name = ? AND id = ?", row)
    return {"superseded": superseded}


def state(sql, data, body):
    return {"epochs": {name: epoch_of(sql, data["pipeline"], name) for name in data["tables"]}}


def begin(sql, data, body):
    for name in data["tables"]:
        if (epoch_of(sql, data["pipeline"], name) or 0) > data["epoch"]:
            raise Conflict
        sql("INSERT OR REPLACE INTO epochs VALUES (?, ?, ?)", (name, data["pipeline"], data["epoch"]))
    return {}


def epoch_of(sql, pipeline, name):
    owner, epoch = sql("SELECT pipeline, epoch FROM epochs WHERE name = ?", (name,)).fetchone() or (pipeline, None)
    if owner != pipeline:
        raise Conflict
    return epoch


def sweep(sql, data, body):
    """A snapshot has ended: what neither it nor later changes confirmed is gone from the source."""
    found = sql("SELECT id FROM documents WHERE name = ? AND version < ? AND document IS NOT NULL", limits(data))
    spare = spared(data)
    old = list(islice((id for (id,) in found if not begins(id, spare)), 10_000))
    for id in old:
        sql(PUT, (data["table"], id, int(data["below"]), None, 0))
    return {"removed": len(old)}


def purge(sql, data, body):
    """Remove the tombstones that the last purge marked, and mark those that the next one will remove."""
    found = sql("SELECT id, mark FROM documents WHERE name = ? AND version < ? AND document IS NULL", limits(data))
    spare = spared(data)
    old = [(id, mark) for id, mark in found.fetchall() if not begins(id, spare)]
    gone = [(data["table"], id) for id, mark in old if mark and mark == data["remove"]]
    rest = [(data["mark"], data["table"], id) for id, mark in old if not mark or mark != data["remove"]]
    for row in gone:
        sql("DELETE FROM documents WHERE name = ? AND id = ?", row)
    for row in rest:
        sql("UPDATE documents SET mark = ? WHERE name = ? AND id = ?", row)
    return {"marked": len(rest)}


def limits(data):
    return data["table"], int(data["below"])


def spared(data):
    return {tuple(spare) for spare in data["spare"]}


def begins(id, spare):
    parts = tuple(json.loads(id))
    return any(parts[:length] in spare for length in range(1, len(parts) + 1))


KINDS = {f"replicator.{kind.__name__}": kind for kind in (changes, state, begin, sweep, purge)}


def receive(sql, id, message, body):
    """The answer to a message: an old one if it has come before."""
    if known := sql("SELECT answer FROM messages WHERE id = ?", (id,)).fetchone():
        return known[0]
    kind = KINDS.get(message["type"])
    answer = json.dumps(kind(sql, message["data"], body) if kind else {})
    sql("INSERT INTO messages (id, answer) VALUES (?, ?)", (id, answer))
    sql("DELETE FROM messages WHERE time < datetime('now', '-1 day')")
    return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response in one piece
    database = secret = ""

    def do_POST(self):
        size = self.headers.get("content-length", "")
        if not size.isdecimal() or int(size) > LARGEST:
            self.close_connection = True
            self.answer(413 if size.isdecimal() else 411, "")
        else:
            self.answer(*self.received(self.rfile.read(int(size))))

    def received(self, body):
        """The response, once everything is committed."""
        try:
            message = Webhook(self.secret).verify(body, dict(self.headers))
        except (WebhookVerificationError, ValueError):
            return 401, ""
        try:
            with closing(sqlite3.connect(self.database, timeout=30)) as connection, connection:  # one transaction
                connection.execute("BEGIN IMMEDIATE")
                return 200, receive(connection.execute, self.headers["webhook-id"], message, body)
        except Conflict:
            return 409, ""

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format, *arguments):
        pass


if __name__ == "__main__":
    Handler.database, Handler.secret = sys.argv[1], os.environ["WEBHOOK_SECRET"]
    with closing(sqlite3.connect(Handler.database)) as connection:
        connection.executescript(TABLES)
    receiver = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
    print(f"receiving at http://127.0.0.1:{receiver.server_port}", flush=True)
    receiver.serve_forever()
