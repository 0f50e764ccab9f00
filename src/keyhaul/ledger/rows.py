"""What the ledger's rows say of runs: the nouns that `ledger` takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from keyhaul.model import FATES, Chunk, TableCounts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from keyhaul.model import Counts, FailedChunk


def chunk_of(row: Sequence[Any]) -> Chunk:
    """Return a chunk from its ledger row's number, kind, bounds and estimate."""
    number, kind, lower, upper, estimated = row
    lower, upper = (None if bound is None else tuple(bound) for bound in (lower, upper))
    return Chunk(number=number, kind=kind, lower=lower, upper=upper, estimated_rows=estimated)


def tables_of(rows: Iterable[Sequence[Any]]) -> tuple[TableCounts, ...]:
    """Return what became of the rows of each table, from the statement `sum_tables`."""
    return tuple(TableCounts(table=table, **dict(zip(FATES, numbers, strict=True))) for table, *numbers in rows)


def lost(run_id: str) -> str:
    """Return what to say when the ledger does not have a run, or chunks of its plan, that it had."""
    return (
        f"ask ledger: the target does not have the whole plan of run {run_id} any more. Somebody has deleted it, or "
        "the target has lost what it had committed (a failover to a server that had not got it). Compare the "
        "table with the source before you load anything else"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """A run that the same command may go on with; `fresh_table` is the quoted one that it loads in mode replace."""

    run_id: str
    fingerprint: str
    config: Mapping[str, Any]
    target_table: str
    fresh_table: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files that a run has read, as its source's identity has them, and the rows that it has loaded so far."""

    run_id: str
    status: str
    files: Sequence[Mapping[str, Any]]
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a run's report tells beside the balance; `late` are passes and rows, None where none waited."""

    quarantined_by_reason: Mapping[str, int]
    failed: tuple[FailedChunk, ...]
    warned: Mapping[str, int]
    tables: tuple[TableCounts, ...]
    late: tuple[int | None, int | None] = (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What the ledger records of a run before its first read; holds no secret.

    `checksum` describes what is hashed of the rows (`keyhaul.before.checksums`); None for a run without checksums.
    `emptied`: its table was emptied when it began. `given` is the job as `Job.given` has it.
    """

    run_id: str
    job: str
    fingerprint: str
    config: Mapping[str, Any]
    source: str
    target_table: str
    key: Sequence[str]
    chunk_rows: int
    workers: int
    finish: Sequence[Mapping[str, str]] = ()
    kind: Literal["run", "replay"] = "run"
    replay_of: str | None = None
    fresh_table: str | None = None
    since: str | None = None
    watermark: str | None = None
    checksum: Mapping[str, Any] | None = None
    emptied: bool = False
    given: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watermark:
    """Where the last incremental run ended that is done; `loaded` are the rows of all of them with one target."""

    run_id: str
    watermark: str
    config: Mapping[str, Any]
    loaded: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayable:
    """A run whose quarantined records can be sent again, as far as the job given must agree with it.

    Attributes:
        lost: why its rows are not in the target table, or an empty string; `newer` is the run of the same job that has
            taken their place, if one has.
        given_up_for: the run of the same job that began anew in its stead; empty for one that was not given up.
    """

    run_id: str
    job: str
    kind: Literal["run", "replay"]
    replay_of: str
    key: Sequence[str]
    target_table: str
    config: Mapping[str, Any]
    rows_read: int
    lost: str = ""
    newer: str = ""
    given_up_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Older:
    """An older run of a job that still has unresolved records."""

    run_id: str
    unresolved: int
    rows_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """A run's chunks and balance, summed by SQL from its committed chunks."""

    done: int
    failed: int
    planned: int
    counts: Counts
