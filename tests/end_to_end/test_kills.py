"""A run is killed, or stopped for a while, at every step, on real servers.

After a kill the next run goes on where the killed one was, and nothing is lost. After SIGSTOP and a take-over the run
that wakes up writes nothing that counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from replicator.testing.servers.postgres import PostgresServer
from replicator.testing.servers.programs import ServerMissing
from tests.connectors.webhook.receiver_kit import running
from tests.end_to_end.conftest import table
from tests.end_to_end.kill_steps import TARGETS, steps
from tests.end_to_end.kill_story import ANY, PASSAGES, Story
from tests.end_to_end.pipeline import _AWS
from tests.end_to_end.targets import MAPPING, Index, Keys, Lake, Notified, OtherTable
from tests.end_to_end.world import Copy, Source
from tests.servers.dynamodb_fixtures import StartLocal
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.postgres_fixtures import database
from tests.servers.redis import RedisCluster, RedisServer
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import SERVERS, indices
from tests.servers.starting import started

PROVE = bool(os.environ.get("REPLICATOR_PROVE"))
KILLS = int(os.environ.get("REPLICATOR_KILLS", "50" if PROVE else "2"))
"""Of each step."""
POSTGRES = ("debian", "wheel") if PROVE else ("wheel",)
SEARCH = SERVERS if PROVE else ("elasticsearch-9", "opensearch-3")
pytestmark = [pytest.mark.dynamodb_local, pytest.mark.timeout(120 + 30 * KILLS)]


@pytest.fixture(scope="module")
def credentials() -> Iterator[None]:
    """For the checkpoints, which the tests read in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _AWS.items():
            patch.setenv(name, value)
        yield


@contextmanager
def its_source(local: DynamoDBLocal) -> Iterator[Source]:
    with table(local.endpoint, "NEW_AND_OLD_IMAGES") as source:
        yield source


