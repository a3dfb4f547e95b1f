"""``replicator check``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from replicator.cli.output import aside, config_argument, engine_option, json_option, put, say, say_lines
from replicator.log import TARGET, with_target

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.operations.finding import Finding

    Findings = Mapping[str | None, list[Finding]]
    """The findings by the name of the target; None: of a config with one target."""

_MARKS = {"ok": "ok  ", "note": "note", "problem": "FAIL", "gap": "FAIL", "forbidden": "FAIL", "unreachable": "FAIL"}


@click.command
@config_argument
@click.option("--create", is_flag=True, help="Create the table or schema for the checkpoints.")
@click.option("--offline", is_flag=True, help="Contact no server: only the config, the hook and the tables' options.")
@engine_option
@json_option
@click.pass_context
def check(
    ctx: click.Context,
    config: str,
    target: str | None,
    create: bool,
    offline: bool,
    engine: str | None,
    as_json: bool,
) -> None:
    """Verify everything a run needs, without changing anything.

    Connects to the source and the target, tests each permission, compares tables column by column, runs the transform
    hook twice on live items, and prints the statements that would create missing tables. Reports all errors at once,
    each with its remedy. Exits with the code that run would exit with: 0 ready; 2 something must be fixed; 3 gap; 4
    not permitted; 8 a server cannot be reached (run would retry).

    With --offline, for the CI of the repository that has the config: validates the config, loads the hook, and says
    what could not be checked. Environment variables need not be set. Exits with 0 or 2.
    """
    from replicator.engine.several import worst
    from replicator.operations.finding import exit_code

    if create and offline:
        raise click.UsageError("--create needs a server, and --offline contacts none; leave one out")
    with aside():
        found = _offline(config, engine, target) if offline else _online(config, engine, target, create=create)
    said: set[Finding] = set()
    for name, findings in found.items():
        TARGET.set(name)
        if as_json:
            _put(findings, name)
        else:
            _print(findings, name, said)
            said.update(findings)
    code = worst(exit_code(findings) for findings in found.values())
    if not as_json:
        errors = sum(_MARKS[finding.verdict] == "FAIL" for findings in found.values() for finding in findings)
        ready = "valid, as far as can be told offline" if offline else "ready to run"
        say(f"not ready: {errors} error{'s' * (errors > 1)} (exit code {code})" if code else ready)
    ctx.exit(code)


def _online(path: str, engine: str | None, target: str | None, *, create: bool) -> Findings:
    from replicator.config import settings as configs
    from replicator.operations import check as preflight

    loaded = configs.load_each(path, engine=engine, target=target)
    return _of_each(loaded, lambda config: preflight.check_given(config, create=create))


def _offline(path: str, engine: str | None, target: str | None) -> Findings:
    from replicator.config import settings as configs
    from replicator.operations.check_offline import check_offline

    loaded, unset = configs.load_each_offline(path, engine=engine, target=target)
    return _of_each(loaded, lambda config: check_offline(config, unset))


def _of_each(configs: Sequence[Config], findings_of: Callable[[Config], list[Finding]]) -> Findings:
    """The findings of each target, with what keeps it from running beside the others, or beside the other copy of a
    rebuild. On AWS Lambda each has a function of its own.
    """
    from replicator.config.engine import Lambda
    from replicator.engine.generations import collisions
    from replicator.engine.several import needs_own_process
    from replicator.operations.check import marked_by_others
    from replicator.operations.finding import problem

    found = {config.target_name: findings_of(config) for config in configs}
    for name, note in marked_by_others(configs).items():
        found[name].append(note)
    if isinstance(configs[0].engine, Lambda):
        return found
    several = len(configs) > 1
    apart = collisions(configs) if several else {}
    alone = needs_own_process(configs) if several or configs[0].replaces is not None else ""
    for config in configs:
        problems = filter(None, (alone, apart.get(config.pipeline)))
        found[config.target_name] += (problem("pipeline", text) for text in problems)
    return found


def _put(findings: Sequence[Finding], target: str | None) -> None:
    which = {} if target is None else {"target": target}
    for finding in findings:
        said = {"subject": finding.subject, "verdict": finding.verdict, "text": finding.text, "do": finding.do}
        put({**which, **{name: with_target(text) for name, text in said.items()}})


def _print(findings: Sequence[Finding], target: str | None, said: Collection[Finding]) -> None:
    """Print the findings but for facts that were said of an earlier target, such as those of the source. How it would
    start is said of each.
    """
    if target is not None:
        say(f"target {target}")
    for finding in findings:
        if finding in said and finding.subject != "pipeline" and _MARKS[finding.verdict] != "FAIL":
            continue
        first, _, more = finding.text.partition("\n")
        say(f"{_MARKS[finding.verdict]}  {finding.subject}: {first}")
        if more:
            say_lines(with_target(more), "      ")
        if finding.do:
            say(f"      -> {finding.do}")
