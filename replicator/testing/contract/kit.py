"""Helpers and fixtures of the suite: writes, batches, and expected values as JSON."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar, cast

import pytest

from replicator.batch import Batch, Delete, DocumentId, Outcome, Part, Upsert, Write
from replicator.checkpoints.contract import Slotted
from replicator.config.target import destination
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.state import Counts, Owner, Save
from replicator.target.contract import Table, Target, Transactional
from replicator.version import FIRST_EPOCH, version

Stored = Callable[[Table], Mapping[DocumentId, Mapping[str, Any]]]
"""The documents of a table by id, as their JSON: numbers as Decimal, binary as base64, sets as sorted lists."""

Document = Mapping[str, object]

PK = KeySchema((KeyAttribute("pk", "S"),))
PAIR = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "N")))

EVERY_TYPE: Document = {
    "pk": "types",
    "empty": "",
    "text": 'tab\t newline\n quote" backslash\\ brace{} comma, é 漢 \U0001f600 \x01\x1f\x7f',
    "digits38": Decimal("12345678901234567890123456789012345678"),
    "smallest": Decimal("1E-130"),
    "largest": Decimal("9.9999999999999999999999999999999999999E+125"),
    "negative": Decimal("-0.10"),
    "zero": 0,
    "binary": b"\x00\x01\xfe\xff",
    "no_bytes": b"",
    "true": True,
    "false": False,
    "null": None,
    "list": ["a", 1, None, [], {"b": [True]}],
    "map": {"": "", "null": None, "deep": {"deeper": {"deepest": [Decimal("1.5")]}}},
    "texts": {"b", "a", "NULL", ""},
    "numbers": {Decimal("2"), Decimal("10"), Decimal("-1.5")},
    "binaries": {b"\xff", b"\x00"},
}


MOST_PIECES = 1000
"""Steps within which a sweep or purge of a small table must end."""

HOSTILE = (
    ('"', "\\"),
    ('a"b\\', "it's"),
    ("%s", "%b"),
    ("#v", ":v"),
    ("\n", "$1"),
    ("a.b", "\u2028漢"),
)
"""Pairs of hostile key attribute names."""


class RaisingMap(Mapping[str, object]):
    """A mapping whose values raise when read."""

    def __init__(self, error: type[BaseException] = RuntimeError) -> None:
        self._error = error

    def __getitem__(self, name: str) -> object:
        raise self._error("in the hook's own code")

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


class RaisingTime(datetime):
    def isoformat(self, *_: Any, **__: Any) -> str:
        raise RuntimeError("in the hook's own code")


class RaisingList(list[object]):
    def __iter__(self) -> Iterator[object]:
        raise RuntimeError("in the hook's own code")


RAISING: Sequence[object] = (
    RaisingMap(),
    RaisingMap(SystemExit),
    RaisingTime(2026, 1, 1, tzinfo=UTC),
    RaisingList([1]),
    {"itself": object()},
)
"""Values whose own code raises when a target reads them."""


def table(name: str = "contract", keys: KeySchema = PK) -> Table:
    return Table(name, keys)


def at(ordinal: int, epoch: int = FIRST_EPOCH) -> int:
    return version(epoch, ordinal)


def put(
    document: Document, ordinal: int, *, id: DocumentId | None = None, table: str = "contract", weight: int = 1
) -> Upsert:
    """An upsert of an item without a hook, under its ``pk``."""
    key = (cast(str, document["pk"]),) if id is None else id
    return Upsert(table, key, Item(image(document)), at(ordinal), key, weight)


def remove(pk: str, ordinal: int, *, table: str = "contract", weight: int = 1) -> Delete:
    return Delete(table, (pk,), at(ordinal), (pk,), weight)


def batch(*writes: Write, saves: Sequence[Save] = (), tombstones: bool = False) -> Batch:
    counts = Counts(read=sum(write.weight for write in writes))
    return Batch([Part("shard:contract", writes, counts)], saves, tombstones)


def as_json(value: object) -> Any:
    """A Python value as ``Stored`` returns it."""
    match value:
        case bool() | None | str():
            return value
        case int() | Decimal():
            return Decimal(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {name: as_json(inner) for name, inner in value.items()}
        case set() | frozenset():
            return sorted(as_json(member) for member in value)
        case list() | tuple():
            return [as_json(member) for member in value]
    raise TypeError(type(value))


class Contract:
    """Base of all parts of the suite. ``races`` and ``seeds``: how often randomized tests repeat."""

    races = 50
    seeds = 10

    every_type: ClassVar[Document] = EVERY_TYPE
    """An item with a value of each type. Override it if a target cannot store all of them."""

    unacceptable: ClassVar[Document] = {"value": float("nan")}
    """A value that a hook may return but no target can store. Override it if a target can."""

    @pytest.fixture
    def build(self, config: Mapping[str, Any]) -> Iterator[Callable[[], Target]]:
        """Creates targets for one destination, as several runs would; all are closed at the end."""
        made: list[Target] = []

        def another(given: Mapping[str, Any] = config) -> Target:
            made.append(built(given))
            return made[-1]

        yield another
        for target in made:
            target.close()

    @pytest.fixture
    def refuse_at_commit(self) -> Callable[[Table], None]:
        """Makes documents whose ``late`` is true fail when the batch commits, not before."""
        pytest.skip("this destination rejects nothing at commit")

    @pytest.fixture
    def keep(self) -> Callable[[Table, DocumentId], None]:
        """Makes deletes of a document fail."""
        pytest.skip("this destination rejects no deletes")

    @pytest.fixture
    def dropped(self) -> Callable[[Table], None]:
        """Removes a table from the destination."""
        pytest.skip("tables of this destination cannot be dropped")

    @pytest.fixture
    def target(self, build: Callable[[], Target]) -> Target:
        return build()

    @pytest.fixture
    def opened(self, target: Target) -> Target:
        target.open([table()], FIRST_EPOCH)
        return target


def described(config: Mapping[str, Any]) -> Any:
    found, problems = destination({**config, "table": "contract"})
    assert found is not None, problems
    return found


def built(config: Mapping[str, Any]) -> Target:
    return cast(Target, described(config).build("contract"))


def transactional(target: Target) -> Transactional:
    if not isinstance(target, Transactional):
        pytest.skip("this target has no transactions")
    return target


def owner(run: str) -> Owner:
    return Owner(run, "host", 1, 0.0)


def claim_slots(workers: Sequence[Target]) -> None:
    """Make the targets those of workers of one run, each with a slot, where their transactions tell workers apart."""
    run = None
    for slot, worker in enumerate(workers):
        if not isinstance(worker, Transactional) or not isinstance(worker.checkpoints, Slotted):
            return
        run = worker.checkpoints.claim(owner("run")).revision if run is None else run
        worker.checkpoints.claim_slot(owner(f"worker {slot}"), f"{slot}", run)


def in_epoch(pk: str, ordinal: int) -> Upsert:
    return Upsert("contract", (pk,), Item(image({"pk": pk})), at(ordinal, FIRST_EPOCH + 1), (pk,))


def at_once(start: threading.Barrier, target: Target, given: Batch) -> Outcome:
    start.wait(20)  # with a limit: the other thread may have failed
    return target.write(given)


def exhaust(step: Callable[[], int]) -> int:
    total = 0
    for _ in range(MOST_PIECES):
        if (done := step()) == 0:
            return total
        total += done
    raise AssertionError(f"no end after {MOST_PIECES} pieces: the same documents again and again")


def sockets() -> int:
    """The number of open sockets of this process; 0 if the system does not tell."""
    if not os.path.isdir("/proc/self/fd"):
        return 0
    return sum(_is_socket(fd) for fd in os.listdir("/proc/self/fd"))


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except FileNotFoundError:
        return False
