"""The stop event is safe to set from a signal handler at any point."""

from __future__ import annotations

import subprocess
import sys

from replicator.engine.stop_event import Stop

_AT_EACH_LINE = """
import signal, sys
from replicator.engine.stop_event import Stop

def interrupted(act, at):
    left = [at]
    def trace(frame, event, arg):
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGTERM)
        return trace
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return left[0] <= 0

for name, arguments in {"wait": [0.01], "set": [], "is_set": []}.items():
    at, lines = 1, 0
    while True:
        stop = Stop()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        if not interrupted(lambda: getattr(stop, name)(*arguments), at):
            break
        assert stop.is_set(), (name, at)
        at, lines = at + 1, lines + 1
    assert lines > 0, name
print("never stuck")
"""

_WAITING = """
import signal
from replicator.engine.stop_event import Stop
stop = Stop()
signal.signal(signal.SIGALRM, lambda *_: stop.set())
signal.setitimer(signal.ITIMER_REAL, 0.05)
print(stop.wait(3600), stop.wait(), stop.wait(3600))
"""


def output(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_signal_at_any_line_of_the_event_sets_it_without_deadlock() -> None:
    assert output(_AT_EACH_LINE) == "never stuck"


def test_a_signal_ends_a_wait_at_once() -> None:
    assert output(_WAITING) == "True True True"


def test_a_wait_ends_at_its_timeout() -> None:
    stop = Stop()
    assert not stop.wait(0.001)
    assert not stop.wait(-1.0)
    for _ in range(100_000):  # more than a pipe holds
        stop.set()
    assert stop.wait(0.0)
