"""The one orchestrator: plan into the ledger, workers over chunks, the report; new runs and resumed ones."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

from keyhaul import events
from keyhaul.before import checksums
from keyhaul.before.incremental import begin_delta, check_full, limit_again
from keyhaul.before.outset import check_given_up, check_new, check_still_empty, check_there, surprises
from keyhaul.before.prepare import FILLED, Prepared, prepare
from keyhaul.before.sizing import size_up
from keyhaul.config.identity import check_contents, check_same, with_contents
from keyhaul.config.parts import AutoChunk
from keyhaul.control import Control
from keyhaul.errors import ConfigError, EtlError, RefusedError, StopRunError, first_line
from keyhaul.execution.chunk import ChunkRunner
from keyhaul.execution.ending import Ended, Ending
from keyhaul.execution.late import load_late
from keyhaul.execution.phases import Phases, sweep
from keyhaul.execution.pool import Pool
from keyhaul.faults import pass_point
from keyhaul.ledger.rows import NewRun, lost
from keyhaul.ledger.store import new_run_id
from keyhaul.limits.crew import check_server, room_for_workers
from keyhaul.limits.hiring import MOST_WORKERS, Staffing
from keyhaul.limits.pace import Pace
from keyhaul.memory import cpu_seconds
from keyhaul.model import Report
from keyhaul.postgres.dsn import redact
from keyhaul.sessions.connecting import find_ends
from keyhaul.targets import postgres
from keyhaul.targets import replace as replacing

if TYPE_CHECKING:
    from keyhaul.before.sizing import Sizing
    from keyhaul.config.job import Job
    from keyhaul.execution.pool import Hire
    from keyhaul.ledger.rows import Told, Totals, Unfinished
    from keyhaul.limits.limiter import Limits
    from keyhaul.model import FilesWanted, Observer, Outcome
    from keyhaul.targets.rowhash import Hashing

__all__ = ["Control", "run"]


def run(
    job: Job,
    observe: Observer,
    control: Control,
    *,
    fresh: bool = False,
    full: bool = False,
    only: str | None = None,
    changed: bool = False,
    hire: Hire = ChunkRunner,
) -> Report:
    """Move what the job says; start a run, or go on with the unfinished one.

    Args:
        job: validated.
        observe: called with every event, from the threads where they happen.
        control: may be told to stop from a signal handler or another thread.
        fresh: start a new run even when an unfinished one is there.
        full: of an incremental job: read all rows, not only those above the watermark.
        only: the run to go on with; none is started.
        changed: the source may be another one than when that run was planned.
        hire: makes what moves a worker's chunks.

    Returns:
        The report; the ledger says the same.

    Raises:
        ConfigError: the command, job or databases do not fit; nothing was moved and nothing created.
        StopRunError: the ledger cannot be reached or was taken by another process; the run can be resumed.
    """
    check_full(job, full=full)
    started = time.perf_counter()
    ends = find_ends(job)
    if ends.filled:
        observe(events.Notice(message=FILLED))
    run_id = new_run_id()
    files: FilesWanted = "all" if full else "fresh" if fresh else "new"
    with prepare(job, ends, run_id=run_id, alone=True, files=files) as prepared:
        sitting = Sitting(prepared, observe, control, run_id, started)
        try:
            return sitting.execute(fresh=fresh, full=full, only=only, changed=changed, hire=hire)
        except (psycopg.Error, ConfigError) as error:
            raise sitting.explain(error) from error


class Sitting:
    """One sitting of one run, and what a replay needs of it too.

    Attributes:
        ledger: of the job, over the connection that holds its lock.
    """

    def __init__(self, prepared: Prepared, observe: Observer, control: Control, run_id: str, started: float) -> None:
        """Take what `prepare` has opened; nothing is written before `execute`."""
        self._prepared = prepared.telling(observe)
        self._job = prepared.job
        self._observe = observe
        self._control = control
        self._run_id = run_id
        self._started = started
        self._sitting = 1
        self._begun = False
        self._expected_rows: int | None = None
        self._cuts = 0
        self._hashing: Hashing | None = None
        self.ledger = prepared.ledger

    @cached_property
    def sizing(self) -> Sizing:
        """What the memory limit makes of the chunks; the source is looked at once."""
        return size_up(self._prepared)

    # --- before the first read -------------------------------------------------------------------

    def execute(self, *, fresh: bool, full: bool, only: str | None, changed: bool, hire: Hire) -> Report:
        """Move what is left of the unfinished run, or start a new one."""
        ledger = self.ledger
        self.check_server()
        phases = Phases.of(self._prepared, self._observe, self._control)
        unfinished = ledger.unfinished() if ledger.exists() and not fresh else None
        resumed = unfinished is not None
        if only is not None and (unfinished is None or unfinished.run_id != only):
            msg = f"resume run {only}: it is done or was given up, expected an unfinished run. `etl runs` lists them"
            raise RefusedError(msg)
        if unfinished is None:
            workers = self._begin(fresh=fresh, full=full)
        else:
            workers = self._go_on(unfinished, phases, full=full, changed=changed)
        chunks = ledger.open_chunks(self._run_id)
        totals = ledger.totals(self._run_id)
        self.begin(totals, sum(c.estimated_rows for c in chunks), workers, resumed=resumed)
        sweep(self._job, ledger, self._observe)
        limits = self.sizing.limits(self._job)
        staffing = self._staffing(workers, limits)
        pool = Pool(self.moving(), ledger, self._observe, self._control, limits, staffing=staffing)
        chunks = chunks if self._job.order == "asc" else tuple(reversed(chunks))
        if phases is None:
            failed = {one.chunk for one in ledger.failed_chunks(self._run_id)}
            pool.move(chunks, workers, hire, pace=self._pace(), alone=failed)
        else:
            phases.move(pool, self._run_id, chunks, workers, resumed=resumed)
        if staffing is not None:
            workers = staffing.workers
            ledger.staffed(self._run_id, workers, staffing.reason)
        report = self._finish(pool, workers, resumed=resumed)
        try:
            sweep(self._job, ledger, self._observe)
        except (psycopg.Error, ConfigError):  # the run has had its last word: nothing is to be said against it
            self._notice("could not ask the ledger which work folders can go; the next run does", "warning")
        return report

    def _go_on(self, unfinished: Unfinished, phases: Phases | None, *, full: bool, changed: bool) -> int:
        """Take the unfinished run over, and say so; returns the number of workers."""
        ledger = self.ledger
        now = self._job.fingerprint(), self._job.identity()
        check_same(unfinished.run_id, (unfinished.fingerprint, unfinished.config), now)
        described = self._prepared.source.describe()
        others = self._prepared.source.differs(unfinished.config.get("contents", {}), self._prepared.read_columns)
        place = f"{described.label} in {described.place}"
        if described.own or not changed:
            check_contents(unfinished.run_id, others, place, can_be_meant=not described.own)
        elif others:
            self._notice(f"{place} has changed since the run was planned: {'; '.join(others)}", "warning")
        self._prepared = replace(self._prepared, target=check_there(self._prepared, ledger, unfinished))
        self._hashing = checksums.resume(self._prepared, ledger.checksum(unfinished.run_id))
        left = len(ledger.open_chunks(unfinished.run_id))
        loaded = ledger.totals(unfinished.run_id).done
        gathered = phases is not None and phases.resume(unfinished.run_id, loaded=loaded, left=left)
        workers = self._prepared.count_workers(left, self._observe)
        self._run_id = unfinished.run_id
        message = "going on with an unfinished run; " + (
            "all its rows are gathered, and the source is not read again" if gathered else described.resumed
        )
        message += limit_again(self._job, self._prepared.source, ledger, self._run_id, full=full)
        self._sitting = ledger.resume(self._run_id, workers)
        if phases is not None:
            phases.check_still(ledger.totals(self._run_id).done, loaded, self._run_id)
        self._notice(message, "warning")
        return workers

    def _staffing(self, workers: int, limits: Limits) -> Staffing | None:
        """Return what chooses the number of workers; None when the job says it."""
        if self._job.workers is not None:
            return None
        prepared, rows = self._prepared, self.sizing.chunk_rows

        def room() -> tuple[int, str]:
            by_memory = int(min(limits.workers_within(rows), MOST_WORKERS))
            seats, target = prepared.source.abilities.seats, prepared.ends.target
            found = room_for_workers(seats, self.ledger.connection_now, target, self._run_id)
            return min((found, "the servers have connections"), (by_memory, "memory_limit has room"))

        return Staffing(workers, room=room, machine_cpu=cpu_seconds)

    def _pace(self) -> Pace | None:
        """Return what an auto chunk is merged to; None for chunks of fixed size."""
        job = self._job
        return Pace(job.chunk, rows_per_second=job.rate_limit) if isinstance(job.chunk, AutoChunk) else None

    def begin(self, totals: Totals, rows_left: int, workers: int, *, resumed: bool) -> None:
        """Say that the plan is in the ledger: from here on, an error leaves something to go on with."""
        self._begun, self._cuts = True, self.ledger.cuts(self._run_id)
        source, target = self._prepared.places
        self._observe(
            events.RunStarted(
                run_id=self._run_id,
                job=self._job.job,
                source=source,
                target=target,
                resumed=resumed,
                chunks_planned=totals.planned,
                chunks_done=totals.done,
                estimated_rows=totals.counts.read + rows_left,
                done=totals.counts,
                workers=workers,
            )
        )

    def explain(self, error: psycopg.Error | ConfigError) -> EtlError:
        """Return our error for one that ended the run: wrong before the first read, resumable after it."""
        text = first_line(error) if isinstance(error, psycopg.Error) else str(error).strip()
        text = redact(text, *self._prepared.ends.all)
        if self._begun:
            msg = f"go on with run {self._run_id}: {text}. Run the same command again: what is committed stays"
            return StopRunError(msg)
        if isinstance(error, ConfigError):
            return error
        return ConfigError(f"start job {self._job.job}: {text}. Nothing was moved. Mend this and try again")

    def _notice(self, message: str, level: Literal["info", "warning"] = "info") -> None:
        self._observe(events.Notice(message=message, level=level))

    def check_server(self) -> None:
        """Refuse a target that cannot be loaded: a standby, or one that does not count rows."""
        check_server(self._prepared.target_conn, self._prepared.target.label)

    def _begin(self, *, fresh: bool, full: bool) -> int:
        """Plan, create what is missing, and write run and plan into the ledger; returns the number of workers."""
        prepared, target = self._prepared, self._prepared.target
        if fresh and self.ledger.exists() and not self._job.targets:
            check_given_up(self._job.job, self.ledger.unfinished(), target.label)
        empty_first = check_new(prepared)
        if news := prepared.source.describe().news:
            self._notice(news)
        delta = begin_delta(self._job, prepared.source, target, self.ledger, self._notice, full=full)
        plan = prepared.source.plan(self.sizing.chunk_rows)
        if plan.exact and prepared.source.describe().recomputed:
            self._expected_rows = plan.estimated_rows
        workers = prepared.count_workers(len(plan.chunks), self._observe)
        conn = self.ledger.connection
        with conn.transaction():
            self.ledger.create()
            if empty_first:
                conn.execute(sql.SQL("truncate {}").format(target.identifier))
            postgres.prepare(conn, target)
            steps = target.ddl.after
            if target.mode == "replace":
                steps = replacing.finish_empty(conn, target)
                target = replacing.create(conn, target, self._run_id)
            else:
                postgres.rehearse_end(conn, target)
            target = postgres.with_shape(conn, target)
            prepared = self._prepared = replace(prepared, target=target)
            self.ledger.begin(
                replace(
                    self.new_run(workers),
                    finish=[asdict(statement) for statement in steps],
                    fresh_table=target.loaded.as_string(conn) if target.fresh else None,
                    since=delta.since if delta else None,
                    watermark=delta.watermark if delta else None,
                    checksum=self._settle_checksums(),
                    emptied=empty_first,
                ),
                plan,
                fresh=fresh,
            )
            if fresh and not empty_first:
                check_still_empty(prepared)
            for table in replacing.leftovers(conn, self.ledger.fresh_tables()):
                conn.execute(sql.SQL("drop table {}").format(table))
        pass_point("plan.written")
        for message, level in surprises(prepared, self.sizing, self._hashing, len(plan.chunks), emptied=empty_first):
            self._notice(message, level)
        return workers

    def new_run(self, workers: int) -> NewRun:
        """Return what the ledger is told of a run that begins."""
        job, source = self._job, self._prepared.source
        described = source.describe()
        return NewRun(
            run_id=self._run_id,
            job=job.job,
            fingerprint=job.fingerprint(),
            config=with_contents(job.identity(), source.identity(self._prepared.read_columns)),
            given=job.given,
            source=f"{described.label} in {described.place}",
            target_table=self._prepared.target.label,
            key=job.key,
            chunk_rows=self.sizing.chunk_rows,
            workers=workers,
        )

    def _settle_checksums(self) -> dict[str, Any] | None:
        if not self._job.checksum:
            return None
        self._hashing, described = checksums.settle(self._prepared)
        return described

    # --- moving ----------------------------------------------------------------------------------

    def moving(self) -> Prepared:
        """Return the open job as the run that is moved now: what the workers need."""
        return replace(self._prepared, run_id=self._run_id, sitting=self._sitting, hashing=self._hashing)

    # --- the end ---------------------------------------------------------------------------------

    def why_incomplete(self, totals: Totals) -> str:
        """Return why chunks are left, or an empty string when none is."""
        if self.ledger.cuts(self._run_id) != self._cuts:
            return self._control.reason or lost(self._run_id)
        if totals.done == totals.planned:
            return ""
        failed = self.ledger.failed_chunks(self._run_id)
        again = "the target has lost chunks that it had committed (a crash with synchronous_commit = off?)"
        return self._control.reason or (f"{len(failed):,} of {totals.planned:,} chunks failed" if failed else again)

    def _finish(self, pool: Pool, workers: int, *, resumed: bool) -> Report:
        ledger = self.ledger
        totals = ledger.totals(self._run_id)
        reason = self.why_incomplete(totals)
        ledger.limited(self._run_id, self.sizing.told(self._job, pool.limits, workers))
        if not reason:
            reason = load_late(self.moving(), ledger, self._control, self._observe)
            totals = ledger.totals(self._run_id)
        told = ledger.told(self._run_id)  # before its last word: when it is done, nothing can fail
        end = Ended(status="stopped", reason=reason)
        if not reason:
            ending = Ending(self._prepared, ledger, self._run_id, self._control, self._observe)
            end = ending.conclude(self._expected_rows, resumed=resumed)
        if not end.written:
            ledger.end(self._run_id, end.status, end.reason or None)
        if end.status == "abandoned" and self._prepared.target.fresh:
            ledger.connection.execute(sql.SQL("drop table if exists {}").format(self._prepared.target.loaded))
        pass_point("run.closed")
        return self.report(pool, totals, told, workers=workers, resumed=resumed, end=end)

    def report(
        self,
        pool: Pool,
        totals: Totals,
        told: Told,
        *,
        workers: int,
        resumed: bool,
        end: Ended,
    ) -> Report:
        """Return and announce the report of how the run ended."""
        stopped: Outcome = "interrupted" if self._control.signal else "stopped"
        report = Report(
            run_id=self._run_id,
            job=self._job.job,
            outcome="done" if end.status == "done" else stopped,
            resumable=end.status == "stopped",
            resumed=resumed,
            counts=totals.counts,
            sitting=pool.counts,
            timings=pool.timings,
            chunks_planned=totals.planned,
            chunks_done=totals.done,
            failed=told.failed,
            seconds=time.perf_counter() - self._started,
            workers=workers,
            quarantined_by_reason=told.quarantined_by_reason,
            warned=told.warned,
            run_checks=end.checks,
            target_table=self._prepared.target.label,
            tables=told.tables,
            stop_reason=end.reason,
            signal=self._control.signal,
            chunks_timed=pool.chunks,
            held=dict(pool.limits.held),
            workers_reason=pool.workers_reason,
            late_passes=told.late[0] or 0,
            late_rows=told.late[1] or 0,
            fewest_workers=pool.limits.governor.fewest if self._job.cpu_limit else 0,
        )
        self._observe(events.RunFinished(report=report))
        return report
