"""botocore as a ``Client``: it signs, connects and finds credentials; request and response bodies are not parsed.

For many concurrent calls, ``Boto.calls`` returns our own HTTP client, with botocore's endpoints and credentials. boto3
would add nothing but a tenth of a second's imports to each start.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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
from botocore.loaders import Loader
from botocore.parsers import ResponseParserError
from botocore.session import Session as BotoSession
from botocore.utils import get_environ_proxies

from replicator import __version__
from replicator.aws.client import Call, Calls, require_whole
from replicator.aws.endpoint import Endpoint, require_safe
from replicator.aws.errors import UNNAMED, AwsError, failure, refusal, without_login
from replicator.aws.http_client import HttpClient, Route
from replicator.aws.objects import Objects
from replicator.aws.sigv4 import Keys
from replicator.aws.threaded import Divided, Threads
from replicator.errors import ConfigError, NotAuthenticated, NotPermitted, TransientError
from replicator.response_limits import WHOLE, body_of, bounded

if TYPE_CHECKING:
    from replicator.options import Access


_OBJECTS = frozenset({"GetObject", "CreateMultipartUpload", "AbortMultipartUpload"})
_STREAMS = frozenset({"DescribeStream", "GetShardIterator", "GetRecords", "ListStreams"})
_DETAILS = ("CancellationReasons", "Item")  # further members of an error response
_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    TokenRetrievalError,
)  # need a login or a change of configuration


class Boto:
    """``Client`` over botocore. Retries nothing: readers and the driver do, where it is visible."""

    def __init__(
        self, dynamodb: Any, streams: Any, session: Any = None, timeout: float = 60.0, access: Access | None = None
    ) -> None:
        self._session = session
        self._access = access
        self._s3: Any = None
        self._creating = threading.Lock()
        self._timeout = timeout
        self._routes: dict[tuple[str, str | None], Route] = {}
        self._clients = {"dynamodb": dynamodb, "dynamodbstreams": streams}
        self._body = threading.local()
        for client in self._clients.values():
            _bound(client, timeout)
            client.meta.events.register("before-call", self._replace_body)
            client.meta.events.register("before-parse", self._keep_body)
            client.meta.events.register("before-send", partial(self._exchange, client._endpoint.http_session))

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        if operation in _OBJECTS:
            return self._of_objects(operation, request)
        self._body.request = orjson.dumps(request)
        return self._send(operation, request)

    def calls(self) -> Calls:
        """Concurrent calls: without threads, or with them where a proxy itself requires TLS, and for those to S3."""
        proxies = (get_environ_proxies(client.meta.endpoint_url) for client in self._clients.values())
        if any(urlsplit(proxy).scheme == "https" for by_scheme in proxies for proxy in by_scheme.values()):
            return Threads(self)
        return Divided(HttpClient(self.route, self.keys, self._timeout), self, _OBJECTS)

    def route(self, call: Call) -> Route:
        """Where botocore would send this call, found by making one and not sending it. Raises what ``call`` raises."""
        key = (call.operation, call.request.get("StreamArn") or call.request.get("TableName"))
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = self._find_route(call)
        return route

    def _find_route(self, call: Call) -> Route:
        self._body.request, self._body.captured = b"{}", []
        try:
            self._send(call.operation, call.request)
            (request,) = self._body.captured
        finally:
            self._body.captured = None
        parts = urlsplit(request.url)
        *_, region, service, _ = _header(request, "Authorization").partition(",")[0].split("/")
        url = f"{parts.scheme}://{parts.netloc}{parts.path if parts.path != '/' else ''}"
        proxy = get_environ_proxies(url).get(parts.scheme)
        return Route(Endpoint(url, region, self._authorities(), proxy), _header(request, "X-Amz-Target"), service)

    def _send(self, operation: str, request: Mapping[str, Any]) -> bytes:
        client = self._clients["dynamodbstreams" if operation in _STREAMS else "dynamodb"]
        # Endpoint rules read these parameters; the body that is sent is the one in self._body.
        routed = {k: request[k] for k in ("TableName", "StreamArn") if k in request}
        if "RequestItems" in request:  # of which they read the table names
            routed["RequestItems"] = {table: {} for table in request["RequestItems"]}
        if "TransactItems" in request:
            routed["TransactItems"] = [_only_table(action) for action in request["TransactItems"]]
        with _aws_errors("DynamoDB"):
            response = getattr(client, xform_name(operation))(**routed)
        body: bytes = response["body"]
        return body

    def _of_objects(self, operation: str, request: Mapping[str, Any]) -> bytes:
        """A call to S3: the object itself, or an empty body with the upload's id as JSON."""
        with _aws_errors("S3"):
            response = getattr(self._objects(), xform_name(operation))(**request)
            body: bytes = response["Body"].read() if operation == "GetObject" else b""
        return body if operation == "GetObject" else orjson.dumps({"UploadId": response.get("UploadId")})

    def _objects(self) -> Any:
        """The client for S3, created when it is first needed. Its endpoint is AWS's, or that of AWS_ENDPOINT_URL_S3."""
        with self._creating:
            if self._s3 is None:
                assert self._access is not None
                self._s3 = self._session.create_client("s3", region_name=self.region, config=_config(self._access))
                require_safe(self._s3.meta.endpoint_url, "source", insecure=self._access.insecure)
            return self._s3

    @contextmanager
    def objects_in(self, bucket: str, endpoint: str | None) -> Iterator[Objects]:
        """The objects of a bucket of S3, or of another service at ``endpoint``. Raises AwsError."""
        assert self._access is not None
        config = _config(self._access)
        if endpoint is not None:
            config = config.merge(BotoConfig(s3={"addressing_style": "path"}))
        client = self._session.create_client("s3", region_name=self.region, endpoint_url=endpoint, config=config)
        try:
            with _aws_errors("S3"):
                yield Objects(client, bucket)
        finally:
            client.close()

    @property
    def server(self) -> str:
        """DynamoDB's host and port, for messages."""
        return urlsplit(str(self._clients["dynamodb"].meta.endpoint_url)).netloc.rpartition("@")[2]

    @property
    def region(self) -> str:
        return str(self._clients["dynamodb"].meta.region_name)

    def keys(self) -> Keys:
        """The credentials, renewed if necessary. NotAuthenticated without any, TransientError if renewal fails."""
        try:
            credentials = self._session.get_credentials()
            frozen = None if credentials is None else credentials.get_frozen_credentials()
        except ClientError as e:
            raise failure(_aws_error(e), "sts:AssumeRole", "credentials") from e
        except _CREDENTIALS as e:
            raise _no_credentials(without_login(str(e))) from e
        except BotoCoreError as e:
            raise TransientError(f"credentials cannot be renewed: {_message(e)}") from e
        if frozen is None:
            raise _no_credentials("Unable to locate credentials")
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def close(self) -> None:
        for client in (*self._clients.values(), *filter(None, [self._s3])):
            client.close()

    def _authorities(self) -> str:
        """Path of the CA bundle that botocore uses."""
        configured = self._session.get_config_variable("ca_bundle")
        return str(configured or where())

    def _replace_body(self, params: dict[str, Any], **_: Any) -> None:
        params["body"] = self._body.request

    def _exchange(self, session: Any, request: Any, **_: Any) -> AWSResponse:
        """Send a request and read the response within limits that botocore lacks; a captured request is not sent."""
        captured = getattr(self._body, "captured", None)
        if captured is not None:
            captured.append(request)
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
        elif (
            refusal(response_dict["body"], response_dict["status_code"]).code == UNNAMED
        ):  # botocore's parser would fail on it
            response_dict["body"] = b"{}"


