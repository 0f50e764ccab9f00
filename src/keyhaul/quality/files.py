"""Data-quality checks of a Parquet or CSV file: DuckDB counts, out of core, and reaches no other file."""

from __future__ import annotations

import csv
import re
import tempfile
from typing import TYPE_CHECKING, Any, Final

import duckdb

from keyhaul.errors import ConfigError, first_line, safe_message
from keyhaul.quality.sql import DUCKDB, ROW
from keyhaul.quoting import quote_name, quote_text
from keyhaul.staging.rules import not_one_expression, told

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

    from keyhaul.config.checkkinds import Where

MEMORY_LIMIT: Final = "256MB"
"""DuckDB's buffers; what needs more (a `unique` of many values) goes to a temporary folder."""
BATCH_ROWS: Final = 10_000
_SETTINGS: Final = {
    "memory_limit": MEMORY_LIMIT,
    "preserve_insertion_order": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}
_HEADER_BYTES: Final = 1_000_000
_ROW_NUMBER: Final = "file_row_number"
_PLAIN_FLOATS: Final = frozenset({"FLOAT", "DOUBLE"})
_FLOATS_INSIDE: Final = re.compile(r"\b(FLOAT|DOUBLE)\b|VARIANT")
"""Types with floating-point numbers inside."""


class FileSystem:
    """A Parquet or CSV file as the checks see it; see `quality_sql.System`. Used by one thread."""

    def __init__(
        self, where: Where, *, key: tuple[str, ...], others: Sequence[Where], looked_at: Collection[str] | None = None
    ) -> None:
        """Open a DuckDB that reaches this file and `others`, and nothing else, and read the columns.

        Args:
            where: the file.
            key: columns that name a row; may be empty.
            others: files that are referred to.
            looked_at: names of the columns that checks look at; None for any.

        Raises:
            ConfigError: a file is not there or cannot be read.
        """
        self.dialect = DUCKDB
        self.key = key
        files = [_existing(place) for place in (where, *others)]
        self._folder = tempfile.TemporaryDirectory(prefix="keyhaul-check-")
        self._con = duckdb.connect(":memory:", config={**_SETTINGS, "temp_directory": self._folder.name})
        try:
            self._con.execute("load icu")
            self._con.execute("set timezone = 'UTC'")
            listed = ", ".join(quote_text(str(file)) for file in files)
            self._con.execute(f"set allowed_paths = [{listed}]")
            self._con.execute("set enable_external_access = false")
            if any(self._has_floats_inside(file, looked_at) for file in files):
                # `_parquet` cannot hide these from the statistics. Only where it matters: 15 checks of 5 million rows
                # took 0.87 s of CPU with these optimizers, 1.06 s without.
                self._con.execute("set disabled_optimizers = 'statistics_propagation,filter_pushdown'")
            self._con.execute("set lock_configuration = true")
            self.label = str(where.file)  # as it was given: a checkout elsewhere is the same source
            self._parquet = files[0].suffix.lower() == ".parquet"
            self.from_item = f"{self.other(where)} as {ROW}"
            described = self._types(files[0]) or self._described(self.from_item)
        except BaseException:
            self.close()
            raise
        self.columns: Mapping[str, str] = described

    def fetch(self, query: str) -> list[tuple[object, ...]]:
        """Run a query and return its rows.

        Raises:
            ConfigError: DuckDB refuses it, or a row makes it fail; the message has no row values.
        """
        try:
            return self._con.execute(query).fetchall()
        except duckdb.Error as error:
            raise ConfigError(_told(error)) from error

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows, `BATCH_ROWS` at a time, in the types that DuckDB gives them.

        The first batch is empty, so that a query without rows tells its columns.
        """
        import pyarrow as pa

        try:
            reader: Any = self._con.sql(query).to_arrow_reader(BATCH_ROWS)
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader
        except duckdb.Error as error:
            raise ConfigError(_told(error)) from error

    def refuses(self, query: str) -> str:
        """Return why a query cannot be asked, or an empty string; it is planned and not run."""
        try:
            self._con.execute(f"explain {query}").fetchall()
        except duckdb.Error as error:
            return _told(error)
        return ""

    def unmatched(self, column: str, pattern: str) -> str:
        """Return the condition that is true where a pattern (RE2) is nowhere in a column's text; NULL for NULL."""
        return f"not regexp_matches({ROW}.{quote_name(column)}, {quote_text(pattern)}, 's')"

    def misread(self, expression: str) -> str:
        """Return why a text is not one boolean expression over one row, or an empty string."""
        problem = not_one_expression(self._con, expression, self.columns)
        if problem:
            return problem
        try:
            query = f"describe select (\n{expression}\n) as x from {self.from_item}"
            kind = str(self._con.execute(query).fetchall()[0][1])
        except duckdb.Error as error:
            return _told(error)
        if kind != "BOOLEAN":  # a number would do for DuckDB's `not`
            return f"its type is {kind}, expected true or false"
        return self.refuses(f"select 1 from {self.from_item} where not (\n{expression}\n)")

    def misread_pattern(self, pattern: str) -> str:
        """Return why a text is no regular expression (RE2), or an empty string."""
        return self.refuses(f"select regexp_matches('', {quote_text(pattern)}, 's')")

    def has_type(self, column: str, wanted: str) -> str:
        """Return what is wrong with a column's type, or an empty string; without a modifier, any one is right."""
        have = self.columns[column]
        try:
            row = self._con.execute(f"describe select cast(null as {wanted}) as x").fetchall()[0]
        except duckdb.Error:
            return f"there is no type {wanted}"
        plain = have if "(" in wanted else re.sub(r"\([0-9,]+\)", "", have)
        given = str(row[1]) if "(" in wanted else re.sub(r"\([0-9,]+\)", "", str(row[1]))
        return "" if plain == given else f"{have}, expected {wanted}"

    def other(self, where: Where) -> str:
        """Return a file for FROM; its name is never a pattern."""
        file = _existing(where)
        name = quote_text(str(file))
        if file.suffix.lower() == ".parquet":
            return _parquet(file, self._types(file))
        columns = _header(file)
        unknown = sorted(where.types.keys() - set(columns))
        if unknown:
            msg = f"check {where.file}: types for {', '.join(unknown)}, expected one of {', '.join(columns)}"
            raise ConfigError(msg)
        listed = ", ".join(
            f"{quote_text(column)}: {quote_text(where.types.get(column, 'VARCHAR'))}" for column in columns
        )
        return (
            f"read_csv({name}, auto_detect = false, header = true, delim = ',', quote = '\"', escape = '\"', "
            f"nullstr = '', allow_quoted_nulls = false, hive_partitioning = false, columns = {{{listed}}})"
        )

    def _types(self, file: Path) -> dict[str, str]:
        """Return the types of a Parquet file's columns; of a CSV file none, which has no statistics."""
        return self._described(_read(file)) if file.suffix.lower() == ".parquet" else {}

    def _has_floats_inside(self, file: Path, looked_at: Collection[str] | None) -> bool:
        return any(
            _FLOATS_INSIDE.search(kind)
            for name, kind in self._types(file).items()
            if kind not in _PLAIN_FLOATS and (looked_at is None or name in looked_at)
        )

    def _described(self, item: str) -> dict[str, str]:
        return {str(row[0]): str(row[1]) for row in self.fetch(f"describe select * from {item}")}

    def row_number(self) -> str:
        """Return the number of a Parquet file's row, from 1; a CSV file has none."""
        return f"{_ROW_NUMBER} + 1" if self._parquet else ""

    def close(self) -> None:
        """Close DuckDB and remove its temporary folder."""
        self._con.close()
        self._folder.cleanup()


