"""Key values as texts and as SQL, exact in any storage class; and the walk over the key that finds chunk bounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from keyhaul.quoting import quote_name

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

Value = int | float | str | bytes
Bound = tuple[str, ...]

_TEXT_BYTES: Final = "t'"


def written(value: Value) -> str:
    """Return a key value as text: ``5``, ``0.5``, ``'abc'``, ``x'00ff'``; a text that is none in hex, ``t'ff'``."""
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    if isinstance(value, str):
        return f"'{value}'"
    return repr(value)


def literal(text: str, encoding: str) -> str:
    """Return SQL for what `written` wrote, in its own storage class, of ASCII letters alone.

    A text is put together from its bytes (in the database's `encoding`): ``||`` gives it no affinity, which CAST alone
    would, so that it compares with a number as a text does.
    """
    if text.startswith("x'"):
        return text
    if text.startswith(_TEXT_BYTES):
        return f"(cast(x'{text[2:-1]}' as text) || '')"
    if text.startswith("'"):
        return f"(cast(x'{text[1:-1].encode(encoding).hex()}' as text) || '')"
    if text.lstrip("-").isdecimal():
        return text
    number = float(text)
    if math.isinf(number):
        return "9e999" if number > 0 else "-9e999"
    return repr(number) if "e" in repr(number) or "." in repr(number) else f"{number!r}.0"


class Walk:
    """The key's values in SQLite's own order: NULL, numbers, texts, blobs."""

    def __init__(self, conn: sqlite3.Connection, table: str, key: Sequence[str], encoding: str) -> None:
        """Take the table's name and the key's columns as SQL expressions (quoted names, or ``rowid``)."""
        self._conn = conn
        self._table = quote_name(table)
        self._encoding = encoding
        self._order = ", ".join(key)
        self._row = f"({self._order})" if len(key) > 1 else self._order
        self._selected = ", ".join(
            f"typeof({name}), case typeof({name}) when 'text' then cast({name} as blob) else {name} end" for name in key
        )
        self._present = " and ".join(f"{name} is not null" for name in key)

    def bounds(self, step: int) -> tuple[list[Bound], int]:
        """Return the first key of the second chunk, of the third, and so on, and the number of rows with a key.

        All rows of one key value are in one chunk.
        """
        total = int(self._conn.execute(f"select count(*) from {self._table} where {self._present}").fetchone()[0])
        found: list[Bound] = []
        last = self._one("", 0)
        while last is not None:
            at = self._one(f"{self._row} >= {self._sql(last)}", step)
            if at == last:  # more rows of one value than a chunk holds
                at = self._one(f"{self._row} > {self._sql(last)}", 0)
            if at is not None:
                found.append(at)
            last = at
        return found, total

    def _one(self, where: str, offset: int) -> Bound | None:
        condition = f"{self._present} and {where}" if where else self._present
        row = self._conn.execute(
            f"select {self._selected} from {self._table} where {condition}"
            f" order by {self._order} limit 1 offset {offset}"
        ).fetchone()
        if row is None:
            return None
        return tuple(self._written(kind, value) for kind, value in zip(row[::2], row[1::2], strict=True))

    def _written(self, kind: str, value: Value) -> str:
        if kind != "text" or not isinstance(value, bytes):
            return written(value)
        try:
            text = value.decode(self._encoding)
        except UnicodeDecodeError:
            return f"{_TEXT_BYTES}{value.hex()}'"
        return written(text) if text.isprintable() else f"{_TEXT_BYTES}{value.hex()}'"

    def _sql(self, bound: Bound) -> str:
        return row_of(bound, self._encoding)


def row_of(bound: Bound, encoding: str) -> str:
    """Return a bound as SQL; a row of several parts."""
    parts = [literal(part, encoding) for part in bound]
    return parts[0] if len(parts) == 1 else f"({', '.join(parts)})"
