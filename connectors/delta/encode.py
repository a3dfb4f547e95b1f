"""A batch as rows of its tables: everything that can be done before anything is read or sent. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec
import pyarrow as pa

from connectors.delta.options import decimal_digits
from connectors.delta.schema import GOES, VERSION, BodyColumn, TableSchema
from replicator.batch import Batch, Delete, DocumentId, Part, Rejection, Upsert, Write
from replicator.items.attributes import Malformed
from replicator.items.item import Amended, Item
from replicator.items.to_json import DocumentText, Unfit, of_python, unreadable

_LARGEST = (1 << 63) - 1
_EXACT = Context(prec=80)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = 253_402_300_799  # of the year 9999
_REFUSALS = (Unfit, Malformed, ValueError, TypeError, ArithmeticError)  # anything else is raised by a value's own code
_MOST_NAMES = 8  # columns to list in a message
_LONGEST_FOLDER = 255  # bytes of a partition's folder, NAME=VALUE with marks percent-encoded
_NULLS = ("", "__HIVE_DEFAULT_PARTITION__")
_LONGEST_NAME = 63  # characters of a field's name to show

Convert = Callable[[Any], Any]


class Row(msgspec.Struct, frozen=True, gc=False):
    """A write, where it comes from, and the values of its columns; none for a delete."""

    write: Write
    source: str
    values: tuple[Any, ...] = ()

    @property
    def goes(self) -> bool:
        return isinstance(self.write, Delete)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as the rows of each table, by its name. With ``rejections`` there is nothing to store."""

    batch: Batch
    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    rejections: Sequence[Rejection] = ()


class Encoder:
    """Encodes the documents of one table."""

    def __init__(self, shape: TableSchema) -> None:
        self.shape = shape
        self._text = DocumentText()
        self._converts = [_converter(column) for column in shape.columns]
        names = (c.attribute for c in shape.columns if c.attribute is not None)
        self._names = tuple(dict.fromkeys(names))
        self._known = frozenset((*self._names, *shape.attributes))

    def row(self, write: Write, source: str) -> Row | None:
        """None for the delete of an id that no row can have. Unfit for a document that cannot be stored."""
        if not _is_text(write.id):
            if isinstance(write, Delete):
                return None
            raise Unfit("has an id that contains half of a surrogate pair, which is not valid text")
        return Row(write, source) if isinstance(write, Delete) else Row(write, source, self.values(write))

    def values(self, write: Upsert) -> tuple[Any, ...]:
        """One for each column. Unfit for a document that cannot be stored."""
        if self.shape.extra == "reject":
            self._reject_unknown(write.body)
        pairs = zip(self.shape.columns, self._converts, strict=True)
        return tuple(self._value(column, convert, write.body) for column, convert in pairs)

    def _value(self, column: BodyColumn, convert: Convert, body: Mapping[str, object]) -> Any:
        if column.attribute is None:
            return self._text(body).decode()
        try:
            found = _found(body, column)
            made = None if found is None else convert(found)
        except Unfit as e:
            raise Unfit(f"column {_label(column)} {e}") from e
        except _REFUSALS as e:
            raise Unfit(f"column {_label(column)} cannot hold the value") from e
        except BaseException as e:  # the value's own code
            raise unreadable(e) from e
        if made is None and not column.nullable:
            raise Unfit(f"column {_label(column)} must not be null, but the attribute is missing or null")
        if column.name in self.shape.partition_by and isinstance(made, str):
            _require_folder(column, made)
        return made

    def _reject_unknown(self, body: Mapping[str, object]) -> None:
        """A typo in a hook must not become a column of nulls. Whole items may have more attributes than columns."""
        if type(body) is Item:
            return
        given: Iterable[Any] = body.changes if type(body) is Amended else body
        for name in given:
            if name not in self._known:
                raise Unfit(_unknown(name, self.shape.name, self._names))


def encode(batch: Batch, encoders: Mapping[str, Encoder]) -> Encoded:
    """Every write as a row."""
    rows: dict[str, list[Row]] = {}
    rejections: list[Rejection] = []
    for write, source in _writes(batch.parts):
        try:
            row = encoders[write.table].row(write, source)
        except Unfit as e:
            text = str(e)
            rejections.append(
                Rejection(write, text if text.startswith(("column ", "the hook")) else f"the document {e}")
            )
        except Malformed:
            rejections.append(Rejection(write, "the item is not valid DynamoDB JSON"))
        else:
            if row is not None:
                rows.setdefault(write.table, []).append(row)
    return Encoded(batch, {} if rejections else rows, rejections)


def reason(unfit: Unfit) -> str:
    """Why a document is refused, as a sentence."""
    text = str(unfit)
    return text if text.startswith(("column ", "the hook")) else f"the document {text}"


def _writes(parts: Sequence[Part]) -> Iterator[tuple[Write, str]]:
    return ((write, part.source) for part in parts for write in part.writes)


def as_table(shape: TableSchema, rows: Sequence[Row]) -> pa.Table:
    """Rows as the source of a merge: the table's columns, and whether the row goes."""
    schema = shape.arrow
    nothing = (None,) * len(shape.columns)
    keys = zip(*(row.write.id for row in rows), strict=True)
    bodies = zip(*(row.values or nothing for row in rows), strict=True)
    columns = [list(column) for column in (*keys, [row.write.version for row in rows], *bodies)]
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    goes = pa.array([row.goes for row in rows], type=pa.bool_())
    return pa.Table.from_arrays([*arrays, goes], schema=schema.append(pa.field(GOES, pa.bool_())))


