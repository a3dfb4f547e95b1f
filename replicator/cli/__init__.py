"""The command line: one file a command, and the one place where an error becomes an exit code.

Nothing heavy (boto3, psycopg, pydantic) is imported before a command runs, so that the first line appears at once.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from replicator import __version__
from replicator.cli.check import check
from replicator.cli.demo import demo
from replicator.cli.output import JSON_ASKED, hang_up, report
from replicator.cli.parked import parked
from replicator.cli.preview import preview
from replicator.cli.run import resync, run
from replicator.cli.schema import schema
from replicator.cli.status import status
from replicator.cli.version import version
from replicator.errors import ReplicatorError
from replicator.escape import escaped

SHOW_VALUES = "--show-values"  # before the command


class Commands(click.Group):
    """Every error that a person should read ends here; what is left over is a bug, shown as ``traces`` shows it."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """As a program of its own."""
        from replicator import traces

        traces.install(values=SHOW_VALUES in sys.argv[1:2])
        return super().__call__(*given, **named)

    def invoke(self, ctx: click.Context) -> Any:
        from replicator import log

        log.hush()
        try:
            return super().invoke(ctx)
        except ReplicatorError as e:
            report(e, as_json=ctx.meta.get(JSON_ASKED, False))
            ctx.exit(e.exit_code)
        except click.ClickException as e:
            e.message = escaped(e.message)  # type: ignore[misc]  # it quotes what was typed
            raise
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
