"""Where tables are, and what the client needs to reach them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from connectors.delta.errors import failure
from connectors.delta.options import S3, DeltaOptions
from replicator.aws.boto import Boto, connect
from replicator.aws.endpoint import require_safe
from replicator.aws.errors import AwsError
from replicator.aws.objects import Objects

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # in the environment; the first one counts
_RETRIES = "2"  # of a request; the engine retries everything else, where it is visible


@dataclass(slots=True)
class Storage:
    """The place of a target's tables. ``options`` are those of the client, with the credentials of the moment."""

    config: DeltaOptions
    _aws: Boto | None = field(default=None)

    def place(self, *names: str) -> str:
        return "/".join([self.config.path.rstrip("/"), *names])

    def options(self) -> dict[str, str]:
        """Empty for a folder. NotAuthenticated without credentials, ConfigError without a region."""
        if not self.config.in_s3:
            return {}
        aws = self._connected()
        keys = aws.keys()
        found = {
            "aws_access_key_id": keys.access,
            "aws_secret_access_key": keys.secret,
            "aws_region": aws.region,
            "aws_conditional_put": "etag",  # of two writers of one commit, exactly one succeeds
            "max_retries": _RETRIES,
            "retry_timeout": f"{self.config.timeout:.0f}s",
            "timeout": f"{self.config.timeout:.0f}s",
            "connect_timeout": f"{min(5.0, self.config.timeout):.0f}s",
        }
        if keys.token is not None:
            found["aws_session_token"] = keys.token
        if (endpoint := self.endpoint()) is not None:
            found |= {"aws_endpoint_url_s3": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
        return found

    def endpoint(self) -> str | None:
        """Of another service, or of a stand-in for S3; None for S3 itself."""
        given = self.config.endpoint_url or next((os.environ[n] for n in _ENDPOINTS if os.environ.get(n)), None)
        if given is not None:
            require_safe(given, "target", insecure=self.config.insecure)
        return given

    @contextmanager
    def objects(self, place: str) -> Iterator[tuple[Objects, str]]:
        """The objects of S3, and the prefix there of what is in a folder. Raises our errors, as the client's do."""
        bucket, _, prefix = place.removeprefix(S3).partition("/")
        try:
            with self._connected().objects_in(bucket, self.endpoint()) as objects:
                yield objects, f"{prefix}/"
        except AwsError as e:
            raise failure(str(e), place) from e

    def _connected(self) -> Boto:
        if self._aws is None:
            self._aws = connect(self.config, "target")
        return self._aws

    def close(self) -> None:
        aws, self._aws = self._aws, None
        if aws is not None:
            aws.close()
