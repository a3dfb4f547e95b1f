"""``replicator`` as it is, but for a signal that it sends itself at a named step: SIGKILL, or SIGSTOP.

    python -m tests.end_to_end.kills TARGET STORE STEP COUNT SIGNAL MARKER -- run CONFIG ...

When the step is passed for the COUNT-th time, MARKER is written and the process is gone, or stopped. Pages and batches
are small here, so that a small table has many of them, and requests are believed to linger for a moment only, so that
a purge comes soon; a batch is sent for a few seconds without asking, as for a minute elsewhere.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from replicator.aws import http_client
from replicator.aws.client import Call
from replicator.batch import Batch
from replicator.cli import main
from replicator.engine.delivery import CONFIRMED
from replicator.pipeline import batching
from replicator.target import in_doubt
from tests.end_to_end.kill_steps import SENDS, Passage, Scene, Step, steps

PAGE = 20  # records in a page, and changes from which on a batch is full
SCANNED = 10  # items in a page
WINDOW = 0.2  # seconds
TRUSTED = CONFIRMED + 1.0  # seconds


def wrapped(function: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replace ``module:Class.method`` by what ``wrapper`` makes of it."""
    module, _, path = function.partition(":")
    owner, _, name = path.rpartition(".")
    place = getattr(importlib.import_module(module), owner)
    setattr(place, name, wrapper(getattr(place, name)))


def small_pages() -> None:
    small = {"GetRecords": PAGE, "Scan": SCANNED}

    def limited(begin: Callable[..., None]) -> Callable[..., None]:
        def limit(lines: Any, name: object, call: Call) -> None:
            if call.operation in small:
                call = Call(call.operation, {**call.request, "Limit": small[call.operation]})
            begin(lines, name, call)

        return limit

    wrapped("replicator.aws.http_client:HttpClient.begin", limited)
    batching.BATCH_ROWS = PAGE
    in_doubt.WINDOW, in_doubt.TRUSTED, http_client.WAITED = WINDOW, TRUSTED, TRUSTED


def watched(target: str) -> Scene:
    """A scene that is kept true while the run goes on."""
    scene = Scene()

    def sends(send: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, encoded: Any) -> Any:
            scene.batch, scene.answered = encoded if isinstance(encoded, Batch) else encoded.batch, 0
            return send(self, encoded)

        return noted

    def delivers(deliver: Callable[..., Any]) -> Callable[..., Any]:
        def noted(self: Any, layout: Any, lines: Any, began: float) -> Any:
            found = deliver(self, layout, lines, began)
            scene.answered += len(lines)
            return found

        return noted

    wrapped(f"connectors.{target.partition('-')[0]}.target:{SENDS[target]}", sends)
    if target == "search":
        wrapped("connectors.search.bulk:Bulk._deliver", delivers)
    for phase in ("sweep", "purge"):
        wrapped(f"replicator.engine.cleanup:Cleanup._{phase}", partial(_during, scene, phase))
    return scene


def _during(scene: Scene, phase: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        scene.cleanup = phase
        try:
            return do(*arguments)
        finally:
            scene.cleanup = None

    return noted


def armed(step: Step, scene: Scene, act: Callable[[], None], count: int) -> None:
    """Let ``act`` happen when the step is passed for the ``count``-th time."""
    lock = threading.Lock()
    left = count

    def passed(arguments: tuple[Any, ...], found: Any) -> None:
        nonlocal left
        if not step.counts(Passage(scene, arguments, found)):
            return
        with lock:  # no other thread comes by while this one acts
            left -= 1
            if left == 0:
                act()

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if step.moment == "before":
                passed(arguments, None)
            found = function(*arguments)
            if step.moment == "after":
                passed(arguments, found)
            return found

        return call

    wrapped(step.function, around)


def prepared(target: str, store: str, name: str, count: str, number: str, marker: str) -> None:
    """Arm this process; ``number`` is the signal's name."""

    def act() -> None:
        Path(marker).write_text(name)
        os.kill(os.getpid(), signal.Signals[number])

    small_pages()
    armed(steps(target, store)[name], watched(target), act, int(count))


def forked(how: Sequence[str], arguments: Sequence[str], log: str, errors: str, environment: Mapping[str, str]) -> None:
    """The same in a process forked from one that has imported everything; without ``how`` as a user's run is."""
    for number, path in ((1, log), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(environment)
    if how:
        prepared(*how)
    main(arguments, prog_name="replicator")


IMPORTED = (
    "connectors.delta",
    "connectors.dynamodb",
    "connectors.elasticsearch",
    "connectors.opensearch",
    "connectors.postgres",
    "connectors.redis",
    "connectors.webhook",
    "replicator.cli.live_view",
    "replicator.engine.run",
    "replicator.checkpoints.dynamodb.store",
    "replicator.checkpoints.sqlite.store",
)

if __name__ == "__main__":
    at = sys.argv.index("--")
    prepared(*sys.argv[1:at])
    main(sys.argv[at + 1 :], prog_name="replicator")
