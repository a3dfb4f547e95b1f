"""Objects in S3, or in another service with its API, as far as a target must look at what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_THERE, _UNKNOWN = 412, 501  # responses to a condition: it does not hold; the service has no conditions
_REFUSALS = (_THERE, _UNKNOWN)


@dataclass(frozen=True, slots=True)
class Objects:
    """Those of one bucket. ``_client``: of botocore, whose exceptions are raised."""

    _client: Any
    _bucket: str

    def names(self, prefix: str) -> list[str]:
        """Of files and folders directly in that folder; the first thousand."""
        found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, Delimiter="/")
        keys = [entry["Key"] for entry in found.get("Contents", ())]
        keys += [entry["Prefix"] for entry in found.get("CommonPrefixes", ())]
        return [name for key in keys if (name := key.removeprefix(prefix).strip("/"))]

    def are_created_once(self, key: str) -> bool:
        """Whether only the first of two conditional requests creates an object. Tries it with ``key``, then removes it.

        By a header, because older versions of botocore do not know the parameter.
        """
        self._client.meta.events.register("before-call.s3.PutObject", _unless_there)
        try:
            for _ in range(2):
                self._client.put_object(Bucket=self._bucket, Key=key, Body=b"")
        except Exception as e:  # botocore's, of which an error response has the response
            status = getattr(e, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status not in _REFUSALS:
                raise
            return bool(status == _THERE)
        finally:
            self._client.delete_object(Bucket=self._bucket, Key=key)
        return False


def _unless_there(params: dict[str, Any], **_: Any) -> None:
    params["headers"]["If-None-Match"] = "*"
