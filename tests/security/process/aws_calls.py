"""Records which AWS calls replicator makes, in the test process and in each Python process that a test starts.

Production code knows nothing of it. An import hook wraps the edges as their modules come in: the one wire (calls one
by one, and where many calls go), the role that is assumed, requests signed for OpenSearch. A note is (place, kind,
action): the part of the config whose credentials were used, what the call was about, and what IAM calls it. Each is
appended to a file of its process at once, because processes are killed.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "REPLICATOR_TESTS_AWS_CALLS"  # where the notes are kept; nothing is noted without it
Note = tuple[str, str, str]
"""(place, kind, action)"""

_STREAM = frozenset({"DescribeStream", "GetShardIterator", "GetRecords"})
_TRANSACTED = {"Put": "PutItem", "Delete": "DeleteItem", "Update": "UpdateItem", "ConditionCheck": "ConditionCheckItem"}
_OBJECTS = {
    "GetObject": "GetObject",
    "CreateMultipartUpload": "PutObject",
    "AbortMultipartUpload": "AbortMultipartUpload",
}
_noted: set[Note] = set()


def note(place: str, kind: str, action: str) -> None:
    found = (place, kind, action)
    folder = os.environ.get(FOLDER)
    if found in _noted or folder is None:
        return
    _noted.add(found)
    with (Path(folder) / f"{os.getpid()}.calls").open("a") as file:
        file.write(json.dumps([*found, os.environ.get("PYTEST_CURRENT_TEST", "")]) + "\n")


def noted(folder: Path) -> dict[Note, str]:
    """The calls of all processes, each with a test that made it."""
    lines = [line for path in sorted(folder.glob("*.calls")) for line in path.read_text().splitlines()]
    return {(place, kind, action): test for place, kind, action, test in map(json.loads, lines)}


def actions(operation: str, request: Mapping[str, Any]) -> Iterator[str]:
    """The IAM actions of an operation: those inside a transaction, and a separate one for tags."""
    if operation == "TransactWriteItems":
        yield from (f"dynamodb:{_TRANSACTED[kind]}" for action in request["TransactItems"] for kind in action)
        return
    if operation in _OBJECTS:
        yield f"s3:{_OBJECTS[operation]}"
        return
    yield f"dynamodb:{operation}"
    if operation == "CreateTable" and request.get("Tags"):
        yield "dynamodb:TagResource"


def kind_of(operation: str) -> str | None:
    """What an operation is about, if it is not a table."""
    if operation == "DescribeExport":
        return "export"
    return "stream" if operation in _STREAM else "objects" if operation in _OBJECTS else None


def _is_ours(depth: int) -> bool:
    """Whether production code makes the call; tests use the same classes as plain clients."""
    name = sys._getframe(depth + 1).f_globals["__name__"]
    return name.startswith(("replicator.", "connectors.")) and not name.startswith("replicator.testing")


def _client(aws: Any) -> None:
    connected, call, route, fetched = aws._connected, aws.Boto.call, aws.Boto.route, aws._fetch_role

    @functools.wraps(connected)
    def with_place(access: Any, place: str) -> Any:
        client = connected(access, place)
        client._noted_as = place, getattr(access, "epochs_table", "replicator-epochs")
        return client

    @functools.wraps(call)
    def with_note(self: Any, operation: str, request: Mapping[str, Any]) -> bytes:
        _asked(self, operation, request)
        answer: bytes = call(self, operation, request)
        return answer

    @functools.wraps(route)
    def with_note_of_many(self: Any, call: Any) -> Any:
        _asked(self, call.operation, call.request)
        return route(self, call)

    @functools.wraps(fetched)
    def with_role(fetcher: Any, role_arn: str, place: str) -> Any:
        note("role", "role", "sts:AssumeRole")
        return fetched(fetcher, role_arn, place)

    aws._connected, aws.Boto.call, aws.Boto.route, aws._fetch_role = with_place, with_note, with_note_of_many, with_role


def _asked(client: Any, operation: str, request: Mapping[str, Any]) -> None:
    place, epochs = getattr(client, "_noted_as", (None, None))
    if place is None or not _is_ours(2):
        return
    of_epochs = epochs and request.get("TableName") == epochs
    kind = kind_of(operation) or ("epochs" if of_epochs else "table")
    for action in actions(operation, request):
        note(place, kind, action)


def _signed(signing: Any) -> None:
    signer = signing.signer

    @functools.wraps(signer)
    def with_note(access: Any, service: str, place: str) -> Any:
        sign = signer(access, service, place)

        def noting(method: str, *rest: Any) -> Any:
            note("search", service, "aoss:APIAccessAll" if service == "aoss" else f"es:ESHttp{method.title()}")
            return sign(method, *rest)

        return noting

    signing.signer = with_note


def _functions(functions: Any) -> None:
    call = functions.Functions._call

    @functools.wraps(call)
    def with_note(self: Any, operation: str, resource: str, **request: str) -> Any:
        of = "version" if "Qualifier" in request else "function"
        note("source", "mappings" if operation == functions.LIST_MAPPINGS else of, f"lambda:{operation}")
        return call(self, operation, resource, **request)

    list_or_get = functions.Schedules._call

    @functools.wraps(list_or_get)
    def with_note_of_schedules(self: Any, client: Any, operation: str, **request: str) -> Any:
        note("source", "schedules", f"{client.meta.service_model.service_name}:{operation}")
        return list_or_get(self, client, operation, **request)

    functions.Functions._call, functions.Schedules._call = with_note, with_note_of_schedules


_EDGES: Mapping[str, Callable[[Any], None]] = {
    "replicator.aws.boto": _client,
    "replicator.aws.functions": _functions,
    "replicator.aws.request_signer": _signed,
}


class _Edges(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules that call AWS as Python does, and wraps their entry points once loaded."""

    def __init__(self) -> None:
        self._loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in _EDGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        self._loaders[module.__name__].exec_module(module)
        _EDGES[module.__name__](module)


def install() -> None:
    """Record calls from now on. Call it before those modules are imported."""
    late = [name for name in _EDGES if name in sys.modules]
    assert not late, f"imported before its calls could be noted: {late}"
    sys.meta_path.insert(0, _Edges())
