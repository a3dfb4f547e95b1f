"""A process beside the runs, which lives as long as the world lets it: from one of its requests to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.simulation.targets import Killed


class Process:
    """Does its ``work`` in a thread that only ever moves while ``advance`` waits for it, so that a seed decides all.

    ``work`` is given ``pause``, which it calls before each of its requests.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None]) -> None:
        self._work = work
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._killed = self._moves = False
        self._error: BaseException | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def advance(self) -> None:
        """Let it make its next request; not from inside it, where a run may be started meanwhile."""
        if self.ended or self._moves:
            return
        self._moves = True
        self._go.release()
        self._back.acquire()
        self._moves = False
        if self.ended:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """None of its requests is made any more, also not those with which it would clean up."""
        self._killed = True
        while not self.ended and not self._moves:
            self.advance()

    def pause(self) -> None:
        if not self._killed:
            self._back.release()
            self._go.acquire()
        if self._killed:
            raise Killed

    def _live(self) -> None:
        try:
            self._go.acquire()
            if not self._killed:
                self._work(self.pause)
        except Killed:
            pass
        except BaseException as e:  # the world's thread raises it
            self._error = e
        self.ended = True
        self._back.release()
