"""Config of a DynamoDB target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from replicator.options import WEB_PORTS, Access, AppliedDeletes, Options, server_of, table_name


def _attribute(name: str) -> str:
    if not 1 <= len(name.encode()) <= 255:
        raise ValueError("must be an attribute name of 1 to 255 bytes")
    return name


Attribute = Annotated[str, AfterValidator(_attribute)]


class DynamoDBTable(Options):
    """Options of one table."""

    deletes: AppliedDeletes = Field(default="apply", description="items that are deleted in the source are removed")


class DynamoDBOptions(Access):
    """Where the tables are, how they are written, and what replicator adds to their items."""

    version_attribute: Attribute = Field(default="_replicator_version", description="holds each item's version")
    deleted_attribute: Attribute = Field(
        default="_replicator_deleted", description="marks tombstones: what remains of deleted items for a while"
    )
    loops: bool = Field(
        default=False,
        description="an opposite pipeline copies the target back to the source: mark writes, and skip those of the "
        "other one. Both need it",
    )
    mark_attribute: Attribute = Field(
        default="_replicator_mark", description="with loops: tells replicator's writes from those of applications"
    )
    pristine: bool = Field(default=False, description="add nothing to items; reduced guarantee")
    create: bool = Field(
        default=False, description="create missing tables, with the source's keys, indexes, capacity and time to live"
    )
    tags: bool = Field(default=False, description="copy the source's tags to a table it creates")
    adopt: bool = Field(default=False, description="take over a table that already has items")
    epochs_table: Annotated[str, AfterValidator(table_name)] = Field(
        default="replicator-epochs", description="replicator's own small table: which pipeline writes to which table"
    )
    in_flight: int = Field(
        default=32, ge=1, le=500, description="maximum requests in flight; reduced while the table throttles"
    )
    write_units: float | None = Field(
        default=None, ge=1, description="write capacity units per second that may be used"
    )

    def places(self, table: str, options: Mapping[str, Any]) -> Sequence[object]:
        """By endpoint, region and account: that of the role, or whatever the profile's is."""
        endpoint = None if self.endpoint_url is None else server_of(self.endpoint_url, WEB_PORTS)
        account = "" if self.role_arn is None else "".join(self.role_arn.split(":")[4:5])
        return [("dynamodb", endpoint, self.region, account or self.profile, table)]

    @field_validator("deleted_attribute")
    @classmethod
    def _two_names(cls, name: str, info: ValidationInfo) -> str:
        if name == info.data.get("version_attribute"):
            raise ValueError("must differ from version_attribute")
        return name

    @field_validator("mark_attribute")
    @classmethod
    def _three_names(cls, name: str, info: ValidationInfo) -> str:
        if name in (info.data.get("version_attribute"), info.data.get("deleted_attribute")):
            raise ValueError("must differ from version_attribute and deleted_attribute")
        return name

    @field_validator("pristine")
    @classmethod
    def _marks_are_additions(cls, pristine: bool, info: ValidationInfo) -> bool:
        if pristine and info.data.get("loops"):
            raise ValueError("cannot be combined with loops: true, which marks items")
        return pristine

    @field_validator("adopt")
    @classmethod
    def _nothing_to_tell_apart_by(cls, adopt: bool, info: ValidationInfo) -> bool:
        if adopt and info.data.get("pristine"):
            raise ValueError("cannot be combined with pristine: true, which starts with an empty table")
        return adopt

    @field_validator("tags")
    @classmethod
    def _tags_of_new_tables(cls, tags: bool, info: ValidationInfo) -> bool:
        if tags and not info.data.get("create"):
            raise ValueError("has no effect without create: true")
        return tags