def _read(file: Path) -> str:
    return f"read_parquet({quote_text(str(file))}, hive_partitioning = false)"


def _parquet(file: Path, types: Mapping[str, str]) -> str:
    """Return a Parquet file for FROM, its floating-point columns without their statistics.

    These leave NaN out: DuckDB would take their maximum for the greatest value, and judge by it without a look at the
    rows; of an expression of the column as well (``-(-x)``), but not of one that depends on what a value is. The other
    columns keep theirs: 15 checks of 5 million rows took 2.8 times the base query's CPU without any, now 2.3 times.
    """
    hidden = ", ".join(
        f"if(isnan({quote_name(name)}), 'nan'::{kind}, {quote_name(name)}) as {quote_name(name)}"
        for name, kind in types.items()
        if kind in _PLAIN_FLOATS
    )
    return f"(select * replace ({hidden}), {_ROW_NUMBER} from {_read(file)})" if hidden else _read(file)


def _existing(where: Where) -> Path:
    """Return the whole path of a place's file.

    Raises:
        ConfigError: it is not there, or DuckDB would read its name as a pattern.
    """
    file = where.file
    if file is None:
        raise ConfigError("check a file: got a table or query beside it, expected a file. Give file:")
    if re.search(r"[*?\[\]]", str(file)):
        raise ConfigError(f"check {file}: got *, ?, [ or ], expected the name of one file. Check one file at a time")
    if not file.is_file():
        raise ConfigError(f"check {file}: there is no such file, expected a Parquet or CSV file. Correct file:")
    return file.resolve()


def _header(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            names = next(csv.reader([lines.readline(_HEADER_BYTES)]), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(
            f"check {file}: its first line cannot be read, expected the columns' names as UTF-8"
        ) from error
    if not names or not all(names) or len({name.lower() for name in names}) < len(names):
        raise ConfigError(f"check {file}: its first line is not a list of different names, expected a header")
    return names


def _told(error: duckdb.Error) -> str:
    """Return DuckDB's message without row values."""
    line = first_line(error)
    if isinstance(error, duckdb.ConversionException | duckdb.InvalidInputException):
        column = re.search(r'column "?([^"\n]+?)"?[,.\n]', str(error))
        line = re.sub(r"'.*'|\".*\"", "'…'", line, flags=re.DOTALL)
        return f"{safe_message(ValueError(line))}" + (f" (column {column[1]})" if column else "")
    return told(line)
