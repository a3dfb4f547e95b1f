"""Items that DynamoDB's time to live deletes."""

from __future__ import annotations

from dataclasses import replace

from tests.end_to_end.world import Copy, eventually
from tests.servers.dynamodb_local import DynamoDBLocal


def test_deletes_by_time_to_live_are_applied_or_ignored_others_always_applied(
    clocked_copy: Copy, clocked: DynamoDBLocal
) -> None:
    source = clocked_copy.source
    applying = clocked_copy.configure(ttl_deletes="apply")
    ignoring = replace(clocked_copy, name="ignoring").configure(ttl_deletes="ignore")
    source.client.update_time_to_live(
        TableName=source.table, TimeToLiveSpecification={"Enabled": True, "AttributeName": "until"}
    )
    source.fill(3)
    source.put("session", until=int(clocked.now()) + 600)
    applying.caught_up()
    ignoring.caught_up()
    clocked.advance(hours=1)
    eventually(lambda: "session" not in source.items(), "the item expires")
    source.delete("k1")
    applying.caught_up()
    ignoring.caught_up()

    assert applying.documents().keys() == {"k0", "k2"}
    assert ignoring.documents().keys() == {"k0", "k2", "session"}
    assert (applying.counts()["filtered"], ignoring.counts()["filtered"]) == (0, 1)
    assert applying.counts()["read"] == ignoring.counts()["read"] == 4 + source.records + 1
