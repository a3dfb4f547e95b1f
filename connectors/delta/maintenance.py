"""Keeps a table's files few and its folder small: compaction, and removal of files that are not needed any more."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from deltalake import DeltaTable

from connectors.delta.errors import Conflict, Missing, translated
from connectors.delta.options import DeltaOptions
from connectors.delta.stored_table import StoredTable
from connectors.delta.tombstones import Tombstones

log = logging.getLogger("replicator")

_HOUR = 3600.0
_UNCOMMITTED = 24  # hours that no commit takes
_FEW = 8  # files that need no compaction


@dataclass(slots=True)
class Maintenance:
    """Of one table and its tombstones, at most once in ``compact_hours``. ``now``: monotonic clock."""

    options: DeltaOptions
    stored: StoredTable
    tombstones: Tombstones
    now: Callable[[], float] = time.monotonic
    _due: float = 0.0

    def begin(self) -> None:
        self._due = self.now() + self.options.compact_hours * _HOUR

    def is_due(self) -> bool:
        return self.options.compact_hours > 0 and self.now() >= self._due

    def run(self) -> None:
        """Compact and vacuum. What others change meanwhile is left to the next time."""
        self.begin()
        for stored in (self.stored, self.tombstones.stored):
            try:
                self._compact(stored)
            except (Conflict, Missing):
                continue

    def _compact(self, stored: StoredTable) -> None:
        table = stored.current()
        with translated(stored.place):
            if len(table.file_uris()) > _FEW:
                table.optimize.compact()
            self._remove_files(table, stored.place)
            table.cleanup_metadata()

    def _remove_files(self, table: DeltaTable, place: str) -> None:
        """Those that the log has as removed, and those that it does not have: it forgets removals, and commits fail.

        Of the latter, young ones may belong to the commit that a command is about to make. None is removed if there is
        another table inside the folder, whose files would be among them.
        """
        kept = round(self.options.keep_days * 24)
        if kept < _UNCOMMITTED:
            table.vacuum(retention_hours=kept, dry_run=False, enforce_retention_duration=False)
        inside = _table_inside(table)
        if inside:
            log.warning("another Delta table is inside; files of no table stay", extra={"table": place, "has": inside})
        hours = max(kept, _UNCOMMITTED)
        table.vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=not inside)


def _table_inside(table: DeltaTable) -> str:
    """The folder of another table among the files that the log does not have, of any age; empty without one."""
    unknown = table.vacuum(retention_hours=0, dry_run=True, enforce_retention_duration=False, full=True)
    found = (path.partition("/_delta_log/") for path in unknown)
    return next((folder for folder, log, _ in found if log), "")
