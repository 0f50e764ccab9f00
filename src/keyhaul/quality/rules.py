"""A job's rules on the job's target table: the same DuckDB conditions as in a load, over batches of bounded memory."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
from polars import selectors as cs

from keyhaul.errors import ConfigError
from keyhaul.model import RECORD
from keyhaul.postgres import catalog, pgtypes
from keyhaul.quality.offenders import CHECK, Asked, exporting
from keyhaul.quality.verdict import Verdict, status_of
from keyhaul.quoting import quote_name
from keyhaul.sessions.connecting import connect, noticing, session_settings, with_login
from keyhaul.sessions.links import settling
from keyhaul.sources.postgres.readers import translate
from keyhaul.staging.rules import Check, compile_rules
from keyhaul.staging.stage import Stager
from keyhaul.transform.compiled import meanings_of
from keyhaul.transform.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from keyhaul.config.job import Job
    from keyhaul.model import Column
    from keyhaul.postgres.catalog import Relation
    from keyhaul.postgres.dsn import Dsn

BATCH_ROWS: Final = 50_000
_ODD: Final = "_odd:"
"""Beginning of the name of a column that says whether another one holds ±infinity."""
_MOMENTS: Final = frozenset({"date", "timestamp", "timestamptz"})
_MOMENT_TEXTS: Final = (
    cs.date().dt.to_string("%Y-%m-%d"),
    cs.datetime(time_zone=None).dt.to_string("%Y-%m-%d %H:%M:%S%.f"),
    cs.datetime(time_zone="*").dt.to_string("%Y-%m-%d %H:%M:%S%.f%:z"),
)
"""Python has no year beyond 9999 and none before 1."""


def check_rules(job: Job, dsn: Dsn, place: str, asked: Asked) -> tuple[str, list[Verdict], int | None]:
    """Run a job's rules over its target's rows, read from one moment.

    A record for which a rule cannot be evaluated fails it, as in a load; so does one that holds ±infinity or a NaN
    where a rule looks at the column and Arrow has no such value. ``on_fail: warn`` is a warning, anything else an
    error.

    Args:
        job: with the rules to run.
        dsn: of the target.
        place: what the database is called in results; host, port and name by default.
        asked: which offenders are wanted.

    Returns:
        What was checked, the verdicts, and the number of rows exported.

    Raises:
        ConfigError: there is no such table, or a rule does not fit its columns.
    """
    if job.targets:
        msg = f"check job {job.job}: its records become rows of several tables, expected one. Write a checks file"
        raise ConfigError(msg)
    settings = session_settings(job, default_transaction_read_only="on", idle_in_transaction_session_timeout="0")
    with connect(dsn, "target", application_name="keyhaul check", settings=settings) as conn:
        found = catalog.resolve(conn, job.target.table)
        if found is None:
            msg = f"check {job.target.table}: there is no such table in {dsn.label}. Run the job first, or correct it"
            raise ConfigError(msg)
        relation = catalog.describe_table(conn, *found)
        dsn = noticing(with_login(dsn, conn), conn)
        checks, columns = _compiled(job, relation)
        uri = dsn.uri(application_name="keyhaul check", options=settings)
        run = _Run(checks, columns, relation, asked)
        if asked.export is None:
            run.over(_batches(uri, _query(columns, relation, conn)), lambda _batch: None)
        else:
            with exporting(asked) as write:
                run.over(_batches(uri, _query(columns, relation, conn)), write)
    label = f"{place or dsn.identity} {relation.label}"
    return label, run.verdicts(job), run.exported if asked.export is not None else None


def _compiled(job: Job, relation: Relation) -> tuple[tuple[Check, ...], dict[str, Column]]:
    types = {column.name: pgtypes.route(column).dtype for column in relation.columns}
    checks = compile_rules(job.rules, types, meanings_of({column.name: column for column in relation.columns}))
    looked_at = {name for check in checks for name in check.columns}
    wanted = {
        column.name: column for column in relation.columns if column.name in looked_at | set(relation.primary_key)
    }
    refused = [f"{name}: {pgtypes.route(column).reason}" for name, column in wanted.items() if _refused(column)]
    if refused:
        raise ConfigError("\n".join(f"check rules: column {text}" for text in refused))
    return checks, wanted


def _refused(column: Column) -> bool:
    return pgtypes.route(column).kind == "refused"


def _query(columns: Mapping[str, Column], relation: Relation, conn: Any) -> str:  # noqa: ANN401 - any psycopg connection
    """Return the query for the columns that rules look at, in the forms of their routes."""
    parts = []
    for name, column in columns.items():
        told = quote_name(name)
        if column.base_type in _MOMENTS:
            # ADBC would wrap others without a word. A load takes these, too (pgtypes.TIMESTAMP_CEILING_MICROSECONDS).
            fits = f"isfinite({told}) and {told} < '248000-01-01'"
            parts += [f"case when {fits} then {told} end as {told}", f"not ({fits}) as {quote_name(_ODD + name)}"]
        else:
            parts.append(f"{told}::text as {told}" if pgtypes.route(column).select_text else told)
    return f"select {', '.join(parts) or '1 as one'} from {relation.from_item.as_string(conn)}"


def _batches(uri: str, query: str) -> Iterator[pa.Table]:
    """Yield the rows of a query, at least `BATCH_ROWS` of them at a time while there are as many."""
    import adbc_driver_postgresql.dbapi as adbc

    try:
        with adbc.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(settling(uri))
            connection.commit()
            cursor.execute(query)
            with cursor.fetch_record_batch() as reader:
                waiting: list[pa.RecordBatch] = []
                for batch in reader:
                    waiting.append(batch)
                    if sum(one.num_rows for one in waiting) >= BATCH_ROWS:
                        yield pa.Table.from_batches(waiting)
                        waiting = []
                yield pa.Table.from_batches(waiting, schema=reader.schema)
    except adbc.Error as error:
        raise ConfigError(str(translate(error, "ADBC"))) from error


def _failing_alone(stager: Stager, frame: pl.DataFrame) -> pl.Series:
    """Return the records that fail a stager's one rule, or for which it cannot be evaluated."""
    found = stager.failing(frame)
    return found.filter(pl.col(found.columns[1]) | pl.col("_error").is_not_null())[RECORD]


