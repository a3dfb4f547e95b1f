"""The config of a pipeline: source, transform hook, target and options. Validated as a whole, then frozen."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from replicator.config.checkpoints import DEFAULT, KEPT_BY_TARGET, Keeping, keeping, with_checkpoints
from replicator.config.engine import LONGEST_TIMEOUT, Engine, Lambda, Local, Ray, engine, longest_hook, with_engines
from replicator.config.monitoring import Monitoring
from replicator.config.target import Destination, destination, target_schema
from replicator.config.targets import TARGETS, TargetSections, choice, expanded, unknown_target, with_targets
from replicator.config.validation import validated
from replicator.config.verification import Verify
from replicator.config.yaml_file import ConfigFile, Problem, Unset, read
from replicator.errors import ConfigError
from replicator.options import Access, Options, is_table_name
from replicator.source.export import Destination as Destined
from replicator.target.contract import can_rebuild, keeps_history, without_rebuild
from replicator.target.verification import can_compare, cannot_compare

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ARN = re.compile(r"arn:aws[a-z-]*:dynamodb:(?P<region>[a-z0-9-]+):\d*:table/[A-Za-z0-9_.-]{3,255}")
_EXPORT_ARN = re.compile(r"arn:aws[a-z-]*:dynamodb:[a-z0-9-]+:\d*:table/[A-Za-z0-9_.-]{3,255}/export/[A-Za-z0-9-]+")
_PREFIX = re.compile(r"(?!.*//)[A-Za-z0-9!_.'()=,:@+&-][A-Za-z0-9!_.'()=,:@+&/-]{0,511}(?<!/)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{2,62}")
_ACCOUNT = re.compile("[0-9]{12}")
_DURATION = re.compile(r"(?P<number>[0-9]{1,6}(\.[0-9]{1,6})?) ?(?P<unit>ms|s)")
_HOOK = re.compile(r"(.+\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


def _pipeline_name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise ValueError("must be 1 to 63 letters, digits, _ . or -, and start with a letter or digit")
    return name


def _table_name(name: str) -> str:
    if not is_table_name(name) and _ARN.fullmatch(name) is None:
        raise ValueError("must be a DynamoDB table name (3 to 255 letters, digits, _ . -) or ARN")
    return name


def _hook_name(name: str) -> str:
    if _HOOK.fullmatch(name) is None:
        raise ValueError("must have the form hooks.py:function or package.module:function")
    return name


def _seconds(given: object) -> object:
    """Seconds of a duration such as 100ms or 2s; a number is seconds already."""
    if not isinstance(given, str):
        return given
    match = _DURATION.fullmatch(given)
    if match is None:
        raise ValueError("must be a duration such as 100ms or 2s")
    return float(match["number"]) / (1000 if match["unit"] == "ms" else 1)


def _pollable(seconds: float) -> float:
    if not SHORTEST_POLL <= seconds <= LONGEST_POLL:
        raise ValueError("must be from 50ms to 10s")
    return seconds


PollInterval = Annotated[
    float, BeforeValidator(_seconds, json_schema_input_type=float | str), AfterValidator(_pollable)
]
SHORTEST_POLL, LONGEST_POLL = 0.05, 10.0  # seconds


class _Named(Options):
    table: Annotated[str, AfterValidator(_table_name)] = Field(description="name or ARN of the table")


class Source(Access, _Named):  # in this order ``table`` is validated first, and its ARN implies the region
    """The DynamoDB table to read. Settings left out come from the usual AWS chain (environment, profile, instance)."""

    region: str | None = Field(default=None, validate_default=True, description="e.g. eu-west-1; implied by an ARN")
    poll_interval: PollInterval | None = Field(
        default=None,
        description="how often a shard without new records is polled, e.g. 100ms, at most 10s; each request is "
        "charged. By default after 250 ms at first, then less often, up to 1 s",
    )

    @field_validator("region")
    @classmethod
    def _region_of_arn(cls, region: str | None, info: ValidationInfo) -> str | None:
        arn = _ARN.fullmatch(info.data.get("table") or "")
        if arn is None:
            return region
        if region not in (None, arn["region"]):
            raise ValueError(f"differs from the region in the table's ARN, {arn['region']}; leave it out")
        return arn["region"]


class Backfill(Options):
    """How existing items are copied: by a scan, or from an export of the table to S3, which uses no read capacity."""

    source: Literal["scan", "export"] = Field(
        default="scan", alias="from", description="export: read a point-in-time export from S3 instead of the table"
    )
    export: str | None = Field(
        default=None, description="ARN of an existing full export, less than 23 hours old; by default a new one is made"
    )
    bucket: str | None = Field(
        default=None, validate_default=True, description="S3 bucket for a new export, required for one"
    )
    prefix: str | None = Field(default=None, description="prefix of the new export's files in the bucket")
    bucket_owner: str | None = Field(default=None, description="account of the bucket, if it is another one")
    kms_key: str | None = Field(
        default=None, description="KMS key that encrypts the new export; by default S3 encrypts it with its own"
    )
    enabled: bool = Field(default=True, description="false: only changes from now on")
    segments: int = Field(
        default=4, ge=1, le=1_000_000, description="parallel scan segments; a change applies to the next backfill"
    )
    read_units: float | None = Field(
        default=None, ge=1, description="read capacity units per second that the scan may use"
    )

    @field_validator("export")
    @classmethod
    def _export_arn(cls, arn: str | None, info: ValidationInfo) -> str | None:
        if arn is not None and _EXPORT_ARN.fullmatch(arn) is None:
            raise ValueError("must be the ARN of an export: arn:aws:dynamodb:REGION:ACCOUNT:table/TABLE/export/ID")
        return _only_for_exports(arn, info)

    @field_validator("bucket")
    @classmethod
    def _for_a_new_export(cls, bucket: str | None, info: ValidationInfo) -> str | None:
        makes_one = info.data.get("source") == "export" and info.data.get("export", "wrong") is None
        if bucket is None and makes_one:
            raise ValueError("bucket is required with from: export, unless export: names an existing one")
        if bucket is not None and (_BUCKET.fullmatch(bucket) is None or bucket[-1] in ".-"):
            raise ValueError("must be the name of an S3 bucket (3 to 63 lowercase letters, digits, . and -)")
        return _not_beside_an_existing_export(bucket, info)

    @field_validator("prefix", "bucket_owner", "kms_key")
    @classmethod
    def _of_a_new_export(cls, value: str | None, info: ValidationInfo) -> str | None:
        return _not_beside_an_existing_export(value, info)

    @field_validator("prefix")
    @classmethod
    def _folder(cls, prefix: str | None) -> str | None:
        if prefix is not None and _PREFIX.fullmatch(prefix) is None:
            raise ValueError("must be 1 to 512 letters, digits and !_.'()=,:@+&/- and neither begin nor end with /")
        return prefix

    @field_validator("bucket_owner")
    @classmethod
    def _account(cls, owner: str | None) -> str | None:
        if owner is not None and _ACCOUNT.fullmatch(owner) is None:
            raise ValueError("must be an account number of 12 digits, in quotes")
        return owner

    @field_validator("enabled")
    @classmethod
    def _export_is_a_backfill(cls, enabled: bool, info: ValidationInfo) -> bool:
        if not enabled and info.data.get("source") == "export":
            raise ValueError("must not be false with from: export, which says what to copy existing items from")
        return enabled

    @field_validator("read_units")
    @classmethod
    def _of_a_scan(cls, units: float | None, info: ValidationInfo) -> float | None:
        if units is not None and info.data.get("source") == "export":
            raise ValueError("limits a scan; with from: export no read capacity is used, so leave it out")
        return units

    def destination(self, token: str) -> Destined | None:
        """Where a new export goes; None if the config names no bucket."""
        if self.bucket is None:
            return None
        return Destined(self.bucket, self.prefix, self.bucket_owner, self.kms_key, token)


def _only_for_exports(value: str | None, info: ValidationInfo) -> str | None:
    if value is not None and info.data.get("source") == "scan":
        raise ValueError("requires from: export")
    return value


def _not_beside_an_existing_export(value: str | None, info: ValidationInfo) -> str | None:
    if value is not None and info.data.get("export") is not None:
        raise ValueError("is for a new export, but export: names an existing one; give one of the two")
    return value


class Sections(Options):
    """The sections of a config file; ``target`` is validated by its connector, ``checkpoints`` by its store, ``engine``
    by its own model.
    """

    pipeline: Annotated[str, AfterValidator(_pipeline_name)] = Field(
        description="name under which all durable state is stored"
    )
    source: Source = Field(description="the DynamoDB table to read")
    transform: Annotated[str, AfterValidator(_hook_name)] | None = Field(
        default=None, description="transform hook: hooks.py:function (relative to this file) or package.module:function"
    )
    target: dict[str, Any] | None = Field(
        default=None, description="where documents are stored; either this or `targets` is required"
    )
    targets: dict[str, Any] | None = Field(
        default=None,
        description="where documents are stored in several places: targets by name, each with its own pipeline",
    )
    checkpoints: dict[str, Any] | None = Field(
        default=None, description="where checkpoints are stored; not for targets that store them (Postgres)"
    )
    backfill: Backfill = Field(default=Backfill(), description="how existing items are copied")
    on_gap: Literal["stop", "resync", "export"] = Field(
        default="stop",
        description="when records can no longer be read: stop, rescan the table, or read what changed since from "
        "incremental exports to `backfill.bucket`",
    )
    ttl_deletes: Literal["apply", "ignore"] = Field(
        default="apply",
        description="ignore: items that expire by DynamoDB's time to live stay in the target until a resync",
    )
    hook_timeout: float | None = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description="seconds the hook may take per image before its item is parked; null: no limit",
    )
    parked_limit: int = Field(default=10_000, ge=0, description="the run stops if more items than this are parked")
    replaces: str | None = Field(
        default=None,
        min_length=1,
        description="during a rebuild: the config of the copy that this one replaces, relative to this file",
    )
    monitoring: Monitoring | None = Field(
        default=None, description="serve metrics, health checks and a status page while the pipeline runs"
    )

    verify: Verify | None = Field(
        default=None, description="compare the copy with the source by itself, again and again, while the pipeline runs"
    )
    engine: dict[str, Any] | None = Field(default=None, description="what runs the pipeline; one process by default")

    @field_validator("ttl_deletes")
    @classmethod
    def _kept_until_asked(cls, expiry: str, info: ValidationInfo) -> str:
        if expiry == "ignore" and info.data.get("on_gap") == "export":
            raise ValueError(
                "ignore keeps expired items, and an export does not tell their removal from others, so on_gap: export "
                "would remove them. Leave out on_gap: a gap then ends the run, and you decide about replicator resync "
                "--remove-expired"
            )
        if expiry == "ignore" and info.data.get("on_gap") == "resync":
            raise ValueError(
                "ignore keeps expired items until a resync removes them, so on_gap: resync would remove them without "
                "asking. Leave out on_gap: a gap then ends the run, and you decide about replicator resync "
                "--remove-expired"
            )
        return expiry


@dataclass(frozen=True, slots=True)
class OfTargets:
    """One of a file's ``targets``. ``pipeline``: as the file names it. ``pipelines``: the names of all its targets'."""

    name: str
    pipeline: str
    pipelines: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A valid config of one pipeline. ``path``: its file; hooks are loaded relative to it.

    ``of_targets``: which one of the file's ``targets`` this is; None if the file has ``target``.

    ``checkpoints`` None: in the target if it stores them, else in a file beside the config.
    """

    pipeline: str
    source: Source
    target: Destination
    transform: str | None = None
    backfill: Backfill = field(default_factory=Backfill)
    on_gap: Literal["stop", "resync", "export"] = "stop"
    ttl_deletes: Literal["apply", "ignore"] = "apply"
    parked_limit: int = 10_000
    hook_timeout: float | None = 10.0
    checkpoints: Keeping | None = None
    monitoring: Monitoring | None = None
    verify: Verify | None = None
    replaces: str | None = None
    engine: Engine = field(default_factory=Local)
    path: Path = Path("config.yaml")
    of_targets: OfTargets | None = None

    @property
    def exports(self) -> bool:
        """Whether runs may read exports: as the backfill, or to repair a gap."""
        return self.backfill.source == "export" or self.on_gap == "export"

    def destination(self, token: str, *, incremental: bool) -> Destined | None:
        """Where a new export goes; None if the config does not ask for one of that type."""
        wanted = self.on_gap == "export" if incremental else self.backfill.source == "export"
        return self.backfill.destination(token) if wanted else None

    @property
    def target_name(self) -> str | None:
        """The name of the target, if it has one."""
        return self.of_targets.name if self.of_targets is not None else None

    @property
    def base(self) -> Path:
        """The directory that file names are relative to."""
        return self.path.resolve().parent


