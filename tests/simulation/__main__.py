"""``python -m tests.simulation --seeds N``: seeds on all cores; ``--seed N``: one, and its failure shrunk."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.simulate import failing, prepare

PIECE = 100
SHOWN = 10_000  # seeds after which a word is said


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    arguments.add_argument("--seeds", type=int, default=1000, help="how many seeds")
    arguments.add_argument("--first", type=int, default=0, help="the first of them")
    arguments.add_argument("--seed", type=int, help="this one only")
    asked = arguments.parse_args()
    seeds = range(asked.first, asked.first + asked.seeds) if asked.seed is None else range(asked.seed, asked.seed + 1)
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(initializer=prepare) as pool:
        pieces = [seeds[at : at + PIECE] for at in range(0, len(seeds), PIECE)]
        for piece, found in zip(pieces, pool.map(failing, pieces), strict=True):
            failed += len(found)
            if piece.stop % SHOWN == 0:
                print(f"up to {piece.stop:,}: {failed} failed, {time.monotonic() - began:.0f} s", flush=True)
            for failure in found:
                print(failure, flush=True)
    print(f"{len(seeds):,} seeds, {failed} failed, {len(seeds) / (time.monotonic() - began):.0f} a second")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
