"""What every target must do, as tests: subclass ``TargetContract`` in a test module of your connector.

    class TestOurs(TargetContract):
        @pytest.fixture
        def config(self): ...       # target's part of a config, for an empty destination; without table or tables
        @pytest.fixture
        def unreachable(self): ...  # the same with an address where nobody answers
        @pytest.fixture
        def stored(self): ...       # a function: what a plain client finds in a table, see Stored
        @pytest.fixture
        def sever(self): ...        # a function that cuts the connections of every target
        @pytest.fixture
        def restart(self): ...      # a function that restarts the server, its data kept (may be left out)
        @pytest.fixture
        def refuse_at_commit(self): ...  # a function: documents with `late: true` are refused at commit (optional)
        @pytest.fixture
        def keep(self): ...         # a function: the destination refuses to delete the document of an id (optional)
        @pytest.fixture
        def dropped(self): ...      # a function that removes a table (optional)
        @pytest.fixture
        def proxied(self): ...      # config with the address of a replicator.testing.proxy.Proxy, and that (same)
        @pytest.fixture
        def diverted(self): ...     # a function that leads a table's name to a place with other documents (same)
        @pytest.fixture
        def remade(self): ...       # a function that removes a table and makes it anew as it was, but empty (same)
        @pytest.fixture
        def otherwise(self): ...    # config that reaches the destination at another address (same)
        @pytest.fixture
        def recreated(self): ...    # as remade, where only a run as a whole notices it (same)
        @pytest.fixture
        def options(self): ...      # options of a table to which something is added, see Options (same)

The suite reads the destination only through ``stored``, so what it sees is what anybody else sees.
"""

from __future__ import annotations

from replicator.testing.contract.batches import Batches
from replicator.testing.contract.definitions import Definitions
from replicator.testing.contract.documents import Documents
from replicator.testing.contract.failures import Failures
from replicator.testing.contract.kit import as_json, at, batch, put, remove, table
from replicator.testing.contract.late_writes import LateWrites
from replicator.testing.contract.moves import Moves
from replicator.testing.contract.tombstones import Tombstones
from replicator.testing.contract.transactions import Transactions


class TargetContract(Documents, Batches, Tombstones, LateWrites, Moves, Definitions, Failures, Transactions):
    """Every promise of ``replicator.target``."""


__all__ = ["TargetContract", "as_json", "at", "batch", "put", "remove", "table"]
