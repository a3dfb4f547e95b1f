"""The config: every mistake is named, with its line and path and what to do; nothing else ever comes out."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replicator.checkpoints.dynamodb.layout import MOST_HEADS
from replicator.config import settings as config
from replicator.config.engine import Lambda, Local, Ray
from replicator.config.target import destination
from replicator.errors import ConfigError

EXPORT = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/export/01-ab"
RIGHT = """\
pipeline: orders
source:
  table: orders
  region: eu-west-1
target:
  type: postgres
  url: postgresql://me@127.0.0.1:5432/shop
  table: orders
"""

POSTGRES = "type: postgres\n  url: postgresql://me@127.0.0.1:5432/shop"
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "orders.yaml"
        path.write_text(text)
        return path

    return written


def problems(path: Path, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(path, environ)
    return list(caught.value.problems)


def test_ten_lines_are_enough(write: Write) -> None:
    loaded = config.load(write(RIGHT), {})

    assert (loaded.pipeline, loaded.source.table, loaded.target.type) == ("orders", "orders", "postgres")
    assert dict(loaded.target.tables) == {"orders": {}}
    assert (loaded.backfill.enabled, loaded.backfill.segments, loaded.backfill.read_units) == (True, 4, None)
    assert (loaded.on_gap, loaded.ttl_deletes, loaded.parked_limit, loaded.transform) == ("stop", "apply", 10_000, None)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("100ms", 0.1), ("50 ms", 0.05), ("1.5s", 1.5), ("10s", 10.0), ("0.2", 0.2), ('"${P}"', 0.25)],
)
def test_a_poll_interval_is_a_duration_or_a_number_of_seconds(write: Write, given: str, seconds: float) -> None:
    path = write(RIGHT.replace("  region: eu-west-1\n", f"  region: eu-west-1\n  poll_interval: {given}\n"))

    assert config.load(path, {"P": "250ms"}).source.poll_interval == seconds


@pytest.mark.parametrize("given", ["49ms", "11s", "1m", "fast", "-1", "0", ".nan", "[1]"])
def test_another_poll_interval_is_a_mistake(write: Write, given: str) -> None:
    path = write(RIGHT.replace("  region: eu-west-1\n", f"  region: eu-west-1\n  poll_interval: {given}\n"))

    (problem,) = problems(path)
    assert problem.startswith("orders.yaml:5: source.poll_interval: must be ")


@pytest.mark.parametrize(
    ("given", "every", "units"),
    [
        ("{}", 86_400.0, 50.0),
        ("{every: 12h, read_units: 5}", 43_200.0, 5.0),
        ("{every: 7d}", 604_800.0, 50.0),
        ("{every: 90 m}", 5400.0, 50.0),
        ("{every: 60}", 60.0, 50.0),
        ('{every: "${P}"}', 250.0, 50.0),
    ],
)
def test_the_time_between_verification_passes_is_a_duration(
    write: Write, given: str, every: float, units: float
) -> None:
    verify = config.load(write(f"{RIGHT}verify: {given}\n"), {"P": "250s"}).verify

    assert verify is not None
    assert (verify.every, verify.read_units) == (every, units)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("{every: 59s}", "verify.every: must be from 1m to 366d"),
        ("{every: 400d}", "verify.every: must be from 1m to 366d"),
        ("{every: daily}", "verify.every: must be a duration such as 12h, 24h or 7d"),
        ("{read_units: 4}", "verify.read_units: must be at least 5"),
        ("{often: 1h}", "verify.often: unknown key"),
    ],
)
def test_other_verification_options_are_a_mistake(write: Write, given: str, problem: str) -> None:
    assert [text.partition(problem)[1] for text in problems(write(f"{RIGHT}verify: {given}\n"))] == [problem]


def test_a_loaded_config_cannot_be_changed(write: Write) -> None:
    loaded = config.load(write(RIGHT), {})

    with pytest.raises(Exception, match="frozen"):
        loaded.source.table = "other"
    with pytest.raises(AttributeError):
        loaded.pipeline = "other"  # type: ignore[misc]


def test_everything_can_be_set(write: Write) -> None:
    more = (
        "transform: shop.hooks:order\nbackfill: {enabled: false, segments: 1000000, read_units: 250.5}\n"
        "on_gap: stop\nttl_deletes: ignore\nparked_limit: 0\n"
    )
    text = RIGHT.replace("url: postgresql://me@127.0.0.1:5432/shop\n  table: orders", _TYPED) + more
    loaded = config.load(write(text), {})

    assert loaded.transform == "shop.hooks:order"
    assert (loaded.backfill.enabled, loaded.backfill.segments, loaded.backfill.read_units) == (False, 1_000_000, 250.5)
    assert (loaded.on_gap, loaded.ttl_deletes, loaded.parked_limit) == ("stop", "ignore", 0)
    assert set(loaded.target.tables) == {"orders", "lines"}
    assert loaded.target.tables["orders"]["columns"]["total"] == "numeric"


_TYPED = """url: postgresql://me@127.0.0.1:5432/shop
  nul: replace
  schema: shop
  tables:
    orders: {columns: {total: numeric, paid: {type: boolean, nullable: false}}}
    lines:"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pipeline: orders\n", ""), "orders.yaml:1: pipeline: is missing"),
        (("pipeline: orders", "pipeline: a/b"), "pipeline: must be 1 to 63 letters, digits, _ . or -"),
        (("pipeline: orders", "pipeline: 7"), "orders.yaml:1: pipeline: must be text; put it in quotes"),
        (("pipeline", "pipelin"), "orders.yaml:1: pipelin: unknown key; did you mean pipeline?"),
        (("source:", "sauce:"), "orders.yaml:2: sauce: unknown key; did you mean source?"),
        (("  table: orders\n  region", "  region"), "orders.yaml:2: source.table: is missing"),
        (("  table: orders\n  region", "  table: o\n  region"), "source.table: must be a DynamoDB table name"),
        (("region: eu", "regoin: eu"), "orders.yaml:4: source.regoin: unknown key; did you mean region?"),
        (("region: eu-west-1", "external_id: x"), "source.external_id: requires role_arn"),
        (("region: eu-west-1", "endpoint_url: host:1"), "source.endpoint_url: must have the form https://host"),
        (("region: eu-west-1", "endpoint_url: http://10.0.0.1:8000"), "so items would be sent unencrypted"),
        (("region: eu-west-1", "endpoint_url: 'http://[::1'"), "source.endpoint_url: must have the form"),
        (
            ("region: eu-west-1", "account_id_endpoint_mode: off"),
            "source.account_id_endpoint_mode: must be one of preferred, disabled, required",
        ),
        (("type: postgres", "type: postgers"), "target.type: unknown target type; did you mean postgres?"),
        (("  type: postgres\n", ""), "orders.yaml:5: target.type: is missing; expected one of: "),
        (("  url: postgresql://me@127.0.0.1:5432/shop\n", ""), "orders.yaml:5: target.url: is missing"),
        (("url: postgresql://me@127.0.0.1:5432/shop", "url: 'nonsense = ='"), "target.url: is not a Postgres address"),
        (("shop\n  table: orders", "shop"), "orders.yaml:5: target: needs table: NAME (or tables: {NAME: …})"),
        (("shop\n  table: orders", "shop\n  tabel: orders"), "target.tabel: unknown key; did you mean table?"),
        (("shop\n  table: orders", "shop\n  table: [x]"), "target.table: must be the name of a table"),
        (("shop\n  table: orders", "shop\n  table: x\n  tables: {y: }"), "target: has both table and tables; keep one"),
        (("shop\n  table: orders", "shop\n  tables: []"), "target.tables: must be a mapping from table names"),
        (
            ("shop\n  table: orders", "shop\n  tables:\n    orders:\n      columns:\n        total: numerik"),
            "orders.yaml:11: target.tables.orders.columns.total: must be one of text, numeric,",
        ),
        (
            ("shop\n  table: orders", "shop\n  tables: {orders: {deletes: keep}}"),
            "target.tables.orders.deletes: must be one of apply, mark",
        ),
        (
            ("shop\n  table: orders", "shop\n  tables: {orders: {colums: {}}}"),
            "orders.yaml:8: target.tables.orders.colums: unknown key; did you mean columns?",
        ),
        (
            ("shop\n  table: orders", "shop\n  tables: {orders: {columns: {a: {type: text, nulable: no}}}}"),
            "target.tables.orders.columns.a.nulable: unknown key; did you mean nullable?",
        ),
        (("target:", "target: 5\nx:"), "orders.yaml:5: target: must be a mapping (name: value, one per line)"),
        (("source:", "backfill: {segments: 0}\nsource:"), "backfill.segments: must be at least 1"),
        (("source:", "backfill: {segments: 1000001}\nsource:"), "backfill.segments: must be at most 1000000"),
        (("source:", "backfill: {segments: many}\nsource:"), "backfill.segments: must be a whole number"),
        (("source:", "backfill: {read_units: 0.5}\nsource:"), "backfill.read_units: must be at least 1"),
        (("source:", "backfill: {enabled: perhaps}\nsource:"), "backfill.enabled: must be true or false"),
        (("source:", "backfill: 8\nsource:"), "backfill: must be a mapping"),
        (("source:", "backfill: {from: export}\nsource:"), "backfill: bucket is required with from: export"),
        (("source:", "backfill: {from: s3}\nsource:"), "backfill.from: must be one of scan, export"),
        (("source:", "backfill: {bucket: abc}\nsource:"), "backfill.bucket: requires from: export"),
        (
            ("source:", "backfill: {kms_key: abc}\nsource:"),
            "backfill.kms_key: requires from: export, or on_gap: export",
        ),
        (("source:", "on_gap: export\nsource:"), "on_gap: export requires backfill.bucket"),
        (
            ("source:", f"on_gap: export\nbackfill: {{from: export, export: {EXPORT}}}\nsource:"),
            "on_gap: export requires backfill.bucket",
        ),
        (
            ("source:", "on_gap: export\nbackfill: {bucket: abc}\nttl_deletes: ignore\nsource:"),
            "ttl_deletes: ignore keeps expired items, and an export does not tell their removal from others",
        ),
        (
            ("source:", "on_gap: export\nbackfill: {bucket: abc}\nengine: {type: lambda}\nsource:"),
            "on_gap: export is read by one process only: use the engine local",
        ),
        (
            ("source:", "on_gap: export\nbackfill: {bucket: abc}\nengine: {type: ray}\nsource:"),
            "on_gap: export is read by one process only: use the engine local, or on_gap: resync",
        ),
        (
            ("source:", "backfill: {from: export, bucket: A}\nsource:"),
            "backfill.bucket: must be the name of an S3 bucket",
        ),
        (("source:", "backfill: {from: export, export: a}\nsource:"), "backfill.export: must be the ARN of an export"),
        (
            ("source:", f"backfill: {{from: export, bucket: abc, export: {EXPORT}}}\nsource:"),
            "backfill.bucket: is for a new export, but export: names an existing one; give one of the two",
        ),
        (
            ("source:", f"backfill: {{from: export, export: {EXPORT.replace('orders', 'others')}}}\nsource:"),
            "backfill.export: is an export of the table others in eu-west-1, and source.table is orders in eu-west-1",
        ),
        (
            ("source:", f"backfill: {{from: export, export: {EXPORT.replace('eu-west-1', 'us-east-1')}}}\nsource:"),
            "backfill.export: is an export of the table orders in us-east-1, and source.table is orders in eu-west-1",
        ),
        *(
            (
                ("source:", f"backfill: {{from: export, bucket: abc, prefix: '{prefix}'}}\nsource:"),
                "backfill.prefix: must be 1 to 512 letters, digits and",
            )
            for prefix in ("a/", "/a", "a//b", "a*", "a b", "")
        ),
        (
            ("source:", "backfill: {from: export, bucket: abc, bucket_owner: '1'}\nsource:"),
            "backfill.bucket_owner: must be an account number of 12 digits, in quotes",
        ),
        (
            ("source:", "backfill: {from: export, bucket: abc, read_units: 5}\nsource:"),
            "backfill.read_units: limits a scan; with from: export no read capacity is used",
        ),
        (
            ("source:", "backfill: {from: export, bucket: abc, enabled: false}\nsource:"),
            "backfill.enabled: must not be false with from: export",
        ),
        (
            ("source:", "backfill: {from: export, bucket: abc}\nengine: {type: lambda}\nsource:"),
            "backfill.from: with engine.type lambda, existing items are scanned: leave out from: export",
        ),
        (
            ("source:", "backfill: {from: export, bucket: abc}\nengine: {type: ray}\nsource:"),
            "backfill.from: export is read by one process only: use the engine local, or from: scan",
        ),
        (
            ("shop\n  table: orders", "shop\n  tables: {a: {history: {keep: 9d}}, b: {}}\nbackfill: {enabled: false}"),
            "orders.yaml:9: backfill.enabled: must not be false with a history (a), which begins with a scan of all",
        ),
        (("source:", "on_gap: stopp\nsource:"), "on_gap: must be one of stop, resync, export; did you mean stop?"),
        (("source:", "ttl_deletes: no\nsource:"), "ttl_deletes: must be one of apply, ignore"),
        (
            ("source:", "on_gap: resync\nttl_deletes: ignore\nsource:"),
            "ttl_deletes: ignore keeps expired items until a resync removes them, so on_gap: resync would remove them "
            "without asking",
        ),
        (("source:", "parked_limit: -1\nsource:"), "parked_limit: must be at least 0"),
        (("source:", "transform: hooks\nsource:"), "transform: must have the form hooks.py:function"),
        (("source:", "on: 1\nsource:"), "the key on line 2 is not a string in YAML; put it in quotes"),
        (("source:", "? [a]\n: 1\nsource:"), "the key on line 2 is not a string in YAML"),
        (("source:", "<<: {a: 1}\nsource:"), "YAML merge keys (<<, on line 2) are not supported; repeat the options"),
        (("source:", "pipeline: x\nsource:"), "orders.yaml:1: pipeline: duplicate key, on lines 1 and 2"),
        (("source:", "a: *x\nsource:"), "orders.yaml:2: YAML aliases (*name) are not supported"),
        (("source:", "a: {\nsource:"), "invalid YAML"),
        (
            ("source:", "a: !!python/name:os.system\nsource:"),
            "a value that starts with ! is a tag in YAML; put it in quotes",
        ),
        (
            ("source:", "a: 2024-99-99\nsource:"),
            "a value is not valid for the type YAML infers for it; put it in quotes",
        ),
        (("source:", "a: " + "[" * 60 + "]" * 60 + "\nsource:"), "is nested more than 40 levels deep"),
        (("eu-west-1", "${REGION}"), "orders.yaml:4: source.region: environment variable REGION is not set"),
        (("eu-west-1", "${file:region.txt}"), "cannot read file region.txt: No such file or directory"),
        (("eu-west-1", "${REGION:-eu}"), "contains a ${…} that is neither ${VARIABLE} nor ${file:path}"),
        (("eu-west-1", "'${REGION'"), "source.region: contains a ${ without a closing }"),
    ],
)
def test_a_mistake_is_named_with_its_place(write: Write, change: tuple[str, str], message: str) -> None:
    found = problems(write(RIGHT.replace(*change, 1)))
    assert any(message in p for p in found), found


