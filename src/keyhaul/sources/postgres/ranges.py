"""Which rows a chunk of PostgreSQL has, as conditions over its key: the database alone compares."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.model import Chunk, Column


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRanges:
    """What stands in a FROM clause, and the key that its rows are told apart by; plain data.

    Attributes:
        item: as SQL.
        key: the key's columns, in the job's order.
        only: a condition, as SQL, of an incremental run: no other row is planned or read, except by the keys of a
            replay; empty for all rows.
    """

    item: str
    key: tuple[Column, ...]
    only: str = ""

    @property
    def from_item(self) -> sql.Composable:
        """What stands after FROM."""
        return sql.SQL(self.item)

    @property
    def names(self) -> tuple[str, ...]:
        """The key's names."""
        return tuple(column.name for column in self.key)

    @property
    def nullable(self) -> list[str]:
        """Those of them that can be NULL."""
        return [column.name for column in self.key if not column.not_null]

    def present(self) -> sql.Composable:
        """Return a condition that no key column is NULL; row comparison alone can be true with a NULL inside."""
        checks = [sql.SQL("{} is not null").format(sql.Identifier(name)) for name in self.nullable]
        return sql.SQL(" and ").join(checks) if checks else sql.SQL("true")

    def planned(self) -> sql.Composable:
        """Return a condition for the rows that boundaries are made from."""
        return sql.SQL(" and ").join([self.present(), *self._only()])

    def row(self) -> sql.Composed:
        """Return the key's columns as one value."""
        return _tuple([sql.Identifier(name) for name in self.names])

    def literal(self, key: Sequence[str]) -> sql.Composed:
        """Return a key's value as SQL, each part cast to its column's type, so that the database compares."""
        return _tuple(
            [
                sql.SQL("{}::{}").format(sql.Literal(text), sql.SQL(column.pg_type))
                for column, text in zip(self.key, key, strict=True)
            ]
        )

    def query(self, chunk: Chunk, columns: Sequence[str], as_text: frozenset[str]) -> str:
        """Return the SELECT for one chunk.

        Args:
            chunk: the key range, the NULL keys, or a list of keys.
            columns: what is selected, in order.
            as_text: those of them that travel as ``::text``.
        """
        selected = [
            sql.SQL("{0}::text as {0}" if name in as_text else "{0}").format(sql.Identifier(name)) for name in columns
        ]
        statement = sql.SQL("select {} from {} where {}").format(
            sql.SQL(", ").join(selected), self.from_item, self.within(chunk)
        )
        return statement.as_string(None)

    def within(self, chunk: Chunk) -> sql.Composable:
        """Return a condition for the rows of a chunk."""
        conditions: list[sql.Composable] = []
        if chunk.kind == "keys":
            return self._among(chunk.keys)
        if chunk.kind == "nulls":
            absent = [sql.SQL("{} is null").format(sql.Identifier(name)) for name in self.nullable]
            conditions.append(sql.SQL("({})").format(sql.SQL(" or ").join(absent)))
        if chunk.lower is not None:
            conditions.append(sql.SQL("{} >= {}").format(self.row(), self.literal(chunk.lower)))
        if chunk.upper is not None:
            conditions.append(sql.SQL("{} < {}").format(self.row(), self.literal(chunk.upper)))
        if chunk.kind == "range" and self.nullable:
            conditions.append(self.present())
        conditions += self._only()
        return sql.SQL(" and ").join(conditions) if conditions else sql.SQL("true")

    def _only(self) -> list[sql.Composable]:
        return [sql.SQL(self.only)] if self.only else []

    def _among(self, keys: Sequence[str]) -> sql.Composable:
        """Return a condition for the rows with one of these keys, each part cast to its column's type."""
        parts = [[key] for key in keys] if len(self.key) == 1 else [json.loads(key) for key in keys]
        arrays = [
            sql.SQL("{}::text[]::{}[]").format(sql.Literal([part[number] for part in parts]), sql.SQL(column.pg_type))
            for number, column in enumerate(self.key)
        ]
        names = sql.SQL(", ").join(map(sql.Identifier, self.names))
        if len(arrays) == 1:
            return sql.SQL("{} = any({})").format(names, arrays[0])
        return sql.SQL("({}) in (select * from unnest({}))").format(names, sql.SQL(", ").join(arrays))


def _tuple(parts: Sequence[sql.Composable]) -> sql.Composed:
    joined = sql.SQL(", ").join(parts)
    return sql.SQL("({})").format(joined) if len(parts) == 1 else sql.SQL("row({})").format(joined)
