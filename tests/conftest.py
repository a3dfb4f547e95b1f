import pytest
from hypothesis import settings

pytest.register_assert_rewrite("replicator.testing.contract")  # so that its claims say what they compared

pytest_plugins = ["tests.servers_dynamodb", "tests.servers_postgres", "tests.servers_search", "tests.cli"]

settings.register_profile("replicator", deadline=None)  # a busy machine is no failure
settings.load_profile("replicator")