@pytest.fixture(scope="module")
def into_postgres(
    postgres_server: PostgresServer, local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    with its_source(local) as source, contextmanager(database)(postgres_server) as empty:
        copy = Copy(tmp_path_factory.mktemp("kills"), source, empty)
        history = {"tables": {copy.name: {"history": True}}}
        yield Story(copy, source, local, "postgres", "target", settings=history).begin()


@pytest.fixture(scope="module")
def into_a_search_engine(
    search_server: SearchServer,
    one_postgres_server: PostgresServer,
    local: DynamoDBLocal,
    credentials: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Checkpoints are in a file for Elasticsearch, in Postgres for OpenSearch."""
    with (
        its_source(local) as source,
        contextmanager(indices)(search_server) as search,
        contextmanager(database)(one_postgres_server) as empty,
    ):
        index = SmallBulks(tmp_path_factory.mktemp("kills"), source, search, options={"mapping": MAPPING})
        if search_server.which.startswith("elasticsearch"):
            yield Story(index, source, local, "search", "sqlite").begin()
        else:
            kept = {"checkpoints": {"type": "postgres", "url": empty.url}}
            yield Story(index, source, local, "search", "postgres", kept).begin()


@pytest.fixture(scope="module")
def into_a_table(
    dynamodb_local: StartLocal, local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Checkpoints are in a table beside it."""
    with its_source(local) as source:
        server = dynamodb_local()
        copy = FewAtOnce(tmp_path_factory.mktemp("kills"), source, server, name=f"copy-of-{source.table}")
        place = {"region": "eu-west-1", "endpoint_url": server.endpoint}
        kept: dict[str, Any] = {"checkpoints": {"type": "dynamodb", "table": "checkpoints", **place}}
        story = Story(copy, source, local, "dynamodb", "dynamodb", kept)
        copy.configured(backfill={"segments": 2}, **kept)
        assert copy.command("check", "--create").code == 0
        yield story.begin()
        server.stop()


@pytest.fixture(scope="module")
def into_a_receiver(
    local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Checkpoints are in a file."""
    with its_source(local) as source, running(tmp_path_factory.mktemp("receiver")) as receiver:
        notified = Notified(tmp_path_factory.mktemp("kills"), source, receiver)
        yield Story(notified, source, local, "webhook", "sqlite").begin()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    yield from started("Redis", RedisServer, ServerMissing)


@pytest.fixture(scope="module")
def into_redis(
    redis_server: RedisServer, local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Checkpoints are in a file."""
    with its_source(local) as source:
        keys = Keys(tmp_path_factory.mktemp("kills"), source, redis_server)
        yield Story(keys, source, local, "redis", "sqlite").begin()


@pytest.fixture(scope="module")
def into_a_cluster(
    local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    """Checkpoints are in a file."""
    with its_source(local) as source:
        for cluster in started("Redis", lambda: RedisCluster(replicas=0), ServerMissing):
            keys = Keys(tmp_path_factory.mktemp("kills"), source, cluster, name="cluster")
            yield Story(keys, source, local, "redis-cluster", "sqlite").begin()


@pytest.fixture(scope="module")
def shared_store(one_postgres_server: PostgresServer) -> Iterator[dict[str, Any]]:
    """Checkpoints that another run can take over, unlike a file that the process has locked."""
    with contextmanager(database)(one_postgres_server) as empty:
        yield {"checkpoints": {"type": "postgres", "url": empty.url}}


@pytest.fixture(scope="module")
def into_a_shared_receiver(
    local: DynamoDBLocal, credentials: None, shared_store: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    with its_source(local) as source, running(tmp_path_factory.mktemp("receiver")) as receiver:
        notified = Notified(tmp_path_factory.mktemp("kills"), source, receiver, name="shared-receiver")
        yield Story(notified, source, local, "webhook", "postgres", shared_store).begin()


@pytest.fixture(scope="module")
def into_shared_redis(
    redis_server: RedisServer,
    local: DynamoDBLocal,
    credentials: None,
    shared_store: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    with its_source(local) as source:
        keys = Keys(tmp_path_factory.mktemp("kills"), source, redis_server, name="shared-redis")
        yield Story(keys, source, local, "redis", "postgres", shared_store).begin()


@pytest.fixture(scope="module")
def into_a_lake(local: DynamoDBLocal, credentials: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Checkpoints are in a file."""
    with its_source(local) as source:
        lake = Lake(tmp_path_factory.mktemp("kills"), source, tmp_path_factory.mktemp("lake"))
        yield Story(lake, source, local, "delta", "sqlite").begin()


@pytest.fixture(scope="module")
def into_a_shared_lake(
    local: DynamoDBLocal, credentials: None, shared_store: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    with its_source(local) as source:
        folder = tmp_path_factory.mktemp("lake")
        lake = Lake(tmp_path_factory.mktemp("kills"), source, folder, name="shared-lake")
        yield Story(lake, source, local, "delta", "postgres", shared_store).begin()


class SmallBulks(Index):
    """A batch takes several requests, one after the other."""

    def target(self) -> dict[str, object]:
        return {**super().target(), "bulk_documents": 3, "in_flight": 1}


class FewAtOnce(OtherTable):
    """The requests of a batch are not all on their way when the first one is answered."""

    def target(self) -> dict[str, object]:
        return {**super().target(), "in_flight": 3}


def survives(story: Story, step: str, kills: int = KILLS) -> None:
    """Kills at the first passage, at a later one, and then at random ones."""
    most = PASSAGES.get(step, 1)
    for kill in range(kills):
        before, records = story.durable, story.source.records
        story.killed(step, (1, most)[kill] if kill < 2 else story.chance.randint(1, most))
        story.goes_on(before, records, step)


def steps_of(target: str, store: str) -> list[str]:
    """Random moments have tests of their own, so a few of them are enough: here only in the long form."""
    return sorted(steps(target, store)) + [ANY] * PROVE


@pytest.mark.parametrize("postgres_server", POSTGRES, indirect=True)
@pytest.mark.parametrize("step", steps_of("postgres", "target"))
def test_after_a_kill_postgres_is_what_the_hook_makes_and_nothing_is_applied_again(
    into_postgres: Story, step: str
) -> None:
    survives(into_postgres, step)


@pytest.mark.search
@pytest.mark.parametrize("search_server", SEARCH, indirect=True)
@pytest.mark.parametrize("step", steps_of("search", "sqlite"))
def test_after_a_kill_an_index_is_what_the_hook_makes_and_a_batch_at_most_is_applied_again(
    into_a_search_engine: Story, step: str
) -> None:
    survives(into_a_search_engine, step)


@pytest.mark.parametrize("step", steps_of("dynamodb", "dynamodb"))
def test_after_a_kill_a_table_is_what_the_hook_makes_and_a_batch_at_most_is_applied_again(
    into_a_table: Story, step: str
) -> None:
    survives(into_a_table, step)


@pytest.mark.parametrize("step", steps_of("webhook", "sqlite") if PROVE else sorted(TARGETS["webhook"]))
def test_after_a_kill_a_receivers_copy_is_what_the_hook_makes_and_a_batch_at_most_is_applied_again(
    into_a_receiver: Story, step: str
) -> None:
    """The other steps have nothing to do with the target, so they are only in the long form."""
    survives(into_a_receiver, step, KILLS if PROVE else 1)


@pytest.mark.parametrize("step", sorted(TARGETS["redis"]))
def test_after_a_kill_redis_has_what_the_hook_makes_and_a_batch_at_most_is_applied_again(
    into_redis: Story, step: str
) -> None:
    """The steps of the target; those of the pipeline and the store are the same everywhere."""
    survives(into_redis, step, KILLS if PROVE else 1)


@pytest.mark.parametrize("step", sorted(TARGETS["redis-cluster"]))
def test_after_a_kill_a_redis_cluster_has_what_the_hook_makes_and_a_batch_at_most_is_applied_again(
    into_a_cluster: Story, step: str
) -> None:
    """The steps of the target; those of the pipeline and the store are the same everywhere."""
    survives(into_a_cluster, step, KILLS if PROVE else 1)


@pytest.mark.parametrize("step", sorted(TARGETS["delta"]))
def test_after_a_kill_a_lake_has_what_the_hook_makes(into_a_lake: Story, step: str) -> None:
    """The steps of the target; those of the pipeline and the store are the same everywhere."""
    survives(into_a_lake, step, KILLS if PROVE else 1)


@pytest.mark.parametrize("postgres_server", ["wheel"], indirect=True)
@pytest.mark.parametrize("step", ["after GetRecords", "during the checkpoint", "stored, checkpoint not"])
def test_a_run_suspended_while_another_took_postgres_over_writes_nothing_more(into_postgres: Story, step: str) -> None:
    into_postgres.overslept(step)


@pytest.mark.search
@pytest.mark.parametrize("search_server", ["opensearch-3"], indirect=True)
@pytest.mark.parametrize("step", ["after GetRecords", "between requests of a batch", "stored, checkpoint not"])
def test_a_run_that_slept_while_another_took_an_index_over_writes_nothing_more(
    into_a_search_engine: Story, step: str
) -> None:
    into_a_search_engine.overslept(step)


@pytest.mark.parametrize("step", ["after GetRecords", "between requests of a batch", "stored, checkpoint not"])
def test_a_run_that_slept_while_another_took_a_table_over_writes_nothing_more(into_a_table: Story, step: str) -> None:
    into_a_table.overslept(step)


@pytest.mark.parametrize("step", ["after GetRecords", "between requests of a batch", "stored, checkpoint not"])
def test_a_run_that_slept_while_another_took_redis_over_writes_nothing_more(
    into_shared_redis: Story, step: str
) -> None:
    into_shared_redis.overslept(step)


@pytest.mark.parametrize("step", ["after GetRecords", "between requests of a batch", "stored, checkpoint not"])
def test_a_run_that_slept_while_another_took_a_webhook_over_posts_nothing_more(
    into_a_shared_receiver: Story, step: str
) -> None:
    into_a_shared_receiver.overslept(step)


@pytest.mark.parametrize("step", ["after GetRecords", "between requests of a batch", "stored, checkpoint not"])
def test_a_run_that_slept_while_another_took_a_lake_over_commits_nothing_more(
    into_a_shared_lake: Story, step: str
) -> None:
    into_a_shared_lake.overslept(step)
