"""A column from inside a map is defined by the whole path to it, however the path is written."""

from __future__ import annotations

from connectors.postgres import catalog
from connectors.postgres.table_schema import shapes
from replicator.identity import Parts, changes
from replicator.key import KeyAttribute, KeySchema
from replicator.target.contract import Table

PK = KeySchema((KeyAttribute("pk", "S"),))


def parts(made_from: str | list[str], extra: str = "ignore") -> Parts:
    options = {"columns": {"city": {"type": "text", "from": made_from}}, "extra": extra}
    return catalog.parts(shapes([Table("t", PK, options)], "public")["t"])


PATHS: list[tuple[str | list[str], list[str]]] = [
    ("a", ["a", "b"]),
    (["a", "b"], ["a", "c"]),
    (["a", "b"], ["a", "b", "c"]),
    (["a.b"], ["a", "b"]),
]


def test_a_different_path_is_a_changed_definition() -> None:
    for was, now in PATHS:
        (change,) = changes({"t": parts(was)}, {"t": parts(now)})
        assert (change.part, change.added) == ("columns.city", False)


def test_the_same_path_written_as_a_list_is_no_change() -> None:
    assert parts("a") == parts(["a"]) == {"columns.city": "text from a"}


def test_the_extra_option_is_not_part_of_the_definition() -> None:
    assert parts("a", extra="reject") == parts("a", extra="ignore")
