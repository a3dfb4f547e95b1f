"""``replicator check --offline``: what is wrong with a config and its hook, without any server."""

from __future__ import annotations

import socket
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from replicator.cli import main
from tests.cli.command_line import World, words

HOOK = "def hook(item):\n    return {'n': 1}\n"
OWN_IDS = """
from replicator import Document, documents

@documents
def hook(item):
    yield Document(id="1", body={})
"""
CONFIG = """\
pipeline: orders
source: {table: orders, region: us-east-1}
target: {type: postgres, url: "${POSTGRES_URL}", table: orders}
"""


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection fails the test, unless it compares with an online check."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"--offline connects to {address}")

    if "world" not in request.fixturenames:
        monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("POSTGRES_URL", "SEGMENTS", "TABLE"):
        monkeypatch.delenv(name, raising=False)


def offline(path: Path) -> tuple[int, list[dict[str, str]], str]:
    """Exit code, findings, and the words of standard error."""
    result = CliRunner().invoke(main, ["check", "--offline", str(path), "--json"], catch_exceptions=False)
    return result.exit_code, [orjson.loads(line) for line in result.stdout.splitlines()], words(result.stderr)


def written(folder: Path, config: str, hook: str = "") -> Path:
    path = folder / "orders.yaml"
    path.write_text(config)
    if hook:
        (folder / "hooks.py").write_text(hook)
    return path


def texts(findings: list[dict[str, str]], verdict: str) -> list[str]:
    return [f"{f['subject']}: {f['text']}" for f in findings if f["verdict"] == verdict]


def test_a_config_is_valid_without_its_environment_and_the_rest_is_named(tmp_path: Path) -> None:
    code, findings, _ = offline(written(tmp_path, "transform: hooks.py:hook\n" + CONFIG, HOOK))

    assert code == 0
    assert texts(findings, "ok") == [
        "config: orders.yaml is valid",
        "transform: hooks.py:hook is a hook with one document per item",
        "target: postgres: the options of its tables are valid",
    ]
    assert texts(findings, "note") == [
        "config: not checked: orders.yaml:4: target.url: environment variable POSTGRES_URL is not set",
        "offline: not checked: the source: region, credentials, permissions, the stream, and the table's key",
        "offline: not checked: the target: address, login, existing tables (and how the key fits in)",
        "offline: not checked: what the hook returns: it was loaded, but not called (replicator.testing: "
        "hook_test(hook))",
    ]


def test_the_stand_in_for_a_missing_value_is_never_shown(tmp_path: Path) -> None:
    path = written(tmp_path, CONFIG.replace("table: orders}", 'table: "${TABLE}"}'))
    out = CliRunner().invoke(main, ["check", "--offline", str(path), "--human"]).output

    assert "TABLE is not set" in out
    assert "valid, as far as can be told offline" in out
    assert "stand-in" not in out


@pytest.mark.parametrize(
    "option",
    [
        'backfill: {segments: "${SEGMENTS}"}',
        'on_gap: "${SEGMENTS}"',
        'checkpoints: {path: "${SEGMENTS}"}',
        'hook_timeout: "${SEGMENTS}"',
    ],
)
def test_an_option_of_any_kind_may_come_from_the_environment(tmp_path: Path, option: str) -> None:
    target = 'target: {type: elasticsearch, url: "${POSTGRES_URL}", ca_certs: "${TABLE}", table: orders}'
    code, findings, err = offline(written(tmp_path, f"{option}\npipeline: p\nsource: {{table: orders}}\n{target}\n"))

    if option.startswith("on_gap"):  # only two words are valid, and the value is one of them or it is not
        assert (code, err) == (2, ANY_CHOICE)
    else:
        assert code == 0, err
        assert sum("is not set" in text for text in texts(findings, "note")) == 3


ANY_CHOICE = "".join(
    f"orders.yaml:{line}: {path}: environment variable {name} is not set; without it, nothing else can be checked\n"
    for line, path, name in [
        (1, "on_gap", "SEGMENTS"),
        (4, "target.url", "POSTGRES_URL"),
        (4, "target.ca_certs", "TABLE"),
    ]
)


def test_a_secret_outside_the_folder_may_be_missing_but_a_file_of_the_repository_may_not(tmp_path: Path) -> None:
    secret = CONFIG.replace("${POSTGRES_URL}", "postgresql://app:${file:/run/secrets/none}@localhost/shop")
    code, findings, _ = offline(written(tmp_path, secret))
    assert (code, "cannot read file /run/secrets/none" in " ".join(texts(findings, "note"))) == (0, True)

    code, _, err = offline(written(tmp_path, secret.replace("/run/secrets/none", "none.txt")))
    assert (code, "target.url: cannot read file none.txt: No such file" in err) == (2, True)


def test_mistakes_beside_a_missing_value_are_all_named(tmp_path: Path) -> None:
    config = CONFIG.replace("table: orders}", "tabel: orders}").replace("region", "regoin") + "parked_limit: -1\n"
    code, findings, err = offline(written(tmp_path, config))

    assert (code, findings) == (2, [])
    assert "orders.yaml:2: source.regoin: unknown key; did you mean region?" in err
    assert "target.tabel: unknown key; did you mean table?" in err
    assert "parked_limit: must be at least 0" in err
    assert "POSTGRES_URL" not in err


