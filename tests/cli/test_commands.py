"""The command line itself: start-up time, exit codes, and where errors go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import click
import jsonschema
import orjson
import pytest
from click.testing import CliRunner

from replicator import __version__, errors
from replicator.cli import Commands, main
from replicator.cli.output import errors_as_json, json_option
from replicator.state import DamagedCheckpoint


def invoked(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stdout, result.stderr


def raising(error: BaseException) -> Commands:
    group = Commands("replicator")

    @group.command
    @json_option
    def fail(as_json: bool) -> None:
        raise error

    return group


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("the table is missing"), 2),
        (errors.GapFound("records were trimmed", "shard-1", "17"), 3),
        (DamagedCheckpoint("cannot be read"), 3),
        (errors.NotPermitted("dynamodb:Scan is not permitted"), 4),
        (errors.Fenced("another run owns the pipeline"), 5),
        (errors.OutOfOrder("record 3 came after 4"), 1),
        (errors.TransientError("no answer"), 8),
    ],
)
def test_each_error_has_its_exit_code_and_is_one_line(error: errors.ReplicatorError, code: int) -> None:
    result = CliRunner().invoke(raising(error), ["fail", "--human"])

    assert result.exit_code == code
    assert result.stdout == ""
    assert f"error: {error}" in result.stderr
    assert "Traceback" not in result.stderr


def test_several_errors_are_listed() -> None:
    result = CliRunner().invoke(raising(errors.ConfigError("first", "second")), ["fail", "--human"])

    assert result.stderr.splitlines() == ["2 errors:", "  first", "  second"]


def test_an_error_of_several_lines_is_one_error() -> None:
    result = CliRunner().invoke(
        raising(errors.ConfigError("make the table:\naws dynamodb create-table")), ["fail", "--human"]
    )

    assert result.stderr.splitlines() == ["error: make the table:", "    aws dynamodb create-table"]


@pytest.mark.parametrize("chosen", [[], ["--json"], ["--human", "--json"]])
def test_errors_are_json_with_the_option_or_without_a_terminal(chosen: list[str]) -> None:
    code, out, err = invoked("status", "none.yaml", *chosen)
    event = orjson.loads(err)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert {"time", "level", "event", "error", "exit_code", "problems"} == set(event)
    assert (event["level"], event["error"], event["exit_code"]) == ("error", "ConfigError", 2)
    assert event["problems"] == ["config file none.yaml not found"]


def test_a_gap_in_json_says_what_to_do() -> None:
    result = CliRunner().invoke(raising(errors.GapFound("trimmed")), ["fail", "--json"])

    assert "replicator resync CONFIG" in orjson.loads(result.stderr)["do"]


@pytest.mark.parametrize(
    "wrong",
    [["rnu"], ["run"], ["run", "x", "--until", "never"], ["parked", "retry"], ["status", "x", "--jsn"], ["--x"]],
)
def test_a_usage_error_is_json_by_the_same_rule(wrong: list[str]) -> None:
    for arguments in (wrong, [*wrong, "--json"]):
        code, out, err = invoked(*arguments)
        event = orjson.loads(err)
        assert (code, out, event["error"], event["exit_code"]) == (2, "", "UsageError", 2)
        assert event["problems"][0]
    code, _, err = invoked(*wrong, "--human")
    assert (code, "Error: " in err, "Usage: " in err) == (2, True, True)


@pytest.mark.parametrize(
    ("arguments", "out", "err", "as_json"),
    [
        ("status x", False, False, True),
        ("status x", True, False, False),
        ("status x", False, True, False),
        ("status x --human", False, False, False),
        ("status x --json", True, True, True),
        ("status x --json --human", False, False, False),
        ("parked drop x -- --json", True, True, False),
    ],
)
def test_one_rule_decides_the_format_of_errors(
    monkeypatch: pytest.MonkeyPatch, arguments: str, out: bool, err: bool, as_json: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: err)
    assert errors_as_json(arguments.split()) is as_json


def test_no_command_shows_help() -> None:
    code, _, err = invoked()

    assert code == 2
    assert err.startswith("Usage: ")


def test_ctrl_c_in_a_command_that_stores_nothing_is_exit_code_130() -> None:
    result = CliRunner().invoke(raising(KeyboardInterrupt()), ["fail"])

    assert (result.exit_code, result.output) == (130, "")


def test_a_closed_output_pipe_ends_a_command_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "replicator", "schema"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_gap_says_how_to_repair_the_copy() -> None:
    result = CliRunner().invoke(raising(errors.GapFound("trimmed")), ["fail", "--human"])

    assert "replicator resync CONFIG" in result.stderr


def test_a_bug_keeps_its_traceback() -> None:
    result = CliRunner().invoke(raising(ZeroDivisionError("oops")), ["fail", "--human"])

    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_bug_ends_the_process_with_its_traceback_and_exit_code_1() -> None:
    code = "import replicator.cli as c; c.main.commands['version'].callback = lambda: 1 / 0; c.main(['version'])"

    def ended(*arguments: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        return done.returncode, done.stderr

    code_of_people, shown = ended("--human")
    code_of_programs, line = ended()
    event = orjson.loads(line)
    assert code_of_people == code_of_programs == event["exit_code"] == 1
    assert "ZeroDivisionError" in shown
    assert shown.startswith("Traceback")
    assert (event["event"], event["error"]) == ("failed", "ZeroDivisionError")
    assert event["traceback"].startswith("Traceback")


@pytest.mark.parametrize("wrong", [["rnu"], ["run"], ["run", "x", "--until", "never"], ["parked", "retry"]])
def test_a_wrong_command_is_exit_code_2(wrong: list[str]) -> None:
    assert invoked(*wrong)[0] == 2


def test_a_missing_config_is_exit_code_2() -> None:
    for command in (["run"], ["status"], ["check"], ["preview"], ["resync"], ["parked", "list"]):
        code, _, err = invoked(*command, "none.yaml", "--human")
        assert (code, err) == (2, "error: config file none.yaml not found\n")


def test_help_names_every_command_and_exit_code() -> None:
    code, out, _ = invoked("--help")

    assert code == 0
    for command in ["run", "check", "preview", "status", "parked", "resync", "demo", "version", "schema"]:
        assert f"\n  {command} " in out
    for number in range(9):
        assert f" {number} " in out


def test_every_command_has_useful_help() -> None:
    commands: list[click.Command] = [*main.commands.values()]
    parked = main.commands["parked"]
    assert isinstance(parked, click.Group)
    for command in [*commands, *parked.commands.values()]:
        assert command.help, command.name
        assert len(command.help) > 15, command.name


def test_version() -> None:
    assert invoked("version") == invoked("--version") == (0, f"{__version__}\n", "")


def test_schema_prints_a_json_schema() -> None:
    code, out, _ = invoked("schema")

    assert code == 0
    jsonschema.Draft202012Validator.check_schema(orjson.loads(out))


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    heavy = "boto3 botocore psycopg pydantic yaml rich.live msgspec orjson"
    code = f"import sys, replicator.cli; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_first_output_comes_within_half_a_second() -> None:
    def first_line(*arguments: str) -> float:
        began = time.monotonic()
        with subprocess.Popen(
            [sys.executable, "-m", "replicator", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            return time.monotonic() - began

    for arguments in (["--help"], ["version"], ["run", "none.yaml"]):
        assert min(first_line(*arguments) for _ in range(5)) < 0.5  # the best of five: the machine may be busy


def test_the_first_signal_requests_a_stop_and_the_second_ends_the_process() -> None:
    code = """
import time
from replicator.cli.run import stop_on_signals
stop = stop_on_signals()
print("ready", flush=True)
stop.wait()
print("asked", flush=True)
try:
    time.sleep(60)
finally:
    print("cleaning up", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
    assert process.returncode == 128 + signal.SIGINT


def test_a_process_that_cannot_end_in_time_leaves_with_the_code_of_what_has_ended() -> None:
    code = """
import signal, sys, time
from replicator.cli.run import stop_on_signals
sys.modules["replicator.cli.run"].GRACE = 0.0
codes = [0]
stop_on_signals(lambda: max(codes))
codes.append(3)
signal.raise_signal(signal.SIGTERM)
time.sleep(60)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


def test_a_demo_without_its_dependencies_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "replicator.operations.demo", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, _, err = invoked("demo")

    assert code == 2
    assert "the demo needs psycopg, which is not installed: pip install '.[demo]' in a clone of replicator" in err
