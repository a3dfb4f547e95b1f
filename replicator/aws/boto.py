"""boto3 as a wire: it signs, connects and finds credentials; request bodies and answers pass through it untouched.

Those who make many calls get connections of their own, to where boto3 would go, with the keys that it would use.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

import boto3
import orjson
import urllib3.exceptions
from botocore import xform_name
from botocore.awsrequest import AWSResponse
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    SSOError,
    TokenRetrievalError,
)
from botocore.httpsession import where
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from replicator import __version__
from replicator.aws.client import Call, Calls, require_whole
from replicator.aws.endpoint import Endpoint, require_safe
from replicator.aws.errors import UNNAMED, AwsError, failure, refusal, without_login
from replicator.aws.http_client import HttpClient, Route
from replicator.aws.sigv4 import Keys
from replicator.aws.threaded import Threads
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, TransientError
from replicator.response_limits import WHOLE, body_of


class Access(Protocol):
    """What a config says about reaching an account; see ``config_access``."""

    @property
    def region(self) -> str | None: ...
    @property
    def profile(self) -> str | None: ...
    @property
    def role_arn(self) -> str | None: ...
    @property
    def external_id(self) -> str | None: ...
    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def insecure(self) -> bool: ...
    @property
    def account_id_endpoint_mode(self) -> str | None: ...
    @property
    def timeout(self) -> float: ...


_STREAMS = frozenset({"DescribeStream", "GetShardIterator", "GetRecords", "ListStreams"})
_DETAILS = ("CancellationReasons", "Item")  # what an error says besides
_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, SSOError, TokenRetrievalError)  # somebody has to log in


class Boto:
    """``Client`` over boto3. Nothing is retried here: readers and the driver do that, where it can be seen."""

    def __init__(self, dynamodb: Any, streams: Any, session: Any = None, timeout: float = 60.0) -> None:
        self._session = session
        self._timeout = timeout
        self._routes: dict[tuple[str, str | None], Route] = {}
        self._clients = {"dynamodb": dynamodb, "dynamodbstreams": streams}
        self._body = threading.local()
        for client in self._clients.values():
            client.meta.events.register("before-call", self._put_body)
            client.meta.events.register("before-parse", self._keep_body)
            client.meta.events.register("before-send", partial(self._sent, client._endpoint.http_session))

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        self._body.request = orjson.dumps(request)
        return self._made(operation, request)

    def calls(self) -> Calls:
        """Many calls under way without threads; on threads where a proxy wants TLS for itself, too."""
        proxies = (get_environ_proxies(client.meta.endpoint_url) for client in self._clients.values())
        if any(urlsplit(proxy).scheme == "https" for found in proxies for proxy in found.values()):
            return Threads(self)
        return HttpClient(self.route, self.keys, self._timeout)

    def route(self, call: Call) -> Route:
        """Where boto3 sends such a call: it makes one, which is kept from leaving. Errors as those of ``call``."""
        named = (call.operation, call.request.get("StreamArn") or call.request.get("TableName"))
        route = self._routes.get(named)
        if route is None:
            route = self._routes[named] = self._found(call)
        return route

    def _found(self, call: Call) -> Route:
        self._body.request, self._body.kept = b"{}", []
        try:
            self._made(call.operation, call.request)
            (request,) = self._body.kept
        finally:
            self._body.kept = None
        parts = urlsplit(request.url)
        *_, region, service, _ = _header(request, "Authorization").partition(",")[0].split("/")
        url = f"{parts.scheme}://{parts.netloc}{parts.path if parts.path != '/' else ''}"
        proxy = get_environ_proxies(url).get(parts.scheme)
        return Route(Endpoint(url, region, self._authorities(), proxy), _header(request, "X-Amz-Target"), service)

    def _made(self, operation: str, request: Mapping[str, Any]) -> bytes:
        client = self._clients["dynamodbstreams" if operation in _STREAMS else "dynamodb"]
        # Endpoint rules look at these parameters; the body that is sent is the one above.
        routed = {k: request[k] for k in ("TableName", "StreamArn") if k in request}
        if "RequestItems" in request:  # of which they look at the tables' names
            routed["RequestItems"] = {table: {} for table in request["RequestItems"]}
        if "TransactItems" in request:
            routed["TransactItems"] = [_named(action) for action in request["TransactItems"]]
        try:
            answer = getattr(client, xform_name(operation))(**routed)
        except ClientError as e:
            raise _aws_error(e) from e
        except _CREDENTIALS as e:
            raise AwsError("NoCredentials", without_login(str(e)), 0) from e
        except BotoCoreError as e:
            raise AwsError(type(e).__name__, _words(e), 0) from e
        body: bytes = answer["body"]
        return body

    @property
    def server(self) -> str:
        """Host and port of DynamoDB for people."""
        return urlsplit(str(self._clients["dynamodb"].meta.endpoint_url)).netloc.rpartition("@")[2]

    @property
    def region(self) -> str:
        return str(self._clients["dynamodb"].meta.region_name)

    def keys(self) -> Keys:
        """The credentials as they are now, renewed if need be. NotPermitted without, TransientError if not just now."""
        try:
            found = self._session.get_credentials()
            frozen = None if found is None else found.get_frozen_credentials()
        except ClientError as e:
            raise failure(_aws_error(e), "sts:AssumeRole", "credentials") from e
        except _CREDENTIALS as e:
            raise _without_credentials(without_login(str(e))) from e
        except BotoCoreError as e:
            raise TransientError(f"credentials cannot be renewed: {_words(e)}") from e
        if frozen is None:
            raise _without_credentials("Unable to locate credentials")
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _authorities(self) -> str:
        """The file of certificates that botocore trusts."""
        configured = self._session._session.get_config_variable("ca_bundle")
        return str(configured or where())

    def _put_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body.request

    def _sent(self, session: Any, request: Any, **_: Any) -> AWSResponse:
        """The response to a request, read within limits that botocore does not have; nothing if it is only kept."""
        kept = getattr(self._body, "kept", None)
        if kept is not None:
            kept.append(request)
            return AWSResponse(request.url, 200, {}, _Body())
        request.stream_output = True
        response = session.send(request)
        try:
            body = body_of(response.raw, response.headers.get("Content-Encoding"), WHOLE * self._timeout)
        except urllib3.exceptions.ReadTimeoutError as e:
            raise ReadTimeoutError(endpoint_url=request.url, error=e) from e
        except (urllib3.exceptions.HTTPError, OSError) as e:
            raise HTTPClientError(error=e) from e
        return AWSResponse(request.url, response.status_code, response.headers, _Body(body))

    def _keep_body(self, response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] <= 300:
            require_whole(response_dict["headers"], response_dict["body"])
            customized_response_dict["body"] = response_dict["body"]
            response_dict["body"] = b"{}"
        elif refusal(response_dict["body"], response_dict["status_code"]).code == UNNAMED:  # botocore would stumble
            response_dict["body"] = b"{}"


class _Body:
    """A body as botocore reads it."""

    def __init__(self, body: bytes = b"") -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


def _header(request: Any, name: str) -> str:
    found = request.headers[name]
    return found.decode() if isinstance(found, bytes) else str(found)


def _named(action: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction's action with nothing but its table's name."""
    return {kind: {"TableName": given["TableName"]} for kind, given in action.items()}


