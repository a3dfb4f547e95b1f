"""A DynamoDB emulator on loopback for the demo: MiniStack, free and on PyPI, in its own environment and process.

It has tables, streams with one shard, and 30-digit sequence numbers, but no shard splits and no trimming.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from replicator.errors import ConfigError
from replicator.testing.servers.programs import await_ready, free_port

ENVIRONMENT = ".venv-ministack"  # a separate one, because MiniStack pins an old botocore
_STARTUP = 30.0  # seconds; enough on a busy machine
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo", "AWS_REGION": "us-east-1"}


def program() -> Path:
    """The ``ministack`` program; ConfigError says how to install it."""
    beside = Path(sys.prefix).parent / ENVIRONMENT / "bin" / "ministack"
    here = Path.cwd() / ENVIRONMENT / "bin" / "ministack"
    on_path = shutil.which("ministack")
    for path in (beside, here, *([Path(on_path)] if on_path else [])):
        if path.exists():
            return path
    raise ConfigError(
        f"the DynamoDB emulator MiniStack is not installed. Run: make install, "
        f"or: python3 -m venv {ENVIRONMENT} && {ENVIRONMENT}/bin/pip install ministack"
    )


class MiniStack:
    """A running emulator: ``with MiniStack() as server: boto3.client("dynamodb", **server.options)``."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The credentials it accepts, as environment variables."""
        return dict(_CREDENTIALS)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of ``boto3.client``."""
        return {
            "endpoint_url": self.url,
            "region_name": _CREDENTIALS["AWS_REGION"],
            "aws_access_key_id": _CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": _CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        }

    def __enter__(self) -> MiniStack:
        executable = program()
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="replicator-ministack-"))
        settings = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "SERVICES": "dynamodb,dynamodbstreams",
            "LOG_LEVEL": "ERROR",
        }
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(executable)],
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), **settings},
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C must reach the demo only, which stops its servers in order
            )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _await_ready(self) -> None:
        assert self._process is not None
        assert self._folder is not None
        log = self._folder / "log"
        await_ready("MiniStack", self._process, self._is_healthy, log.read_text, within=_STARTUP)

    def _is_healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/_ministack/health", timeout=1):
            return True
        return False
