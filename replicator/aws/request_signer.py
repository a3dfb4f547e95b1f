"""Requests to AWS services that boto3 has no client for, signed with the credentials that it would use (SigV4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from replicator.aws.boto import connect
from replicator.options import Access

Sign = Callable[[str, str, bytes | None, Mapping[str, str]], Mapping[str, str]]
"""From (method, URL, body, headers) to the headers that have to be added."""


def signer(access: Access, service: str, place: str) -> Sign:
    """Signs with what ``access`` gives: profile, role, region. ``place``: the part of the config that it is.

    ConfigError without a region. Signing raises NotPermitted without credentials, which are renewed as needed.
    """
    account = connect(access, place)
    region = account.region

    def sign(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        keys = account.keys()
        content = {"x-amz-content-sha256": sha256(body or b"").hexdigest()}  # OpenSearch Serverless asks for it
        request = AWSRequest(method, url, data=body or b"", headers={**headers, **content})
        SigV4Auth(Credentials(keys.access, keys.secret, keys.token), service, region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in headers}

    return sign
