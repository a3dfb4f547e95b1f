"""Seeded names that would break out of their quotes if they were not escaped, and the names Postgres accepts."""

from __future__ import annotations

import random
from collections.abc import Iterator

_PIECES = (
    *('"', '""', "'", "''", ";", "; ", "--", "-- x\n", "/*", "*/", ".", ",", "(", ")", "\\", "\\'", '\\"', "$1", "$$"),
    *("%", "%s", "%(a)s", "%%", "{}", "{0}", "{", "}", "{table}", ":a", "::int", "?", "@", "#", "`", "[1]", "=", "*"),
    *(" ", "\n", "\t", "\r", "\x01", "\x1b[31m", "\x7f", "\u00a0", "\u2028", "\u202e", "\ufeff", "\u200b", "$x$"),
    *("é", "e\u0301", "ß", "İ", "ﬁ", "表", "ж", "😀", "\U0010ffff", "ʼ", "＂", "‘"),
    *("a", "B", "c1", "x" * 20, "_", "0", "9z", "A-b", "select", "SELECT", "user", "order", "table", "public", "null"),
    *("default", "all", "pg_catalog", "replicator", "victim", "t", "d", "x", "EXCLUDED", "v", "i", "c0", "done"),
    *("E'", 'U&"', "b'", "; DROP TABLE public.victim; --", '"; DROP TABLE public.victim; --', "' || '", '"."', '", "'),
    *("'); DELETE FROM public.victim; --", '" FROM public.victim; --'),
)  # fmt: skip
_SYSTEM = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
_IMPOSSIBLE = ("", "\0", "a\0b", '"\0', "\ud800", "a\udfff'", "x" * 64, "é" * 32, "😀" * 16, '"' * 64, *_SYSTEM)


def names(seed: int) -> Iterator[str]:
    """Distinct names, endlessly; about one in twelve is invalid."""
    chance = random.Random(seed)
    seen: set[str] = set()
    while True:
        name = _name(chance)
        if name not in seen or name in _IMPOSSIBLE:
            seen.add(name)
            yield name


def _name(chance: random.Random) -> str:
    kind = chance.random()
    if kind < 0.04:
        return chance.choice(_IMPOSSIBLE)
    if kind < 0.08:  # often just too long
        return "".join(chance.choices(_PIECES, k=chance.randrange(8, 25)))
    if kind < 0.13:
        return "".join(chr(_character(chance)) for _ in range(chance.randrange(1, 15)))
    return "".join(chance.choices(_PIECES, k=chance.randrange(1, 6)))


def _character(chance: random.Random) -> int:
    found = chance.choice((0x80, 0x800, 0x10000, 0x110000))
    point = chance.randrange(1, found)
    return point if not 0xD800 <= point < 0xE000 else 0x22


def is_possible(name: str, *, column: bool = False) -> bool:
    """The rules for identifiers from the Postgres manual, implemented independently."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size < 64 and "\0" not in name and not (column and name in (*_SYSTEM, "_version"))
