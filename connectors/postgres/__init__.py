"""Postgres as a target: rows, checkpoints and counts commit in one transaction."""

from connectors.postgres.checkpoints import PostgresStore
from connectors.postgres.options import Column, PostgresOptions, PostgresTable
from connectors.postgres.target import Postgres

__all__ = ["Postgres", "PostgresOptions", "PostgresTable", "Column", "PostgresStore"]
