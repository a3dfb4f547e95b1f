"""Escapes what a terminal or a log would act on instead of showing it: every text from outside leaves through here.

Items' keys, endpoints' errors and tables' names may hold escape sequences, line ends and characters that reorder a
line. They are written as JSON escapes (``\\u001b``), so an item that a command printed can be pasted into the next one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# C0 and C1 controls, DEL; marks, embeddings and isolates of bidirectional text; line and paragraph separators;
# interlinear annotations, the byte order mark; halves of surrogate pairs; tags, which nothing shows.
_ACTIVE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_NOT_ASCII = re.compile("[^\n -~]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escaped(text: object) -> str:
    """``text`` as one line that does nothing but be read."""
    shown = str(text)
    return shown if shown.isascii() and shown.isprintable() else _ACTIVE.sub(_escape, shown)


def escaped_lines(text: object, indent: str = "") -> str:
    """The same for text whose line ends are ours: each of its lines escaped, behind ``indent``."""
    return "\n".join(f"{indent}{escaped(line)}" for line in str(text).split("\n"))


def escaped_paragraph(text: object, indent: str) -> str:
    """The same with ``indent`` before all lines but the first, so that none of them passes for a line of its own."""
    first, *more = escaped_lines(text).split("\n")
    return "\n".join([first, *(f"{indent}{line}" for line in more)])


def ascii_json(text: str) -> str:
    """JSON in ASCII, which neither a terminal nor a reader of lines can mistake. Line ends between values stay."""
    return text if text.isascii() and "\x7f" not in text else _NOT_ASCII.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or "".join(f"\\u{unit:04x}" for unit in _utf16(found[0]))


def _utf16(character: str) -> Iterable[int]:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(encoded[at : at + 2], "big") for at in range(0, len(encoded), 2))
