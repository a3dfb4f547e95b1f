"""The one timer of a process that can interrupt it: it bounds how long a hook may take, and how long a stop may.

A hook is watched by a signal, because only a signal's handler runs inside what it interrupts: it sees on the stack
whether that is the hook, and an exception that it raises begins right there. Another thread could do neither.
"""

from __future__ import annotations

import _weakrefset
import atexit
import gc
import math
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

LOOK = 0.25  # seconds between two looks at the time while a process is to end
TICKS = 10  # in the time that a hook has; counted, so that a machine that slept does not count as a slow hook
SOON = 0.005  # seconds until the next try, where a tick met our own code inside the hook
_WEAK = {weakref.__file__, _weakrefset.__file__}  # their callbacks
_OURS = str(Path(__file__).parents[1]) + os.sep


class HookTimeout(BaseException):
    """A hook took longer than it may. No ``Exception``, so that a hook's own handlers let it pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a hook took longer than {seconds:g} s")
        self.seconds = seconds


class Leaving:
    """Ends the process at a time, whatever it does then."""

    def __init__(self) -> None:
        self._at = math.inf
        self._leave: Callable[[], None] = lambda: None

    @property
    def decided(self) -> bool:
        return self._at < math.inf

    def after(self, seconds: float, leave: Callable[[], None]) -> None:
        """``leave`` is called then. For the main thread, and for signals' handlers."""
        self._at, self._leave = time.monotonic() + seconds, leave
        atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)  # its handler goes next, and it would end the process
        self.watch()

    def watch(self) -> None:
        signal.signal(signal.SIGALRM, self.look)
        signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)

    def look(self, *_: Any) -> None:
        if time.monotonic() >= self._at:
            self._leave()


LEAVING = Leaving()


class HookLimit:
    """While it lasts, a hook that takes longer than ``seconds`` is interrupted by ``HookTimeout``. None: no limit.

    It costs nothing a call: each tick looks whether the stack still holds the call that it held ticks ago. What it
    cannot interrupt: code in C that never returns to Python nor asks for signals, finalizers (an exception in one is
    swallowed, and its cleaning up would be cut short), and hooks outside the main thread.
    """

    calls: set[CodeType] = set()  # noqa: RUF012 - of the functions that call hooks, see ``transform``

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._call: FrameType | None = None
        self._ticks = 0
        self._before: Any = None
        self._timer = (0.0, 0.0)
        self._on = False

    def __enter__(self) -> None:
        if self._seconds is None or threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(signal.SIGALRM, self._tick)
        every = self._seconds / TICKS
        self._timer = signal.setitimer(signal.ITIMER_REAL, every, every)
        self._on = True

    def __exit__(self, *_: object) -> None:
        if not self._on:
            return
        self._on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        self._call = None
        if LEAVING.decided:  # a signal came meanwhile
            LEAVING.watch()
        elif self._timer[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        if LEAVING.decided or self._seconds is None:
            LEAVING.look()
            return
        call = self._call_on(frame)
        if call is None or call is not self._call:
            self._call, self._ticks = call, 0
            return
        self._ticks += 1
        if self._ticks < TICKS:
            return
        if self._is_hook(frame, call):
            raise HookTimeout(self._seconds)
        signal.setitimer(signal.ITIMER_REAL, SOON, self._seconds / TICKS)

    def _call_on(self, frame: FrameType | None) -> FrameType | None:
        while frame is not None and frame.f_code not in self.calls:
            frame = frame.f_back
        return frame

    def _is_hook(self, frame: FrameType | None, call: FrameType) -> bool:
        """Whether an exception raised here ends the hook: not in what called it, in what it called of ours, or where
        the garbage collector runs something in its midst.
        """
        if frame is None or frame.f_code in self.calls:
            return False
        collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}
        while frame is not None and frame is not call:
            if frame.f_code.co_filename.startswith(_OURS) and frame.f_code not in self.calls:
                return False
            code = frame.f_code
            if code.co_name == "__del__" or code.co_filename in _WEAK or code in collecting:
                return False
            frame = frame.f_back
        return True
