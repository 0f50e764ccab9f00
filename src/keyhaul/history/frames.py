"""History as data: runs, chunks and quarantine of a ledger as Polars frames.

The columns are described once, in `RUNS`, `CHUNKS` and `QUARANTINE`; docs/history.md is written from them.
The types are the same whatever is in the ledger, also when nothing is. Nothing here writes there, and no
frame holds a password. The environment is not read unless it is given as `environ`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NoReturn

import polars as pl
from polars.io.plugins import register_io_source
from psycopg import sql
from psycopg.rows import dict_row

from keyhaul.ledger.reading import ChunkRow, RunRow, facts_of, fetch, find_run, ledger_errors
from keyhaul.ledger.statements import statement
from keyhaul.model import Counts, Timings
from keyhaul.sessions.connecting import LedgerPlace, find_ledger, look_back

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg


FETCH_ROWS: Final = 10_000
"""Quarantined records in memory while a lazy frame is collected in a stream; 10,000 of 1 kB are 10 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column of a frame: its Polars type, its unit (empty for what has none), and what it says.

    Attributes:
        nullable: whether it may be NULL; `meaning` says when.
    """

    dtype: pl.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False


_TEXT, _NUMBER, _SECONDS = pl.String(), pl.Int64(), pl.Float64()
_MOMENT: Final = pl.Datetime("us", "UTC")
_NAMES: Final = pl.List(pl.String())


_DTYPES: Final[Mapping[str, pl.DataType]] = {
    "str": _TEXT,
    "int": _NUMBER,
    "float": _SECONDS,
    "datetime": _MOMENT,
    "list[str]": _NAMES,
    "list[dict[str, Any]]": pl.List(
        pl.Struct(
            {
                "name": pl.String(),
                "on_fail": pl.String(),
                "passed": pl.Boolean(),
                "offenders": pl.Int64(),
                "message": pl.String(),
            }
        )
    ),
    "dict[str, int]": pl.List(pl.Struct({"rule": pl.String(), "rows": pl.Int64()})),
    "dict[str, dict[str, Any]]": pl.List(
        pl.Struct({"limit": pl.String(), "setting": pl.String(), "waited_seconds": pl.Float64(), "effect": pl.String()})
    ),
}
"""The types of the columns for those of the facts, as these are written there."""

_PARTS: Final[Mapping[str, tuple[str, type]]] = {"Counts": ("rows_", Counts), "Timings": ("", Timings)}

_DERIVED: Final[Mapping[tuple[type, str], tuple[str, Field]]] = {
    (RunRow, "status"): (
        "state",
        Field(
            dtype=_TEXT,
            meaning="`done`, `running`, `interrupted` (says running, and no process holds its lock), `stopped` or "
            "`abandoned`",
        ),
    ),
    (RunRow, "seconds"): (
        "rows_per_second",
        Field(dtype=_SECONDS, meaning="rows_read / seconds; 0 if no time has passed", unit="rows/s"),
    ),
    (Counts, "loaded"): (
        "inserted",
        Field(dtype=_NUMBER, meaning="of those loaded, how many replaced none", unit="rows"),
    ),
}
"""Properties of the facts that are columns, too: each behind the fact that it follows from."""


def _columns(kind: type) -> Iterator[tuple[str, str, Field]]:
    """Yield name, attribute (``counts.loaded``) and description of each column that the facts in `kind` give."""
    for one in fields(kind):
        if part := _PARTS.get(str(one.type)):
            yield from ((part[0] + name, f"{one.name}.{place}", field) for name, place, field in _columns(part[1]))
        elif one.metadata["framed"]:
            told, _, null = str(one.type).partition(" | ")
            meaning, unit = one.metadata["meaning"], one.metadata["unit"]
            yield one.name, one.name, Field(dtype=_DTYPES[told], meaning=meaning, unit=unit, nullable=bool(null))
        if more := _DERIVED.get((kind, one.name)):
            yield more[0], more[0], more[1]


RUNS: Final[Mapping[str, Field]] = {name: field for name, _, field in _columns(RunRow)}
"""Columns of `runs`. Seconds of the steps are summed over the workers; sums are of committed chunks only."""

CHUNKS: Final[Mapping[str, Field]] = {name: field for name, _, field in _columns(ChunkRow)}
"""Columns of `chunks`."""

QUARANTINE: Final[Mapping[str, Field]] = {
    "run_id": Field(dtype=_TEXT, meaning="the run that rejected the record first"),
    "chunk": Field(dtype=_NUMBER, meaning="the chunk of that run"),
    "record": Field(dtype=_NUMBER, meaning="the record's position in the chunk, from 0"),
    "stage": Field(dtype=_TEXT, meaning="which step rejected it, for example `rule`, `transform` or `target`"),
    "rules": Field(dtype=_NAMES, meaning="every rule that it broke; empty where the stage has no rules"),
    "message": Field(dtype=_TEXT, meaning="the reason in words"),
    "key": Field(dtype=_TEXT, meaning="the record's key as text, JSON for several columns", nullable=True),
    "data": Field(dtype=_TEXT, meaning="the source's whole row as JSON: values of your data"),
    "attempts": Field(dtype=_NUMBER, meaning="tries: the run's, and one for each replay", unit="tries"),
    "tried_by": Field(dtype=_TEXT, meaning="the last replay that tried it", nullable=True),
    "resolved_at": Field(dtype=_MOMENT, meaning="when a replay resolved it", unit="UTC", nullable=True),
    "resolved_by": Field(dtype=_TEXT, meaning="the replay that did", nullable=True),
}
"""Columns of `quarantine`."""


def runs(
    target: str | None = None,
    *,
    home: str | None = None,
    ledger_schema: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return all runs of a ledger, a row each, the newest first; columns as in `RUNS` (docs/history.md).

    Args:
        target: URI of the database with the ledger; the embedded warehouse by default.
        home: folder of the embedded PostgreSQL; the user's cache by default.
        ledger_schema: ``keyhaul`` by default.
        environ: give ``os.environ`` to take what is not given from ``ETL_TARGET_URL``, ``ETL_HOME`` and
            ``ETL_LEDGER_SCHEMA``, as the command line does.

    Returns:
        No row for a ledger without runs. Memory: about 2 kB for each run.

    Raises:
        RefusedError: there is no ledger in this database.
        ConfigError: the database cannot be reached, or the ledger not be read.
    """
    place = find_ledger(target, home, ledger_schema, environ or {})
    with look_back(place) as conn:
        return read_runs(conn, place.schema)


