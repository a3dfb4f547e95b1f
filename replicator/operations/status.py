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
from replicator.engine.generations import SECOND, decoded, first_of, rebuild_entry, second_of
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.pipeline.progress import Progress, as_values, progress

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


def read_each(config: str, now: float) -> Sequence[Reading]:
    """One reading, or during a rebuild that of each generation, the live one first."""
    try:
        loaded = settings.load(config)
        rebuild = decoded(rebuild_entry(loaded)) if loaded.replaces is not None else None
        if rebuild is None:
            return [read(config, now)]
        both = first_of(loaded, rebuild), second_of(loaded, rebuild)
    except ReplicatorError:
        return [read(config, now)]
    live, other = both[::-1] if rebuild.switched else both
    return [replace(read(config, now, live), live=True), replace(read(config, now, other), live=False)]


def read(config: str, now: float, generation: Config | None = None) -> Reading:
    """Errors that are meant for users are part of the result. ``generation``: the config to use instead."""
    loaded = generation
    try:
        loaded = generation or settings.load(config)
        return _stored(config, loaded, now)
    except TransientError as e:
        assert loaded is not None
        return Reading(config, loaded.pipeline, reported=_reported(loaded), error=e)
    except ReplicatorError as e:
        return Reading(config, loaded.pipeline if loaded is not None else None, error=e)


def _stored(config: str, loaded: Config, now: float) -> Reading:
    with ends(loaded) as (target, checkpoints):
        claimed = checkpoints.read()
        if not loaded.pipeline.endswith(SECOND):  # which no run has begun until one is restarted
            check_known(loaded.pipeline, checkpoints, claimed)
        return Reading(
            config, loaded.pipeline, progress(claimed.entries, claimed.counts, now), reduced_guarantee(target)
        )


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
    expected = as_values(Progress("live")).keys() | {"pipeline", "reduced_guarantee"}
    own = isinstance(values, dict) and values.keys() == expected and values["pipeline"] == config.pipeline
    return values if own else None
