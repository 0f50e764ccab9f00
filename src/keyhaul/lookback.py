"""Looking back: past runs and their chunks, read from the ledger and printed.

Every function takes an open connection to the target's database and the name of the ledger's schema;
none of them writes there.
"""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.rows import class_row, dict_row, scalar_row

from keyhaul.bottleneck import Measured
from keyhaul.console import fitted, grid, write
from keyhaul.errors import ConfigError, ConnectError, RefusedError
from keyhaul.model import Counts, TableCounts, Timings
from keyhaul.reporting import balance, by_table, told_bottleneck
from keyhaul.sql import statement
from keyhaul.text import duration, one_line, per_second, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg.rows import BaseRowFactory
    from rich.console import Console, RenderableType
    from rich.table import Table

T = TypeVar("T")
Connection = psycopg.Connection[Any]

CHUNKS_SHOWN = 50
ROWS_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as the ledger has it, with its chunks summed up.

    Attributes:
        alive: a process holds the job's lock; a run that says ``running`` without it was interrupted.
        seconds: of all sittings, without the time between them.
        chunks_planned: those of the plan; of an auto chunk the cuts that are open count with the chunks that are not.
        auto: whether chunks were merged from cuts of `chunk_rows` rows.
        rows_read: as the other sums of rows, of committed chunks only.
        incremental: the column that the run reads by; `since` its lowest value that is read (None: all rows are),
            `watermark` where the next run begins, once this one is done.
        run_checks: the rules across the run, each with name, on_fail, passed, offenders and message.
        workers_reason: why there were so many at last; None when the job says how many.
        kind: ``run`` or ``replay``; a replay is one of the run `replay_of`.
        rows_resolved, rows_unresolved: of the records that it quarantined; a replay has none of its own.
    """

    run_id: str
    job: str
    source: str
    target_table: str
    status: str
    key: list[str]
    chunk_rows: int
    chunks_planned: int
    auto: bool
    estimated_rows: int
    sittings: int
    workers: int
    pid: int
    host: str
    version: str
    started_at: datetime
    ended_at: datetime | None
    stop_reason: str | None
    alive: bool
    kind: str
    replay_of: str | None
    workers_reason: str | None
    incremental: str | None
    since: str | None
    watermark: str | None
    run_checks: list[dict[str, Any]]
    limits: dict[str, dict[str, Any]]
    gathered: dict[str, int]
    rows_resolved: int
    rows_unresolved: int
    chunks_done: int
    chunks_failed: int
    rows_read: int
    rows_loaded: int
    rows_unchanged: int
    rows_duplicate: int
    rows_filtered: int
    rows_quarantined: int
    seconds: float

    @property
    def state(self) -> str:
        """The status for people: ``interrupted`` if it says running and no process is there."""
        return "interrupted" if self.status == "running" and not self.alive else self.status

    @property
    def counts(self) -> Counts:
        """The balance of the committed chunks."""
        return Counts(
            read=self.rows_read,
            loaded=self.rows_loaded,
            unchanged=self.rows_unchanged,
            duplicate=self.rows_duplicate,
            filtered=self.rows_filtered,
            quarantined=self.rows_quarantined,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRow:
    """A chunk as the ledger has it; the worker is None as long as nobody has taken it."""

    chunk: int
    kind: str
    lower_bound: list[str] | None
    upper_bound: list[str] | None
    status: str
    attempts: int
    rows_read: int
    rows_loaded: int
    rows_quarantined: int
    read_seconds: float
    transform_seconds: float
    stage_seconds: float
    load_seconds: float
    wait_seconds: float
    worker: int | None
    sitting: int | None
    error: str | None

    @property
    def range(self) -> str:
        """The key range: ``1 to 50001``, the upper end exclusive; ``…`` is open."""
        if self.kind == "nulls":
            return "NULL keys"
        if self.kind == "keys":
            return "quarantined keys"
        lower, upper = (", ".join(b) if b else "…" for b in (self.lower_bound, self.upper_bound))
        return one_line(f"{lower} to {upper}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    """One run with its chunks, or with those worth a look if there are many."""

    run: RunRow
    chunks: tuple[ChunkRow, ...]
    tables: tuple[TableCounts, ...] = ()
    timings: Timings = field(default_factory=Timings)


def find_run(conn: Connection, schema: str, run: str) -> str:
    """Return the run_id that `run` names: itself, or that of the newest run for ``last``.

    Raises:
        RefusedError: there is no such run (the message names the nearest ones), or no ledger.
    """
    names = fetch(conn, schema, "run_names", scalar_row)
    if not names:
        raise RefusedError(_no_run(conn, schema))
    if run == "last":
        return str(names[0])
    if run in names:
        return run
    known = difflib.get_close_matches(run, names[:1000], n=3, cutoff=0.7) or names[:3]
    raise RefusedError(
        f"find run {one_line(run)!r}: it is not in the ledger of {_place(conn)}, expected 'last' or a run's name "
        f"such as {', '.join(known)}. `etl runs` lists them."
    )


def list_runs(conn: Connection, schema: str, limit: int = ROWS_SHOWN) -> tuple[RunRow, ...]:
    """Return the newest `limit` runs, the newest first; an empty ledger gives none.

    Raises:
        RefusedError: there is no ledger.
    """
    values = {"run_id": None, "limit": limit, "schema": schema}
    return tuple(fetch(conn, schema, "runs", class_row(RunRow), values))


def show_run(conn: Connection, schema: str, run_id: str, *, chunk_limit: int | None = CHUNKS_SHOWN) -> RunDetail:
    """Return a run and its chunks in key order.

    Args:
        conn: to the target's database.
        schema: the ledger's.
        run_id: from `find_run`.
        chunk_limit: with more chunks than this, only the slowest ten, the failed and the retried; None: all.

    Raises:
        RefusedError: there is no such run, or no ledger.
    """
    values = {"run_id": run_id, "limit": 1, "schema": schema}
    runs = fetch(conn, schema, "runs", class_row(RunRow), values)
    if not runs:
        raise RefusedError(_no_run(conn, schema))
    values = {"run_id": run_id, "chunk_limit": chunk_limit}
    chunks = tuple(fetch(conn, schema, "run_chunks", class_row(ChunkRow), values))
    sums = fetch(conn, schema, "run_sums", dict_row, {"run_id": run_id})
    timings = Timings(**{one.name: sums[0][one.name] for one in fields(Timings)}) if sums else Timings()
    return RunDetail(run=runs[0], chunks=chunks, tables=read_tables(conn, schema, run_id), timings=timings)


def read_tables(conn: Connection, schema: str, run_id: str) -> tuple[TableCounts, ...]:
    """Return what became of the rows of each table, in the order of the job; empty for a job with one table."""
    with ledger_errors(conn, schema):
        found = conn.execute(statement("sum_tables", schema, run_id=run_id)).fetchall()
    names = ("table", "inserted", "updated", "unchanged", "duplicate")
    return tuple(TableCounts(**dict(zip(names, row, strict=True))) for row in found)


def fetch(
    conn: Connection, schema: str, name: str, rows: BaseRowFactory[T], values: Mapping[str, object] | None = None
) -> list[T]:
    """Return all rows of the ledger's statement `name`, as `rows` forms them; errors as `ledger_errors`."""
    with ledger_errors(conn, schema), conn.cursor(row_factory=rows) as cursor:
        return cursor.execute(statement(name, schema), values).fetchall()


