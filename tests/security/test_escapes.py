"""Foreign text cannot act on a terminal, forge a log line, or reorder what a person reads."""

from __future__ import annotations

import ast
import importlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from rich.console import Console

from replicator import log
from replicator.cli import live_view, output
from replicator.cli.render import as_table
from replicator.errors import ConfigError, GapFound, ReplicatorError
from replicator.escape import ascii_json, escaped, escaped_lines, escaped_paragraph
from replicator.items.item import Item
from replicator.key import key_text
from replicator.operations import demo
from replicator.operations.finding import Finding
from replicator.operations.parked import ParkedItem
from replicator.operations.preview import Preview
from replicator.pipeline.progress import Progress, as_values
from replicator.state import Gap, Parked

check, parked, preview = (importlib.import_module(f"replicator.cli.{name}") for name in ("check", "parked", "preview"))

ROOT = Path(__file__).parents[2]
FORGED = "error: all is well"
HOSTILE = (
    f"\x1b]0;PWNED\x07\x1b[2J\x9b2J\x7f\u202e\u2066\u200f\u061c\u2028\x85\x0b\x0c\r\ufeff\udc80\U000e0041\n{FORGED}\t"
)
ACTIVE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def harmless(text: str) -> None:
    """Nothing in it acts on a terminal, and no line is the one that the foreign text tried to forge."""
    assert "PWNED" in text
    assert ACTIVE.search(text) is None, ascii(text)
    assert not any(line.startswith(FORGED) for line in text.split("\n")), text


def test_active_characters_are_escaped_and_all_others_kept() -> None:
    assert escaped("order#1 für Ñandú 注文 😀 👩‍👩‍👧 \\n") == "order#1 für Ñandú 注文 😀 👩‍👩‍👧 \\n"
    assert escaped("a\x1b[2J\nb\x9b\u202e\U000e0041") == r"a\u001b[2J\nb\u009b\u202e\udb40\udc41"
    assert escaped_lines("a\n\x1bb", "  ") == "  a\n  \\u001bb"
    assert escaped_paragraph("a\n\x1bb", "  ") == "a\n  \\u001bb"
    harmless(escaped(HOSTILE))


def test_an_escaped_item_can_be_pasted_into_the_next_command() -> None:
    key = (HOSTILE.replace("\udc80", ""), 'quote" and \\')
    assert tuple(json.loads(escaped(key_text(key)))) == key
    assert parked._key_text(escaped(key_text(key))) == key_text(key)


def test_json_is_ascii_and_means_the_same() -> None:
    value = {"k": HOSTILE.replace("\udc80", ""), "日本": "😀\x7f"}
    text = ascii_json(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())
    assert text.isascii()
    assert "\x7f" not in text
    assert json.loads(text) == value
    assert text.count("\n") == 3


# Every exit, with hostile text

PARKED = ParkedItem(HOSTILE, HOSTILE, 1, Parked((HOSTILE,), 1, HOSTILE, 0.0, traceback=HOSTILE, words=HOSTILE))
PREVIEWS = (
    Preview((HOSTILE,), Item(orjson.dumps({"\x1bPWNED\x9b": {"S": HOSTILE.replace("\udc80", "")}}))),
    Preview((HOSTILE.replace("\udc80", ""),), Item(b"{}"), problem=HOSTILE),
)
EXITS: dict[str, Callable[[], object]] = {
    "say": lambda: output.say(HOSTILE),
    "say_lines": lambda: output.say_lines(HOSTILE, "    "),
    "put": lambda: output.put({"text": HOSTILE}),
    "put_json": lambda: output.put_json('"' + HOSTILE.replace("\n", "") + '"'),
    "report": lambda: output.report(ReplicatorError(HOSTILE)),
    "report of problems": lambda: output.report(ConfigError(HOSTILE, HOSTILE)),
    "report of a gap": lambda: output.report(GapFound(HOSTILE, HOSTILE, HOSTILE)),
    "check": lambda: check._print([Finding(HOSTILE, "problem", HOSTILE, HOSTILE)], HOSTILE, ()),
    "preview": lambda: [preview._print(p) for p in PREVIEWS[1:]],
    "parked list": lambda: parked._tell(PARKED, HOSTILE, HOSTILE, False),
    "demo": lambda: demo.say(HOSTILE),
}


