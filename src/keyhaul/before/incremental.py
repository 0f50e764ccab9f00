"""Incremental runs: the watermark of the last run that was done, and the bound from which the next one reads.

Every value travels as PostgreSQL text and is compared by the source, in the column's own type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keyhaul.config.job import FilesSource
from keyhaul.differing import difference
from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Literal

    from keyhaul.config.job import Job
    from keyhaul.ledger.store import Ledger
    from keyhaul.sources.source import Increments, Source
    from keyhaul.targets.postgres import TargetTable

    Tell = Callable[[str, Literal["info", "warning"]], None]


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


def increments_of(source: Source) -> Increments:
    """Return what reads the new rows of a source.

    Raises:
        RefusedError: this kind of source cannot be asked for them.
    """
    increments = source.abilities.increments
    if increments is None:
        msg = f"read incrementally: {source.describe().label} cannot be asked for what is new. Leave out --incremental"
        raise RefusedError(msg)
    return increments


def check_full(job: Job, *, full: bool) -> None:
    """Refuse to read all rows of a job that always does.

    Raises:
        ConfigError: `full` is given, and the job is not incremental.
    """
    if full and job.incremental is None and not (isinstance(job.source, FilesSource) and job.source.only_new):
        raise ConfigError("--full: got a job that is not incremental, which reads all rows. Leave it out")


def find_delta(job: Job, source: Source, target: TargetTable, ledger: Ledger, *, full: bool) -> Delta | None:
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
    increments, column = increments_of(source), wanted.column
    since = increments.since(wanted, last.watermark) if last is not None and not full else None
    watermark = increments.highest(column, since, last.watermark if last is not None else None)
    warnings = [*increments.warnings(column, since, watermark)]
    if last is not None and since is not None:
        warnings += _changed(job, last.config)
    return Delta(column=column, since=since, watermark=watermark, warnings=warnings)


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
    job: Job, source: Source, target: TargetTable, ledger: Ledger, tell: Tell, *, full: bool
) -> Delta | None:
    """Find what a new run reads, as `find_delta` does, tell it, and limit the source to it."""
    delta = find_delta(job, source, target, ledger, full=full)
    if delta is not None:
        increments_of(source).limit(delta.column, delta.since)
        tell(f"reads {delta.reads} of {source.describe().label}", "info")
        for warning in delta.warnings:
            tell(warning, "warning")
    return delta


def limit_again(job: Job, source: Source, ledger: Ledger, run_id: str, *, full: bool) -> str:
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
    increments_of(source).limit(wanted.column, since)
    what = f", rows with {wanted.column} >= {since}" if since is not None else ""
    return f"{what}. What has changed in the others since is read by the next run"


def _changed(job: Job, config: Mapping[str, Any]) -> list[str]:
    ignored = {"contents": None, "chunk": None, "key": None, "incremental": None}
    changed = difference({**config, **ignored}, {**job.identity(), **ignored})
    if not changed:
        return []
    told = (
        f"the job has changed since its last run ({'; '.join(changed)}): rows that did not change stay as they were "
        "loaded. Give --full to load all again"
    )
    return [told]
