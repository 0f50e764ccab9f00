"""The rows of a lookup, read once before the first chunk: from a database in a snapshot, or from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import psycopg
from psycopg import sql

from keyhaul.errors import ChunkError, ConfigError, StopRunError, safe_message
from keyhaul.postgres import catalog, pgtypes
from keyhaul.postgres.dsn import Dsn, redact
from keyhaul.sources.postgres.readers import READERS, UnreadableValueError
from keyhaul.sources.postgres.sql import find_table
from keyhaul.transform.decoding import any_out_of_range, decode
from keyhaul.transform.lookup import check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyhaul.config.lookupstep import Lookup
    from keyhaul.postgres.catalog import Relation
    from keyhaul.transform.perchunk import LookupRows

_FETCHED = frozenset({"int2", "int4", "int8", "text", "varchar", "uuid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupSource:
    """Reads lookups for one run.

    Attributes:
        conn: the transaction that holds the run's snapshot; lookups without a `uri` are read in it.
        snapshot: its name.
        dsn: the job's source.
        reader_for: which of `READERS` reads a database.
        settings: of each session that reads.
        open_other: connects to the database of a lookup's `uri`, and completes its login.
    """

    conn: psycopg.Connection[Any]
    snapshot: str
    dsn: Dsn
    reader_for: Callable[[Dsn], str]
    settings: Mapping[str, str]
    open_other: Callable[[Dsn], tuple[psycopg.Connection[Any], Dsn]]

    def load(self, lookup: Lookup, keys: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """Return the lookup's rows with the columns that it names.

        Args:
            lookup: what to read.
            keys: its key columns → the type that the chunk's column has; text in a CSV file stays text for a
                text column (``007`` is no number).

        Raises:
            ConfigError: there is no such table, file or column, it cannot be read, or it is too large.
        """
        if lookup.file is not None:
            return _read_file(lookup, Path(lookup.file), keys)
        if lookup.uri is None:
            return self._read(lookup, self.conn, self.dsn, self.snapshot)
        try:
            conn, dsn = self.open_other(Dsn.parse(lookup.uri, "source.uri of the lookup"))
        except ConfigError as error:
            msg = f"{lookup.at}: {error}"
            raise type(error)(msg) from None
        with conn:
            conn.execute("begin isolation level repeatable read read only")
            row = conn.execute("select pg_export_snapshot()").fetchone()
            return self._read(lookup, conn, dsn, row[0] if row else "")

    def _read(self, lookup: Lookup, conn: psycopg.Connection[Any], dsn: Dsn, snapshot: str) -> pl.DataFrame:
        head = f"{lookup.at}: read lookup {lookup.name}"
        try:
            with conn.transaction():
                relation = _described(lookup, conn)
                routes = _routes(lookup, relation)
                _check_before(lookup, conn, relation)
        except psycopg.Error as error:
            msg = f"{head}: {redact(safe_message(error), dsn)}. Change its source"
            raise ConfigError(msg) from None
        rows = _Rows(lookup=lookup, relation=relation, routes=routes, source=self, dsn=dsn, snapshot=snapshot)
        try:
            return rows.read(None)
        except (ChunkError, StopRunError) as error:
            far = isinstance(error, _FarError)
            raise ConfigError(str(error) if far else f"{head}: {redact(str(error), dsn)}. Change its source") from None

    def open(self, lookup: Lookup) -> LookupRows:
        """Describe a lookup of the job's source that is read for each chunk; no row is read here.

        Raises:
            ConfigError: there is no such table or column, it cannot be read, or its keys cannot be compared there.
        """
        head = f"{lookup.at}: read lookup {lookup.name}"
        try:
            with self.conn.transaction():
                relation = _described(lookup, self.conn)
                routes = _routes(lookup, relation)
        except psycopg.Error as error:
            msg = f"{head}: {redact(safe_message(error), self.dsn)}. Change its source"
            raise ConfigError(msg) from None
        columns = {name: relation.column(name) for name in lookup.on.values()}
        wrong = [f"{c.name} {c.pg_type}" for c in columns.values() if c and c.base_type not in _FETCHED]
        if wrong:
            msg = (
                f"{lookup.at}: compare lookup {lookup.name} for each chunk: got {', '.join(wrong)}, expected an "
                "integer, text, varchar or uuid. Leave per_chunk out, or cast the column in a query"
            )
            raise ConfigError(msg)
        return _Rows(lookup=lookup, relation=relation, routes=routes, source=self, dsn=self.dsn, snapshot=self.snapshot)


class _FarError(ChunkError):
    """A value that has no place in its type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a lookup in a snapshot: all of them, or those with some keys; each read has its own connection."""

    lookup: Lookup
    relation: Relation
    routes: Mapping[str, pgtypes.Route]
    source: LookupSource
    dsn: Dsn
    snapshot: str

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """The columns that the lookup names."""
        return {name: route.dtype for name, route in self.routes.items()}

    @property
    def uuids(self) -> frozenset[str]:
        """The columns that are uuids: other text cannot be compared with them."""
        return frozenset(c.name for c in self.relation.columns if c.base_type == "uuid")

    def fetch(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Return the rows with one of these keys."""
        arrays = []
        for name in keys.columns:
            column = self.relation.column(name)
            texts = keys[name].cast(pl.String).to_list()
            # The bare type: a modifier would cut a key, a domain might refuse it.
            pg_type = sql.SQL("pg_catalog.{}[]").format(sql.Identifier(column.base_type if column else "text"))
            arrays.append(sql.SQL("{}::pg_catalog.text[]::{}").format(sql.Literal(texts), pg_type))
        names = sql.SQL(", ").join(map(sql.Identifier, keys.columns))
        if len(arrays) == 1:
            return self.read(sql.SQL("{} = any({})").format(names, arrays[0]))
        return self.read(sql.SQL("({}) in (select * from unnest({}))").format(names, sql.SQL(", ").join(arrays)))

    def read(self, where: sql.Composable | None) -> pl.DataFrame:
        """Return the rows for which `where` holds.

        Raises:
            ChunkError, TransientError, StopRunError: as the reader says, or a value has no place in its type.
        """
        lookup, routes = self.lookup, self.routes
        head = f"{lookup.at}: read lookup {lookup.name}"
        selected = sql.SQL(", ").join(
            sql.SQL("{0}::text as {0}" if route.select_text else "{0}").format(sql.Identifier(name))
            for name, route in routes.items()
        )
        statement = sql.SQL("select {} from {}").format(selected, self.relation.from_item)
        if where is not None:
            statement += sql.SQL(" where {}").format(where)
        named = any(pgtypes.names_objects(column) for column in self.relation.columns if column.name in routes)
        options = {**self.source.settings, **({"search_path": ""} if named else {})}
        reader = READERS[self.source.reader_for(self.dsn)](self.snapshot)
        far = f"{head}: got a date, time or number that has no place in its type (infinity, NaN), expected finite ones"
        hint = "Leave these rows out, or cast the column to text, in a query"
        try:
            uri = self.dsn.uri(application_name="keyhaul lookup", options=options)
            table = reader.read(statement.as_string(None), uri)
        except UnreadableValueError:
            msg = f"{far}. {hint}"
            raise _FarError(msg) from None
        finally:
            reader.close()
        frame, odd = decode(table, self.schema)
        wrapped = [
            name for name, route in routes.items() if name not in odd and any_out_of_range(frame[name], route.dtype)
        ]
        if odd or wrapped:
            msg = f"{far} in {', '.join(sorted({*odd, *wrapped}))}. {hint}"
            raise _FarError(msg)
        return frame


