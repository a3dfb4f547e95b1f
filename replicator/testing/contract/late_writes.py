"""In-doubt writes: requests that are applied after they timed out, and servers that forget deletes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from replicator.batch import Batch, Outcome
from replicator.errors import TransientError
from replicator.target.contract import AppliesLate, Target
from replicator.target.in_doubt import WINDOW, InDoubtWindow
from replicator.testing.contract.kit import Contract, Stored, as_json, at, batch, exhaust, put, remove, table
from replicator.testing.proxy import Proxy
from replicator.version import FIRST_EPOCH

Proxied = tuple[Mapping[str, Any], Proxy]


class LateWrites(Contract):
    """In-doubt writes: requests that are applied after they timed out, and servers that forget deletes.

    Two more fixtures: ``restart`` (restarts the server, which forgets whatever is not on disk) and ``proxied``
    (``config`` with the address of a ``Proxy`` in front of the server, and the proxy).
    """

    @pytest.fixture
    def restart(self) -> Callable[[], None]:
        """Override it if the server can be restarted; otherwise the tests run without restarts."""
        return lambda: None

    @pytest.fixture
    def proxied(self) -> Proxied:
        pytest.skip("NOT TESTED: this target's tests have no proxy")

    def test_tombstones_survive_a_restart(self, opened: Target, restart: Callable[[], None], stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        opened.write(batch(remove("a", 5), tombstones=True))
        exhaust(lambda: opened.sweep(table(), at(3), []))
        restart()
        late = batch(put({"pk": "a"}, 4), put({"pk": "b"}, 2), tombstones=True)
        assert _written(opened, late).superseded == {"shard:contract": 2}
        assert stored(table()) == {}

    def test_while_in_doubt_a_late_request_undoes_no_delete(
        self, opened: Target, restart: Callable[[], None], stored: Stored
    ) -> None:
        """Nor a delete that is repeated: what the server remembers of the first one does not last."""
        in_doubt = _in_doubt(opened)
        opened.write(batch(put({"pk": "before"}, 1)))
        opened.write(batch(remove("before", 2)))
        in_doubt.begin()
        opened.write(batch(remove("before", 2)))
        opened.write(batch(put({"pk": "within"}, 1)))
        opened.write(batch(remove("within", 2)))
        restart()
        late = _written(opened, batch(put({"pk": "before"}, 1), put({"pk": "within"}, 1)))
        assert stored(table()) == {}
        assert late.superseded == {"shard:contract": 2}

    def test_a_retry_replaces_what_is_there_at_its_own_version_and_nothing_newer(
        self, opened: Target, stored: Stored
    ) -> None:
        """A partially rejected batch may have stored documents of the item that the retry does not produce."""
        _in_doubt(opened).begin()
        opened.write(batch(put({"pk": "a", "n": 1}, 5), put({"pk": "b"}, 5), put({"pk": "c"}, 6), remove("d", 5)))
        opened.write(batch(put({"pk": "e"}, 6), put({"pk": "f", "n": 1}, 5)))
        writes = put({"pk": "a", "n": 2}, 5), remove("b", 5), remove("c", 5), put({"pk": "d"}, 5), put({"pk": "e"}, 5)
        again = Batch(batch(*writes).parts, replaces_same=True)
        after = {("a",): as_json({"pk": "a", "n": 2}), ("c",): {"pk": "c"}, ("d",): {"pk": "d"}, ("e",): {"pk": "e"}}
        after |= {("f",): as_json({"pk": "f", "n": 1})}
        for _ in range(2):
            assert opened.write(again).superseded == {"shard:contract": 2}
            assert stored(table()) == after
        assert opened.write(batch(put({"pk": "b"}, 5), put({"pk": "f", "n": 2}, 5))).superseded == {"shard:contract": 2}
        assert stored(table()) == after

    def test_in_doubt_tombstones_are_purged_after_the_window(self, opened: Target, stored: Stored) -> None:
        in_doubt = _in_doubt(opened)
        in_doubt.begin()
        opened.write(batch(put({"pk": "a"}, 1), remove("b", 1)))
        opened.write(batch(remove("a", 2)))
        assert exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1))) == 2
        assert opened.write(batch(put({"pk": "a", "n": 3}, 3))) == Outcome()
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 3})}

    def test_a_purge_leaves_what_was_put_since_the_call_before_it(self, opened: Target, stored: Stored) -> None:
        """Another run may have taken over between the calls, and needs its tombstones."""
        in_doubt = _in_doubt(opened)
        in_doubt.begin()
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        opened.write(batch(remove("a", 2)))
        opened.purge(table(), at(0, FIRST_EPOCH + 1))
        opened.write(batch(remove("b", 3)))
        opened.purge(table(), at(0, FIRST_EPOCH + 1))
        assert _written(opened, batch(put({"pk": "b"}, 2))).superseded == {"shard:contract": 1}
        assert stored(table()) == {}

    def test_the_in_doubt_window_ends_by_itself(self, opened: Target) -> None:
        in_doubt, time = _in_doubt(opened), [0.0]
        in_doubt.now = lambda: time[0]
        in_doubt.begin()
        assert in_doubt
        assert not in_doubt.over
        time[0] = WINDOW
        assert in_doubt.over
        assert not in_doubt

    def test_a_lost_response_opens_the_in_doubt_window_and_the_write_is_retried(
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1)))
        proxy.lose_responses()
        with pytest.raises(TransientError):
            target.write(batch(put({"pk": "b"}, 2), remove("a", 3)))
        if isinstance(target, AppliesLate):
            assert target.in_doubt
        proxy.heal()
        assert not target.write(batch(put({"pk": "b"}, 2), remove("a", 3))).rejections
        assert set(stored(table())) == {("b",)}

    def test_while_the_server_refuses_connections_writes_wait(
        self, proxied: Proxied, build: Callable[[Mapping[str, Any]], Target], stored: Stored
    ) -> None:
        config, proxy = proxied
        target = build(config)
        target.open([table()], FIRST_EPOCH)
        proxy.refuse()
        for _ in range(3):
            with pytest.raises(TransientError):
                target.write(batch(put({"pk": "a"}, 1)))
        proxy.heal()
        assert not target.write(batch(put({"pk": "a"}, 1))).rejections
        assert set(stored(table())) == {("a",)}


def _in_doubt(target: Target) -> InDoubtWindow:
    if not isinstance(target, AppliesLate):
        pytest.skip("this target has transactions: no request is applied late")
    return target.in_doubt


def _written(target: Target, given: Any) -> Outcome:
    """Write, with one retry: after a restart the old connection may be broken."""
    try:
        return target.write(given)
    except TransientError:
        return target.write(given)
