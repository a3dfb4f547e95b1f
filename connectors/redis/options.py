"""Config of a Redis target."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from connectors.redis.cluster import is_of_cluster, seeds_of
from connectors.redis.sentinel import is_of_sentinels, sentinels_of
from replicator.options import (
    AppliedDeletes,
    Authorities,
    FileName,
    Options,
    host_name,
    is_loopback,
    server_of,
    split_url,
)

RESERVED = "replicator:"  # how replicator's own keys begin
LONGEST_PREFIX = 256  # bytes


def _prefix(prefix: str) -> str:
    if not prefix or any(mark in prefix for mark in "{}") or not prefix.isprintable():
        raise ValueError("must be the beginning of a key, without braces, which decide the slot of a key in a cluster")
    if prefix.startswith(RESERVED) or RESERVED.startswith(prefix):
        raise ValueError(f"must differ from {RESERVED}, with which replicator's own keys begin")
    if len(prefix.encode()) > LONGEST_PREFIX:
        raise ValueError(f"is longer than {LONGEST_PREFIX} bytes")
    return prefix


class RedisTable(Options):
    """Options of one table: a group of keys with the same beginning."""

    prefix: Annotated[str, AfterValidator(_prefix)] | None = Field(
        default=None, description="how the keys of its documents begin, by default the table's name and a colon"
    )
    store: Literal["json", "hash"] = Field(
        default="json", description="json: a string with the whole document; hash: a field for each attribute"
    )
    expires: str | None = Field(
        default=None,
        min_length=1,
        description="the document's field with the time, in seconds since 1970, at which Redis removes it",
    )
    deletes: AppliedDeletes = Field(default="apply", description="documents whose item is gone are removed")


_PORTS: Mapping[str, int] = {"redis": 6379, "rediss": 6379}


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a table's keys are: the server or cluster, and how they begin."""

    server: tuple[object, ...]
    prefix: str

    def overlap(self, other: object) -> str:
        """Why both could have the same keys, although they are not equal; empty if they cannot."""
        if not isinstance(other, KeyPlace) or self.server != other.server:
            return ""
        short, long = sorted((self.prefix, other.prefix), key=len)
        if not long.startswith(short):
            return ""
        return f"keys that begin with {long} begin with {short}, too; set another prefix under tables"


def prefix_of(table: str, options: Mapping[str, Any]) -> str:
    """How the keys of the table's documents begin."""
    return str(options.get("prefix") or f"{table}:")


def _address(url: str) -> str:
    parts = split_url(url)
    has_host = parts.scheme != "unix"  # else @ may be in the path
    if parts.username is not None or parts.password is not None or (has_host and "@" in url):
        raise ValueError("contains a login; put it under username and password, where it is kept secret")
    if is_of_sentinels(url):
        if sentinels_of(url) is None:
            raise ValueError(
                "must have the form rediss+sentinel://host:26379,host:26379/primary or "
                "rediss+sentinel://host:26379/primary/0, with the name by which the Sentinels know the primary"
            )
        return url
    if is_of_cluster(url):
        if seeds_of(url) is None:
            raise ValueError(
                "must have the form rediss+cluster://host:6379,host:6379, with some of the cluster's nodes, and no "
                "database number: a cluster has one database"
            )
        return url
    host = parts.scheme in ("redis", "rediss") and bool(parts.hostname) and _number(parts.path.strip("/"))
    path = parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc
    if not (host or path) or parts.query or parts.fragment or not _has_valid_port(url):
        raise ValueError("must have the form rediss://host:6379, redis://127.0.0.1:6379/0 or unix:///path/to/socket")
    return url


def _number(text: str) -> bool:
    return text == "" or (text.isascii() and text.isdigit())


def _has_valid_port(url: str) -> bool:
    try:
        return split_url(url).port != 0
    except ValueError:
        return False


