"""Proposes columns or a mapping for each table of a config, from the documents of a sample of live items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replicator.aws import boto
from replicator.batch import Rejection, Upsert
from replicator.engine.assembly import target_tables
from replicator.errors import ConfigError
from replicator.hooks import loading
from replicator.hooks.hook import DocumentMapping
from replicator.hooks.time_limit import HookLimit
from replicator.items.attributes import Malformed
from replicator.operations.preview import forecast, preview
from replicator.source import sample
from replicator.source.decoding import KeyReader
from replicator.source.table import SourceTable, describe_table
from replicator.target.contract import Inferring, Table
from replicator.target.observed import Proposal, observed

if TYPE_CHECKING:
    from replicator.config.settings import Config


@dataclass(frozen=True, slots=True)
class TableProposal:
    """What is proposed for one table.

    ``documents``: how many were sampled. ``parked``: how many of them the target would reject, by reason.
    """

    table: Table
    documents: int
    proposal: Proposal
    parked: Mapping[str, int]

    @property
    def options(self) -> dict[str, object]:
        """All options of the table: the proposed ones, and what the config has beside them."""
        return {**self.table.options, **self.proposal.options}


@dataclass(frozen=True, slots=True)
class Inferred:
    """Proposals for a config's tables, from ``sampled`` items. ``refused``: items that the hook parks, by reason."""

    source: SourceTable
    sampled: int
    tables: Sequence[TableProposal]
    refused: Mapping[str, int]


def infer(config: Config, limit: int) -> Inferred:
    """Sample up to ``limit`` items. ConfigError if the target has nothing to propose, or the table has no items."""
    connector: Any = config.target.connector
    if not isinstance(connector, Inferring):
        raise ConfigError(f"target.type: a {config.target.type} target has neither columns nor a mapping to propose")
    hook = None if config.transform is None else loading.load(config.transform, config.base)
    client = boto.connect(config.source)
    source = describe_table(client, config.source.table)
    images = list(sample.spread(client, config.source.table, source.items, limit))
    if not images:
        raise ConfigError(f"source.table: {source.name} has no items to infer from")
    tables = target_tables(config, source, hook)
    writes, refused = _documents(
        images, source, DocumentMapping(hook, tuple(config.target.tables)), config.hook_timeout
    )
    proposals = [_proposed(config, connector, t, [w for w in writes if w.table == t.name]) for t in tables]
    return Inferred(source, len(images), proposals, refused)


def _documents(
    images: Sequence[bytes], source: SourceTable, mapping: DocumentMapping, timeout: float | None
) -> tuple[list[Upsert], Counter[str]]:
    """The documents of the items, and the reasons for which the hook parks others."""
    reader, writes, refused = KeyReader(source.keys), list[Upsert](), Counter[str]()
    for image in images:
        with HookLimit(timeout):
            result = preview(reader.of(image), image, mapping)
        if result.problem is not None:
            refused[_without_values(result.problem)] += 1
        writes += (write for write in result.writes if isinstance(write, Upsert))
    return writes, refused


def _without_values(problem: str) -> str:
    """The reason without the exception's message, which ``preview`` adds and which may quote values."""
    return problem.partition(" (")[0]


def _proposed(config: Config, connector: Inferring, table: Table, writes: Sequence[Upsert]) -> TableProposal:
    bodies = list(_readable(writes))
    proposal = connector.infer(table, observed(bodies))
    proposed = TableProposal(table, len(writes), proposal, {})
    target = config.target.build(config.pipeline)  # does not connect
    try:
        rejections = forecast(target, [Table(table.name, table.keys, proposed.options)])(writes)
    finally:
        target.close()
    return TableProposal(table, len(writes), proposal, _by_reason(rejections))


def _readable(writes: Sequence[Upsert]) -> Iterator[Mapping[str, object]]:
    for write in writes:
        try:
            yield dict(write.body)
        except Malformed:  # the target rejects it, too
            continue


def _by_reason(rejections: Sequence[Rejection]) -> dict[str, int]:
    return dict(Counter(rejection.reason for rejection in rejections).most_common())