@contextmanager
def ledger_errors(conn: Connection, schema: str) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        RefusedError: there is no ledger; the connection stays usable.
        ConnectError: the connection is lost.
        ConfigError: the ledger cannot be read.
    """
    try:
        yield
    except (pg.UndefinedTable, pg.InvalidSchemaName) as error:
        conn.rollback()
        raise RefusedError(_no_run(conn, schema)) from error
    except psycopg.OperationalError as error:
        raise ConnectError(f"read the ledger in {_place(conn)}: {_first_line(error)}. Try again.") from error
    except psycopg.Error as error:
        raise ConfigError(
            f"read the ledger {schema} in {_place(conn)}: {_first_line(error)}, expected a ledger that this login may "
            f"read. Check the login, or --target."
        ) from error


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).partition("\n")[0]


def _place(conn: Connection) -> str:
    info = conn.info
    return f"{info.host}:{info.port}/{info.dbname}"


def _no_run(conn: Connection, schema: str) -> str:
    return (
        f"look back: no run is recorded in {_place(conn)} (schema {schema}), expected a ledger with a run. "
        f"Name the database that a run has loaded with --target."
    )


_STATE_STYLES = {"done": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def print_runs(runs: Sequence[RunRow], stream: TextIO) -> None:
    """Print past runs, one line each; a narrow terminal gets fewer columns."""

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        columns = {
            "run": ("<", [Text(one_line(r.run_id)) for r in runs]),
            "job": ("<", [Text(one_line(r.job)) for r in runs]),
            "started (UTC)": ("<", [Text(r.started_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")) for r in runs]),
            "status": ("<", [Text(r.state, _STATE_STYLES.get(r.state, "dim")) for r in runs]),
            "loaded": (">", [Text(f"{r.rows_loaded:,}") for r in runs]),
            "quarantined": (">", [Text(f"{r.rows_quarantined:,}", _mark(r.rows_quarantined)) for r in runs]),
            "unresolved": (">", [Text(f"{r.rows_unresolved:,}", _mark(r.rows_unresolved)) for r in runs]),
            "seconds": (">", [Text(f"{r.seconds:,.1f}") for r in runs]),
            "rows/s": (">", [Text(f"{per_second(r.rows_read, r.seconds):,.0f}") for r in runs]),
        }
        # The run's name begins with its start.
        expendable = ("started (UTC)", "seconds", "rows/s", "quarantined", "job", "unresolved", "loaded")
        yield fitted(console, columns, expendable) if runs else "no run is recorded"

    write(stream, build)


def _mark(number: int) -> str:
    return "yellow" if number else ""


def print_run(detail: RunDetail, stream: TextIO, *, all_command: str = "") -> None:
    """Print one run: its head, its balance and its chunks.

    Args:
        detail: from `show_run`.
        stream: usually stdout.
        all_command: what shows every chunk; by default ``etl show RUN --all``.
    """
    run = detail.run

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        yield Text.assemble((f"Run {one_line(run.run_id)} ", "bold"), (run.state, _STATE_STYLES.get(run.state, "")))
        yield from _facts(run)
        yield ""
        yield from balance(run.counts)
        yield from by_table(detail.tables)
        # Where it ran is another machine, as far as the ledger's reader knows: nothing is said of its cores.
        held = {name: limit["waited_seconds"] for name, limit in run.limits.items()}
        yield from told_bottleneck(
            Measured(timings=detail.timings, chunks=run.chunks_done, workers=run.workers, held=held)
        )
        yield ""
        yield _chunks_table(detail.chunks, console)
        if len(detail.chunks) < run.chunks_planned:
            command = all_command or f"etl show {run.run_id} --all"
            yield f"  {len(detail.chunks):,} of {run.chunks_planned:,} chunks: the slowest, the failed and the retried."
            yield Text(f"  All: {one_line(command)}")
        for chunk in detail.chunks:
            if chunk.error:
                tries = plural(chunk.attempts, "try", "tries")
                yield Text(f"  chunk {chunk.chunk} {chunk.status} after {tries}: {one_line(chunk.error)}", "red")

    write(stream, build)


def _facts(run: RunRow) -> Iterable[RenderableType]:
    from rich.text import Text

    ended = f", ended {run.ended_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if run.ended_at else ""
    failed = f", {run.chunks_failed:,} failed" if run.chunks_failed else ""
    chunks = "chunks merged from cuts" if run.auto else "chunks"
    facts = {
        "job": run.job,
        "source": run.source,
        "target": run.target_table,
        "key": f"{', '.join(run.key)} in {chunks} of {run.chunk_rows:,} rows",
        "chunks": f"{run.chunks_done:,} of {run.chunks_planned:,} done{failed}",
        "started": f"{run.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}{ended} (UTC)",
        "time": f"{duration(run.seconds)} in {plural(run.sittings, 'sitting')}, {plural(run.workers, 'worker')}, "
        f"{per_second(run.rows_read, run.seconds):,.0f} rows/s",
        "process": f"{run.pid} on {run.host}, keyhaul {run.version}",
    }
    if run.workers_reason:
        facts["workers"] = run.workers_reason
    if run.incremental:
        facts["reads"] = "all rows" if run.since is None else f"rows with {run.incremental} >= {run.since}"
        counts = "" if run.status == "done" else ", not counted before the run is done"
        facts["watermark"] = "none, no row has a value" if run.watermark is None else f"{run.watermark}{counts}"
    for name, limit in run.limits.items():
        did = [limit["effect"]] if limit["effect"] else []
        did += [f"workers waited {duration(limit['waited_seconds'])} for it"] if limit["waited_seconds"] else []
        if did:
            facts[name] = f"{limit['setting']}: {'; '.join(did)}"
    for check in run.run_checks:
        word = "passed" if check["passed"] else f"failed ({check['on_fail']}): {check['message']}"
        facts[f"rule {check['name']}"] = word
    if run.replay_of:
        facts["replay of"] = run.replay_of
    if run.rows_resolved:
        left = f"quarantined records; {run.rows_unresolved:,} are left"
        facts["resolved"] = f"{run.rows_resolved:,} of {run.rows_quarantined:,} {left}"
    if run.stop_reason:
        facts["stopped"] = run.stop_reason
    table = grid(columns="<<")
    for name, value in facts.items():
        table.add_row("", Text(name, "dim"), Text(one_line(value), overflow="fold", no_wrap=False))
    table.columns[2].no_wrap, table.columns[2].overflow = False, "fold"
    yield table


def _chunks_table(chunks: Sequence[ChunkRow], console: Console) -> Table:
    from rich.text import Text

    columns = {
        "chunk": (">", [Text(str(c.chunk)) for c in chunks]),
        "keys": ("<", [Text(c.range) for c in chunks]),
        "status": ("<", [Text(c.status, _STATE_STYLES.get(c.status, "dim")) for c in chunks]),
        "rows": (">", [Text(f"{c.rows_read:,}") for c in chunks]),
        "read s": (">", [Text(f"{c.read_seconds:.2f}") for c in chunks]),
        "transf.": (">", [Text(f"{c.transform_seconds:.2f}") for c in chunks]),
        "stage": (">", [Text(f"{c.stage_seconds:.2f}") for c in chunks]),
        "load": (">", [Text(f"{c.load_seconds:.2f}") for c in chunks]),
        "wait": (">", [Text(f"{c.wait_seconds:.2f}") for c in chunks]),
        "tries": (">", [Text(str(c.attempts), _mark(c.attempts > 1)) for c in chunks]),
        "worker": (">", [Text("" if c.worker is None else str(c.worker)) for c in chunks]),
    }
    # A range of uuids is 76 columns long: the numbers come first, and a pipe gets it whole.
    for cell in columns["keys"][1]:
        cell.truncate(max(console.width - 66, 14), overflow="ellipsis")
    return fitted(console, columns, ("worker", "wait", "transf.", "stage", "read s", "load", "status", "rows"))