def test_create_needs_a_server(tmp_path: Path) -> None:
    path = str(written(tmp_path, CONFIG))
    result = CliRunner().invoke(main, ["check", "--offline", "--create", path])

    assert result.exit_code == 2
    assert "--create needs a server, and --offline contacts none" in words(result.stderr)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("{type: postgres, url: postgresql://localhost/x, tables: {t: {columns: {ctid: text}}}}", "ctid has the name"),
        ("{type: elasticsearch, url: http://localhost:9200, table: " + "x" * 250 + "}", "is too long: with the suffix"),
        ("{type: opensearch, url: http://localhost:9200, tables: {a b: {}}}", "a b must be a valid index name"),
        ("{type: dynamodb, region: us-east-1, table: t!}", "'t!' must be a DynamoDB table name"),
    ],
)
def test_tables_that_no_target_of_the_type_can_have_are_problems(tmp_path: Path, target: str, problem: str) -> None:
    config = f"pipeline: p\nsource: {{table: orders}}\ntarget: {target}\n"
    code, findings, _ = offline(written(tmp_path, config))

    assert code == 2
    assert problem in " ".join(texts(findings, "problem"))


def test_routing_by_a_key_attribute_is_not_called_wrong_while_the_key_is_unknown(tmp_path: Path) -> None:
    target = "{type: elasticsearch, url: http://localhost:9200, tables: {orders: {routing: customer}}}"
    code, _, err = offline(written(tmp_path, f"pipeline: p\nsource: {{table: orders}}\ntarget: {target}\n"))

    assert code == 0, err


BROKEN: dict[str, tuple[str, str, str]] = {
    "no hook file": ("target:", "transform: none.py:hook\ntarget:", ""),
    "no function": ("target:", "transform: hooks.py:other\ntarget:", HOOK),
    "a hook that cannot be imported": ("target:", "transform: hooks.py:hook\ntarget:", "import nothing_of_that_name\n"),
    "tables without a hook": ("  table: orders\n", "  tables: {a: {}, b: {}}\n", ""),
    "a system column": ("  table: orders\n", "  tables: {orders: {columns: {ctid: text}}}\n", ""),
    "names that are too long": (
        "  table: orders\n",
        f"  tables: {{{'t' * 70}: {{columns: {{{'c' * 70}: text}}}}}}\n",
        "",
    ),
    "with own ids": ("  table: orders\n", "  table: " + "x" * 64 + "\ntransform: hooks.py:hook\n", OWN_IDS),
    "notes": ("target:", "ttl_deletes: ignore\nbackfill: {enabled: false}\ntarget:", ""),
    "nothing": ("target:", "target:", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_check_finds_what_check_offline_finds(world: World, name: str) -> None:
    world.db.create_table("orders")
    old, new, hook = BROKEN[name]
    before, found, after = Path(world.config).read_text().rpartition(old)
    assert found
    Path(world.config).write_text(before + new + after)
    if hook:
        (world.folder / "hooks.py").write_text(hook)
    offline = world.lines("check", "--offline", world.config)
    there = world.lines("check", world.config)

    shared = [
        f for f in offline if f["subject"] not in ("config", "offline") and "the options of its tables" not in f["text"]
    ]
    assert [f for f in shared if f not in there] == []
    assert world.call("check", "--offline", world.config)[0] == world.call("check", world.config)[0]
    assert any(f["verdict"] == "problem" for f in shared) == (name not in ("notes", "nothing"))


def test_what_a_poll_interval_costs_is_said_by_both(world: World) -> None:
    world.db.create_table("orders")
    world.change("  region: us-east-1\n", "  region: us-east-1\n  poll_interval: 100ms\n")
    for option in ((), ("--offline",)):
        (note,) = [f for f in world.lines("check", *option, world.config) if f["subject"] == "source.poll_interval"]
        assert (note["verdict"], note["text"]) == (
            "note",
            "100 ms: 432,000 to 864,000 requests per open shard and day (by default up to 90,947), which costs up to "
            "$5.18 per shard and month in us-east-1",
        )


@pytest.mark.parametrize(
    ("target", "hook", "said"),
    [
        ("type: postgres, url: postgresql://localhost/x, tables: {orders: {history: true}}", "", "that keep a history"),
        ("type: dynamodb, region: eu-west-1, pristine: true, table: orders2", "", "does not keep (pristine)"),
        ("type: postgres, url: postgresql://localhost/x, table: orders", OWN_IDS, "the hook chooses document ids"),
    ],
)
def test_what_keeps_gaps_from_being_repaired_by_exports_is_a_problem(
    tmp_path: Path, target: str, hook: str, said: str
) -> None:
    top = "on_gap: export\nbackfill: {bucket: exports}\n" + ("transform: hooks.py:hook\n" if hook else "")
    path = written(
        tmp_path, top + CONFIG.replace('type: postgres, url: "${POSTGRES_URL}", table: orders', target), hook
    )

    code, findings, _ = offline(path)

    (problem,) = texts(findings, "problem")
    assert code == 2
    assert problem.startswith("on_gap: export ")
    assert said in problem
    path.write_text(path.read_text().replace("on_gap: export\nbackfill: {bucket: exports}", "on_gap: resync"))
    assert offline(path)[0] == 0


def test_a_pristine_target_is_refused_for_several_workers_before_any_of_them_starts(tmp_path: Path) -> None:
    target = "type: dynamodb, region: eu-west-1, pristine: true, table: orders2"
    config = CONFIG.replace('type: postgres, url: "${POSTGRES_URL}", table: orders', target)
    assert offline(written(tmp_path, config))[0] == 0
    code, findings, _ = offline(written(tmp_path, "engine: {type: ray}\n" + config))
    assert code == 2
    (problem,) = texts(findings, "problem")
    assert problem.startswith("target.pristine: without versions in the items")
