"""Config of a Delta Lake target and its tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from replicator.options import WEB_PORTS, Access, AppliedDeletes, ColumnOptions, Options, server_of, split_url

S3 = "s3://"
_OF_ADDRESSES = "%\\[]|^"
_PLAIN_TYPES = ("string", "bigint", "double", "boolean", "timestamp", "date", "binary", "json", "array<string>")
_MOST_DIGITS = 38
_MOST_SECONDS = 6.0  # between commits: with the commit itself and a poll, a copy is behind by less than 10, so live


def decimal_digits(type: str) -> tuple[int, int] | None:
    """Precision and scale of ``decimal(12,2)``; None for another type."""
    if not (type.startswith("decimal(") and type.endswith(")")):
        return None
    precision, comma, scale = type[len("decimal(") : -1].partition(",")
    digits = precision.strip(), scale.strip() if comma else "0"
    if not all(part.isascii() and part.isdigit() for part in digits):
        return None
    return int(digits[0]), int(digits[1])


def _column_type(type: str) -> str:
    if type in _PLAIN_TYPES:
        return type
    digits = decimal_digits(type)
    if digits is None:
        raise ValueError(f"must be one of {', '.join(_PLAIN_TYPES)}, or decimal(12,2)")
    if not (1 <= digits[0] <= _MOST_DIGITS and digits[1] <= digits[0]):
        raise ValueError(f"a decimal has 1 to {_MOST_DIGITS} digits, and not more of them behind the point")
    return f"decimal({digits[0]},{digits[1]})"


ColumnType = Annotated[str, AfterValidator(_column_type)]
Extra = Literal["reject", "ignore"]


class Column(ColumnOptions):
    """One column: its type, the attribute it is made ``from`` (by default its own name), and whether it may be null."""

    type: ColumnType = Field(description=f"{', '.join(_PLAIN_TYPES)}, or decimal(12,2)")


Columns = dict[str, Column | ColumnType]


class DeltaTableOptions(Options):
    """Options of one table. Without ``columns`` the whole document goes into one column, ``document``, as JSON."""

    columns: Columns | None = Field(
        default=None, min_length=1, description="columns in addition to the key's, e.g. total: decimal(12,2)"
    )
    extra: Extra = Field(
        default="reject", description="fields a hook returns that no column is made from: park the item, or ignore them"
    )
    partition_by: tuple[str, ...] = Field(
        default=(), description="columns by whose values the table's files are divided; only for a new table"
    )
    deletes: AppliedDeletes = Field(default="apply", description="rows whose item is gone are removed")

    @model_validator(mode="after")
    def _partitions_are_columns(self) -> DeltaTableOptions:
        columns = self.columns or {}
        for name in self.partition_by:
            column = columns.get(name)
            if column is None:
                raise ValueError(f"partition_by: {name} is not one of the columns; list it there")
            type = column if isinstance(column, str) else column.type
            if type in ("array<string>", "json", "binary") or decimal_digits(type):  # the client garbles decimals
                raise ValueError(f"partition_by: {name} is {type}, and files cannot be divided by that type")
        if len(set(self.partition_by)) < len(self.partition_by):
            raise ValueError("partition_by: names a column twice")
        return self


def _place(path: str, info: ValidationInfo) -> str:
    if "://" not in path:
        base: Path = (info.context or {}).get("base", Path())
        return _as_it_is(str((base / path).absolute()))
    parts = split_url(path)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must be a folder, or have the form s3://bucket/prefix")
    path = path.rstrip("/")
    if any(part in ("", ".", "..") for part in path.removeprefix(S3).split("/")):
        raise ValueError(
            f"{path} has an empty part, . or .. between its slashes, which clients of Delta Lake leave out"
        )
    return _as_it_is(path)


def _as_it_is(path: str) -> str:
    """Clients of Delta Lake take a path for part of an address: some of them write to one folder, and read another."""
    for mark in _OF_ADDRESSES:
        if mark in path:
            raise ValueError(f"{path} contains {mark}, which clients of Delta Lake read as part of an address")
    if any(unicodedata.category(mark) == "Cc" for mark in path):
        raise ValueError(f"{path!r} contains a control character, which clients of Delta Lake drop or refuse")
    return path


@dataclass(frozen=True, slots=True)
class FolderPlace:
    """Where a table's files are: the file system or service, and the folder there."""

    server: tuple[object, ...]
    path: str

    def overlap(self, other: object) -> str:
        """Why one table's files are among the other's, although they are not equal; empty if they are not."""
        if not isinstance(other, FolderPlace) or self.server != other.server:
            return ""
        outer, inner = sorted((self.path, other.path), key=len)
        if not inner.startswith(f"{outer}/"):
            return ""
        return f"{inner} is inside {outer}, whose upkeep removes files of others; set another path"


class DeltaOptions(Access):
    """Where the tables are, how S3 is reached, and how their files are looked after."""

    path: Annotated[str, AfterValidator(_place)] = Field(
        description="folder of the tables, each in a folder of its own name: /data/lake, or s3://bucket/prefix"
    )
    endpoint_url: str | None = Field(default=None, description="endpoint of another service with the API of S3")
    commit_rows: int = Field(default=20_000, ge=1, description="changes in a commit, while there are as many to store")
    commit_seconds: float = Field(
        default=5.0,
        ge=0,
        le=_MOST_SECONDS,
        description="seconds to wait for as many changes, so that commits are few; 0: commit what there is",
    )
    compact_hours: float = Field(
        default=1.0, ge=0, description="hours between compactions of small files into larger ones; 0: never"
    )
    keep_days: float = Field(
        default=7.0,
        ge=0,
        description="days for which files that are not needed any more are kept for readers and for earlier versions; "
        "then they are removed",
    )
    log_days: float = Field(default=30.0, ge=1, description="days for which the log of commits is kept; new tables")

    def places(self, table: str, options: Mapping[str, Any]) -> Sequence[object]:
        """By the table's folder. A bucket's name is unique, but for other services with the API of S3."""
        if not self.in_s3:
            return [FolderPlace(("delta",), str((Path(self.path) / table).resolve()))]
        endpoint = None if self.endpoint_url is None else server_of(self.endpoint_url, WEB_PORTS)
        return [FolderPlace(("delta", endpoint), f"{self.path}/{table}")]

    @property
    def in_s3(self) -> bool:
        return self.path.startswith(S3)
