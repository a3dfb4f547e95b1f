"""An event that a signal's handler may set, whatever the handler interrupts."""

from __future__ import annotations

import contextlib
import os
import select
import threading


class Stop(threading.Event):
    """A flag, and a pipe that wakes who waits for it.

    The handler runs on the thread that it interrupts. An ordinary event takes a lock in ``set``, and if that thread is
    just holding it, in ``wait`` or ``set``, both wait for ever. This one takes none. It is never cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._asked = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)

    def set(self) -> None:
        self._asked = True
        with contextlib.suppress(BlockingIOError):  # a pipe that is full wakes, too
            os.write(self._writing, b"\0")

    def is_set(self) -> bool:
        return self._asked

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is set, at once or within ``timeout`` seconds. What is in the pipe stays there."""
        if not self._asked:
            poll = select.poll()
            poll.register(self._reading, select.POLLIN)
            poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self._asked
