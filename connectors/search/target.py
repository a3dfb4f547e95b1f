"""The search target: checks and creates indices, stores batches guarded by document versions."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import orjson

from connectors.search import catalog, checks, definition, forecast, generations, ingest, marking, searches
from connectors.search.bulk import Bulk, Size
from connectors.search.checks import Opened, Watch
from connectors.search.conflicts import Conflicts
from connectors.search.connection import Connection
from connectors.search.encode import Encoded, TableEncoder, encode
from connectors.search.errors import ResponseLost
from connectors.search.inference import proposal
from connectors.search.layout import Layout, layouts
from connectors.search.options import SearchOptions, SearchTable
from connectors.search.responses import worst
from connectors.search.verification import IndexVerification
from connectors.search.writer import Writer
from replicator.batch import Batch, DocumentId, Outcome, Rejection, Write
from replicator.errors import ConfigError, GapFound, ReplicatorError, TransientError, Unfinished
from replicator.identity import Change, Identity, Parts
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.observed import Field, Proposal
from replicator.target.verification import ComparesByTable


class SearchTarget(ComparesByTable):
    """Indices of one cluster. Every write is guarded by its version (``version_type=external``).

    Deletes that must be remembered are stored as tombstones, documents that the alias hides, because the engine
    itself forgets deletes after a minute or a restart.
    """

    TableOptions = SearchTable

    def __init__(self, options: SearchOptions, pipeline: str, connection: Connection) -> None:
        self._pipeline = pipeline
        self._connection = connection
        self._bulk = Bulk(connection, Size(options.bulk_bytes, options.bulk_documents), options.in_flight)
        self._in_doubt = InDoubtWindow()
        self._conflicts = Conflicts(connection)
        self._writing = Writer(self._bulk, self._in_doubt, self._conflicts, partial(marking.read, connection))
        self._watch = Watch(connection)
        self._gone: dict[tuple[str, str], frozenset[searches.Document]] = {}  # what the last piece removed
        self._to_purge: dict[tuple[str, int], tuple[searches.Piece, frozenset[DocumentId]]] = {}
        """The next piece of each purge, and what was spared when it was found."""
        self._purge_window = 0  # in-doubt windows opened when those pieces were found
        self._encoders: Mapping[str, TableEncoder] = {}
        self._verifications: dict[str, IndexVerification] = {}

    @property
    def server(self) -> str:
        """Product and address, for messages."""
        return self._connection.server

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    @staticmethod
    def infer(table: Table, fields: Sequence[Field]) -> Proposal:
        return proposal(table, fields)

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        return self._checked(tables, self._problems)

    def epoch_problems(self, tables: Sequence[Table]) -> Sequence[str]:
        """What ``check`` reports, except that an index was replaced: a new epoch fills it again."""
        return self._checked(tables, self._epoch_problems)

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = layouts(tables).values()
        return [text for layout in wanted for text in catalog.plan(layout, catalog.state(self._connection, layout))]

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        return list(forecast.refusals(writes, layouts(tables)))

    def epoch(self, tables: Sequence[Table]) -> int | None:
        wanted = list(layouts(tables).values())
        states = [(layout, catalog.state(self._connection, layout)) for layout in wanted]
        there = [(layout, state.index) for layout, state in states if state.index is not None]
        others = [f"{of.index}: {text}" for of, i in there for text in catalog.taken(of, i, self._pipeline)]
        if problems := [*(text for of, state in states for text in catalog.renamed(of, state)), *others]:
            raise ConfigError(*problems)
        if len(there) < len(wanted):
            return None
        return max((definition.epoch(self._connection, of, index) for of, index in there), default=None)

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        return definition.identities(self._connection, layouts(tables))

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = layouts(tables)
        there = zip(wanted.items(), catalog.states(self._connection, list(wanted.values())), strict=True)
        present = [(name, layout) for (name, layout), state in there if state.index is not None]
        return [name for name, layout in present if searches.is_empty(self._connection, layout)]

    def parts(self, table: Table) -> Parts:
        (layout,) = layouts([table]).values()
        return definition.parts(layout)

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        requests = definition.additions(layouts(tables), changes)
        if requests is None:
            return None
        return [f"PUT {path}\n{orjson.dumps(body, option=orjson.OPT_INDENT_2).decode()}" for path, body in requests]

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        for path, body in definition.additions(layouts(tables), changes) or ():
            self._connection.ask("PUT", path, orjson.dumps(body), doing=f"adding fields: PUT {path} (needs manage)")

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        wanted = layouts(tables)
        inspected = {name: self._usable(layout, epoch) for name, layout in wanted.items()}
        problems = [text for _, texts in inspected.values() for text in texts]
        if problems := [*problems, *self._watch.other_pipelines(list(wanted.values()))]:
            raise ConfigError(*problems)
        for name, layout in wanted.items():
            if inspected[name][0].replaced(epoch):
                raise GapFound(catalog.replaced(layout), of_target=True)
        self._watch.begin([self._ready(layout, inspected[name][0], epoch) for name, layout in wanted.items()])
        self._writing.layouts = wanted
        self._encoders = {name: TableEncoder(layout) for name, layout in wanted.items()}
        self._conflicts.epoch = epoch

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """Raises what ``Watch.recheck`` does, as writes do."""
        self._watch.recheck()
        return ()

    def write(self, batch: Batch) -> Outcome:
        self.send(self.encode(batch))
        return self.collect()

    def encode(self, batch: Batch) -> Encoded:
        return encode(batch, self._encoders)

    def send(self, encoded: Encoded) -> None:
        self._watch.look()
        self._writing.send(ingest.through(self._connection, self._writing.layouts, encoded))

    def ready(self) -> bool:
        return self._writing.ready()

    def collect(self) -> Outcome:
        return self._writing.collect()

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        (layout,) = layouts([table]).values()
        self._watch.look()
        piece = searches.swept(self._connection, layout, below, spare)
        if layout.marks:
            piece = self._marking(layout, piece, below)
        self._check_gone("swept", layout, piece)
        return self._removed("swept", layout, piece)

    def _marking(self, layout: Layout, piece: searches.Piece, below: int) -> searches.Piece:
        """The piece with lines that mark the documents; those that are gone by now get tombstones all the same."""
        stored, now = marking.read_all(self._connection, layout, piece.addresses), time.time()
        found = zip(piece.addresses, piece.lines, stored, strict=True)
        lines = [line if one is None else marking.mark_at(address, below, one, now) for address, line, one in found]
        return replace(piece, lines=lines)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        (layout,) = layouts([table]).values()
        self._watch.look()
        if self._in_doubt.begun != self._purge_window:  # a command may have replaced those tombstones since
            self._to_purge, self._purge_window = {}, self._in_doubt.begun
        place = layout.index, below
        if place in self._to_purge:
            doomed, spared = self._to_purge[place]
            if spared.issuperset(spare):  # else a retry may have replaced some of these tombstones since
                self._purged(place, layout, doomed)
            del self._to_purge[place]
        piece = searches.forgotten(self._connection, layout, below, spare)
        self._check_gone("purged", layout, piece)
        if piece.lines:
            self._to_purge[place] = piece, frozenset(spare)
        return len(piece.lines)

    def seen(self, tables: Sequence[Table]) -> Collection[str]:
        wanted = layouts(tables)
        found = dict(zip(wanted, catalog.states(self._connection, list(wanted.values())), strict=True))
        return [name for name, layout in wanted.items() if found[name].searched == (layout.index,)]

    def rebuild_problems(
        self, live: Sequence[Table], new: Sequence[Table], pipelines: tuple[str, str]
    ) -> Sequence[str]:
        pairs = list(zip(self._generations(live, pipelines[0]), self._generations(new, pipelines[1]), strict=True))
        return [text for pair in pairs for text in generations.unbuildable(*pair)]

    def carried(self, live: Sequence[Table]) -> Sequence[str]:
        return sorted({name for one in self._generations(live, "") for name in one.others})

    def point(self, away: Sequence[Table], here: Sequence[Table], pipelines: tuple[str, str]) -> bool:
        old, new = self._generations(away, pipelines[0]), self._generations(here, pipelines[1])
        return generations.point(self._connection, old, new)

    def drop_problems(self, tables: Sequence[Table], pipeline: str) -> Sequence[str]:
        return [text for one in self._generations(tables, pipeline) for text in generations.undroppable(one)]

    def drop(self, tables: Sequence[Table], pipeline: str) -> None:
        generations.drop(self._connection, self._generations(tables, pipeline))

    def _generations(self, tables: Sequence[Table], pipeline: str) -> list[generations.Generation]:
        return generations.read(self._connection, list(layouts(tables).values()), pipeline)

    @property
    def unrepairable(self) -> str:
        return ""

    def _verification(self, table: Table) -> IndexVerification:
        known = self._verifications.get(table.name)
        if known is None:
            (layout,) = layouts([table]).values()
            known = IndexVerification(self._connection, self._bulk, layout, TableEncoder(layout))
            self._verifications[table.name] = known
        return known

    def close(self) -> None:
        self._writing.drop()
        self._bulk.close()
        self._connection.close()

    def _usable(self, layout: Layout, epoch: int) -> tuple[catalog.State, Sequence[str]]:
        state = catalog.state(self._connection, layout)
        problems = [*self._mismatches(layout, state), *catalog.overtaken(layout, state, epoch)]
        if state.index is not None and state.index.epoch == epoch:
            problems += self._other_ingest(layout, state.index)
        return state, problems or self._foreseen(layout, state)

    def _other_ingest(self, layout: Layout, index: catalog.Index) -> Iterator[str]:
        return ingest.changed(self._connection, layout, index.notes)

    def _foreseen(self, layout: Layout, state: catalog.State) -> Sequence[str]:
        """Problems of the ingest pipeline, and hazards that an absent index would have once it is created, so that no
        such index is left behind.
        """
        foreseen = list(ingest.problems(self._connection, layout))
        return foreseen if state.index is not None else [*foreseen, *checks.templates(self._connection, layout)]

    def _ready(self, layout: Layout, state: catalog.State, epoch: int) -> Opened:
        """Create what is absent and store the notes.

        The new index is inspected again: not every login may query in advance what templates would do to it.
        """
        if not state.complete:
            catalog.create(self._connection, layout, state, catalog.notes(layout, self._pipeline, 0))
            state = catalog.state(self._connection, layout)
            if problems := self._mismatches(layout, state):
                raise ConfigError(*problems)
        if state.index is None:
            raise TransientError(
                f"{self.server}: the index {layout.index} was created, but cannot be found; looking again"
            )
        checks.check_versioning(self._bulk, layout, self.server)
        notes = {**catalog.notes(layout, self._pipeline, epoch), **ingest.digest(self._connection, layout)}
        catalog.note(self._connection, layout, state.index, notes)
        return Opened(layout, state.index.id, notes)

    def _check_gone(self, how: str, layout: Layout, piece: searches.Piece) -> None:
        """Raise TransientError if a search still shows what the previous piece removed.

        Documents that were stored again do not count: each retry of a parked item leaves the same tombstones.
        """
        again = piece.documents & self._gone.get((how, layout.index), frozenset())
        shown = again - searches.stored(self._connection, layout, again) if again else again
        if shown:
            raise TransientError(
                f"{self.server}: a search in {layout.index} still shows {len(shown)} document(s) that were {how}; "
                "looking again (is a replica shard lagging behind?)"
            )

    def _purged(self, place: tuple[str, int], layout: Layout, piece: searches.Piece) -> None:
        try:
            self._removed("purged", layout, piece)
        except Unfinished:  # it is searched again: a next attempt would spend its time on what is gone already
            del self._to_purge[place]
            raise

    def _removed(self, how: str, layout: Layout, piece: searches.Piece) -> int:
        count = self._stored(layout, piece.lines)
        self._gone[how, layout.index] = piece.documents
        return count

    def _stored(self, layout: Layout, lines: Sequence[bytes]) -> int:
        verdicts = self._bulk.store(layout, lines)
        error = worst(verdicts)
        if error is not None:
            if isinstance(error, ResponseLost):
                self._in_doubt.begin()
            raise error
        refused = next((verdict.reason for verdict in verdicts if verdict.kind == "refused"), None)
        if refused is not None:  # the sweep would find it again and again
            raise ConfigError(f"{self.server}: {layout.index} takes no tombstones ({refused}); run check")
        return len(lines)

    def _checked(
        self, tables: Sequence[Table], problems: Callable[[Layout, catalog.State], Sequence[str]]
    ) -> Sequence[str]:
        try:
            wanted = list(layouts(tables).values())
            if missing := list(checks.missing_privileges(self._connection, wanted)):
                return missing
            return [text for layout in wanted for text in problems(layout, catalog.state(self._connection, layout))]
        except ConfigError as e:
            return e.problems

    def _problems(self, layout: Layout, state: catalog.State) -> Sequence[str]:
        if state.index is not None and state.index.replaced:
            return [*self._mismatches(layout, state), catalog.replaced(layout)]
        changed = self._other_ingest(layout, state.index) if state.index is not None else ()
        return [*changed, *self._epoch_problems(layout, state)]

    def _epoch_problems(self, layout: Layout, state: catalog.State) -> Sequence[str]:
        problems = [*self._mismatches(layout, state)] or [*self._foreseen(layout, state)]
        if problems or not state.complete:
            return problems
        try:
            checks.check_versioning(self._bulk, layout, self._connection.server)
        except ReplicatorError as e:  # even a transient one: someone is waiting for the result
            return [str(e)]
        return []

    def _mismatches(self, layout: Layout, state: catalog.State) -> Sequence[str]:
        problems = list(catalog.mismatches(layout, state, self._pipeline))
        if problems or state.index is None or layout.adopt:
            return problems
        return list(checks.foreign_versions(self._connection, layout))
