"""Incremental runs: the watermark of the last run that was done, and the bound from which the next one reads.

Every value travels as PostgreSQL text and is compared by the source, in the column's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from keyhaul.config.identity import difference
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from keyhaul.config.job import Job
    from keyhaul.config.parts import Incremental
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Column
    from keyhaul.sources.postgres.sql import SqlSource
    from keyhaul.targets.postgres import TargetTable

    Tell = Callable[[str, Literal["info", "warning"]], None]

_LOWEST: Final = {"int2": "-32768", "int4": "-2147483648", "int8": "-9223372036854775808"}
_MOMENTS: Final = frozenset({"date", "timestamp", "timestamptz"})
_NUMBERS: Final = frozenset({*_LOWEST, "numeric"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What an incremental run reads, and what the next one will begin at.

    Attributes:
        column: whose values grow with every change of a row.
        since: the lowest value that is read, as text; None: all rows are, those with a NULL too.
        watermark: the highest value in the run's snapshot (or the last run's, when that is higher), as text;
            None without rows. It counts once the run is done.
        warnings: sentences for a person.
    """

    column: str
    since: str | None
    watermark: str | None
    warnings: Sequence[str] = ()

    @property
    def reads(self) -> str:
        """What is read, for a person."""
        return f"rows with {self.column} >= {self.since}" if self.since is not None else "all rows"


def check_incremental(source: SqlSource, wanted: Incremental) -> None:
    """Refuse a column that is not there, that has no fitting order, or that the lag cannot be taken from.

    Raises:
        ConfigError: the source has no such column.
        RefusedError: its type is not one of a number or a moment, or the lag is of the other kind.
    """
    column = source.relation.column(wanted.column)
    if column is None:
        listed = ", ".join(column.name for column in source.relation.columns)
        msg = (
            f"read incrementally: {source.relation.label} has no column {wanted.column}, expected one of {listed}. "
            "Change --incremental or incremental.column"
        )
        raise ConfigError(msg)
    if column.base_type not in _MOMENTS | _NUMBERS:
        msg = (
            f"read incrementally: {column.name} is {column.pg_type}, expected an integer, numeric, date or timestamp "
            "that grows with every change. Change --incremental or incremental.column"
        )
        raise RefusedError(msg)
    lag = wanted.lag
    moments = column.base_type in _MOMENTS
    if (lag.seconds if moments else lag.number) is None:
        form = "a duration such as 5m, 2h or 1d" if moments else "a number such as 100"
        msg = f"read incrementally: the lag of {column.name} ({column.pg_type}) is {lag}, expected {form}. Change --lag"
        raise RefusedError(msg)


def check_full(job: Job, *, full: bool) -> None:
    """Refuse to read all rows of a job that always does.

    Raises:
        ConfigError: `full` is given, and the job is not incremental.
    """
    if full and job.incremental is None:
        raise ConfigError("--full: got a job that is not incremental, which reads all rows. Leave it out")


def find_delta(job: Job, source: SqlSource, target: TargetTable, ledger: Ledger, *, full: bool) -> Delta | None:
    """Return what a new run of this job reads; None when the job is not incremental. Writes nothing.

    Args:
        job: the one that runs.
        source: its snapshot is asked.
        target: as it was found.
        ledger: may not be there yet.
        full: read all rows, whatever earlier runs have read.

    Raises:
        RefusedError: rows were loaded before, and the target is gone or empty, or was replaced since.
    """
    wanted = job.incremental
    if wanted is None:
        return None
    last = None
    if ledger.exists():
        last = ledger.last_watermark(job.identity()["source"], target.label, wanted.column)
    emptied = _emptied(target, ledger) if last is not None and not full else ""
    if last is not None and not full and (emptied or target.ddl.before or (last.loaded and not target.holds_rows)):
        what = "not there any more" if target.ddl.before else "empty"
        msg = (
            f"load {emptied or target.label}: it is {what}, though run {last.run_id} or one before has loaded it, and "
            "an incremental run reads only what came after that. Give --full to read all rows"
        )
        raise RefusedError(msg)
    other = ledger.replaced_since(last.run_id) if last is not None and not full else None
    if other is not None:
        msg = (
            f"load {target.label}: run {other[0]} has {other[1]} it since this job has read all rows, and an "
            "incremental run reads only what is new. Give --full to read all rows"
        )
        raise RefusedError(msg)
    column = source.relation.column(wanted.column)
    if column is None:  # pragma: no cover - check_incremental has looked
        raise ConfigError(wanted.column)
    since = _since(source, column, wanted, last.watermark) if last is not None and not full else None
    watermark = _highest(source, column, since, last.watermark if last is not None else None)
    warnings = [*_warnings(source, column, since, watermark)]
    if last is not None and since is not None:
        warnings += _changed(job, last.config)
    return Delta(column=column.name, since=since, watermark=watermark, warnings=warnings)


def _emptied(target: TargetTable, ledger: Ledger) -> str:
    """Return which of several tables is empty though runs have loaded it, or an empty string."""
    if not target.others:
        return ""
    loaded = set(ledger.loaded_tables(target.label))
    for one in (target, *target.others):
        query = sql.SQL("select exists (select from {})").format(one.identifier)
        row = ledger.connection.execute(query).fetchone()
        label = f"{one.schema}.{one.table}"
        if label in loaded and not (row and row[0]):
            return label
    return ""


