"""Signs requests to AWS services that boto3 has no client for (SigV4), with boto3's credentials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import sha256

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from replicator.aws.boto import connect
from replicator.options import Access

Sign = Callable[[str, str, bytes | None, Mapping[str, str]], Mapping[str, str]]
"""From (method, URL, body, headers) to the headers to add."""


def signer(access: Access, service: str, place: str) -> Sign:
    """A signer with the profile, role and region of ``access``. ``place``: the config section that it comes from.

    ConfigError without a region. Credentials are renewed as needed; signing raises NotPermitted if there are none.
    """
    account = connect(access, place)
    region = account.region

    def sign(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        keys = account.keys()
        content = {"x-amz-content-sha256": sha256(body or b"").hexdigest()}  # required by OpenSearch Serverless
        request = AWSRequest(method, url, data=body or b"", headers={**headers, **content})
        SigV4Auth(Credentials(keys.access, keys.secret, keys.token), service, region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in headers}

    return sign
