"""Writes a first config from a few answers, with comments that lead to the next step."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from replicator.config import settings
from replicator.config.settings import Config
from replicator.config.yaml_text import scalar
from replicator.errors import ConfigError

_PASSWORD = re.compile(r"\bpassword\s*=", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TargetKind:
    """What a config of this target type needs to begin with. ``url``: the placeholder to propose; ``more``: lines;
    ``instead``: what it has if it has no address.
    """

    title: str
    url: str | None
    example: str = ""
    more: tuple[str, ...] = ()
    instead: str = "a region and credentials"


_STORE = (
    "# checkpoints:                          # by default a file beside this config, for one machine",
    "#   type: dynamodb                      # or postgres, so that a run may start anywhere",
    "#   table: replicator-checkpoints",
)
KINDS: Mapping[str, TargetKind] = {
    "postgres": TargetKind(
        "Postgres", "${POSTGRES_URL}", "postgresql://user:password@host:5432/database?sslmode=verify-full"
    ),
    "elasticsearch": TargetKind(
        "Elasticsearch",
        "${ELASTICSEARCH_URL}",
        "https://host:9200",
        ("  # api_key: ${ELASTICSEARCH_API_KEY}   # or username and password",),
    ),
    "opensearch": TargetKind(
        "OpenSearch",
        "${OPENSEARCH_URL}",
        "https://host:9200",
        (
            "  # username: replicator                # or aws: {} for an Amazon OpenSearch domain",
            "  # password: ${OPENSEARCH_PASSWORD}",
        ),
    ),
    "dynamodb": TargetKind(
        "DynamoDB",
        None,
        more=(
            "  # profile: other-account              # or role_arn; by default the credentials of the source",
            "  create: true                          # create the table like the source: keys, indexes, capacity",
        ),
    ),
    "webhook": TargetKind(
        "a webhook",
        "${WEBHOOK_URL}",
        "https://host/path",
        ("  secret: ${WEBHOOK_SECRET}             # whsec_ and the output of: openssl rand -base64 32",),
    ),
    "redis": TargetKind(
        "Redis",
        "${REDIS_URL}",
        "rediss://host:6379",
        (
            "  # username: replicator                # a user of the server's ACL",
            "  # password: ${REDIS_PASSWORD}",
        ),
    ),
    "delta": TargetKind(
        "Delta Lake",
        None,
        more=("  path: lake                            # a folder, or s3://bucket/prefix",),
        instead="a path, which is written as target.path: lake. Change it in the config that init writes without --url",
    ),
}


def _is_region(name: str) -> bool:
    """Whether it has the form of one; other endpoints than AWS's accept any."""
    area, dash, number = name.rpartition("-")
    return "-" in area and dash == "-" and number.isdigit()


@dataclass(frozen=True, slots=True)
class Answers:
    """What a first config is made from. ``region`` None: from the AWS chain, or the table's ARN."""

    table: str
    target: str
    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None
    url: str | None = None
    target_region: str | None = None
    target_table: str | None = None
    pipeline: str | None = None

    def __post_init__(self) -> None:
        for option, region in (("--region", self.region), ("--target-region", self.target_region)):
            if region and self.endpoint_url is None and not _is_region(region):
                raise ConfigError(f"{option}: {region} is not an AWS region such as eu-west-1")
        if self.target not in KINDS:
            raise ConfigError(f"--target: {self.target} must be one of {', '.join(KINDS)}")
        if self.url is not None and has_password(self.url):
            raise ConfigError(
                "--url: contains a password, which does not belong in a file; leave it out and set "
                f"{self.kind.url or 'an environment variable'} instead"
            )
        if self.url is not None and self.kind.url is None:
            raise ConfigError(f"--url: a {self.target} target has no address; it has {self.kind.instead}")

    @property
    def kind(self) -> TargetKind:
        return KINDS[self.target]

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return self.pipeline or default_pipeline(self.table)

    @property
    def address(self) -> str | None:
        return self.url or self.kind.url


def has_password(url: str) -> bool:
    """Whether an address contains a password itself, rather than a placeholder for it."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return False
    return (bool(password) and "${" not in str(password)) or _PASSWORD.search(url) is not None


def table_of(table: str) -> str:
    """The name in an ARN, or the name itself."""
    return table.partition(":table/")[2] if table.startswith("arn:") else table


def default_pipeline(table: str) -> str:
    """A pipeline's name for a table, without the first characters that only a table's name may have."""
    return table_of(table).lstrip("_.-")[:63] or "pipeline"


def default_target_table(table: str, target: str) -> str:
    name = table_of(table)
    return name.lower().lstrip("_-") or "copy" if target in ("elasticsearch", "opensearch") else name


def text(answers: Answers) -> str:
    """The config. ConfigError names what is wrong with an answer."""
    lines = [
        f"# Replicates the DynamoDB table {table_of(answers.table)} to {answers.kind.title}.",
        "# Next: replicator check CONFIG, then replicator run CONFIG. docs/configuration.md has all options.",
        "",
        _line(f"pipeline: {scalar(answers.name)}", "all durable state is stored under this name; keep it"),
        "",
        "source:",
        _line(f"  table: {scalar(answers.table)}", "needs a stream with new and old images"),
        *_access(answers),
        "",
        "# transform: hooks.py:order             # a Python function that reshapes or filters items: docs/hooks.md",
        "",
        "target:",
        f"  type: {answers.target}",
        *_address(answers),
        *answers.kind.more,
        f"  table: {scalar(answers.target_table or default_target_table(answers.table, answers.target))}",
        "",
        *(() if answers.target == "postgres" else (*_STORE, "")),
        "# backfill:",
        "#   segments: 4                         # parallel scan segments",
        "#   read_units: 100                     # read capacity units per second that the backfill may use",
        "",
        "# on_gap: stop                          # resync: rescan the table by itself if records were lost",
    ]
    return "\n".join(lines) + "\n"


def _line(line: str, comment: str) -> str:
    return f"{line.ljust(40)}# {comment}" if len(line) < 40 else f"{line}  # {comment}"


def _access(answers: Answers) -> list[str]:
    given = {"region": answers.region, "profile": answers.profile, "endpoint_url": answers.endpoint_url}
    lines = [f"  {name}: {scalar(value)}" for name, value in given.items() if value]
    return lines or ["  # region: eu-west-1                   # by default AWS_REGION, or that of the profile"]


def _address(answers: Answers) -> list[str]:
    if answers.address is None:
        region = answers.target_region or answers.region
        return [f"  region: {scalar(region)}"] if region else ["  # region: eu-west-1"]
    return [_line(f"  url: {scalar(answers.address)}", answers.kind.example)]


def loaded(written: str, name: str) -> tuple[Config, Sequence[str]]:
    """A config's text, validated as ``check --offline`` does. ConfigError with everything that is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(written)
        return settings.load_offline(path)
