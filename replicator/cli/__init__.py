"""The command line: one file per command, and the only place where an error becomes an exit code.

Heavy libraries (boto3, psycopg, pydantic) are imported by the commands that need them, so that output starts at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, Any

import click

from replicator import __version__
from replicator.cli.aws_lambda import aws_lambda
from replicator.cli.check import check
from replicator.cli.cutover import cutover
from replicator.cli.demo import demo
from replicator.cli.estimate import estimate
from replicator.cli.history import history
from replicator.cli.infer import infer
from replicator.cli.init import init
from replicator.cli.output import ERRORS_AS_JSON, errors_as_json, failed, hang_up, report
from replicator.cli.parked import parked
from replicator.cli.policy import policy
from replicator.cli.preview import preview
from replicator.cli.rebuild import rebuild
from replicator.cli.resync import resync
from replicator.cli.run import run
from replicator.cli.schema import schema
from replicator.cli.status import status
from replicator.cli.strip import strip
from replicator.cli.verify import verify
from replicator.cli.version import version
from replicator.errors import ConfigError, ReplicatorError
from replicator.escape import escaped

INTERRUPTED = 130  # the shells' convention for Ctrl-C
SHOW_VALUES = "--show-values"  # goes before the command


class UsageErrorAsJson(click.ClickException):
    """A usage error that is shown as JSON."""

    exit_code = ConfigError.exit_code

    def __init__(self, error: click.ClickException) -> None:
        super().__init__(error.format_message())

    def show(self, file: IO[Any] | None = None) -> None:
        failed("UsageError", self.exit_code, [self.message])


@contextlib.contextmanager
def _usage(as_json: bool) -> Iterator[None]:
    """Show click's usage errors in the format of all other errors. Help is not an error."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as e:
        if as_json:
            raise UsageErrorAsJson(e) from e
        e.message = escaped(e.message)  # type: ignore[misc]  # it quotes the arguments
        raise


def _report_bug(error: BaseException, trace: str) -> None:
    failed(type(error).__name__, 1, ["unexpected error (a bug); see the traceback"], traceback=trace)


class Commands(click.Group):
    """Turns expected errors into messages and exit codes. Anything else is a bug, shown by ``redaction``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program, not within another one."""
        from replicator.hooks import redaction

        report_bug = _report_bug if errors_as_json(sys.argv[1:]) else redaction.print_trace
        redaction.install(values=SHOW_VALUES in sys.argv[1:2], tell=report_bug)
        return super().__call__(*args, **kwargs)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        as_json = errors_as_json(args)
        with _usage(as_json):
            ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta[ERRORS_AS_JSON] = as_json
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        from replicator import log

        log.silence_libraries()
        as_json = ctx.meta[ERRORS_AS_JSON]
        try:
            with _usage(as_json):
                return super().invoke(ctx)
        except ReplicatorError as e:
            report(e, as_json=as_json)
            ctx.exit(e.exit_code)
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            hang_up()
            ctx.exit(0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of first use, not by name


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    SHOW_VALUES,
    is_flag=True,
    expose_value=False,
    help="Include exception messages of bugs; they may contain item data.",
)
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Replicate DynamoDB tables to databases, search engines, Delta Lake, webhooks or DynamoDB.

    Initial snapshot plus ongoing changes, in order, including deletes. One config file describes one pipeline:

    \b
      replicator demo                  try it on this machine, without an AWS account
      replicator check orders.yaml     verify access, tables and the transform hook
      replicator run orders.yaml       copy the table, then follow changes until stopped
      replicator verify orders.yaml    prove that the copy equals the table

    \b
    Exit codes: 0 done, or stopped cleanly
                1 a bug
                2 invalid config, hook, table or command
                3 gap: records were lost (replicator resync repairs the copy)
                4 not permitted
                5 another run has taken over the pipeline
                6 items are parked, or differ, so the copy does not equal the table
                7 stopped before --until was reached; the pipeline is stopped, blocked by a failure, or not ready
                  for a cutover; verify: unconfirmed
                8 a server cannot be reached (run retries instead)
                130 interrupted
    """


_PLANNING = (demo, init, infer, estimate, check, policy, preview)
_RUNNING = (run, status, verify, parked, history, resync, rebuild, cutover, strip)
for command in (*_PLANNING, *_RUNNING, aws_lambda, schema, version):
    main.add_command(command)
