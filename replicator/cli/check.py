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
@click.option("--create", is_flag=True, help="Make the table or schema that is to keep the checkpoints.")
@json_option
@click.pass_context
def check(ctx: click.Context, config: str, create: bool, as_json: bool) -> None:
    """Look at everything a run needs, and change nothing (but for --create).

    Connects to the source and the target, tries each permission, compares tables column by column, runs the hook twice
    on live items, and prints the statements that would make absent tables. Everything that is wrong is named at once,
    with what to do. The exit code is the one with which run would end: 0: ready; 2: something must be changed; 3: a
    gap; 4: something is not permitted; 8: a server cannot be reached, where run would wait for it.
    """
    from replicator.config import settings as configs
    from replicator.operations import check as preflight
    from replicator.operations import finding as found

    with aside():
        findings = preflight.check(configs.load(config), create=create)
    for finding in findings:
        if as_json:
            put({"subject": finding.subject, "verdict": finding.verdict, "text": finding.text, "do": finding.do})
        else:
            _tell(finding)
    code = found.exit_code(findings)
    if not as_json:
        wrong = sum(_MARKS[finding.verdict] == "FAIL" for finding in findings)
        say(f"not ready: see the {wrong} line(s) with FAIL above (exit code {code})" if code else "ready to run")
    ctx.exit(code)


def _tell(finding: Finding) -> None:
    first, _, more = finding.text.partition("\n")
    say(f"{_MARKS[finding.verdict]}  {finding.subject}: {first}")
    if more:
        say_lines(more, "      ")
    if finding.do:
        say(f"      -> {finding.do}")
