"""Rule 5 once more: a repair is guarded like any other write, and never makes things worse."""

from __future__ import annotations

from replicator.batch import Delete, Upsert, Write
from replicator.target.contract import Table
from replicator.testing.memory import MemoryRows, body
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import repaired_copies
from tests.simulation.targets import UnreliableIndex


@mutant("a repair writes whatever is stored by then", 5, shape=repaired_copies)
def repairs_blindly(patch: Patch) -> None:
    def replaced(self: MemoryRows, table: Table, write: Upsert) -> str:
        self._database.rows[table.name][write.id] = write.version, body(write.body)
        return ""

    def removed(self: MemoryRows, table: Table, write: Delete) -> str:
        self._database.rows[table.name].pop(write.id, None)
        return ""

    def insisted(self: UnreliableIndex, write: Write) -> str:
        rows = self._database.rows[write.table]
        if isinstance(write, Upsert):
            rows[write.id] = write.version, body(write.body)
        else:
            rows.pop(write.id, None)
        return ""

    patch.setattr(MemoryRows, "_replaced", replaced)
    patch.setattr(MemoryRows, "_removed", removed)
    patch.setattr(UnreliableIndex, "_insisted", insisted)


@mutant("a repair raises the version by one", 5, shape=repaired_copies)
def repairs_raise_the_version(patch: Patch) -> None:
    def raised(self: MemoryRows, write: Write) -> None:
        rows = self._database.rows[write.table]
        if write.id in rows:
            version, stored = rows[write.id]
            rows[write.id] = version + 1, stored

    replaced, insisted = MemoryRows._replaced, UnreliableIndex._insisted

    def replaces(self: MemoryRows, table: Table, write: Upsert) -> str:
        if not (reason := replaced(self, table, write)):
            raised(self, write)
        return reason

    def insists(self: UnreliableIndex, write: Write) -> str:
        if not (reason := insisted(self, write)):
            raised(self, write)
        return reason

    patch.setattr(MemoryRows, "_replaced", replaces)
    patch.setattr(UnreliableIndex, "_insisted", insists)
