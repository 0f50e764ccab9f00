"""Verify: what the source gives now, through the job's own steps, beside what the target has, chunk by chunk.

Nothing is written: the expected rows are put into temporary tables of the target, whose transactions are
rolled back. How rows are compared: docs/design.md.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from keyhaul import events
from keyhaul.before.matching import find_matching
from keyhaul.before.prepare import prepare
from keyhaul.comparison.accepted import Accepted
from keyhaul.comparison.differences import (
    FIRST_DIFFERENCES,
    MOST_DIFFERENCES,
    ChunkTally,
    Difference,
    Verification,
    broken_off,
)
from keyhaul.comparison.verifiable import find_original
from keyhaul.errors import ChunkError, ConfigError, StopRunError, first_line
from keyhaul.ledger.store import new_run_id
from keyhaul.model import Chunk, Counts
from keyhaul.postgres.dsn import redact
from keyhaul.retrying import attempts
from keyhaul.sessions.connecting import find_ends
from keyhaul.targets.compare import RowDifference, Slice, Tally
from keyhaul.targets.keyrange import within
from keyhaul.targets.session import CopySession
from keyhaul.team import Team
from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from keyhaul.before.matching import Matching
    from keyhaul.before.prepare import Prepared
    from keyhaul.config.job import Job
    from keyhaul.errors import EtlError
    from keyhaul.ledger.rows import Replayable
    from keyhaul.model import Observer


def verify(
    job: Job,
    run: str = "last",
    *,
    extra: bool | None = None,
    limit: int = FIRST_DIFFERENCES,
    show_values: bool = False,
    changed: bool = False,
    observe: Observer = lambda _event: None,
) -> Verification:
    """Compare a run's target with what the source gives now, in one snapshot, through the same job.

    Args:
        job: validated; the run's own.
        run: its name, or ``last`` for the job's newest.
        extra: whether rows that only the target has are differences; None: when the table was empty before
            the load (no mode, or replace).
        limit: how many differences are named; all are counted.
        show_values: whether the named differences have their values, not only key and columns.
        changed: the job may be another than the run's.
        observe: called with events, from the threads where they happen.

    Raises:
        ConfigError: the command, job or databases do not fit, or the run is another job's.
        StopRunError: a database was lost, or a chunk could not be compared.
    """
    if not 0 <= limit <= MOST_DIFFERENCES:
        raise ConfigError(f"verify limit: got {limit}, expected a whole number from 0 to {MOST_DIFFERENCES}")
    started = time.perf_counter()
    run_id = new_run_id()
    with prepare(job, find_ends(job), run_id=run_id) as prepared:
        prepared.telling(observe)
        comparison = None
        try:
            original = find_original(prepared, prepared.ledger, run, observe, changed=changed)
            comparison = _Comparison(prepared, original, observe, limit=limit, extra=extra, show_values=show_values)
            return comparison.execute(started)
        except psycopg.Error as error:
            raise StopRunError(_broken_off(prepared, comparison, first_line(error))) from error
        except ChunkError as error:
            raise StopRunError(_broken_off(prepared, comparison, str(error))) from error


def _broken_off(prepared: Prepared, comparison: _Comparison | None, text: str) -> str:
    differing = comparison.differing if comparison else 0
    told = broken_off(f"verify {prepared.target.label}", text, differing)
    return redact(told, *prepared.ends.all)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """What is compared at a time: chunks of the source, and the target's rows for which a condition holds."""

    number: int
    chunks: tuple[Chunk, ...]
    where: sql.Composable
    distinct: bool

    def explain(self, error: EtlError) -> ChunkError:
        """Return an error as that of this part; what it advises is for a move, which goes on."""
        text = str(error).removeprefix("load chunk: ").removeprefix("read chunk: ")
        text = text.partition(". Run the same command again")[0]
        return ChunkError(f"{f'chunk {self.number}' if self.number else 'the whole table'}: {text}")


