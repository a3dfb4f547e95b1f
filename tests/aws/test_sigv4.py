"""Our signatures equal botocore's."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import botocore.auth
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from replicator.aws.sigv4 import Keys, Signer

CONTENT = "application/x-amz-json-1.0"


def theirs(
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    place: str,
    region: str,
    target: str,
    body: bytes,
    keys: Keys,
    now: float,
) -> dict[str, str]:
    at = datetime.fromtimestamp(int(now), UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: at)
    headers = {"Content-Type": CONTENT, "X-Amz-Target": target}
    request = AWSRequest("POST", f"https://{host}{place}", data=body, headers=headers)
    SigV4Auth(Credentials(keys.access, keys.secret, keys.token), "dynamodb", region).add_auth(request)
    return {name.lower(): str(value) for name, value in request.headers.items()}


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_are_signed_as_botocore_signs_them(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One signer for many requests, across seconds, days and changes of keys."""
    chance = random.Random(seed)
    host, region = chance.choice([("dynamodb.eu-west-1.amazonaws.com", "eu-west-1"), ("127.0.0.1:8000", "us-east-1")])
    place = ["/", "/prefix", "/a%20b/c~d/", "/a:b"][seed % 4]
    signer = Signer(host, region, "dynamodb", CONTENT, place)
    now = 1_800_000_000.0
    for _ in range(20):
        now += chance.choice([0, 0.2, 1, 3600, 86400])
        keys = Keys(chance.choice(["AKIA1", "ASIA2"]), chance.choice(["s/1+", "s2"]), chance.choice([None, "t/o=k"]))
        target = f"DynamoDB_20120810.{chance.choice(['PutItem', 'DeleteItem'])}"
        body = chance.randbytes(chance.randint(0, 500))
        lines = signer.headers(target, body, keys, now).decode().split("\r\n")
        found = dict(line.split(": ", 1) for line in lines if line)
        wanted = theirs(monkeypatch, host, place, region, target, body, keys, now)
        assert found.pop("host") == host
        assert found == {name: wanted[name] for name in found}
        assert "authorization" in found


def test_keys_do_not_show_in_tracebacks() -> None:
    assert "secret" not in repr(Keys("access", "secret", "token"))
