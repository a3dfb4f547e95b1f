"""Errors, sorted by what to do about them; the command line turns each into its exit code."""

from __future__ import annotations

from collections.abc import Sequence


class ReplicatorError(Exception):
    """Anything a person should read. The message says what is wrong, where, and what to do."""

    exit_code = 1


class ConfigError(ReplicatorError):
    """Somebody has to change a config, a hook, a table or a command. ``problems`` holds one sentence each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class SweepRefused(ConfigError):
    """Documents that a sweep must remove, and that the target refuses to delete.

    Those of other tables may hold them back, so a run sweeps these first, and ends with it if that does not help.
    """


class GapFound(ReplicatorError):
    """Records that can no longer be read. ``shard`` is None where the whole stream is concerned.

    ``gone``: the endpoint does not know the stream or the shard any more, perhaps because the table was deleted.
    """

    exit_code = 3

    def __init__(
        self, reason: str, shard: str | None = None, sequence: str | None = None, *, gone: bool = False
    ) -> None:
        super().__init__(reason if shard is None else f"{reason} (shard {shard}, last good position {sequence})")
        self.reason = reason
        self.gone = gone
        self.shard = shard
        self.sequence = sequence


class NotPermitted(ReplicatorError):
    """The credentials may not do ``action`` on ``resource``. ``advice``: what to do about ``problem``."""

    exit_code = 4

    def __init__(self, problem: str, action: str = "", resource: str = "", advice: str = "") -> None:
        super().__init__(f"{problem.rstrip('.')}. {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice
        self.action = action
        self.resource = resource


class NotAuthenticated(NotPermitted):
    """Credentials are missing, wrong or expired: no permission would help."""


class Fenced(ReplicatorError):
    """Another run owns the pipeline now: this one must stop without another write."""

    exit_code = 5


class ItemsParked(ReplicatorError):
    """A run that was to catch up did, but left items out that it had to park: the copy does not equal the source."""

    exit_code = 6


class OutOfOrder(ReplicatorError):
    """A shard handed out records in an impossible order; going on could apply an older image last."""


class TransientError(ReplicatorError):
    """Something that time usually mends. The same call may follow; nothing was half done that a repeat would harm.

    A run waits; commands that do not wait end with it: a server cannot be reached, or does not do its work now.
    """

    exit_code = 8


class PutBack(ReplicatorError):
    """The checkpoints are as they were earlier, under a run that is still their owner: what it knows is wrong.

    Another run reads on from what is stored, so a supervisor may start one at once.
    """

    exit_code = 8


class Unfinished(TransientError):
    """Sending a batch took so long that the run has to ask again whether the pipeline is its own before the rest."""
