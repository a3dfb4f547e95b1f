"""Config of a webhook target."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import SplitResult

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from replicator.options import (
    UNENCRYPTED,
    WEB_PORTS,
    AppliedDeletes,
    Authorities,
    Options,
    is_loopback,
    server_of,
    split_url,
)

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64  # bytes of a secret, as Standard Webhooks specifies
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OURS = frozenset({"host", "content-type", "content-length", "transfer-encoding", "connection", "user-agent", "accept"})
_OURS |= {"content-encoding", "expect", "upgrade", "te", "trailer"}  # would claim what is not so of our requests
MEGABYTE = 1 << 20


def _listed(given: object) -> object:
    return given if isinstance(given, list | tuple) else [given]


def _secret(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    try:
        size = len(base64.b64decode(text.removeprefix(_PREFIX), validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if not text.startswith(_PREFIX) or not _SHORTEST <= size <= _LONGEST:
        raise ValueError(f"must be {_PREFIX} followed by {_SHORTEST} to {_LONGEST} random bytes in base64")
    return secret


def _some(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if not secrets:
        raise ValueError("needs at least one secret")
    return secrets


def _header(name: str) -> str:
    if _HEADER.fullmatch(name) is None:
        raise ValueError("must be the name of an HTTP header")
    if name.lower() in _OURS or name.lower().startswith("webhook-"):
        raise ValueError("is set by replicator itself")
    return name


def _header_value(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise ValueError("must be printable ASCII, without spaces at either end")
    return value


def _is_place(parts: SplitResult) -> bool:
    """Whether the host may have an address, and the port is one."""
    host = parts.hostname or ""
    if " " in host or not host.isprintable():
        return False
    try:
        return parts.port != 0 and host.encode("idna") != b""
    except ValueError:  # also of the encoding
        return False


def _url(url: SecretStr) -> SecretStr:
    parts = split_url(url.get_secret_value())
    if parts.scheme not in ("http", "https") or not _is_place(parts) or parts.fragment:
        raise ValueError("must have the form https://host/path")
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains a user name; put a login under headers: {Authorization: …}, where it is kept secret")
    return url


class WebhookTable(Options):
    """Options of one table: a name in the events."""

    deletes: AppliedDeletes = Field(default="apply", description="deleted items are sent as delete events")


class WebhookOptions(Options):
    """Where events are sent, how they are signed, and how many at once."""

    insecure: bool = Field(default=False, description="allow plain http to other hosts")
    url: Annotated[SecretStr, AfterValidator(_url)] = Field(
        description="address of the receiver; only its host is ever shown, since a path may contain a token"
    )
    secret: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_secret)], ...],
        AfterValidator(_some),
        BeforeValidator(_listed, json_schema_input_type=str | list[str]),
    ] = Field(
        description="signs every request: whsec_ and 24 to 64 bytes in base64. A list while it is rotated: a signature "
        "with each"
    )
    headers: dict[Annotated[str, AfterValidator(_header)], Annotated[SecretStr, AfterValidator(_header_value)]] = Field(
        default={}, description="further headers, e.g. Authorization; their values are kept secret"
    )
    ca_certs: Authorities | None = Field(
        default=None, description="file with the certificate authorities to trust instead of the public ones"
    )
    timeout: float = Field(
        default=30.0,
        ge=1,
        le=240,
        description="seconds to wait for a response; a complete one may take five times as long",
    )
    max_events: int = Field(default=500, ge=1, le=10_000, description="maximum events per request")
    max_bytes: int = Field(
        default=MEGABYTE,
        ge=1024,
        le=32 * MEGABYTE,
        description="maximum bytes of a request's body; an event that exceeds it alone is parked",
    )
    state_requests: bool = Field(
        default=True,
        description="ask the receiver which epoch it has noted; false for one that keeps nothing, or cannot answer",
    )

    def places(self, table: str, options: Mapping[str, Any]) -> Sequence[object]:
        """By the receiver's address, and the table's name in the events."""
        url = self.url.get_secret_value()
        return [("webhook", server_of(url, WEB_PORTS), split_url(url).query, table)]

    @field_validator("headers")
    @classmethod
    def _once(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if len({name.lower() for name in headers}) < len(headers):
            raise ValueError("has a header twice: upper and lower case are the same in their names")
        return headers

    @field_validator("url")
    @classmethod
    def _encrypted(cls, url: SecretStr, info: ValidationInfo) -> SecretStr:
        parts = split_url(url.get_secret_value())
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not info.data.get("insecure"):
            raise ValueError(UNENCRYPTED)
        return url

    @property
    def server(self) -> str:
        """The receiver's scheme, host and port, for messages."""
        parts = split_url(self.url.get_secret_value())
        return f"{parts.scheme}://{parts.netloc}"
