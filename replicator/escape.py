"""Escapes control characters in untrusted text before it reaches a terminal or a log.

Item keys, error messages of endpoints and table names may contain escape sequences, line breaks and characters that
reorder text. They are written as JSON escapes (``\\u001b``), so a printed item can be pasted into another command.
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
    """``text`` as a single line without active characters."""
    shown = str(text)
    return shown if shown.isascii() and shown.isprintable() else _ACTIVE.sub(_escape, shown)


def escaped_lines(text: object, indent: str = "") -> str:
    """Like ``escaped`` for trusted line breaks: escapes and indents each line."""
    return "\n".join(f"{indent}{escaped(line)}" for line in str(text).split("\n"))


def escaped_paragraph(text: object, indent: str) -> str:
    """Like ``escaped_lines``, but indents all lines except the first, so that none can pose as a separate message."""
    first, *more = escaped_lines(text).split("\n")
    return "\n".join([first, *(f"{indent}{line}" for line in more)])


def ascii_json(text: str) -> str:
    """JSON with everything outside printable ASCII escaped. Line breaks between values stay."""
    return text if text.isascii() and "\x7f" not in text else _NOT_ASCII.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or "".join(f"\\u{unit:04x}" for unit in _utf16(found[0]))


def _utf16(character: str) -> Iterable[int]:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return (int.from_bytes(encoded[at : at + 2], "big") for at in range(0, len(encoded), 2))
