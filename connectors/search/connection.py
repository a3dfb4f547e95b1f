"""HTTP to one cluster through Elastic's official transport: request bodies as our own bytes, responses unparsed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from elastic_transport import (
    ConnectionError,
    ConnectionTimeout,
    HttpHeaders,
    NodeConfig,
    Serializer,
    TlsError,
    Transport,
    TransportError,
)
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ProxyError

from connectors.search.errors import Response, ResponseLost, failure
from connectors.search.nodes import Proxy, check_certificates, node_class
from replicator import __version__
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError

# Our own errors report what it logs about nodes; without a handler Python would print it to stderr.
logging.getLogger("elastic_transport").addHandler(logging.NullHandler())

JSON = "application/json"
NDJSON = "application/x-ndjson"

Sign = Callable[[str, str, bytes | None, Mapping[str, str]], Mapping[str, str]]
"""Returns the headers that sign a request, given its method, URL, body and headers."""


def filtered(*paths: str) -> str:
    """The query parameter that limits a response to ``paths``, encoded as AWS signatures require."""
    return f"filter_path={quote(','.join(paths), safe='')}"


class _Bytes(Serializer):
    """Passes bodies through as bytes: the transport's own JSON serializer would round numbers."""

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: bytes) -> bytes:
        return data


_SERIALIZERS = {name: _Bytes() for name in (JSON, NDJSON, "application/*", "text/*")}


class Connection:
    """Pooled connections to the nodes of one cluster, opened on demand. Thread-safe.

    The transport selects nodes, avoids dead ones for a while and reuses connections. Its retries are off: the engine
    retries, in one place, and reports it.
    """

    def __init__(
        self, nodes: Sequence[NodeConfig], product: str, sign: Sign | None = None, proxy: Proxy | None = None
    ) -> None:
        first = nodes[0]
        self.product = product
        self.server = f"{product} at {first.host}:{first.port}"
        self._nodes = [
            node.replace(headers={**node.headers, "user-agent": f"replicator/{__version__}"}) for node in nodes
        ]
        self._sign = sign
        self._proxy = proxy
        self._transport: Transport | None = None
        self._logged_in = False  # ever

    def request(self, method: str, path: str, body: bytes | None = None, *, form: str = JSON) -> Response:
        """Return the response, whatever its status.

        Raises TransientError without a response: ResponseLost if the request may have reached the server; also if a
        login that worked before is refused. Raises ConfigError where TLS is misconfigured, NotPermitted where the
        client certificate or the proxy's login is refused.
        """
        headers = {"accept": JSON} | ({} if body is None else {"content-type": form})
        if self._sign is not None:
            headers |= self._sign(method, self._url(path), body, headers)
        try:
            response = self._open().perform_request(method, path, body=body, headers=HttpHeaders(headers))
        except TransportError as e:
            raise self._no_response(e) from e
        body = response.body or b""
        self._check_login(response.meta.status)
        if response.meta.status >= 300:
            body = redacted(body, {**self._nodes[0].headers, **headers})
        return Response(response.meta.status, body)

    def _check_login(self, status: int) -> None:
        """TransientError if a login that worked before is refused: its password is being rotated."""
        if status == 401 and self._logged_in:
            raise TransientError(
                f"{self.server} refuses the login. It was accepted before, so the password or the API key was probably "
                "changed: restart the run with the new one"
            )
        self._logged_in = self._logged_in or status < 300

    def _no_response(self, error: TransportError) -> ReplicatorError:
        found = no_response(error, self.server, self._proxy)
        if self._logged_in and isinstance(found, NotPermitted):
            return TransientError(f"{found.problem}. It was accepted before: was it changed, or has it expired?")
        closed = isinstance(error, TlsError | ConnectionError) and isinstance(found, ResponseLost)
        if closed and not self._logged_in and self._nodes[0].scheme == "https":
            return ResponseLost(f"{found} {_CLOSED_EARLY}")
        return found

    def ask(self, method: str, path: str, body: bytes | None = None, *, doing: str) -> Any:
        """Return the JSON of a successful response; raise ``failure`` for any other. ``doing``: for the message."""
        response = self.request(method, path, body)
        value = response.json
        if response.status >= 300 or (value is None and method != "HEAD"):
            raise failure(response, self.server, doing)
        return value

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _url(self, path: str) -> str:
        node = self._nodes[0]
        return f"{node.scheme}://{node.host}:{node.port}{node.path_prefix}{path}"

    def _open(self) -> Transport:
        if self._transport is None:
            check_certificates(self._nodes[0])
            self._transport = Transport(
                self._nodes,
                node_class=node_class(self._proxy),
                max_retries=0,
                retry_on_status=(),
                serializers=_SERIALIZERS,
                meta_header=False,
            )
        return self._transport


