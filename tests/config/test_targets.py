"""Several targets in one config: what it is expanded into, and every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from replicator.config import settings as config
from replicator.config.engine import Lambda
from replicator.config.settings import Config
from replicator.config.targets import OF_A_TARGET, SHARED, TargetSections, expanded
from replicator.config.yaml_file import Problem
from replicator.errors import ConfigError
from tests.config.test_config import Write, problems, write

assert write  # the fixture

BOTH = """\
pipeline: orders
source:
  table: orders
  region: eu-west-1
transform: hooks.py:order
parked_limit: 7
targets:
  search:
    type: elasticsearch
    url: https://search:9200
    table: orders
    transform: hooks.py:product
    on_gap: resync
    checkpoints: {path: search.db}
  warehouse:
    type: postgres
    url: postgresql://me@127.0.0.1:5432/shop
    tables:
      orders: {columns: {total: numeric}}
"""


TOP = "pipeline: p\nsource: {table: orders, region: eu-west-1}\n"


def loaded(path: Path, **more: Any) -> Mapping[str | None, Config]:
    return {one.target_name: one for one in config.load_each(path, {}, **more)}


class TestExpansion:
    def test_each_target_gets_the_sections_that_a_config_for_it_alone_would_have(self) -> None:
        top = {"pipeline": "p", "source": {"table": "t"}, "backfill": {"segments": 2}, "transform": "h.py:f"}
        one = {"type": "redis", "url": "u", "table": "a"}
        two = {"type": "postgres", "table": "b", "transform": None, "backfill": {"segments": 9}}

        assert expanded({**top, "targets": {"one": one, "two": two}}) == (
            [
                TargetSections("one", {**top, "pipeline": "p.one", "target": one}),
                TargetSections(
                    "two",
                    {
                        **top,
                        "pipeline": "p.two",
                        "transform": None,
                        "backfill": {"segments": 9},
                        "target": {"type": "postgres", "table": "b"},
                    },
                    frozenset({"transform", "backfill"}),
                ),
            ],
            [],
        )

    def test_a_config_with_one_target_is_as_it_is(self) -> None:
        values = {"pipeline": "p", "target": {"type": "postgres"}}
        assert expanded(values) == ([TargetSections(None, values)], [])

    def test_a_target_may_name_its_pipeline(self) -> None:
        (one, two), _ = expanded({"pipeline": "p", "targets": {"a": {"pipeline": "p"}, "b": {}}})
        assert (one.values["pipeline"], two.values["pipeline"]) == ("p", "p.b")

    def test_a_problem_is_where_the_file_has_the_value(self) -> None:
        one = TargetSections("a", {}, frozenset({"backfill"}))
        places = [("target", "url"), ("target",), ("backfill", "segments"), ("source", "table"), ()]
        assert [one.place(place) for place in places] == [
            ("targets", "a", "url"),
            ("targets", "a"),
            ("targets", "a", "backfill", "segments"),
            ("source", "table"),
            (),
        ]
        assert one.consequence(Problem(("on_gap",), "no")) == Problem(("on_gap",), "for the target a: no")
        assert one.consequence(Problem(("backfill",), "no")) == Problem(("targets", "a", "backfill"), "no")

    def test_every_section_is_a_targets_or_shared(self) -> None:
        of_the_file = {"target", "targets"}
        assert {*OF_A_TARGET, *SHARED, *of_the_file} == set(config.Sections.model_fields)


def test_what_a_target_does_not_set_for_itself_is_as_at_the_top_level(write: Write) -> None:
    found = loaded(write(BOTH))

    search, warehouse = found["search"], found["warehouse"]
    assert (search.pipeline, warehouse.pipeline) == ("orders.search", "orders.warehouse")
    assert (search.target.type, warehouse.target.type) == ("elasticsearch", "postgres")
    assert (search.transform, warehouse.transform) == ("hooks.py:product", "hooks.py:order")
    assert (search.on_gap, warehouse.on_gap) == ("resync", "stop")
    assert (search.parked_limit, warehouse.parked_limit) == (7, 7)
    assert (dict(search.target.tables), dict(warehouse.target.tables)) == (
        {"orders": {}},
        {"orders": {"columns": {"total": "numeric"}}},
    )
    assert search.source == warehouse.source
    assert (search.checkpoints is None, warehouse.checkpoints is None) == (False, True)


def test_checkpoints_at_the_top_level_are_for_the_targets_that_do_not_store_them(write: Write) -> None:
    text = BOTH.replace("    checkpoints: {path: search.db}\n", "") + "checkpoints: {type: dynamodb, table: places}\n"
    found = loaded(write(text))

    assert (found["search"].checkpoints is None, found["warehouse"].checkpoints) == (False, None)


def test_one_target_is_chosen_by_name(write: Write) -> None:
    path = write(BOTH)

    assert config.load(path, {}, target="warehouse").target_name == "warehouse"
    assert list(loaded(path, target="search")) == ["search"]
    (one, _) = config.load_offline(path, {}, target="search")
    assert one.pipeline == "orders.search"


def test_the_only_one_of_targets_needs_no_name(write: Write) -> None:
    text = BOTH[: BOTH.index("  warehouse:")]
    assert config.load(write(text), {}).pipeline == "orders.search"


@pytest.mark.parametrize(
    ("text", "target", "problem"),
    [
        (BOTH, None, "orders.yaml has several targets: choose one, --target NAME, of search, warehouse"),
        (BOTH, "serach", "--target: orders.yaml has no target serach; did you mean search?"),
        (BOTH, "cache", "--target: orders.yaml has no target cache; expected one of: search, warehouse"),
        (
            BOTH.replace("targets:\n  search:", "target:").partition("  warehouse:")[0].replace("    ", "  "),
            "search",
            "--target: orders.yaml has one target, which has no name (target:); leave out --target",
        ),
    ],
)
def test_a_target_that_is_not_clear_is_asked_for(write: Write, text: str, target: str | None, problem: str) -> None:
    text = text.replace("  on_gap: resync\n  checkpoints: {path: search.db}\n", "")
    if target is not None and "targets" not in text:
        text = text.replace("  transform: hooks.py:product\n", "")
    with pytest.raises(ConfigError) as caught:
        config.load(write(text), {}, target=target)
    assert list(caught.value.problems) == [problem]


SEARCH = BOTH[BOTH.index("  search:") : BOTH.index("  warehouse:")]
WAREHOUSE = BOTH[BOTH.index("  warehouse:") :]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ((SEARCH + WAREHOUSE, "  {}\n"), "7: targets: must be a mapping from names of targets"),
        ((SEARCH + WAREHOUSE, "  [a]\n"), "7: targets: must be a mapping"),
        (("targets:\n" + SEARCH + WAREHOUSE, ""), "1: target: is missing: it says where documents are"),
        (("targets:\n" + SEARCH + WAREHOUSE, "target:\n"), "7: target: is missing: it says where"),
        (
            ("targets:\n", "target: {type: redis, url: redis://127.0.0.1, table: t}\ntargets:\n"),
            "8: targets: the config has both target and targets",
        ),
        (("  search:", "  sea.rch:"), "8: targets.sea.rch: must be 1 to 32 letters, digits, _ or -"),
        (("  search:", f"  {'s' * 33}:"), f"8: targets.{'s' * 33}: must be 1 to 32 letters"),
        (("  search:", "  '':"), "8: targets.: must be 1 to 32 letters"),
        ((SEARCH, "  search: postgres\n"), "8: targets.search: must be a mapping (name: value, one per line)"),
        (("type: elasticsearch", "type: elastisearch"), "9: targets.search.type: unknown target type; did"),
        (("    type: elasticsearch\n", ""), "8: targets.search.type: is missing; expected one of: "),
        (
            ("transform: hooks.py:product", "tranform: hooks.py:product"),
            "12: targets.search.tranform: unknown key; did you",
        ),
        (("    table: orders\n", "    table: orders\n    tabels: {}\n"), "12: targets.search.tabels: unknown key; did"),
        (("on_gap: resync", "on_gap: rsync"), "13: targets.search.on_gap: must be one of stop, resync, export; did"),
        (("on_gap: resync", "source: {}"), "13: targets.search.source: is the same for all targets; move it"),
        (("on_gap: resync", "engine: {}"), "13: targets.search.engine: is the same for all targets; move it"),
        (("{total: numeric}", "{total: nmeric}"), "19: targets.warehouse.tables.orders.columns.total: "),
        (("parked_limit: 7", "parked_limit: -7"), "6: parked_limit: must be at least 0"),
        (("parked_limit: 7", "parked: 7"), "6: parked: unknown key; did you mean parked_limit?"),
        (("pipeline: orders", "pipeline: or ders"), "1: pipeline: must be 1 to 63 letters, digits, _ . or -"),
        (("pipeline: orders\n", ""), "1: pipeline: is missing"),
        (
            ("pipeline: orders", f"pipeline: {'o' * 54}"),
            f"15: targets.warehouse: its pipeline would be named {'o' * 54}.warehouse, and 63 letters are the most",
        ),
        (
            ("on_gap: resync", "pipeline: orders.warehouse"),
            "15: targets.warehouse: its pipeline is named orders.warehouse, like that of the target search",
        ),
        (("on_gap: resync", "pipeline: .search"), "13: targets.search.pipeline: must be 1 to 63 letters"),
        (("parked_limit: 7", "engine: {type: lambda}"), "14: targets.search.checkpoints: a file is on one"),
        (
            (SEARCH, WAREHOUSE.replace("  warehouse:", "  copy:")),
            "13: targets.warehouse: the target copy has the table orders in the same place; each needs its own",
        ),
        (
            (WAREHOUSE, SEARCH.replace("  search:", "  copy:").replace("table: orders", "table: copy")),
            "21: targets.copy.checkpoints: the target search keeps its checkpoints in the same file",
        ),
        (
            ("on_gap: resync", "replaces: ../" + "{folder}/orders.yaml"),
            "13: targets.search.replaces: is this file itself; keep the old config as another file",
        ),
        (
            (WAREHOUSE, f"{WAREHOUSE}    checkpoints: {{}}\n"),
            "20: targets.warehouse.checkpoints: this target stores checkpoints itself",
        ),
    ],
)
def test_every_mistake_is_named_where_it_is(write: Write, change: tuple[str, str], problem: str) -> None:
    assert change[0] in BOTH

    path = write(BOTH)
    path.write_text(BOTH.replace(*change).replace("{folder}", path.parent.name))
    found = problems_of(path)

    assert any(text.startswith(f"orders.yaml:{problem}") for text in found), found
    assert len(found) == 1 or "lambda" in change[1], found


ES, OS = "type: elasticsearch", "type: opensearch"
PG = "type: postgres, url: 'postgresql://u@{}', table: t"
AWS = "type: dynamodb, table: copy, region: eu-west-1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PG.format("127.0.0.1:5432/shop"), PG.format("localhost/shop") + ", schema: public"),
        (PG.format("db.example/shop?sslmode=verify-full"), PG.format("DB.example.:5432/shop?sslmode=verify-full")),
        (PG.format("localhost/shop"), PG.format("localhost/shop?application_name=b") + ", timeout: 5"),
        (PG.format("localhost,127.0.0.2/shop"), PG.format("[::1]:5432/shop")),
        (PG.format("localhost/shop"), PG.replace("u@{}", "other:secret@127.0.0.1:5432/shop")),
        (f"{ES}, url: 'https://search', table: t", f"{ES}, url: 'https://SEARCH:443/', table: t"),
        (f"{ES}, url: ['https://a:9200', 'https://b:9200'], table: t", f"{OS}, url: 'https://b:9200', table: t"),
        (
            f"{ES}, url: 'https://a', tables: {{t: {{index: i}}}}",
            f"{ES}, url: 'https://a', tables: {{s: {{index: i}}}}",
        ),
        (f"{ES}, url: 'https://a', table: t", f"{ES}, url: 'https://a', tables: {{t: {{index: i}}}}"),
        ("type: redis, url: 'redis://127.0.0.1', table: t", "type: redis, url: 'redis://localhost:6379/0', table: t"),
        (
            "type: redis, url: 'redis://127.0.0.1', table: t",
            "type: redis, url: 'redis://127.0.0.1', tables: {s: {prefix: 't:'}}",
        ),
        (
            "type: redis, url: 'rediss+sentinel://a,b:1/main', table: t",
            "type: redis, url: 'rediss+sentinel://c,A:26379/main/0', table: t",
        ),
        (AWS, f"{AWS}, epochs_table: others"),
        ("type: delta, path: lake, table: t", "type: delta, path: ./here/../lake/, table: t, keep_days: 1"),
        ("type: delta, path: 's3://a/b', table: t", "type: delta, path: 's3://a/b/', table: t, region: eu-west-1"),
        (
            f"{AWS}, endpoint_url: 'http://127.0.0.1:8000'",
            f"{AWS}, endpoint_url: 'http://localhost:8000/', create: true",
        ),
        (
            f"{AWS}, role_arn: 'arn:aws:iam::123456789012:role/a'",
            f"{AWS}, role_arn: 'arn:aws:iam::123456789012:role/b'",
        ),
    ],
)
def test_two_targets_in_one_place_are_refused_however_it_is_spelled(write: Write, one: str, other: str) -> None:
    (problem,) = problems_of(write(f"{TOP}targets:\n  a: {{{one}}}\n  b: {{{other}}}\n"))
    assert ": targets.b: the target a has the table " in problem
    assert "in the same place; each needs its own" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("url: 'redis://localhost', table: t", "url: 'redis://127.0.0.1', tables: {s: {prefix: 't:a'}}"),
        ("url: 'redis://localhost', tables: {s: {prefix: 't:a'}}", "url: 'redis://127.0.0.1', table: t"),
        (
            "url: 'redis+cluster://127.0.0.1:1', table: t",
            "url: 'redis+cluster://[::1]:2,localhost:1', tables: {s: {prefix: 't:a'}}",
        ),
    ],
)
def test_prefixes_of_two_targets_that_begin_alike_are_refused(write: Write, one: str, other: str) -> None:
    """As a run does when both have opened; and so does check."""
    (problem,) = problems_of(write(f"{TOP}targets:\n  a: {{type: redis, {one}}}\n  b: {{type: redis, {other}}}\n"))
    assert ": targets.b: the target a and the table " in problem
    assert " overlap: keys that begin with t:a begin with t:, too; set another prefix under tables" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("path: lake, table: t", "path: ./here/../lake/t, table: u"),
        ("path: lake/t/u, table: v", "path: lake, table: t"),
        ("path: 's3://a/lake', table: t", "path: 's3://a/lake/t', table: u, region: eu-west-1"),
    ],
)
def test_a_delta_table_inside_that_of_another_target_is_refused(write: Write, one: str, other: str) -> None:
    """The outer table's upkeep would remove the files of the inner one."""
    (problem,) = problems_of(write(f"{TOP}targets:\n  a: {{type: delta, {one}}}\n  b: {{type: delta, {other}}}\n"))
    assert ": targets.b: the target a and the table " in problem
    assert "lake/t, whose upkeep removes files of others; set another path" in problem


