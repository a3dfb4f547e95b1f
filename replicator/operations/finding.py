"""The findings of ``check``, and the exit code that follows from them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

_UNREACHABLE = (
    "check the {place}, and that the server is up and lets this machine connect; a run would retry until then"
)
_NO_CLUSTER = "check the address, and that the cluster is up and lets this machine connect; a run would end"

Verdict = Literal["ok", "note", "problem", "gap", "forbidden", "unreachable"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One verified fact or problem. ``subject``: what it is about, or the config path; ``do``: the remedy, if any."""

    subject: str
    verdict: Verdict
    text: str
    do: str = ""


def exit_code(findings: Sequence[Finding]) -> int:
    """The exit code that a run would have; 0 is ready.

    "forbidden" takes precedence, because then not everything could be verified. A gap comes before a problem: a run
    looks for gaps before it opens anything.
    """
    verdicts = {f.verdict for f in findings}
    return next((code for verdict, code in _CODES.items() if verdict in verdicts), 0)


def failed(subject: str, error: ReplicatorError) -> Finding:
    if isinstance(error, NotPermitted):
        return Finding(subject, "forbidden", error.problem, error.advice)
    if isinstance(error, GapFound):
        return Finding(subject, "gap", str(error), f"to repair the copy: {error.repair}")
    if isinstance(error, DamagedCheckpoint):
        return problem(subject, str(error), "gap")
    if isinstance(error, TransientError):
        found = problem(subject, str(error), "unreachable")
        if found.subject == "engine.address":
            return replace(found, do=_NO_CLUSTER)
        place = "region and the address" if ".amazonaws.com" in str(error) else "address"
        return replace(found, do=_UNREACHABLE.format(place=place))
    return problem(subject, str(error))


def problem(subject: str, sentence: str, verdict: Verdict = "problem") -> Finding:
    """A finding for ``sentence``; if that starts with a config path, the path is the subject."""
    place, _, text = sentence.partition(": ")
    if _PLACE.fullmatch(place):
        return Finding(place, verdict, text)
    return Finding(subject, verdict, sentence)
