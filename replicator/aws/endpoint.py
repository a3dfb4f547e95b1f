"""How a connection to an endpoint of AWS is made: through the proxy that the environment names, with TLS."""

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
from replicator.options import is_loopback


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of DynamoDB; the path in its ``url`` is kept.

    ``authorities``: the file of certificates to trust; ``proxy``: what stands before it."""

    url: str
    region: str
    authorities: str
    proxy: str | None = None

    @property
    def shown(self) -> str:
        """The URL for people."""
        return without_login(self.url)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def place(self) -> str:
        """The path that requests go to."""
        return urlsplit(self.url).path or "/"

    @property
    def proxied(self) -> bool:
        """Whether requests go to a proxy that reads them: it stands before an endpoint without TLS."""
        return self.proxy is not None and urlsplit(self.url).scheme == "http"


def connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connection that takes requests to ``endpoint``; NotConnected without one within ``timeout`` seconds a step."""
    try:
        return _connected(endpoint, timeout)
    except TimeoutError as e:
        raise NotConnected("ConnectTimeoutError", f'Connect timeout on endpoint URL: "{endpoint.shown}"', 0) from e
    except ssl.SSLError as e:
        said = e.verify_message if isinstance(e, ssl.SSLCertVerificationError) else str(e)
        raise NotConnected("SSLError", f"SSL validation failed for {endpoint.shown}: {said}", 0) from e
    except (OSError, http.client.HTTPException) as e:
        through = "" if endpoint.proxy is None else f" through the proxy {urlsplit(endpoint.proxy).hostname}"
        said = f'Could not connect to the endpoint URL: "{endpoint.shown}"{through}: {e}'
        raise NotConnected("EndpointConnectionError", said, 0) from e


def _connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    url = urlsplit(endpoint.url)
    first = url if endpoint.proxy is None else urlsplit(endpoint.proxy)
    host = first.hostname or ""
    if url.scheme == "https":
        trusted = _context(endpoint.authorities)
        port = first.port or (443 if endpoint.proxy is None else 80)
        made: http.client.HTTPConnection = http.client.HTTPSConnection(host, port, timeout=timeout, context=trusted)
        if endpoint.proxy is not None:
            made.set_tunnel(url.hostname or "", url.port or 443, authorization(endpoint.proxy))
    else:
        made = http.client.HTTPConnection(host, first.port or 80, timeout=timeout)
    made.connect()
    found: socket.socket = made.sock
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return found


def authorization(proxy: str) -> dict[str, str]:
    """The header with the name and password that a proxy's URL gives."""
    url = urlsplit(proxy)
    if not url.username:
        return {}
    given = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(given.encode()).decode()}"}


@functools.cache
def _context(authorities: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authorities)


def require_safe(url: str, place: str, *, insecure: bool) -> None:
    """The endpoint that is used may be one that the environment or ~/.aws/config names."""
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not insecure:
        raise ConfigError(
            f"{place}: the endpoint {parts.netloc.rpartition('@')[2]} (from AWS_ENDPOINT_URL… in the environment, or "
            "endpoint_url in ~/.aws/config) is http to another machine, so items would be sent unencrypted; use https, "
            f"or set {place}.insecure: true"
        )
