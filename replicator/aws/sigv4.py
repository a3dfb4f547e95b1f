"""AWS's signature, version 4, for many small requests to one endpoint.

botocore's own costs a hundred microseconds a request, which is more than all else that a write takes. What does not
change from request to request is kept here; that both give the same signature is tested on random requests.
"""

from __future__ import annotations

import hmac
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import quote

import msgspec

_ALGORITHM = "AWS4-HMAC-SHA256"


class Keys(msgspec.Struct, frozen=True):
    """Credentials as they are at one moment. ``token`` belongs to temporary ones."""

    access: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Keys()"  # nothing of them is for logs


class Signer:
    """Makes the signed headers of POST requests to one ``place``, a path, at one ``host``.

    ``content`` is the Content-Type. One thread uses a signer at a time.
    """

    def __init__(self, host: str, region: str, service: str, content: str, place: str = "/") -> None:
        self._host = host
        self._place = quote(place, safe="/~")
        self._scope = f"{region}/{service}/aws4_request"
        self._path = (region, service, "aws4_request")
        self._content = content
        self._for: tuple[Keys, int] | None = None
        self._day = ""
        self._stamp = ""
        self._key = b""
        self._prefixes: dict[str, tuple[bytes, bytes]] = {}

    def headers(self, target: str, body: bytes, keys: Keys, now: float) -> bytes:
        """The header lines, each with its line end. ``target``: X-Amz-Target; ``now``: seconds since 1970."""
        second = int(now)
        if self._for != (keys, second):
            self._renew(keys, second)
        found = self._prefixes.get(target)
        if found is None:
            found = self._prefixes[target] = self._prepared(target, keys)
        canonical, lines = found
        request = sha256(canonical + sha256(body).hexdigest().encode()).hexdigest()
        text = f"{_ALGORITHM}\n{self._stamp}\n{self._day}/{self._scope}\n{request}"
        return lines + hmac.digest(self._key, text.encode(), "sha256").hex().encode() + b"\r\n"

    def _renew(self, keys: Keys, second: int) -> None:
        """Once a second, and for other credentials: all that depends on time and keys."""
        self._stamp = datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")
        day = self._stamp[:8]
        if self._for is None or self._for[0] != keys or self._day != day:
            key = f"AWS4{keys.secret}".encode()
            for part in (day, *self._path):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key, self._day = key, day
        self._for = keys, second
        self._prefixes.clear()

    def _prepared(self, target: str, keys: Keys) -> tuple[bytes, bytes]:
        """The canonical request up to the body's hash, and the header lines up to the signature."""
        given = {"content-type": self._content, "host": self._host, "x-amz-date": self._stamp}
        if keys.token is not None:
            given["x-amz-security-token"] = keys.token
        given["x-amz-target"] = target
        names = ";".join(given)
        canonical = f"POST\n{self._place}\n\n" + "".join(f"{n}:{v}\n" for n, v in given.items()) + f"\n{names}\n"
        lines = "".join(f"{n}: {v}\r\n" for n, v in given.items())
        credential = f"{keys.access}/{self._day}/{self._scope}"
        lines += f"authorization: {_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature="
        return canonical.encode(), lines.encode()
