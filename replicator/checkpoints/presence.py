"""Whether a pipeline is there at all. A typo in its name must not look like a pipeline that has nothing to tell."""

from __future__ import annotations

from replicator.checkpoints.contract import Checkpoints, Claimed, Listed, Store
from replicator.errors import ConfigError


def check_known(pipeline: str, checkpoints: Checkpoints, stored: Claimed) -> None:
    """ConfigError if nothing is stored under the name ``pipeline``; it says which pipelines are there instead."""
    if stored.entries:
        return
    place = checkpoints.place if isinstance(checkpoints, Store) else "the target's database"
    others = checkpoints.pipelines() if isinstance(checkpoints, Listed) else ()
    there = f"; there are: {', '.join(others)}" if others else ""
    raise ConfigError(
        f"pipeline: there is no pipeline {pipeline} in {place}{there}. If the name is a typo, correct it in the "
        "config; if the pipeline is new, its first copy is made by: replicator run CONFIG"
    )
