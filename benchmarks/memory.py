"""Memory of a run that reads 64 shards of 400 KB items over HTTP into Postgres, in a separate process."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from benchmarks.product import AS_DOCUMENTS, copy

SHARDS, RECORDS, SIZE = 64, 960, 400_000
EVERY = 0.05  # seconds between samples
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Memory:
    """MB: the maximum, and the medians of the second and the last quarter of the run."""

    peak: float
    early: float
    late: float


def measured(endpoint: str, url: str) -> Memory:
    # Not getrusage: its ru_maxrss includes the parent process before exec.
    looks: list[float] = []
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(looks, done))
    watching.start()
    try:
        copy(endpoint, url, AS_DOCUMENTS, None, RECORDS)
    finally:
        done.set()
        watching.join()
    quarter = len(looks) // 4
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    return Memory(peak, _middle(looks[quarter : 2 * quarter]), _middle(looks[3 * quarter :]))


def _watch(looks: list[float], done: threading.Event) -> None:
    while not done.wait(EVERY):
        looks.append(int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / 2**20)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
