"""What is written as YAML is read back unchanged, whatever the names are."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from replicator.config.yaml_text import block, scalar, with_tables

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(TEXT | st.booleans() | st.none() | st.integers(), lambda inner: st.dictionaries(TEXT, inner))


@given(st.dictionaries(TEXT, VALUES, min_size=1), st.data())
def test_names_and_values_are_read_back_and_comments_are_not(values: dict[str, Any], data: st.DataObject) -> None:
    paths = [(name, *([next(iter(v))] if isinstance(v, dict) and v else [])) for name, v in values.items()]
    comments = {path: "{ # : 'comment'" for path in paths if data.draw(st.booleans())}

    text = "\n".join(block(values, comments))
    assert yaml.safe_load(text) == values
    assert text.isascii()


@pytest.mark.parametrize("word", ["yes", "No", "on", "~", "null", "1", "1.5", "2026-01-01", "", "- a", "a: b", "{"])
def test_words_that_yaml_takes_for_something_else_are_quoted(word: str) -> None:
    assert yaml.safe_load(scalar(word)) == word


@pytest.mark.parametrize(
    "config",
    [
        "target:\n  type: x\n  table: a # mine\n  url: y\nrest: 1\n",
        "target:\n  tables:\n    a:\n      b: {c: 1}\n\n    # inside\n    d:\n\n# after\nrest: 1\n",
        "target: {type: x, table: a}\nrest: 1\n",
        "target: {type: x, tables: {a: {b: 1}}}\nrest: 1",
        "rest: 1\ntarget:\n    type: x\n    table: a",
        "rest: 1\ntarget:\n    table: a\n    type: x",
    ],
)
def test_only_the_tables_are_replaced(config: str) -> None:
    before = yaml.safe_load(config)
    after = yaml.safe_load(with_tables(config, {"n ew": {"columns": {"x": "text"}}}, {("n ew", "columns", "x"): "why"}))
    before["target"].pop("table", None)

    assert after == {**before, "target": {**before["target"], "tables": {"n ew": {"columns": {"x": "text"}}}}}