HISTORY = "type: postgres, url: 'postgresql://u@localhost/shop', tables: {orders: {history: true}}"
BESIDE = HISTORY.replace("orders: {history: true}", "orders_history: {}")


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (HISTORY, BESIDE, "orders_history"),
        (BESIDE.replace("localhost", "127.0.0.1"), HISTORY, "orders_history"),
        (HISTORY, BESIDE.replace("orders_history", "orders_history_base"), "orders_history_base"),
        (HISTORY, HISTORY.replace("orders:", "orders_history:"), "orders_history"),
    ],
)
def test_a_table_with_the_name_of_the_history_of_another_targets_table_is_refused(
    write: Write, one: str, other: str, name: str
) -> None:
    """Else the one that opens first would get the name, and the other one could never run."""
    (problem,) = problems_of(write(f"{TOP}targets:\n  a: {{{one}}}\n  b: {{{other}}}\n"))
    assert ": targets.b: the target a and the table " in problem
    assert f" overlap: {name} has the name of a table of a history; rename one of the two tables" in problem


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HISTORY, BESIDE.replace("tables", "schema: other, tables")),
        (HISTORY, BESIDE.replace("shop", "stock")),
        (HISTORY.replace("true", "false"), BESIDE),
        (PG.format("localhost/shop"), PG.format("localhost/shop") + ", schema: other"),
        (PG.format("localhost/shop"), PG.format("localhost:5433/shop")),
        (PG.format("localhost/shop"), PG.format("localhost/stock")),
        (f"{ES}, url: 'https://a', table: t", f"{ES}, url: 'https://a:9200', table: t"),
        (f"{ES}, url: 'https://a/one', table: t", f"{ES}, url: 'https://a/two', table: t"),
        ("type: redis, url: 'redis://localhost/0', table: t", "type: redis, url: 'redis://localhost/1', table: t"),
        (
            "type: redis, url: 'rediss+sentinel://a/main', table: t",
            "type: redis, url: 'rediss+sentinel://a/other', table: t",
        ),
        (AWS, AWS.replace("eu-west-1", "eu-west-2")),
        (AWS, f"{AWS}, profile: other"),
        ("type: delta, path: lake, table: t", "type: delta, path: lake/tt, table: t"),
        ("type: delta, path: 's3://a/b', table: t", "type: delta, path: 's3://a/c/b', table: t"),
        (
            f"{AWS}, role_arn: 'arn:aws:iam::123456789012:role/a'",
            f"{AWS}, role_arn: 'arn:aws:iam::210987654321:role/a'",
        ),
    ],
)
def test_two_targets_in_different_places_may_have_tables_of_one_name(write: Write, one: str, other: str) -> None:
    config.load_each(write(f"{TOP}targets:\n  a: {{{one}}}\n  b: {{{other}}}\n"), {})


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("backfill", "{segments: 9}"),
        ("parked_limit", "7"),
        ("on_gap", "resync"),
        ("ttl_deletes", "ignore"),
        ("transform", "'hooks.py:order'"),
        ("hook_timeout", "3"),
        ("verify", "{}"),
        ("monitoring", "{listen: '127.0.0.1:9464'}"),
        ("pipeline", "other"),
    ],
)
def test_null_takes_away_what_the_top_level_says(write: Write, section: str, value: str) -> None:
    top = TOP.replace("pipeline: p\n", "") if section == "pipeline" else TOP
    text = f"{top}{section}: {value}\ntargets:\n  a: {{{PG.format('localhost/shop')}, {section}: null}}\n"
    (one,) = config.load_each(write(text), {})
    (alone,) = config.load_each(write(f"{TOP}target: {{{PG.format('localhost/shop')}}}\n"), {})

    expected = {"pipeline": "other.a", "hook_timeout": None}.get(section, getattr(alone, section))
    assert getattr(one, section) == expected
    jsonschema.validate(yaml.safe_load(text), config.schema())


