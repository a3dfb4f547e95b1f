"""Checks that a pipeline exists, so that a typo in its name does not look like an empty pipeline."""

from __future__ import annotations

from replicator.checkpoints.contract import Checkpoints, Claimed, Listed, Store
from replicator.errors import ConfigError


def check_known(pipeline: str, checkpoints: Checkpoints, stored: Claimed) -> None:
    """ConfigError if nothing is ``stored`` for ``pipeline``. Lists the pipelines that exist, if the store can."""
    if stored.entries:
        return
    place = checkpoints.place if isinstance(checkpoints, Store) else "the target's database"
    others = checkpoints.pipelines() if isinstance(checkpoints, Listed) else ()
    existing = f"; existing pipelines: {', '.join(others)}" if others else ""
    raise ConfigError(
        f"pipeline: there is no pipeline {pipeline} in {place}{existing}. If the name is a typo, correct it in the "
        "config; if the pipeline is new, start it with: replicator run CONFIG. A first run that waits for a server has "
        "stored nothing yet: its output says what it waits for"
    )