def load(
    path: str | Path, environ: Mapping[str, str] | None = None, engine: str | None = None, target: str | None = None
) -> Config:
    """Load a config file of which one target is meant: the only one, or ``target``. See ``load_each``."""
    return only(load_each(path, environ, engine, target))


def only(configs: Sequence[Config]) -> Config:
    """The one config of a file. ConfigError, which names them, if its targets are several."""
    if len(configs) > 1:
        raise ConfigError(choice(configs[0].path.name, [str(config.target_name) for config in configs]))
    return configs[0]


def load_each(
    path: str | Path, environ: Mapping[str, str] | None = None, engine: str | None = None, target: str | None = None
) -> Sequence[Config]:
    """Load a config file: the config of each of its targets. The ConfigError lists all mistakes, each with its line and
    its path in the file.

    ``engine``: the type to use whatever the file says; its own options of that type are kept. ``target``: the name of
    the only target that is wanted; what is wrong with the others is no mistake then.
    """
    file = read(Path(path), os.environ if environ is None else environ)
    problems = list(file.problems)
    configs = [] if file.values is None else _configs(file, problems, engine, target)
    problems += _together(configs)
    if problems or not configs:
        ordered = sorted(problems, key=lambda p: file.line(p))
        raise ConfigError(*dict.fromkeys(file.sentence(p) for p in ordered))
    return configs


