"""Config options that both search targets share, for the cluster and for each index."""

from __future__ import annotations

import re
from collections import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult

import orjson
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from connectors.search import mappings
from connectors.search.mappings import OURS, is_ours
from replicator.options import UNENCRYPTED, WEB_PORTS, FileName, Options, is_loopback, server_of, split_url

MEGABYTE = 1 << 20
LONGEST_NAME = 255  # bytes of the name of an index or alias
_FORBIDDEN = re.compile(r'[\\/*?"<>|\s,#:\x00-\x1f]')


def index_name(name: str) -> str:
    """Validate an index name by the rules of both engines."""
    if _FORBIDDEN.search(name) or name[:1] in ("-", "_", "+", "") or name in (".", "..") or name != name.lower():
        raise ValueError(
            'must be a valid index name: lowercase, without any of \\ / * ? " < > | , # : or spaces, '
            "and not starting with - _ +"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError("is longer than 255 bytes, the limit for an index name")
    return name


def _mapping(value: object) -> object:
    """Accept the JSON text of a mapping, as ``${file:products.json}`` inserts it."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as e:
        raise ValueError(f"is not valid JSON ({e}); write ${{file:NAME.json}} to read it from a file") from None


def _whole_mapping(mapping: dict[str, Any]) -> dict[str, Any]:
    if "mappings" in mapping:
        raise ValueError(
            "is a complete index definition; keep only what is under mappings, and move its settings to settings"
        )
    if not isinstance(mapping.get("properties"), dict):
        raise ValueError("has no properties; it must look like properties: {title: {type: text}}")
    if taken := [name for name in mapping["properties"] if is_ours(name)]:
        raise ValueError(f"has a field named {taken[0]}, which is where replicator keeps version and key")
    if copies := list(mappings.copied_to_ours(mapping["properties"])):
        raise ValueError(f"copies the field {copies[0]} to {OURS}, which is where replicator keeps version and key")
    if "_source" in mapping:
        raise ValueError("has _source, which cannot be configured: the whole document is always kept")
    return mapping


Mapping = Annotated[
    dict[str, Any],
    AfterValidator(_whole_mapping),
    BeforeValidator(_mapping, json_schema_input_type=dict[str, Any] | str),
]


def _safe_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Reject settings that break replicator's guarantees."""
    if problems := list(mappings.settings_hazards(settings)):
        raise ValueError(f"cannot be used: {problems[0]}")
    return settings


def _pipeline_name(name: str) -> str:
    if not name.strip() or name == "_none" or any(mark in name for mark in ",*\0"):
        raise ValueError("must be the name of an ingest pipeline, without commas or asterisks")
    return name


_BEFORE = re.compile(r"before\((?P<attribute>[^,()']+), ?'(?P<text>[^']+)'\)")


def _routing(expression: str) -> str:
    if expression.startswith("before(") and _BEFORE.fullmatch(expression) is None:  # other names may have parentheses
        raise ValueError("must be a key attribute, or its beginning up to a text: before(pk, '#')")
    return expression


class SearchTable(Options):
    """Options of one index. The table's name is the alias for searching it."""

    index: Annotated[str, AfterValidator(index_name)] | None = Field(
        default=None, description="the index behind the alias, by default the table's name and -1"
    )
    mapping: Mapping | None = Field(
        default=None, description="the index's mapping; without it, whole items are kept under document, not searchable"
    )
    settings: Annotated[dict[str, Any], AfterValidator(_safe_settings)] = Field(
        default={}, description="the index's settings, e.g. analysis; used when it is created"
    )
    shards: int | None = Field(default=None, ge=1, le=1024, description="primary shards; cannot be changed later")
    deletes: Literal["apply", "mark"] = Field(
        default="apply",
        description="apply: remove documents whose item is gone; mark: keep them, with the time in "
        "replicator.deleted_at",
    )
    replicas: int | None = Field(
        default=None, ge=0, le=100, description="replicas of each shard; used when the index is created"
    )
    keys: bool = Field(
        default=False, description="true: the item's key attributes are fields, also where the hook leaves them out"
    )
    routing: Annotated[str, AfterValidator(_routing)] | None = Field(
        default=None,
        description="key attribute that decides the shard of a document, or its beginning: before(pk, '#')",
    )
    ingest_pipeline: Annotated[str, AfterValidator(_pipeline_name)] | None = Field(
        default=None, description="ingest pipeline of the cluster that documents go through"
    )
    adopt: bool = Field(
        default=False, description="take over an index that another tool or pipeline created and filled"
    )


def index_of(table: str, options: abc.Mapping[str, Any]) -> str:
    """The name of the index behind the alias ``table``."""
    return str(options.get("index") or f"{table.lower()}-1")


def routing_of(expression: str | None) -> tuple[str | None, str]:
    """The attribute of a routing expression, and the text before which it ends; empty: it counts as a whole."""
    if expression is None or (found := _BEFORE.fullmatch(expression)) is None:
        return expression, ""
    return found["attribute"], found["text"]


def _address(url: str) -> str:
    parts = split_url(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must have the form https://host:9200 or http://127.0.0.1:9200")
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains a user name; put it under username and password, where it is kept secret")
    return url


Address = Annotated[str, AfterValidator(_address)]


_OF_FUNCTIONS = ("/opt/", "/mnt/")  # layers and volumes of AWS Lambda, which the machine that deploys may not have


def _file(path: str) -> str:
    if not path.startswith(_OF_FUNCTIONS) and not Path(path).is_file():
        raise ValueError(f"must be a file of certificates, and there is none at {path}")
    return path


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port is not None
    except ValueError:
        return False


def _proxy(url: SecretStr) -> SecretStr:
    parts = split_url(url.get_secret_value())
    odd = parts.path not in ("", "/") or parts.query or parts.fragment
    if parts.scheme != "http" or not parts.hostname or not _has_port(parts) or odd:
        raise ValueError("must have the form http://proxy:3128 or http://USER:PASSWORD@proxy:3128")
    return url


class SearchOptions(Options):
    """Login, trust, timeout and request sizes."""

    insecure: bool = Field(default=False, description="allow plain http to other hosts")
    username: str | None = Field(default=None, description="for basic authentication, with password")
    password: SecretStr | None = Field(default=None, description="for basic authentication, with username")
    ca_certs: Annotated[FileName, AfterValidator(_file)] | None = Field(
        default=None, description="file with the certificate authorities to trust instead of the public ones"
    )
    client_cert: FileName | None = Field(
        default=None, description="file with a certificate to present to the server (mutual TLS), with client_key"
    )
    client_key: FileName | None = Field(
        default=None, description="file with its private key, without a passphrase, which only its owner may read"
    )
    proxy: Annotated[SecretStr, AfterValidator(_proxy)] | None = Field(
        default=None,
        description="forward proxy, http://proxy:3128 or http://USER:PASSWORD@proxy:3128; url must be https",
    )
    compress: bool = Field(default=False, description="gzip requests and responses: less traffic, more CPU")
    timeout: float = Field(
        default=60.0,
        ge=1,
        le=240,
        description="seconds to wait for a response; a complete one may take five times as long",
    )
    bulk_bytes: int = Field(
        default=8 * MEGABYTE, ge=1024, le=90 * MEGABYTE, description="maximum bytes per bulk request"
    )
    bulk_documents: int = Field(default=1000, ge=1, le=100_000, description="maximum documents per bulk request")
    in_flight: int = Field(default=2, ge=1, le=16, description="bulk requests in flight")

    def urls(self) -> Sequence[str]:
        """The addresses of the cluster's nodes."""
        return ()

    def files(self) -> Sequence[tuple[str, str]]:
        """As ``NamesFiles`` says."""
        named = [("ca_certs", self.ca_certs), ("client_cert", self.client_cert), ("client_key", self.client_key)]
        return [(key, path) for key, path in named if path is not None]

    def places(self, table: str, options: abc.Mapping[str, Any]) -> Sequence[object]:
        """By each node, under the names of the alias and of the index."""
        names = {table, index_of(table, options)}
        return [(server_of(url, WEB_PORTS), name) for url in self.urls() for name in sorted(names)]

    @model_validator(mode="after")
    def _complete_login(self) -> SearchOptions:
        if (self.username is None) != (self.password is None):
            raise ValueError("needs both username and password")
        if (self.client_cert is None) != (self.client_key is None):
            raise ValueError("needs both client_cert and client_key")
        return self


def listed(urls: str | list[str]) -> list[str]:
    return [urls] if isinstance(urls, str) else urls


def safe_addresses(urls: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
    """Reject plain http to other hosts unless ``insecure`` is set, and options that need https."""
    for url in [urls] if isinstance(urls, str) else urls or []:
        parts = split_url(url)
        if parts.scheme == "http" and info.data.get("proxy") is not None:
            raise ValueError(
                "is plain http, which proxy does not forward: items would be readable on the way; use https"
            )
        if parts.scheme == "http" and info.data.get("client_cert") is not None:
            raise ValueError("is plain http, where no client_cert can be presented; use https")
        if parts.scheme == "http" and not is_loopback(parts.hostname) and not info.data.get("insecure"):
            raise ValueError(UNENCRYPTED)
    return urls


__all__ = ["Address", "SearchOptions", "SearchTable", "field_validator", "index_name", "listed", "safe_addresses"]