@pytest.mark.parametrize("leave", EXITS.values(), ids=EXITS)
def test_no_error_exit_lets_foreign_text_act(leave: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> None:
    leave()
    found = capsys.readouterr()
    harmless(found.out + found.err)


@pytest.mark.parametrize("formatter", [log.Human(), log.JsonLines()])
def test_no_log_line_lets_foreign_text_act(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        record = logging.LogRecord("replicator", logging.ERROR, "", 0, "event %s", (HOSTILE,), sys.exc_info())
    record.reason = HOSTILE
    harmless(formatter.format(record))


def test_the_live_view_and_status_let_no_foreign_text_act() -> None:
    shown = io.StringIO()
    gap = Gap(HOSTILE, 0.0, 1024, HOSTILE, HOSTILE)
    console = Console(file=shown, width=300, force_terminal=False)
    console.print(as_table(Progress("gap", gaps=(gap,), waiting_for=HOSTILE)))
    record = logging.LogRecord("replicator", logging.ERROR, "", 0, HOSTILE, (), None)
    live_view._Above(console).emit(record)
    harmless(shown.getvalue())


def test_status_as_json_lets_no_foreign_text_act(capsys: pytest.CaptureFixture[str]) -> None:
    output.put(as_values(Progress(HOSTILE, waiting_for=HOSTILE)))
    harmless(capsys.readouterr().out)


@pytest.mark.parametrize("values", [False, True])
def test_an_uncaught_error_lets_no_foreign_text_act(values: bool) -> None:
    """Also when exception messages are requested."""
    words = HOSTILE.replace("\udc80", "")
    install = f"from replicator.hooks.redaction import install; install(values={values})"
    program = f"{install}; raise ValueError({words!a} + str(1))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1
    assert ACTIVE.search(found.stderr) is None
    assert ("PWNED" in found.stderr) is values
    assert not any(line.startswith(FORGED) for line in found.stderr.split("\n"))


def test_a_mistyped_command_is_escaped() -> None:
    """The command line may come from another program."""
    words = HOSTILE.replace("\udc80", "")
    for form in ("--human", "--json"):
        command = [sys.executable, "-m", "replicator", "check", "no.yaml", form, words]
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert found.returncode == 2
        harmless(found.stderr)


# There is no other exit

WRITERS = {
    "replicator/cli/output.py": {"_out", "failed", "report", "say_aside"},
    "replicator/config/reference.py": {""},  # for docs/configuration.md: the text of our own models
    "replicator/cli/live_view.py": {"emit"},
    "replicator/cli/status.py": {"_print_each", "_print_one"},
    "replicator/hooks/redaction.py": {"print_trace"},
    "replicator/operations/demo.py": {"say"},
    "replicator/testing/dynamodb/http.py": {"main"},  # for tests: its own address
}


def test_a_config_with_a_hostile_name_is_escaped_in_the_list_of_pipelines() -> None:
    words = HOSTILE.replace("\udc80", "")
    for form in ("--human", "--json"):
        command = [sys.executable, "-m", "replicator", "status", "no.yaml", form, words]
        found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "COLUMNS": "400"})
        assert found.returncode == 2
        harmless(found.stdout)


def test_nothing_is_printed_elsewhere() -> None:
    found: dict[str, set[str]] = {}
    for path in [*ROOT.glob("replicator/**/*.py"), *ROOT.glob("connectors/**/*.py")]:
        if names := set(_printing(ast.parse(path.read_text()))):
            found[str(path.relative_to(ROOT))] = names
    assert found == WRITERS, "text goes out through replicator.escape only"


def _printing(tree: ast.AST, inside: str = "") -> list[str]:
    """The functions that print."""
    found = []
    for node in ast.iter_child_nodes(tree):
        here = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        if isinstance(node, ast.Call) and re.fullmatch(
            r"print|click\.s?echo|.*[cC]onsole(\(.*\))?\.print|sys\.(stdout|stderr)\.write", ast.unparse(node.func)
        ):
            found.append(here)
        found += _printing(node, here)
    return found
