"""``check`` names what removed targets left, and does not take the copies of others for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from replicator.checkpoints.sqlite.store import SqliteCheckpoints, SqliteOptions
from replicator.config.settings import load
from replicator.operations.check import _left_over
from replicator.operations.finding import Finding

SEARCH = "{type: elasticsearch, url: 'http://127.0.0.1:1', tables: {products: {index: products}}}"
CONFIG = f"""\
pipeline: shop
source: {{table: products, region: eu-west-1}}
targets:
  search: {SEARCH}
"""


@pytest.fixture
def stored(tmp_path: Path) -> SqliteCheckpoints:
    for name in ("shop", "shop.search", "shop.gone", "shop.gone@new", "shop.eu.search", "shops.search"):
        (tmp_path / f"{name}.checkpoints").touch()
    return SqliteCheckpoints(SqliteOptions(), "shop.search", tmp_path)


def found(folder: Path, text: str, stored: SqliteCheckpoints) -> list[Finding]:
    (folder / "shop.yaml").write_text(text)
    return list(_left_over(load(folder / "shop.yaml", {}), stored))


def test_only_pipelines_that_a_target_of_the_config_can_have_had_are_named(
    tmp_path: Path, stored: SqliteCheckpoints
) -> None:
    (note,) = found(tmp_path, CONFIG, stored)
    assert note.verdict == "note"
    assert note.text.startswith("shop.gone: stored here, and no target of this config")
    assert "of another config, or of a rebuild" in note.text


def test_a_config_that_rebuilds_names_none_because_the_old_copy_is_live(
    tmp_path: Path, stored: SqliteCheckpoints
) -> None:
    (tmp_path / "old.yaml").write_text(CONFIG)
    new = CONFIG.replace("index: products", "index: products-2")
    new = new.replace("{type:", "{pipeline: shop.search-2, replaces: old.yaml, type:")
    assert found(tmp_path, new, stored) == []
