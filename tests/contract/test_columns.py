from __future__ import annotations

from dataclasses import replace

import psycopg
import pytest

from keyhaul.postgres import catalog
from keyhaul.sources.columns import column_of

TYPES = [
    "smallint",
    "integer",
    "bigint",
    "real",
    "double precision",
    "numeric",
    "numeric(12,2)",
    "numeric(38,0)",
    "boolean",
    "text",
    "character varying",
    "character varying(20)",
    "character(3)",
    "bytea",
    "date",
    "time without time zone",
    "time(3) without time zone",
    "timestamp without time zone",
    "timestamp(0) without time zone",
    "timestamp with time zone",
    "timestamp(6) with time zone",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "inet",
]


def test_a_column_of_another_kind_of_source_is_described_as_the_servers_catalog_describes_it(server):
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        selected = ", ".join(f"null::{pg_type} as c{number}" for number, pg_type in enumerate(TYPES))
        found = catalog.describe_query(conn, f"select {selected}").columns
    made = [column_of(f"c{number}", pg_type) for number, pg_type in enumerate(TYPES)]
    assert made == [replace(column, type_oid=0) for column in found]


@pytest.mark.parametrize("pg_type", ["money", "numeric(", "text[]", "timestamp", ""])
def test_a_type_that_no_kind_of_source_needs_is_a_mistake_of_its_reader(pg_type):
    with pytest.raises(ValueError, match="expected one of smallint, integer"):
        column_of("c", pg_type)
