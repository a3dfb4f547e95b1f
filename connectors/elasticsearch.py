"""The Elasticsearch target (8 and 9): how to find a cluster and log in. The rest is in ``connectors.search``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from elastic_transport.client_utils import parse_cloud_id
from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator

from connectors.search.connection import Connection
from connectors.search.nodes import node_configs, proxy_of
from connectors.search.options import Address, SearchOptions, listed, safe_addresses
from connectors.search.target import SearchTarget


def _cloud_url(cloud_id: str) -> str:
    """The URL of the deployment's Elasticsearch; ValueError for a malformed id."""
    try:
        address = parse_cloud_id(cloud_id).es_address
    except ValueError:
        address = None
    if address is None:
        raise ValueError("is not a cloud id; copy it from the deployment's page (it looks like name:bG9uZy10ZXh0)")
    return f"https://{address[0]}:{address[1]}"


def _cloud_id(cloud_id: str) -> str:
    _cloud_url(cloud_id)
    return cloud_id


class ElasticsearchOptions(SearchOptions):
    """Address (``url`` or ``cloud_id``) and credentials of a cluster."""

    url: Address | list[Address] | None = Field(
        default=None, description="https://host:9200, or a list of nodes of one cluster"
    )
    cloud_id: Annotated[str, AfterValidator(_cloud_id)] | None = Field(
        default=None, description="of an Elastic Cloud deployment, instead of url"
    )
    api_key: SecretStr | None = Field(
        default=None, description="API key in its encoded form, as Elasticsearch shows it"
    )

    def urls(self) -> Sequence[str]:
        return listed(self.url or _cloud_url(self.cloud_id or ""))

    @field_validator("url")
    @classmethod
    def _safe(cls, url: str | list[str] | None, info: ValidationInfo) -> str | list[str] | None:
        return safe_addresses(url, info)

    @model_validator(mode="after")
    def _unambiguous(self) -> ElasticsearchOptions:
        if bool(self.url) == bool(self.cloud_id):
            raise ValueError("needs either url or cloud_id")
        if self.api_key is not None and self.username is not None:
            raise ValueError("has both api_key and username; keep one")
        return self


class Elasticsearch(SearchTarget):
    """Indices in Elasticsearch 8 or 9."""

    Options = ElasticsearchOptions

    def __init__(self, options: ElasticsearchOptions, pipeline: str) -> None:
        authorization = None if options.api_key is None else f"ApiKey {options.api_key.get_secret_value()}"
        nodes = node_configs(options.urls(), options, authorization)
        super().__init__(options, pipeline, Connection(nodes, "Elasticsearch", proxy=proxy_of(options)))
