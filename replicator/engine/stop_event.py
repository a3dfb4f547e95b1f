"""A stop event that signal handlers can set safely."""

from __future__ import annotations

import contextlib
import os
import select
import threading


class Stop(threading.Event):
    """A flag, and a pipe that wakes up waiters.

    A signal handler runs on the thread that it interrupts. ``threading.Event.set`` takes a lock: if the interrupted
    thread holds that lock (inside ``wait`` or ``set``), it deadlocks. This event takes no lock. It cannot be cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._set = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def set(self) -> None:
        self._set = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes waiters too
            os.write(self._writing, b"\0")

    def is_set(self) -> bool:
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to ``timeout`` seconds; return whether the event is set. Leaves the pipe readable."""
        if not self._set:
            poll = select.poll()
            poll.register(self._reading, select.POLLIN)
            poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self._set
