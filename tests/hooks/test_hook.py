"""Hooks: loading them, calling them, and the message for each mistake."""

from __future__ import annotations

import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from replicator import Document, documents
from replicator.errors import ConfigError
from replicator.hooks.hook import Hook, Poison
from replicator.hooks.loading import load
from replicator.hooks.redaction import HIDDEN as HIDDEN_DATA
from replicator.items.attributes import image
from replicator.items.item import Item

ITEM = Item(image({"id": "a", "n": 1}))
TABLES = ("orders", "lines")
HIDDEN = "(message hidden: it may contain a secret)"


@pytest.fixture(autouse=True)
def imports_are_undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def written(folder: Path, text: str, name: str = "hooks.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def hook(function: Callable[[Item], Any]) -> Hook:
    return Hook("hook", function, "", getattr(function, "__replicator_documents__", False))


def rejected(spec: str, base: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load(spec, base)
    (problem,) = raised.value.problems
    return problem


# loading


def test_a_plain_function_is_found_in_a_file_beside_the_config(tmp_path: Path) -> None:
    written(tmp_path, "def order(item): return {'n': item['n']}")
    found = load("hooks.py:order", tmp_path)
    assert (found.name, found.declared, found.one(ITEM)) == ("order", False, {"n": 1})


def test_a_declared_function_is_known_as_such(tmp_path: Path) -> None:
    written(
        tmp_path,
        """
        from replicator import Document, documents
        @documents
        def rows(item): yield Document(item["id"], {"n": 1})
        """,
    )
    found = load("hooks.py:rows", tmp_path)
    assert found.declared
    assert found.many(ITEM, ("orders",)) == {("orders", "a"): {"n": 1}}


def test_a_function_is_found_in_a_package(tmp_path: Path) -> None:
    written(tmp_path, "def order(item): return None", "shop_a/__init__.py")
    written(tmp_path, "def order(item): return {}", "shop_a/hooks.py")
    assert load("shop_a:order", tmp_path).one(ITEM) is None
    assert load("shop_a.hooks:order", tmp_path).one(ITEM) == {}


def test_a_callable_object_is_accepted(tmp_path: Path) -> None:
    written(
        tmp_path,
        """
        class Order:
            def __call__(self, item): return {"id": item["id"]}
        order = Order()
        """,
    )
    assert load("hooks.py:order", tmp_path).one(ITEM) == {"id": "a"}


def test_files_of_the_same_name_in_two_folders_are_separate_modules(tmp_path: Path) -> None:
    written(tmp_path / "a", "def f(item): return {'from': 'a'}")
    written(tmp_path / "b", "def f(item): return {'from': 'b'}")
    found = [load("hooks.py:f", tmp_path / name) for name in ("a", "b")]
    assert [h.one(ITEM) for h in found] == [{"from": "a"}, {"from": "b"}]


def test_a_hook_may_hold_dataclasses(tmp_path: Path) -> None:
    text = """
    from __future__ import annotations
    from dataclasses import dataclass
    @dataclass
    class Order:
        id: str
    def order(item): return vars(Order(item["id"]))
    """
    written(tmp_path, text)
    assert load("hooks.py:order", tmp_path).one(ITEM) == {"id": "a"}


def test_the_fingerprint_follows_the_source_and_the_function(tmp_path: Path) -> None:
    text = "def f(item): return None\ndef g(item): return None\n"
    written(tmp_path, text)
    first = load("hooks.py:f", tmp_path).fingerprint
    assert load("hooks.py:f", tmp_path).fingerprint == first
    assert load("hooks.py:g", tmp_path).fingerprint != first
    written(tmp_path, text + "# another line\n")
    assert load("hooks.py:f", tmp_path).fingerprint != first


@pytest.mark.parametrize("spec", ["", "hooks.py", ":order", "hooks.py:", "order"])
def test_a_malformed_spec_is_rejected(spec: str, tmp_path: Path) -> None:
    assert rejected(spec, tmp_path) == (
        f"transform: {spec!r} must have the form hooks.py:function or package.module:function"
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert rejected("hooks.py:order", tmp_path) == f"transform: no such file: {tmp_path / 'hooks.py'}"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").mkdir()
    assert "no such file" in rejected("hooks.py:order", tmp_path)


@pytest.mark.parametrize("place", ["nowhere_a", "nowhere_a.hooks", "shop_b.nowhere"])
def test_a_missing_module_is_named_with_the_places_searched(place: str, tmp_path: Path) -> None:
    written(tmp_path, "", "shop_b/__init__.py")
    expected = f"transform: no module named {place} (searched {tmp_path} and Python's path)"
    assert rejected(f"{place}:order", tmp_path) == expected


def test_a_missing_function_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    path = written(tmp_path, "import json\n\ndef order(item): ...\n\nasync def customer(item): ...\n")
    expected = f"transform: {path} has no function oder; it has order (line 3), customer (line 5)"
    assert rejected("hooks.py:oder", tmp_path) == expected


def test_a_file_without_functions_is_reported_as_such(tmp_path: Path) -> None:
    path = written(tmp_path, "order = 5\n")
    assert rejected("hooks.py:order", tmp_path) == f"transform: {path} has no function order; it has none"


@pytest.mark.parametrize(("given", "takes"), [("", "no argument"), ("item, old", "item, old"), ("*, item", "item")])
def test_a_function_that_cannot_be_called_with_an_item_is_rejected(given: str, takes: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"def order({given}):\n    return {{}}\n")
    expected = f"transform: order in {path} takes {takes}; a hook takes one argument, the item"
    assert rejected("hooks.py:order", tmp_path) == expected


@pytest.mark.parametrize("given", ["item, /", "item, old=None", "*items", "it, **more"])
def test_a_function_that_can_be_called_with_an_item_is_a_hook(given: str, tmp_path: Path) -> None:
    written(tmp_path, f"def order({given}):\n    return {{}}\n")
    assert load("hooks.py:order", tmp_path).name == "order"


@pytest.mark.parametrize("body", ["return {}", "yield {}"], ids=["coroutine", "generator"])
def test_an_async_function_is_rejected(body: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"async def order(item):\n    {body}\n")
    assert (
        rejected("hooks.py:order", tmp_path) == f"transform: order in {path} is async; a hook must be a plain function"
    )


@pytest.mark.parametrize(
    ("text", "error", "line"),
    [
        ("x = 1\nraise ValueError('no')\n", "ValueError: no", 2),
        ("x = 1\n\nimport nowhere_b\n", "ModuleNotFoundError: No module named 'nowhere_b'", 3),
        (
            "def f():\n    return 1 / 0\n\nf()\n",
            "ZeroDivisionError (message hidden: it may contain a secret)",
            2,
        ),
        ("import sys\nsys.exit(3)\n", f"SystemExit {HIDDEN}", 2),
        ("x = 1\ndef order(item:\n", "SyntaxError: '(' was never closed", 2),
    ],
)
@pytest.mark.parametrize("place", ["hooks.py", "shop_c.hooks"])
def test_a_failed_import_is_reported_with_file_and_line(
    place: str, text: str, error: str, line: int, tmp_path: Path
) -> None:
    path = written(tmp_path, text, "hooks.py" if place == "hooks.py" else "shop_c/hooks.py")
    expected = f"transform: {place} cannot be imported: {error} ({path}, line {line})"
    assert rejected(f"{place}:order", tmp_path) == expected


def test_the_line_is_the_hooks_own_even_if_a_library_raised(tmp_path: Path) -> None:
    path = written(tmp_path, "import json\nx = json.loads('{')\n")
    assert f"({path}, line 2)" in rejected("hooks.py:order", tmp_path)


@pytest.mark.parametrize("source", [b"x = 1\0\n", b"x = '\xff'\n"], ids=["NUL", "not UTF-8"])
def test_a_file_that_is_not_python_is_named(source: bytes, tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_bytes(source)
    problem = rejected("hooks.py:order", tmp_path)
    assert problem.startswith("transform: hooks.py cannot be imported: ")
    assert str(tmp_path / "hooks.py") in problem
    assert "transform.py" not in problem


@pytest.mark.parametrize("place", ["sys", "shop_d"], ids=["built in", "a folder"])
def test_a_module_without_a_file_is_rejected(place: str, tmp_path: Path) -> None:
    (tmp_path / "shop_d").mkdir()
    assert "has no source file" in rejected(f"{place}:order", tmp_path)


def test_a_module_without_python_source_is_rejected_too(tmp_path: Path) -> None:
    assert "has no function nothing" in rejected("_decimal:nothing", tmp_path)


# one document per item


@pytest.mark.parametrize("found", [None, {}, {"a": 1}])
def test_a_plain_hook_returns_a_mapping_or_none(found: object) -> None:
    assert hook(lambda item: found).one(ITEM) == found


def test_a_plain_hook_may_return_the_item_itself() -> None:
    assert hook(lambda item: item).one(ITEM) is ITEM


@pytest.mark.parametrize(
    ("found", "kind"),
    [([], "list"), ("text", "str"), (True, "bool"), (Document("a", {}), "Document"), (iter([]), "list_iterator")],
)
def test_a_plain_hook_that_returns_anything_else_is_poison(found: object, kind: str) -> None:
    with pytest.raises(Poison, match=f"hook hook returned a {kind}; a plain hook must return a mapping or None"):
        hook(lambda item: found).one(ITEM)


class Mute(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


def raising(error: BaseException) -> Callable[[Item], Any]:
    def hook(item: Item) -> Mapping[str, object]:
        raise error

    return hook


@pytest.mark.parametrize(
    "error",
    [ValueError("not so"), KeyError("total"), SystemExit(3), RecursionError("deep"), StopIteration(), Mute("a")],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_poison_with_line_and_traceback_and_its_message_kept_separate(
    error: BaseException,
) -> None:
    function = raising(error)
    with pytest.raises(Poison) as raised:
        hook(function).one(ITEM)
    line, kind, trace = function.__code__.co_firstlineno + 1, type(error).__name__, raised.value.trace
    assert raised.value.reason == str(raised.value) == f"hook hook raised {kind} at test_hook.py:{line}"
    assert f"line {line}, in hook" in trace.stack
    assert trace.stack.splitlines()[-1] in (kind, f"{kind}: {HIDDEN_DATA}")
    assert trace.words == f"{kind}: {'' if kind == 'Mute' else error.args[0] if error.args else ''}"


def test_a_message_is_shown_if_it_is_a_constant_in_the_code_that_raised_it() -> None:
    def hook_of(item: Item) -> None:
        if item["id"] == "a":
            raise ValueError("no order without a total")

    with pytest.raises(Poison, match=r":\d+: no order without a total$") as raised:
        hook(hook_of).one(ITEM)
    assert raised.value.trace.stack.endswith("\nValueError: no order without a total\n")


def test_a_composed_message_is_hidden_and_so_is_that_of_its_cause() -> None:
    def hook_of(item: Item) -> None:
        try:
            int(f"<{item['id']}>")
        except ValueError as e:
            raise RuntimeError(f"no {item['id']}!") from e

    with pytest.raises(Poison, match=r"raised RuntimeError at test_hook.py:\d+$") as raised:
        hook(hook_of).one(ITEM)
    trace = raised.value.trace
    assert ("<a>" in trace.stack, "no a!" in trace.stack) == (False, False)
    assert trace.words == "ValueError: invalid literal for int() with base 10: '<a>'\nRuntimeError: no a!"
    assert trace.stack.index("ValueError: (") < trace.stack.index("RuntimeError: (")


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(Poison, match=r"KeyError at test_hook.py:.*no attribute 'total'"):
        hook(lambda item: {"total": item["total"]}).one(ITEM)


def test_a_malformed_attribute_is_poison_only_for_the_hook_that_reads_it() -> None:
    bad = Item(b'{"id":{"S":"a"},"n":{"N":"one"}}')
    assert hook(lambda item: {"id": item["id"]}).one(bad) == {"id": "a"}
    with pytest.raises(Poison, match=r"raised Malformed at test_hook.py"):
        hook(lambda item: {"n": item["n"]}).one(bad)


def test_ctrl_c_is_not_parked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)  # also where tests ignore Ctrl-C
    with pytest.raises(KeyboardInterrupt):
        hook(raising(KeyboardInterrupt())).one(ITEM)


# documents with their own ids


def many(*found: object, tables: tuple[str, ...] = TABLES) -> dict[tuple[str, str], Mapping[str, object]]:
    return hook(documents(lambda item: list(found))).many(ITEM, tables)


def test_documents_are_placed_by_table_and_id() -> None:
    found = many(Document("a", {"n": 1}, "orders"), Document(7, {"n": 2}, "lines"), Document("a", {"n": 3}, "lines"))
    assert found == {("orders", "a"): {"n": 1}, ("lines", "7"): {"n": 2}, ("lines", "a"): {"n": 3}}


def test_the_only_table_need_not_be_named() -> None:
    assert many(Document("a", {}), tables=("orders",)) == {("orders", "a"): {}}


@pytest.mark.parametrize("found", [None, [], (), iter(())])
def test_no_documents_are_fine(found: object) -> None:
    assert hook(documents(lambda item: found)).many(ITEM, TABLES) == {}


def test_a_generator_is_run_to_its_end() -> None:
    @documents
    def rows(item: Item) -> Iterator[Document]:
        for n in range(3):
            yield Document(n, {"n": n}, "orders")

    assert list(hook(rows).many(ITEM, TABLES)) == [("orders", "0"), ("orders", "1"), ("orders", "2")]


def test_a_generator_that_raises_midway_yields_nothing() -> None:
    @documents
    def rows(item: Item) -> Iterator[Document]:
        yield Document("a", {}, "orders")
        raise ValueError("halfway")

    with pytest.raises(Poison, match=r"hook hook raised ValueError at test_hook.py:\d+: halfway"):
        hook(rows).many(ITEM, TABLES)


def test_a_generator_that_exits_is_poison() -> None:
    @documents
    def rows(item: Item) -> Iterator[Document]:
        yield Document("a", {}, "orders")
        sys.exit("no")

    with pytest.raises(Poison, match="hook hook raised SystemExit at"):
        hook(rows).many(ITEM, TABLES)


@pytest.mark.parametrize(
    ("found", "kind"),
    [({}, "dict"), ("text", "str"), (b"", "bytes"), (5, "int"), (Document("a", {}), "Document")],
)
def test_a_declared_hook_that_returns_no_iterable_of_documents_is_poison(found: object, kind: str) -> None:
    with pytest.raises(Poison, match=f"hook hook returned a {kind}; a @documents hook must return Documents"):
        hook(documents(lambda item: found)).many(ITEM, TABLES)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": "a"}, "yielded a dict instead of a Document"),
        (None, "yielded a NoneType instead of a Document"),
        (Document(None, {}, "orders"), "returned a document whose id is a NoneType, not a str or int"),  # type: ignore[arg-type]
        (Document(True, {}, "orders"), "returned a document whose id is a bool, not a str or int"),
        (
            Document("x\ud800", {}, "orders"),
            "returned a document id with half of a surrogate pair, which is not valid text",
        ),
        (Document(1.5, {}, "orders"), "returned a document whose id is a float, not a str or int"),  # type: ignore[arg-type]
        (Document("a", [], "orders"), "returned a document whose body is a list, not a mapping"),
        (Document("a", {}), "returned a document without a table; the target has orders, lines"),
        (Document("a", {}, "order"), "returned a document for an unknown table; the target has orders, lines"),
    ],
)
def test_an_invalid_document_is_poison(document: object, message: str) -> None:
    with pytest.raises(Poison, match=f"^hook hook {re.escape(message)}$"):
        many(document)


@pytest.mark.parametrize("ids", [("a", "a"), (1, "1")])
def test_a_duplicate_id_in_one_table_is_poison(ids: tuple[str | int, str | int]) -> None:
    with pytest.raises(Poison, match=r"returned two documents with the same id in orders$"):
        many(*(Document(id, {}, "orders") for id in ids))


def test_the_decorator_returns_the_function_unchanged() -> None:
    def rows(item: Item) -> list[Document]:
        return []

    assert documents(rows) is rows