def _require_pair(certificate: str, key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except OSError as e:
        raise ValueError(
            "needs a certificate (PEM) in client_cert, and its private key without a passphrase in client_key; these "
            f"cannot be read together: {e.strerror or e}"
        ) from None


class RedisOptions(Options):
    """Address, login and trust."""

    insecure: bool = Field(default=False, description="allow redis:// (without TLS) to other hosts")
    username: str | None = Field(default=None, description="user of the server's ACL; without it, the default user")
    password: SecretStr | None = Field(default=None, description="the user's password")
    ca_certs: Authorities | None = Field(
        default=None, description="file with the certificate authorities to trust instead of the public ones"
    )
    client_cert: FileName | None = Field(
        default=None, description="file with a certificate to present to the server (mutual TLS), with client_key"
    )
    client_key: FileName | None = Field(default=None, description="file with its private key, without a passphrase")
    timeout: float = Field(default=20.0, ge=1, le=240, description="seconds to wait for a response")
    trust_restarts: bool = Field(
        default=False,
        description="true: the server loses nothing that it acknowledged, so a restart between two runs is no gap",
    )
    sentinel_username: str | None = Field(default=None, description="user of the Sentinels' ACL, with a Sentinel url")
    sentinel_password: SecretStr | None = Field(
        default=None, description="the Sentinels' password, which may differ from the server's"
    )
    url: Annotated[str, AfterValidator(_address)] = Field(
        description="rediss://host:6379 (TLS), redis://127.0.0.1:6379/0, unix:///path/to/socket, "
        "rediss+sentinel://host:26379,host:26379/primary, or rediss+cluster://host:6379,host:6379"
    )

    def places(self, table: str, options: Mapping[str, Any]) -> Sequence[object]:
        """By server, or each of the Sentinels and the primary's name, or each node named; database and prefix."""
        if (seeds := seeds_of(self.url)) is not None:
            prefix = prefix_of(table, options)
            return [KeyPlace(("cluster", host_name(host), port), prefix) for host, port in seeds.hosts]
        if (sentinels := sentinels_of(self.url)) is not None:
            of, prefix = (sentinels.primary, sentinels.database), prefix_of(table, options)
            return [KeyPlace(("sentinel", host_name(host), port, *of), prefix) for host, port in sentinels.hosts]
        host, port, path = server_of(self.url, _PORTS)
        server = ("unix", path, 0) if host == "" else (host, port, int(path.strip("/") or 0))
        return [KeyPlace(server, prefix_of(table, options))]

    @field_validator("url")
    @classmethod
    def _encrypted(cls, url: str, info: ValidationInfo) -> str:
        parts, several = split_url(url), sentinels_of(url) or seeds_of(url)
        if several is not None:
            scheme, hosts = ("rediss" if several.encrypted else "redis"), [host for host, _ in several.hosts]
        else:
            scheme, hosts = parts.scheme, [parts.hostname or ""]
        if scheme == "redis" and not all(map(is_loopback, hosts)) and not info.data.get("insecure"):
            raise ValueError(
                "is redis:// to another host, so items would be sent unencrypted; use rediss://, or set insecure: true"
            )
        if scheme != "rediss" and (info.data.get("ca_certs") or info.data.get("client_cert")):
            raise ValueError("is without TLS, which ca_certs and client_cert are for; use rediss://")
        return url

    @model_validator(mode="after")
    def _complete(self) -> RedisOptions:
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("needs both client_cert and client_key")
        if self.username is not None and self.password is None:
            raise ValueError("needs password with username")
        if self.sentinel_username is not None and self.sentinel_password is None:
            raise ValueError("needs sentinel_password with sentinel_username")
        if self.sentinel_password is not None and not is_of_sentinels(self.url):
            raise ValueError("has sentinel_password, but url names no Sentinel: rediss+sentinel://host:26379/primary")
        if self.client_cert is not None and self.client_key is not None:
            _require_pair(self.client_cert, self.client_key)
        return self