def test_all_mistakes_come_at_once_in_the_order_of_the_file(write: Write) -> None:
    text = RIGHT.replace("orders\n", "o/o\n", 1).replace("eu-west-1", "${NONE}").replace("postgres\n", "sqlite\n")

    assert [p.split(": ")[1] for p in problems(write(text + "on_gap: x\n"))] == [
        "pipeline",
        "source.region",
        "target.type",
        "on_gap",
    ]


def test_a_missing_variable_is_one_problem_not_two(write: Write) -> None:
    assert len(problems(write(RIGHT + "parked_limit: ${LIMIT}\n"))) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == [f"config file {tmp_path / 'none.yaml'} not found"]
    assert problems(tmp_path) == [f"cannot read config file {tmp_path}: Is a directory"]


def test_a_file_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert problems(path) == [f"config file {path} is not UTF-8 text"]
    path.write_bytes(b"#" * (1 << 20) + b"\n")
    assert problems(path) == [f"cannot read config file {path}: it is larger than 1,048,576 bytes"]


def test_pipes_and_devices_are_rejected_at_once(write: Write, tmp_path: Path) -> None:
    """A pipe that nobody writes to would be waited for, and a device has no end."""
    os.mkfifo(tmp_path / "pipe")
    assert problems(tmp_path / "pipe")[0].endswith("pipe: it is not a regular file")
    assert problems(Path("/dev/zero")) == ["cannot read config file /dev/zero: it is not a regular file"]
    for name in ("pipe", "/dev/zero"):
        (problem,) = problems(write(RIGHT.replace("eu-west-1", f"${{file:{name}}}")))
        assert f"source.region: cannot read file {name}: it is not a regular file" in problem


