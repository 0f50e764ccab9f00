"""How wide the rows of a PostgreSQL table, view or query are as Arrow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.model import Column
    from keyhaul.postgres.catalog import Relation

SAMPLED_ROWS: Final = 100
"""The statistics' width will not do: ANALYZE counts a TOASTed value with the 18 bytes of its pointer."""

_PLAIN: Final = frozenset({"text", "varchar", "bpchar", "bytea"})
_FIXED: Final = frozenset(
    {"int2", "int4", "int8", "float4", "float8", "bool", "date", "time", "timestamp", "timestamptz", "oid"}
)
_FIXED_BYTES: Final = 8


def sampled_row_bytes(conn: psycopg.Connection[Any], relation: Relation, columns: Sequence[Column]) -> float:
    """Return the mean Arrow bytes of some rows: blocks of a table, the first rows of anything else; 0.0 without rows.

    A query that fails for its first rows fails again when a chunk is read, and is told there.
    """
    if not columns:
        return 0.0
    items: list[sql.Composable] = [relation.from_item]
    if relation.kind == "r" and relation.reltuples > SAMPLED_ROWS:
        percent = min(100.0, max(0.001, 100.0 * 2 * SAMPLED_ROWS / relation.reltuples))
        items.insert(0, sql.SQL("{} tablesample system ({})").format(relation.from_item, sql.Literal(percent)))
    try:
        for item in items:
            # All rows of a narrow table are a few blocks, which a sample may miss: then its first rows are taken.
            with conn.transaction():
                found = _mean(conn, item, columns)
            if found:
                return found
    except psycopg.Error:
        return float(relation.row_bytes)
    return 0.0


def _mean(conn: psycopg.Connection[Any], item: sql.Composable, columns: Sequence[Column]) -> float:
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    query = sql.SQL("select avg({})::float8 from (select {} from {} limit {}) s").format(
        sql.SQL(" + ").join(map(_width, columns)), names, item, sql.Literal(SAMPLED_ROWS)
    )
    row = conn.execute(query).fetchone()
    return float(row[0]) if row and row[0] is not None else 0.0


def _width(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    if column.base_type in _FIXED:
        return sql.Literal(_FIXED_BYTES)
    form = (
        "coalesce(octet_length({}), 0)::bigint + {}"
        if column.base_type in _PLAIN
        else "coalesce(octet_length({}::text), 0)::bigint + {}"
    )
    return sql.SQL(form).format(name, sql.Literal(_FIXED_BYTES))
