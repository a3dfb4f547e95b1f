"""``replicator rebuild`` for search engines, beside a real run and a reader that never stops, on a real server."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from replicator.config.settings import load
from replicator.engine.assembly import ends
from replicator.engine.generations import resolved
from replicator.state import Gap, Repair, Save, Verified, encode
from replicator.testing.dynamodb.http import served
from tests.cli.command_line import Marking, World
from tests.cli.test_run import await_that
from tests.security.canary import SECRET
from tests.servers.postgres_fixtures import Database
from tests.servers.search_fixtures import Search

pytestmark = pytest.mark.search

DOCUMENT = Path(__file__).parents[2] / "docs" / "rebuilding.md"
OLD = "def hook(item):\n    return {'made': 'old', 'n': int(item['n'])}\n"
NEW = "def hook(item):\n    return {'made': 'new', 'n': int(item['n']) * 10}\n"
ITEMS = 30
BLOCKS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
NONE_IN_PROGRESS = "no rebuild is in progress; start one with: replicator rebuild start CONFIG"
NO_RUN = "no run is up, so nothing is copied; start it with: replicator run CONFIG"
_CONFIG = """\
pipeline: products
source:
  table: products
  region: us-east-1
  endpoint_url: {endpoint}
transform: hooks.py:hook
target:
  type: elasticsearch
  url: {url}
  tables:
    {alias}:
      mapping: {{properties: {{made: {{type: keyword}}, n: {{type: long}}}}}}
