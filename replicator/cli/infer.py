"""``replicator infer``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from replicator.cli.output import aside, config_argument, put, say, write_new

if TYPE_CHECKING:
    from replicator.operations.infer import Inferred, TableProposal
    from replicator.target.observed import Field


@click.command
@config_argument
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 10_000), help="Items to sample.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False),
    help="Write the whole config with the proposal to this new file, instead of printing the proposal.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was observed and proposed: a line of JSON per table.")
def infer(config: str, target: str | None, limit: int, output: str | None, as_json: bool) -> None:
    """Propose columns or a mapping, from a sample of live items.

    Reads items from all parts of the table, runs the transform hook on them, and prints YAML for the config: how often
    each field occurred, its types, the longest text, and which of the sampled documents the target would park. Shows no
    values, and changes neither table.
    """
    from replicator.config import settings as configs
    from replicator.operations.infer import infer as inferred

    if output is not None and as_json:
        raise click.UsageError("--output writes YAML, and --json prints JSON; leave one out")
    loaded = configs.load(config, target=target)
    section = ("target",) if loaded.target_name is None else ("targets", loaded.target_name)
    with aside():
        result = inferred(loaded, limit)
    if as_json:
        for table in result.tables:
            put(_as_json(table))
    elif output is None:
        _print(result, section)
    else:
        _write(result, config, output, section)


def _write(result: Inferred, config: str, output: str, section: tuple[str, ...]) -> None:
    """Write the config's text, which may contain secrets, with other tables to a new file of the same permissions."""
    from pathlib import Path

    from replicator.config import yaml_text

    tables = {table.table.name: table.options for table in result.tables}
    text = yaml_text.with_tables(Path(config).read_text(), tables, dict(comments(result)), section)
    write_new(output, text, Path(config).stat().st_mode & 0o777)
    for line in remarks(result):
        say(line)
    say(f"written to {output}; next: replicator check {output}")


def _print(result: Inferred, section: tuple[str, ...]) -> None:
    from replicator.config import yaml_text

    tables = {table.table.name: dict(table.proposal.options) for table in result.tables}
    about = {(*section, "tables", *path): text for path, text in comments(result)}
    values: Mapping[str, object] = {"tables": tables}
    for key in reversed(section):
        values = {key: values}
    of = max(result.source.items, result.sampled)
    say(f"# Proposed from {result.sampled:,} of about {of:,} items. Review it, put it in the config in place of")
    say("# table: or tables:, and run: replicator check CONFIG")
    for line in yaml_text.block(values, about):
        say(line)
    for line in remarks(result):
        say(f"# {line}")


def remarks(result: Inferred) -> Iterator[str]:
    """What would be parked, and what the proposal leaves out."""
    for table in result.tables:
        name = table.table.name
        for reason, count in table.parked.items():
            yield f"{name}: {count:,} of {table.documents:,} documents would be parked: {reason}"
        if not table.documents:
            yield f"{name}: none of the sampled items has a document there"
        elif not table.parked:
            yield f"{name}: none of the {table.documents:,} sampled documents would be parked"
        yield from (f"{name}: {sentence}" for sentence in table.proposal.omitted)
    for reason, count in result.refused.items():
        yield f"{count:,} of {result.sampled:,} items would be parked: {reason}"


def comments(result: Inferred) -> Iterator[tuple[tuple[str, ...], str]]:
    """A comment for each part of the proposed tables, by its path in them."""
    for table in result.tables:
        for path, field in table.proposal.about.items():
            yield (table.table.name, *path), describe(field, table.documents)


def describe(field: Field, documents: int) -> str:
    """A field in a few words, without values: how often, which types, how long."""
    share = f"{100 * field.count / documents:.3g} %" if documents else ""
    kinds = [kind if len(field.kinds) == 1 else f"{kind} {count:,}" for kind, count in field.kinds.items()]
    details = [share, ", ".join(kinds) or "always null"]
    if field.nulls and field.kinds:
        details.append(f"null {field.nulls:,}")
    if field.longest:
        details.append(f"up to {field.longest:,} byte{'s' * (field.longest != 1)}")
    return "; ".join(filter(None, details))


def _as_json(table: TableProposal) -> Mapping[str, object]:
    return {
        "table": table.table.name,
        "documents": table.documents,
        "options": table.options,
        "fields": [
            {
                "path": list(path),
                "name": field.name,
                "count": field.count,
                "nulls": field.nulls,
                "kinds": field.kinds,
                "longest_text_bytes": field.longest,
            }
            for path, field in table.proposal.about.items()
        ],
        "would_be_parked": table.parked,
        "omitted": list(table.proposal.omitted),
    }