def _described(lookup: Lookup, conn: psycopg.Connection[Any]) -> Relation:
    what = f"lookup {lookup.name}"
    try:
        if lookup.query is not None:
            relation = catalog.describe_query(conn, lookup.query, what)
        else:
            relation = find_table(conn, lookup.table or "", what, "source.table of the lookup")
    except ConfigError as error:
        msg = f"{lookup.at}: {error}"
        raise ConfigError(msg) from None
    return relation


def _routes(lookup: Lookup, relation: Relation) -> dict[str, pgtypes.Route]:
    """Return how each column travels that the lookup names; refuse those that cannot be carried or compared."""
    _check_columns(lookup, [column.name for column in relation.columns])
    routes: dict[str, pgtypes.Route] = {}
    problems = []
    for name in lookup.columns:
        column = relation.column(name)
        if column is None:  # pragma: no cover - they were all found above
            continue
        routes[name] = route = pgtypes.route(column)
        if route.kind == "refused":
            problems.append(f"{lookup.at}: read lookup {lookup.name}.{name}: {route.reason}")
        # Text that is equal here need not be equal there (1.0 and 1.00), nor sorted so (9 and 10).
        compared = name in lookup.on.values() and pgtypes.family(column) != "enum"
        if route.kind == "text" and (compared or name == lookup.first):
            problems.append(
                f"{lookup.at}: compare lookup {lookup.name}.{name}: {column.pg_type} travels as text "
                f"({route.reason}), expected a type that can be compared. Cast it in a query, for example {name}::text"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return routes


def _check_columns(lookup: Lookup, known: list[str]) -> None:
    unknown = [name for name in lookup.columns if name not in known]
    if unknown:
        msg = (
            f"{lookup.at}: read lookup {lookup.name}: it has no column {', '.join(unknown)}, expected one of "
            f"{', '.join(known)}. Change on, take or first"
        )
        raise ConfigError(msg)


def _check_before(lookup: Lookup, conn: psycopg.Connection[Any], relation: Relation) -> None:
    """Refuse what is too large before it is read: by the statistics of a table, else as the server counts it."""
    if relation.kind == "r" and relation.reltuples >= 0 and relation.row_bytes > 0:
        width = sum(column.name in lookup.columns for column in relation.columns) / len(relation.columns)
        check_size(lookup, relation.reltuples * relation.row_bytes * width)
        return
    columns = sql.SQL(", ").join(map(sql.Identifier, lookup.columns))
    counted = sql.SQL("select coalesce(sum(pg_column_size(row({}))), 0)::bigint from {}")
    row = conn.execute(counted.format(columns, relation.from_item)).fetchone()
    check_size(lookup, row[0] if row else 0)


# --- files ---------------------------------------------------------------------------------------


def _read_file(lookup: Lookup, path: Path, keys: Mapping[str, pl.DataType]) -> pl.DataFrame:
    head = f"{lookup.at}: read lookup file {lookup.file}"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        msg = f"{head}: got {got}, expected a CSV or Parquet file. Give its path from the current directory"
        raise ConfigError(msg)
    try:
        return _read_parquet(lookup, path) if path.suffix.lower() == ".parquet" else _read_csv(lookup, path, keys)
    except pl.exceptions.NoDataError:
        msg = f"{head}: got an empty file, expected a first line with the columns' names"
        raise ConfigError(msg) from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        msg = f"{head}: {safe_message(error)}, expected a readable {path.suffix[1:].upper()} file"
        raise ConfigError(msg) from None


def _read_csv(lookup: Lookup, path: Path, keys: Mapping[str, pl.DataType]) -> pl.DataFrame:
    check_size(lookup, path.stat().st_size)
    header = pl.scan_csv(path, glob=False, infer_schema=False).collect_schema().names()
    _check_columns(lookup, header)
    texts = {name: pl.String for name, dtype in keys.items() if isinstance(dtype, pl.String)}
    whole = pl.scan_csv(path, glob=False, infer_schema_length=None, schema_overrides=texts)
    return whole.select(lookup.columns).collect()


def _read_parquet(lookup: Lookup, path: Path) -> pl.DataFrame:
    import pyarrow.parquet as pq  # 20 ms, and only for such files

    lazy = pl.scan_parquet(path, glob=False)
    _check_columns(lookup, lazy.collect_schema().names())
    metadata = pq.read_metadata(path)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    wanted = set(lookup.columns)
    check_size(lookup, sum(p.total_uncompressed_size for p in parts if p.path_in_schema.split(".")[0] in wanted))
    return lazy.select(lookup.columns).collect()