def load_counterpart(
    path: str | Path, target: str | None, load: Callable[..., Sequence[Config]] = load_each
) -> Sequence[Config]:
    """Of another config file, the config of the target with this name; of all its targets if it has none. What is wrong
    with its other targets does not matter then.
    """
    file = read(Path(path), {})  # only the names matter, which are no placeholders
    return load(path, target=target if target in _named(file) else None)


STAND_IN = "stand-in"
_STAND_INS = (
    STAND_IN,
    "1",
    "https://stand-in.invalid",
    "postgresql://localhost/stand-in",
    "rediss://stand-in.invalid",
    "whsec_c3RhbmQtaW4tc3RhbmQtaW4tc3RhbmQtaW4=",
)
"""A value for each kind of option: names and texts; numbers and flags; addresses; secrets of a webhook. Files: the
config's own path."""


def load_offline(
    path: str | Path, environ: Mapping[str, str] | None = None, target: str | None = None
) -> tuple[Config, Sequence[str]]:
    """Like ``load``, on a machine that lacks the environment of a run. See ``load_each_offline``."""
    configs, notes = load_each_offline(path, environ, target)
    return only(configs), notes


def load_each_offline(
    path: str | Path, environ: Mapping[str, str] | None = None, target: str | None = None, engine: str | None = None
) -> tuple[Sequence[Config], Sequence[str]]:
    """Like ``load_each``, on a machine that lacks the environment of a run. ConfigError if the file is wrong anyway.

    Also returns a sentence for each placeholder without a value. Those have a stand-in, so that all else is validated;
    do not show these values, or connect with them.
    """
    given = os.environ if environ is None else environ
    file = read(Path(path), given)
    unset = [p for p in _of(target, file.problems) if isinstance(p, Unset)]
    stand_ins: dict[str, str] = {}
    for name in dict.fromkeys(p.name for p in unset):
        choices = [{**stand_ins, name: value} for value in (*_STAND_INS, str(Path(path).resolve()))]
        stand_ins = min(choices, key=lambda choice: len(_problems(read(Path(path), given, choice), engine, target)))
    filled = read(Path(path), given, stand_ins)
    problems = list(filled.problems)
    configs = [] if filled.values is None else _configs(filled, problems, engine, target)
    unknown = {p.path for p in unset}
    if not unset:  # two options that have the same stand-in may differ
        problems += _together(configs)
    wrong = [filled.sentence(p) for p in sorted(problems, key=filled.line) if p.path not in unknown]
    notes = [file.sentence(p) for p in unset]
    wanted = [name for name in _named(filled) if target in (None, name)]
    if wrong or not configs or len(configs) < len(wanted):
        raise ConfigError(*dict.fromkeys(wrong or [f"{n}; without it, nothing else can be checked" for n in notes]))
    return configs, notes


