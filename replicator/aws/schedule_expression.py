"""How rarely an expression of EventBridge, or of EventBridge Scheduler, invokes its target. Pure.

The expressions are those of schedules that exist: AWS has accepted them, so they are not checked for mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

_HOURS = {"minute": 1 / 60, "hour": 1.0, "day": 24.0}
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
DAY = 24 * 60  # minutes


def longest_pause(expression: str) -> float | None:
    """Hours between two invocations, at most; of those that leave days out, a bound from below. None if unknown.

    ``rate(15 minutes)``, ``cron(0/15 * * * ? *)``, or ``at(2026-01-31T12:00:00)``, which is once.
    """
    kind, _, rest = expression.strip().removesuffix(")").partition("(")
    if kind == "rate":
        return _rate(rest)
    if kind == "cron":
        return _cron(rest.upper().split())
    return math.inf if kind == "at" else None


def daily_times(expression: str) -> Collection[int]:
    """The minutes of each day at which a ``cron`` expression invokes its target; empty if it leaves out days, or is no
    such expression."""
    kind, _, rest = expression.strip().removesuffix(")").partition("(")
    return _times(rest.upper().split())[0] if kind == "cron" else ()


def pause_between(times: Collection[int]) -> float:
    """Hours between two of these minutes of each day, at most; infinite if there are none."""
    ordered = sorted(times)
    if not ordered:
        return math.inf
    return max(later - at for at, later in zip(ordered, [*ordered[1:], ordered[0] + DAY], strict=True)) / 60


def _rate(text: str) -> float | None:
    number, unit = (*text.split(), "", "")[:2]
    of = _HOURS.get(unit.removesuffix("s"))  # both "rate(1 hour)" and "rate(2 hours)"
    return None if of is None or not number.isdecimal() else int(number) * of


def _cron(fields: Sequence[str]) -> float | None:
    daily, others = _times(fields)
    if daily:
        return pause_between(daily)
    return pause_between(others) + DAY / 60 if others else None


def _times(fields: Sequence[str]) -> tuple[Collection[int], Collection[int]]:
    """The minutes of each day; or else of the days that are not left out. Neither if they are unknown."""
    if len(fields) != 6 or fields[5] != "*":
        return (), ()
    minutes, hours = _values(fields[0], 0, 59) or (), _values(fields[1], 0, 23) or ()
    times = [hour * 60 + minute for hour in hours for minute in minutes]
    days = (_values(fields[2], 1, 31), _values(fields[3], 1, 12, _MONTHS), _values(fields[4], 1, 7, _DAYS))
    every = all(found is not None and len(found) == of for found, of in zip(days, (31, 12, 7), strict=True))
    return (times, ()) if every else ((), times)


def _values(field: str, low: int, high: int, names: Sequence[str] = ()) -> set[int] | None:
    """The numbers that a field stands for; None if it has more than numbers, names, ``* ? , -`` and ``/``."""
    found = set[int]()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        if span in ("*", "?"):
            first, last = str(low), str(high)
        elif not last:
            last = str(high) if step else first
        start, end = (str(low + names.index(name)) if name in names else name for name in (first, last))
        if not all(number.isdecimal() for number in (start, end, step or "1")):
            return None
        wrapped = int(end) + (high - low + 1 if int(end) < int(start) else 0)  # FRI-MON
        found |= {low + (n - low) % (high - low + 1) for n in range(int(start), wrapped + 1, max(1, int(step or 1)))}
    return found
