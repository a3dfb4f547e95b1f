"""Real Elasticsearch and OpenSearch servers for the tests: one of each a session, started when first asked for."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from tests.servers import starting
from tests.servers.search import SearchServer, ServerMissing, Which

SERVERS: tuple[Which, ...] = ("elasticsearch-8", "elasticsearch-9", "opensearch-2", "opensearch-3")


@dataclass(frozen=True)
class Search:
    """A running server, and a prefix for the names of this test's indices."""

    server: SearchServer
    prefix: str

    @property
    def url(self) -> str:
        return self.server.url

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What a plain client gets: the decoded answer; urllib's HTTPError if it is refused."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def indices(self) -> list[str]:
        """Names of the indices that begin with the prefix, closed ones too."""
        listed = self.ask("GET", f"/_cat/indices/{self.prefix}*?format=json&h=index&expand_wildcards=all")
        return sorted(row["index"] for row in listed)

    def snapshot(self, index: str) -> Callable[[], None]:
        """Take a snapshot of an index. The function that is returned closes the index and restores it over itself."""
        repository = f"/_snapshot/{self.prefix}{uuid.uuid4().hex[:10]}"
        settings = {"location": str(self.server.snapshots / repository.rpartition("/")[2])}
        self.ask("PUT", repository, {"type": "fs", "settings": settings})
        taken = self.ask("PUT", f"{repository}/one?wait_for_completion=true", {"indices": index})
        assert taken["snapshot"]["state"] == "SUCCESS", taken

        def restore() -> None:
            self.ask("POST", f"/{index}/_close")
            done = self.ask("POST", f"{repository}/one/_restore?wait_for_completion=true", {"indices": index})
            assert done["snapshot"]["shards"]["failed"] == 0, done

        return restore

    def clear(self) -> None:
        """Remove those indices, and nothing else."""
        for index in self.indices():
            self.ask("DELETE", f"/{index}")


def started(
    which: Which, settings: Mapping[str, str] | None = None, *, files: Mapping[str, str] | None = None
) -> Iterator[SearchServer]:
    return starting.started(which, lambda: SearchServer(which, settings, files=files), ServerMissing)


def indices(server: SearchServer) -> Iterator[Search]:
    found = Search(server, f"t{uuid.uuid4().hex[:10]}-")
    yield found
    server.start()  # a test may have stopped it
    found.clear()


@pytest.fixture(scope="session", params=SERVERS)
def search_server(request: pytest.FixtureRequest) -> Iterator[SearchServer]:
    yield from started(request.param)


@pytest.fixture(scope="session")
def one_search_server() -> Iterator[SearchServer]:
    """The newest one, for tests where the product and its age do not matter."""
    yield from started("elasticsearch-9")


@pytest.fixture
def search(search_server: SearchServer) -> Iterator[Search]:
    """A prefix for indices on each server."""
    yield from indices(search_server)


@pytest.fixture
def one_search(one_search_server: SearchServer) -> Iterator[Search]:
    """A prefix for indices on the newest server."""
    yield from indices(one_search_server)
