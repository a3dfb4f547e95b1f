"""Nodes as the transport wants them: address, login, trust, how many connections."""

from __future__ import annotations

from collections.abc import Sequence

from elastic_transport import NodeConfig
from elastic_transport.client_utils import basic_auth_to_header, url_to_node_config

from connectors.search.options import SearchOptions


def nodes(urls: str | Sequence[str], options: SearchOptions, authorization: str | None = None) -> list[NodeConfig]:
    """One node an address; ``authorization`` is the header of a login that is not basic."""
    header = authorization or _basic(options)
    return [_node(url, options, header) for url in ([urls] if isinstance(urls, str) else urls)]


def _basic(options: SearchOptions) -> str | None:
    if options.username is None or options.password is None:
        return None
    return basic_auth_to_header((options.username, options.password.get_secret_value()))


def _node(url: str, options: SearchOptions, authorization: str | None) -> NodeConfig:
    node = url_to_node_config(url, use_default_ports_for_scheme=True)
    return node.replace(
        headers={} if authorization is None else {"authorization": authorization},
        ca_certs=options.ca_certs,
        http_compress=options.compress,
        request_timeout=options.timeout,
        connections_per_node=options.in_flight + 1,
    )
