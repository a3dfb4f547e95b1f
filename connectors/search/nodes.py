"""The nodes of a cluster as Elastic's transport sees them: TLS with our certificates, a proxy, bounded responses."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from elastic_transport import BaseNode, NodeConfig, Urllib3HttpNode
from elastic_transport.client_utils import basic_auth_to_header, url_to_node_config
from urllib3 import HTTPSConnectionPool, ProxyManager, Timeout

from connectors.search.options import SearchOptions
from replicator.errors import ConfigError
from replicator.files import key_exposure, read_regular
from replicator.response_limits import WHOLE, body_of, bounded

_LARGEST = 1 << 20  # bytes of a certificate or key


def node_configs(
    urls: str | Sequence[str], options: SearchOptions, authorization: str | None = None
) -> list[NodeConfig]:
    """A node per address. ``authorization``: the header for logins other than basic authentication."""
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
        client_cert=options.client_cert,
        client_key=options.client_key,
        http_compress=options.compress,
        request_timeout=options.timeout,
        connections_per_node=options.in_flight + 1,
    )


def check_certificates(node: NodeConfig) -> None:
    """ConfigError, naming the option, unless the client certificate and its key can be used as they are now, and the
    certificates of authorities are there.

    Not when the config is read: a machine that only validates configs does not have them.
    """
    if node.ca_certs is not None and not Path(node.ca_certs).is_file():
        raise ConfigError(f"target.ca_certs: must be a file of certificates, and there is none at {node.ca_certs}")
    if node.client_cert is None or node.client_key is None:
        return
    for option, path in (("client_cert", node.client_cert), ("client_key", node.client_key)):
        try:
            read_regular(Path(path), _LARGEST)
        except OSError as e:
            raise ConfigError(f"target.{option}: cannot read {path}: {e.strerror}") from e
    if exposed := key_exposure(Path(node.client_key)):
        raise ConfigError(f"target.client_key: {exposed}")
    _check_pair(node.client_cert, node.client_key)


def _check_pair(certificate: str, key: str) -> None:
    asked: list[bool] = []

    def passphrase() -> str:
        asked.append(True)
        return ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=passphrase)
    except ssl.SSLError as e:
        if asked:
            text = f"{key} is encrypted; replicator needs the key without a passphrase: openssl pkey -in {key} -out NEW"
            raise ConfigError(f"target.client_key: {text}") from e
        if e.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"target.client_key: {key} is not the key of the certificate in {certificate}") from e
        raise ConfigError(
            f"target.client_cert and client_key: {certificate} and {key} do not contain a certificate and its key "
            f"in PEM form ({e.reason or 'invalid'})"
        ) from e


@dataclass(frozen=True, slots=True)
class Proxy:
    """A forward proxy. ``login``: as in its URL, percent-encoded; kept out of ``address``, which messages show."""

    address: str
    login: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        return self.address.removeprefix("http://")

    @property
    def headers(self) -> dict[str, str]:
        if not self.login:
            return {}
        name, _, password = self.login.partition(":")
        return {"proxy-authorization": basic_auth_to_header((unquote(name), unquote(password)))}


def proxy_of(options: SearchOptions) -> Proxy | None:
    if options.proxy is None:
        return None
    login, _, place = urlsplit(options.proxy.get_secret_value()).netloc.rpartition("@")
    return Proxy(f"http://{place}", login)


class _Whole:
    """A response whose body was read within the limits."""

    def __init__(self, response: Any, seconds: float) -> None:
        self.status, self.headers = response.status, response.headers
        self.data = body_of(response, response.headers.get("content-encoding"), seconds)


class Node(Urllib3HttpNode):
    """Bounds the size and duration of responses; the transport's own node reads and decompresses any amount.

    With https it has its own pool: the transport's trusts the system's authorities beside ``ca_certs``, and knows no
    proxies.
    """

    proxy: Proxy | None = None

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        if isinstance(self.pool, HTTPSConnectionPool):
            self.pool = _pool(config, str(self.pool.ca_certs), self.proxy)
        self._urlopen = self.pool.urlopen
        self._seconds = WHOLE * float(config.request_timeout or 60.0)
        self.pool.ConnectionCls = bounded(self.pool.ConnectionCls, self._seconds)
        self.pool.urlopen = self._opened  # type: ignore[method-assign, assignment]

    def _opened(self, *args: Any, **kwargs: Any) -> _Whole:
        unread = {**kwargs, "preload_content": False, "decode_content": False}
        return _Whole(self._urlopen(*args, **unread), self._seconds)


def node_class(proxy: Proxy | None) -> type[BaseNode]:
    """The class of nodes that are reached through ``proxy``: the transport makes them from their configs alone."""
    return Node if proxy is None else type("ProxiedNode", (Node,), {"proxy": proxy})


def _pool(config: NodeConfig, authorities: str, proxy: Proxy | None) -> HTTPSConnectionPool:
    """``authorities``: file of those to trust. Without ``ca_certs``, those of the system are trusted, too.

    Each new connection reads the client certificate again, so a renewed one is used without a restart.
    """
    given: dict[str, Any] = {
        "timeout": Timeout(total=config.request_timeout),
        "maxsize": config.connections_per_node,
        "block": True,
        "ssl_context": ssl.create_default_context(cafile=config.ca_certs),
        "ca_certs": authorities,
        "cert_file": config.client_cert,
        "key_file": config.client_key,
    }
    if proxy is None:
        return HTTPSConnectionPool(config.host, config.port, **given)
    through = ProxyManager(proxy.address, proxy_headers=proxy.headers, **given)
    pool = through.connection_from_host(config.host, config.port, "https")
    assert isinstance(pool, HTTPSConnectionPool)
    return pool
