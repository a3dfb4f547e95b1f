"""The command line: one file a command, and the one place where an error becomes an exit code.

Nothing heavy (boto3, psycopg, pydantic) is imported before a command runs, so that the first line appears at once.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import IO, Any

import click

from replicator import __version__
from replicator.cli.check import check
from replicator.cli.demo import demo
from replicator.cli.output import ERRORS_AS_JSON, errors_as_json, failed, hang_up, report
from replicator.cli.parked import parked
from replicator.cli.preview import preview
from replicator.cli.run import resync, run
from replicator.cli.schema import schema
from replicator.cli.status import status
from replicator.cli.version import version
from replicator.errors import ConfigError, ReplicatorError
from replicator.escape import escaped

INTERRUPTED = 130  # what shells say of Ctrl-C
SHOW_VALUES = "--show-values"  # before the command


class WrongUsage(click.ClickException):
    """A command that is none, as JSON."""

    exit_code = ConfigError.exit_code

    def __init__(self, error: click.ClickException) -> None:
        super().__init__(error.format_message())

    def show(self, file: IO[Any] | None = None) -> None:
        failed("UsageError", self.exit_code, [self.message])


@contextlib.contextmanager
def _usage(as_json: bool) -> Iterator[None]:
    """What click has against the arguments, in the form that errors have; help is no error."""
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.ClickException as e:
        if as_json:
            raise WrongUsage(e) from e
        e.message = escaped(e.message)  # type: ignore[misc]  # it quotes what was typed
        raise


def _tell_bug(error: BaseException, trace: str) -> None:
    failed(type(error).__name__, 1, ["a bug; its traceback is in this event"], traceback=trace)


class Commands(click.Group):
    """Every error that a person should read ends here; what is left over is a bug, shown as ``traces`` shows it."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As a program of its own."""
        from replicator.hooks import redaction

        tell = _tell_bug if errors_as_json(sys.argv[1:]) else redaction.to_people
        redaction.install(values=SHOW_VALUES in sys.argv[1:2], tell=tell)
        return super().__call__(*given, **named)

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
        return list(self.commands)  # in the order in which people need them


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    SHOW_VALUES, is_flag=True, expose_value=False, help="Show also the words of a bug, which may quote items."
)
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Keep DynamoDB tables somewhere else too.

    Backfill and live changes at once, in order, without losing any. Everything is told by one config file:

    \b
      replicator demo                  see it work, on this machine, without an account
      replicator check orders.yaml     is everything there and permitted?
      replicator run orders.yaml       copy, then follow, until stopped

    \b
    Exit codes: 0 done, or stopped cleanly
                1 a bug
                2 a wrong config, hook, table or command
                3 records were lost: a gap (replicator resync repairs the copy)
                4 not permitted
                5 another run has taken the pipeline over
                6 items are parked, so the copy does not equal the table
                7 status: no run is up, or it waits for something that fails
                8 a server cannot be reached (run waits for it instead)
    """


for command in (demo, check, preview, run, status, parked, resync, schema, version):
    main.add_command(command)
