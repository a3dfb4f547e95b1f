"""The entry point of AWS Lambda, and what the command line says of that engine."""

from __future__ import annotations

import contextlib
import contextvars
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner

from replicator import log as logs
from replicator.cli import main
from replicator.config.settings import load
from replicator.engine import aws_lambda
from replicator.engine.aws_lambda import Container
from replicator.engine.function import RESCAN, OutOfTime, UnfinishedListing
from replicator.engine.retry import Stopped
from replicator.errors import ConfigError, GapFound, TransientError

CONFIG = """
pipeline: orders
source: {table: orders, region: eu-west-1}
target: {type: postgres, url: "postgresql://me@127.0.0.1:1/shop", table: orders}
"""
LAMBDA = CONFIG + "engine: {type: lambda}\n"


class Opened:
    """Stands in for the connections and the function, and counts what is open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, self.made, self.fails = 0, 0, False
        patch.setattr(aws_lambda, "connected", self.connected)
        self.unfinished: list[object] = []  # the listing that each function was given
        patch.setattr(aws_lambda, "Function", self.function)

    def function(self, *given: object) -> Opened:
        self.unfinished.append(given[-1])
        return self

    @contextlib.contextmanager
    def connected(self, *_: object) -> Iterator[None]:
        self.open, self.made = self.open + 1, self.made + 1
        yield
        self.open -= 1

    def invoke(self, event: Mapping[str, Any]) -> dict[str, Any]:
        if self.fails:
            raise TransientError("no")
        return dict(event)

    def close(self) -> None:
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "replicator.yaml"
    path.write_text(LAMBDA)
    return path


def test_a_function_that_starts_imports_neither_boto3_nor_what_only_a_run_needs() -> None:
    needless = "boto3 s3transfer multiprocessing replicator.engine.local replicator.engine.coordinator rich click"
    look = f"print(*[m for m in '{needless}'.split() if m in sys.modules])"
    code = f"import sys, replicator.engine.aws_lambda, connectors.postgres; {look}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_connections_are_kept_while_invocations_follow_each_other_and_a_late_one_has_its_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, now = Opened(monkeypatch), [1000.0]
    container = Container(str(path), lambda: now[0])
    container.invoke({}, 60)
    assert (opened.open, container.is_connected) == (0, False)
    for _ in range(3):
        now[0] += 30
        assert container.invoke({"a": 1}, 60) == {"a": 1}
        assert opened.open == 1
    assert opened.made == 2
    now[0] += 61
    container.invoke({}, 60)
    assert (opened.open, opened.made) == (0, 3)


def test_connections_are_closed_even_if_what_uses_them_cannot_be(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    container = Container(str(path), lambda: 0.0)
    container.invoke({}, 60)
    container.invoke({}, 60)
    assert opened.open == 1

    def fails() -> NoReturn:
        raise OSError("no")

    monkeypatch.setattr(opened, "close", fails)
    with pytest.raises(OSError, match="no"):
        container.close()
    assert opened.open == 0


def test_a_listing_that_is_not_complete_outlives_the_error_that_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)
    opened.fails = True
    container = Container(str(path), lambda: 0.0)
    for _ in range(2):
        with pytest.raises(TransientError):
            container.invoke({}, 60)
    first, second = opened.unfinished
    assert isinstance(first, UnfinishedListing)
    assert second is first


def test_after_an_error_the_next_invocation_connects_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    container = Container(str(path), lambda: 0.0)
    container.invoke({}, 60)
    opened.fails = True
    with pytest.raises(TransientError):
        container.invoke({}, 60)
    assert opened.open == 0


def test_servers_that_do_not_answer_in_an_invocations_time_are_what_the_error_is_about(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)

    def waits(*_: object) -> NoReturn:
        raise Stopped

    monkeypatch.setattr(opened, "invoke", waits)
    for _ in range(2):
        with pytest.raises(TransientError, match=r"before the source and the target had answered; .*reach both"):
            Container(str(path), lambda: 0.0).invoke({}, 60)
    assert opened.open == 0


def test_a_target_that_answers_late_is_what_the_error_is_about(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)

    def waits(*_: object) -> NoReturn:
        raise OutOfTime("the target did not answer")

    monkeypatch.setattr(opened, "invoke", waits)
    with pytest.raises(TransientError, match=r"^the target did not answer$"):
        Container(str(path), lambda: 0.0).invoke({}, 60)
    assert opened.open == 0


def test_the_config_of_another_engine_is_refused(path: Path) -> None:
    path.write_text(CONFIG)
    with pytest.raises(ConfigError, match=r"engine.type must be lambda"):
        Container(str(path))


def test_an_unexpected_error_shows_nothing_of_items(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_remaining_time_in_millis(self) -> int:
            raise ValueError("an item's value")

    opened = Opened(monkeypatch)
    monkeypatch.setattr(aws_lambda, "_container", Container(str(path)))
    with pytest.raises(RuntimeError, match="the function failed unexpectedly") as raised:
        aws_lambda.handler({}, Context())
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert opened.made == 0


def test_several_targets_have_a_function_each_so_nothing_keeps_one_from_running_beside_the_others(path: Path) -> None:
    copies = "".join(
        f"  {name}: {{type: postgres, url: 'postgresql://127.0.0.1:1/y', table: {name}}}\n" for name in "ab"
    )
    several = f"pipeline: p\nsource: {{table: orders, region: eu-west-1}}\ntargets:\n{copies}"
    path.write_text(several + "engine: {type: lambda}\n")
    result = CliRunner().invoke(main, ["check", str(path), "--offline"])
    assert result.exit_code == 0, result.output
    path.write_text(several + "engine: {type: ray}\ncheckpoints: {type: postgres, url: 'postgresql://127.0.0.1:1/y'}\n")
    result = CliRunner().invoke(main, ["check", str(path), "--offline"])
    assert "only local runs several targets in one process" in result.output


SEVERAL = """
pipeline: orders
source: {table: orders, region: eu-west-1}
engine: {type: lambda, function: "orders-{target}"}
targets:
  shop: {type: postgres, url: "postgresql://me@127.0.0.1:1/shop", table: orders}
  warehouse: {type: postgres, url: "postgresql://me@127.0.0.1:1/warehouse", table: orders}
