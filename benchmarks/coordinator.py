"""The coordinator of a run with several workers: its CPU a second, as the number of shards grows.

Workers are not there: each shard's entry is changed every two seconds, as an idle worker's heartbeat does. The source
and the checkpoints are in memory, and their CPU is part of the figure.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from replicator.state import ShardState, decode, encode
from tests.engine.cluster import TABLE, Cluster

SLOTS = 64
STEPS = 10  # a second
SECONDS = 33  # one full listing among them
HEARTBEAT = 2  # seconds between two changes of a shard's entry


def change(cluster: Cluster, second: int) -> None:
    """What workers store in a second."""
    entries = cluster.database.entries
    for n, place in enumerate([place for place in entries if place[0] == "shard"]):
        if n % HEARTBEAT == second % HEARTBEAT:
            revision, text = entries[place]
            state = decode("shard", place[1], text)
            assert isinstance(state, ShardState)
            entries[place] = revision + 1, encode(replace(state, through=cluster.clock.now))


def measured(shards: int) -> float:
    """CPU seconds of the coordinator in a second of the run."""
    cluster = Cluster(slots=SLOTS, shards=shards)
    cluster.start()
    assert len(cluster.running.pipeline.shards) == shards, TABLE
    taken = []
    for second in range(SECONDS):
        change(cluster, second)
        began = time.process_time()
        for _ in range(STEPS):
            cluster.clock.now += 1 / STEPS
            cluster.running.step()
            cluster.running.news()
        taken.append(time.process_time() - began)
    return sum(taken[HEARTBEAT:]) / len(taken[HEARTBEAT:])


def main() -> None:
    print(f"{'shards':>8} {'CPU a second':>14}")
    for shards in map(int, sys.argv[1:] or ("100", "1000", "10000")):
        print(f"{shards:8,} {measured(shards):14.3f}", flush=True)


if __name__ == "__main__":
    main()
