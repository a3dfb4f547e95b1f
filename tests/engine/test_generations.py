"""Which configs, names and tables the two generations of a rebuild have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replicator.config.settings import Config, load
from replicator.engine import generations
from replicator.errors import ConfigError
from replicator.operations import rebuild as operation
from replicator.state import Rebuild
from replicator.target.contract import UNKNOWN_KEYS, TablesBusy

TEXT = """
pipeline: orders
source: {{table: orders, region: eu-west-1}}
target: {{type: postgres, url: postgresql://localhost/shop, tables: {{orders: , lines: }}}}
monitoring: {{listen: 127.0.0.1:{port}}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Callable[[int], Config]:
    def both(old_port: int) -> Config:
        (tmp_path / "old.yaml").write_text(TEXT.format(port=old_port))
        (tmp_path / "new.yaml").write_text(TEXT.format(port=9464) + "replaces: old.yaml")
        return load(tmp_path / "new.yaml")

    return both


def stored_as(config: Config) -> list[str]:
    return [table.stored_as or table.name for table in config.target.wanted(UNKNOWN_KEYS, own_ids=True)]


@pytest.mark.parametrize("switched", [False, True])
def test_only_the_live_generation_has_the_tables_names(config: Callable[[int], Config], switched: bool) -> None:
    both = generations.generations(config(9465), Rebuild(0.0, switched))
    assert both.first is not None
    assert both.second is not None
    assert (both.first.pipeline, both.second.pipeline) == ("orders", "orders@new")
    plain, old, new = ["orders", "lines"], ["orders_old", "lines_old"], ["orders_new", "lines_new"]
    assert [stored_as(c) for c in (both.first, both.second)] == ([old, plain] if switched else [plain, new])
    assert [t.name for t in both.second.target.wanted(UNKNOWN_KEYS, own_ids=True)] == plain


def test_without_a_rebuild_the_config_is_the_pipelines_own(config: Callable[[int], Config]) -> None:
    new = config(9465)
    assert generations.generations(new, None) == generations.Generations(None, new)


def test_two_configs_with_one_address_are_not_both_served(config: Callable[[int], Config]) -> None:
    same, others = (generations.first_of(config(port), Rebuild(0.0)).monitoring for port in (9464, 9465))
    assert same is None
    assert others is not None


@dataclass
class Busy:
    """A target whose tables are held for so many attempts."""

    held: int
    tried: list[None] = field(default_factory=list)

    def exchange(self) -> None:
        self.tried.append(None)
        if len(self.tried) <= self.held:
            raise TablesBusy("held")


@pytest.mark.parametrize(("held", "tries"), [(3, 4), (1000, operation.ATTEMPTS)])
def test_a_switch_tries_again_while_readers_hold_the_tables(held: int, tries: int) -> None:
    pauses: list[float] = []
    busy = Busy(held)
    try:
        operation.exchanged(busy.exchange, pauses.append)
    except TablesBusy:
        assert held >= tries
    assert len(busy.tried) == tries
    assert pauses == [operation.PAUSE] * (tries - 1)


def test_the_replaced_config_must_exist(config: Callable[[int], Config]) -> None:
    new = config(9465)
    (new.base / "old.yaml").unlink()
    with pytest.raises(ConfigError, match=r"old\.yaml"):
        generations.replaced(new)


def test_what_is_wrong_with_other_targets_of_the_replaced_config_does_not_matter(tmp_path: Path) -> None:
    """As where a run of one target alone has only the environment variables of that one."""
    one = "  {}: {{type: postgres, url: {}, table: {}{}}}\n"
    text = "pipeline: orders\nsource: {table: orders, region: eu-west-1}\ntargets:\n"
    others = one.format("b", "'${UNSET_HERE}'", "b", "")
    for name, more in (("old", ""), ("new", ", replaces: old.yaml")):
        (tmp_path / f"{name}.yaml").write_text(
            text + one.format("a", "postgresql://localhost/shop", "a", more) + others
        )

    new = load(tmp_path / "new.yaml", target="a")
    assert generations.replaced(new).pipeline == "orders.a"
