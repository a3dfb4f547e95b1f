"""What ``check`` found out: one finding a fact, and the exit code that all of them give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from replicator.errors import ConfigError, GapFound, NotPermitted, ReplicatorError, TransientError
from replicator.state import DamagedCheckpoint

_PLACE = re.compile(r"[a-z_]+(\.[a-z_]+)*")
_CODES = {
    "forbidden": NotPermitted.exit_code,
    "gap": GapFound.exit_code,
    "problem": ConfigError.exit_code,
    "unreachable": TransientError.exit_code,
}

Verdict = Literal["ok", "note", "problem", "gap", "forbidden", "unreachable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``do``: what a person should do about it, empty if nothing."""

    subject: str
    verdict: Verdict
    text: str
    do: str = ""


def exit_code(findings: Sequence[Finding]) -> int:
    """The code with which a run would end; 0: ready. 4 comes first: then not everything could be looked at.

    A gap comes before what must be changed, as a run looks for one before it opens anything.
    """
    verdicts = {f.verdict for f in findings}
    return next((code for verdict, code in _CODES.items() if verdict in verdicts), 0)


def failed(subject: str, error: ReplicatorError) -> Finding:
    if isinstance(error, NotPermitted):
        return Finding(subject, "forbidden", error.problem, error.advice)
    if isinstance(error, GapFound):
        return Finding(subject, "gap", str(error), "to make the copy whole again: replicator resync CONFIG")
    if isinstance(error, DamagedCheckpoint):
        return problem(subject, str(error), "gap")
    return problem(subject, str(error), "unreachable" if isinstance(error, TransientError) else "problem")


def problem(subject: str, sentence: str, verdict: Verdict = "problem") -> Finding:
    place, _, text = sentence.partition(": ")
    if _PLACE.fullmatch(place):  # the sentence says more precisely where
        return Finding(place, verdict, text)
    return Finding(subject, verdict, sentence)