def _named(file: ConfigFile) -> Sequence[str]:
    """The names of the file's targets; none if it has only one, which needs no name."""
    given = (file.values or {}).get(TARGETS)
    return list(given) if isinstance(given, Mapping) else []


def _problems(file: ConfigFile, engine: str | None, target: str | None) -> Sequence[Problem]:
    problems = list(file.problems)
    if file.values is not None:
        _configs(file, problems, engine, target)
    return problems


def _of(target: str | None, problems: Sequence[Problem]) -> list[Problem]:
    """The problems but for those of other targets; all of them if no target is chosen."""
    return [p for p in problems if target is None or len(p.path) < 2 or p.path[0] != TARGETS or p.path[1] == target]


def _configs(
    file: ConfigFile, problems: list[Problem], engine_type: str | None, target: str | None
) -> Sequence[Config]:
    """The config of each target, or of the one that is wanted. Appends all that is wrong to ``problems``, and removes
    what is wrong with other targets. ConfigError if there is no such target.
    """
    every, misnamed = expanded(file.values)
    known = _named(file)
    if target is not None and target not in known:
        raise ConfigError(unknown_target(file.path.name, target, known))
    found = [one for one in every if target in (None, one.name)]
    problems += misnamed
    problems[:] = _of(target, problems)
    wanted = found or [TargetSections(None, file.values)]  # whatever else is wrong is reported, too
    pipelines = tuple(str(one.values.get("pipeline")) for one in every)
    configs = [_config(one, file, problems, engine_type, pipelines) for one in wanted]
    return [config for config in configs if config is not None]


