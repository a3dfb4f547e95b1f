"""``replicator verify`` into the targets without transactions: what it finds, and what a repair leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.end_to_end.targets import Index, Mirror, OtherTable
from tests.end_to_end.test_verify import breathe, differences, summary
from tests.end_to_end.world import Load, Source
from tests.servers.dynamodb_local import DynamoDBLocal
from tests.servers.search_fixtures import Search

pytestmark = [pytest.mark.timeout(600)]

ACTS = ("missing", "value", "digit", "set", "extra", "stale")
EACH = 3
BIG = 11111111111111111111111111111111111111
NEIGHBORS = [f"{prefix}{number}" for prefix in ("v", "gone") for number in range(len(ACTS) * EACH)]
WANTED = {"missing": "missing", "value": "different", "digit": "different", "set": "different", "stale": "different"}


def found_and_repaired(
    mirror: Mirror,
    source: Source,
    inject: Callable[[str, str], None],
    neighbor: Callable[[], Any],
    acts: Sequence[str] = ACTS,
) -> None:
    """Injected beside live writes: all of it is found, nothing else, all of it is repaired, and nothing next to it.

    ``neighbor``: what is in a table of someone else whose ids are those of the injected differences.
    """
    others = neighbor()
    mirror.configured(None)
    source.fill(len(acts) * EACH + 40, prefix="v", big=BIG, tags={"a", "b"})
    wanted: dict[str, str] = {}
    with mirror.start() as run:
        run.until("progress", phase="live")
        for number, act in enumerate(act for act in acts for _ in range(EACH)):
            pk = f"gone{number}" if act == "extra" else f"v{number}"
            inject(act, pk)
            wanted[pk] = WANTED.get(act, "extra")
        with Load(source, seed=7, keys=50, every=breathe):
            repaired = mirror.command("verify", "--repair", "--json")
            again = mirror.command("verify", "--json")
        assert run.stop().code == 0
    assert (repaired.code, differences(repaired)) == (0, wanted), repaired
    assert summary(repaired)["repaired"] == len(wanted)
    assert (again.code, again.lines) == (0, [summary(again)]), again
    mirror.caught_up()
    assert without_sets(mirror.documents()) == without_sets(source.items())
    assert others
    assert neighbor() == others


def without_sets(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """With lists in place of sets, which JSON has not."""
    return {pk: {n: sorted(v) if n == "tags" else v for n, v in body.items()} for pk, body in documents.items()}


@pytest.mark.search
def test_injected_differences_of_an_index_are_found_and_repaired(
    tmp_path: Path, source: Source, one_search: Search
) -> None:
    index = Index(tmp_path, source, one_search)
    name = f"{index.table}-1"

    def document(pk: str) -> Any:
        return one_search.ask("GET", f"/{name}/_doc/{pk}")

    def store(pk: str, version: int, body: Mapping[str, Any]) -> None:
        how = f"version={version}&version_type=external_gte"
        one_search.ask("PUT", f"/{name}/_doc/{pk}?{how}", body)

    def inject(act: str, pk: str) -> None:
        like = document("v30" if act == "extra" else pk)
        version, body = like["_version"], like["_source"]
        whole = body["document"]
        if act == "missing":
            one_search.ask("DELETE", f"/{name}/_doc/{pk}?version={version}&version_type=external_gte")
            return
        if act == "extra":
            body["replicator"]["partition"] = whole["pk"] = pk
        elif act == "value":
            whole["n"] = -7
        elif act == "digit":
            whole["big"] = BIG + 1
        else:
            whole["tags"] = ["a", "c"]
        store(pk, version, body)

    beside = f"{index.table}-1-copy"
    one_search.ask("PUT", f"/{beside}")
    for pk in NEIGHBORS:
        one_search.ask("PUT", f"/{beside}/_doc/{pk}", {"mine": pk})

    def neighbor() -> Any:
        one_search.ask("POST", f"/{beside}/_refresh")
        query = {"size": 1000, "version": True, "seq_no_primary_term": True, "sort": ["_doc"]}
        definition, found = one_search.ask("GET", f"/{beside}"), one_search.ask("POST", f"/{beside}/_search", query)
        return definition, found["hits"]["hits"]

    found_and_repaired(index, source, inject, neighbor, ACTS[:-1])  # no version of an index goes back


class Injected:
    """Changes items of a table with a plain client."""

    def __init__(self, table: str, server: DynamoDBLocal) -> None:
        self._table = table
        self._client: Any = boto3.client(
            "dynamodb",
            endpoint_url=server.endpoint,
            region_name="eu-west-1",
            aws_access_key_id="local",
            aws_secret_access_key="local",
        )

    def __call__(self, act: str, pk: str) -> None:
        item = self._get("v30" if act == "extra" else pk)
        if act == "missing":
            self._client.delete_item(TableName=self._table, Key={"pk": {"S": pk}})
            return
        if act == "extra":
            item["pk"] = {"S": pk}
        elif act == "value":
            item["n"] = {"N": "-7"}
        elif act == "digit":
            item["big"] = {"N": str(BIG + 1)}
        elif act == "set":
            item["tags"] = {"SS": ["a", "c"]}
        else:
            item["_replicator_version"] = {"N": "5"}
        self._client.put_item(TableName=self._table, Item=item)

    def beside(self, table: str) -> Callable[[], Any]:
        """Make another application's table, and return what is in it."""
        self._client.create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        for pk in NEIGHBORS:
            self._client.put_item(TableName=table, Item={"pk": {"S": pk}, "_replicator_version": {"N": "1"}})
        return lambda: sorted(self._client.scan(TableName=table, ConsistentRead=True)["Items"], key=repr)

    def _get(self, pk: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.get_item(TableName=self._table, Key={"pk": {"S": pk}})["Item"]
        return found


@pytest.mark.dynamodb_local
def test_injected_differences_of_a_table_are_found_and_repaired(
    tmp_path: Path, source: Source, tables_local: DynamoDBLocal
) -> None:
    other = OtherTable(tmp_path, source, tables_local, name=f"copy-of-{source.table}")
    inject = Injected(other.table, tables_local)
    beside = inject.beside(f"{other.table}-2")
    found_and_repaired(other, source, inject, beside)


class Pristine(OtherTable):
    """A table whose items have no versions."""

    def target(self) -> Mapping[str, Any]:
        return {**super().target(), "pristine": True}


@pytest.mark.dynamodb_local
def test_a_pristine_table_is_compared_and_not_repaired(
    tmp_path: Path, source: Source, tables_local: DynamoDBLocal
) -> None:
    other = Pristine(tmp_path, source, tables_local, name=f"pristine-{source.table}")
    other.configured(None)
    source.fill(30, prefix="v", big=BIG, tags={"a", "b"})
    inject = Injected(other.table, tables_local)
    with other.start() as run:
        run.until("progress", phase="live")
        equal = other.command("verify", "--json")
        for act, pk in (("missing", "v0"), ("digit", "v1"), ("set", "v2"), ("value", "v3")):
            inject(act, pk)
        found = other.command("verify", "--json")
        refused = other.command("verify", "--repair", "--json")
        assert run.stop().code == 0
    assert (equal.code, summary(equal)["result"]) == (0, "equal"), equal
    kinds = {"v0": "missing", "v1": "different", "v2": "different", "v3": "different"}
    assert (found.code, differences(found)) == (6, kinds), found
    assert refused.code == 2
    assert "a pristine table keeps no versions" in refused.err
