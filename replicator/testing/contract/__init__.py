"""The contract of targets as tests: subclass ``TargetContract`` in a test module of your connector.

    class TestOurs(TargetContract):
        @pytest.fixture
        def config(self): ...       # the config's section ``target`` for an empty destination, without table or tables
        @pytest.fixture
        def unreachable(self): ...  # the same with an address where no server listens
        @pytest.fixture
        def stored(self): ...       # a function that reads a table with a plain client, see Stored
        @pytest.fixture
        def sever(self): ...        # a function that cuts the connections of all targets
        @pytest.fixture
        def restart(self): ...      # a function that restarts the server and keeps its data (optional)
        @pytest.fixture
        def refuse_at_commit(self): ...  # a function: makes documents with `late: true` fail at commit (optional)
        @pytest.fixture
        def keep(self): ...         # a function: makes deletes of one document fail (optional)
        @pytest.fixture
        def dropped(self): ...      # a function that removes a table (optional)
        @pytest.fixture
        def proxied(self): ...      # config with the address of a replicator.testing.proxy.Proxy, and it (optional)
        @pytest.fixture
        def diverted(self): ...     # a function that redirects a table's name to other documents (optional)
        @pytest.fixture
        def remade(self): ...       # a function that drops a table and recreates it empty (optional)
        @pytest.fixture
        def otherwise(self): ...    # config that reaches the destination at another address (optional)
        @pytest.fixture
        def recreated(self): ...    # like remade, if only a whole run can notice it (optional)
        @pytest.fixture
        def options(self): ...      # table options with additions, see Options (optional)
        @pytest.fixture
        def marking(self): ...      # table options that mark deleted documents, see Marking (optional)

The suite reads the destination only through ``stored``, so it sees what any other client sees.
"""

from __future__ import annotations

from replicator.testing.contract.batches import Batches
from replicator.testing.contract.definitions import Definitions
from replicator.testing.contract.documents import Documents
from replicator.testing.contract.failures import Failures
from replicator.testing.contract.kit import as_json, at, batch, put, remove, table
from replicator.testing.contract.late_writes import LateWrites
from replicator.testing.contract.marked import MarkedDeletes
from replicator.testing.contract.moves import Moves
from replicator.testing.contract.tombstones import Tombstones
from replicator.testing.contract.transactions import Transactions
from replicator.testing.contract.verification import Verification


class TargetContract(
    Documents,
    Batches,
    Tombstones,
    MarkedDeletes,
    LateWrites,
    Moves,
    Definitions,
    Failures,
    Transactions,
    Verification,
):
    """The whole contract of ``replicator.target.contract``."""


__all__ = ["TargetContract", "as_json", "at", "batch", "put", "remove", "table"]