def _config(
    one: TargetSections,
    file: ConfigFile,
    problems: list[Problem],
    engine_type: str | None,
    pipelines: Sequence[str],
) -> Config | None:
    """The config of one target; appends what is wrong with it. ``pipelines``: the names of all the file's pipelines."""
    reported = {p.path for p in problems}  # a placeholder without a value is reported once
    given = one.values
    sections, wrong = validated(Sections, given, ())
    target, wrong_target = destination(given.get("target"), file.path.resolve().parent)
    checkpoints, wrong_store = keeping(given.get("checkpoints"))
    runs_on, wrong_engine = _engine(one, engine_type, len(pipelines))
    found = [*wrong, *wrong_target, *wrong_store, *wrong_engine]
    problems += [p for p in map(one.problem, found) if p.path not in reported]
    if sections is None or target is None:
        return None
    if checkpoints is not None and hasattr(target.connector, "checkpoints"):
        if one.name is None or "checkpoints" in one.own:
            problems.append(one.problem(Problem(("checkpoints",), KEPT_BY_TARGET)))
        checkpoints = None  # those at the top level are for the other targets
    more = [*_loops(sections, target), *_of_another_table(sections.source, sections.backfill.export)]
    more += [*_of_exports(sections, target, runs_on), *_of_histories(sections, target)]
    more += [] if wrong_store else _shared(runs_on, target, checkpoints, sections.backfill)
    more += _behind_lambda(runs_on, sections, target)
    own = file.path.resolve()
    if sections.replaces is not None and (own.parent / sections.replaces).resolve() == own:
        text = "is this file itself; keep the old config as another file, and name that one"
        more.append(Problem(("replaces",), text))
    own_replaces = sections.replaces is not None and (one.name is None or "replaces" in one.own)
    if own_replaces and not can_rebuild(target.connector):
        more.append(Problem(("replaces",), without_rebuild(target.type, list(target.tables))))
    if sections.verify is not None and not can_compare(target.connector):
        more.append(Problem(("verify",), cannot_compare(target.type, target.connector)))
    problems += map(one.consequence, more)
    return Config(
        pipeline=sections.pipeline,
        source=sections.source,
        target=target,
        transform=sections.transform,
        backfill=sections.backfill,
        on_gap=sections.on_gap,
        ttl_deletes=sections.ttl_deletes,
        parked_limit=sections.parked_limit,
        hook_timeout=sections.hook_timeout,
        checkpoints=checkpoints,
        monitoring=sections.monitoring,
        verify=sections.verify,
        replaces=sections.replaces,
        engine=runs_on,
        path=file.path,
        of_targets=None if one.name is None else OfTargets(one.name, str(file.values.get("pipeline")), pipelines),
    )