"""


@pytest.fixture
def several(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of the package for one of several targets, warehouse."""
    path.write_text(SEVERAL)
    monkeypatch.setattr(aws_lambda, "_packaged", None)
    assert aws_lambda.packaged_for("warehouse") is aws_lambda.handler
    return path


def test_a_package_in_the_function_of_another_target_is_refused(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders-shop")
    said = "this is the package of the target warehouse, whose function is orders-warehouse .* deployed as orders-shop"
    with pytest.raises(ConfigError, match=said):
        aws_lambda._container_for(str(several), None)
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders-warehouse")
    assert aws_lambda._container_for(str(several), "warehouse").target == "warehouse"


def test_a_package_of_another_target_than_the_functions_variable_says_is_refused(several: Path) -> None:
    said = "REPLICATOR_TARGET is shop, but this is the package of the target warehouse: .* CONFIG --target shop"
    with pytest.raises(ConfigError, match=said):
        aws_lambda._container_for(str(several), "shop")


def test_what_resync_advises_are_options_that_it_has(path: Path) -> None:
    """``--engine`` is one of ``run`` alone."""
    result = CliRunner().invoke(main, ["resync", str(path), "--now"])
    assert result.exit_code == 2
    assert (
        "AWS Lambda follows the stream, not this command: add --until backfilled to copy what exists" in result.output
    )
    assert "--engine" not in result.output
    path.write_text(CONFIG)
    result = CliRunner().invoke(main, ["resync", str(path), "--now", "--until", "backfilled"])
    assert result.exit_code == 2
    assert "use --until caught-up" in result.output
    assert "--engine" not in result.output


def test_a_function_of_one_target_may_have_any_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(LAMBDA.replace("{type: lambda}", "{type: lambda, function: orders-copy}"))
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders-copy-2")
    assert Container(str(path)).target is None


@pytest.mark.parametrize(
    ("config", "named", "said"),
    [
        (SEVERAL, "shpo", "REPLICATOR_TARGET: replicator.yaml has no target shpo; did you mean shop?"),
        (SEVERAL, None, "has several targets: set REPLICATOR_TARGET to one of shop, warehouse"),
        (LAMBDA, "shop", "REPLICATOR_TARGET: replicator.yaml has one target, .* leave out REPLICATOR_TARGET"),
    ],
)
def test_a_functions_target_that_is_wrong_or_missing_is_said_of_its_variable(
    path: Path, monkeypatch: pytest.MonkeyPatch, config: str, named: str | None, said: str
) -> None:
    path.write_text(config)
    monkeypatch.setattr(aws_lambda, "_packaged", None)
    with pytest.raises(ConfigError, match=said) as raised:
        aws_lambda._container_for(str(path), named)
    assert "--target" not in str(raised.value)


def test_an_empty_variable_names_no_target(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_lambda, "_container", None)
    monkeypatch.setattr(aws_lambda, "_packaged", None)
    monkeypatch.setattr(logs, "start", lambda _: None)
    monkeypatch.setattr(logs, "silence_libraries", lambda: None)
    monkeypatch.setenv("LAMBDA_TASK_ROOT", str(path.parent))
    monkeypatch.setenv("REPLICATOR_TARGET", "")
    assert contextvars.copy_context().run(aws_lambda._started).target is None
    path.write_text(SEVERAL)
    monkeypatch.setattr(aws_lambda, "_container", None)
    aws_lambda.packaged_for("warehouse")
    assert contextvars.copy_context().run(aws_lambda._started).target == "warehouse"


def test_a_command_that_a_targets_function_advises_names_the_target(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return 60_000

    def refused(*_: object) -> NoReturn:
        raise GapFound(f"the stream was replaced: {RESCAN}", repair="")

    opened, logged = Opened(monkeypatch), list[Any]()
    monkeypatch.setattr(opened, "invoke", refused)
    monkeypatch.setattr(aws_lambda, "_container", aws_lambda._container_for(str(several), None))
    monkeypatch.setattr(aws_lambda.log, "error", lambda _, extra: logged.append(logs.with_target(extra["reason"])))
    with pytest.raises(GapFound) as raised:
        contextvars.copy_context().run(aws_lambda.handler, {}, Context())
    said = (
        "the stream was replaced: replicator resync CONFIG --target warehouse, then replicator run CONFIG --target "
        "warehouse --until backfilled"
    )
    assert [str(raised.value), *logged] == [said, said]


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (LAMBDA, ["run"], "AWS Lambda follows the stream, not this command: add --until backfilled"),
        (LAMBDA, ["run", "--until", "caught-up"], "add --until backfilled"),
        (CONFIG, ["run", "--until", "backfilled"], "this config has another engine: use --until caught-up"),
        (CONFIG, ["run", "other.yaml", "--until", "backfilled"], "hand over one pipeline at a time"),
        (LAMBDA, ["verify", "--repair"], "--repair is not supported with AWS Lambda"),
    ],
)
def test_what_this_engine_does_not_do_is_refused_with_what_to_do(
    path: Path, config: str, options: list[str], said: str
) -> None:
    path.write_text(config)
    load(path)
    result = CliRunner().invoke(main, [*options, str(path), "--json"])
    assert result.exit_code == 2
    assert said in result.output + result.stderr
