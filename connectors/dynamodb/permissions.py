"""The permissions that a DynamoDB target needs, by its options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from connectors.dynamodb.options import DynamoDBOptions
from replicator.aws.permissions import Needed
from replicator.target.contract import OWN_IDS, Table


def needed(options: DynamoDBOptions, tables: Sequence[Table], *, keep_expired: bool) -> Iterator[Needed]:
    for table in tables:
        yield from _copy(options, table, keep_expired=keep_expired)
    epochs = {"EPOCHS": options.epochs_table}
    yield Needed("target", "Epochs", options, epochs)
    yield Needed("target", "CreateEpochs", options, epochs)
    if options.loops or any(_is_like_source(options, table) for table in tables):
        untagged = frozenset[str]() if options.loops else _untagged(options, "ListTagsOfResource")
        yield Needed("source", "PatternForAnotherTable", options, without=untagged, setup=not options.loops)
    if options.loops:  # a table moves, so `cutover` compares its settings
        yield Needed("source", "SettingsOfSource", options)
        yield Needed("source", "EpochsOfSource", options, {"EPOCHS_OF_SOURCE": options.epochs_table})
    if options.pristine:  # `parked retry` looks whether the source still has the item
        yield Needed("source", "SingleItems", options)


def _copy(options: DynamoDBOptions, table: Table, *, keep_expired: bool) -> Iterator[Needed]:
    names = {"TARGET": table.name}
    yield Needed("target", "Copies", options, names)
    yield Needed("target", "VerifyCopies", options, names)
    yield Needed("target", "StripCopies", options, names)
    like_source = _is_like_source(options, table)
    if like_source or keep_expired or options.loops:
        only_first = not keep_expired and not options.loops
        yield Needed("target", "ExpiryOfCopies", options, names, setup=only_first)
    if options.loops:
        yield Needed("target", "SettingsOfCopies", options, names)
    if like_source:
        yield Needed("target", "CreateCopies", options, names, _untagged(options, "TagResource"))
    elif options.create:
        nothing_like_it = frozenset({"dynamodb:TagResource", "dynamodb:UpdateTimeToLive"})
        yield Needed("target", "CreateCopies", options, names, nothing_like_it)


def _is_like_source(options: DynamoDBOptions, table: Table) -> bool:
    """Whether the table is created like the source: with its indexes, its time to live, perhaps its tags."""
    return options.create and table.keys != OWN_IDS


def _untagged(options: DynamoDBOptions, action: str) -> frozenset[str]:
    return frozenset() if options.tags else frozenset({f"dynamodb:{action}"})
