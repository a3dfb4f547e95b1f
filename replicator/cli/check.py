"""``replicator check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from replicator.cli.output import aside, config_argument, json_option, put, say, say_lines

if TYPE_CHECKING:
    from replicator.operations.finding import Finding

_MARKS = {"ok": "ok  ", "note": "note", "problem": "FAIL", "gap": "FAIL", "forbidden": "FAIL", "unreachable": "FAIL"}


@click.command
@config_argument
@click.option("--create", is_flag=True, help="Create the table or schema for the checkpoints.")
@click.option("--offline", is_flag=True, help="Contact no server: only the config, the hook and the tables' options.")
@json_option
@click.pass_context
def check(ctx: click.Context, config: str, create: bool, offline: bool, as_json: bool) -> None:
    """Verify everything a run needs, without changing anything.

    Connects to the source and the target, tests each permission, compares tables column by column, runs the transform
    hook twice on live items, and prints the statements that would create missing tables. Reports all errors at once,
    each with its remedy. Exits with the code that run would exit with: 0 ready; 2 something must be fixed; 3 gap; 4
    not permitted; 8 a server cannot be reached (run would retry).

    With --offline, for the CI of the repository that has the config: validates the config, loads the hook, and says
    what could not be checked. Environment variables need not be set. Exits with 0 or 2.
    """
    from replicator.operations.finding import exit_code

    if create and offline:
        raise click.UsageError("--create needs a server, and --offline contacts none; leave one out")
    with aside():
        findings = _offline(config) if offline else _online(config, create=create)
    for finding in findings:
        if as_json:
            put({"subject": finding.subject, "verdict": finding.verdict, "text": finding.text, "do": finding.do})
        else:
            _print(finding)
    code = exit_code(findings)
    if not as_json:
        errors = sum(_MARKS[finding.verdict] == "FAIL" for finding in findings)
        ready = "valid, as far as can be told offline" if offline else "ready to run"
        say(f"not ready: {errors} error{'s' * (errors > 1)} (exit code {code})" if code else ready)
    ctx.exit(code)


def _online(config: str, *, create: bool) -> list[Finding]:
    from replicator.config import settings as configs
    from replicator.engine.generations import resolved
    from replicator.operations import check as preflight

    given = configs.load(config)
    used = resolved(given)
    of_run = given if used is not given and given.replaces is None else None
    return preflight.check(used, of_run=of_run, create=create)


def _offline(config: str) -> list[Finding]:
    from replicator.config import settings as configs
    from replicator.operations.check_offline import check_offline

    return check_offline(*configs.load_offline(config))


def _print(finding: Finding) -> None:
    first, _, more = finding.text.partition("\n")
    say(f"{_MARKS[finding.verdict]}  {finding.subject}: {first}")
    if more:
        say_lines(more, "      ")
    if finding.do:
        say(f"      -> {finding.do}")