class _Body:
    """A response body with the interface that botocore reads."""

    def __init__(self, body: bytes = b"") -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        yield self._body


def _header(request: Any, name: str) -> str:
    value = request.headers[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _only_table(action: Mapping[str, Any]) -> dict[str, Any]:
    """A transaction's action reduced to its table name."""
    return {kind: {"TableName": parameters["TableName"]} for kind, parameters in action.items()}


def ask(client: Any, service: str, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The response of botocore's ``client`` for a service, parsed."""
    with _aws_errors(service):
        response: dict[str, Any] = getattr(client, xform_name(operation))(**request)
    return response


@contextmanager
def _aws_errors(service: str) -> Iterator[None]:
    """AwsError instead of botocore's exceptions."""
    try:
        yield
    except ResponseParserError as e:  # its message quotes the whole response
        raise AwsError(UNNAMED, f"the response is not from {service}", 0) from e
    except ClientError as e:
        raise _aws_error(e) from e
    except _CREDENTIALS as e:
        raise AwsError("NoCredentials", without_login(str(e)), 0) from e
    except BotoCoreError as e:
        raise AwsError(type(e).__name__, _message(e), 0) from e


def _aws_error(error: ClientError) -> AwsError:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    named = error.response.get("Error", {})
    code, message = named.get("Code", ""), named.get("Message", "")
    if not code or code == str(status):  # what botocore puts there if the response names no error
        return AwsError(UNNAMED, f"HTTP status {status}; the response is not from DynamoDB", status)
    details = {name: error.response[name] for name in _DETAILS if name in error.response}
    return AwsError(code, message, status, details)


def _message(error: BotoCoreError) -> str:
    if "Failed to parse" in str(error):  # the quoted port may be part of a password
        return "a proxy or endpoint address in the environment is not a valid URL"
    return without_login(str(error))


def _no_credentials(reason: str) -> NotAuthenticated:
    return NotAuthenticated(
        f"no AWS credentials ({reason})", advice="Provide them (AWS_PROFILE, profile or an instance role)"
    )


def connect(access: Access, place: str = "source") -> Boto:
    """The client for an account. ConfigError or NotAuthenticated if ``access`` cannot work.

    ``place``: the config section that ``access`` comes from, for messages.
    """
    with _config_errors(access, place):
        return _connected(access, place)


def connect_lambda(access: Access, place: str = "source") -> Any:
    """botocore's client for AWS Lambda, in the account that the credentials themselves are of: no role is assumed.

    Its endpoint is AWS's, or that of AWS_ENDPOINT_URL_LAMBDA. Raises what ``connect`` raises.
    """
    return _own_client("lambda", access, place)


def connect_schedules(access: Access, place: str = "source") -> tuple[Any, Any]:
    """The same for the rules of EventBridge, and for EventBridge Scheduler."""
    return _own_client("events", access, place), _own_client("scheduler", access, place)


def _own_client(service: str, access: Access, place: str) -> Any:
    own = access.model_copy(update={"role_arn": None, "external_id": None})
    with _config_errors(access, place):
        client = _session(own, place).create_client(service, region_name=own.region, config=_config(own))
        _bound(client, own.timeout)
        require_safe(client.meta.endpoint_url, place, insecure=own.insecure)
        return client


@contextmanager
def _config_errors(access: Access, place: str) -> Iterator[None]:
    try:
        yield
    except ProfileNotFound as e:
        named_by = "AWS_PROFILE" if access.profile is None else f"{place}.profile"
        raise ConfigError(f"{named_by}: {e}. Check the profiles in ~/.aws/config") from e
    except BotoCoreError as e:
        raise ConfigError(
            f"{place}: {_message(e).rstrip('.')}. Check {place}.region, {place}.profile and ~/.aws/config"
        ) from e
    except ValueError as e:  # botocore's message quotes the address
        raise ConfigError(f"{place}: an endpoint in the environment or ~/.aws/config is not a valid URL") from e


def region_and_partition(access: Access) -> tuple[str | None, str]:
    """The region that calls would go to, None if nothing names one, and its partition (``aws``). Contacts no server."""
    try:
        region = access.region or _botocore_session(access.profile).get_config_variable("region")
    except BotoCoreError:  # a profile of another machine
        region = None
    try:
        return region, _botocore_session().get_partition_for_region(region or "us-east-1")
    except BotoCoreError:  # no region that botocore knows
        return region, "aws"


def _session(access: Access, place: str) -> Any:
    session = _botocore_session(access.profile)
    if access.region is not None:
        session.set_config_variable("region", access.region)
    if access.role_arn is not None:
        session = _assumed(session, access, access.role_arn, place)
    if session.get_config_variable("region") is None:
        raise ConfigError(
            f"{place}.region is missing, and neither AWS_REGION nor the profile sets one. Set {place}.region, such as "
            "eu-west-1, or AWS_REGION"
        )
    return session


def _connected(access: Access, place: str) -> Boto:
    session = _session(access, place)
    common = {"region_name": access.region, "endpoint_url": access.endpoint_url, "config": _config(access)}
    dynamodb, streams = (session.create_client(service, **common) for service in ("dynamodb", "dynamodbstreams"))
    for url in (dynamodb.meta.endpoint_url, streams.meta.endpoint_url):
        require_safe(url, place, insecure=access.insecure)
    return Boto(dynamodb, streams, session, access.timeout, access)


def _bound(client: Any, timeout: float) -> None:
    """Let each exchange of a botocore client take at most WHOLE times ``timeout``, however its response trickles.

    Not for S3, whose objects are read for as long as they take.
    """
    pools = client._endpoint.http_session._pool_classes_by_scheme
    for scheme, pool in pools.items():
        pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": bounded(pool.ConnectionCls, WHOLE * timeout)})


def _config(access: Access) -> BotoConfig:
    return BotoConfig(
        retries={"mode": "standard", "total_max_attempts": 1},
        parameter_validation=False,
        connect_timeout=min(5.0, access.timeout),
        read_timeout=access.timeout,
        max_pool_connections=40,
        tcp_keepalive=True,
        account_id_endpoint_mode=access.account_id_endpoint_mode,
        user_agent=f"replicator/{__version__}",  # else botocore builds its own for each call: a third of its time
    )


class _Every(list[str]):
    """The names of all services, for those who ask whether one is among them: all that we ask for are."""

    def __contains__(self, name: object) -> bool:
        return True


class _Models(Loader):  # type: ignore[misc]  # botocore has no types
    """Finds the models of a service without a look into the folders of four hundred others."""

    def list_available_services(self, type_name: str) -> list[str]:
        return _Every()


@cache
def _models() -> Loader:
    paths = os.environ.get("AWS_DATA_PATH", "").split(os.pathsep)
    return _Models(extra_search_paths=[os.path.expanduser(os.path.expandvars(path)) for path in paths if path])


_REGION = {"region": ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)}
"""botocore's variable, which reads AWS_REGION, too, as AWS's other SDKs do."""


def _botocore_session(profile: str | None = None) -> BotoSession:
    """A session that shares the models of AWS's services with all others: each copy of the models takes 11 MB."""
    session = BotoSession(_REGION, profile=profile)
    session.register_component("data_loader", _models())
    return session


LONGEST_STS = 10.0  # seconds for its response: by default, botocore waits a minute, five times


def _assumed(session: Any, access: Access, role_arn: str, place: str) -> Any:
    """A session with the role's credentials, renewed before they expire."""
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

    own = session.get_credentials()
    if own is None:
        raise NotAuthenticated(
            f"no AWS credentials to assume {role_arn}",
            "sts:AssumeRole",
            role_arn,
            f"Provide them (AWS_PROFILE, {place}.profile or an instance role)",
        )
    extra = {"RoleSessionName": "replicator"} | ({"ExternalId": access.external_id} if access.external_id else {})
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=partial(_sts_client, session, access),
        source_credentials=own,
        role_arn=role_arn,
        extra_args=extra,
    )
    inner = _botocore_session()
    inner._credentials = DeferredRefreshableCredentials(
        partial(_fetch_role, fetcher, role_arn, place), method="assume-role"
    )
    inner.set_config_variable("region", session.get_config_variable("region"))
    return inner


def _fetch_role(fetcher: Any, role_arn: str, place: str) -> Any:
    """The role's credentials. A refusal is reported as one of sts:AssumeRole, not of the call that needed them."""
    try:
        return fetcher.fetch_credentials()
    except ClientError as e:
        error = failure(_aws_error(e), "sts:AssumeRole", role_arn, place=place)
        if isinstance(error, NotPermitted):
            raise error from e
        raise
    except ResponseParserError as e:  # its message quotes the whole response
        raise TransientError(f"the response to sts:AssumeRole on {role_arn} is not AWS XML") from e
    except _CREDENTIALS:  # those that would assume the role
        raise
    except BotoCoreError as e:
        raise TransientError(
            f"sts:AssumeRole on {role_arn}: {_message(e).rstrip('.')}. In a subnet without internet access, STS needs "
            "a VPC endpoint of its own"
        ) from e


def _sts_client(session: Any, access: Access, service: str, **given: Any) -> Any:
    """As for other calls, which are retried where that is visible, but a response is short."""
    longest = min(LONGEST_STS, access.timeout)
    config = _config(access).merge(BotoConfig(read_timeout=longest))
    client = session.create_client(service, config=config, **given)
    _bound(client, longest)
    return client
