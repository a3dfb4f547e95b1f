"""Opens connections to AWS endpoints: with TLS, and through the proxy that the environment names."""

from __future__ import annotations

import base64
import functools
import http.client
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from replicator.aws.errors import NotConnected, without_login
from replicator.errors import ConfigError
from replicator.options import UNENCRYPTED, is_loopback


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An AWS endpoint; a path in its ``url`` is kept.

    ``authorities``: path of the CA bundle; ``proxy``: URL of the proxy in front of it.
    """

    url: str
    region: str
    authorities: str
    proxy: str | None = None

    @property
    def shown(self) -> str:
        """The URL for messages, without a login."""
        return without_login(self.url)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def place(self) -> str:
        """The request path."""
        return urlsplit(self.url).path or "/"

    @property
    def proxied(self) -> bool:
        """Whether requests themselves go to the proxy, as they do without TLS; with TLS it only opens a tunnel."""
        return self.proxy is not None and urlsplit(self.url).scheme == "http"


def connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connected socket. NotConnected on failure, or if a step (TCP, TLS, proxy) exceeds ``timeout`` seconds."""
    try:
        return _connected(endpoint, timeout)
    except TimeoutError as e:
        raise NotConnected("ConnectTimeoutError", f'Connect timeout on endpoint URL: "{endpoint.shown}"', 0) from e
    except ssl.SSLError as e:
        reason = e.verify_message if isinstance(e, ssl.SSLCertVerificationError) else str(e)
        raise NotConnected("SSLError", f"SSL validation failed for {endpoint.shown}: {reason}", 0) from e
    except (OSError, http.client.HTTPException) as e:
        through = "" if endpoint.proxy is None else f" through the proxy {urlsplit(endpoint.proxy).hostname}"
        message = f'Could not connect to the endpoint URL: "{endpoint.shown}"{through}: {e}'
        raise NotConnected("EndpointConnectionError", message, 0) from e


def _connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    url = urlsplit(endpoint.url)
    first = url if endpoint.proxy is None else urlsplit(endpoint.proxy)
    host = first.hostname or ""
    if url.scheme == "https":
        context = _context(endpoint.authorities)
        port = first.port or (443 if endpoint.proxy is None else 80)
        http_connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=timeout, context=context
        )
        if endpoint.proxy is not None:
            http_connection.set_tunnel(url.hostname or "", url.port or 443, authorization(endpoint.proxy))
    else:
        http_connection = http.client.HTTPConnection(host, first.port or 80, timeout=timeout)
    http_connection.connect()
    connection: socket.socket = http_connection.sock
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def authorization(proxy: str) -> dict[str, str]:
    """The header with the login in a proxy's URL; empty if it has none."""
    url = urlsplit(proxy)
    if not url.username:
        return {}
    login = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


@functools.cache
def _context(authorities: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)


def require_safe(url: str, place: str, *, insecure: bool) -> None:
    """ConfigError for plain http to another host: the environment or ~/.aws/config may have named this endpoint."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not insecure:
        raise ConfigError(
            f"{place}: the endpoint {parts.netloc.rpartition('@')[2]} (from AWS_ENDPOINT_URL… in the environment, or "
            f"endpoint_url in ~/.aws/config) {UNENCRYPTED}"
        )
