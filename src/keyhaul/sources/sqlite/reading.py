"""Reads chunks of the private copy: fast with connectorx, and once more, value by value, where something does not fit.

connectorx takes a column's type from the first row. So each query begins with a row of our own that has a value of the
wanted storage class in every column, and that is dropped afterwards: a value of another class further down is then an
error, and never another value (measured with connectorx 0.4.6; declared types mean nothing in such a compound).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import polars as pl

from keyhaul.errors import ChunkError, StopRunError, without_values
from keyhaul.quoting import quote_name
from keyhaul.sources.source import REJECTED_BY_SOURCE, Batch
from keyhaul.sources.sqlite import values
from keyhaul.sources.sqlite.bounds import row_of
from keyhaul.sources.sqlite.catalog import ROWID
from keyhaul.sources.sqlite.strict import judge, key_texts, strict_select, wanted_keys

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from keyhaul.model import Chunk
    from keyhaul.sources.sqlite.catalog import Field
    from keyhaul.sources.sqlite.declared import Kind

_SEEDS: Final[dict[Kind, str]] = {
    "integer": "0", "boolean": "0", "real": "0.0", "numeric": "0.0", "text": "''", "date": "''", "timestamp": "''",
    "timestamptz": "''", "time": "''", "blob": "x''",
}  # fmt: skip


class _DoubtError(Exception):
    """The fast path met a value that it cannot give for sure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a reader reads, as plain data.

    Attributes:
        copy: the private copy.
        table: its table.
        rowid: the name by which the rowid is selected for the column `ROWID`.
        fields: the columns to read, in order; `ROWID` may be one.
        key: of them, those that records are found by.
        encoding: of the texts, as SQLite names it.
    """

    copy: Path
    table: str
    rowid: str
    fields: tuple[Field, ...]
    key: tuple[str, ...]
    encoding: str

    def expression(self, field: Field) -> str:
        """Return the column as SQL."""
        return self.rowid if field.name == ROWID else quote_name(field.name)

    def where(self, chunk: Chunk) -> str:
        """Return the condition that a chunk's records meet; for keys, one that all of them meet, and perhaps others."""
        keyed = [field for name in self.key for field in self.fields if field.name == name]
        names = [self.expression(field) for field in keyed]
        open_to_null = [name for name, field in zip(names, keyed, strict=True) if not field.not_null]
        if chunk.kind == "nulls":
            return " or ".join(f"{name} is null" for name in open_to_null) or "false"
        if chunk.kind == "keys":
            return wanted_keys(chunk.keys, keyed, names, self.encoding)
        row = f"({', '.join(names)})" if len(names) > 1 else names[0]
        parts = [f"{name} is not null" for name in open_to_null]
        if chunk.lower is not None:
            parts.append(f"{row} >= {row_of(chunk.lower, self.encoding)}")
        if chunk.upper is not None:
            parts.append(f"{row} < {row_of(chunk.upper, self.encoding)}")
        return " and ".join(parts) or "true"


class SqliteReader:
    """Reads the chunks of one worker; nothing is kept between reads."""

    def __init__(self, rows: Rows) -> None:
        """Take what is read; the copy is opened by each read."""
        self._rows = rows

    def read(self, chunk: Chunk) -> Batch:
        """Return a chunk's records; those with a value that does not fit its column's declared type are rejected.

        Raises:
            ChunkError: the copy is damaged there.
            StopRunError: the copy is gone.
        """
        where = self._rows.where(chunk)
        return self.strictly(where, frozenset(chunk.keys)) if chunk.kind == "keys" else self.read_where(where)

    def read_where(self, where: str) -> Batch:
        """Read the records for which a condition in SQL holds, fast where all of them fit."""
        with contextlib.suppress(_DoubtError):
            return self.fast(where)
        return self.strictly(where)

    def close(self) -> None:
        """Nothing is kept."""

    def fast(self, where: str) -> Batch:
        """Read records of which every value has the first storage class of its type.

        Raises:
            _DoubtError: one has not, or does not fit.
        """
        rows = self._rows
        seeds = ", ".join(f"{_SEEDS[field.declared.kind]} as c{n}" for n, field in enumerate(rows.fields))
        columns = ", ".join(map(rows.expression, rows.fields))
        try:
            table = self._query(
                f"select {seeds} union all select {columns} from {quote_name(rows.table)} where {where}"
            )
        except ChunkError as error:
            raise _DoubtError from error
        frame = pl.DataFrame(pl.from_arrow(table))
        decoded = [_fast(frame[f"c{n}"], field) for n, field in enumerate(rows.fields)]
        return Batch(frame=pl.DataFrame(decoded), bytes_read=table.nbytes)

    def strictly(self, where: str, keys: frozenset[str] | None = None) -> Batch:
        """Read records with the storage class of each value, and set those apart that do not fit.

        Args:
            where: a condition in SQL.
            keys: only the records with one of these keys are meant.
        """
        rows = self._rows
        seeds, columns = strict_select(rows.fields, [rows.expression(field) for field in rows.fields], rows.encoding)
        table = self._query(f"select {seeds} union all select {columns} from {quote_name(rows.table)} where {where}")
        frame = pl.DataFrame(pl.from_arrow(table))
        judged = judge(frame, rows.fields)
        found = key_texts(judged, rows.fields, rows.key)
        if keys is not None:
            meant = found.is_in(list(keys)).fill_null(value=False)
            judged, found = judged.only(meant), found.filter(meant)
        good, rejected = judged.apart(found)
        return Batch(
            frame=good.select(field.name for field in rows.fields),
            bytes_read=table.nbytes,
            rejected=rejected.select(pl.col(name).cast(dtype) for name, dtype in REJECTED_BY_SOURCE.items()),
        )

    def _query(self, query: str) -> pa.Table:
        """Return a query's rows without the first, which is our own."""
        import connectorx  # 70 ms, and only for this reader

        copy = self._rows.copy
        if not copy.exists():  # connectorx would try for 30 s, and make an empty one
            msg = (
                f"read chunk: the run's private copy {copy} is gone, expected that it stays until the end. "
                "Run the same command again: it makes a new one"
            )
            raise StopRunError(msg)
        try:
            table: Any = connectorx.read_sql(f"sqlite://{quote(str(copy))}", query, return_type="arrow")
        except BaseException as error:
            # A panic is a PanicException, which derives from BaseException, not from Exception.
            if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                raise
            first = without_values(str(error).strip().split("\n", 1)[0])[:400]
            msg = f"read chunk with connectorx: {first}"
            raise ChunkError(msg) from error
        return table.slice(1)


def _fast(given: pl.Series, field: Field) -> pl.Series:
    """Decode a column in which every value has the storage class that was asked for."""
    kind = field.declared.kind
    if kind in {"real", "integer", "blob"}:
        return given.rename(field.name)
    if kind == "boolean":
        decoded = values.from_integer(given, field.declared)
    elif kind == "numeric":
        largest = given.abs().max()
        if isinstance(largest, float) and largest >= values.EXACT_INTEGERS:
            raise _DoubtError  # perhaps an integer that is not that double
        decoded = values.from_real(given, field.declared)
    else:
        decoded = values.from_text(given, field.declared)
    if decoded.null_count() != given.null_count():
        raise _DoubtError
    return decoded.rename(field.name)
