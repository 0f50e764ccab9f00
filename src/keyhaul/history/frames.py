"""History as data: runs, chunks and quarantine of a ledger as Polars frames.

The columns are described once, in `RUNS`, `CHUNKS` and `QUARANTINE`; docs/history.md is written from them.
The types are the same whatever is in the ledger, also when nothing is. Nothing here writes there, and no
frame holds a password. The environment is not read unless it is given as `environ`.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import polars as pl
from polars.io.plugins import register_io_source
from psycopg import sql
from psycopg.rows import dict_row

from keyhaul.config.job import EMBEDDED
from keyhaul.ledger.reading import find_run, ledger_errors
from keyhaul.ledger.statements import statement
from keyhaul.sessions.connecting import connect, find_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg

    from keyhaul.postgres.dsn import Dsn

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


def _rows(meaning: str) -> Field:
    return Field(dtype=_NUMBER, meaning=meaning, unit="rows")


def _spent(step: str) -> Field:
    return Field(dtype=_SECONDS, meaning=f"spent in {step}", unit="s")


_BALANCE: Final = {
    "rows_read": _rows("read from the source: loaded + unchanged + duplicate + filtered + quarantined"),
    "rows_loaded": _rows("inserted or updated, counted by the target"),
    "rows_updated": _rows("of those loaded, how many replaced a row"),
    "rows_unchanged": _rows("in the target already, equal or kept"),
    "rows_duplicate": _rows("copies that lost against another row"),
    "rows_filtered": _rows("left out by a `where`"),
    "rows_quarantined": _rows("rejected"),
}

_STEPS: Final = {
    "read_seconds": _spent("reading"),
    "transform_seconds": _spent("decoding and transforming"),
    "stage_seconds": _spent("rules and duplicates"),
    "load_seconds": _spent("the target's transaction"),
    "wait_seconds": _spent("waiting: for a limit, before another try, or for a lock on the chunk's ledger row"),
}

RUNS: Final[Mapping[str, Field]] = {
    "run_id": Field(dtype=_TEXT, meaning="the run's name; sorts by time"),
    "job": Field(dtype=_TEXT, meaning="the job's name"),
    "kind": Field(dtype=_TEXT, meaning="`run` or `replay`"),
    "replay_of": Field(dtype=_TEXT, meaning="the run whose records a replay sent again", nullable=True),
    "state": Field(
        dtype=_TEXT,
        meaning="`done`, `running`, `interrupted` (says running, and no process holds its lock), `stopped` or "
        "`abandoned`",
    ),
    "source": Field(dtype=_TEXT, meaning="what was read, and where"),
    "target_table": Field(dtype=_TEXT, meaning="the table loaded"),
    "key": Field(dtype=_NAMES, meaning="columns that the chunks are cut by"),
    "chunk_rows": _rows("of a chunk of the plan, as the job says or memory allows; with `chunk: auto` of a cut"),
    "chunks_planned": Field(
        dtype=_NUMBER,
        meaning="chunks of the plan; with `chunk: auto` those that were loaded, and the cuts that were not",
        unit="chunks",
    ),
    "chunks_done": Field(dtype=_NUMBER, meaning="committed", unit="chunks"),
    "chunks_failed": Field(dtype=_NUMBER, meaning="given up so far", unit="chunks"),
    "chunks_retried": Field(dtype=_NUMBER, meaning="that needed more than one try", unit="chunks"),
    "estimated_rows": _rows("expected by the plan"),
    "sittings": Field(dtype=_NUMBER, meaning="1, and 1 more for each resumption"),
    "workers": Field(dtype=_NUMBER, meaning="chunks at a time, at the end of the last sitting"),
    "workers_reason": Field(dtype=_TEXT, meaning="why so many; NULL if the job says how many", nullable=True),
    **_BALANCE,
    "rows_resolved": _rows("of those quarantined, how many a replay has resolved since"),
    "rows_unresolved": _rows("of those quarantined, how many are left; 0 of a replay, whose records are its run's"),
    "bytes_read": Field(dtype=_NUMBER, meaning="size of what was read, as Arrow buffers", unit="bytes"),
    **_STEPS,
    "seconds": Field(dtype=_SECONDS, meaning="of all sittings, without the time between them", unit="s"),
    "rows_per_second": Field(dtype=_SECONDS, meaning="rows_read / seconds; 0 if no time has passed", unit="rows/s"),
    "started_at": Field(dtype=_MOMENT, meaning="when the run was planned", unit="UTC"),
    "ended_at": Field(dtype=_MOMENT, meaning="when it ended; NULL while it has not", unit="UTC", nullable=True),
    "incremental": Field(dtype=_TEXT, meaning="the column that an incremental job reads by", nullable=True),
    "since": Field(dtype=_TEXT, meaning="its lowest value that was read; NULL if all rows were", nullable=True),
    "watermark": Field(
        dtype=_TEXT, meaning="where the next run begins, less its lag, once this one is done", nullable=True
    ),
    "run_checks": Field(
        dtype=pl.List(
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
        meaning="the rules across the run (`run_rules`), when it was done; `on_fail` is `error` or `warn`",
    ),
    "limits": Field(
        dtype=pl.List(
            pl.Struct(
                {
                    "limit": pl.String(),
                    "setting": pl.String(),
                    "waited_seconds": pl.Float64(),
                    "effect": pl.String(),
                }
            )
        ),
        meaning="what the job's limits were and did, written when a sitting ends: how long workers waited for each, in "
        "all sittings, and what else it changed",
    ),
    "stop_reason": Field(dtype=_TEXT, meaning="why it stopped", nullable=True),
    "host": Field(dtype=_TEXT, meaning="the machine of the last sitting's process"),
    "pid": Field(dtype=_NUMBER, meaning="that process"),
    "version": Field(dtype=_TEXT, meaning="keyhaul's version in the last sitting"),
    "fingerprint": Field(dtype=_TEXT, meaning="equal for jobs that may resume each other (SHA-256)"),
    "config": Field(dtype=_TEXT, meaning="what makes it the same job, as JSON, without secrets"),
}
"""Columns of `runs`. Seconds of the steps are summed over the workers; sums are of committed chunks only."""

CHUNKS: Final[Mapping[str, Field]] = {
    "run_id": Field(dtype=_TEXT, meaning="the run's name"),
    "chunk": Field(dtype=_NUMBER, meaning="its number in the plan, from 1 in key order; that of its first cut"),
    "kind": Field(dtype=_TEXT, meaning="`range`, `nulls` (NULL keys) or `keys` (a batch of a replay)"),
    "lower_bound": Field(
        dtype=_NAMES, meaning="the key's lowest values as PostgreSQL text, inclusive; NULL is open", nullable=True
    ),
    "upper_bound": Field(dtype=_NAMES, meaning="the same, exclusive; NULL is open", nullable=True),
    "cuts": Field(dtype=_NUMBER, meaning="cuts of the plan that it was merged from; 1 without `chunk: auto`"),
    "estimated_rows": _rows("expected by the plan"),
    "status": Field(dtype=_TEXT, meaning="`planned`, `done` or `failed`"),
    "attempts": Field(dtype=_NUMBER, meaning="tries so far; more than 1 after a transient error", unit="tries"),
    **_BALANCE,
    "warned": Field(
        dtype=pl.List(pl.Struct({"rule": pl.String(), "rows": pl.Int64()})),
        meaning="rows that failed a rule with `on_fail: warn`, by rule; they are loaded",
        unit="rows",
    ),
    "bytes_read": Field(dtype=_NUMBER, meaning="size of what was read, as Arrow buffers", unit="bytes"),
    **_STEPS,
    "worker": Field(dtype=_NUMBER, meaning="who moved it, from 1; NULL as long as nobody has", nullable=True),
    "sitting": Field(dtype=_NUMBER, meaning="in which sitting, from 1; NULL as long as none", nullable=True),
    "started_at": Field(dtype=_MOMENT, meaning="when its last try began; NULL unless done", unit="UTC", nullable=True),
    "ended_at": Field(
        dtype=_MOMENT, meaning="when it was committed or given up; NULL as long as neither", unit="UTC", nullable=True
    ),
    "error": Field(dtype=_TEXT, meaning="why it was given up", nullable=True),
}
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
    with _open(_place(target, home, ledger_schema, environ)) as (conn, schema):
        return read_runs(conn, schema)


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
    with _open(_place(target, home, ledger_schema, environ)) as (conn, schema):
        return read_chunks(conn, schema, find_run(conn, schema, run))


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
    place = _place(target, home, ledger_schema, environ)
    with _open(place) as (conn, schema):
        scan = _Scan(place, find_run(conn, schema, run))
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
    with ledger_errors(conn, schema), conn.transaction(), conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("set transaction isolation level repeatable read, read only")
        found = cursor.execute(statement("runs", schema), values).fetchall()
        more = {row["run_id"]: row for row in cursor.execute(statement("run_sums", schema), {"run_id": run_id})}
    rows = []
    for row in found:
        state = "interrupted" if row["status"] == "running" and not row["alive"] else row["status"]
        seconds = row["seconds"]
        rate = row["rows_read"] / seconds if seconds > 0 else 0.0
        limits = [{"limit": name, **of} for name, of in row["limits"].items()]
        rows.append({**row, **more[row["run_id"]], "limits": limits, "state": state, "rows_per_second": rate})
    return frame_of(rows, RUNS)


def read_chunks(conn: psycopg.Connection[Any], schema: str, run_id: str) -> pl.DataFrame:
    """Return what `chunks` does over an open connection."""
    with ledger_errors(conn, schema), conn.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(statement("chunk_frame", schema), {"run_id": run_id}).fetchall()
    for row in rows:
        row["warned"] = [{"rule": rule, "rows": number} for rule, number in row["warned"].items()]
    return frame_of(rows, CHUNKS)


def frame_of(rows: Sequence[Mapping[str, object]], fields: Mapping[str, Field]) -> pl.DataFrame:
    """Return rows as a frame with these columns; a value of another type is an error."""
    columns = {name: [row[name] for row in rows] for name in fields}
    return pl.DataFrame(
        [pl.Series(name, values, dtype=fields[name].dtype, strict=True) for name, values in columns.items()]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Which database has the ledger, and in which schema."""

    dsn: Dsn
    schema: str


def _place(
    target: str | None, home: str | None, ledger_schema: str | None, environ: Mapping[str, str] | None
) -> _Place:
    around = environ or {}
    return _Place(
        dsn=find_target(target or around.get("ETL_TARGET_URL") or EMBEDDED, home or around.get("ETL_HOME") or None),
        schema=ledger_schema or around.get("ETL_LEDGER_SCHEMA") or "keyhaul",
    )


@contextmanager
def _open(place: _Place) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    settings = {"timezone": "UTC"}
    with closing(connect(place.dsn, "target", application_name="keyhaul look back", settings=settings)) as conn:
        yield conn, place.schema


class _Scan:
    """A run's quarantine as a source of Polars: batches of the columns that a query uses."""

    def __init__(self, place: _Place, run_id: str) -> None:
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
            _open(self._place) as (conn, schema),
            ledger_errors(conn, schema),
            conn.transaction(),
            conn.cursor("keyhaul_quarantine", row_factory=dict_row) as cursor,
        ):
            cursor.execute(query, values)
            while rows := cursor.fetchmany(min(batch_size or FETCH_ROWS, FETCH_ROWS)):
                batch = frame_of(rows, fields)
                yield (batch if predicate is None else batch.filter(predicate)).select(wanted)
