"""The target's rows of a chunk: a condition on the columns that are the job's key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.model import Chunk, Column


def within(chunk: Chunk, key: Sequence[Column], nullable: Sequence[str]) -> sql.Composable:
    """Return the condition for the target's rows of a chunk; bounds are cast to the target's types.

    Of a domain to the type beneath: a bound need not be a value of it.

    Args:
        chunk: a range or the NULL keys.
        key: the target's columns that are the job's key, compared there as in the source.
        nullable: those of them that can be NULL.
    """
    if chunk.kind == "nulls":
        nulls = (sql.SQL("{} is null").format(sql.Identifier(name)) for name in nullable)
        return sql.SQL(" or ").join(nulls) if nullable else sql.SQL("false")
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in key)
    conditions: list[sql.Composable] = [
        sql.SQL("row({}) {} row({})").format(names, sql.SQL(operator), _bound(bound, key))
        for operator, bound in ((">=", chunk.lower), ("<", chunk.upper))
        if bound is not None
    ]
    conditions += [sql.SQL("{} is not null").format(sql.Identifier(name)) for name in nullable]
    return sql.SQL(" and ").join(conditions) if conditions else sql.SQL("true")


def _bound(bound: Sequence[str], key: Sequence[Column]) -> sql.Composable:
    parts = zip(bound, key, strict=True)
    return sql.SQL(", ").join(
        sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.bare_type or column.pg_type))
        for text, column in parts
    )
