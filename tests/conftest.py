import logging
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import settings

# So that their claims say what they compared.
pytest.register_assert_rewrite(
    "replicator.testing.contract", "tests.end_to_end.kill_story", "tests.end_to_end.ray_story"
)

# the first one wraps what the others import
pytest_plugins = [
    "tests.security.plugin",
    "tests.servers.dynamodb_fixtures",
    "tests.servers.postgres_fixtures",
    "tests.servers.search_fixtures",
    "tests.servers.s3",
    "tests.cli.command_line",
]

_SERVERS = ("postgres_server", "search_server")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, those of one server stay together, so that it is started once; others by file."""
    for item in items:
        chosen = getattr(item, "callspec", None)
        server = next((chosen.params[s] for s in _SERVERS if s in chosen.params), None) if chosen else None
        item.add_marker(pytest.mark.xdist_group(server or item.location[0]))


settings.register_profile("replicator", deadline=None)  # a busy machine is no failure
settings.load_profile("replicator")


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that a test carries out in this process decides only for that test where events go."""
    logger = logging.getLogger("replicator")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture(autouse=True, scope="session")
def one_loader() -> Iterator[None]:
    """botocore reads its models once, not for each of a thousand clients."""
    from botocore import session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "create_loader", cache(session.create_loader))
        yield
