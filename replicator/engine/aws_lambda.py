"""What the function on AWS Lambda does: ``handler``. A package's own entry point imports it, with all it depends on.

A container loads the config and the hook once. It keeps its connections between invocations that follow each other
quickly. One that comes late opens its own, because those of a container that was frozen may be cut without a word, and
closes them: one invocation in a while leaves none open.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from replicator import log as logs
from replicator.config import settings
from replicator.config.engine import Lambda
from replicator.engine.connections import connected
from replicator.engine.context import Environment
from replicator.engine.function import Deadline, Function, UnfinishedListing
from replicator.engine.retry import Stopped
from replicator.errors import ConfigError, ReplicatorError, TransientError
from replicator.hooks import redaction
from replicator.hooks.loading import load
from replicator.hooks.time_limit import HookLimit
from replicator.pipeline.progress import Progress
from replicator.state import Owner

log = logging.getLogger("replicator")

CONFIG = "REPLICATOR_CONFIG"  # the environment variable with the path of the config, relative to the package
DEFAULT = "replicator.yaml"
TARGET = "REPLICATOR_TARGET"  # the environment variable with the name of the target, if the config has several
MARGIN = 3.0  # seconds before Lambda's timeout at which an invocation ends by itself
GRACE = 1.5  # seconds of the margin for which a hook that is running may go on
FUNCTION = "AWS_LAMBDA_FUNCTION_NAME"  # which Lambda sets
QUIET = 60.0  # seconds without an invocation after which the next one has connections of its own


class Container:
    """What lives from the first invocation of a container to its last. ``now``: Lambda may stop the monotonic clock."""

    def __init__(self, path: str, now: Callable[[], float] = time.time, target: str | None = None) -> None:
        self._config = settings.load(path, target=target)
        if not isinstance(self._config.engine, Lambda):
            raise ConfigError(f"{path}: engine.type must be lambda: the config of another engine was packaged")
        self.target = self._config.target_name
        _check_function(self.target, self._config.engine.function, os.environ.get(FUNCTION))
        self._deadline, self._now, self._invoked = Deadline(), now, float("-inf")
        config = self._config
        self._hook = load(config.transform, config.base) if config.transform is not None else None
        limit = HookLimit(config.hook_timeout, lambda: self._deadline.is_past(GRACE))
        self._environment = Environment(self._deadline, _ignored, now=now, hook_limit=limit)
        self._owner = Owner(uuid.uuid4().hex, socket.gethostname(), os.getpid(), now())
        self._resources = ExitStack()
        self._function: Function | None = None
        self._unfinished = UnfinishedListing()

    def invoke(self, event: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """The function's response. ``seconds``: until Lambda ends the invocation."""
        self._deadline.move(seconds - MARGIN)
        quiet = self._now() - self._invoked > QUIET
        if quiet:
            self.close()
        try:
            response = (self._function or self._connect()).invoke(event)
        except Stopped as e:
            self.close()
            raise TransientError(str(e) or _NO_ANSWER) from e
        except BaseException:
            self.close()  # whatever is wrong with it: the next invocation begins anew
            raise
        if quiet:
            self.close()
        self._invoked = self._now()
        return response

    def close(self) -> None:
        function, self._function = self._function, None
        try:
            if function is not None:
                function.close()
        finally:
            self._resources.close()

    @property
    def is_connected(self) -> bool:
        return self._function is not None

    def _connect(self) -> Function:
        context = self._resources.enter_context(connected(self._config, self._hook, self._environment))
        self._function = Function(context, self._owner, self._environment, self._unfinished)
        return self._function


_NO_ANSWER = (
    "the invocation's time was over before the source and the target had answered; the log has what it waited for. Can "
    "the function reach both (subnets, security groups, endpoints)?"
)

_container: Container | None = None
_packaged: str | None = None  # the target that the package is for, if its config has several


def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """What AWS Lambda calls. Unexpected exceptions may quote items, so only their redacted traceback is logged."""
    try:
        return _started().invoke(event, context.get_remaining_time_in_millis() / 1000)
    except ReplicatorError as e:
        log.error("not stored", extra={"reason": str(e), "exit_code": e.exit_code})
        e.args = (logs.with_target(str(e)),)
        raise
    except Exception as e:
        log.error("bug", extra={"traceback": redaction.trace(e).stack})
    raise RuntimeError("the function failed unexpectedly; see its traceback in the log")


def packaged_for(target: str) -> Callable[[Mapping[str, Any], Any], dict[str, Any]]:
    """The handler of a package that is for one of its config's targets."""
    global _packaged
    _packaged = target
    return handler


def _started() -> Container:
    global _container
    if _container is None:
        logs.start(logs.JsonLines())
        logs.silence_libraries()
        root = os.environ.get("LAMBDA_TASK_ROOT", "")
        path = os.path.join(root, os.environ.get(CONFIG, DEFAULT))
        _container = _container_for(path, os.environ.get(TARGET) or None)
    logs.TARGET.set(_container.target)
    return _container


def _container_for(path: str, named: str | None) -> Container:
    """``named``: the target in the variable of the environment. ConfigError if the package is another one's."""
    if _packaged is not None and named not in (None, _packaged):
        raise ConfigError(
            f"{TARGET} is {named}, but this is the package of the target {_packaged}: deploy the one that this command "
            f"builds: replicator lambda package CONFIG --target {named}"
        )
    try:
        return Container(path, target=named or _packaged)
    except ConfigError as e:
        raise ConfigError(*(_of_the_variable(problem) for problem in e.problems)) from e


def _of_the_variable(problem: str) -> str:
    """A function has no option ``--target``."""
    if problem.startswith("--target: "):
        return problem.replace("--target", TARGET)
    return problem.replace("choose one, --target NAME, of", f"set {TARGET} to one of")


def _check_function(target: str | None, expected: str | None, name: str | None) -> None:
    """ConfigError if one target's package is in the function of another, which would store nothing for its own."""
    if target is not None and name and expected not in (None, name):
        raise ConfigError(
            f"this is the package of the target {target}, whose function is {expected} (engine.function), but it was "
            f"deployed as {name}: deploy there what replicator lambda package builds with its own --target"
        )


def _ignored(_: Progress) -> None:
    """What the function stores is read by ``replicator status``."""
