"""``replicator version``."""

import click

from replicator import __version__
from replicator.cli.output import say


@click.command
def version() -> None:
    """Print the version."""
    say(__version__)
