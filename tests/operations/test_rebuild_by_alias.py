"""The steps of a rebuild where an alias tells which copy is live: refused, repeated, and killed at every point."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from replicator.config.settings import Config, load
from replicator.engine.assembly import ends
from replicator.engine.generations import by_alias, generations, resolved
from replicator.errors import ConfigError, Fenced
from replicator.operations import rebuild, rebuild_by_alias
from replicator.operations.cutover import Reason
from replicator.operations.rebuild_checks import Outcome
from replicator.operations.status import read_each
from replicator.state import Owner, Rebuild, Save, ShardState, decode, encode
from replicator.target.contract import UNKNOWN_KEYS, Aliased, Table

OLD = """
pipeline: products
source: {table: products, region: eu-west-1}
target: {type: elasticsearch, url: http://localhost:1, tables: {products: , lines: }}
"""
NEW = """
pipeline: products-2
replaces: products.yaml
source: {table: products, region: eu-west-1}
target: {type: elasticsearch, url: http://localhost:1, tables: {products: {index: p-2}, lines: {index: l-2}}}
"""
FIRST, SECOND = {"products-1", "lines-1"}, {"p-2", "l-2"}


class KilledError(Exception):
    """The command was killed."""


@dataclass
class Cluster:
    """Indices, and which of them the aliases point to. ``fuse``: how many effects there are until a kill."""

    indices: set[str] = field(default_factory=lambda: FIRST | SECOND)
    seen: set[str] = field(default_factory=lambda: set(FIRST))
    fuse: int = 1_000

    def burn(self) -> None:
        self.fuse -= 1
        if self.fuse < 0:
            raise KilledError


def index(table: Table) -> str:
    return str(table.options.get("index") or f"{table.name}-1")


class Engine:
    """A target with aliases, in memory."""

    cluster: Cluster

    def __init__(self, options: object, pipeline: str) -> None:
        pass

    def close(self) -> None:
        pass

    def seen(self, tables: Sequence[Table]) -> Collection[str]:
        return [table.name for table in tables if index(table) in self.cluster.seen]

    def rebuild_problems(
        self, live: Sequence[Table], new: Sequence[Table], pipelines: tuple[str, str]
    ) -> Sequence[str]:
        return []

    def carried(self, live: Sequence[Table]) -> Sequence[str]:
        return []

    def point(self, away: Sequence[Table], here: Sequence[Table], pipelines: tuple[str, str]) -> bool:
        assert pipelines == (("products", "products-2") if index(away[0]) in FIRST else ("products-2", "products"))
        self.cluster.burn()
        self.cluster.seen = {index(table) for table in here}
        self.cluster.burn()
        return True

    def drop_problems(self, tables: Sequence[Table], pipeline: str) -> Sequence[str]:
        return [f"{index(table)} is read" for table in tables if index(table) in self.cluster.seen]

    def drop(self, tables: Sequence[Table], pipeline: str) -> None:
        assert pipeline == ("products" if index(tables[0]) in FIRST else "products-2")
        assert self.drop_problems(tables, pipeline) == []
        for table in tables:
            self.cluster.burn()
            self.cluster.indices -= {index(table)}
        self.cluster.burn()


@dataclass(frozen=True)
class Shop:
    config: Config
    cluster: Cluster

    def note(self, note: Rebuild | None) -> None:
        with ends(self.config) as (_, checkpoints):
            claimed = checkpoints.claim(Owner("r", "h", 1, 0.0))
            before = next((e.revision for e in claimed.entries if e.kind == "rebuild"), 0)
            checkpoints.save([Save("rebuild", "", before, encode(note) if note else None)])

    def noted(self) -> Rebuild | None:
        with ends(self.config) as (_, checkpoints):
            found = [decode(e.kind, e.id, e.text) for e in checkpoints.read().entries if e.kind == "rebuild"]
        return found[0] if found else None  # type: ignore[return-value]


def burning(cluster: Cluster, saving: Callable[..., object]) -> Callable[..., object]:
    def saved(*arguments: object) -> object:
        cluster.burn()
        stored = saving(*arguments)
        cluster.burn()
        return stored

    return saved


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    (tmp_path / "products.yaml").write_text(OLD)
    (tmp_path / "products-2.yaml").write_text(NEW)
    cluster, config = Cluster(), load(tmp_path / "products-2.yaml")
    connector = type("InMemory", (Engine,), {"cluster": cluster})
    assert issubclass(connector, Aliased)
    monkeypatch.setattr(rebuild_by_alias, "ready", lambda *_, **__: [])  # no run is up here
    for name in ("note", "note_first", "forget_first"):
        monkeypatch.setattr(
            rebuild_by_alias._Generations, name, burning(cluster, getattr(rebuild_by_alias._Generations, name))
        )
    shop = Shop(replace(config, target=replace(config.target, connector=connector)), cluster)
    shop.note(Rebuild(0.0))
    return shop


def switch(config: Config) -> Outcome:
    return rebuild.switch(config, verified_within=1.0)


@pytest.mark.parametrize(
    ("step", "seen", "left", "noted", "points"),
    [
        (switch, SECOND, FIRST | SECOND, Rebuild(0.0), 2),
        (rebuild.rollback, FIRST, FIRST | SECOND, Rebuild(0.0), 2),
        (rebuild.finish, SECOND, SECOND, None, 9),
        (rebuild.cancel, FIRST, FIRST, Rebuild(0.0, canceled=True), 7),
    ],
)
def test_each_step_killed_anywhere_is_completed_by_the_same_command(
    shop: Shop, step: Callable[[Config], Outcome], seen: set[str], left: set[str], noted: Rebuild | None, points: int
) -> None:
    kills = 0
    while True:
        shop.note(Rebuild(0.0))
        shop.cluster.indices = FIRST | SECOND
        shop.cluster.seen = set(SECOND if step in (rebuild.rollback, rebuild.finish) else FIRST)
        shop.cluster.fuse = kills
        try:
            assert not step(shop.config).already
            break
        except KilledError:
            kills += 1
            assert shop.cluster.seen & shop.cluster.indices == shop.cluster.seen  # readers never lose their index
            note = shop.noted()
            told = note is None or note.finishing or note.canceled
            assert told or shop.cluster.indices == FIRST | SECOND  # before a run could find its index gone
        shop.cluster.fuse = 1_000
        assert step(shop.config).reasons == ()
        assert (shop.cluster.seen, shop.cluster.indices, shop.noted()) == (seen, left, noted)
        assert step(shop.config).already
    assert kills == points


def test_while_the_old_copy_is_being_removed_only_finish_goes_on(shop: Shop) -> None:
    shop.cluster.seen = set(SECOND)
    shop.note(Rebuild(0.0, finishing=True))
    for step in (switch, rebuild.rollback):
        with pytest.raises(ConfigError, match=r"the old copy is being removed; complete that with: replicator rebuild"):
            step(shop.config)
    for step in (rebuild.start, rebuild.cancel):
        with pytest.raises(ConfigError, match=r"the new tables are live: end this rebuild first"):
            step(shop.config)
    both = generations(shop.config, shop.noted())
    assert (both.first, both.second and both.second.pipeline) == (None, "products-2")


def test_what_is_read_is_never_removed(shop: Shop) -> None:
    for seen in ({"p-2", "lines-1"}, {"products-1"}, set()):  # moved by hand, or gone
        shop.cluster.seen = seen
        with pytest.raises(ConfigError, match=r"the new tables are not live, so the old ones are not removed"):
            rebuild.finish(shop.config)
    for seen in (set(SECOND), {"p-2", "lines-1"}):
        shop.cluster.seen = seen
        with pytest.raises(ConfigError, match=r"the new tables are live"):
            rebuild.cancel(shop.config)
    shop.cluster.seen = set(SECOND)
    assert shop.cluster.indices == FIRST | SECOND
    assert shop.noted() == Rebuild(0.0)


def test_a_step_says_why_not_and_changes_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [Reason(7, "it is not live"), Reason(3, "records were lost")]
    monkeypatch.setattr(rebuild_by_alias, "ready", lambda *_, **__: reasons)
    assert switch(shop.config).reasons == reasons[::-1]
    shop.cluster.seen = set(SECOND)
    assert rebuild.rollback(shop.config).reasons == reasons[::-1]
    assert shop.cluster.seen == SECOND
    assert rebuild.rollback(shop.config, unchecked=True) == Outcome()
    assert shop.cluster.seen == FIRST


@pytest.mark.parametrize("note", [None, Rebuild(0.0, canceled=True)])
def test_without_a_rebuild_in_progress_the_aliases_stay(shop: Shop, note: Rebuild | None) -> None:
    shop.note(note)
    for step in (switch, rebuild.rollback):
        with pytest.raises(ConfigError, match=r"no rebuild is in progress; start one with"):
            step(shop.config)
    assert shop.cluster.seen == FIRST


def test_a_canceled_rebuild_cannot_be_finished_and_commands_say_that_it_was_canceled(shop: Shop) -> None:
    shop.note(Rebuild(0.0, canceled=True))
    with pytest.raises(ConfigError, match=r"no rebuild is in progress"):
        rebuild.finish(shop.config)
    with pytest.raises(ConfigError, match=r"the rebuild was canceled, so there is no copy with this config"):
        resolved(shop.config)
    both = generations(shop.config, shop.noted())
    assert (both.first and both.first.pipeline, both.second) == ("products", None)


def test_each_generation_knows_the_index_of_the_other(shop: Shop) -> None:
    both = generations(shop.config, shop.noted())
    assert both.first is not None
    assert both.second is not None
    tables = [config.target.wanted((), own_ids=True) for config in (both.first, both.second)]  # type: ignore[arg-type]
    assert [[index(t) for t in side] for side in tables] == [["products-1", "lines-1"], ["p-2", "l-2"]]
    assert [[index(t.beside) for t in side if t.beside] for side in tables] == [
        ["p-2", "l-2"],
        ["products-1", "lines-1"],
    ]
    assert by_alias(both.first)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("pipeline: products", "pipeline: products-2", "pipeline: products.yaml has the same name, products-2"),
        ("{products: , lines: }", "{products: }", "target.tables: the new config must name the same tables"),
        ("elasticsearch", "opensearch", "target.tables: the new config must name the same tables, of the same type"),
        ("pipeline:", "replaces: x.yaml\npipeline:", "replaces: products.yaml must be the config that the pipeline"),
    ],
)
def test_two_configs_that_cannot_be_generations_are_refused(shop: Shop, old: str, new: str, sentence: str) -> None:
    path = shop.config.base / "products.yaml"
    path.write_text(path.read_text().replace(old, new))
    for step in (rebuild.start, switch, rebuild.rollback, rebuild.finish, rebuild.cancel):
        with pytest.raises(ConfigError) as e:
            step(shop.config)
        assert str(e.value).startswith(sentence)


def test_the_old_config_knows_the_new_copy_from_start_to_cancel_or_finish_and_then_has_no_checkpoints(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = load(shop.config.base / "products.yaml")
    old = replace(old, target=replace(old.target, connector=shop.config.target.connector))
    with ends(old) as (_, checkpoints):
        claimed = checkpoints.claim(Owner("r", "h", 1, 0.0))
        many = [Save("shard", f"s{n}", 0, encode(ShardState(None, None, whole=False, since=0.0))) for n in range(120)]
        checkpoints.save(many)

        def beside() -> list[str]:
            tables = resolved(old).target.wanted(UNKNOWN_KEYS, own_ids=False)
            return [index(table.beside) for table in tables if table.beside is not None]

        shop.note(None)
        assert beside() == []
        monkeypatch.setattr(rebuild_by_alias, "check_alike", lambda *_: None)
        monkeypatch.setattr(Engine, "check", lambda *_: [], raising=False)
        monkeypatch.setattr(rebuild_by_alias, "complete_tables", lambda _: ())
        rebuild.start(shop.config)
        assert beside() == ["p-2", "l-2"]
        rebuild.cancel(shop.config)
        assert beside() == []
        rebuild.start(shop.config)
        shop.cluster.indices, shop.cluster.seen = FIRST | SECOND, set(SECOND)
        outcome = rebuild.finish(shop.config)
        assert [note.partition(" (")[0] for note in outcome.notes] == ["the checkpoints of products are emptied"]
        assert [(e.kind, e.revision > claimed.revision) for e in checkpoints.read().entries] == [("owner", True)]
        with pytest.raises(Fenced):
            checkpoints.save([Save("shard", "late", 0, encode(ShardState(None, None, whole=False, since=0.0)))])


@pytest.mark.parametrize("text", [None, NEW.replace("replaces: products.yaml\n", "")])
def test_after_the_switch_commands_for_the_old_copy_say_that_they_need_the_new_config(
    shop: Shop, text: str | None
) -> None:
    old = load(shop.config.base / "products.yaml")
    old = replace(old, target=replace(old.target, connector=shop.config.target.connector))
    with ends(old) as (_, checkpoints):
        checkpoints.claim(Owner("r", "h", 1, 0.0))
        checkpoints.save([Save("rebuild", "", 0, encode(Rebuild(0.0, config="products-2.yaml")))])
    shop.config.path.unlink()
    if text is not None:
        shop.config.path.write_text(text)
    assert resolved(old) is old  # which readers see
    shop.cluster.seen = set(SECOND)
    with pytest.raises(
        ConfigError,
        match=r"a rebuild with products-2.yaml is in progress, .*need products-2.yaml unchanged: restore it. Problem: ",
    ) as e:
        resolved(old)
    assert ("no replaces: products.yaml" in str(e.value)) == (text is not None)


def test_status_shows_both_copies_where_the_cluster_does_not_say_which_one_is_live(shop: Shop) -> None:
    readings = read_each(str(shop.config.path), 0.0)  # nothing listens at its address
    assert [(reading.pipeline, reading.live) for reading in readings] == [("products", None), ("products-2", None)]
