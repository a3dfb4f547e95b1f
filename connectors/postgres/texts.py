"""Text as Postgres can hold it: UTF-8, and no NUL character."""

from __future__ import annotations

from collections.abc import Callable

from connectors.postgres.options import Nul
from replicator.items.to_json import Unfit, utf8

REPLACEMENT = "\ufffd"
NUL_REFUSED = "contains a NUL character, which Postgres cannot hold (nul: replace would put U+FFFD there)"


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
