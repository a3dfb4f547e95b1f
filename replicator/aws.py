"""boto3 as a wire: it signs, connects and finds credentials; request bodies and answers pass through it untouched."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import boto3
import orjson
from botocore import xform_name
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from replicator import __version__
from replicator.errors import ConfigError, NotPermitted
from replicator.wire import UNNAMED, WireError, failure

if TYPE_CHECKING:
    from replicator.config import Source

_STREAMS = frozenset({"DescribeStream", "GetShardIterator", "GetRecords", "ListStreams"})
_DETAILS = ("CancellationReasons", "Item")  # what an error says besides
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, SSOError, TokenRetrievalError)  # somebody has to log in


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
        if "TransactItems" in request:
            routed["TransactItems"] = [_named(action) for action in request["TransactItems"]]
        try:
            answer = getattr(client, xform_name(operation))(**routed)
        except ClientError as e:
            raise _wire_error(e) from e
        except _CREDENTIALS as e:
            raise WireError("NoCredentials", str(e), 0) from e
        except BotoCoreError as e:
            raise WireError(type(e).__name__, str(e), 0) from e
        body: bytes = answer["body"]
        return body

    def _put_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body.request

    def _keep_body(self, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] <= 300:
            customized_response_dict["body"] = response_dict["body"]
            response_dict["body"] = b"{}"
        elif not response_dict["body"].startswith(b"{"):  # a proxy's page, over which botocore would stumble
            response_dict["body"] = b"{}"


def _named(action: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction's action with nothing but its table's name."""
    return {kind: {"TableName": given["TableName"]} for kind, given in action.items()}


def _wire_error(error: ClientError) -> WireError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    found = error.response.get("Error", {})
    code, message = found.get("Code", ""), found.get("Message", "")
    if not code or code == str(status):  # botocore's word for an answer that names no error
        return WireError(UNNAMED, f"HTTP status {status} from something that is not DynamoDB", status)
    details = {name: error.response[name] for name in _DETAILS if name in error.response}
    return WireError(code, message, status, details)


def connect(source: Source) -> Boto:
    """The wire to the table that ``source`` names, with its own profile, role, region and endpoint."""
    try:
        return _connected(source)
    except ProfileNotFound as e:
        raise ConfigError(f"source.profile: {e}. Look at the profiles in ~/.aws/config") from e
    except BotoCoreError as e:
        raise ConfigError(
            f"source: {str(e).rstrip('.')}. Look at source.region, source.profile and ~/.aws/config"
        ) from e


def _connected(source: Source) -> Boto:
    session = boto3.Session(profile_name=source.profile, region_name=source.region)
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
        user_agent=f"replicator/{__version__}",  # botocore makes its own anew for each call: a third of its work
    )
    named = {"region_name": source.region, "endpoint_url": source.endpoint_url, "config": config}
    return Boto(session.client("dynamodb", **named), session.client("dynamodbstreams", **named))


def _assumed(session: Any, role_arn: str, external_id: str | None) -> Any:
    """A session whose credentials come from the role and are renewed before they expire."""
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.session import Session as BotoSession

    given = session.get_credentials()
    if given is None:
        raise NotPermitted(
            f"there are no AWS credentials to assume {role_arn} with. "
            "Give some (AWS_PROFILE, source.profile, a role of the machine)",
            "sts:AssumeRole",
            role_arn,
        )
    extra = {"RoleSessionName": "replicator"} | ({"ExternalId": external_id} if external_id else {})
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=session._session.create_client,
        source_credentials=given,
        role_arn=role_arn,
        extra_args=extra,
    )
    inner = BotoSession()
    inner._credentials = DeferredRefreshableCredentials(partial(_fetched, fetcher, role_arn), method="assume-role")
    inner.set_config_variable("region", session.region_name)
    return boto3.Session(botocore_session=inner)


def _fetched(fetcher: Any, role_arn: str) -> Any:
    """Credentials of the role; a refusal is one to assume it, whatever call it was for."""
    try:
        return fetcher.fetch_credentials()
    except ClientError as e:
        error = failure(_wire_error(e), "sts:AssumeRole", role_arn)
        if isinstance(error, NotPermitted):
            raise error from e
        raise
