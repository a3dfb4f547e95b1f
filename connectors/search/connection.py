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
    Urllib3HttpNode,
)
from elastic_transport.client_utils import basic_auth_to_header, url_to_node_config
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from connectors.search.errors import Response, ResponseLost, failure
from connectors.search.options import SearchOptions
from replicator import __version__
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.response_limits import WHOLE, body_of


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
        http_compress=options.compress,
        request_timeout=options.timeout,
        connections_per_node=options.in_flight + 1,
    )


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


class _Whole:
    """A response whose body was read within the limits."""

    def __init__(self, response: Any, seconds: float) -> None:
        self.status, self.headers = response.status, response.headers
        self.data = body_of(response, response.headers.get("content-encoding"), seconds)


class _Node(Urllib3HttpNode):
    """Bounds the size and duration of responses; the transport's own node reads and decompresses any amount."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._urlopen = self.pool.urlopen
        self._seconds = WHOLE * float(config.request_timeout or 60.0)
        self.pool.urlopen = self._opened  # type: ignore[method-assign, assignment]

    def _opened(self, *args: Any, **kwargs: Any) -> _Whole:
        unread = {**kwargs, "preload_content": False, "decode_content": False}
        return _Whole(self._urlopen(*args, **unread), self._seconds)


class Connection:
    """Pooled connections to the nodes of one cluster, opened on demand. Thread-safe.

    The transport selects nodes, avoids dead ones for a while and reuses connections. Its retries are off: the engine
    retries, in one place, and reports it.
    """

    def __init__(self, nodes: Sequence[NodeConfig], product: str, sign: Sign | None = None) -> None:
        first = nodes[0]
        self.product = product
        self.server = f"{product} at {first.host}:{first.port}"
        self._nodes = [
            node.replace(headers={**node.headers, "user-agent": f"replicator/{__version__}"}) for node in nodes
        ]
        self._sign = sign
        self._transport: Transport | None = None
        self._logged_in = False  # ever

    def request(self, method: str, path: str, body: bytes | None = None, *, form: str = JSON) -> Response:
        """Return the response, whatever its status.

        Raises TransientError without a response: ResponseLost if the request may have reached the server; also if a
        login that worked before is refused. Raises ConfigError where TLS is misconfigured.
        """
        headers = {"accept": JSON} | ({} if body is None else {"content-type": form})
        if self._sign is not None:
            headers |= self._sign(method, self._url(path), body, headers)
        try:
            response = self._open().perform_request(method, path, body=body, headers=HttpHeaders(headers))
        except TransportError as e:
            raise no_response(e, self.server) from e
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
            self._transport = Transport(
                self._nodes,
                node_class=_Node,
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


def no_response(error: TransportError, server: str) -> ReplicatorError:
    """Our error for a request without a response."""
    cause = error.__cause__ or error
    if isinstance(error, TlsError):
        return _no_tls(str(cause), server)
    if isinstance(cause, NewConnectionError | ConnectTimeoutError):
        return TransientError(f"{server} cannot be reached: {_short(cause)}")
    if isinstance(error, ConnectionTimeout):
        return ResponseLost(f"{server} did not respond in time (target.timeout)")
    if isinstance(error, ConnectionError):
        return ResponseLost(f"{server}: the connection was lost: {_short(cause)}")
    return ResponseLost(f"{server}: {_short(error)}")


def _no_tls(text: str, server: str) -> ReplicatorError:
    if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
        return ConfigError(
            f"{server} has a certificate that is not trusted or is for another host name; "
            "set target.ca_certs to its certificate authority"
        )
    if "WRONG_VERSION_NUMBER" in text or "record layer" in text:
        return ConfigError(f"{server} does not speak TLS on that port; should target.url use http?")
    return ResponseLost(
        f"{server}: TLS failed: {text}"
    )  # perhaps after the request was sent: its response may be damaged


def _short(error: object) -> str:
    """The innermost message of urllib3's nested exceptions."""
    inner = next((part for part in getattr(error, "args", ()) if isinstance(part, BaseException)), None)
    if inner is not None:
        return _short(inner)
    return str(error).rpartition(": ")[2].strip("()'\" ") or type(error).__name__