class _Reader:
    """What one thread has: connections to the source."""

    def __init__(self, comparison: _Comparison, accepted: Accepted, number: int) -> None:
        self._comparison = comparison
        self._accepted = accepted
        self._number = number

    def do(self, part: _Part) -> None:
        self._comparison.again(self._accepted, part, self._number)

    def close(self) -> None:
        self._accepted.close()


class _Comparison:
    """One verification: parts in a queue, a thread for each worker, and what they have found."""

    def __init__(
        self,
        prepared: Prepared,
        original: Replayable,
        observe: Observer,
        *,
        limit: int,
        extra: bool | None,
        show_values: bool,
    ) -> None:
        self._prepared = prepared
        self._original = original
        self._observe = observe
        self._limit = limit
        self._show_values = show_values
        self._matching: Matching = find_matching(prepared)
        self._extra = prepared.job.target.mode in {None, "replace"} if extra is None else extra
        self._lock = threading.Lock()
        self._team: Team[_Part] = Team("keyhaul-verify", self._hire, self._cancel)
        self._sessions: set[CopySession] = set()
        self._rows = self._rejected = self._older = 0
        self._counts = Counts()
        self._tallies: list[ChunkTally] = []
        self._differences: list[Difference] = []

    @property
    def differing(self) -> int:
        """Return how many chunks have been found to differ so far."""
        return len(self._tallies)

    def execute(self, started: float) -> Verification:
        """Compare all parts and sum up."""
        ledger, run_id = self._prepared.ledger, self._original.run_id
        listed = ledger.all_chunks(run_id)
        chunks = [chunk for chunk, loaded in listed if loaded]
        parts = self._parts(chunks)
        if len(chunks) > 1 and self._matching.ranged and not self._matching.indexed:
            names = ", ".join(column.name for column in self._matching.key)
            message = (
                f"no index of {self._prepared.target.label} leads with {names}: each of the {len(chunks)} chunks scans "
                "it whole. An index on the key helps"
            )
            self._observe(events.Notice(message=message, level="warning"))
        self._team.work(parts, self._prepared.count_workers(len(parts), self._observe))
        tallies = sorted(self._tallies, key=lambda tally: tally.chunk)
        of_the_run = ledger.totals(run_id).counts
        self._warn(of_the_run)
        return Verification(
            run_id=run_id,
            job=self._original.job,
            target=self._prepared.target.label,
            key=tuple(column.name for column in self._matching.key),
            rows=self._rows,
            chunks=len(chunks),
            unloaded=len(listed) - len(chunks),
            read=self._counts.read,
            quarantined=self._counts.quarantined,
            filtered=self._counts.filtered,
            duplicate=self._counts.duplicate,
            older=self._older,
            run=of_the_run,
            rejected=self._rejected,
            changed=sum(tally.changed for tally in tallies),
            missing=sum(tally.missing for tally in tallies),
            extra=sum(tally.extra for tally in tallies),
            by_chunk=tuple(tallies),
            differences=tuple(sorted(self._differences, key=lambda one: one.chunk)[: self._limit]),
            extra_checked=self._extra,
            whole=self._matching.why_whole,
            seconds=time.perf_counter() - started,
        )

    def _warn(self, of_the_run: Counts) -> None:
        """Say that rows are not compared which the job would quarantine now; the run may have loaded them."""
        now, then = self._counts.quarantined, of_the_run.quarantined
        # An incremental run has read less than is compared.
        if now > then and not self._original.config.get("incremental"):
            message = (
                f"{plural(now, 'row')} of the source would be quarantined now, and the run quarantined {then:,}: they "
                "are not compared"
            )
            self._observe(events.Notice(message=message, level="warning"))

    def _parts(self, chunks: Sequence[Chunk]) -> list[_Part]:
        matching = self._matching
        if not matching.ranged:
            # One key may have rows in two chunks of the target's order, but none is in two of the source's.
            return [_Part(number=0, chunks=tuple(chunks), where=sql.SQL("true"), distinct=matching.unique)]
        parts = [
            _Part(
                number=chunk.number,
                chunks=(chunk,),
                where=within(chunk, matching.key, matching.nullable),
                distinct=matching.unique and chunk.kind == "range",
            )
            for chunk in chunks
        ]
        if matching.nullable and self._extra and not any(chunk.kind == "nulls" for chunk in chunks):
            # The source has no NULL keys; the target might.
            nulls = Chunk(number=max((chunk.number for chunk in chunks), default=0) + 1, kind="nulls")
            where = within(nulls, matching.key, matching.nullable)
            parts.append(_Part(number=nulls.number, chunks=(), where=where, distinct=False))
        return parts

    # --- threads ---------------------------------------------------------------------------------

    def _hire(self, number: int) -> _Reader:
        return _Reader(self, Accepted(self._prepared, number, self._original.run_id), number)

    def _cancel(self) -> None:
        """End what both servers do for this comparison."""
        for session in list(self._sessions):
            session.cancel()
        try:
            self._prepared.source.cancel()
        except ConfigError:
            return  # the daemon threads end with the process

    def again(self, accepted: Accepted, part: _Part, number: int) -> None:
        """Compare a part; again after an error that another try may get past."""
        try:
            for attempt in attempts(self._prepared.job.retries, self._team.stopping):
                with attempt:
                    self._compare(accepted, part, number)
        except (ChunkError, StopRunError) as error:
            raise part.explain(error) from error

    # --- one part --------------------------------------------------------------------------------

    def _compare(self, accepted: Accepted, part: _Part, number: int) -> None:
        session = CopySession(self._prepared.target_uri(number))
        self._sessions.add(session)
        try:
            destination = self._prepared.target.destination(self._prepared.columns)
            compared = Slice(
                session, destination, self._matching.key, part.where, extra=self._extra, ordered=self._matching.ranged
            )
            rejected, distinct, counts = 0, True, Counts()
            for chunk in part.chunks:
                if self._team.stopping.is_set():
                    return
                expected = accepted.read(session, chunk)
                distinct = distinct and self._distinct(expected.frame, part)
                placed = compared.expect(expected.frame, expected.columns)
                copies = placed.duplicate + placed.updated + placed.unchanged  # one row stands for several
                counts += expected.counts + Counts(quarantined=placed.invalid.height, duplicate=copies)
                rejected += expected.rejected
                del expected
            older = compared.forget_older()
            rows, equal = compared.equal(distinct=distinct)
            tally, found = (Tally(), []) if equal else compared.narrow(self._limit)
        finally:
            self._sessions.discard(session)
            session.close()  # which rolls back
        with self._lock:
            self._rows += rows
            self._rejected += rejected
            self._older += older
            self._counts += counts
            if tally.total:
                more = ChunkTally(chunk=part.number, changed=tally.changed, missing=tally.missing, extra=tally.extra)
                self._tallies.append(more)
            self._differences += [self._told(part.number, one) for one in found]

    def _distinct(self, frame: pl.DataFrame, part: _Part) -> bool:
        """Whether no two rows can be equal in the target: it compares keys of which 1.0 and 1.00 are one."""
        names = [column.name for column in self._matching.key]
        if not names or not (part.distinct or self._matching.exact_texts):
            return False
        keys = frame.select(names).drop_nulls()
        return keys.height == frame.height and keys.n_unique() == keys.height

    def _told(self, number: int, one: RowDifference) -> Difference:
        shown = self._show_values
        names = set(one.columns) if one.kind == "changed" else {*one.expected, *one.found}
        return Difference(
            chunk=number,
            kind=one.kind,
            key=one.key,
            columns=one.columns,
            expected={name: value for name, value in one.expected.items() if shown and name in names},
            found={name: value for name, value in one.found.items() if shown and name in names},
        )
