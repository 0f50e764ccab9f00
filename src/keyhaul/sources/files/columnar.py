"""Parquet and Arrow IPC files: parts are row groups or record batches, columns have types of their own."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import polars as pl
import pyarrow as pa

from keyhaul.errors import ChunkError, ConfigError
from keyhaul.sources.files.file import LINE, RECORD_NUMBER, Found, Untouched
from keyhaul.sources.files.infer import Inferred
from keyhaul.sources.files.rejecting import REJECTED
from keyhaul.sources.files.textfile import check_unchanged
from keyhaul.sources.files.values import typed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from keyhaul.model import Column
    from keyhaul.sources.files.remote.object import RemoteFile

_ROWS_AT_A_TIME: Final = 65_536


class _Groups(Protocol):
    """What a format gives: its schema, and its groups of rows."""

    schema: pa.Schema
    rows: tuple[int, ...]
    size: int

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Return the rows of a group, in order."""


class Columnar(Untouched):
    """An open Parquet or Arrow file.

    Attributes:
        name: its path, for people and as the value of `_file`.
        names: its columns, in its own order.
        spooled: no; see `File`.
        proposed: the types that its own types say, by column; a column that is `declared` needs none.
    """

    def __init__(self, path: Path | RemoteFile, *, parquet: bool, declared: Collection[str]) -> None:
        """Read the footer.

        Raises:
            ConfigError: it is no such file, is cut off, or a column has a type that no PostgreSQL type holds.
        """
        super().__init__(path)
        try:
            self._groups: _Groups = _Parquet(path) if parquet else _Arrow(path)
        except (pa.ArrowException, OSError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"read {path}: {why}, expected a whole {'Parquet' if parquet else 'Arrow'} file"
            ) from error
        self.names = list(self._groups.schema.names)
        self.proposed = _proposed(self.name, self._groups.schema, declared)

    def parts(self, chunk_rows: int) -> Sequence[tuple[tuple[str, ...], int]]:
        """Return row groups; one with more than twice `chunk_rows` rows is cut into pieces of that size."""
        found = []
        for group, rows in enumerate(self._groups.rows):
            step = rows if rows <= 2 * chunk_rows else chunk_rows
            for begin in range(0, rows, max(step, 1)):
                count = min(step, rows - begin)
                found.append(((str(group), str(begin), str(count)), count))
        return found or [(("0", "0", "0"), 0)]

    def read(self, part: tuple[str, ...], columns: Sequence[str]) -> Found:
        """Return a part's rows in the exact types of `columns`, and those with a value that the type cannot hold."""
        group, begin, count = map(int, part)
        wanted = [name for name in columns if name in self._types]
        check_unchanged(self._before, self.state(), self.name)
        pieces = list(self._slices(group, begin, count, wanted))
        check_unchanged(self._before, self.state(), self.name)
        schema = pa.schema([self._groups.schema.field(name) for name in wanted])
        table = pa.Table.from_batches(pieces, schema) if wanted else pa.table({})
        before = sum(self._groups.rows[:group]) + begin
        number = pl.int_range(before + 1, before + 1 + count, eager=True)
        frame, wrong = self._typed(table, wanted)
        frame = frame.with_columns(number.alias(RECORD_NUMBER), pl.Series(LINE, [None] * count, dtype=pl.Int64))
        rejected = pl.DataFrame(
            [
                (number[row], None, "wrong_value", "; ".join(why), _raw(table, row))
                for row, why in sorted(wrong.items())
            ],
            schema=REJECTED,
            orient="row",
        )
        if wrong:
            bad = pl.int_range(count, eager=True).is_in(pl.Series(list(wrong), dtype=pl.Int64).implode())
            frame = frame.filter(~bad)
        return Found(frame=frame, rejected=rejected, bytes_read=table.nbytes)

    def part_of(self, number: int) -> tuple[str, ...] | None:
        """Return the part of one row group that has the row of this number, from 1."""
        before = 0
        for group, rows in enumerate(self._groups.rows):
            if number <= before + rows:
                return str(group), str(number - before - 1), "1"
            before += rows
        return None

    def sample(self) -> tuple[float, float]:
        """Return bytes of a row (Arrow's, estimated by the footer) and the number of rows."""
        rows = sum(self._groups.rows)
        return (self._groups.size / rows if rows else 0.0), float(rows)

    def close(self) -> None:
        """Nothing is held open."""

    def _slices(self, group: int, begin: int, count: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        if not count:
            return
        position = 0
        try:
            for batch in self._groups.batches(group, columns):
                low, high = max(begin, position), min(begin + count, position + batch.num_rows)
                if low < high:
                    yield batch.slice(low - position, high - low)
                position += batch.num_rows
                if position >= begin + count:
                    return
        except (pa.ArrowException, OSError) as error:
            raise ChunkError(f"read {self.name}: row group {group + 1}: {str(error).splitlines()[0]}") from error

    def _typed(self, table: pa.Table, wanted: Sequence[str]) -> tuple[pl.DataFrame, dict[int, list[str]]]:
        made, wrong = [], dict[int, list[str]]()
        for name in wanted:
            given = pl.Series(name, pl.from_arrow(_plain(table.column(name))))
            values, expected = _as_type(given, self._types[name])
            made.append(values.alias(name))
            lost = values.is_null() & given.is_not_null()
            for row in lost.arg_true():
                wrong.setdefault(row, []).append(f"{name}: expected {expected}")
        return pl.DataFrame(made), wrong


class _Parquet:
    def __init__(self, path: Path | RemoteFile) -> None:
        import pyarrow.parquet as pq

        footer: Any = None

        def opened() -> Any:  # noqa: ANN401 - a file of pyarrow
            options = {"coerce_int96_timestamp_unit": "us", "metadata": footer}
            if isinstance(path, Path):
                return pq.ParquetFile(path, pre_buffer=False, **options)
            # Of a remote one, the columns of a group come in few requests that lie beside each other.
            return pq.ParquetFile(_seekable(path), pre_buffer=True, **options)

        self._open: Callable[[], Any] = opened
        with self._open() as file:
            footer = file.metadata
            self.schema = file.schema_arrow
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        self.rows = tuple(group.num_rows for group in groups)
        self.size = sum(group.total_byte_size for group in groups)

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._open() as file:
            yield from file.iter_batches(
                batch_size=_ROWS_AT_A_TIME, row_groups=[group], columns=list(columns), use_threads=False
            )


class _Arrow:
    def __init__(self, path: Path | RemoteFile) -> None:
        self._lock = threading.Lock()
        remote = None if isinstance(path, Path) else path
        self._source = pa.memory_map(str(path)) if remote is None else _seekable(remote)
        self._file = pa.ipc.open_file(self._source)
        self.schema = self._file.schema
        counted = self._file if remote is None else _with_one_column(remote)
        self.rows = tuple(counted.get_batch(number).num_rows for number in range(self._file.num_record_batches))
        self.size = self._source.size()

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with self._lock:
            batch = self._file.get_batch(group)
        yield batch.select(list(columns))


def _seekable(path: RemoteFile) -> Any:  # noqa: ANN401 - a file of pyarrow
    return pa.PythonFile(path.stream(just=True), mode="r")


def _with_one_column(path: RemoteFile) -> Any:  # noqa: ANN401 - a reader of pyarrow
    """Return a reader of the first column alone: how many rows a batch has stands in the batch, not in the footer."""
    options = pa.ipc.IpcReadOptions(included_fields=[0])
    return pa.ipc.open_file(_seekable(path), options=options)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column without what Polars would change or does not take: dictionaries, nulls, wide decimals."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_date64(kind):
        return column.cast(pa.date32())
    if pa.types.is_null(kind) or pa.types.is_decimal256(kind):
        return column.cast(pa.string())
    return column


def _proposed(name: str, schema: pa.Schema, declared: Collection[str]) -> dict[str, Inferred]:
    """Return the PostgreSQL types of a file's columns.

    Raises:
        ConfigError: no PostgreSQL type holds a column that is not declared.
    """
    found: dict[str, Inferred] = {}
    problems = []
    for field in schema:
        pg_type = _pg_type(field.type)
        if pg_type is not None:
            found[field.name] = Inferred(pg_type=pg_type, evidence=f"{field.type} in the file")
        elif field.name not in declared:
            problems.append(f"{field.name} ({field.type})")
    if problems:
        raise ConfigError(
            f"read {name}: {', '.join(problems)}: no PostgreSQL type holds it, expected a column of another type. "
            "Declare it under columns, for example as text"
        )
    return found


def _pg_type(kind: Any) -> str | None:  # noqa: ANN401 - an Arrow type
    """Return the PostgreSQL type that holds every value of an Arrow type, as ``format_type`` prints it."""
    t = pa.types
    if t.is_dictionary(kind):
        return _pg_type(kind.value_type)
    if t.is_timestamp(kind):
        return "timestamp with time zone" if kind.tz else "timestamp without time zone"
    if t.is_decimal(kind):
        return f"numeric({kind.precision},{kind.scale})" if 0 <= kind.scale <= kind.precision <= 38 else "numeric"  # noqa: PLR2004
    for test, pg_type in _PG_TYPES:
        if test(kind):
            return pg_type
    return None


def _nested(kind: Any) -> bool:  # noqa: ANN401
    return bool(pa.types.is_nested(kind))


_PG_TYPES: Final = (
    (pa.types.is_boolean, "boolean"),
    (lambda kind: pa.types.is_int8(kind) or pa.types.is_uint8(kind) or pa.types.is_int16(kind), "smallint"),
    (lambda kind: pa.types.is_uint16(kind) or pa.types.is_int32(kind), "integer"),
    (lambda kind: pa.types.is_uint32(kind) or pa.types.is_int64(kind), "bigint"),
    (pa.types.is_uint64, "numeric(20,0)"),
    (lambda kind: pa.types.is_float16(kind) or pa.types.is_float32(kind), "real"),
    (pa.types.is_float64, "double precision"),
    (lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind), "text"),
    (pa.types.is_null, "text"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time without time zone"),
    (pa.types.is_binary, "bytea"),
    (pa.types.is_large_binary, "bytea"),
    (pa.types.is_fixed_size_binary, "bytea"),
    (_nested, "jsonb"),
)  # fmt: skip


def _as_type(values: pl.Series, column: Column) -> tuple[pl.Series, str]:
    """Give a column of a file the type of a PostgreSQL column; what it cannot hold becomes NULL, to be told."""
    expected = f"a value of {column.pg_type}"
    if isinstance(values.dtype, pl.Datetime) and column.base_type in {"timestamp", "timestamptz"}:
        return _moment(values, column.base_type), f"{expected} in whole microseconds"
    natural = _naturally(values, column)
    if natural is not None:
        return natural, expected
    # Everything else goes by its text, under the same rules as a text file's values: 1.5 is no integer.
    plain = values.cast(pl.Int8) if values.dtype == pl.Boolean else values
    texts = plain.cast(pl.String, strict=False)  # bytes that are no text become NULL, to be told
    if values.dtype.is_float() and column.base_type in _WHOLE:
        whole = pl.when(values == values.floor()).then(values.cast(pl.Int64, strict=False))
        texts = pl.select(whole).to_series().cast(pl.String)
    found = typed(pl.DataFrame({column.name: texts}), {column.name: column})
    return found.frame.to_series(), expected


def _naturally(values: pl.Series, column: Column) -> pl.Series | None:
    """Return values of a type that is the column's own, or that a cast neither rounds nor guesses; else None."""
    base, have = column.base_type, values.dtype
    if (have == pl.String and base == "text") or (have == pl.Binary and base == "bytea"):
        return values
    if have == pl.Date and base == "date":
        return values
    if have.is_nested() and base in {"json", "jsonb", "text"}:
        return _as_json(values)
    if isinstance(have, pl.Time):
        return values.dt.to_string("%H:%M:%S%.f")
    return values.cast(_dtype(column), strict=False) if _holds(have, column) else None


_WHOLE: Final = {"int2": pl.Int16(), "int4": pl.Int32(), "int8": pl.Int64()}
_FLOATS: Final = {"float4": pl.Float32(), "float8": pl.Float64()}


def _dtype(column: Column) -> pl.DataType:
    if column.base_type == "numeric":
        return pl.Decimal(column.precision, column.scale or 0)
    return {**_WHOLE, **_FLOATS, "bool": pl.Boolean()}[column.base_type]


def _holds(have: pl.DataType, column: Column) -> bool:
    """Whether a strict cast neither rounds nor guesses: integers, booleans, and what has the column's own type."""
    base = column.base_type
    if base == "bool":
        return have == pl.Boolean
    if base in _WHOLE:
        return have.is_integer()
    if base in _FLOATS:
        return have == _FLOATS[base] or (have == pl.Float32 and base == "float8")
    if base == "numeric" and column.precision is not None and column.precision <= 38:  # noqa: PLR2004
        return have.is_integer() or have == _dtype(column)
    return False


def _moment(values: pl.Series, base: str) -> pl.Series:
    """Return moments in microseconds; one with a nanosecond of its own is none."""
    dtype = values.dtype
    unit = dtype.time_unit if isinstance(dtype, pl.Datetime) else "us"
    zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
    exact = values.dt.cast_time_unit("us")
    if unit == "ns":
        exact = exact.set((values.to_physical() % 1000 != 0).fill_null(value=False), None)
    if zoned:
        exact = exact.dt.convert_time_zone("UTC")
        return exact if base == "timestamptz" else exact.clear(values.len())
    return exact if base == "timestamp" else exact.clear(values.len())


def _as_json(values: pl.Series) -> pl.Series:
    """Return nested values as JSON; one value at a time, since no vectorised way writes every type exactly."""
    return pl.Series(
        [None if value is None else json.dumps(_jsonable(value), ensure_ascii=False) for value in values.to_list()],
        dtype=pl.String,
    )


def _jsonable(value: Any) -> Any:  # noqa: ANN401 - of any type that Arrow has
    if isinstance(value, dict):
        return {str(name): _jsonable(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return str(value)


def _raw(table: pa.Table, row: int) -> str:
    return json.dumps(
        {name: _jsonable(table.column(name)[row].as_py()) for name in table.column_names}, ensure_ascii=False
    )
