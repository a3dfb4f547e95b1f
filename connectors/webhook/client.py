"""HTTP to one receiver: signed POSTs on a keep-alive connection, with responses by what to do about them."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson
from standardwebhooks import Webhook as Signer
from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError, SSLError

from connectors.webhook.breaker import CLOSED
from connectors.webhook.messages import Message
from connectors.webhook.options import WebhookOptions
from replicator import __version__
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, ReplicatorError, TransientError
from replicator.options import split_url
from replicator.response_limits import WHOLE, TooLarge, body_of, bounded

TOO_LARGE = 413
_LARGEST = 1 << 20  # bytes of a response's body; only epochs and the numbers of superseded events are read from it
_ITS_OWN = frozenset({400, 409, 412, TOO_LARGE, 416, 418, 422, 424})
"""Statuses that may be about what was sent. All other refusals are about the endpoint, whatever is sent there."""
_GONE = 410  # Standard Webhooks: stop sending


class ResponseLost(TransientError):
    """The request may have been carried out, or may still be."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response of the receiver about what was sent: accepted, or rejected for that reason."""

    status: int
    body: bytes = b""

    @property
    def accepted(self) -> bool:
        return 200 <= self.status < 300

    @property
    def json(self) -> Mapping[str, Any]:
        """The decoded body; empty if it is no JSON object, as from receivers that answer with a text."""
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}


