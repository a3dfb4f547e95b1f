"""The documented receiver as a process, and its database as a plain client reads it."""

from __future__ import annotations

import json
import os
import select
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[3] / "docs" / "webhook_receiver" / "receiver.py"
SECRET = "whsec_" + "c2VjcmV0" * 4
_exact = json.JSONDecoder(parse_float=Decimal, parse_int=Decimal).decode


@dataclass
class Receiver:
    """``port``: 0 before it is started for the first time."""

    database: Path
    port: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "webhook", "url": f"http://127.0.0.1:{self.port}/in", "secret": SECRET}

    def start(self) -> None:
        arguments = [sys.executable, "-W", "error", str(FILE), str(self.database), str(self.port)]
        environ = {**os.environ, "WEBHOOK_SECRET": SECRET}
        self.process = subprocess.Popen(arguments, env=environ, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0], "the receiver does not start"
        self.port = int(self.process.stdout.readline().rpartition(":")[2])

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.communicate()

    def query(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.database, timeout=30)) as client, client:
            return client.execute(statement, values).fetchall()

    def empty(self) -> None:
        for name in ("documents", "epochs", "messages"):
            self.query(f"DELETE FROM {name}")  # noqa: S608

    def documents(self, name: str) -> Mapping[tuple[str, ...], Any]:
        rows = self.query("SELECT id, document FROM documents WHERE name = ? AND document IS NOT NULL", name)
        return {tuple(json.loads(id)): _exact(text) for id, text in rows}

    def tombstones(self) -> int:
        ((found,),) = self.query("SELECT count(*) FROM documents WHERE document IS NULL")
        return int(found)


@contextmanager
def running(folder: Path) -> Iterator[Receiver]:
    receiver = Receiver(folder / "copy.db")
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.kill()
