"""One table of the target, as writes are made for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from connectors.dynamodb.options import DynamoDBOptions
from replicator.key import KeySchema
from replicator.target.contract import OWN_IDS, Table


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's ``name`` and key, and the attributes that are ours in it: ``version``, ``deleted``.

    ``pristine``: there are none of ours.
    """

    name: str
    keys: KeySchema
    version: str
    deleted: str
    pristine: bool

    @property
    def own_ids(self) -> bool:
        return self.keys == OWN_IDS

    @property
    def ours(self) -> tuple[str, ...]:
        """Names that no document may use for itself."""
        return () if self.pristine else (self.version, self.deleted)


def layouts(tables: Sequence[Table], options: DynamoDBOptions) -> Mapping[str, Layout]:
    return {t.name: layout(t, options) for t in tables}


def layout(table: Table, options: DynamoDBOptions) -> Layout:
    return Layout(table.name, table.keys, options.version_attribute, options.deleted_attribute, options.pristine)
