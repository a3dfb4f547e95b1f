"""``replicator cutover``."""

from __future__ import annotations

import re
from typing import Any

import click

from replicator.cli.output import config_argument, json_option, note, put, say
from replicator.log import with_target

_DURATION = re.compile(r"([1-9]\d{0,5})([smhd])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Seconds, written as 30s, 5m, 24h or 7d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        matched = _DURATION.fullmatch(str(value))
        if matched is None:
            self.fail(f"{value!r} is not a duration such as 30s, 5m, 24h or 7d", param, ctx)
        return int(matched[1]) * _UNITS[matched[2]]


@click.command
@config_argument
@click.option("--wait", is_flag=True, help="Wait until the pipeline is live and drained.")
@click.option(
    "--quiet", default="30s", show_default=True, type=Duration(), help="How long the stream must have been idle."
)
@click.option(
    "--verified-within",
    default="24h",
    show_default=True,
    type=Duration(),
    help="Maximum time since the verify pass began.",
)
@json_option
@click.pass_context
def cutover(
    ctx: click.Context,
    config: str,
    target: str | None,
    wait: bool,
    quiet: float,
    verified_within: float,
    as_json: bool,
) -> None:
    """Say whether readers or writers may switch to the copy now: yes, or no and why.

    Yes needs a live run, no gap, nothing parked, a recent verify pass without differences, no request in doubt, and a
    drained stream: every shard was read after this command began, and the last record is older than --quiet. Prints a
    certificate, the table settings that differ (DynamoDB), and the command that freezes the source's writers, which
    is never run. Exits with 0 for yes, otherwise by the first reason: 3 gap, 6 the copy is not equal, 7 not live, not
    verified or not drained.
    """
    from replicator.config import settings as configs
    from replicator.engine.generations import resolved
    from replicator.operations import cutover as operation

    answer = operation.cutover(
        resolved(configs.load(config, target=target)),
        wait=wait,
        quiet=quiet,
        verified_within=verified_within,
        tell=lambda text: note(f"waiting: {text}"),
    )
    freeze, allow = answer.freeze or (None, None)
    if as_json:
        put(with_target({**answer.certificate, "freeze": freeze, "allow_again": allow}))
        ctx.exit(answer.code)
    say("yes: the copy may take over" if not answer.reasons else "no:")
    for reason in answer.reasons:
        say(f"  {reason.text}")
    for difference in answer.settings:
        say(f"note: {difference}")
    if freeze is not None:
        say(f"to freeze the source's writers: {freeze}")
        say(f"to allow them again: {allow}")
    certificate = answer.certificate
    through = certificate["read_through"]
    verified = certificate["verify"] and certificate["verify"]["ended"]
    say(
        f"every record before {operation.moment(through) if through else 'unknown'} is stored; "
        f"verified {operation.moment(verified) if verified else 'never'}; --json prints the certificate"
    )
    ctx.exit(answer.code)
