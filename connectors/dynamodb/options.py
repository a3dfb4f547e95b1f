"""What a config may say about a DynamoDB target."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from replicator.options import Access, Options, table_name


def _attribute(name: str) -> str:
    if not 1 <= len(name.encode()) <= 255:
        raise ValueError("is to be an attribute's name of 1 to 255 bytes")
    return name


Attribute = Annotated[str, AfterValidator(_attribute)]


class DynamoDBTable(Options):
    """Options of one table: none so far."""


class DynamoDBOptions(Access):
    """Where the tables are, how they are written, and what replicator adds to their items."""

    version_attribute: Attribute = Field(default="_replicator_version", description="holds each item's version")
    deleted_attribute: Attribute = Field(
        default="_replicator_deleted", description="marks what is left of a deleted item while it must be remembered"
    )
    pristine: bool = Field(default=False, description="add nothing to items, at the price of a weaker promise")
    create: bool = Field(default=False, description="make absent tables, with the source's keys and indexes")
    tags: bool = Field(default=False, description="give a table that is made the source's tags")
    adopt: bool = Field(default=False, description="take over a table that something else filled")
    epochs_table: Annotated[str, AfterValidator(table_name)] = Field(
        default="replicator-epochs", description="small table of our own: which copy wrote to which table last"
    )
    in_flight: int = Field(default=32, ge=1, le=500, description="requests at once")
    write_units: float | None = Field(default=None, ge=1, description="write capacity units a second to use at most")

    @field_validator("deleted_attribute")
    @classmethod
    def _two_names(cls, name: str, info: ValidationInfo) -> str:
        if name == info.data.get("version_attribute"):
            raise ValueError("is the same as version_attribute; they hold different things")
        return name

    @field_validator("adopt")
    @classmethod
    def _nothing_to_tell_apart_by(cls, adopt: bool, info: ValidationInfo) -> bool:
        if adopt and info.data.get("pristine"):
            raise ValueError("does not go with pristine: true, which begins with an empty table")
        return adopt

    @field_validator("tags")
    @classmethod
    def _tags_of_new_tables(cls, tags: bool, info: ValidationInfo) -> bool:
        if tags and not info.data.get("create"):
            raise ValueError("means nothing without create: true")
        return tags