def chunks(
    run: str = "last",
    *,
    target: str | None = None,
    home: str | None = None,
    ledger_schema: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Return the chunks of a run in key order, a row each, also those not moved yet; columns as in `CHUNKS`.

    Args:
        run: a run's name, or ``last``.
        target: as the other arguments, see `runs`.
        home: see `runs`.
        ledger_schema: see `runs`.
        environ: see `runs`.

    Returns:
        Memory: about 0.5 kB for each chunk.

    Raises:
        RefusedError: there is no such run, or no ledger.
        ConfigError: the database cannot be reached, or the ledger not be read.
    """
    place = find_ledger(target, home, ledger_schema, environ or {})
    with look_back(place) as conn:
        return read_chunks(conn, place.schema, find_run(conn, place.schema, run))


def quarantine(
    run: str = "last",
    *,
    target: str | None = None,
    home: str | None = None,
    ledger_schema: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> pl.LazyFrame:
    """Return a run's quarantined records, resolved ones too, lazily; columns as in `QUARANTINE`.

    Of a replay: the records that it tried. In the order of the source. Nothing is read before it is
    collected, each time anew, and then only the columns that the query uses, `FETCH_ROWS` at a time.
    ``key`` and ``data`` hold values of your rows. The frame knows how to log in, so it refuses to be
    serialized.

    Args:
        run: a run's name, or ``last``.
        target: as the other arguments, see `runs`.
        home: see `runs`.
        ledger_schema: see `runs`.
        environ: see `runs`.

    Raises:
        RefusedError: there is no such run, or no ledger. An error while it is collected is Polars' own.
        ConfigError: the database cannot be reached, or the ledger not be read.
    """
    place = find_ledger(target, home, ledger_schema, environ or {})
    with look_back(place) as conn:
        scan = _Scan(place, find_run(conn, place.schema, run))
    return register_io_source(scan, schema=schema_of(QUARANTINE))


def schema_of(fields: Mapping[str, Field]) -> pl.Schema:
    """Return the Polars schema of a frame with these columns."""
    return pl.Schema({name: field.dtype for name, field in fields.items()})


def read_runs(conn: psycopg.Connection[Any], schema: str, run_id: str | None = None) -> pl.DataFrame:
    """Return what `runs` does over an open connection; of one run if `run_id` is given.

    Raises:
        RefusedError: there is no ledger.
    """
    values = {"run_id": run_id, "limit": None, "schema": schema}
    return frame_of_runs(fetch(conn, schema, "runs", facts_of(RunRow), values))


def frame_of_runs(found: Sequence[RunRow]) -> pl.DataFrame:
    """Return the facts of runs as a frame with the columns `RUNS`."""
    return _framed(found, RunRow, RUNS)


def read_chunks(conn: psycopg.Connection[Any], schema: str, run_id: str) -> pl.DataFrame:
    """Return what `chunks` does over an open connection."""
    values = {"run_id": run_id, "chunk_limit": None}
    return _framed(fetch(conn, schema, "run_chunks", facts_of(ChunkRow), values), ChunkRow, CHUNKS)


def _framed(found: Sequence[RunRow | ChunkRow], kind: type, columns: Mapping[str, Field]) -> pl.DataFrame:
    """Return facts as a frame; what they have by name becomes a list of structs."""
    read = {name: attrgetter(place) for name, place, _ in _columns(kind)}
    rows = [{name: get(one) for name, get in read.items()} for one in found]
    for row in rows:
        if "limits" in row:
            row["limits"] = [{"limit": name, **of} for name, of in row["limits"].items()]
        if "warned" in row:
            row["warned"] = [{"rule": rule, "rows": number} for rule, number in row["warned"].items()]
    return frame_of(rows, columns)


def frame_of(rows: Sequence[Mapping[str, object]], fields: Mapping[str, Field]) -> pl.DataFrame:
    """Return rows as a frame with these columns; a value of another type is an error."""
    columns = {name: [row[name] for row in rows] for name in fields}
    return pl.DataFrame(
        [pl.Series(name, values, dtype=fields[name].dtype, strict=True) for name, values in columns.items()]
    )


class _Scan:
    """A run's quarantine as a source of Polars: batches of the columns that a query uses."""

    def __init__(self, place: LedgerPlace, run_id: str) -> None:
        self._place = place
        self._run_id = run_id

    def __reduce__(self) -> NoReturn:
        msg = "serialize a quarantine frame: it holds the login of its database, expected a collected frame. Collect it"
        raise TypeError(msg)

    def __call__(
        self, with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield what Polars asks for; `n_rows` counts before the predicate."""
        wanted = list(QUARANTINE) if with_columns is None else with_columns
        needed = {*wanted, *(predicate.meta.root_names() if predicate is not None else ())}
        fields = {name: field for name, field in QUARANTINE.items() if name in needed} or {
            "chunk": QUARANTINE["chunk"]  # for a count of rows, without columns
        }
        query = sql.SQL("select {} from ({}) q").format(
            sql.SQL(", ").join(map(sql.Identifier, fields)), statement("quarantine_frame", self._place.schema)
        )
        values = {"run_id": self._run_id, "row_limit": n_rows}
        with (
            look_back(self._place) as conn,
            ledger_errors(conn, self._place.schema),
            conn.transaction(),
            conn.cursor("keyhaul_quarantine", row_factory=dict_row) as cursor,
        ):
            cursor.execute(query, values)
            while rows := cursor.fetchmany(min(batch_size or FETCH_ROWS, FETCH_ROWS)):
                batch = frame_of(rows, fields)
                yield (batch if predicate is None else batch.filter(predicate)).select(wanted)