def test_placeholders_cannot_make_a_config_grow_without_end(write: Write, tmp_path: Path) -> None:
    (tmp_path / "much").write_text("x" * 500_000)
    (problem,) = problems(write(RIGHT.replace("eu-west-1", "${file:much}" * 20_000)))
    assert "source.region: the values of all ${…} exceed 1,048,576 bytes" in problem


def test_half_a_million_levels_are_rejected_before_anything_is_built(write: Write) -> None:
    assert problems(write("a: " + "[" * 500_000)) == ["orders.yaml:1: is nested more than 40 levels deep"]


def test_an_endless_number_is_rejected_before_it_is_computed(write: Write) -> None:
    """YAML takes 1:1:1 for a number to the base of 60."""
    (problem,) = problems(write(RIGHT + "parked_limit: 1" + ":1" * 100_000 + "\n"))
    assert "parked_limit: is a number of more than 40 digits; if it is text, put it in quotes" in problem


@pytest.mark.parametrize("text", ["", "just text", "[1, 2]", "# nothing"])
def test_a_file_that_is_not_a_mapping_shows_how_a_config_starts(write: Write, text: str) -> None:
    assert "a config must be a mapping that starts like this" in problems(write(text))[0]


def test_variables_and_files_are_expanded(write: Write, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hush\n")
    url = "postgresql://me:${file:password}@${HOST}:5432/shop"
    text = RIGHT.replace("postgresql://me@127.0.0.1:5432/shop", url) + "backfill: {segments: ${SEGMENTS}}\n"
    loaded = config.load(write(text.replace("${SEGMENTS}", "'${SEGMENTS}'")), {"HOST": "localhost", "SEGMENTS": "16"})

    options: Any = loaded.target.options
    assert options.url.get_secret_value() == "postgresql://me:hush@localhost:5432/shop"
    assert loaded.backfill.segments == 16


def test_a_filled_in_value_is_never_looked_into(write: Write) -> None:
    loaded = config.load(write(RIGHT.replace("eu-west-1", "${A}")), {"A": "${B}${file:/etc/passwd}", "B": "b"})

    assert loaded.source.region == "${B}${file:/etc/passwd}"


def test_secrets_are_never_printed(write: Write) -> None:
    text = RIGHT.replace("postgresql://me@127.0.0.1:5432/shop", "${URL}")
    loaded = config.load(write(text), {"URL": "postgresql://me:hush@127.0.0.1/shop"})
    assert "hush" not in repr(loaded)
    assert "hush" not in str(loaded.target.options)

    for url in ("postgresql://me:hush@far.example.org/shop", "hush = = hush", "postgresql://hush@[", "hush"):
        found = problems(write(text + "on_gap: x\n"), URL=url)
        assert "hush" not in "".join(found), found


@pytest.mark.parametrize(
    "path", ["source.region", "pipeline", "transform", "on_gap", "backfill.segments", "target.table"]
)
def test_an_environment_value_is_in_no_message(write: Write, path: str) -> None:
    values: dict[str, Any] = yaml.safe_load(RIGHT)
    *parents, last = path.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = "${SECRET}"
    with contextlib.suppress(ConfigError):
        config.load(write(yaml.safe_dump(values)), {"SECRET": "hush / hush"})
        return
    assert "hush" not in "".join(problems(write(yaml.safe_dump(values)), SECRET="hush / hush"))


def test_http_is_fine_on_this_machine_or_when_asked_for(write: Write) -> None:
    for line in (
        "endpoint_url: http://127.0.0.1:8000",
        "endpoint_url: http://localhost:1",
        "endpoint_url: https://a.b",
    ):
        assert config.load(write(RIGHT.replace("region: eu-west-1", line)), {}).source.endpoint_url
    text = RIGHT.replace("region: eu-west-1", "endpoint_url: http://10.0.0.1\n  insecure: true")
    assert config.load(write(text), {}).source.insecure


def test_the_regions_of_table_and_arn_agree(write: Write) -> None:
    arn = "arn:aws:dynamodb:eu-west-2:123456789012:table/orders"
    text = RIGHT.replace("table: orders", f"table: {arn}", 1)

    assert config.load(write(text.replace("  region: eu-west-1\n", "")), {}).source.region == "eu-west-2"
    assert "differs from the region in the table's ARN, eu-west-2" in problems(write(text))[0]


def test_the_environment_is_the_default_source_of_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "REPLICATOR_TEST_REGION", "eu-north-1")

    assert config.load(write(RIGHT.replace("eu-west-1", "${REPLICATOR_TEST_REGION}"))).source.region == "eu-north-1"


