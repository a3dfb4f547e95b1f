"""The edge to the servers: an official client's transport, with our bytes in and the raw answer out."""

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

from connectors.search.errors import Answer, ResponseLost, failure
from connectors.search.options import SearchOptions
from replicator import __version__
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.response_limits import WHOLE, body_of


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


# What it has to say about nodes is said by our errors; without a handler Python would print it between our lines.
logging.getLogger("elastic_transport").addHandler(logging.NullHandler())

JSON = "application/json"
NDJSON = "application/x-ndjson"

Sign = Callable[[str, str, bytes | None, Mapping[str, str]], Mapping[str, str]]
"""From (method, URL, body, headers) to the headers that sign the request."""


def filtered(*paths: str) -> str:
    """The parameter that keeps an answer small. Encoded as a signature of AWS wants it."""
    return f"filter_path={quote(','.join(paths), safe='')}"


class _Bytes(Serializer):
    """Bodies are bytes in both directions: the transport's own reading and writing of JSON would round numbers."""

    def loads(self, data: bytes) -> bytes:
        return data

    def dumps(self, data: bytes) -> bytes:
        return data


_SERIALIZERS = {name: _Bytes() for name in (JSON, NDJSON, "application/*", "text/*")}


class _Whole:
    """A response that was read."""

    def __init__(self, response: Any, seconds: float) -> None:
        self.status, self.headers = response.status, response.headers
        self.data = body_of(response, response.headers.get("content-encoding"), seconds)


class _Node(Urllib3HttpNode):
    """The transport's node, whose responses have limits: it reads whatever comes, and decompresses all of it."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._urlopen = self.pool.urlopen
        self._seconds = WHOLE * float(config.request_timeout or 60.0)
        self.pool.urlopen = self._opened  # type: ignore[method-assign, assignment]

    def _opened(self, *given: Any, **named: Any) -> _Whole:
        unread = {**named, "preload_content": False, "decode_content": False}
        return _Whole(self._urlopen(*given, **unread), self._seconds)


class Connection:
    """Connections to the nodes of one cluster, made when needed. Threads may share it.

    The transport selects nodes, sets dead ones aside and reuses connections. It repeats nothing: that is done in one
    place, where it can be seen.
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

    def request(self, method: str, path: str, body: bytes | None = None, *, form: str = JSON) -> Answer:
        """The answer, whatever its status. TransientError without one, AnswerLost if the request may have arrived."""
        headers = {"accept": JSON} | ({} if body is None else {"content-type": form})
        if self._sign is not None:
            headers |= self._sign(method, self._url(path), body, headers)
        try:
            found = self._open().perform_request(method, path, body=body, headers=HttpHeaders(headers))
        except TransportError as e:
            raise unanswered(e, self.server) from e
        product = found.meta.headers.get("x-elastic-product")
        body = found.body or b""
        if found.meta.status >= 300:
            body = without(body, {**self._nodes[0].headers, **headers})
        return Answer(found.meta.status, body, product == "Elasticsearch")

    def ask(self, method: str, path: str, body: bytes | None = None, *, doing: str) -> Any:
        """The JSON of a successful answer; errors by what to do about them otherwise."""
        answer = self.request(method, path, body)
        found = answer.json
        if answer.status >= 300 or (found is None and method != "HEAD"):
            raise failure(answer, self.server, doing)
        return found

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


def without(body: bytes, headers: Mapping[str, str]) -> bytes:
    """A refusal without the login that it may repeat: Amazon's quote what they do not understand in a header."""
    for name in ("authorization", "Authorization", "x-amz-security-token", "X-Amz-Security-Token"):
        secret = headers.get(name, "").rpartition(" ")[2].encode()
        body = body.replace(secret, "…".encode()) if secret else body
    return body


def unanswered(error: TransportError, server: str) -> ReplicatorError:
    """Our error for a request without an answer."""
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
    return ResponseLost(f"{server}: TLS failed: {text}")  # perhaps behind the request, when its answer was damaged


def _short(error: object) -> str:
    """The last part of urllib3's nested sentences, or of the exception that one is about."""
    inner = next((part for part in getattr(error, "args", ()) if isinstance(part, BaseException)), None)
    if inner is not None:
        return _short(inner)
    return str(error).rpartition(": ")[2].strip("()'\" ") or type(error).__name__
