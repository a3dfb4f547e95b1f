"""Asks Sentinels where the primary is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from connectors.redis.errors import unanswered
from replicator.errors import ConfigError, NotAuthenticated, ReplicatorError
from replicator.options import split_url

PORT = 26379
_ENCRYPTED = {"redis+sentinel": False, "rediss+sentinel": True}


@dataclass(frozen=True, slots=True)
class Sentinels:
    """``hosts``: with their ports. ``primary``: the name by which they know it."""

    hosts: tuple[tuple[str, int], ...]
    primary: str
    database: int
    encrypted: bool

    def __str__(self) -> str:
        return ", ".join(f"{host}:{port}" for host, port in self.hosts)


Connect = Callable[[str, int], Any]
"""A connection of the client's to a Sentinel, not open yet."""


def is_of_sentinels(url: str) -> bool:
    return url.partition("://")[0] in _ENCRYPTED


def sentinels_of(url: str) -> Sentinels | None:
    """Those of redis+sentinel://HOST:PORT,HOST:PORT/PRIMARY/DATABASE; None if the URL has another form."""
    scheme, _, rest = url.partition("://")
    places, _, path = rest.partition("/")
    primary, _, database = path.partition("/")
    hosts = [place_of(place, PORT) for place in places.split(",")]
    found = tuple(host for host in hosts if host is not None)
    fits = bool(primary) and not any(mark in path for mark in "?#") and _is_number(database or "0")
    if scheme not in _ENCRYPTED or len(found) < len(hosts) or not fits:
        return None
    return Sentinels(found, primary, int(database or 0), _ENCRYPTED[scheme])


def place_of(text: str, default: int) -> tuple[str, int] | None:
    """Host and port of HOST:PORT, or of HOST with the ``default`` port; None if it is neither."""
    parts = split_url(f"//{text}")
    try:
        port = default if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and parts.netloc == text and port else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def primary_of(sentinels: Sentinels, connect: Connect) -> tuple[str, int]:
    """Host and port of the primary, as the Sentinel with the latest configuration knows it: all are asked, at once.

    One that is cut off from the others may still name a primary that they have replaced.

    ReplicatorError if none responds, ConfigError if none of them knows the primary's name.
    """
    with ThreadPoolExecutor(len(sentinels.hosts)) as pool:
        answers = list(pool.map(partial(_answer, connect, sentinels.primary), sentinels.hosts))
    if found := [answer for answer in answers if isinstance(answer, _Known)]:
        latest = max(found, key=lambda known: known.epoch)
        return latest.host, latest.port
    errors = [answer for answer in answers if isinstance(answer, ReplicatorError)]
    if errors:
        raise next((e for e in errors if not isinstance(e, ConfigError)), errors[0])
    raise ConfigError(
        f"the Sentinels at {sentinels} know no primary named {sentinels.primary}; correct the name in target.url, "
        "which is behind the hosts"
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """``epoch``: of the configuration in which the Sentinel knows this primary; each failover has a higher one."""

    host: str
    port: int
    epoch: int


def _answer(connect: Connect, primary: str, place: tuple[str, int]) -> _Known | ReplicatorError | None:
    """What one Sentinel knows, None if it does not know the name; or why it does not say."""
    host, port = place
    try:
        return _asked(connect(host, port), primary)
    except (RedisError, OSError) as e:
        return _unanswered(e, f"the Sentinel at {host}:{port}")


def _asked(connection: Any, primary: str) -> _Known | None:
    try:
        connection.connect()
        connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", primary)
        found = connection.read_response()
        if found is None:
            return None
        connection.send_command("SENTINEL", "MASTER", primary)
        fields = connection.read_response()
    finally:
        connection.disconnect()
    epoch = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"config-epoch", b"0")
    return _Known(found[0].decode(), int(found[1]), int(epoch))


def _unanswered(error: RedisError | OSError, name: str) -> ReplicatorError:
    found = unanswered(error, name, sent=False)
    if isinstance(found, NotAuthenticated):
        advice = "Correct target.sentinel_username and target.sentinel_password, which are not the server's"
        return NotAuthenticated(f"{name} refuses the login", "login", name, advice)
    return found
