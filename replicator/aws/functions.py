"""What AWS Lambda says of a function, and of the event source mappings that invoke it. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from replicator.aws.boto import ask
from replicator.aws.errors import AwsError, failure

GET_FUNCTION, LIST_MAPPINGS = "GetFunctionConfiguration", "ListEventSourceMappings"
UNLIMITED = -1


class Configuration(msgspec.Struct, frozen=True, rename="pascal"):
    """Of a function. ``timeout`` in seconds, ``memory_size`` in MB: AWS' defaults where it says nothing."""

    function_arn: str
    handler: str = ""
    timeout: int = 3
    memory_size: int = 128
    state: str = "Active"
    state_reason: str = ""
    last_update_status: str = "Successful"
    last_update_status_reason: str = ""


class EventSourceMapping(msgspec.Struct, frozen=True, kw_only=True):
    """What delivers a stream to a function, with AWS' names and its defaults where it says nothing."""

    uuid: str = msgspec.field(name="UUID")
    stream_arn: str = msgspec.field(name="EventSourceArn", default="")
    function_arn: str = msgspec.field(name="FunctionArn", default="")
    state: str = msgspec.field(name="State", default="")
    last_result: str | None = msgspec.field(name="LastProcessingResult", default=None)
    starting_position: str | None = msgspec.field(name="StartingPosition", default=None)
    window: int | None = msgspec.field(name="TumblingWindowInSeconds", default=None)
    response_types: Sequence[str] | None = msgspec.field(name="FunctionResponseTypes", default=None)
    factor: int | None = msgspec.field(name="ParallelizationFactor", default=None)
    retries: int | None = msgspec.field(name="MaximumRetryAttempts", default=None)
    record_age: int | None = msgspec.field(name="MaximumRecordAgeInSeconds", default=None)
    bisects: bool | None = msgspec.field(name="BisectBatchOnFunctionError", default=None)
    filter_criteria: dict[str, Any] | None = msgspec.field(name="FilterCriteria", default=None)
    filter_error: dict[str, Any] | None = msgspec.field(name="FilterCriteriaError", default=None)

    @property
    def qualifier(self) -> str:
        """The version or alias of the function that is invoked; "" for the newest code."""
        return ":".join(self.function_arn.split(":")[7:])

    @property
    def patterns(self) -> Sequence[str]:
        """The filters; a record is delivered if it matches one of them."""
        filters = (self.filter_criteria or {}).get("Filters") or ()
        return [str(each.get("Pattern", "")) for each in filters]


class Functions:
    """Of one account and region. ``client``: botocore's, for ``lambda``."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def configuration(self, name: str) -> Configuration | None:
        """The function's; None if there is no such function."""
        try:
            response = self._call(GET_FUNCTION, f"function {name}", FunctionName=name)
        except _Missing:
            return None
        return msgspec.convert(response, Configuration, strict=False)

    def mappings(self, name: str, stream_arn: str | None) -> Sequence[EventSourceMapping]:
        """Those of the function, whatever they read, and those of its versions and aliases that read the stream."""
        found = list(self._listed(FunctionName=name))
        if stream_arn is not None:
            found += (m for m in self._listed(EventSourceArn=stream_arn) if _is_of(m.function_arn, name))
        return list({mapping.uuid: mapping for mapping in found}.values())

    def close(self) -> None:
        self._client.close()

    def _listed(self, **of: str) -> Iterator[EventSourceMapping]:
        while True:
            try:
                response = self._call(LIST_MAPPINGS, "*", **of)
            except _Missing:
                return
            for each in response.get("EventSourceMappings", ()):
                yield msgspec.convert(each, EventSourceMapping, strict=False)
            if not response.get("NextMarker"):
                return
            of = {**of, "Marker": response["NextMarker"]}

    def _call(self, operation: str, resource: str, **request: str) -> dict[str, Any]:
        try:
            return ask(self._client, "AWS Lambda", operation, request)
        except AwsError as e:
            if e.code == "ResourceNotFoundException":
                raise _Missing from e
            raise failure(e, f"lambda:{operation}", resource) from e


class _Missing(Exception):
    pass


def _is_of(function_arn: str, name: str) -> bool:
    """Whether the ARN, arn:aws:lambda:REGION:ACCOUNT:function:NAME[:QUALIFIER], is of the function or a version."""
    return function_arn.split(":")[6:7] == [name]