def test_the_hooks_folder_is_the_configs(write: Write, tmp_path: Path) -> None:
    assert config.load(write(RIGHT), {}).base == tmp_path


class TestSchema:
    def accepts(self, text: str) -> bool:
        found: bool = jsonschema.Draft202012Validator(config.schema()).is_valid(yaml.safe_load(text))
        return found

    def test_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(config.schema())

    def test_accepts_what_the_loader_accepts(self) -> None:
        assert self.accepts(RIGHT)
        assert self.accepts(RIGHT.replace("url: postgresql://me@127.0.0.1:5432/shop\n  table: orders", _TYPED))
        assert self.accepts(RIGHT + "backfill: {segments: '${SEGMENTS}', enabled: '${ON}'}\non_gap: ${GAP}\n")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("pipeline:", "pipelin:"),
            ("type: postgres", "type: sqlite"),
            ("table: orders\n  region", "tabel: orders\n  region"),
            ("region: eu-west-1", "region: 5"),
            ("shop\n  table: orders", "shop"),
            ("shop\n  table: orders", "shop\n  tables: {orders: {columns: {a: numerik}}}"),
            ("source:", "on_gap: never\nsource:"),
            ("source:", "backfill: {segments: 0}\nsource:"),
        ],
    )
    def test_refuses_what_the_loader_refuses(self, old: str, new: str) -> None:
        assert not self.accepts(RIGHT.replace(old, new, 1))


