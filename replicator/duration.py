"""Durations and sizes as text."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """``3 s``, ``4 min 10 s``, ``2 h 5 min``, ``3 d 2 h``, or ``unknown``."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def data_size(count: int) -> str:
    """``512 bytes``, ``4.2 GB``."""
    for size, unit in ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