def _engine(one: TargetSections, engine_type: str | None, targets: int) -> tuple[Engine, Sequence[Problem]]:
    """What runs the pipeline of one target, and what is wrong with it."""
    runs_on, problems = engine(one.values.get("engine"), engine_type)
    if not isinstance(runs_on, Lambda):
        return runs_on, problems
    try:
        return runs_on.of_target(one.name, targets), problems
    except ValueError as e:
        return runs_on, [*problems, Problem(("engine", "function"), str(e))]


def _together(configs: Sequence[Config]) -> Iterator[Problem]:
    """What two targets of one file must not share."""
    for at, later in enumerate(configs):
        for one in configs[:at]:
            place, target = (TARGETS, str(later.target_name)), later.target
            others = [found for places in one.target.places().values() for found in places]
            same = [name for name, places in target.places().items() if any(found in others for found in places)]
            if same:
                text = f"the target {one.target_name} has the table {min(same)} in the same place; each needs its own"
                yield Problem(place, text)
            elif reasons := [reason for found in target.places().items() for reason in _overlaps(*found, others)]:
                yield Problem(place, f"the target {one.target_name} and {reasons[0]}")
            path = _file(later)
            if path is not None and path == _file(one):
                text = f"the target {one.target_name} keeps its checkpoints in the same file; leave out the path"
                yield Problem((*place, "checkpoints"), text)


def _overlaps(name: str, places: Sequence[object], others: Sequence[object]) -> Iterator[str]:
    """Why a table could share documents with another one, as its connector's places say."""
    for found in places:
        reasons = (found.overlap(other) for other in others if hasattr(found, "overlap"))
        yield from (f"the table {name} overlap: {reason}" for reason in reasons if reason)


def _file(config: Config) -> Path | None:
    """The file of the checkpoints that the config names."""
    name = getattr(config.checkpoints.options, "path", None) if _is_file(config.checkpoints) else None  # type: ignore[union-attr]
    return None if name is None else (config.base / str(name)).resolve()


def _loops(sections: Sections, target: Destination) -> Iterator[Problem]:
    """What must not rescan the source unasked: a target that an opposite pipeline copies back to the source.

    A scan may find the copy of an item that has changed in the target meanwhile, and would restore that older state.
    """
    if not getattr(target.options, "loops", False):
        return
    if sections.on_gap != "stop":
        text = "would overwrite what applications wrote to the target since; with target.loops, leave out on_gap"
        yield Problem(("on_gap",), text)
    if sections.backfill.enabled and getattr(target.options, "adopt", False):
        text = "must be false with target.loops and adopt: a scan would restore older states of the target's own items"
        yield Problem(("backfill", "enabled"), text)


BY_WORKERS = ("elasticsearch", "opensearch", "dynamodb")
"""Targets without transactions that several processes may write to: workers, or containers of a function."""
IN_DYNAMODB = 64  # workers that each have a head of their own there, with some left for others


def _of_exports(sections: Sections, target: Destination, runs_on: Engine) -> Iterator[Problem]:
    """Where exports go, for the backfill or for repairs of gaps; and what such repairs need."""
    backfill, repairs = sections.backfill, sections.on_gap == "export"
    if backfill.source == "scan" and not repairs:
        for name in ("bucket", "prefix", "bucket_owner", "kms_key"):
            if getattr(backfill, name) is not None:
                yield Problem(("backfill", name), "requires from: export, or on_gap: export")
    if not repairs:
        return
    if backfill.bucket is None:
        text = "export requires backfill.bucket, the S3 bucket for exports of what changed during a gap"
        yield Problem(("on_gap",), text)
    if not isinstance(runs_on, Local):
        instead = "" if isinstance(runs_on, Lambda) else ", or on_gap: resync"
        yield Problem(("on_gap",), f"export is read by one process only: use the engine local{instead}")
    if not can_compare(target.connector):
        text = f"export needs a target that can list its documents and their versions; {target.type} cannot: use resync"
        yield Problem(("on_gap",), text)


