"""The search target: checks and creates indices, stores batches guarded by document versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from connectors.search import catalog, checks, definition, forecast, searches
from connectors.search.bulk import Bulk, Size
from connectors.search.checks import Opened, Watch
from connectors.search.conflicts import Conflicts
from connectors.search.connection import Connection
from connectors.search.encode import Encoded, TableEncoder, encode
from connectors.search.errors import ResponseLost
from connectors.search.layout import Layout, layouts
from connectors.search.options import SearchOptions, SearchTable
from connectors.search.responses import worst
from connectors.search.writer import Writer
from replicator.batch import Batch, DocumentId, Outcome, Rejection, Write
from replicator.errors import ConfigError, GapFound, ReplicatorError, TransientError
from replicator.identity import Change, Identity, Parts
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow


class SearchTarget:
    """Indices of one cluster. Every write is guarded by its version (``version_type=external``).

    Deletes that must be remembered are documents of their own, which the alias hides, because the engine's own memory
    of deletes ends with a restart.
    """

    TableOptions = SearchTable

    def __init__(self, options: SearchOptions, pipeline: str, connection: Connection) -> None:
        self._pipeline = pipeline
        self._connection = connection
        self._bulk = Bulk(connection, Size(options.bulk_bytes, options.bulk_documents), options.in_flight)
        self._in_doubt = InDoubtWindow()
        self._conflicts = Conflicts(connection)
        self._writing = Writer(self._bulk, self._in_doubt, self._conflicts)
        self._watch = Watch(connection)
        self._gone: dict[tuple[str, str], frozenset[searches.Document]] = {}  # what the last piece removed, by index
        self._found: dict[tuple[str, int], searches.Piece] = {}  # what the next piece of a purge removes
        self._window_of = 0  # that had begun as it was found
        self._encoders: Mapping[str, TableEncoder] = {}

    @property
    def server(self) -> str:
        """Product and address, for messages."""
        return self._connection.server

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        try:
            wanted = list(layouts(tables).values())
            missing = list(checks.missing_privileges(self._connection, wanted))
            return missing or [text for layout in wanted for text in self._problems(layout)]
        except ConfigError as e:
            return e.problems

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = layouts(tables).values()
        return [text for layout in wanted for text in catalog.plan(layout, catalog.state(self._connection, layout))]

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        return list(forecast.refusals(writes, layouts(tables)))

    def epoch(self, tables: Sequence[Table]) -> int | None:
        wanted = list(layouts(tables).values())
        found = [(layout, catalog.state(self._connection, layout)) for layout in wanted]
        there = [(layout, state.index) for layout, state in found if state.index is not None]
        others = [f"{of.index}: {text}" for of, i in there for text in catalog.taken(of, i, self._pipeline)]
        if problems := [*(text for of, state in found for text in catalog.renamed(of, state)), *others]:
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
        found = {name: self._usable(layout, epoch) for name, layout in wanted.items()}
        if problems := [text for _, texts in found.values() for text in texts]:
            raise ConfigError(*problems)
        for name, layout in wanted.items():
            if found[name][0].replaced(epoch):
                raise GapFound(catalog.replaced(layout))
        self._watch.begin([self._ready(layout, found[name][0], epoch) for name, layout in wanted.items()])
        self._writing.layouts = wanted
        self._encoders = {name: TableEncoder(layout) for name, layout in wanted.items()}
        self._conflicts.epoch = epoch

    def write(self, batch: Batch) -> Outcome:
        self.send(self.encode(batch))
        return self.collect()

    def encode(self, batch: Batch) -> Encoded:
        return encode(batch, self._encoders)

    def send(self, encoded: Encoded) -> None:
        self._watch.look()
        self._writing.send(encoded)

    def ready(self) -> bool:
        return self._writing.ready()

    def collect(self) -> Outcome:
        return self._writing.collect()

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        (layout,) = layouts([table]).values()
        self._watch.look()
        found = searches.swept(self._connection, layout, below, spare)
        self._check_gone("swept", layout, found)
        return self._removed("swept", layout, found)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        (layout,) = layouts([table]).values()
        self._watch.look()
        if self._in_doubt.begun != self._window_of:  # a command may have begun it, and stored something in their place
            self._found, self._window_of = {}, self._in_doubt.begun
        place = layout.index, below
        if place in self._found:
            doomed, spared = self._found[place]
            if spared.issuperset(spare):  # else a retry may have stored something in the place of what was found
                self._removed("purged", layout, doomed)
            del self._found[place]
        found = searches.forgotten(self._connection, layout, below, spare)
        self._check_gone("purged", layout, found)
        if found.lines:
            self._found[place] = found, frozenset(spare)
        return len(found.lines)

    def close(self) -> None:
        self._writing.drop()
        self._bulk.close()
        self._connection.close()

    def _usable(self, layout: Layout, epoch: int) -> tuple[catalog.State, Sequence[str]]:
        found = catalog.state(self._connection, layout)
        problems = [*self._mismatches(layout, found), *catalog.overtaken(layout, found, epoch)]
        return found, problems or self._foreseen(layout, found)

    def _foreseen(self, layout: Layout, found: catalog.State) -> Sequence[str]:
        """Hazards that an absent index would have once it is created, so that no such index is left behind."""
        return [] if found.index is not None else list(checks.templates(self._connection, layout))

    def _ready(self, layout: Layout, found: catalog.State, epoch: int) -> Opened:
        """Create what is absent and store the notes.

        The new index is inspected again: not every login may query in advance what templates would do to it.
        """
        if not found.complete:
            catalog.make(self._connection, layout, found, catalog.notes(layout, self._pipeline, 0))
            found = catalog.state(self._connection, layout)
            if problems := self._mismatches(layout, found):
                raise ConfigError(*problems)
        if found.index is None:
            raise TransientError(
                f"{self.server}: the index {layout.index} was created, but cannot be found; looking again"
            )
        checks.versions_kept(self._bulk, layout, self.server)
        notes = catalog.notes(layout, self._pipeline, epoch)
        catalog.note(self._connection, layout, found.index, notes)
        return Opened(layout, found.index.id, notes)

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

    def _removed(self, how: str, layout: Layout, piece: searches.Piece) -> int:
        count = self._stored(layout, piece.lines)
        self._gone[how, layout.index] = piece.documents
        return count

    def _stored(self, layout: Layout, lines: Sequence[bytes]) -> int:
        found = self._bulk.store(layout, lines)
        error = worst(found)
        if error is not None:
            if isinstance(error, ResponseLost):
                self._in_doubt.begin()
            raise error
        refused = next((verdict.reason for verdict in found if verdict.kind == "refused"), None)
        if refused is not None:  # the sweep would find it again and again
            raise ConfigError(f"{self.server}: {layout.index} takes no tombstones ({refused}); run check")
        return len(lines)

    def _problems(self, layout: Layout) -> Sequence[str]:
        found = catalog.state(self._connection, layout)
        problems = [*self._mismatches(layout, found)]
        if found.index is not None and found.index.replaced:
            problems.append(catalog.replaced(layout))
        problems = problems or [*self._foreseen(layout, found)]
        if problems or not found.complete:
            return problems
        try:
            checks.versions_kept(self._bulk, layout, self._connection.server)
        except ReplicatorError as e:  # even a transient one: someone is waiting for the result
            return [str(e)]
        return []

    def _mismatches(self, layout: Layout, found: catalog.State) -> Sequence[str]:
        problems = list(catalog.mismatches(layout, found, self._pipeline))
        if problems or found.index is None or layout.adopt:
            return problems
        return list(checks.swallowed(self._connection, layout))
