"""Turns the server's errors into ours, by what to do about them."""

from __future__ import annotations

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError

_WAITS = {
    "OOM": "is out of memory (maxmemory) and refuses writes; waiting until there is room. Give it more memory, or "
    "remove what else is stored there",
    "READONLY": "is a read-only replica now; waiting until it is, or its address leads to, the primary",
    "LOADING": "is starting, and loads its data",
    "BUSY": "is busy with a script or function; waiting until that ends, or is ended with SCRIPT KILL",
    "MASTERDOWN": "is a replica without a connection to its primary",
    "NOREPLICAS": "has fewer replicas than it needs to accept writes (min-replicas-to-write); waiting for them",
    "MISCONF": "refuses writes because it cannot save its data to disk; waiting until it can. Its log says why",
    "NOSCRIPT": "has just restarted or failed over, or its scripts were removed; sending them again",
    "CLUSTERDOWN": "belongs to a cluster that is down: slots have no primary, or most primaries cannot be reached; "
    "waiting. redis-cli --cluster check HOST:PORT says why",
    "TRYAGAIN": "is moving keys to another node; waiting until they are there. If no resharding runs, one was "
    "interrupted: end it with redis-cli --cluster fix HOST:PORT",
}
_CLUSTER = ("MOVED", "ASK", "CROSSSLOT")
IN_CLUSTER = (
    "is a node of a Redis Cluster: write url: rediss+cluster://HOST:PORT,HOST:PORT (or redis+cluster://) with some of "
    "its nodes"
)
_LOGIN = "Correct target.username and target.password"


class ResponseLost(TransientError):
    """The commands may have been executed, or may still be."""


class Redirected(TransientError):
    """A node of a cluster did not execute a command: the keys are elsewhere, or on their way (then no ``place``).

    ``once``: only this command; the slot is not there yet.
    """

    def __init__(self, text: str, place: tuple[str, int] | None = None, *, once: bool = False) -> None:
        super().__init__(text)
        self.place = place
        self.once = once


def redirected(error: RedisError, node: str) -> Redirected | None:
    """None for any other error. An empty host in it is that of the ``node``."""
    if isinstance(error, TryAgainError):
        return Redirected(f"{node} {_WAITS['TRYAGAIN']}")
    if isinstance(error, AskError):  # and MovedError
        if error.host == "?":  # which has no hostname although it should: CLUSTER NODES has its address
            return Redirected(f"{node} has given slot {error.slot_id} to a node without a hostname")
        host = error.host or node.rpartition(":")[0].rpartition(" ")[2]
        if not isinstance(error, MovedError):
            return Redirected(f"{node} {_WAITS['TRYAGAIN']}", (host, error.port), once=True)
        return Redirected(f"{node} has given slot {error.slot_id} to {host}:{error.port}", (host, error.port))
    return None


_CODES: tuple[tuple[type[RedisError], str], ...] = (
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (BusyLoadingError, "LOADING"),
    (NoScriptError, "NOSCRIPT"),
    (NoPermissionError, "NOPERM"),
    (AuthenticationError, "NOAUTH"),
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (TryAgainError, "TRYAGAIN"),
    (ClusterCrossSlotError, "CROSSSLOT"),
)


def code_of(error: RedisError) -> tuple[str, str]:
    """The code of a server's error, which the client takes off most texts, and the text."""
    text = str(error)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, text
    return code_in(text)


def code_in(text: str) -> tuple[str, str]:
    """The code that an error begins with, and the text; Redis 6 puts the place in the script in front of both."""
    line, found, rest = text.rpartition("@user_script:")[2].partition(": ")
    text = (rest if found and line.strip().isdigit() else text).lstrip("-")
    if "executing the script can't" in text:
        return "NOPERM", text
    first = text.partition(" ")[0]
    return (first if first.isalpha() and first.isupper() else "ERR"), text


def unanswered(error: RedisError | OSError, server: str, *, sent: bool) -> ReplicatorError:
    """The error for a connection that failed. ``sent``: whether a command may have reached the server."""
    if isinstance(error, AuthenticationError | BusyLoadingError | ResponseError):
        return failure(*code_of(error), server)
    kind = ResponseLost if sent else TransientError
    if isinstance(error, RedisTimeout):
        return kind(f"{server} does not respond in time")
    text = str(error).rstrip(".")
    if isinstance(error, ConnectionError) and "max number of clients" in text:
        return TransientError(f"{server} has as many clients as it may have (maxclients)")
    if "ostname mismatch" in text or "IP address mismatch" in text:
        return ConfigError(
            f"{server} has a certificate for another name: {text}. Name the server as the certificate does; nodes of a "
            "cluster and servers behind Sentinels are named by what they announce (docs/targets/redis.md)"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return ConfigError(
            f"{server} has a certificate that is not trusted: {text}. Set target.ca_certs to the authority that issued "
            "it"
        )
    return kind(f"{server} cannot be reached: {text}" if not sent else f"{server} closed the connection: {text}")


def failure(code: str, text: str, server: str) -> ReplicatorError:
    """The error for a command that the server refused."""
    if code in _WAITS:
        return TransientError(f"{server} {_WAITS[code]}")
    if code in _CLUSTER:
        return ConfigError(f"{server} {IN_CLUSTER}")
    if code in ("NOAUTH", "WRONGPASS") or "AUTH" in text or "invalid password" in text:
        return NotAuthenticated(f"{server} refuses the login", "login", server, _LOGIN)
    if code == "NOPERM":
        advice = "Grant it to the user of the target; docs/targets/redis.md lists what it needs"
        return NotPermitted(f"{server} does not permit what replicator does there: {_first(text)}", "", server, advice)
    if code in ("WRONGTYPE", "FOREIGN"):
        return ConfigError(
            f"{server}: a key in which replicator keeps a version (replicator:{{…}}) was written by something else. "
            "Nothing else may write to keys that begin with replicator:. Find those of the form replicator:{…} whose "
            "value is neither digits, nor digits and d, nor digits, e and digits, and remove them. Leave all others "
            "that begin with replicator: as they are, tombstones among them"
        )
    return ConfigError(f"{server} returned an error: {code} {_first(text)}")


def _first(text: str) -> str:
    """Without what may quote arguments."""
    return text.partition("\n")[0][:200]
