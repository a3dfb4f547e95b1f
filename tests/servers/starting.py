"""Starts a server for tests, or says loudly that it is missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NoReturn, TypeVar

import pytest

Server = TypeVar("Server")


def not_tested(reason: str) -> NoReturn:
    """In CI a missing server is a failure: a skipped test proves nothing."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(f"NOT TESTED: {reason}")


def started(
    name: str, make: Callable[[], AbstractContextManager[Server]], missing: type[Exception]
) -> Iterator[Server]:
    """A running server, for a fixture. ``missing``: what is raised where its programs are not installed."""
    server = make()
    try:
        running = server.__enter__()
    except missing as e:
        not_tested(f"{name} is missing: {e}")
    try:
        yield running
    finally:
        server.__exit__(None, None, None)
