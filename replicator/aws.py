"""boto3 as a wire: it signs, connects and finds credentials; request bodies and answers pass through it untouched."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import boto3
import orjson
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from botocore.exceptions import ProfileNotFound as BotoProfileNotFound

from replicator.errors import ConfigError
from replicator.wire import WireError

if TYPE_CHECKING:
    from replicator.config import Source

_STREAMS = frozenset({"DescribeStream", "GetShardIterator", "GetRecords", "ListStreams"})
_METHODS = {
    "DescribeTable": "describe_table",
    "DescribeTimeToLive": "describe_time_to_live",
    "Scan": "scan",
    "GetItem": "get_item",
    "BatchGetItem": "batch_get_item",
    "DescribeStream": "describe_stream",
    "GetShardIterator": "get_shard_iterator",
    "GetRecords": "get_records",
}


class Boto:
    """``Wire`` over boto3. Nothing is retried here: readers and the driver do that, where it can be seen."""

    def __init__(self, dynamodb: Any, streams: Any) -> None:
        self._clients = {"dynamodb": dynamodb, "dynamodbstreams": streams}
        self._body = threading.local()
        for client in self._clients.values():
            client.meta.events.register("before-call", self._put_body)
            client.meta.events.register("before-parse", self._keep_body)

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        client = self._clients["dynamodbstreams" if operation in _STREAMS else "dynamodb"]
        self._body.request = orjson.dumps(request)
        # Endpoint rules look at these parameters; the body that is sent is the one above.
        routed = {k: request[k] for k in ("TableName", "StreamArn") if k in request}
        if "RequestItems" in request:  # of which they look at the tables' names
            routed["RequestItems"] = {table: {} for table in request["RequestItems"]}
        try:
            answer = getattr(client, _METHODS[operation])(**routed)
        except ClientError as e:
            error = e.response.get("Error", {})
            status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            raise WireError(error.get("Code", "Unknown"), error.get("Message", str(e)), status) from e
        except (NoCredentialsError, PartialCredentialsError) as e:
            raise WireError("NoCredentials", str(e), 0) from e
        except BotoCoreError as e:
            raise WireError(type(e).__name__, str(e), 0) from e
        body: bytes = answer["body"]
        return body

    def _put_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body.request

    def _keep_body(self, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] == 200:
            customized_response_dict["body"] = response_dict["body"]
            response_dict["body"] = b"{}"


def connect(source: Source) -> Boto:
    """The wire to the table that ``source`` names, with its own profile, role, region and endpoint."""
    try:
        session = boto3.Session(profile_name=source.profile, region_name=source.region)
    except BotoProfileNotFound as e:
        raise ConfigError(f"source.profile: {e}. Look at the profiles in ~/.aws/config") from e
    if source.role_arn is not None:
        session = _assumed(session, source.role_arn, source.external_id)
    if session.region_name is None and source.region is None:
        raise ConfigError("source.region is missing, and neither AWS_REGION nor the profile names one")
    config = BotoConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        parameter_validation=False,
        connect_timeout=5,
        read_timeout=20,
        max_pool_connections=40,
        tcp_keepalive=True,
        account_id_endpoint_mode=source.account_id_endpoint_mode,
    )
    named = {"region_name": source.region, "endpoint_url": source.endpoint_url, "config": config}
    return Boto(session.client("dynamodb", **named), session.client("dynamodbstreams", **named))


def _assumed(session: Any, role_arn: str, external_id: str | None) -> Any:
    """A session whose credentials come from the role and are renewed before they expire."""
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.session import Session as BotoSession

    extra = {"RoleSessionName": "replicator"} | ({"ExternalId": external_id} if external_id else {})
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=session._session.create_client,
        source_credentials=session.get_credentials(),
        role_arn=role_arn,
        extra_args=extra,
    )
    inner = BotoSession()
    inner._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, method="assume-role")
    inner.set_config_variable("region", session.region_name)
    return boto3.Session(botocore_session=inner)
