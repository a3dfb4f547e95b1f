"""A pipeline as its user has it: a config in a folder, and commands in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import yaml

from tests.cli.command_line import words
from tests.forked import Forked, can_fork
from tests.security.canary import SECRET, look_at_command

T = TypeVar("T")
PATIENCE = 90.0  # seconds for anything on a busy machine
_AWS = {
    "AWS_ACCESS_KEY_ID": "local",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "AWS_REGION": "eu-west-1",
}


def eventually(found: Callable[[], T], what: str, within: float = PATIENCE) -> T:
    """What ``found`` returns once it is true; AssertionError when it is not within the deadline."""
    deadline = time.monotonic() + within
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {within:.0f} s"
        time.sleep(0.05)
    return value


class Source(Protocol):
    """The table that is copied."""

    table: str
    endpoint: str

    def items(self) -> dict[str, dict[str, Any]]: ...


@dataclass
class Ended:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Run:
    """A command in a process of its own, and the events it wrote so far."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log, self._errors, self._arguments = log, log.with_suffix(".err"), arguments
        with log.open("wb") as out, self._errors.open("wb") as err:
            self.process = (Forked if can_fork(environment) else subprocess.Popen[str])(
                [sys.executable, "-m", "replicator", *arguments], env=environment, stdout=out, stderr=err
            )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()
        look_at_command(self._log.read_text() + self._errors.read_text(), self._arguments)

    def events(self, name: str) -> list[dict[str, Any]]:
        complete = self._log.read_text().rpartition("\n")[0].splitlines()
        return [e for e in map(json.loads, complete) if e["event"] == name]

    @property
    def size(self) -> int:
        """Bytes that it has written to its log."""
        return self._log.stat().st_size

    def until(self, name: str, within: float = PATIENCE, **fields: object) -> dict[str, Any]:
        """The first event of that name with these fields."""
        wanted = fields.items()
        found = self.eventually(lambda: [e for e in self.events(name) if wanted <= e.items()], f"event {name}", within)
        return found[0]

    def eventually(self, found: Callable[[], T], what: str, within: float = PATIENCE) -> T:
        """The same as ``eventually``, but not for longer than the command runs."""

        def still() -> T:
            running = self.process.poll() is None
            value = found()
            assert value or running, f"{what}: ended before, {self.ended()}"
            return value

        return eventually(still, what, within)

    def wait(self, within: float = PATIENCE) -> Ended:
        self.process.wait(within)
        return self.ended()

    def ended(self) -> Ended:
        code = self.process.poll()
        return Ended(-1000 if code is None else code, self._log.read_text(), words(self._errors.read_text()))

    def stop(self, within: float = 10.0) -> Ended:
        """As a service manager asks for it."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(within)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Pipeline(ABC):
    """A pipeline's config in a folder, and the commands on it."""

    folder: Path
    source: Source
    clock: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Environment of a moved clock."""
    name: str = field(default="copy", kw_only=True)
    """Of the pipeline, and of its table where it has one."""
    runs: int = field(default=0, kw_only=True)

    @abstractmethod
    def target(self) -> Mapping[str, Any]:
        """The config's target, without its tables."""

    @abstractmethod
    def documents(self) -> dict[str, dict[str, Any]]:
        """The target's documents as a plain client shows them, by their item's ``pk``."""

    def configure(self, hook: str | None = None, tables: Mapping[str, Any] | None = None, **more: Any) -> Self:
        """Write the config; ``hook`` is the source of its function ``hook``."""
        target = {**self.target(), **({"tables": tables} if tables else {"table": self.name})}
        config: dict[str, Any] = {
            "pipeline": self.name,
            "source": {"table": self.source.table, "region": "eu-west-1", "endpoint_url": self.source.endpoint},
            "target": target,
            **more,
        }
        if hook is not None:
            (self.folder / "hooks.py").write_text(hook)
            config["transform"] = "hooks.py:hook"
        self.path.write_text(yaml.safe_dump(config))
        return self

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    def start(self, command: str = "run", *options: str) -> Run:
        """``replicator run`` (or another command), in the background."""
        self.runs += 1
        environment = {**os.environ, **_AWS, **self.clock}
        return Run(
            [*command.split(), str(self.path), *options], environment, self.folder / f"{self.name}-{self.runs}.log"
        )

    def command(self, command: str, *options: str) -> Ended:
        with self.start(command, *options) as run:
            ended = run.wait()
        if ended.code == -signal.SIGSEGV and self.clock:  # libfaketime's doing: never seen without it
            with self.start(command, *options) as run:
                ended = run.wait()
        return ended

    def caught_up(self, command: str = "run", *options: str) -> Ended:
        """The same until it has caught up, which has to go well; its code says whether it parked items."""
        now = ("--now",) if command == "resync" else ()
        ended = self.command(command, *now, "--until", "caught-up", *options)
        assert ended.code == (6 if "item(s) that are parked" in ended.err else 0), ended
        return ended

    def status(self) -> dict[str, Any]:
        (found,) = self.command("status", "--json").lines
        return found

    def counts(self) -> dict[str, int]:
        """The counts of ``status``, which always add up."""
        counts: dict[str, int] = self.status()["counts"]
        assert counts["read"] == counts["applied"] + counts["superseded"] + counts["filtered"] + counts["parked"], (
            counts
        )
        return counts

    def equal(self) -> bool:
        """Whether the target is what the source is now."""
        return self.documents() == self.source.items()

    def assert_equal(self) -> None:
        assert self.documents() == self.source.items()
