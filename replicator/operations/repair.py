"""Repairs confirmed differences by compare-and-set, while a run leaves tombstones for every delete.

different   replaced where the stored version is exactly the one that was read; it keeps that version
extra       deleted under the same condition
missing     inserted at the version of a scanned item. Any change of the item has a higher one, and so has the tombstone
            of a delete. So the item must be read after the run has begun to leave tombstones

The command announces itself by a checkpoint entry. The run that is up notices it within a minute, leaves tombstones
from then on, and names the entry in its heartbeat; each worker does, where there are several. When the entry says that
the command has ended, the run purges them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from replicator.batch import Batch, Delete, Part, Rejection, Upsert
from replicator.engine.retry import Stopped
from replicator.errors import ConfigError, Fenced, Unfinished
from replicator.pipeline.coordination import writers
from replicator.state import Heartbeat, Repair, Save, decode, encode
from replicator.target.contract import Transactional
from replicator.target.verification import CHANGED, HISTORY_FIELD, HISTORY_ORDER, UNVERSIONED, Repairable
from replicator.verification.differences import Finding
from replicator.verification.verifier import Result, Verifier, with_version
from replicator.version import epoch_of, version

if TYPE_CHECKING:
    from replicator.operations.verify import Ends

AT_ONCE = 500  # documents in one write
REFRESH = 60.0  # seconds between notes that the command is still running
_LATER_EPOCH = (
    "its version is of a later epoch than the pipeline's, so nothing newer would replace it: replicator resync CONFIG"
)
_IN_THE_HISTORY = "a repair adds nothing to a history; a scan adds what differs: replicator resync CONFIG"


T = TypeVar("T")


class Retrying(Protocol):
    """Calls a function, perhaps several times."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


def _once(function: Callable[[], T]) -> T:
    return function()


class Announced(Protocol):
    """Receives the outcome of each repair."""

    def waiting(self, reason: str | None) -> None: ...
    def repair(self, finding: Finding, reason: str) -> None:
        """A difference was repaired; or not, for the ``reason``."""


