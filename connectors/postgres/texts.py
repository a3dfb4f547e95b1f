"""Text as Postgres can hold it: UTF-8, and no NUL character."""

from __future__ import annotations

from collections.abc import Callable

from connectors.postgres.options import Nul

REPLACEMENT = "\ufffd"
NUL_REFUSED = "contains a NUL character, which Postgres cannot hold (nul: replace would put U+FFFD there)"


class Unfit(Exception):
    """The value cannot be stored there; the message says why, without the value, to go on after the column's name."""


def texts(nul: Nul) -> Callable[[str], str]:
    """The rule for text under a policy for NUL characters."""

    def text(value: str) -> str:
        found = utf8(value)
        if "\0" not in found:
            return found
        if nul == "replace":
            return found.replace("\0", REPLACEMENT)
        raise Unfit(NUL_REFUSED)

    return text


def utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit("contains half of a surrogate pair, which is no text") from None
    return value