def begin_delta(
    job: Job, source: SqlSource, target: TargetTable, ledger: Ledger, tell: Tell, *, full: bool
) -> Delta | None:
    """Find what a new run reads, as `find_delta` does, tell it, and limit the source to it."""
    delta = find_delta(job, source, target, ledger, full=full)
    if delta is not None:
        limit(source, delta.column, delta.since)
        tell(f"reads {delta.reads} of {source.relation.label}", "info")
        for warning in delta.warnings:
            tell(warning, "warning")
    return delta


def limit(source: SqlSource, column_name: str, since: str | None) -> None:
    """Make the source plan and read only the rows from `since` on; a replay's batches are not limited."""
    column = source.relation.column(column_name)
    source.only = _from(column, since) if column is not None and since is not None else None


def limit_again(job: Job, source: SqlSource, ledger: Ledger, run_id: str, *, full: bool) -> str:
    """Limit the source to what an unfinished run reads; returns what a person should know of it, or nothing.

    Raises:
        RefusedError: all rows are asked for, and the run reads only some.
    """
    wanted = job.incremental
    if wanted is None:
        return ""
    since = ledger.since(run_id)
    if full and since is not None:
        msg = (
            f"resume run {run_id}: it reads only rows with {wanted.column} >= {since}, and --full is given. Give "
            "--fresh as well to start a new run that reads all rows, or leave --full out to go on"
        )
        raise RefusedError(msg)
    limit(source, wanted.column, since)
    what = f", rows with {wanted.column} >= {since}" if since is not None else ""
    return f"{what}. What has changed in the others since is read by the next run"


def _literal(column: Column, text: str) -> sql.Composed:
    # The bare type: a modifier would round a bound, a domain might refuse it.
    return sql.SQL("{}::pg_catalog.{}").format(sql.Literal(text), sql.Identifier(column.base_type))


def _from(column: Column, since: str) -> sql.Composed:
    return sql.SQL("{} >= {}").format(sql.Identifier(column.name), _literal(column, since))


def _since(source: SqlSource, column: Column, wanted: Incremental, watermark: str) -> str:
    """Return the watermark less the lag, rounded down to a value of the column's type."""
    high = _literal(column, watermark)
    if column.base_type in _MOMENTS:
        lower = sql.SQL("{} - make_interval(secs => {})").format(high, sql.Literal(float(wanted.lag.seconds or 0)))
    else:
        lower = sql.SQL("{}::numeric - {}").format(high, sql.Literal(wanted.lag.number or 0))
        if column.base_type in _LOWEST:
            lower = sql.SQL("greatest(floor({}), {})").format(lower, sql.SQL(_LOWEST[column.base_type]))
    row = _ask(source, sql.SQL("select ({})::pg_catalog.{}::text").format(lower, sql.Identifier(column.base_type)))
    return str(row[0])


def _highest(source: SqlSource, column: Column, since: str | None, before: str | None) -> str | None:
    """Return the greatest value: from the index when one leads with the column. Infinity and NaN end nothing."""
    name = sql.Identifier(column.name)
    conditions = [_from(column, since)] if since is not None else []
    if column.base_type not in _LOWEST:
        conditions.append(sql.SQL("{} < {}").format(name, _literal(column, "infinity")))
    where = sql.SQL(" and ").join(conditions) if conditions else sql.SQL("true")
    highest = sql.SQL("(select max({}) from {} where {})").format(name, source.relation.from_item, where)
    if before is not None:  # rows deleted since do not move it back
        highest = sql.SQL("greatest({}, {})").format(highest, _literal(column, before))
    row = _ask(source, sql.SQL("select {}::pg_catalog.{}::text").format(highest, sql.Identifier(column.base_type)))
    return None if row[0] is None else str(row[0])


def _warnings(source: SqlSource, column: Column, since: str | None, watermark: str | None) -> list[str]:
    relation, found = source.relation, []
    indexed = relation.oid is not None and catalog.leads_an_index(source.conn, relation.oid, [column.name])
    if not indexed and relation.kind in {"r", "p", "m"} and since is not None:
        found.append(f"no index of {relation.label} leads with {column.name}: the table is scanned to find what is new")
    if column.base_type in _MOMENTS and watermark is not None:
        late = sql.SQL("select {}::timestamptz > now() + interval '1 day'").format(_literal(column, watermark))
        if _ask(source, late)[0]:
            found.append(
                f"the watermark of {column.name} is {watermark}, in the future: rows that change before that, by more "
                "than the lag, will not be read by the next runs. Correct those rows and give --full"
            )
    if indexed and not column.not_null:
        item, name = relation.from_item, sql.Identifier(column.name)
        if _ask(source, sql.SQL("select exists(select from {} where {} is null)").format(item, name))[0]:
            runs = "only the first run or --full reads them" if since is None else "this run does not read them"
            found.append(f"there are rows of {relation.label} whose {column.name} is NULL: {runs}")
    return found


def _changed(job: Job, config: Mapping[str, Any]) -> list[str]:
    ignored = {"chunk": None, "key": None, "incremental": None}
    changed = difference({**config, **ignored}, {**job.identity(), **ignored})
    if not changed:
        return []
    told = (
        f"the job has changed since its last run ({'; '.join(changed)}): rows that did not change stay as they were "
        "loaded. Give --full to load all again"
    )
    return [told]


def _ask(source: SqlSource, query: sql.Composed) -> Sequence[Any]:
    row = source.conn.execute(query).fetchone()
    return row if row is not None else (None,)
