"""Reads the progress of pipelines, as far as it can be read."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from replicator.checkpoints.presence import check_known
from replicator.config import settings
from replicator.config.settings import Config
from replicator.engine.assembly import ends, reduced_guarantee
from replicator.engine.generations import by_alias, decoded, generations, rebuild_entry
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.pipeline.progress import Progress, as_values, progress
from replicator.target.contract import SECOND, UNKNOWN_KEYS, Aliased

RUN_TIMEOUT = 2.0  # seconds to wait for a run's own report
LARGEST_REPORT = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of one pipeline. ``progress`` None: it was read neither from the checkpoints nor from a run, but
    ``reported`` may have what the run itself says. ``error``: why the checkpoints cannot be read.
    """

    config: str
    pipeline: str | None = None
    progress: Progress | None = None
    reduced_guarantee: str = ""
    reported: Mapping[str, Any] | None = None
    error: ReplicatorError | None = None
    target: str | None = None  # its name, if the config has several
    live: bool | None = None  # during a rebuild: whether readers see this generation

    @property
    def values(self) -> dict[str, Any] | None:
        """The fields of ``status --json``."""
        if self.progress is not None:
            fields = as_values(self.progress)
            return {"pipeline": self.pipeline, **fields, "reduced_guarantee": self.reduced_guarantee or None}
        return dict(self.reported) if self.reported is not None else None

    @property
    def problems(self) -> Sequence[str]:
        if self.error is None:
            return ()
        return self.error.problems if isinstance(self.error, ConfigError) else (str(self.error),)

    @property
    def exit_code(self) -> int:
        values = self.values
        if values is not None:
            return health_code(values)
        return self.error.exit_code if self.error is not None else 1


def health_code(values: Mapping[str, Any]) -> int:
    """The exit code for monitors; the most severe condition decides."""
    if values["phase"] == "gap":
        return 3
    if values["phase"] == "stopped" or values["waiting_for"] is not None:
        return 7
    return 6 if values["parked"] else 0


def read_each(config: str, now: float, target: str | None = None) -> Sequence[Reading]:
    """A reading of each target, or of the one with this name. Errors that are meant for users are part of it."""
    try:
        loaded = settings.load_each(config, target=target)
    except ReplicatorError as e:
        return [Reading(config, error=e)]
    return [reading for one in loaded for reading in _generations(config, one, now)]


def _generations(config: str, loaded: Config, now: float) -> Sequence[Reading]:
    """One reading, or during a rebuild that of each generation, the live one first."""
    try:
        rebuild = decoded(rebuild_entry(loaded)) if loaded.replaces is not None else None
        if rebuild is None:
            return [read(config, now, loaded)]
        both = generations(loaded, rebuild)
    except ReplicatorError:
        return [read(config, now, loaded)]
    if both.first is None or both.second is None:
        return [read(config, now, both.first or both.second or loaded)]
    switched = _is_switched(both.first, both.second) if by_alias(loaded) else rebuild.switched
    first = replace(read(config, now, both.first), live=None if switched is None else not switched)
    second = replace(read(config, now, both.second), live=switched)
    return [second, first] if switched else [first, second]


def _is_switched(first: Config, second: Config) -> bool | None:
    """Whether readers see the second generation, as the aliases say; None if that is unknown."""
    try:
        seen = [_all_seen(config) for config in (first, second)]
    except ReplicatorError:
        return None
    return seen[1] if seen[0] != seen[1] else None


def _all_seen(config: Config) -> bool:
    with ends(config) as (target, _):
        assert isinstance(target, Aliased)
        tables = config.target.wanted(UNKNOWN_KEYS, own_ids=False)
        return set(target.seen(tables)) == {table.name for table in tables}


def read(config: str, now: float, loaded: Config) -> Reading:
    """``config``: the file, as the user names it, from which this one is ``loaded``."""
    try:
        return _stored(config, loaded, now)
    except TransientError as e:
        return Reading(config, loaded.pipeline, reported=_reported(loaded), error=e, target=loaded.target_name)
    except ReplicatorError as e:
        return Reading(config, loaded.pipeline, error=e, target=loaded.target_name)


def _stored(config: str, loaded: Config, now: float) -> Reading:
    with ends(loaded) as (target, checkpoints):
        claimed = checkpoints.read()
        if not loaded.pipeline.endswith(SECOND):  # which no run has begun until one is restarted
            check_known(loaded.pipeline, checkpoints, claimed)
        now_is = progress(claimed.entries, claimed.counts, now)
        return Reading(config, loaded.pipeline, now_is, reduced_guarantee(target), target=loaded.target_name)


def _reported(config: Config) -> Mapping[str, Any] | None:
    """What a run of the pipeline says of itself, if the config says where; None if it does not respond."""
    if config.monitoring is None:
        return None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{config.monitoring.address}/status.json", timeout=RUN_TIMEOUT) as response:
            values = json.loads(response.read(LARGEST_REPORT))
    except (OSError, ValueError, urllib.error.HTTPError):
        return None
    if isinstance(values, dict) and isinstance(values.get("pipelines"), list):  # those of a process, at one address
        values = next(
            (v for v in values["pipelines"] if isinstance(v, dict) and v.get("pipeline") == config.pipeline), {}
        )
    expected = as_values(Progress("live")).keys() | {"pipeline", "reduced_guarantee"}
    own = isinstance(values, dict) and values.keys() == expected and values["pipeline"] == config.pipeline
    return values if own else None
