"""The base of all config models, and the AWS access options that source, target and checkpoints share."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Protocol, runtime_checkable
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
UNENCRYPTED = "is plain http to another host, so items would be sent unencrypted; use https, or set insecure: true"
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


class Options(BaseModel):
    """Base of all config models: frozen, rejects unknown keys, and keeps values out of its errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ColumnOptions(Options):
    """A column of a table with columns; targets narrow ``type``."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: str
    attribute: str | tuple[str, ...] | None = Field(
        default=None,
        alias="from",
        description="the attribute, or the name the hook returned; location.lat (or [location, lat]) is inside a map",
    )
    nullable: bool = Field(default=True, description="false: an item without the attribute is parked")

    @field_validator("attribute")
    @classmethod
    def _no_part_is_empty(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if given is not None and not all(_parts(given)):
            raise ValueError("has an empty name between two dots; expected: total, or location.lat inside a map")
        return given

    @property
    def path(self) -> tuple[str, ...]:
        """The attribute and the names inside it; empty for the column's own name."""
        return () if self.attribute is None else _parts(self.attribute)


def _parts(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(given.split(".")) if isinstance(given, str) else given or ("",)


def _applied(given: object) -> object:
    if given == "mark":
        raise ValueError(
            "mark is supported by the targets postgres, elasticsearch and opensearch; this one removes what is deleted "
            "(apply)"
        )
    return given


AppliedDeletes = Annotated[Literal["apply"], BeforeValidator(_applied)]
"""The table option ``deletes`` of a target that cannot mark what is deleted."""


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address can only be this machine."""
    if host is None or host.lower() in _LOCAL_NAMES:
        return host is not None
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(host: str | None) -> str:
    """A host name or address in one spelling; all names of this machine are one."""
    name = (host or "").lower().rstrip(".")
    if is_loopback(name):
        return "localhost"
    try:
        return ip_address(name).compressed
    except ValueError:
        return name


def server_of(url: str, ports: Mapping[str, int]) -> tuple[str, int | None, str]:
    """Host, port and path of a URL in one spelling. ``ports``: the port of each scheme, if the URL has none."""
    parts = split_url(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return host_name(parts.hostname), port or ports.get(parts.scheme), parts.path.rstrip("/")


WEB_PORTS: Mapping[str, int] = {"http": 80, "https": 443}


def split_url(url: str) -> SplitResult:
    """The parts of a URL; all empty if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:  # e.g. an incomplete IPv6 address
        return SplitResult("", "", "", "", "")


def is_table_name(name: str) -> bool:
    """Whether DynamoDB accepts ``name`` for a table."""
    return _TABLE_NAME.fullmatch(name) is not None


def table_name(name: str) -> str:
    """``name``; ValueError if DynamoDB does not accept it for a table."""
    if not is_table_name(name):
        raise ValueError("must be a DynamoDB table name (3 to 255 letters, digits, _ . -)")
    return name


def _from_config(path: str, info: ValidationInfo) -> str:
    base: Path = (info.context or {}).get("base", Path())
    return str(base / path)


FileName = Annotated[str, AfterValidator(_from_config)]
"""The name of a file, relative to the config."""


def _authorities(path: str) -> str:
    if not Path(path).is_file():
        raise ValueError(f"must be a file of certificates, and there is none at {path}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError:
        raise ValueError(f"must be a file of certificates (PEM), and none can be read from {path}") from None
    return path


Authorities = Annotated[FileName, AfterValidator(_authorities)]
"""The name of a file with the certificates of authorities to trust."""


@runtime_checkable
class NamesFiles(Protocol):
    """Options that name files which a process reads as it connects."""

    def files(self) -> Sequence[tuple[str, str]]:
        """The key of each, and its path: absolute (as a ``FileName``), or relative to where the process was started."""


TableName = Annotated[str, AfterValidator(table_name)]


def aws_options(access: Access, arn: str = "") -> str:
    """Command-line options that make ``aws`` use the same access, each preceded by a space.

    ``arn`` gives the region if the config does not.
    """
    named = {
        "region": access.region or "".join(arn.split(":")[3:4]),
        "profile": access.profile,
        "endpoint-url": access.endpoint_url,
    }
    return "".join(f" --{name} {value}" for name, value in named.items() if value)


class Access(Options):
    """Region, credentials and endpoint. Settings left out come from the usual AWS chain."""

    region: str | None = Field(default=None, validate_default=True, description="e.g. eu-west-1")
    profile: str | None = Field(default=None, description="profile in ~/.aws/config")
    role_arn: str | None = Field(default=None, description="role to assume")
    external_id: str | None = Field(default=None, description="external ID that the role requires")
    insecure: bool = Field(default=False, description="allow plain http to other hosts")
    endpoint_url: str | None = Field(default=None, description="custom endpoint, e.g. DynamoDB Local")
    account_id_endpoint_mode: Literal["preferred", "disabled", "required"] | None = Field(
        default=None, description="botocore's setting of the same name"
    )
    timeout: float = Field(
        default=20.0,
        ge=1,
        le=240,
        description="seconds to wait for a response; a complete one may take five times as long",
    )

    @field_validator("external_id")
    @classmethod
    def _id_needs_role(cls, external_id: str | None, info: ValidationInfo) -> str | None:
        if external_id is not None and info.data.get("role_arn") is None:
            raise ValueError("requires role_arn")
        return external_id

    @field_validator("endpoint_url")
    @classmethod
    def _safe_endpoint(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        parts = split_url(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must have the form https://host or http://127.0.0.1:8000")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError(
                "must not contain credentials, a query or a fragment; credentials come from profile, role_arn or the "
                "AWS chain"
            )
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not info.data.get("insecure"):
            raise ValueError(UNENCRYPTED)
        return url
