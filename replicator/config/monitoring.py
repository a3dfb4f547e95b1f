"""The config's section ``monitoring``: where a run serves its metrics and its page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from replicator.options import Options, is_loopback

DEFAULT_LISTEN = "127.0.0.1:9464"
_FORM = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9.-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. ``host`` is without the brackets of an IPv6 address."""

    host: str
    port: int

    @classmethod
    def parsed(cls, text: str) -> Address:
        """``HOST:PORT``; ValueError if it is not."""
        form = _FORM.fullmatch(text)
        if form is None or not 0 < int(form["port"]) < 65536:
            raise ValueError(f"must have the form HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9464")
        return cls(form["v6"] or form["host"], int(form["port"]))

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _listen(text: str) -> str:
    return str(Address.parsed(text))


class Monitoring(Options):
    """Metrics, health and a status page of a run, over HTTP. Needs the extra `web`."""

    listen: Annotated[str, AfterValidator(_listen)] = Field(
        default=DEFAULT_LISTEN,
        description="address to listen on, without login or TLS: anything but loopback shows keys and errors to others",
    )

    @property
    def address(self) -> Address:
        return Address.parsed(self.listen)