def key_names(shape: TableSchema) -> list[str]:
    return [*shape.keys, VERSION]


def _is_text(id: DocumentId) -> bool:
    try:
        return all(part.encode() is not None for part in id)
    except UnicodeEncodeError:
        return False


def _found(body: Mapping[str, Any], column: BodyColumn) -> Any:
    assert column.attribute is not None
    found = body.get(column.attribute)
    for name in column.inside:
        if found is None:
            return None
        if not isinstance(found, Mapping):
            raise Unfit(f"is inside a map, but the attribute is a {type(found).__name__}")
        found = found.get(name)
    return found


def _require_folder(column: BodyColumn, text: str) -> None:
    """Unfit for a text that cannot be the name of a partition, or means null there."""
    if text in _NULLS:
        raise Unfit(
            f"column {_label(column)} divides the files (partition_by), where {text or 'empty text'} means null"
        )
    if len(column.name) + len("=") + len(quote(text, safe="")) > _LONGEST_FOLDER:
        raise Unfit(f"column {_label(column)} divides the files (partition_by), and the text is too long for a folder")


def _label(column: BodyColumn) -> str:
    path = ".".join((column.attribute or "", *column.inside))
    return column.name if path in ("", column.name) else f"{column.name} (from {path})"


def _unknown(name: object, table: str, known: Sequence[str]) -> str:
    shown = name[:_LONGEST_NAME] if isinstance(name, str) else f"of type {type(name).__name__}"
    close = get_close_matches(str(shown), known, 1, 0.6)
    listed = f"{', '.join(known[:_MOST_NAMES])}{', …' if len(known) > _MOST_NAMES else ''}"
    hint = f"did you mean {close[0]}?" if close else f"known: {listed}"
    return (
        f"the hook returned a field {shown}, which no column of {table} is made from; {hint} (extra: ignore leaves "
        "such fields out)"
    )


def _converter(column: BodyColumn) -> Convert:
    digits = decimal_digits(column.type)
    if digits is not None:
        return lambda value: _decimal(_number(value, column.type), *digits)
    return _CONVERTERS[column.type]


def _text(value: Any) -> str:
    if not isinstance(value, str | UUID):
        raise Unfit(f"is string, but the value is a {type(value).__name__}")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit("contains half of a surrogate pair, which is not valid text") from None
    return text


def _number(value: Any, type_: str) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | float):
        raise Unfit(f"is {type_}, but the value is a {type(value).__name__}")
    if not (isinstance(value, int) or math.isfinite(value)):
        raise Unfit("must be a finite number")
    return Decimal(str(value)) if isinstance(value, float) else Decimal(value)


def _whole(value: Any) -> int:
    number = _number(value, "bigint")
    if number != number.to_integral_value():
        raise Unfit("is bigint, but the number has a fraction")
    if not -_LARGEST - 1 <= number <= _LARGEST:
        raise Unfit("is bigint, but the number does not fit 64 bits")
    return int(number)


def _double(value: Any) -> float:
    number = float(_number(value, "double"))
    if not math.isfinite(number):
        raise Unfit("is double, but the number is too large")
    return number


def _decimal(number: Decimal, precision: int, scale: int) -> Decimal:
    """The number itself; Unfit rather than rounding it."""
    _, digits, exponent = number.normalize(_EXACT).as_tuple() if number else (0, (0,), 0)
    assert isinstance(exponent, int)
    if -exponent > scale or len(digits) + exponent > precision - scale:
        raise Unfit(f"is decimal({precision},{scale}), and the number has more digits than that")
    return number.quantize(Decimal((0, (1,), -scale)), context=_EXACT)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"is boolean, but the value is a {type(value).__name__}")
    return value


def _binary(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Unfit(f"is binary, but the value is a {type(value).__name__}")
    return bytes(value)


def _moment(value: Any) -> datetime:
    """A point in time from ISO 8601 text with an offset, or from seconds since 1970."""
    if isinstance(value, str):
        value = _iso(value)
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise Unfit("is timestamp, but the time has no UTC offset (expected: 2026-01-31T12:00:00Z)")
        return value.astimezone(UTC)
    seconds = _number(value, "timestamp")
    if not -62_135_596_800 <= seconds <= _LAST_SECOND:
        raise Unfit("is timestamp, but the number is out of range for seconds since 1970 (milliseconds?)")
    return _EPOCH + timedelta(microseconds=int(seconds * 1_000_000))


def _iso(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Unfit("is timestamp, but the text is not a time like 2026-01-31T12:00:00Z") from None


def _day(value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value)
    except (ValueError, TypeError):
        raise Unfit("is date, but the value is not a date like 2026-01-31") from None


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list | tuple | set | frozenset):
        raise Unfit(f"is an array, but the value is a {type(values).__name__}")
    members = [_text(member) for member in values]
    return sorted(members) if isinstance(values, set | frozenset) else members


_CONVERTERS: Mapping[str, Convert] = {
    "string": _text,
    "json": of_python,
    "bigint": _whole,
    "double": _double,
    "boolean": _flag,
    "timestamp": _moment,
    "date": _day,
    "binary": _binary,
    "array<string>": _texts,
}
