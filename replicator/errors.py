"""Errors, classified by what to do about them. Each class has the exit code of the command line."""

from __future__ import annotations

from collections.abc import Sequence


class ReplicatorError(Exception):
    """Base of all errors meant for users. The message says what is wrong, where, and what to do."""

    exit_code = 1


def install(extra: str) -> str:
    """How to install an extra, for messages; as README.md says."""
    return f"pip install '.[{extra}]' in a clone of replicator"


class ConfigError(ReplicatorError):
    """A config, hook, table or command must be changed. ``problems``: one sentence per problem."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class SweepRefused(ConfigError):
    """The target refuses to delete documents that a sweep must remove.

    Rows of other tables may block the deletion, so a run sweeps those first. It ends with this error if that does not
    help.
    """


class GapFound(ReplicatorError):
    """Records can no longer be read. ``shard`` is None if the whole stream is affected.

    ``gone``: the endpoint no longer knows the stream or the shard, perhaps because the table was deleted. ``repair``:
    the command that repairs the copy. ``caution``: what else that command would do to this target; empty if nothing.
    ``of_target``: the loss is in the target, so only a rescan repairs it. ``by_hand``: a user must request the repair,
    because another run writes there, too, and both would repair in turn, or because it is unknown whose documents
    these are. ``since``: no record older than this was lost; for shards that were never listed, whose positions do not
    show it. ``unwritable``: found as a batch was written, so nothing can be stored before a rescan.
    """

    exit_code = 3
    caution = ""
    unwritable = False

    def __init__(
        self,
        reason: str,
        shard: str | None = None,
        sequence: str | None = None,
        *,
        gone: bool = False,
        repair: str = "replicator resync CONFIG",
        of_target: bool = False,
        by_hand: bool = False,
        since: float | None = None,
    ) -> None:
        super().__init__(reason if shard is None else f"{reason} (shard {shard}, last good position {sequence})")
        self.reason = reason
        self.gone = gone
        self.of_target = of_target
        self.by_hand = by_hand
        self.since = since
        self.repair = repair
        self.shard = shard
        self.sequence = sequence


class NotPermitted(ReplicatorError):
    """The credentials do not permit ``action`` on ``resource``. ``advice``: what to do about ``problem``."""

    exit_code = 4

    def __init__(self, problem: str, action: str = "", resource: str = "", advice: str = "") -> None:
        super().__init__(f"{problem.rstrip('.')}. {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice
        self.action = action
        self.resource = resource


class NotAuthenticated(NotPermitted):
    """Credentials are missing, wrong or expired."""


class Fenced(ReplicatorError):
    """Another run owns the pipeline now: this one must stop without writing anything else."""

    exit_code = 5


class ItemsParked(ReplicatorError):
    """The run caught up, but parked some items, so the target does not equal the source."""

    exit_code = 6


class StoppedEarly(ReplicatorError):
    """A run with ``--until`` was stopped before it got there: the caller must not rely on the copy."""

    exit_code = 7


class OutOfOrder(ReplicatorError):
    """A shard returned records in an impossible order; continuing could apply an older image last."""


class TransientError(ReplicatorError):
    """Transient failure; safe to retry: a server is unreachable or temporarily unable to serve the request.

    A run retries; other commands end with it.
    """

    exit_code = 8


class Postponed(TransientError):
    """A full walk of the target must wait, for example while a slot moves. Writes continue; the walk is retried."""


class CheckpointsReverted(ReplicatorError):
    """The checkpoints were reverted to an earlier state while this run owned them, so its own state is wrong.

    A new run resumes from what is stored, so a supervisor may restart at once.
    """

    exit_code = 8


class Unfinished(TransientError):
    """A batch took so long that the run must confirm its ownership of the pipeline before it sends the rest."""
