"""``replicator schema``."""

import json

import click

from replicator.cli.output import say


@click.command
def schema() -> None:
    """Print the JSON schema of config files, for editors.

    \b
      replicator schema > replicator.schema.json
      # then, as the first line of a config:
      # yaml-language-server: $schema=replicator.schema.json
    """
    from replicator import config

    say(json.dumps(config.schema(), indent=2, ensure_ascii=False))