class Repairs:
    """The repairs of one pass; none unless they are ``wanted``. A context manager: announces them, and ends them.

    ``token``: names them among those of other commands; random by default.
    """

    def __init__(
        self,
        both: Ends,
        report: Announced,
        *,
        wanted: bool,
        monotonic: Callable[[], float] = time.monotonic,
        token: str = "",
        retrying: Retrying = _once,
    ) -> None:
        """``retrying``: calls what the pass asks of the target and the checkpoints, again after a TransientError."""
        self._both, self._report, self._wanted, self._monotonic = both, report, wanted, monotonic
        self._token = token or uuid.uuid4().hex
        self._retrying = retrying
        self._asks: Retrying = _once  # a command that reaches nothing as it begins ends with that
        self._revision = 0
        self._acknowledged = False
        self._refreshed_at = 0.0
        self._offered: list[Result] = []
        self.repaired = 0
        self.changed: list[Finding] = []  # what the last flush came too late for

    def __enter__(self) -> Repairs:
        if self._wanted:
            target = self._both.target
            if not isinstance(target, Repairable):
                raise ConfigError(f"--repair: {self._both.config.target.type} cannot repair documents")
            if target.unrepairable:
                raise ConfigError(f"--repair: {target.unrepairable}")
            target.open(list(self._both.tables.values()), self._both.state.epoch)
            self._announce()
            self._asks = self._retrying
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(Stopped):  # a run forgets a command of which nothing is heard
            entry = self._entry() if self._wanted else None
            if entry is not None and entry[0].token == self._token:
                self._save(Repair(self._token, ended=True))

    @property
    def waits(self) -> bool:
        """Whether nothing may be confirmed yet: items must be read after the run has started to leave tombstones."""
        return self._wanted and not self._acknowledged

    @property
    def pending(self) -> int:
        return len(self._offered)

    def offer(self, result: Result) -> None:
        if self._wanted:
            self._offered.append(result)

    def flush(self, verifier: Verifier) -> None:
        """Repair what was offered. Documents that changed meanwhile become candidates again: see ``changed``."""
        self.changed = []
        if self._wanted:
            self._acknowledge()
            offered, self._offered = self._offered, []
            for start in range(0, len(offered), AT_ONCE):
                self._repair(offered[start : start + AT_ONCE], verifier)

    def _repair(self, results: Sequence[Result], verifier: Verifier) -> None:
        floor = version(self._both.state.complete, 0)
        inserts, replacements, removals = [], [], []
        for result in results:
            finding = result.finding
            known = finding.version
            if known is not None and known != UNVERSIONED and epoch_of(known) > self._both.state.epoch:
                self._report.repair(finding, _LATER_EPOCH)
            elif finding.fields and {HISTORY_FIELD, HISTORY_ORDER}.issuperset(finding.fields):
                self._report.repair(finding, _IN_THE_HISTORY)
            elif finding.kind == "extra":
                removals.append(result)
            elif finding.kind == "missing" or known is None or known < floor:
                inserts.append(result)
            else:
                replacements.append(result)
        self._in_tables(inserts, self._insert, verifier)
        self._in_tables(replacements, self._replace, verifier)
        self._in_tables(removals, self._remove, verifier)

    def _in_tables(
        self, results: Iterable[Result], change: Callable[[str, Sequence[Result]], Sequence[str]], verifier: Verifier
    ) -> None:
        tables: dict[str, list[Result]] = {}
        for result in results:
            tables.setdefault(result.finding.table, []).append(result)
        for name, some in tables.items():
            for result, reason in zip(some, change(name, some), strict=True):
                self._done(result.finding, reason, verifier)

    def _done(self, finding: Finding, reason: str, verifier: Verifier) -> None:
        if reason == CHANGED:
            verifier.look_again(finding)
            self.changed.append(finding)
            return
        self.repaired += not reason
        self._report.repair(finding, reason)

    def _insert(self, name: str, results: Sequence[Result]) -> Sequence[str]:
        """Insert documents at the version of a scanned item, under the guard, as long as the run leaves tombstones."""
        writes = [result.expected for result in results if result.expected is not None]
        assert len(writes) == len(results)
        rejections = self._while_announced(lambda: self._inserted(writes))
        if rejections is None:
            return [CHANGED] * len(results)
        refused = {r.write.id: r.reason for r in rejections}
        if refused:  # then nothing of the batch was stored
            return [refused.get(write.id, CHANGED) for write in writes]
        table, ids = self._both.tables[name], [write.id for write in writes]
        there = self._asks(lambda: self._both.comparing.versions(table, ids))
        return ["" if known == write.version else CHANGED for write, known in zip(writes, there, strict=True)]

    def _inserted(self, writes: Sequence[Upsert]) -> Sequence[Rejection] | None:
        """What the target refuses; None if the run has abandoned these repairs, or did not apply all in time."""
        try:
            return self._written(writes)
        except (Fenced, Unfinished):
            self._acknowledged = False
            return None

    def _written(self, writes: Sequence[Upsert]) -> Sequence[Rejection]:
        target = self._both.target
        if not isinstance(target, Transactional):
            return target.write(Batch([Part("verify", writes)], tombstones=True)).rejections
        # In the transaction of the rows: it fails if the run has abandoned these repairs in the meantime.
        save = Save("repair", "", self._revision, encode(Repair(self._token)))
        outcome = target.write(Batch([Part("verify", writes)], [save], tombstones=True))
        self._revision += not outcome.rejections
        return outcome.rejections

    def _replace(self, name: str, results: Sequence[Result]) -> Sequence[str]:
        target, table = self._both.target, self._both.tables[name]
        assert isinstance(target, Repairable)
        writes = [with_version(r.expected, r.finding.version) for r in results if r.expected and r.finding.version]
        assert len(writes) == len(results)
        return self._asks(lambda: target.replace(table, writes))

    def _remove(self, name: str, results: Sequence[Result]) -> Sequence[str]:
        target, table = self._both.target, self._both.tables[name]
        assert isinstance(target, Repairable)
        findings = [result.finding for result in results]
        deletes = [Delete(f.table, f.id, f.version or 0, f.item or f.id, 0) for f in findings]
        removed = self._while_announced(lambda: target.remove(table, deletes))
        return [CHANGED] * len(results) if removed is None else removed

    # The entry

    def _announce(self) -> None:
        self._save(Repair(self._token))
        self._revision = self._stored_revision()
        self._acknowledged, self._refreshed_at = False, self._monotonic()

    def _acknowledge(self) -> None:
        """Check whether a run has noticed; show from time to time that this command is still running.

        A run that begins an epoch saves the entry again, so that inserts confirmed before that fail: they could come
        behind the sweep. What is confirmed afterwards may be inserted.
        """
        if not self._acknowledged:
            if not self._still_announced():
                self._announce()
            self._revision = self._stored_revision()
            entries = self._asks(self._both.checkpoints.read).entries
            beats = {e.id: decode(e.kind, e.id, e.text) for e in entries if e.kind == "pulse"}
            told = {id for id, beat in beats.items() if isinstance(beat, Heartbeat) and beat.repair == self._token}
            self._acknowledged = writers(entries) <= told
            self._report.waiting(None if self._acknowledged else "the run to leave tombstones (up to a minute)")
        elif self._monotonic() - self._refreshed_at >= REFRESH:
            if not self._still_announced() or self._stored_revision() != self._revision:
                self._acknowledged = False
                return
            self._announce()
            self._acknowledged = True  # the same entry

    def _while_announced(self, change: Callable[[], T]) -> T | None:
        """What the change returns; None if the entry is not there, which is asked before each attempt."""
        return self._asks(lambda: change() if self._is_own(self._read_entry()) else None)

    def _still_announced(self) -> bool:
        """Whether the entry is there. Fenced if another command has taken over."""
        return self._is_own(self._entry())

    def _is_own(self, entry: tuple[Repair, int] | None) -> bool:
        if entry is None or entry[0].ended:
            return False
        if entry[0].token != self._token:
            raise Fenced("another `replicator verify --repair` of this pipeline has taken over; this one must stop")
        return True

    def _stored_revision(self) -> int:
        entry = self._entry()
        return 0 if entry is None else entry[1]

    def _entry(self) -> tuple[Repair, int] | None:
        return self._asks(self._read_entry)

    def _read_entry(self) -> tuple[Repair, int] | None:
        for e in self._both.checkpoints.read().entries:
            if e.kind == "repair":
                value = decode(e.kind, e.id, e.text)
                assert isinstance(value, Repair)
                return value, e.revision
        return None

    def _save(self, repair: Repair) -> None:
        self._asks(lambda: self._both.checkpoints.save([Save("repair", "", None, encode(repair))]))
