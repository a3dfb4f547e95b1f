"""``replicator init``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from replicator.cli.output import aside, say, write_new
from replicator.errors import ConfigError, ReplicatorError
from replicator.escape import escaped

if TYPE_CHECKING:
    from replicator.config.settings import Config
    from replicator.operations.new_config import Answers

_MODE = 0o644  # it contains no secrets
_SAMPLED = 500  # items, for columns or a mapping


@click.command
@click.argument("output", metavar="[CONFIG]", type=click.Path(dir_okay=False), required=False)
@click.option("--table", help="DynamoDB table to replicate: its name or ARN.")
@click.option("--region", help="Region of the table.  [default: from the AWS chain]")
@click.option("--profile", help="Profile in ~/.aws/config for the source.")
@click.option("--endpoint-url", help="Endpoint of the source, e.g. DynamoDB Local.")
@click.option("--target", help="postgres, elasticsearch, opensearch, dynamodb, webhook, redis or delta.")
@click.option(
    "--url", help="Address of the target, without a password.  [default: a placeholder, e.g. ${POSTGRES_URL}]"
)
@click.option("--target-table", help="Table or index alias in the target.  [default: the source's name]")
@click.option("--target-region", help="Region of a DynamoDB target.  [default: the source's]")
@click.option("--pipeline", help="Name of the pipeline.  [default: the table's name]")
@click.option("--infer/--no-infer", default=True, help="Propose columns or a mapping if the table can be read.")
@click.option("--input/--no-input", "ask", default=None, help="Ask for what is missing.  [default: on a terminal]")
def init(output: str | None, infer: bool, ask: bool | None, **given: str | None) -> None:
    """Write a first config, with comments.

    Asks for what no option gives, reads a sample of the table if it can be reached (replicator infer), and writes
    CONFIG, by default PIPELINE.yaml. No file is overwritten.
    """
    from replicator.operations import new_config

    asking = sys.stdin.isatty() if ask is None else ask
    answers = _asked(given) if asking else _given(given)
    text = new_config.text(answers)
    name = output or f"{answers.name}.yaml"
    config, unset = _validated(text, answers)
    if infer:
        text = _with_tables(text, config)
    write_new(name, text, _MODE)
    say(f"written to {name}")
    for sentence in unset:
        say(f"set before a run: {sentence.partition(': ')[2]}")
    say(f"next: replicator check {name}")


def _given(given: dict[str, str | None]) -> Answers:
    from replicator.operations.new_config import KINDS, Answers

    missing = [f"--{name}" for name in ("table", "target") if not given[name]]
    if missing:
        raise ConfigError(
            f"{' and '.join(missing)} missing: without a terminal, init cannot ask (targets: {', '.join(KINDS)})"
        )
    return Answers(**given)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Question:
    """A question for one answer; ``default`` from the answers so far."""

    name: str
    text: str
    default: Callable[[dict[str, Any]], str | None] = lambda _: None


def _asked(given: dict[str, str | None]) -> Answers:
    """The given answers, and those to questions about the others. An answer that is wrong is asked for again."""
    from replicator.operations.new_config import KINDS, Answers, default_pipeline, default_target_table

    answers: dict[str, Any] = {name: value for name, value in given.items() if value}
    questions = [
        _Question("table", "DynamoDB table to replicate (name or ARN)"),
        _Question("region", "Its region (empty: from the AWS chain)", lambda _: ""),
        _Question("target", f"Target ({', '.join(KINDS)})", lambda _: "postgres"),
        _Question("url", "Address, without a password", lambda a: KINDS[a["target"]].url),
        _Question(
            "target_table", "Table or index alias there", lambda a: default_target_table(a["table"], a["target"])
        ),
        _Question("pipeline", "Name of the pipeline", lambda a: default_pipeline(a["table"])),
    ]
    for question in questions:
        skipped = (question.name == "region" and answers["table"].startswith("arn:")) or (
            question.name == "url" and KINDS[answers["target"]].url is None
        )
        if question.name not in answers and not skipped:
            answers |= _answer(question, answers)
    return Answers(**answers)


def _answer(question: _Question, answers: dict[str, Any]) -> dict[str, str]:
    def accept(text: str) -> str:
        text = text.strip()
        try:
            _check(question.name, {**answers, question.name: text})
        except ConfigError as e:
            raise click.BadParameter(escaped("; ".join(e.problems).removeprefix(f"--{question.name}: "))) from e
        return text

    text = click.prompt(question.text, default=question.default(answers), value_proc=accept, err=True)
    return {question.name: text} if text else {}


def _check(name: str, answers: dict[str, Any]) -> None:
    """ConfigError if the answer to this question is wrong, whatever the others will be."""
    from replicator.operations import new_config

    others = {"table": "orders", "target": "postgres", "pipeline": "orders"}
    complete = {**others, **{key: value for key, value in answers.items() if value}}
    if name == "table" and not answers["table"]:
        raise ConfigError("a table is needed")
    _validated(new_config.text(new_config.Answers(**complete)), new_config.Answers(**complete))


def _validated(text: str, answers: Answers) -> tuple[Config, list[str]]:
    """The config. ConfigError if an answer is wrong, by the options' names rather than the lines of a file."""
    from replicator.operations import new_config
    from replicator.operations.check_offline import check_offline

    try:
        config, unset = new_config.loaded(text, "init")
    except ConfigError as e:
        raise ConfigError(*(problem.partition(": ")[2] for problem in e.problems)) from e
    problems = [f"{f.subject}: {f.text}" for f in check_offline(config) if f.verdict == "problem"]
    if problems:
        raise ConfigError(*problems)
    return config, list(unset)


def _with_tables(text: str, config: Config) -> str:
    """The text with columns or a mapping for the table, if that has any, and can be read."""
    from replicator.cli.infer import comments, remarks
    from replicator.config import yaml_text
    from replicator.operations import infer
    from replicator.target.contract import Inferring

    if not isinstance(config.target.connector, Inferring):
        return text
    try:
        with aside():
            result = infer.infer(config, _SAMPLED)
    except ReplicatorError as e:
        say(f"no columns or mapping were proposed: {e}")
        say("the whole item is stored as it is; later, replicator infer CONFIG proposes them")
        return text
    for line in remarks(result):
        say(line)
    tables = {table.table.name: table.options for table in result.tables}
    return yaml_text.with_tables(text, tables, dict(comments(result)))