class _Run:
    """The counts of one execution, batch by batch."""

    def __init__(
        self, checks: Sequence[Check], columns: Mapping[str, Column], relation: Relation, asked: Asked
    ) -> None:
        self._checks = checks
        self._columns = columns
        self._key = relation.primary_key
        self._asked = asked
        self._types = {name: pgtypes.route(column).dtype for name, column in columns.items()}
        self._failures = dict.fromkeys((check.name for check in checks), 0)
        self._offenders: dict[str, list[dict[str, str | None]]] = {check.name: [] for check in checks}
        self._rows = 0
        self._columns_written = False
        self.exported = 0

    def over(self, batches: Iterator[pa.Table], write: Callable[[pa.RecordBatch], None]) -> None:
        """Count the failures of every batch, and write the rows that fail."""
        with ExitStack() as stack:
            alone = [Stager([check], None, (), self._key) for check in self._checks]
            stager = Stager(self._checks, None, (), self._key)
            for one in (stager, *alone):
                stack.callback(one.close)
            for table in batches:
                self._count(stager, alone, table, write)

    def _count(
        self, stager: Stager, alone: Sequence[Stager], table: pa.Table, write: Callable[[pa.RecordBatch], None]
    ) -> None:
        odd = [name for name in table.column_names if name.startswith(_ODD) and name.removeprefix(_ODD) in self._types]
        flags = pl.DataFrame(pl.from_arrow(table.select(odd))) if odd else pl.DataFrame()
        plain = table.drop_columns(odd) if odd else table
        frame, misfits = decode(
            plain, {name: dtype for name, dtype in self._types.items() if name in plain.column_names}
        )
        bad = {name.removeprefix(_ODD): flags[name].fill_null(value=False) for name in odd}
        for name in misfits:
            fits = frame[name].cast(self._types[name], strict=False)
            bad[name] = fits.is_null() & frame[name].is_not_null()
            frame = frame.with_columns(fits)
        frame = frame.with_row_index(RECORD).with_columns(pl.col(RECORD).cast(pl.Int64))
        self._rows += frame.height
        if self._asked.export is not None and not self._columns_written:
            # A file without rows, too, has its columns.
            write(pa.RecordBatch.from_pylist([], schema=self._offending(frame.clear(), "").schema))
            self._columns_written = True
        if not frame.height:
            return
        found = stager.failing(frame)
        # The pass over all rules does not say which of them could not be evaluated.
        raising = found.filter(pl.col("_error").is_not_null())[RECORD]
        doubtful = frame.filter(pl.col(RECORD).is_in(raising.implode()))
        for number, check in enumerate(self._checks):
            failed = found.filter(pl.col(found.columns[number + 1]))[RECORD]
            if doubtful.height:
                failed = pl.concat([failed, _failing_alone(alone[number], doubtful)])
            guilty = frame[RECORD].is_in(failed.implode())
            for name in check.columns & bad.keys():
                guilty |= bad[name]
            self._note(check, frame.filter(guilty), write)

    def _note(self, check: Check, rows: pl.DataFrame, write: Callable[[pa.RecordBatch], None]) -> None:
        self._failures[check.name] += rows.height
        kept = self._offenders[check.name]
        shown = list(dict.fromkeys([*self._key, *(sorted(check.columns) if self._asked.show_values else ())]))
        if shown and len(kept) < self._asked.sample_rows:
            few = rows.select(shown).head(self._asked.sample_rows - len(kept)).with_columns(*_MOMENT_TEXTS)
            kept += [{name: None if v is None else str(v) for name, v in row.items()} for row in few.to_dicts()]
        if self._asked.export is not None and rows.height:
            self.exported += rows.height
            for batch in self._offending(rows, check.name).to_batches():
                write(batch)

    def _offending(self, rows: pl.DataFrame, name: str) -> pa.Table:
        return rows.select(pl.lit(name).alias(CHECK), *self._columns).to_arrow(compat_level=pl.CompatLevel.oldest())

    def verdicts(self, job: Job) -> list[Verdict]:
        """Return a verdict for each check; one for each column of a rule ``not_null``."""
        lines = {rule.at: int(rule.at.rpartition(" line ")[2] or 0) for rule in job.rules if " line " in rule.at}
        return [
            Verdict(
                name=check.name,
                kind="rule",
                severity="warn" if check.on_fail == "warn" else "error",
                status=status_of("warn" if check.on_fail == "warn" else "error", holds=not self._failures[check.name]),
                rows=self._rows,
                failures=self._failures[check.name],
                offenders=tuple(self._offenders[check.name]),
                at=check.at,
                line=lines.get(check.at, 0),
            )
            for check in self._checks
        ]
