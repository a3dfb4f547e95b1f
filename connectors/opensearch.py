"""The OpenSearch target (2 and 3, also on AWS): how to log in. The rest is in ``connectors.search``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator, model_validator

from connectors.search.connection import Connection, Sign
from connectors.search.layout import indices
from connectors.search.nodes import node_configs, proxy_of
from connectors.search.options import Address, SearchOptions, listed, safe_addresses
from connectors.search.target import SearchTarget
from replicator.aws.permissions import Needed
from replicator.options import Access, Options
from replicator.target.contract import Table

_DOMAIN = re.compile(r"(search|vpc)-(?P<name>[a-z0-9-]+)-[a-z0-9]+\.(?P<region>[a-z0-9-]+)\.es\.amazonaws\.com(\.cn)?")
_COLLECTION = re.compile(r"(?P<name>[a-z0-9]+)\.(?P<region>[a-z0-9-]+)\.aoss\.amazonaws\.com(\.cn)?")


class Aws(Options):
    """Signs requests with AWS credentials. Whatever is not set comes from the default AWS credential chain."""

    region: str | None = Field(default=None, description="the domain's region, e.g. eu-west-1")
    profile: str | None = Field(default=None, description="profile in ~/.aws/config")
    role_arn: str | None = Field(default=None, description="role to assume for writing")
    external_id: str | None = Field(default=None, description="external ID that the role requires")
    service: Literal["es", "aoss"] = Field(default="es", description="es: a domain; aoss: OpenSearch Serverless")

    @model_validator(mode="after")
    def _id_needs_role(self) -> Aws:
        if self.external_id is not None and self.role_arn is None:
            raise ValueError("external_id means nothing without role_arn")
        return self


class OpenSearchOptions(SearchOptions):
    """Address and credentials of a cluster."""

    url: Address | list[Address] = Field(
        min_length=1, description="https://host:9200, or a list of nodes of one cluster"
    )
    aws: Aws | None = Field(default=None, description="sign requests for Amazon OpenSearch; {}: default credentials")

    def urls(self) -> Sequence[str]:
        return listed(self.url)

    @field_validator("url")
    @classmethod
    def _safe(cls, url: str | list[str], info: ValidationInfo) -> str | list[str] | None:
        return safe_addresses(url, info)

    @model_validator(mode="after")
    def _unambiguous(self) -> OpenSearchOptions:
        if self.aws is not None and self.username is not None:
            raise ValueError("has both aws and username; keep one")
        if self.aws is not None and not isinstance(self.url, str) and len(self.url) > 1:
            raise ValueError("has aws and several addresses, but a domain has only one")
        if self.aws is not None and self.compress:
            raise ValueError("has both aws and compress; a signed body cannot be compressed, keep one")
        return self


class OpenSearch(SearchTarget):
    """Indices in OpenSearch 2 or 3, or in an Amazon OpenSearch domain."""

    Options = OpenSearchOptions

    def __init__(self, options: OpenSearchOptions, pipeline: str) -> None:
        sign = None if options.aws is None else _signer(options.aws)
        connection = Connection(node_configs(options.urls(), options), "OpenSearch", sign, proxy_of(options))
        super().__init__(options, pipeline, connection)

    @staticmethod
    def permissions(options: OpenSearchOptions, tables: Sequence[Table], *, keep_expired: bool) -> Sequence[Needed]:
        if options.aws is None:
            return []
        collection = options.aws.service == "aoss"
        name = urlsplit(options.urls()[0]).hostname or ""
        host = _COLLECTION.fullmatch(name) if collection else _DOMAIN.fullmatch(name)
        sid, word = ("Serverless", "COLLECTION") if collection else ("Domain", "DOMAIN")
        names = {} if host is None else {word: host["name"], "REGION": host["region"]}
        removed = [] if collection else [{**names, "INDEX": index} for index in indices(tables)]
        access = _access(options.aws)
        return [Needed("target", sid, access, names), *(Needed("target", "RemoveIndices", access, n) for n in removed)]


def _signer(aws: Aws) -> Sign:
    from replicator.aws.request_signer import signer  # imports boto3, which is slow and which most clusters do not need

    return signer(_access(aws), aws.service, "target.aws")


def _access(aws: Aws) -> Access:
    return Access(region=aws.region, profile=aws.profile, role_arn=aws.role_arn, external_id=aws.external_id)