class TestEngine:
    @pytest.mark.parametrize("section", ["", "engine: {type: local}\n", "engine: {}\n"])
    def test_one_process_is_the_default(self, write: Write, section: str) -> None:
        assert config.load(write(RIGHT + section), {}).engine == Local()

    @pytest.mark.parametrize(
        ("section", "said"),
        [
            ("engine: {type: locl}", "engine.type: unknown engine; did you mean local?"),
            ("engine: {workers: 2}", "engine.workers: unknown key"),
            ("engine: local", "engine: must be a mapping"),
            ("engine: {type: ray, workers: 0}", "engine.workers: must be at least 1"),
            ("engine: {type: ray, worker: 2}", "engine.worker: unknown key; did you mean workers?"),
        ],
    )
    def test_a_mistake_is_named(self, write: Write, section: str, said: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(said)):
            config.load(write(f"{RIGHT}{section}\n"), {})
        assert not TestSchema().accepts(f"{RIGHT}{section}\n")

    def test_an_address_is_auto_or_host_and_port(self, write: Write) -> None:
        for address in ("auto", "10.0.0.5:6379", "'[::1]:6379'"):
            loaded = config.load(write(f"{RIGHT}engine: {{type: ray, address: {address}}}\n"), {})
            assert loaded.engine == Ray(address=address.strip("'"))
        for address in ("ray://10.0.0.5:10001", "10.0.0.5"):
            with pytest.raises(ConfigError, match=r"engine.address: must be auto, or have the form HOST:PORT"):
                config.load(write(f"{RIGHT}engine: {{type: ray, address: '{address}'}}\n"), {})

    def test_the_command_line_may_name_another_engine_and_options_of_the_same_one_are_kept(self, write: Write) -> None:
        path = write(RIGHT + "engine: {type: ray, workers: 5}\n")
        assert config.load(path, {}, engine="local").engine == Local()
        assert config.load(path, {}, engine="ray").engine == Ray(workers=5)
        assert config.load(write(RIGHT), {}, engine="ray").engine == Ray()

    def test_a_cluster_needs_checkpoints_that_all_its_nodes_reach(self, write: Write) -> None:
        text = RIGHT.replace("type: postgres\n  url: postgresql://me@127.0.0.1:5432/shop", "type: dynamodb")
        assert config.load(write(text + "engine: {type: ray}\n"), {}).engine == Ray()
        assert config.load(
            write(text + "engine: {type: ray, address: auto}\ncheckpoints: {type: dynamodb, table: kept}\n"), {}
        )
        for section in ("", "checkpoints: {path: here}\n"):
            with pytest.raises(ConfigError, match=r"checkpoints: a file is on one machine, and engine.address"):
                config.load(write(f"{text}engine: {{type: ray, address: auto}}\n{section}"), {})

    def test_webhooks_are_sent_by_one_process(self, write: Write) -> None:
        postgres = "type: postgres\n  url: postgresql://me@127.0.0.1:5432/shop"
        text = RIGHT.replace(postgres, "type: webhook\n  url: http://127.0.0.1:9/\n  secret: whsec_" + 32 * "A")
        with pytest.raises(ConfigError, match=r"engine.type: webhook is written by one process only"):
            config.load(write(text + "engine: {type: ray}\n"), {})

    def test_as_many_workers_share_checkpoints_in_dynamodb_as_have_a_head_each(self, write: Write) -> None:
        text = RIGHT.replace("type: postgres\n  url: postgresql://me@127.0.0.1:5432/shop", "type: dynamodb")
        text += "checkpoints: {type: dynamodb, table: kept}\n"
        assert config.load(write(text + "engine: {type: ray, workers: 64}\n"), {})
        assert config.IN_DYNAMODB < MOST_HEADS - 10
        with pytest.raises(ConfigError, match=r"engine.workers: at most 64 with checkpoints in DynamoDB.*in Postgres"):
            config.load(write(text + "engine: {type: ray, workers: 65}\n"), {})

    def test_behind_lambda_a_target_without_transactions_needs_checkpoints_that_all_containers_reach(
        self, write: Write
    ) -> None:
        kept = {"dynamodb": "{type: dynamodb, table: kept}", "postgres": "{type: postgres, url: 'postgresql:///kept'}"}
        for target in (
            "type: dynamodb",
            "type: elasticsearch\n  url: http://127.0.0.1:9200",
            "type: opensearch\n  url: http://127.0.0.1:9200",
        ):
            text = RIGHT.replace(POSTGRES, target) + "engine: {type: lambda}\n"
            for kind, section in kept.items():
                found = config.load(write(f"{text}checkpoints: {section}\n"), {}).checkpoints
                assert found is not None
                assert found.type == kind
            for section in ("", "checkpoints: {path: here}\n", "checkpoints: {type: sqlite}\n"):
                with pytest.raises(ConfigError, match=r"checkpoints: a file is on one machine, and a function"):
                    config.load(write(text + section), {})

    def test_behind_lambda_postgres_keeps_its_checkpoints_itself(self, write: Write) -> None:
        text = f"{RIGHT}engine: {{type: lambda}}\ncheckpoints: {{type: dynamodb, table: kept}}\n"
        with pytest.raises(ConfigError, match=r"checkpoints: this target stores checkpoints itself"):
            config.load(write(text), {})

    def test_a_target_that_one_process_writes_to_is_refused_behind_lambda(self, write: Write) -> None:
        for kind, options in (
            ("redis", "url: redis://127.0.0.1:6379"),
            ("webhook", "url: http://127.0.0.1:9/\n  secret: whsec_" + 32 * "A"),
        ):
            text = RIGHT.replace(POSTGRES, f"type: {kind}\n  {options}") + "engine: {type: lambda}\n"
            text += "checkpoints: {type: dynamodb, table: kept}\n"
            with pytest.raises(ConfigError, match=f"engine.type: {kind} is written by one process only"):
                config.load(write(text), {})

    def test_the_functions_name_is_one_that_aws_accepts(self, write: Write) -> None:
        named = RIGHT + "engine: {type: lambda, function: orders-copy}\n"
        assert config.load(write(named), {}).engine == Lambda(function="orders-copy")
        for name in ("arn:aws:lambda:eu-west-1:1:function:x", "a" * 65, "b c"):
            with pytest.raises(ConfigError, match=r"engine\.function: must be the name of a function: 1 to 64 letters"):
                config.load(write(named.replace("orders-copy", f'"{name}"')), {})

    def test_what_needs_a_process_that_is_always_there_is_refused_behind_lambda(self, write: Write) -> None:
        assert config.load(write(RIGHT + "engine: {type: lambda}\n"), {}).engine == Lambda()
        for section in ("verify: {every: 24h}", "replaces: old.yaml", "on_gap: resync"):
            with pytest.raises(ConfigError, match=f"{section.partition(':')[0]}: with engine.type lambda"):
                config.load(write(f"{RIGHT}engine: {{type: lambda}}\n{section}\n"), {})

    @pytest.mark.parametrize("limit", ["null", "446"])
    def test_a_hook_that_may_take_longer_than_any_invocation_is_refused_behind_lambda(
        self, write: Write, limit: str
    ) -> None:
        behind = f"{RIGHT}engine: {{type: lambda}}\nhook_timeout: {limit}\n"
        config.load(write(behind), {})
        with pytest.raises(ConfigError, match=r"hook_timeout: with engine.type lambda, at most 445: an invocation has"):
            config.load(write(f"{behind}transform: hooks.py:hook\n"), {})
        config.load(write(f"{behind}transform: hooks.py:hook\n".replace(limit, "445")), {})

    def test_with_a_history_a_hook_has_less_of_an_invocations_time(self, write: Write) -> None:
        kept = "shop\n  tables: {orders: {history: true}}\n".join(RIGHT.split("shop\n  table: orders\n"))
        assert kept != RIGHT
        behind = f"{kept}engine: {{type: lambda}}\ntransform: hooks.py:hook\nhook_timeout: "
        with pytest.raises(ConfigError, match=r"hook_timeout: with engine.type lambda, at most 178: an invocation has"):
            config.load(write(f"{behind}179\n"), {})
        config.load(write(f"{behind}178\n"), {})


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    _TEXTS,
    st.sampled_from(["${A}", "${file:x}", "${", "postgres", "stop", "hooks.py:f", "postgresql://h/d", "orders"]),
)
_NAMES = st.one_of(
    _TEXTS,
    st.sampled_from(
        [
            *("pipeline", "source", "target", "transform", "backfill", "on_gap", "table", "tables", "region", "type"),
            *("url", "schema", "columns", "nul", "segments", "read_units", "endpoint_url", "insecure", "from"),
        ]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_NAMES, inner, max_size=5)),
    max_leaves=20,
)
_TAGS = ["!!" + t for t in ("int", "float", "timestamp", "binary", "set", "omap", "pairs", "bool", "null", "no")]


