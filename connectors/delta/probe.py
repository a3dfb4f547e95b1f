"""What a place has that has no table, and whether a store keeps commits apart: asked before anything is written."""

from __future__ import annotations

import os
import uuid

from connectors.delta.storage import Storage


def has_files(storage: Storage, place: str) -> bool:
    """Whether there are files or folders whose names do not begin with _."""
    if not storage.config.in_s3:
        return any(not name.startswith("_") for name in os.listdir(place))
    with storage.objects(place) as (objects, prefix):
        return any(not name.startswith("_") for name in objects.names(prefix))


def keeps_commits(storage: Storage) -> bool:
    """Whether of two writers of one commit, one fails. Makes a small object for that, and removes it."""
    with storage.objects(storage.place()) as (objects, prefix):
        return objects.are_created_once(f"{prefix}_replicator_check_{uuid.uuid4().hex}".lstrip("/"))