def problems_of(path: Path, **more: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load_each(path, {}, **more)
    return list(caught.value.problems)


def behind_lambda(function: str | None, first: str = "copy") -> str:
    copy = WAREHOUSE.replace("warehouse:", f"{first}:").replace("orders:", "copies:")
    more = "" if function is None else f", function: '{function}'"
    return BOTH.replace(SEARCH, copy) + f"engine: {{type: lambda{more}}}\n"


def test_each_target_behind_lambda_has_a_function_whose_name_has_the_targets(write: Write) -> None:
    engines = {name: one.engine for name, one in loaded(write(behind_lambda("orders-{target}"))).items()}
    assert engines == {"copy": Lambda(function="orders-copy"), "warehouse": Lambda(function="orders-warehouse")}
    assert [one.engine for one in loaded(write(behind_lambda(None))).values()] == [Lambda(), Lambda()]
    (alone,) = config.load_each(write(behind_lambda("orders-{target}")), {}, target="copy")
    assert alone.engine == Lambda(function="orders-copy")


@pytest.mark.parametrize(
    ("function", "name", "said"),
    [
        ("orders", "copy", "each target has a function of its own: add its name, such as orders-{target}"),
        (
            "orders-of-the-shop-of-the-company-{target}",
            "c" * 32,
            f"orders-of-the-shop-of-the-company-{'c' * 32} has 66 characters; a function's name has at most 64",
        ),
        ("orders.{target}", "copy", "must be the name of a function: 1 to 64 letters, digits, _ or -"),
    ],
)
def test_a_function_that_targets_cannot_have_is_a_problem(write: Write, function: str, name: str, said: str) -> None:
    (problem,) = problems_of(write(behind_lambda(function, name)))
    assert problem.endswith(f"engine.function: {said}")


def test_the_place_of_a_name_in_that_of_a_function_needs_targets(write: Write) -> None:
    text = f"{TOP}target: {{{PG.format('localhost/shop')}}}\nengine: {{type: lambda, function: 'orders-{{target}}'}}\n"
    (problem,) = problems_of(write(text))
    assert "{target} stands for the name of one of several targets, and this config has one" in problem


def test_the_only_one_of_the_targets_may_have_a_function_of_any_name(write: Write) -> None:
    text = BOTH.replace(SEARCH, "") + "engine: {type: lambda, function: orders-copy}\n"
    assert loaded(write(text))["warehouse"].engine == Lambda(function="orders-copy")


def test_a_section_of_all_targets_that_one_cannot_have_is_a_problem_of_that_one(write: Write) -> None:
    webhook = "type: webhook\n    url: https://a.example\n    secret: whsec_c3RhbmQtaW4tc3RhbmQtaW4tc3RhbmQtaW4="
    text = BOTH.replace("type: elasticsearch\n    url: https://search:9200", webhook)
    (problem,) = problems(write(text + "verify: {}\n"))
    assert problem.startswith("orders.yaml:21: verify: for the target search: ")
    assert loaded(write(text.replace("on_gap: resync", "verify: null") + "verify: {}\n"))["search"].verify is None


def test_with_a_target_chosen_the_mistakes_of_others_do_not_matter(write: Write) -> None:
    text = BOTH.replace("me@127", "${UNSET_USER}@127").replace("total: numeric", "total: nmeric")
    path = write(text)

    assert loaded(path, target="search")["search"].pipeline == "orders.search"
    assert config.load_each_offline(path, {}, target="search")[1] == []
    assert len(problems_of(path)) == 2
    assert len(problems_of(path, target="warehouse")) == 2


def test_offline_targets_that_differ_by_variables_without_values_are_all_looked_at(write: Write) -> None:
    """What stands in for a value is the same for both: that says nothing of their places."""
    text = BOTH[: BOTH.index("targets:")].replace("transform: hooks.py:order\n", "")
    one = "  {}: {{type: dynamodb, region: '${{{}}}', table: products}}\n"
    path = write(text + "targets:\n" + one.format("a", "REGION_A") + one.format("b", "REGION_B"))
    found, notes = config.load_each_offline(path, {})
    assert [each.target_name for each in found] == ["a", "b"]
    assert {getattr(each.target.options, "region", None) for each in found} == {config.STAND_IN}
    assert len(notes) == 2
    with pytest.raises(ConfigError, match="has the table products in the same place"):
        config.load_each(path, {"REGION_A": "eu-west-1", "REGION_B": "eu-west-1"})


def test_the_json_schema_allows_what_is_right_and_names_what_is_not(write: Write) -> None:
    schema = config.schema()
    values = yaml.safe_load(BOTH)
    jsonschema.validate(values, schema)

    def valid(**changes: Any) -> bool:
        changed = {name: value for name, value in {**values, **changes}.items() if value is not None}
        return jsonschema.Draft202012Validator(schema).is_valid(changed)

    one = values["targets"]["search"]
    assert valid(targets={"search": one})
    assert not valid(targets={})
    assert not valid(targets={"a.b": one})
    assert not valid(targets={"search": {**one, "source": {"table": "t"}}})
    assert not valid(target={"type": "postgres", "url": "postgresql://x", "table": "t"})
    assert not valid(targets=None)
