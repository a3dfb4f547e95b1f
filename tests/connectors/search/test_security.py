"""Elasticsearch servers with security enabled: required privileges and the messages of refusals."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from connectors.search.target import SearchTarget
from replicator.batch import Outcome
from replicator.errors import NotPermitted
from replicator.target.contract import Table
from replicator.testing.contract.kit import PK, batch, put, remove
from replicator.version import FIRST_EPOCH
from tests.connectors.search.search_kit import client
from tests.servers.search import SearchServer
from tests.servers.search_fixtures import started

pytestmark = pytest.mark.search

# Anonymous users may query the cluster's health, which shows that the server is ready.
SECURED = {"xpack.security.enabled": "true", "xpack.security.authc.anonymous.roles": "beats_system"}
ROLES = """
writer:
  indices: [{names: ["secured*"], privileges: [manage, read, index, delete]}]
reader:
  indices: [{names: ["secured*"], privileges: [read, view_index_metadata]}]
through:
  cluster: [read_pipeline]
  indices: [{names: ["secured*"], privileges: [manage, read, index, delete]}]
maker:
  cluster: [manage_ingest_pipelines]
"""
NEEDED = ("manage", "read", "index", "delete")
LACKING = {f"no-{one}": [privilege for privilege in NEEDED if privilege != one] for one in NEEDED}
USERS = ("writer", "reader", "through", "maker", *LACKING)
PASSWORD = "only for this test"
TABLE = Table("secured", PK)


@pytest.fixture(scope="module", params=["elasticsearch-8", "elasticsearch-9"])
def secured(request: pytest.FixtureRequest) -> Iterator[SearchServer]:
    yield from started(request.param, SECURED, files=files())


def files() -> Mapping[str, str]:
    """The server's files of users, each with a role of the same name."""
    return {
        "users": "".join(f"{user}:{_hashed(PASSWORD)}\n" for user in USERS),
        "users_roles": "".join(f"{user}:{user}\n" for user in USERS),
        "roles.yml": ROLES + "".join(_role(name, privileges) for name, privileges in LACKING.items()),
    }


def _role(name: str, privileges: Sequence[str]) -> str:
    return f"{name}:\n  indices: [{{names: ['secured*'], privileges: [{', '.join(privileges)}]}}]\n"


def _hashed(password: str) -> str:
    salt, rounds = os.urandom(32), 10_000
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds, 32)
    return f"{{PBKDF2}}{rounds}${base64.b64encode(salt).decode()}${base64.b64encode(made).decode()}"


def logged_in(server: SearchServer, user: str, password: str = PASSWORD) -> SearchTarget:
    return client("elasticsearch", url=server.url, username=user, password=password)


def test_the_documented_privileges_are_enough(secured: SearchServer) -> None:
    target = logged_in(secured, "writer")
    assert list(target.check([TABLE])) == []
    target.open([TABLE], FIRST_EPOCH)
    assert target.write(batch(put({"pk": "a"}, 1, table="secured"), tombstones=True)) == Outcome()
    assert target.write(batch(remove("a", 2, table="secured"), tombstones=True)) == Outcome()
    assert target.write(batch(put({"pk": "b"}, 1, table="secured"))) == Outcome()
    assert target.sweep(TABLE, 1 << 60, []) == 1
    assert [target.purge(TABLE, (1 << 60) + 1) for _ in range(2)] == [2, 0]
    assert list(target.empty([TABLE])) == ["secured"]
    assert target.epoch([TABLE]) == FIRST_EPOCH
    assert target.identities([TABLE])["secured"].known
    target.open([TABLE], FIRST_EPOCH + 1)


def test_the_same_privileges_are_enough_to_move_readers_and_to_remove_the_old_index(secured: SearchServer) -> None:
    old, new = (Table("secured-r", PK, {"index": f"secured-r-{n}"}) for n in (1, 2))
    first, second = (logged_in(secured, "writer") for _ in range(2))
    first.open([old], FIRST_EPOCH)
    second.open([replace(new, beside=old)], FIRST_EPOCH)
    assert second.point([old], [replace(new, beside=old)], ("contract", "contract"))
    with pytest.raises(NotPermitted, match=r"indices:admin/aliases.* is unauthorized for user \[reader\]"):
        logged_in(secured, "reader").point([new], [replace(old, beside=new)], ("contract", "contract"))
    second.drop([old], "contract")
    assert second.check([new]) == []


@pytest.mark.parametrize("privilege", NEEDED)
def test_each_privilege_is_needed_and_named_if_missing(secured: SearchServer, privilege: str) -> None:
    problems = logged_in(secured, f"no-{privilege}").check([TABLE])
    names = ("secured", "secured-1", "secured-1-Replicator")
    assert {p.rpartition(": ")[2] for p in problems} == {
        f"the login no-{privilege} lacks {privilege} on {name}" for name in names
    }


def test_missing_privileges_are_named(secured: SearchServer) -> None:
    problems = logged_in(secured, "reader").check([TABLE])
    assert {p.rpartition(": ")[2] for p in problems} == {
        "the login reader lacks manage, index, delete on secured",
        "the login reader lacks manage, index, delete on secured-1",
        "the login reader lacks manage, index, delete on secured-1-Replicator",
    }


def test_a_refusal_names_the_missing_privilege(secured: SearchServer) -> None:
    logged_in(secured, "writer").open([TABLE], FIRST_EPOCH + 2)
    with pytest.raises(NotPermitted, match=r"data/write/bulk.* is unauthorized for user \[reader\].*granted by.*index"):
        logged_in(secured, "reader").open([TABLE], FIRST_EPOCH + 7)


def test_an_ingest_pipeline_needs_a_privilege_of_the_cluster(secured: SearchServer) -> None:
    maker = logged_in(secured, "maker")._connection
    maker.ask("PUT", "/_ingest/pipeline/secured-p", b'{"processors":[]}', doing="making a pipeline")
    of = Table("secured-through", PK, {"ingest_pipeline": "secured-p"})
    assert list(logged_in(secured, "through").check([of])) == []
    target = logged_in(secured, "through")
    target.open([of], FIRST_EPOCH)
    expected = put({"pk": "a"}, 1, table="secured-through")
    assert target.write(batch(expected)) == Outcome()
    assert target.compare(of, [expected])[0].fields == ()
    with pytest.raises(NotPermitted, match="read_pipeline"):
        logged_in(secured, "writer").check([of])


@pytest.mark.parametrize(("user", "password"), [("writer", "wrong"), ("nobody", PASSWORD)])
def test_a_wrong_login_is_refused(secured: SearchServer, user: str, password: str) -> None:
    with pytest.raises(NotPermitted, match=r"refuses the login\. Correct target"):
        logged_in(secured, user, password).check([TABLE])
