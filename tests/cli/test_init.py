"""``replicator init``: from a few answers to a config that ``check`` accepts and ``run`` carries out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.config import settings
from replicator.operations.new_config import KINDS
from tests.cli.command_line import World, endpoint, words

Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """The command in an empty folder, without AWS. ``typed``: what a person answers."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def call(*arguments: str, typed: str = "") -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["init", *arguments], input=typed)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, words(result.stderr) if not typed else result.stderr

    return call


def loaded(name: str = "orders.yaml") -> settings.Config:
    return settings.load_offline(name)[0]


def test_a_reachable_table_gets_typed_columns_and_its_copy_runs(
    world: World, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.db.create_table("orders")
    world.db.put("orders", {"id": "1", "customer": "ann", "total": 3})
    world = replace(world, environ={**world.environ, "POSTGRES_URL": world.postgres.url})
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    options = ["--table", "orders", "--region", "us-east-1", "--endpoint-url", endpoint(world), "--target", "postgres"]
    Path(world.config).unlink()
    code, out, err = init(*options)

    assert code == 0, err
    assert "orders: none of the 1 sampled documents would be parked\nwritten to orders.yaml\n" in out
    assert re.search(r"^        customer: text +# 100 %; text; up to 3 bytes$", Path("orders.yaml").read_text(), re.M)
    code, out, _ = world.call("check", "orders.yaml", "--human")
    assert (code, "ready to run" in out) == (0, True), out
    world.catch_up()
    assert world.rows("SELECT id, customer, total FROM orders") == [("1", "ann", 3)]


def test_questions_are_asked_until_their_answers_are_right(init: Init) -> None:
    typed = [
        "no!",
        "orders",
        "dublin",
        "eu-west-1",
        "mysql",
        "elasticsearch",
        "http://there:9200",
        "https://there:9200",
        "BAD*",
        "",
        "-",
        "",
    ]
    code, out, err = init("--input", "--no-infer", typed="\n".join([*typed, ""]))

    assert code == 0, err
    for problem in (
        "Error: source.table: must be a DynamoDB table name",
        "Error: dublin is not an AWS region such as eu-west-1",
        "Error: mysql must be one of postgres, elasticsearch, opensearch, dynamodb, webhook, redis, delta",
        "Error: target.url: is plain http to another host",
        "Error: target: BAD*: bad* must be a valid index name",
        "Error: pipeline: must be 1 to 63 letters",
    ):
        assert problem in err
    config = loaded()
    assert (config.pipeline, config.source.table, config.source.region) == ("orders", "orders", "eu-west-1")
    assert (config.target.type, list(config.target.tables)) == ("elasticsearch", ["orders"])
    assert out == "written to orders.yaml\nnext: replicator check orders.yaml\n"


def test_without_a_terminal_what_is_missing_is_named(init: Init) -> None:
    code, _, err = init()
    assert (code, err) == (
        2,
        "--table and --target missing: without a terminal, init cannot ask (targets: postgres, elasticsearch, "
        "opensearch, dynamodb, webhook, redis, delta)\n",
    )
    assert init("--table", "orders")[2].startswith("--target missing")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("target", KINDS)
def test_a_config_for_each_target_is_valid_and_names_what_to_set(init: Init, target: str) -> None:
    code, out, err = init("new.yaml", "--table", "Orders", "--target", target, "--no-infer")

    assert code == 0, err
    url = KINDS[target].url
    assert ("set before a run: target.url: environment variable" in out) == (url is not None)
    config = loaded("new.yaml")
    assert config.target.type == target
    assert list(config.target.tables) == ["orders" if "search" in target else "Orders"]
    uncommented = re.sub(r"^# ([a-z_]+:)", r"\1", Path("new.yaml").read_text(), flags=re.M)
    uncommented = re.sub(r"^#   (\w+:)", r"  \1", uncommented, flags=re.M).replace("transform:", "# transform:")
    Path("all.yaml").write_text(uncommented)
    assert loaded("all.yaml").backfill.read_units == 100, "options in comments are valid, too"


def test_a_table_that_cannot_be_reached_leaves_a_config_without_columns(init: Init) -> None:
    code, out, _ = init("--table", "orders", "--target", "postgres", "--region", "us-east-1", "--endpoint-url", NOWHERE)

    assert code == 0
    assert out.startswith("no columns or mapping were proposed: ")
    assert "later, replicator infer CONFIG proposes them" in out
    assert loaded().target.tables == {"orders": {}}


NOWHERE = "http://127.0.0.1:9"


def test_no_file_is_overwritten(init: Init) -> None:
    Path("orders.yaml").write_text("mine")
    code, _, err = init("--table", "orders", "--target", "postgres", "--no-infer")

    assert (code, err) == (2, "orders.yaml exists already, and no file is overwritten; name another one\n")
    assert Path("orders.yaml").read_text() == "mine"
    code, _, err = init("no/x.yaml", "--table", "orders", "--target", "postgres", "--no-infer")
    assert (code, "no/x.yaml cannot be written: No such file or directory" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--table", "a"], "source.table: must be a DynamoDB table name (3 to 255 letters"),
        (["--table", "orders\nx: 1"], "source.table: must be a DynamoDB table name"),
        (["--pipeline", "../../etc/passwd"], "pipeline: must be 1 to 63 letters, digits"),
        (["--pipeline", "a: {b"], "pipeline: must be 1 to 63 letters, digits"),
        (
            ["--target", "mysql"],
            "--target: mysql must be one of postgres, elasticsearch, opensearch, dynamodb, webhook, redis, delta",
        ),
        (["--url", "nonsense"], "target.url: is not a Postgres address; it must look like postgresql://"),
        (["--url", "postgresql://db.example.com/x"], "target: url: the remote host is not authenticated"),
        (["--url", "postgresql://me:topsecret@localhost/x"], "--url: contains a password, which does not belong in"),
        (["--url", "host=localhost password=topsecret"], "--url: contains a password, which does not belong in"),
        (["--target", "dynamodb", "--url", "https://x"], "--url: a dynamodb target has no address; it has a region"),
        (["--target", "delta", "--url", "s3://b/x"], "--url: a delta target has no address; it has a path"),
        (["--target-table", "t" * 64], "has 64 bytes, but Postgres keeps only 63; choose a shorter one"),
        (["--region", "mysql"], "--region: mysql is not an AWS region such as eu-west-1"),
        (["--target", "dynamodb", "--target-region", "west"], "--target-region: west is not an AWS region such as"),
        (["--endpoint-url", "ftp://x"], "source.endpoint_url: must have the form https://host"),
    ],
)
def test_foolish_and_hostile_answers_are_plain_errors(init: Init, options: list[str], problem: str) -> None:
    usual = {"--table": "orders", "--target": "postgres"}
    usual = {name: value for name, value in usual.items() if name not in options}
    code, out, err = init("--no-infer", *[part for pair in usual.items() for part in pair], *options)

    assert (code, out) == (2, ""), err
    assert problem in err
    assert "topsecret" not in err
    assert list(Path().iterdir()) == []


def test_an_arn_needs_no_region(init: Init) -> None:
    arn = "arn:aws:dynamodb:eu-west-1:111111111111:table/_orders"
    code, _, err = init("--input", "--no-infer", "--table", arn, typed="postgres\n\n\n\n")

    assert code == 0, err
    assert "region" not in err
    assert loaded().source.region == "eu-west-1"
    assert loaded().pipeline == "orders"