def redacted(body: bytes, headers: Mapping[str, str]) -> bytes:
    """An error body without the credentials it may echo: Amazon quotes headers it cannot parse."""
    for name in ("authorization", "Authorization", "x-amz-security-token", "X-Amz-Security-Token"):
        secret = headers.get(name, "").rpartition(" ")[2].encode()
        body = body.replace(secret, "…".encode()) if secret else body
    return body


def no_response(error: TransportError, server: str, proxy: Proxy | None = None) -> ReplicatorError:
    """Our error for a request without a response."""
    cause = error.__cause__ or error
    if proxy is not None and (refused := _innermost(cause).partition("Tunnel connection failed: ")[2]):
        return _no_tunnel(refused[:_SHOWN], server, proxy)
    if isinstance(error, TlsError):
        return _no_tls(str(cause), server)
    if isinstance(cause, NewConnectionError | ConnectTimeoutError | ProxyError):
        through = "" if proxy is None else f" through the proxy {proxy.shown}"
        return TransientError(f"{server} cannot be reached{through}: {_short(cause)}")
    if isinstance(error, ConnectionTimeout):
        return ResponseLost(f"{server} did not respond in time (target.timeout)")
    if isinstance(error, ConnectionError):
        return ResponseLost(f"{server}: the connection was lost: {_short(cause)}")
    return ResponseLost(f"{server}: {_short(error)}")


# With TLS 1.3 a server learns that there is no certificate when the request is on its way already, and what it says
# about that may be lost as it closes the connection.
_CLOSED_EARLY = "(does it require a client certificate, or another one? See target.client_cert)"
_SHOWN = 200  # characters of a proxy's reason


def _no_tunnel(refused: str, server: str, proxy: Proxy) -> ReplicatorError:
    """``refused``: the status with which the proxy responded to CONNECT, and its reason."""
    if refused.startswith("407"):
        text = f"the proxy {proxy.shown} refuses the login ({refused})"
        return NotAuthenticated(text, "login", proxy.shown, "Correct the user name and password in target.proxy")
    if refused.startswith("403"):
        text = f"the proxy {proxy.shown} does not permit connections to {server} ({refused})"
        return NotPermitted(text, "connect", proxy.shown, "Allow them there, or correct target.proxy")
    return TransientError(f"{server} cannot be reached through the proxy {proxy.shown}: {refused}")


def _no_tls(text: str, server: str) -> ReplicatorError:
    if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
        return ConfigError(
            f"{server} has a certificate that is not trusted or is for another host name; "
            "set target.ca_certs to its certificate authority"
        )
    if "_ALERT_" in text and ("CERTIFICATE" in text or "UNKNOWN_CA" in text):
        advice = "Set target.client_cert and target.client_key to one that it accepts"
        return NotAuthenticated(f"{server} refuses the client certificate, or lacks one", "login", server, advice)
    if "WRONG_VERSION_NUMBER" in text or "record layer" in text:
        return ConfigError(f"{server} does not speak TLS on that port; should target.url use http?")
    return ResponseLost(
        f"{server}: TLS failed: {text}"
    )  # perhaps after the request was sent: its response may be damaged


def _innermost(error: object) -> str:
    """The innermost message of urllib3's nested exceptions."""
    inner = next((part for part in getattr(error, "args", ()) if isinstance(part, BaseException)), None)
    return _innermost(inner) if inner is not None else str(error) or type(error).__name__


def _short(error: object) -> str:
    """That message without what precedes its reason."""
    return _innermost(error).rpartition(": ")[2].strip("()'\" ") or type(error).__name__
