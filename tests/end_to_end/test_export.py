"""A table is copied from an export in S3, by the command line over a real S3 API.

No emulator writes an export as DynamoDB does: the in-memory one writes the documented format to moto's server.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from replicator.cli import main
from replicator.source import export
from replicator.testing.dynamodb import DynamoDB
from replicator.testing.dynamodb.http import served
from tests.servers.s3 import Bucket

CONFIG = """\
pipeline: orders
source: {{table: orders, region: us-east-1, endpoint_url: "{source}"}}
backfill: {{from: export, bucket: {bucket}, prefix: some/prefix, segments: 3}}
target: {{type: dynamodb, region: us-east-1, endpoint_url: "{target}", create: true, table: copies}}
"""


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "POLL", 0.05)
    monkeypatch.setattr(export, "SETTLED", 0.0)
    monkeypatch.setattr(export, "CHUNK", 10_000)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "local")


def test_a_table_is_copied_from_files_in_s3_and_check_finds_nothing_missing(tmp_path: Path, s3: Bucket) -> None:
    source, target = (DynamoDB(now=time.time, random=random.Random(n)) for n in (1, 2))
    source.create_table("orders")
    source.exports.enable("orders")
    source.exports.put, source.exports.files = s3.put, 7
    for n in range(1000):
        source.put("orders", {"id": f"i{n}", "text": str(random.Random(n).random())})
    config = tmp_path / "orders.yaml"
    with served(source) as here, served(target) as there:
        config.write_text(CONFIG.format(source=here, target=there, bucket=s3.name))
        checked = CliRunner().invoke(main, ["check", str(config)])
        ran = CliRunner().invoke(main, ["run", str(config), "--until", "caught-up"])

    assert (checked.exit_code, ran.exit_code) == (0, 0), checked.output + ran.output
    assert f"s3:GetObject on s3://{s3.name}/some/prefix/replicator-check" in checked.output
    copies = {item["id"]: item["text"] for item in target.items("copies")}
    assert copies == {item["id"]: item["text"] for item in source.items("orders")}
    assert source.calls["ExportTableToPointInTime"] == 2, "the first by check, for a time that has none"
    assert not s3.client.list_multipart_uploads(Bucket=s3.name).get("Uploads")
