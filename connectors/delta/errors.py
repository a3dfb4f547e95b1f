"""Turns the errors of the client for Delta Lake into ours, by what to do about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError
from replicator.options import split_url

_DENIED = ("AccessDenied", "access denied", "Permission denied", "status 403", "403 Forbidden", "os error 13")
_LOGINS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_FULL = ("os error 28", "No space left")
_READ_ONLY = ("os error 30", "Read-only file system")
_REFUSED = ("failed validation check", "Cannot cast schema")
_LONGEST = 300  # characters of the client's own text


class Missing(ConfigError):
    """There is no table at the place."""

    def __init__(self, place: str) -> None:
        super().__init__(f"there is no Delta table at {place}")


class Conflict(TransientError):
    """Another commit came first."""

    def __init__(self, place: str) -> None:
        super().__init__(f"{place} was changed by others at the same time")


@contextmanager
def translated(place: str) -> Iterator[None]:
    """Raise our errors instead of the client's. ``place``: of the table, for messages."""
    try:
        yield
    except TableNotFoundError as e:
        raise Missing(place) from e
    except CommitFailedError as e:
        if is_conflict(str(e)):
            raise Conflict(place) from e
        raise failure(str(e), place) from e
    except (DeltaError, OSError, pa.ArrowException) as e:
        text = str(e)
        if "No files in log segment" in text or "no log files" in text.lower():
            raise Missing(place) from e
        raise failure(text, place) from e


def is_conflict(text: str) -> bool:
    return "Failed to commit transaction" in text or "oncurrent" in text or "already exists" in text


def failure(text: str, place: str) -> ReplicatorError:
    """The error for a request that failed."""
    if "NoSuchBucket" in text or "The specified bucket does not exist" in text:
        return ConfigError(f"{place}: there is no bucket {bucket_of(place)}. Create it, or correct target.path")
    if any(mark in text for mark in _LOGINS):
        return NotAuthenticated(f"{place}: S3 refuses the credentials: {_first(text)}", "login", place, _LOGIN)
    if any(mark in text for mark in _DENIED):
        return NotPermitted(f"{place} may not be read or written: {_first(text)}", "", place, _PERMISSIONS)
    if any(mark in text for mark in _REFUSED):  # without the client's text, which has values
        return ConfigError(f"{place} {_ALTERED}")
    if any(mark in text for mark in _READ_ONLY):
        return ConfigError(f"{place} is on a file system that is mounted read-only. Correct target.path")
    if any(mark in text for mark in _FULL):
        return TransientError(f"{place}: no space is left on the device; waiting until there is")
    return TransientError(f"{place} cannot be read or written: {_first(text)}")


_ALTERED = (
    "refuses rows since its columns or constraints were changed by others. Undo that: replicator check names columns "
    "that differ, and a constraint must hold for every row"
)
_LOGIN = "Correct target.profile, target.role_arn or the credentials of the environment"
_PERMISSIONS = "Give the user the right to read and write there; for S3, replicator policy CONFIG prints the policy"


def bucket_of(place: str) -> str:
    return split_url(place).netloc


def _first(text: str) -> str:
    """On one line, without the marks of a terminal, which the client adds."""
    plain = "".join(mark if mark.isprintable() else " " for mark in text)
    return " ".join(plain.split())[:_LONGEST]
