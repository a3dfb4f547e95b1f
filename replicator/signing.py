"""Requests to AWS services that boto3 has no client for, signed with the credentials it would use (SigV4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, ProfileNotFound

from replicator.errors import ConfigError, NotPermitted

Sign = Callable[[str, str, bytes | None, Mapping[str, str]], Mapping[str, str]]


def signer(session: boto3.Session, service: str) -> Sign:
    """Signs a request, given as method, URL, body and headers; gives the headers to add.

    NotPermitted without credentials; they are asked for each time, so that temporary ones are renewed.
    """
    region = session.region_name
    if region is None:
        raise ConfigError("target.aws.region is missing, and neither AWS_REGION nor the profile names one")

    def sign(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Mapping[str, str]:
        credentials = session.get_credentials()
        if credentials is None:
            raise NotPermitted(
                "there are no AWS credentials to sign requests with. "
                "Give some (AWS_PROFILE, target.aws.profile, a role of the machine)",
                action=service,
            )
        request = AWSRequest(method, url, data=body or b"", headers=dict(headers))
        SigV4Auth(credentials.get_frozen_credentials(), service, region).add_auth(request)
        return {name: value for name, value in request.headers.items() if name not in headers}

    return sign


def session(region: str | None, profile: str | None) -> boto3.Session:
    try:
        return boto3.Session(region_name=region, profile_name=profile)
    except ProfileNotFound as e:
        raise ConfigError(f"target.aws.profile: {e}. Look at the profiles in ~/.aws/config") from e
    except BotoCoreError as e:
        raise ConfigError(f"target.aws: {str(e).rstrip('.')}") from e
