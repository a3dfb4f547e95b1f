"""What a place has that has no table, and whether a store keeps commits apart: asked before anything is written."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from connectors.delta.options import S3
from connectors.delta.storage import Storage
from replicator.errors import NotPermitted

_LOG = "_delta_log"  # the folder that makes its parent a Delta table


def has_files(storage: Storage, place: str) -> bool:
    """Whether there are files or folders whose names do not begin with _."""
    if not storage.config.in_s3:
        return any(not name.startswith("_") for name in os.listdir(place))
    with storage.objects(place) as (objects, prefix):
        return any(not name.startswith("_") for name in objects.names(prefix))


def table_around(storage: Storage, place: str) -> str:
    """The folder of a Delta table that ``place`` is inside; empty if there is none, or none that may be looked at."""
    if storage.config.in_s3:
        bucket, *parts = place.removeprefix(S3).split("/")
        parents = [S3 + "/".join((bucket, *parts[:length])) for length in range(len(parts))]
        return next((parent for parent in parents if _has_log(storage, parent)), "")
    found = Path(place)
    folders = (*found.parents, *found.resolve().parents)  # a vacuum follows links
    return next((str(folder) for folder in folders if os.path.isdir(folder / _LOG)), "")


def _has_log(storage: Storage, place: str) -> bool:
    try:
        with storage.objects(place) as (objects, prefix):
            return bool(objects.names(f"{prefix}{_LOG}/".lstrip("/")))
    except NotPermitted:  # a role may know its own prefix alone
        return False


def keeps_commits(storage: Storage) -> bool:
    """Whether of two writers of one commit, one fails. Makes a small object for that, and removes it."""
    with storage.objects(storage.place()) as (objects, prefix):
        return objects.are_created_once(f"{prefix}_replicator_check_{uuid.uuid4().hex}".lstrip("/"))