class TestFuzz:
    """Whatever the file holds, it is a config or a ConfigError."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changed=st.dictionaries(_NAMES, _VALUES, max_size=4), target=st.dictionaries(_NAMES, _VALUES, max_size=4))
    def test_of_structures(self, tmp_path: Path, changed: dict[str, Any], target: dict[str, Any]) -> None:
        values = yaml.safe_load(RIGHT)
        values["target"] |= target
        self.loads(tmp_path, yaml.safe_dump(values | changed, allow_unicode=True).encode())

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        text=st.one_of(
            st.binary(max_size=60),
            st.text(st.sampled_from("abc:-[]{}&*!|>'\"%@`,?#\n \t0123456789._${}~<=e"), max_size=60).map(str.encode),
            st.builds(
                lambda cut, put: RIGHT[:cut].encode() + put + RIGHT[cut:].encode(),
                st.integers(0, len(RIGHT)),
                st.binary(max_size=6),
            ),
            st.builds("{}: {} {}".format, _TEXTS, st.sampled_from(_TAGS), _TEXTS).map(str.encode),
        )
    )
    def test_of_texts(self, tmp_path: Path, text: bytes) -> None:
        self.loads(tmp_path, text)

    def loads(self, tmp_path: Path, text: bytes) -> None:
        path = tmp_path / "fuzz.yaml"
        path.write_bytes(text)
        with contextlib.suppress(ConfigError):
            config.load(path, {"A": "a"})


def test_a_dynamodb_target_does_not_mark_deletes() -> None:
    known = "mark is supported by the targets postgres, elasticsearch and opensearch"
    for value, problems in (("apply", []), ("mark", [known])):
        _, found = destination({"type": "dynamodb", "tables": {"orders": {"deletes": value}}})
        assert [p.text.partition(";")[0] for p in found if p.path[-1] == "deletes"] == problems