"""


@dataclass(frozen=True)
class Shop:
    """A copy that the old hook made, behind an alias, and the config of a new one."""

    world: World
    search: Search

    @property
    def alias(self) -> str:
        return f"{self.search.prefix}products"

    @property
    def old(self) -> str:
        return f"{self.alias}-1"

    @property
    def new(self) -> str:
        return f"{self.alias}-2"

    @property
    def config(self) -> str:
        return str(self.world.folder / "products-2.yaml")

    @property
    def replaced(self) -> str:
        return str(self.world.folder / "products.yaml")

    def change(self, config: str, old: str, new: str) -> None:
        text = Path(config).read_text()
        assert old in text
        Path(config).write_text(text.replace(old, new))

    def put(self, id: str, n: int) -> None:
        self.world.db.put("products", {"id": id, "n": n})

    def rebuild(self, step: str, *more: str) -> tuple[int, list[str]]:
        """Exit code, and why not."""
        code, out, err = self.world.call("rebuild", step, self.config, "--json", *more)
        return code, json.loads(out).get("reasons", []) if out else err.rstrip().split("\n")

    def done(self, step: str, *more: str) -> None:
        assert self.rebuild(step, *more) == (0, [])

    def lines(self) -> list[Any]:
        return self.world.lines("status", self.config)

    def live(self) -> bool:
        return [line["phase"] for line in self.lines()] == ["live", "live"]

    def documents(self, index: str) -> dict[str, Any]:
        self.search.ask("POST", f"/{index}/_refresh")
        query = {"bool": {"must_not": {"term": {"replicator.deleted": True}}}}
        found = self.search.ask("POST", f"/{index}/_search", {"size": 1000, "query": query})["hits"]["hits"]
        return {hit["_id"]: {k: v for k, v in hit["_source"].items() if k != "replicator"} for hit in found}

    def pointed(self, alias: str) -> list[str]:
        return sorted(self.search.ask("GET", f"/_alias/{alias}"))


def documents(made: str, factor: int, more: int = 0) -> dict[str, Any]:
    items = {f"{n:02}": n for n in range(ITEMS)} | {f"more {n}": n for n in range(more)}
    return {id: {"made": made, "n": n * factor} for id, n in items.items()}


@pytest.fixture
def shop(tmp_path: Path, one_search: Search) -> Iterator[Shop]:
    db = Marking(now=time.time, random=random.Random(1))
    with served(db) as endpoint:
        environ = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET}
        shop = Shop(World(db, cast(Database, None), tmp_path, environ), one_search)  # no Postgres here
        text = _CONFIG.format(endpoint=endpoint, url=one_search.url, alias=shop.alias)
        (tmp_path / "products.yaml").write_text(text)
        (tmp_path / "hooks.py").write_text(OLD)
        db.create_table("products")
        for n in range(ITEMS):
            shop.put(f"{n:02}", n)
        code, _, err = shop.world.shell.run("run", shop.replaced, "--until", "caught-up")
        assert code == 0, err
        changed = text.replace("pipeline: products", "pipeline: products-2").replace("hooks.py", "hooks_2.py")
        changed = changed.replace("      mapping:", f"      index: {shop.new}\n      mapping:")
        Path(shop.config).write_text(f"replaces: products.yaml\n{changed}")
        (tmp_path / "hooks_2.py").write_text(NEW)
        yield shop


@contextmanager
def running(shop: Shop) -> Iterator[subprocess.Popen[str]]:
    with shop.world.shell.start("run", shop.config, "--json") as process:
        yield process
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err


@dataclass
class Reader:
    """Searches through the alias all the time, until it is stopped; each answer is of one copy, and whole."""

    shop: Shop
    reads: int = 0
    seen: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        while not self.stop.is_set():
            try:
                found = self.shop.search.ask("POST", f"/{self.shop.alias}/_search", {"size": 1000})["hits"]["hits"]
            except OSError as e:
                self.errors.append(str(e))
                continue
            self.reads += 1
            made = {hit["_source"].get("made") for hit in found}
            if len(made) != 1 or len(found) < ITEMS:
                self.errors.append(str(found))
            elif not self.seen or made != {self.seen[-1]}:
                self.seen += made


@contextmanager
def reading(shop: Shop) -> Iterator[Reader]:
    reader = Reader(shop)
    thread = threading.Thread(target=reader)
    thread.start()
    try:
        yield reader
    finally:
        reader.stop.set()
        thread.join()


def exchanged(shop: Shop, reader: Reader, process: subprocess.Popen[str], numbers: range) -> None:
    """Switch and roll back by turns, once each step was read, and change an item after each."""
    for n in numbers:
        step, how = ("rollback", "--unchecked") if n % 2 else ("switch", "--unverified")
        await_that(lambda: shop.rebuild(step, how) == (0, []), process)  # noqa: B023  # not while it catches up
        await_that(lambda: reader.seen[-1:] == ["old" if n % 2 else "new"] or reader.errors != [], process)  # noqa: B023
        shop.put(f"more {n}", n)


def test_twenty_switches_and_rollbacks_beside_a_run_and_a_reader_that_never_stops(shop: Shop) -> None:
    shop.done("start")
    with reading(shop) as reader:
        with shop.world.shell.start("run", shop.config, "--json") as killed:
            await_that(shop.live, killed)
            exchanged(shop, reader, killed, range(9))
            killed.kill()
            killed.communicate()
        with running(shop) as process:
            exchanged(shop, reader, process, range(9, 20))
            await_that(lambda: shop.documents(shop.old) == documents("old", 1, 20), process)
            await_that(lambda: shop.documents(shop.new) == documents("new", 10, 20), process)
    assert reader.errors == []
    assert reader.seen == ["old", *["new", "old"] * 10]
    assert [line["parked"] for line in shop.lines()] == [0, 0]


def test_the_documented_steps_lead_from_a_changed_hook_to_a_new_copy(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line for text in BLOCKS.findall(DOCUMENT.read_text()) for line in text.splitlines()]
    commands = [line.split()[1:] for line in lines if "products-2.yaml" in line]
    start, run, status, verify, switch, rollback, _cancel, finish = commands
    monkeypatch.chdir(shop.world.folder)
    mine = f"{shop.alias}-mine"
    own = {"filter": {"range": {"n": {"gt": 0}}}, "search_routing": "1"}
    shop.search.ask("POST", "/_aliases", {"actions": [{"add": {"index": shop.old, "alias": mine, **own}}]})

    def carry_out(command: list[str]) -> str:
        code, out, err = shop.world.call(*command)
        assert code == 0, out + err
        return out

    assert json.loads(carry_out(start))["notes"] == [f"the alias {mine} goes along with the switch"]
    carry_out(start)  # again, as after a kill
    assert [line["phase"] for line in shop.lines()] == ["stopped", "stopped"]
    assert shop.rebuild("switch", "--unverified") == (7, [NO_RUN])
    assert run == ["run", "products-2.yaml"]
    with running(shop) as process:
        carry_out([*start, "--wait"])
        carry_out(status)
        assert "products (live)" in shop.world.call(*status, "--human")[1]
        assert shop.rebuild("switch") == (7, ["the copy was not verified; run: replicator verify CONFIG"])
        carry_out(verify)
        assert (shop.pointed(shop.alias), shop.pointed(mine)) == ([shop.old], [shop.old])
        carry_out(switch)
        assert json.loads(carry_out(switch))["already"] is True
        assert (shop.pointed(shop.alias), shop.pointed(mine)) == ([shop.new], [shop.new])
        assert shop.search.ask("GET", f"/_alias/{mine}")[shop.new]["aliases"][mine] == own
        live, other = shop.lines()
        assert (live["live_copy"], live["pipeline"], live["verified"]["differences"]) == (True, "products-2", 0)
        assert (other["live_copy"], other["pipeline"]) == (False, "products")
        for step in ("start", "cancel"):
            code, (text,) = shop.rebuild(step)
            assert (code, text.partition(":")[0]) == (2, "the new tables are live")
        shop.put("more 0", 0)
        await_that(lambda: shop.documents(shop.old) == documents("old", 1, 1), process)
        await_that(shop.live, process)
        carry_out(rollback)
        assert json.loads(carry_out(rollback))["already"] is True
        assert (shop.pointed(shop.alias), shop.pointed(mine)) == ([shop.old], [shop.old])
        code, (text,) = shop.rebuild("finish")
        assert (code, text.partition(". ")[0]) == (2, "the new tables are not live, so the old ones are not removed")
        carry_out(switch)
        with ends(resolved(load(shop.config))) as (_, checkpoints):
            lost = [("gap", "lost", Gap("trimmed", 1.0, 1024)), ("repair", "", Repair("token"))]
            checkpoints.save([Save(kind, id, 0, encode(value)) for kind, id, value in lost])
            assert shop.rebuild("finish") == (
                3,
                [
                    "records were lost: trimmed; repair the copy with: replicator resync CONFIG",
                    "a verify --repair of these tables is in progress; wait for its end",
                ],
            )
            checkpoints.save([Save(kind, id, 1, None) for kind, id, _ in lost])
        kept = f"{shop.alias}-kept"
        shop.search.ask("PUT", f"/{shop.old}/_alias/{kept}")
        code, (text,) = shop.rebuild("finish")
        assert (code, f"{shop.old} is still read through the alias {kept}" in text) == (2, True)
        shop.search.ask("DELETE", f"/{shop.old}/_alias/{kept}")
        for command in (("verify", "--repair"), ("resync",)):  # of the old copy, which readers do not see
            carry_out([command[0], shop.replaced, *command[1:]])
        code, text, _ = shop.world.call("check", shop.replaced, "--human")  # a run refuses it
        (failure,) = [line for line in text.splitlines() if line.startswith("FAIL")]
        assert (code, f"pipeline: the alias {shop.alias} points to {shop.new}" in failure) == (2, True)
        await_that(lambda: [line["resync_requested"] for line in shop.lines()] == [None, None], process)
        await_that(shop.live, process)
        carry_out(rollback)
        carry_out(switch)
        notes = json.loads(carry_out(finish))["notes"]
        assert notes == [f"the checkpoints of products are emptied (the file {shop.world.folder}/products.checkpoints)"]
        assert json.loads(carry_out(finish))["already"] is True
        shop.put("more 1", 1)
        await_that(lambda: shop.documents(shop.new) == documents("new", 10, 2), process)
    assert shop.search.indices() == [shop.new]
    (left,) = shop.lines()
    assert left["pipeline"] == "products-2"
    shop.change(shop.config, "replaces: products.yaml\n", "")
    code, _, err = shop.world.shell.run("run", shop.config, "--until", "caught-up")
    assert code == 0, err
    code, _, err = shop.world.shell.run("run", shop.replaced, "--until", "caught-up")  # which should be deleted
    assert (code, f"the alias {shop.alias} points to {shop.new}; it must point to {shop.old} only" in err) == (2, True)


def test_a_rebuild_that_is_canceled_leaves_the_old_copy_as_it_was_and_a_run_follows_it(shop: Shop) -> None:
    shop.done("start")
    with running(shop) as process:
        await_that(shop.live, process)
        with ends(load(shop.replaced)) as (_, checkpoints):
            note = Verified(started=time.time(), updated=time.time(), epoch=1024, scope="full", total=4)
            checkpoints.save(
                [Save("verified", "pass", 0, encode(note)), Save("repair", "", 0, encode(Repair("token")))]
            )
            assert shop.rebuild("switch", "--unverified") == (
                7,
                [
                    "a verify --repair of these tables is in progress; wait for its end",
                    "a verify pass is in progress; wait for its end",
                ],
            )
            checkpoints.save([Save("verified", "pass", 1, None), Save("repair", "", 1, None)])
        shop.done("cancel")
        shop.done("cancel")
        shop.put("more 0", 0)
        await_that(lambda: shop.documents(shop.alias) == documents("old", 1, 1), process)
        assert shop.search.indices() == [shop.old]
        assert shop.rebuild("switch") == (2, [NONE_IN_PROGRESS])
        (left,) = shop.lines()
        assert left["pipeline"] == "products"
        code, _, err = shop.world.call("verify", shop.config)
        assert code == 2
        assert "the rebuild was canceled, so there is no copy with this config: use products.yaml" in err
        code, out, _ = shop.world.call("check", shop.config, "--human")  # a run follows the old copy
        assert (code, "the rebuild was canceled: run follows the copy of products.yaml alone" in out) == (0, True), out
        (shop.world.folder / "hooks_2.py").write_text(NEW.replace("* 10", "* 100"))
        await_that(lambda: shop.rebuild("start") == (0, []), process)  # not while the new pipeline still runs
    assert shop.lines()[1]["resync_requested"] is not None
    code, _, err = shop.world.shell.run("run", shop.config, "--until", "caught-up")
    assert (code, shop.documents(shop.new)) == (0, documents("new", 100, 1)), err
    shop.done("cancel")
    code, _, err = shop.world.shell.run("run", shop.replaced, "--until", "caught-up")
    assert code == 0, err


def test_before_start_no_command_touches_what_readers_see_and_start_needs_the_config_that_made_it(shop: Shop) -> None:
    code, out, _ = shop.world.shell.run("run", shop.config, "--until", "caught-up", "--json")
    assert (code, f"the alias {shop.alias} points to {shop.old}; it must point to {shop.new} only" in out) == (2, True)
    assert "switch at once: replicator rebuild start CONFIG" in out
    shop.world.db.create_table("others")
    old, hook = Path(shop.replaced), shop.world.folder / "hooks.py"
    text, code_text = old.read_text(), hook.read_text()
    refused = {
        "pipeline: products\n": ("pipeline: products-2\n", "pipeline: products.yaml has the same name, products-2"),
        "table: products\n": ("table: others\n", "source: the new config must read the same table as the one that"),
    }
    for given, (changed, sentence) in refused.items():
        old.write_text(text.replace(given, changed))
        code, (why, *_) = shop.rebuild("start")
        assert (code, why[: len(sentence)]) == (2, sentence)
    old.write_text(text)
    hook.write_text(NEW)
    assert shop.rebuild("start")[1][0].startswith("transform: the hook changed since the last run")
    hook.write_text(code_text)
    shop.change(shop.config, shop.new, shop.old)
    code, (why, *_) = shop.rebuild("start")
    assert (code, f"{shop.alias}: both copies would have the index {shop.old}: give the new one" in why) == (2, True)
    shop.change(shop.config, shop.old, shop.new)
    shop.search.ask("PUT", f"/{shop.new}")
    code, (why, *_) = shop.rebuild("start")
    assert (code, f"{shop.new} exists already, and a rebuild would create it" in why) == (2, True)
    shop.search.ask("DELETE", f"/{shop.new}")
    shop.done("start")  # although a run of the new config came first
    shop.change(shop.config, "replaces: products.yaml\n", "")
    code, (why,) = shop.rebuild("start")
    assert (code, why.partition(". ")[0]) == (2, "replaces: is missing")
    assert (shop.search.indices(), shop.pointed(shop.alias)) == ([shop.old], [shop.old])


def test_a_config_that_another_one_replaces_is_not_run_beside_it(shop: Shop) -> None:
    shop.done("start")
    for order in ((shop.replaced, shop.config), (shop.config, shop.replaced)):
        code, out, _ = shop.world.shell.run("run", *order, "--until", "caught-up", "--json")
        assert code == 2
        assert f"{shop.replaced}: {shop.config} replaces it and runs both copies during a rebuild; leave it out" in out
    assert shop.documents(shop.new) == documents("new", 10)