def _of_histories(sections: Sections, target: Destination) -> Iterator[Problem]:
    """What a history begins with: without a scan no state of the table is known from its changes."""
    tables = [name for name, options in target.tables.items() if keeps_history(options)]
    if tables and not sections.backfill.enabled:
        text = f"must not be false with a history ({min(tables)}), which begins with a scan of all items"
        yield Problem(("backfill", "enabled"), text)


def _of_another_table(source: Source, export: str | None) -> Iterator[Problem]:
    """An export that names another table or region than the source."""
    if export is None:
        return
    region, table = export.split(":")[3], export.partition("/")[2].partition("/")[0]
    name = source.table.rpartition("/")[2]
    if table != name or source.region not in (None, region):
        text = f"is an export of the table {table} in {region}, and source.table is {name} in {source.region or region}"
        yield Problem(("backfill", "export"), text)


def _shared(runs_on: Engine, target: Destination, checkpoints: Keeping | None, backfill: Backfill) -> Iterator[Problem]:
    """What several workers need: a target that they may write to, and checkpoints that all of them reach."""
    transactional = hasattr(target.connector, "checkpoints")
    if isinstance(runs_on, Ray | Lambda) and not transactional and target.type not in BY_WORKERS:
        text = f"{target.type} is written by one process only: use the engine local"
        yield Problem(("engine", "type"), text)
    if isinstance(runs_on, Ray) and backfill.source == "export":
        yield Problem(("backfill", "from"), "export is read by one process only: use the engine local, or from: scan")
    in_file = not transactional if checkpoints is None else _is_file(checkpoints)
    if isinstance(runs_on, Lambda) and in_file:
        text = "a file is on one machine, and a function has none of its own: use type: dynamodb or postgres"
        yield Problem(("checkpoints",), text)
    if isinstance(runs_on, Ray) and runs_on.address is not None and in_file:
        text = "a file is on one machine, and engine.address names a cluster: use type: postgres or dynamodb"
        yield Problem(("checkpoints",), text)
    in_dynamodb = checkpoints is not None and checkpoints.type == "dynamodb"
    if isinstance(runs_on, Ray) and in_dynamodb and runs_on.workers > IN_DYNAMODB:
        text = f"at most {IN_DYNAMODB} with checkpoints in DynamoDB; for more, keep them in Postgres (type: postgres)"
        yield Problem(("engine", "workers"), text)


def _is_file(checkpoints: Keeping | None) -> bool:
    return checkpoints is not None and checkpoints.type == DEFAULT


def _behind_lambda(runs_on: Engine, sections: Sections, target: Destination) -> Iterator[Problem]:
    """What needs a process that is always there."""
    if not isinstance(runs_on, Lambda):
        return
    if sections.verify is not None:
        text = "with engine.type lambda, no run is up that could verify its copy; use the command replicator verify"
        yield Problem(("verify",), text)
    if sections.backfill.source == "export":
        text = "with engine.type lambda, existing items are scanned: leave out from: export"
        yield Problem(("backfill", "from"), text)
    history = any(map(keeps_history, target.tables.values()))
    limit, longest = sections.hook_timeout, longest_hook(LONGEST_TIMEOUT, history=history)
    if sections.transform is not None and (limit is None or limit > longest):
        text = f"with engine.type lambda, at most {longest:g}: an invocation has no time for a hook that takes longer"
        yield Problem(("hook_timeout",), text)
    if sections.on_gap == "resync":
        text = (
            "with engine.type lambda, no run is up that could rescan the table: leave out on_gap. The function records "
            "a gap, and goes on behind it; repair it with replicator resync CONFIG --now --until backfilled"
        )
        yield Problem(("on_gap",), text)
    if sections.replaces is not None:
        text = "with engine.type lambda, a rebuild has no run that follows both copies: rebuild with the engine local"
        yield Problem(("replaces",), text)


def schema() -> dict[str, Any]:
    """The JSON Schema of config files, with the options of all installed connectors and stores."""
    return with_targets(with_engines(with_checkpoints(target_schema(Sections))))
