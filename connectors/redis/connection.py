"""Connections to one server, through the client's own: commands are written out here, many at a time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr
from redis import connection
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from connectors.redis.cluster import Place, Seeds, seeds_of
from connectors.redis.errors import ResponseLost, code_of, failure, redirected, unanswered
from connectors.redis.options import RedisOptions
from connectors.redis.scripts import Script
from connectors.redis.sentinel import Sentinels, primary_of, sentinels_of
from replicator.errors import ConfigError, NotAuthenticated, ReplicatorError, TransientError
from replicator.options import is_loopback, split_url
from replicator.target import in_doubt

_client: Any = connection  # partly without types
_ASKING = 5.0  # seconds to wait for a Sentinel at most: another one may know
_ASKING_AGAIN = 1.0  # while a connection is open, and changes wait
_SENT_AT_ONCE = 1 << 14  # bytes, after which it is asked whether the batch takes too long


def packed(*arguments: bytes) -> bytes:
    """A command in the server's protocol."""
    return b"*%d\r\n" % len(arguments) + b"".join([b"$%d\r\n%b\r\n" % (len(text), text) for text in arguments])


def call(script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    return packed(b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *arguments)


ScriptCall = tuple[Sequence[bytes], Sequence[bytes]]
"""Keys and arguments."""


def loading(script: Script) -> bytes:
    return packed(b"SCRIPT", b"LOAD", script.text)


class Unencrypted(ConfigError):
    """Sentinels lead to another host, without TLS."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and how to log in. ``node``: the one of a cluster that it is."""

    options: RedisOptions
    node: Place | None = None

    def __str__(self) -> str:
        parts = split_url(self.options.url)
        if self.node is not None:
            return f"Redis at {self.node[0]}:{self.node[1]}"
        if self.sentinels is not None:
            return f"Redis {self.sentinels.primary} (Sentinel at {self.sentinels})"
        if parts.scheme == "unix":
            return f"Redis at {parts.path}"
        return f"Redis at {parts.hostname}:{parts.port or 6379}"

    @property
    def sentinels(self) -> Sentinels | None:
        return sentinels_of(self.options.url)

    @property
    def seeds(self) -> Seeds | None:
        return seeds_of(self.options.url)

    @property
    def follows(self) -> bool:
        """Whether Sentinels or the other nodes say where the primary is."""
        return self.sentinels is not None or self.node is not None

    @property
    def database(self) -> int:
        if self.seeds is not None:
            return 0
        if self.sentinels is not None:
            return self.sentinels.database
        parts = split_url(self.options.url)
        return 0 if parts.scheme == "unix" else int(parts.path.strip("/") or 0)

    def connection(self) -> Any:
        """Not open yet. ReplicatorError if Sentinels must say where it leads, and do not."""
        options, parts = self.options, split_url(self.options.url)
        common = {"db": self.database, **_login(options.username, options.password)}
        if self.node is not None and self.seeds is not None:
            return self._tcp(*self.node, self.seeds.encrypted, options.timeout, common)
        if self.sentinels is not None:
            host, port = self.primary(self.sentinels)
            return self._tcp(host, port, self.sentinels.encrypted, options.timeout, common)
        if parts.scheme == "unix":
            return _client.UnixDomainSocketConnection(path=parts.path, **_waits(options.timeout), **common)
        return self._tcp(parts.hostname or "", parts.port or 6379, parts.scheme == "rediss", options.timeout, common)

    def primary(self, sentinels: Sentinels, within: float = _ASKING) -> tuple[str, int]:
        """Host and port, as the Sentinels know them now."""
        login = _login(self.options.sentinel_username, self.options.sentinel_password)
        timeout = min(within, self.options.timeout)

        def connect(host: str, port: int) -> Any:
            return self._tcp(host, port, sentinels.encrypted, timeout, login)

        host, port = primary_of(sentinels, connect)
        self._require_encrypted(sentinels, host)
        return host, port

    def moved_to(self) -> tuple[str, int] | None:
        """The primary that Sentinels know now; None if there are none, or they do not say: a new connection would."""
        if self.sentinels is None:
            return None
        try:
            return self.primary(self.sentinels, _ASKING_AGAIN)
        except Unencrypted:
            raise
        except ReplicatorError:
            return None

    def _require_encrypted(self, sentinels: Sentinels, host: str) -> None:
        if not (sentinels.encrypted or self.options.insecure or is_loopback(host)):
            raise Unencrypted(
                f"the Sentinels at {sentinels} say that {sentinels.primary} is at {host}, and without TLS items would "
                "be sent there unencrypted; use rediss+sentinel://, or set insecure: true"
            )

    def _tcp(self, host: str, port: int, encrypted: bool, timeout: float, login: Mapping[str, Any]) -> Any:
        options, place = self.options, {"host": host, "port": port, "socket_connect_timeout": timeout}
        common = {**place, **_waits(timeout), **login}
        if not encrypted:
            return _client.Connection(**common)
        own = {"ssl_certfile": options.client_cert, "ssl_keyfile": options.client_key}
        trust = {"ssl_ca_certs": options.ca_certs, "ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return _client.SSLConnection(**common, **trust, **own)


def _login(username: str | None, password: SecretStr | None) -> dict[str, Any]:
    return {"username": username, "password": None if password is None else password.get_secret_value()}


def _waits(timeout: float) -> dict[str, Any]:
    """Without retries: the engine retries, in one place, and reports it."""
    return {"socket_timeout": timeout, "protocol": 2, "retry": Retry(NoBackoff(), 0)}


@dataclass(slots=True)
class Sent:
    """Commands that were sent; ``left``: how many responses are to come. ``unsent``: why some were not sent."""

    left: int
    unsent: ReplicatorError | None = None


@dataclass(slots=True)
class Server:
    """One connection, opened at first use and again after a failure. ``opened``: how often.

    ``run_id`` and ``info``: of the server it leads to. ``is_replica``: it may be one. ``known``: ids of nodes of its
    cluster, of which it must know one: its address may lead to another cluster by now. ``was_accepted``: its login.
    """

    address: Address
    is_replica: bool = False
    opened: int = 0
    run_id: str = ""
    known: frozenset[str] = frozenset()
    info: Mapping[str, str] = field(default_factory=dict)
    was_accepted: bool = False
    _open: Any = None

    def __str__(self) -> str:
        return str(self.address)

    def connect(self) -> None:
        """Connect, also if the server has closed the connection meanwhile. No response may be awaited.

        Then ``run_id`` and ``opened`` are those of the connection that the next commands go to.
        """
        if self._open is not None and self.is_ready():
            self.close()
        self._connected()

    def is_elsewhere(self, primary: tuple[str, int] | None) -> bool:
        """Whether the open connection leads to another server than the ``primary`` that Sentinels know, if they do.

        That one may not know it: while it is cut off from them, it accepts writes that it will drop.
        """
        return primary is not None and self._open is not None and primary != (self._open.host, self._open.port)

    def inform(self) -> None:
        """Read ``info`` again: settings may have changed since the connection was opened."""
        (info,) = self.ask(packed(b"INFO"))
        self.info = _parsed(info)

    def start(self, commands: Sequence[bytes], is_late: Callable[[], bool] = lambda: False) -> Sent:
        """Send packed commands without waiting for responses. Those that were sent may be executed, now or later."""
        try:
            connection = self._connected()
        except ReplicatorError as e:
            return Sent(0, e)
        count, some, size = 0, [], 0
        for command in commands:
            some.append(command)
            size += len(command)
            if size >= _SENT_AT_ONCE:
                if is_late():
                    return Sent(count, TransientError(in_doubt.TOO_LATE))
                if (lost := self._transmit(connection, some)) is not None:
                    return Sent(count + len(some), lost)
                count, some, size = count + len(some), [], 0
        if some and (lost := self._transmit(connection, some)) is not None:
            return Sent(count + len(some), lost)
        return Sent(count + len(some))

    def _transmit(self, connection: Any, commands: Sequence[bytes]) -> ReplicatorError | None:
        try:
            connection.send_packed_command([b"".join(commands)], check_health=False)
        except (RedisError, OSError) as e:
            self.close()
            return unanswered(e, str(self), sent=True)
        return None

    @property
    def is_open(self) -> bool:
        return self._open is not None

    def is_ready(self) -> bool:
        """Whether a response has begun to arrive, or the connection is gone."""
        if self._open is None:
            return True
        try:
            return bool(self._open.can_read(0))
        except (RedisError, OSError):
            return True

    def receive(self) -> Any:
        """The next response; ReplicatorError for an error. ResponseLost if there is none: none will follow then."""
        if self._open is None:
            raise ResponseLost(f"{self} closed the connection")
        try:
            return self._open.read_response(disconnect_on_error=False)
        except (ResponseError, BusyLoadingError, AuthenticationError) as e:
            if self.address.node is not None and (elsewhere := redirected(e, str(self))) is not None:
                raise elsewhere from e
            raise failure(*code_of(e), str(self)) from e
        except (RedisError, OSError) as e:
            self.close()
            raise unanswered(e, str(self), sent=True) from e

    def ask(self, *commands: bytes) -> list[Any]:
        """The responses to packed commands, in one round trip. The first error is raised."""
        self.connect()
        sent = self.start(commands)
        responses: list[Any] = []
        error = sent.unsent
        for _ in range(sent.left if sent.unsent is None else 0):
            try:
                responses.append(self.receive())
            except ReplicatorError as e:
                error = error or e
        if error is not None:
            self.renew(error)
            raise error
        return responses

    def run(self, script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        return self.ask(loading(script), call(script, keys, arguments))[1]

    def run_all(self, script: Script, calls: Sequence[ScriptCall]) -> list[Any]:
        return self.ask(loading(script), *(call(script, *each) for each in calls))[1:]

    def keyed(self, *commands: Sequence[bytes]) -> list[Any]:
        """The responses to commands, each with a key as its second part."""
        return self.ask(*(packed(*command) for command in commands))

    @property
    def place(self) -> str:
        return f"database {self.address.database} of {self}"

    def nodes(self) -> Sequence[Server]:
        return [self]

    def settle(self) -> None:
        """Connect, if needed: then ``opened`` and ``scan_id`` say whether a scan may go on."""
        self.ask(packed(b"PING"))

    @property
    def serving(self) -> str:
        """The run id, and the replication id that it had before it last became the primary, if it was none before: as
        of the last INFO. See ``is_still``."""
        previous = previous_history(self.info)
        return f"{self.run_id}:{previous}" if previous else self.run_id

    @property
    def scan_id(self) -> str:
        """Cursors of scans are valid as long as it is the same."""
        return self.run_id

    def scan(self, pattern: bytes, cursor: bytes, count: bytes) -> tuple[Sequence[bytes], bytes]:
        """Keys that match, and the cursor behind them; b"0" at the beginning and the end."""
        ((cursor, keys),) = self.ask(packed(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", count))
        return keys, cursor

    def divided(self, guards: Sequence[bytes]) -> Iterable[Sequence[bytes]]:
        """Groups of guards, each for one call of a script."""
        return [guards]

    def renew(self, error: BaseException) -> None:
        """Connect again after an error that another server behind the same address would not return."""
        if isinstance(error, TransientError):
            self.close()

    def close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                connection.disconnect()

    def _connected(self) -> Any:
        if self._open is not None:
            return self._open
        try:
            connection = self.address.connection()
        except NotAuthenticated as e:
            raise self._refused(e) from e
        try:
            connection.connect()
            connection.send_packed_command([packed(b"INFO")], check_health=False)
            info = connection.read_response()
            is_stranger = self.known and self.known.isdisjoint(_nodes_known_to(connection))
        except (RedisError, OSError) as e:
            connection.disconnect()
            raise self._refused(unanswered(e, str(self), sent=False)) from e
        if is_stranger:
            connection.disconnect()
            raise TransientError(f"{self} belongs to another cluster now; asking the other nodes where its slots are")
        self.info, self.was_accepted = _parsed(info), True
        is_demoted = self.address.follows and not self.is_replica and self.info.get("role") == "slave"
        if is_demoted:  # and who named it has not noticed it yet
            connection.disconnect()
            raise failure("READONLY", "", str(self))
        self._open = connection
        self.opened += 1
        self.run_id = self.info.get("run_id", "")
        return connection

    def _refused(self, error: ReplicatorError) -> ReplicatorError:
        return refused_again(error, str(self)) if self.was_accepted else error


def _nodes_known_to(connection: Any) -> set[str]:
    """The ids in the cluster of a node; none if it is in none."""
    connection.send_packed_command([packed(b"CLUSTER", b"NODES")], check_health=False)
    try:
        text = bytes(connection.read_response(disconnect_on_error=False))
    except ResponseError as e:
        if "cluster support disabled" in str(e):
            return set()
        raise
    return {line.partition(" ")[0] for line in text.decode(errors="replace").splitlines()}


def refused_again(error: ReplicatorError, server: str) -> ReplicatorError:
    """A login that worked before is transient: its password is being rotated."""
    if isinstance(error, NotAuthenticated):
        return TransientError(
            f"{server} refuses the login. It was accepted before, so the password was probably changed: restart the "
            "run with the new one"
        )
    return error


def previous_history(info: Mapping[str, str]) -> str:
    """The replication id that a server had before it became the primary; empty if it always was, or forgot it."""
    return info.get("master_replid2", "") if info.get("master_replid2", "").strip("0") else ""


def is_still(noted: str, now: str) -> bool:
    """Whether servers are those that were noted: no process is another one, and none became the primary again since.

    A primary without replicas forgets its previous replication id after an hour: that is no change.
    """
    before, after = (dict(one.partition(":")[::2] for one in text.split(",")) for text in (noted, now))
    return before.keys() == after.keys() and all(after[run] in ("", before[run]) for run in after)


def is_late_since(start: float) -> Callable[[], bool]:
    return lambda: in_doubt.is_late(start, time.time())


def _parsed(info: Any) -> Mapping[str, str]:
    lines: Iterable[str] = bytes(info).decode(errors="replace").splitlines()
    pairs = (line.partition(":") for line in lines if not line.startswith("#"))
    return {name: value for name, _, value in pairs}
