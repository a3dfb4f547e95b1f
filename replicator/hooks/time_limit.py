"""Time limits for hooks and for shutdown. Both need SIGALRM, the one timer that can interrupt a Python process.

Hooks are limited by a signal handler because it runs inside the code that it interrupts: it can see on the stack
whether that is the hook, and an exception that it raises starts right there. Another thread could do neither.
"""

from __future__ import annotations

import _weakrefset
import atexit
import ctypes
import gc
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Set
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

CHECK_EVERY = 0.25  # seconds between two checks of the exit deadline
SOONEST = 0.25  # seconds between two looks at whether the time of all hooks is over
TICKS = 10  # per time limit; ticks are counted, so that a suspended machine does not look like a slow hook
RETRY_AFTER = 0.005  # seconds; for when a tick interrupts our own code inside the hook
_WEAKREF = {weakref.__file__, _weakrefset.__file__}  # files of weak reference callbacks
_OURS = str(Path(__file__).parents[1]) + os.sep


class HookTimeout(BaseException):
    """A hook exceeded its time limit. Not an ``Exception``, so that handlers in the hook do not catch it."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"a hook took longer than {seconds:g} s")
        self.seconds = seconds


class HookInterrupted(BaseException):
    """A hook was ended because the time of all is over: what it works on is done again, and not parked."""


class ExitDeadline:
    """Ends the process at a given time, whatever it is doing then."""

    def __init__(self) -> None:
        self._at = math.inf
        self._exit: Callable[[], None] = lambda: None

    @property
    def is_set(self) -> bool:
        return self._at < math.inf

    def set(self, seconds: float, exit: Callable[[], None]) -> None:
        """Call ``exit`` after so many seconds. Only in the main thread or a signal handler."""
        self._at, self._exit = time.monotonic() + seconds, exit
        atexit.register(
            signal.setitimer, signal.ITIMER_REAL, 0
        )  # else it could fire when the handler is gone already, and kill the process
        self.watch()

    def watch(self) -> None:
        signal.signal(signal.SIGALRM, self.check)
        signal.setitimer(signal.ITIMER_REAL, CHECK_EVERY, CHECK_EVERY)

    def check(self, *_: Any) -> None:
        if time.monotonic() >= self._at:
            self._exit()


EXIT_DEADLINE = ExitDeadline()


class HookLimit:
    """A context in which a hook that runs longer than ``seconds`` is interrupted by ``HookTimeout``. None: no limit.

    It costs nothing per call: each tick checks whether the stack still holds the same call as at earlier ticks. It
    cannot interrupt C code that neither returns to Python nor checks for signals, finalizers (an exception in one is
    swallowed, and its cleanup would be cut short), or hooks outside the main thread.

    ``is_over``: whether no hook may go on, because whatever runs them ends soon: ``HookInterrupted`` then. None: never.
    """

    calls: set[CodeType] = set()  # noqa: RUF012 - of the functions that call hooks; see ``hook``

    def __init__(self, seconds: float | None, is_over: Callable[[], bool] | None = None) -> None:
        self._seconds, self._is_over = seconds, is_over
        self._interval = 0.0 if seconds is None else seconds / TICKS
        if is_over is not None:
            self._interval = min(self._interval, SOONEST)
        self._call: FrameType | None = None
        self._ticks = 0
        self._before: Any = None
        self._timer = (0.0, 0.0)
        self._on = False

    def __enter__(self) -> None:
        if self._seconds is None or threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(signal.SIGALRM, self._tick)
        self._timer = signal.setitimer(signal.ITIMER_REAL, self._interval, self._interval)
        self._on = True

    def __exit__(self, *_: object) -> None:
        if not self._on:
            return
        self._on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        self._call = None
        if EXIT_DEADLINE.is_set:  # a signal asked for shutdown inside this context
            EXIT_DEADLINE.watch()
        elif self._timer[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._timer)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        if EXIT_DEADLINE.is_set or self._seconds is None:
            EXIT_DEADLINE.check()
            return
        call = _call_in(frame, self.calls)
        if call is not None and self._is_over is not None and self._is_over() and self._is_hook(frame, call):
            raise HookInterrupted
        if call is None or call is not self._call:
            self._call, self._ticks = call, 0
            return
        self._ticks += 1
        if self._ticks * self._interval < self._seconds * (1 - 1e-9):
            return
        if self._is_hook(frame, call):
            raise HookTimeout(self._seconds)
        signal.setitimer(signal.ITIMER_REAL, RETRY_AFTER, self._interval)

    def _is_hook(self, frame: FrameType | None, call: FrameType) -> bool:
        """Whether an exception raised here ends the hook, and only the hook.

        It would not in the code that calls the hook, in our own code called by it, or in callbacks of the garbage
        collector.
        """
        if frame is None or frame.f_code in self.calls:
            return False
        collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}
        while frame is not None and frame is not call:
            if frame.f_code.co_filename.startswith(_OURS) and frame.f_code not in self.calls:
                return False
            code = frame.f_code
            if code.co_name == "__del__" or code.co_filename in _WEAKREF or code in collecting:
                return False
            frame = frame.f_back
        return True


def _call_in(frame: FrameType | None, calls: Set[CodeType]) -> FrameType | None:
    """The innermost of these calls that is on this stack."""
    while frame is not None and frame.f_code not in calls:
        frame = frame.f_back
    return frame


def interrupt(thread: int, seconds: float) -> None:
    """Raise ``HookTimeout`` in another thread, at its next step in Python.

    If the hook has just returned, that is behind it: the thread must be prepared for it anywhere.
    """

    class Overdue(HookTimeout):
        def __init__(self) -> None:
            super().__init__(seconds)

    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Overdue))


class HookWatch:
    """Notices hooks that run longer than ``seconds`` on another thread. It cannot interrupt them."""

    def __init__(self, seconds: float | None, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._call: FrameType | None = None
        self._since = 0.0

    def is_overdue(self, thread: int | None) -> bool:
        """Whether the thread is in such a call. True once for each call."""
        frame = sys._current_frames().get(thread) if thread is not None and self._seconds is not None else None
        call = _call_in(frame, HookLimit.calls)
        if call is None or call is not self._call:
            self._call, self._since = call, self._now()
            return False
        if self._seconds is None or self._now() - self._since < self._seconds:
            return False
        self._since = math.inf
        return True