class Client:
    """Sends messages one at a time. Used by one thread."""

    def __init__(
        self,
        options: WebhookOptions,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.server = options.server
        self._options = options
        self._now = now
        self._monotonic = monotonic
        self._signers = [Signer(secret.get_secret_value()) for secret in options.secret]
        self._headers = {name: value.get_secret_value() for name, value in options.headers.items()}
        self._parts = split_url(options.url.get_secret_value())
        self._pool: HTTPConnectionPool | None = None
        self._breaker = CLOSED
        self._reason = ""  # of the last failure
        self._accepted = False  # anything, ever

    def send(self, message: Message) -> Response:
        """Send a message; return the response if it is about the message: accepted, or rejected because of it.

        Everything else is about the endpoint. TransientError if that may change: ResponseLost if the message may have
        been carried out. While the circuit is open, raises TransientError without sending. Until the endpoint has
        accepted something: ConfigError or NotPermitted if a person must change something.
        """
        if (left := self._breaker.left(self._monotonic())) > 0:
            raise TransientError(
                f"{self.server} gets no request for {left:.0f} s more, after {self._breaker.failures} failure(s) in a "
                f"row; the last one: {self._reason}"
            )
        try:
            return self._sent(message)
        except TransientError as e:
            self._reason = str(e)
            raise

    def connect(self) -> None:
        """Only resolve the name, connect and establish TLS. Raises errors as ``send`` does."""
        address = (self._parts.hostname or "", self._port)
        try:
            with contextlib.ExitStack() as opened:
                plain = opened.enter_context(socket.create_connection(address, self._options.timeout))
                if self._parts.scheme == "https":
                    opened.enter_context(self._trust().wrap_socket(plain, server_hostname=address[0]))
        except ssl.SSLError as e:
            raise self._no_tls(str(e)) from e
        except OSError as e:
            raise TransientError(f"{self.server} cannot be reached: {e.strerror or e}") from e

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _sent(self, message: Message) -> Response:
        try:
            response = self._open().urlopen(
                "POST",
                self._path,
                body=message.body,
                headers=self._signed(message),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            body = _body(response, WHOLE * self._options.timeout)
        except HTTPError as e:
            self._breaker = self._breaker.failed(self._monotonic())
            raise self._no_response(e) from e
        return self._judged(response.status, response.headers, body)

    def _judged(self, status: int, headers: Mapping[str, str], body: bytes) -> Response:
        if 200 <= status < 300 or status in _ITS_OWN:
            self._accepted = self._accepted or status < 300
            self._breaker = CLOSED
            return Response(status, body)
        wish = _retry_after(headers.get("retry-after"), self._now())
        self._breaker = self._breaker.failed(self._monotonic(), wish)
        raise self._refused(status, headers)

    def _refused(self, status: int, headers: Mapping[str, str]) -> ReplicatorError:
        """The error for a response that is about the endpoint."""
        if status >= 500:
            return ResponseLost(f"{self.server} fails (status {status})")
        if status in (408, 425, 429):
            text = f"{self.server} wants fewer or later requests (status {status})"
            return ResponseLost(text) if status == 408 else TransientError(text)  # 408: a gateway may have forwarded it
        error = self._permanent(status, headers)
        if self._accepted and status != _GONE:
            return TransientError(f"{error}. It accepted requests before, so this may be temporary")
        return error

    def _permanent(self, status: int, headers: Mapping[str, str]) -> ReplicatorError:
        if status < 400:
            return ConfigError(
                f"{self.server} redirects{_to(headers.get('location', ''))} (status {status}). Redirects are never "
                "followed; set target.url to the final address"
            )
        if status in (401, 407):
            advice = "Compare target.secret and target.headers with what the receiver expects, and the clocks of both"
            return NotAuthenticated(
                f"{self.server} refuses the signature or the login (status {status})", "POST", self.server, advice
            )
        if status == 403:
            return NotPermitted(
                f"{self.server} does not permit the request (status 403)", "POST", self.server, "Allow it there"
            )
        if status == _GONE:
            return ConfigError(
                f"{self.server} says that the receiver is gone permanently (status 410), so nothing more is sent. "
                "Correct target.url, or stop this pipeline"
            )
        if status not in (404, 405):
            return ConfigError(f"{self.server} refuses all requests (status {status}); its operator can say why")
        return ConfigError(f"{self.server} takes no webhooks at the path of target.url (status {status}); correct it")

    def _no_response(self, error: HTTPError) -> ReplicatorError:
        if isinstance(error, NewConnectionError | ConnectTimeoutError):
            return TransientError(f"{self.server} cannot be reached: {_short(error)}")
        if isinstance(error, SSLError):
            return self._no_tls(str(error))
        if isinstance(error, ReadTimeoutError):
            return ResponseLost(f"{self.server} did not respond in time (target.timeout)")
        return ResponseLost(f"{self.server}: the connection was lost: {_short(error)}")

    def _no_tls(self, text: str) -> ReplicatorError:
        error: ReplicatorError
        if "CERTIFICATE_VERIFY_FAILED" in text or "doesn't match" in text:
            error = ConfigError(
                f"{self.server} has a certificate that is not trusted or is for another host name; set target.ca_certs "
                "to its certificate authority"
            )
        elif "WRONG_VERSION_NUMBER" in text or "record layer" in text:
            error = ConfigError(f"{self.server} does not speak TLS on that port; correct target.url")
        else:
            return ResponseLost(f"{self.server}: TLS failed")
        return TransientError(f"{error}. It accepted requests before") if self._accepted else error

    def _signed(self, message: Message) -> dict[str, str]:
        """The request's headers, with a signature of each secret. A message sent again is signed again, at its time."""
        now = datetime.fromtimestamp(int(self._now()), UTC)
        text = message.body.decode()
        return {
            **self._headers,
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": f"replicator/{__version__}",
            "webhook-id": message.id,
            "webhook-timestamp": f"{now.timestamp():.0f}",
            "webhook-signature": " ".join(signer.sign(message.id, now, text) for signer in self._signers),
        }

    @property
    def _path(self) -> str:
        path = self._parts.path or "/"
        return f"{path}?{self._parts.query}" if self._parts.query else path

    @property
    def _port(self) -> int:
        return self._parts.port or (443 if self._parts.scheme == "https" else 80)

    def _trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._options.ca_certs)

    def _open(self) -> HTTPConnectionPool:
        if self._pool is None:
            host, timeout = self._parts.hostname or "", Timeout(total=self._options.timeout)
            if self._parts.scheme == "https":
                self._pool = HTTPSConnectionPool(
                    host, self._port, timeout=timeout, maxsize=1, ssl_context=self._trust()
                )
            else:
                self._pool = HTTPConnectionPool(host, self._port, timeout=timeout, maxsize=1)
            self._pool.ConnectionCls = bounded(self._pool.ConnectionCls, WHOLE * self._options.timeout)
        return self._pool


def _to(location: str) -> str:
    """Where a redirect leads, without its path, which may contain a token."""
    parts = split_url(location)
    return f" to {parts.scheme}://{parts.hostname}" if parts.scheme and parts.hostname else ""


def _body(response: BaseHTTPResponse, seconds: float) -> bytes:
    """A body without compression; empty if it is too large or damaged: the status alone says if a message is accepted.

    urllib3's errors if it is incomplete.
    """
    try:
        body = body_of(response, None, seconds, _LARGEST)
    except TooLarge:
        return b""
    encoding = response.headers.get("content-encoding")
    if encoding in (None, "", "identity"):
        return body
    if encoding == "gzip":
        with contextlib.suppress(zlib.error):
            inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
            plain = inflate.decompress(body, _LARGEST)
            return b"" if inflate.unconsumed_tail else plain
    return b""


def _retry_after(value: str | None, now: float) -> float:
    """Seconds of a Retry-After header: a number, or a date; 0 if there is none that can be understood."""
    if value is None:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    return 0.0


def _short(error: object) -> str:
    """The innermost message of nested exceptions, without what precedes its reason."""
    inner = next((part for part in getattr(error, "args", ()) if isinstance(part, BaseException)), None)
    if inner is not None:
        return _short(inner)
    return str(error).rpartition(": ")[2].strip("()'\" ") or type(error).__name__
