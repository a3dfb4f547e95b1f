"""Which configs, names and tables the two generations of a rebuild have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from replicator.config.settings import Config, load
from replicator.engine import generations
from replicator.errors import ConfigError, Fenced, GapFound, ReplicatorError
from replicator.hooks import loading
from replicator.operations import rebuild as operation
from replicator.state import Entry, Rebuild, encode
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


HOOK = "def hook(item):\n    return {{'made': {!r}}}\n"


class Following:
    """A rebuild whose entry, pipeline and owner are as commands left them; ``ran`` is what was run, with its hook and
    the suffix of its tables.
    """

    def __init__(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("old", "new"):
            (config.base / f"{name}.py").write_text(HOOK.format(name))
            with (config.base / f"{name}.yaml").open("a") as file:
                file.write(f"\ntransform: {name}.py:hook\n")
        self.config = load(config.path)
        self.entry: Entry | None = Entry("rebuild", "", 1, encode(Rebuild(1.0)))
        self.hook = self.hook_of("old")
        self.owner: str | None = None
        self.ran: list[tuple[str, str]] = []
        self.suffixes: list[str] = []
        self.claims: generations.Claims = {}
        monkeypatch.setattr(generations, "rebuild_entry", lambda _: self.entry)
        monkeypatch.setattr(generations, "_owner_of", lambda _: self.owner)
        monkeypatch.setattr(generations, "_hook_of", lambda *_: self.hook)

    def hook_of(self, name: str) -> str:
        return loading.load(f"{name}.py:hook", self.config.base).fingerprint

    def switched(self) -> None:
        self.entry = Entry("rebuild", "", 1, encode(Rebuild(1.0, True)))

    def __call__(self, generation: generations.Which, *ends: Callable[[Callable[[], None]], None]) -> None:
        left = list(ends)

        def work(config: Config, confirm: Callable[[], None]) -> None:
            self.ran.append((config.pipeline, str(config.transform)))
            self.suffixes.append(config.target.suffix)
            if left:
                left.pop(0)(confirm)

        generations.follow(self.config, generation, work, threading.Event(), self.claims)

    def canceled(self, error: ReplicatorError) -> Callable[[Callable[[], None]], None]:
        def end(_: Callable[[], None]) -> None:
            self.entry = None
            raise error

        return end

    def canceled_once_claimed(self, error: ReplicatorError, taken_by: str = "") -> Callable[[Callable[[], None]], None]:
        """Canceled while the run owns the pipeline, and then ``taken_by`` another run, if any."""

        def end(confirm: Callable[[], None]) -> None:
            self.owner = f"run {len(self.ran)}"
            confirm()
            self.entry, self.owner = None, taken_by or self.owner
            raise error

        return end

    def canceled_before_the_claim(self, confirm: Callable[[], None]) -> None:
        self.entry = None
        confirm()

    def switched_and_finished(self, _: Callable[[], None]) -> None:
        self.entry, self.hook = None, self.hook_of("new")
        raise Fenced("another run")


@pytest.fixture
def following(config: Callable[[int], Config], monkeypatch: pytest.MonkeyPatch) -> Following:
    return Following(config(9465), monkeypatch)


@pytest.mark.parametrize("error", [GapFound("trimmed"), ConfigError("parked_limit"), Fenced("another run")])
def test_after_a_cancel_the_old_copys_failures_are_its_runs(following: Following, error: ReplicatorError) -> None:
    with pytest.raises(type(error)):
        following("first", following.canceled(error))
    assert following.ran == [("orders", "old.py:hook")]


def test_a_cancel_while_the_old_copys_run_starts_does_not_end_it(following: Following) -> None:
    following("first", following.canceled_before_the_claim)
    assert following.ran == [("orders", "old.py:hook")] * 2


@pytest.mark.parametrize("switched", [False, True])
def test_exchanges_and_a_cancel_that_were_missed_do_not_end_the_old_copys_run(
    following: Following, switched: bool
) -> None:
    """The exchange fences it off, and when it looks for the rebuild, that is over."""
    if switched:
        following.switched()
    following("first", following.canceled_once_claimed(Fenced("another run, or a rebuild has moved on")))
    assert following.ran == [("orders", "old.py:hook")] * 2
    assert following.suffixes == ["_old" if switched else "", ""]


def test_after_a_rollback_and_a_cancel_that_were_missed_an_error_of_the_exchanged_names_does_not_count(
    following: Following,
) -> None:
    following.switched()
    following("first", following.canceled_once_claimed(ConfigError("orders_old is gone")))
    assert following.suffixes == ["_old", ""]


def test_a_rollback_and_a_cancel_before_the_old_copys_run_claims_it_leave_it_the_tables_names(
    following: Following,
) -> None:
    following.switched()
    following("first", following.canceled_before_the_claim)
    assert following.suffixes == ["_old", ""]


@pytest.mark.parametrize("switched", [False, True])
def test_another_run_that_takes_over_after_a_cancel_is_left_the_pipeline(following: Following, switched: bool) -> None:
    if switched:
        following.switched()
    with pytest.raises(Fenced):
        following("first", following.canceled_once_claimed(Fenced("another run"), taken_by="another run"))
    assert following.ran == [("orders", "old.py:hook")]


def test_with_the_same_hook_the_owner_tells_a_rollback_and_a_cancel_that_were_missed(following: Following) -> None:
    """Else the new columns would be those of the old copy."""
    (following.config.base / "new.py").write_text((following.config.base / "old.py").read_text())
    following.switched()
    following.claims["run of the old copy"] = "first"
    following("second", following.canceled_once_claimed(Fenced("a rebuild has moved on"), "run of the old copy"))
    assert following.ran == [("orders@new", "new.py:hook")]


@pytest.mark.parametrize("switched", [False, True])
def test_after_a_cancel_the_new_config_is_not_run_for_the_old_copy(following: Following, switched: bool) -> None:
    """Also if a rollback before it was missed."""
    following.entry = Entry("rebuild", "", 1, encode(Rebuild(1.0, switched)))
    following("second", following.canceled(ConfigError("the table is gone")))
    assert following.ran == [("orders@new", "new.py:hook")]


def test_a_switch_and_a_finish_that_were_missed_are_told_by_the_pipelines_hook(following: Following) -> None:
    following("second", following.switched_and_finished)
    assert following.ran == [("orders@new", "new.py:hook"), ("orders", "new.py:hook")]


def test_a_switch_and_a_finish_that_were_missed_end_the_old_copys_run(following: Following) -> None:
    following("first", following.switched_and_finished)
    assert following.ran == [("orders", "old.py:hook")]


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
