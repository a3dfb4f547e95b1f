"""``replicator schema``."""

import json

import click

from replicator.cli.output import put_json


@click.command
def schema() -> None:
    """Print the JSON Schema of config files, for editors.

    \b
      replicator schema > replicator.schema.json
      # then, as the first line of a config:
      # yaml-language-server: $schema=replicator.schema.json
    """
    from replicator.config import settings

    put_json(json.dumps(settings.schema(), indent=2))
