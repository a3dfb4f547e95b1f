"""The DynamoDB target: implements the target contract."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from connectors.dynamodb.cleanup import ScanCleanup
from connectors.dynamodb.connection import Account
from connectors.dynamodb.documents import Layout, layout, layouts
from connectors.dynamodb.encode import Encoded, encode, refusals
from connectors.dynamodb.options import DynamoDBOptions, DynamoDBTable
from connectors.dynamodb.permissions import needed
from connectors.dynamodb.settings import differing
from connectors.dynamodb.stripping import strip_page
from connectors.dynamodb.tables import Tables, wrong_names
from connectors.dynamodb.verification import TableVerification
from connectors.dynamodb.writer import Writer
from replicator.aws.batch_get import BatchReader
from replicator.aws.client import Client
from replicator.aws.permissions import Needed
from replicator.batch import Batch, DocumentId, Outcome, Rejection, Write
from replicator.errors import ConfigError, TransientError
from replicator.identity import Change, Identity, Parts
from replicator.marks import Marks
from replicator.source.table import SourceTable
from replicator.target.contract import OWN_IDS, Page, Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.target.verification import ComparesByTable
from replicator.version import LAST_EPOCH

_PRISTINE = (
    "pristine: items have no versions, so nothing guards writes against older ones. Let only one run write to the "
    "table. After a timeout or a crash, a request that is applied late may restore an older state of an item, until "
    "the item changes again"
)


class DynamoDB(ComparesByTable):
    """Tables of one account and region. Every write has a condition on the version that is stored with the item."""

    Options = DynamoDBOptions
    TableOptions = DynamoDBTable

    def __init__(self, options: DynamoDBOptions, pipeline: str) -> None:
        self._options = options
        self._account = Account(options)
        self._tables = Tables(self._account, options, pipeline)
        self._in_doubt = InDoubtWindow()
        self._layouts: Mapping[str, Layout] = {}
        self._opened: tuple[Writer, ScanCleanup] | None = None
        self._verifications: dict[str, TableVerification] = {}

    @property
    def in_doubt(self) -> InDoubtWindow:
        return self._in_doubt

    @property
    def marks(self) -> Marks | None:
        """The attributes that this pipeline and the opposite one add to items; None without an opposite one."""
        options = self._options
        if not options.loops:
            return None
        return self.attributes

    @property
    def reduced_guarantee(self) -> str:
        """How the guarantee is reduced, a few sentences for users; empty if it is not."""
        return _PRISTINE if self._options.pristine else ""

    @property
    def unguarded(self) -> bool:
        """Whether a write replaces whatever is there."""
        return self._options.pristine

    def mirror(self, source: SourceTable, client: Client, *, keep_expired: bool = False) -> None:
        self._tables.source, self._tables.keep_expired = (source, client), keep_expired

    @staticmethod
    def permissions(options: DynamoDBOptions, tables: Sequence[Table], *, keep_expired: bool) -> Sequence[Needed]:
        return list(needed(options, tables, keep_expired=keep_expired))

    def differing_settings(self, tables: Sequence[Table]) -> Sequence[str]:
        if self._tables.source is None or any(table.keys == OWN_IDS for table in tables):
            return ()
        source, client = self._tables.source
        pairs = [((client, source.requested), (self._account.client, table.name)) for table in tables]
        return [*(line for pair in pairs for line in differing(*pair)), *self._tables.opposite()]

    def check(self, tables: Sequence[Table]) -> Sequence[str]:
        wanted = layouts(tables, self._options)
        problems = self._tables.problems(wanted)
        if not problems:
            self._tables.try_writes(wanted)
        return problems

    def plan(self, tables: Sequence[Table]) -> Sequence[str]:
        return self._tables.plan(layouts(tables, self._options))

    def refusals(self, tables: Sequence[Table], writes: Sequence[Write]) -> Sequence[Rejection]:
        wanted = layouts(tables, self._options)
        if wrong := list(wrong_names(wanted)):
            raise ConfigError(*wrong)
        return list(refusals(writes, wanted))

    def epoch(self, tables: Sequence[Table]) -> int | None:
        return self._tables.epoch(layouts(tables, self._options))

    def unnoted(self, tables: Sequence[Table]) -> bool:
        return self._tables.unnoted(layouts(tables, self._options))

    def identities(self, tables: Sequence[Table]) -> Mapping[str, Identity]:
        return self._tables.identities(layouts(tables, self._options))

    def empty(self, tables: Sequence[Table]) -> Sequence[str]:
        return self._tables.empty(layouts(tables, self._options))

    def epoch_problems(self, tables: Sequence[Table]) -> Sequence[str]:
        return self._tables.problems(layouts(tables, self._options), LAST_EPOCH)

    def parts(self, table: Table) -> Parts:
        """What replicator adds to items: the names of its attributes."""
        if self._options.pristine:
            return {"pristine": "true"}
        return {
            "version_attribute": self._options.version_attribute,
            "deleted_attribute": self._options.deleted_attribute,
        }

    def refused_changes(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str]:
        return self._tables.refused_changes(layouts(tables, self._options), changes)

    def additions(self, tables: Sequence[Table], changes: Sequence[Change]) -> Sequence[str] | None:
        """Always None: there are no columns to add."""
        return None

    def extend(self, tables: Sequence[Table], changes: Sequence[Change]) -> None:
        raise AssertionError("additions are never offered")

    def open(self, tables: Sequence[Table], epoch: int) -> None:
        wanted = layouts(tables, self._options)
        if problems := self._tables.problems(wanted, epoch):
            raise ConfigError(*problems)
        self._tables.make(wanted, epoch)
        self._layouts = wanted

    def recheck(self, tables: Sequence[Table]) -> Sequence[str]:
        """Also GapFound: if a table was replaced, or a later epoch writes to it."""
        with contextlib.suppress(TransientError):  # what describes tables may be down while writes go on
            return self._tables.recheck()
        return ()

    def write(self, batch: Batch) -> Outcome:
        self.send(self.encode(batch))
        return self.collect()

    def encode(self, batch: Batch) -> Encoded:
        return encode(batch, self._layouts)

    def send(self, encoded: Encoded) -> None:
        self._writer.send(encoded)

    def ready(self) -> bool:
        return self._writer.ready()

    def collect(self) -> Outcome:
        return self._writer.collect()

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        if self._options.pristine:
            return 0  # it started with an empty table
        return self._cleanup.sweep(layout(table, self._options), below, spare)

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        if self._options.pristine:
            return 0
        return self._cleanup.purge(layout(table, self._options), below, spare)

    @property
    def attributes(self) -> Marks:
        """What it may add to items, with an opposite pipeline or without."""
        options = self._options
        return Marks(options.version_attribute, options.deleted_attribute, options.mark_attribute)

    @property
    def unstrippable(self) -> str:
        """Why nothing can be removed from items; empty if it can."""
        if self._options.pristine:
            return "a pristine table has nothing that replicator added"
        if self._options.loops:
            return (
                "an opposite pipeline needs these attributes (loops: true). Once both pipelines are stopped for good, "
                "remove loops from this config"
            )
        return ""

    def strip(self, table: Table, after: str) -> Page:
        if not after:
            self._tables.end(layout(table, self._options))
        return strip_page(
            self._account.client, self._writer, layout(table, self._options), self.attributes.names, after
        )

    @property
    def unrepairable(self) -> str:
        """Why documents cannot be repaired; empty if they can."""
        if self._options.loops:
            return (
                "with loops: true applications may write to this table, too, and a repair could overwrite what they "
                "wrote before it is copied back. Stop the writers on both sides, let both pipelines catch up, and "
                "rescan instead: replicator resync CONFIG"
            )
        if not self._options.pristine:
            return ""
        return (
            "a pristine table keeps no versions, so a repair could undo a newer change. Rescan the table instead: "
            "replicator resync CONFIG"
        )

    def past(self, table: Table, ids: Sequence[DocumentId]) -> Sequence[bool]:
        return self._verification(table).past(ids)

    def _verification(self, table: Table) -> TableVerification:
        known = self._verifications.get(table.name)
        if known is None:
            client = self._account.client
            reader = BatchReader(client, table.name, "target")
            expiry = self._tables.expiry(table.name) if self._options.loops else ""
            known = TableVerification(client, layout(table, self._options), reader, expiry)
            self._verifications[table.name] = known
        return known

    def close(self) -> None:
        for verification in self._verifications.values():
            verification.reader.close()
        self._verifications = {}
        if self._opened is not None:
            self._writer.drop()
        self._opened = None
        self._account.close()

    @property
    def _writer(self) -> Writer:
        return self._connected()[0]

    @property
    def _cleanup(self) -> ScanCleanup:
        return self._connected()[1]

    def _connected(self) -> tuple[Writer, ScanCleanup]:
        """Connects at first use, which may be before ``open``: a batch that only saves positions."""
        if self._opened is None:
            writer = self._account.writer(self._in_doubt)
            self._opened = writer, ScanCleanup(self._account.client, writer)
        return self._opened