def _aws_error(error: ClientError) -> AwsError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    found = error.response.get("Error", {})
    code, message = found.get("Code", ""), found.get("Message", "")
    if not code or code == str(status):  # botocore's word for an answer that names no error
        return AwsError(UNNAMED, f"HTTP status {status}; the response is not from DynamoDB", status)
    details = {name: error.response[name] for name in _DETAILS if name in error.response}
    return AwsError(code, message, status, details)


def _words(error: BotoCoreError) -> str:
    if "Failed to parse" in str(error):  # and what was taken for a port may be a password
        return "a proxy or endpoint address in the environment is not a valid URL"
    return without_login(str(error))


def _without_credentials(reason: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"no AWS credentials ({reason})", advice="Provide them (AWS_PROFILE, profile or an instance role)"
    )


def connect(access: Access, place: str = "source") -> Boto:
    """The wire to DynamoDB as ``access`` reaches it: with its own profile, role, region and endpoint.

    ``place``: the part of the config that ``access`` is, for messages.
    """
    try:
        return _connected(access, place)
    except ProfileNotFound as e:
        raise ConfigError(f"{place}.profile: {e}. Check the profiles in ~/.aws/config") from e
    except BotoCoreError as e:
        raise ConfigError(
            f"{place}: {_words(e).rstrip('.')}. Check {place}.region, {place}.profile and ~/.aws/config"
        ) from e
    except ValueError as e:  # botocore's, which quotes the address
        raise ConfigError(f"{place}: an endpoint in the environment or ~/.aws/config is not a valid URL") from e


def _connected(access: Access, place: str) -> Boto:
    session = boto3.Session(profile_name=access.profile, region_name=access.region)
    if access.role_arn is not None:
        session = _assumed(session, access.role_arn, access.external_id, place)
    if session.region_name is None and access.region is None:
        raise ConfigError(f"{place}.region is missing, and neither AWS_REGION nor the profile sets one")
    config = BotoConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        parameter_validation=False,
        connect_timeout=min(5.0, access.timeout),
        read_timeout=access.timeout,
        max_pool_connections=40,
        tcp_keepalive=True,
        account_id_endpoint_mode=access.account_id_endpoint_mode,
        user_agent=f"replicator/{__version__}",  # botocore makes its own anew for each call: a third of its work
    )
    named = {"region_name": access.region, "endpoint_url": access.endpoint_url, "config": config}
    dynamodb, streams = (session.client(service, **named) for service in ("dynamodb", "dynamodbstreams"))
    for url in (dynamodb.meta.endpoint_url, streams.meta.endpoint_url):
        require_safe(url, place, insecure=access.insecure)
    return Boto(dynamodb, streams, session, access.timeout)


def _assumed(session: Any, role_arn: str, external_id: str | None, place: str) -> Any:
    """A session whose credentials come from the role and are renewed before they expire."""
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.session import Session as BotoSession

    given = session.get_credentials()
    if given is None:
        raise NotAuthenticated(
            f"no AWS credentials to assume {role_arn}",
            "sts:AssumeRole",
            role_arn,
            f"Provide them (AWS_PROFILE, {place}.profile or an instance role)",
        )
    extra = {"RoleSessionName": "replicator"} | ({"ExternalId": external_id} if external_id else {})
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=session._session.create_client,
        source_credentials=given,
        role_arn=role_arn,
        extra_args=extra,
    )
    inner = BotoSession()
    inner._credentials = DeferredRefreshableCredentials(
        partial(_fetched, fetcher, role_arn, place), method="assume-role"
    )
    inner.set_config_variable("region", session.region_name)
    return boto3.Session(botocore_session=inner)


def _fetched(fetcher: Any, role_arn: str, place: str) -> Any:
    """Credentials of the role; a refusal is one to assume it, whatever call it was for."""
    try:
        return fetcher.fetch_credentials()
    except ClientError as e:
        error = failure(_aws_error(e), "sts:AssumeRole", role_arn, place=place)
        if isinstance(error, NotPermitted):
            raise error from e
        raise
    except ResponseParserError as e:  # which quotes the answer whole
        raise TransientError(f"the response to sts:AssumeRole on {role_arn} is not AWS XML") from e
