"""The ledger: runs, chunks and quarantine in the target database. What is there is loaded; what is not, is not."""

from __future__ import annotations

import json
import os
import platform
import secrets
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import keyhaul
from keyhaul.errors import StopRunError
from keyhaul.ledger import versions
from keyhaul.ledger.joblock import JobConnection
from keyhaul.ledger.rows import (
    Older,
    Replayable,
    RunFiles,
    Told,
    Totals,
    Unfinished,
    Watermark,
    chunk_of,
    lost,
    tables_of,
)
from keyhaul.ledger.statements import statement
from keyhaul.model import Counts, FailedChunk, TableCounts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from keyhaul.ledger.rows import NewRun
    from keyhaul.model import Chunk, Plan, RunCheck

_PLANNED: Final = ("number", "kind", "lower", "upper", "estimated_rows")


def new_run_id() -> str:
    """Return a name that sorts by time and is unique among runs of one second."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"


class Ledger(JobConnection):
    """The ledger of one job, over a connection in autocommit that also holds the job's lock."""

    def exists(self) -> bool:
        """Whether the ledger's tables are in this database; refuses those of another version."""
        return versions.check(self.connection, self.schema)

    def create(self) -> None:
        """Create the schema and its tables; does nothing when all is there."""
        versions.create(self.connection, self.schema)

    def unfinished(self) -> Unfinished | None:
        """Return the newest run of this job that is not done, or None."""
        row = self._execute("unfinished", job=self.job).fetchone()
        if row is None:
            return None
        return Unfinished(run_id=row[0], fingerprint=row[1], config=row[2], target_table=row[3], fresh_table=row[4])

    def begin(self, run: NewRun, plan: Plan, *, fresh: bool) -> None:
        """Write a new run and its whole plan in one transaction; `fresh` gives up what was unfinished.

        A replay always gives up the unfinished ones before it: what they resolved is resolved.
        """
        values = {
            **asdict(run),
            "config": json.dumps(run.config),
            "key": list(run.key),
            "finish": json.dumps(list(run.finish)),
            "checksum": None if run.checksum is None else json.dumps(run.checksum),
        }
        chunks = json.dumps([{name: getattr(chunk, name) for name in _PLANNED} for chunk in plan.chunks])
        with self.connection.transaction():
            if fresh or run.kind == "replay":
                self.abandon(run.kind)
            self._execute(
                "insert_run",
                **values,
                chunks_planned=len(plan.chunks),
                estimated_rows=plan.estimated_rows,
                **_process(),
            )
            self._execute("insert_chunks", run_id=run.run_id, chunks=chunks)

    def abandon(self, kind: Literal["run", "replay"]) -> None:
        """Give up what is unfinished of this job; waits for chunks that are being loaded."""
        self._execute("settle", job=self.job)
        self._execute("abandon", job=self.job, kind=kind)

    def resume(self, run_id: str, workers: int) -> int:
        """Record another sitting of a run; returns its number, from 2."""
        with self.connection.transaction():
            self._execute("settle", job=self.job)  # one that had the lock before us may still load
            row = self._execute("resume_run", run_id=run_id, workers=workers, **_process()).fetchone()
        return int(row[0]) if row else 1

    def staffed(self, run_id: str, workers: int, reason: str) -> None:
        """Record how many workers a sitting had at last, and why."""
        self._execute_again("staffed", run_id=run_id, workers=workers, reason=reason)

    def ended(self, names: Sequence[str]) -> list[str]:
        """Return which of these runs of this job are done or given up."""
        return [row[0] for row in self._execute_again("ended_runs", names=list(names), job=self.job).fetchall()]

    def last_watermark(self, source: Mapping[str, Any], target_table: str, column: str) -> Watermark | None:
        """Return the watermark of this job's last done run from `source` by `column` into `target_table`, or None."""
        row = self._execute(
            "last_watermark", job=self.job, source=json.dumps(source), target_table=target_table, column=column
        ).fetchone()
        return Watermark(run_id=row[0], watermark=row[1], config=row[2], loaded=row[3]) if row else None

    def files_of_runs(self, table: str) -> list[RunFiles]:
        """Return which files this job's runs have read for a table, as the job names it, the oldest run first."""
        rows = self._execute("files_of_runs", job=self.job, table=table).fetchall()
        return [RunFiles(run_id=row[0], status=row[1], files=row[2], rows=row[3]) for row in rows]

    def replaced_since(self, run_id: str) -> tuple[str, str] | None:
        """Return which run has replaced or emptied an incremental run's table since its job read all rows, and how."""
        row = self._execute("replaced_since", run_id=run_id).fetchone()
        return (row[0], "replaced" if row[1] else "emptied") if row else None

    def since(self, run_id: str) -> str | None:
        """Return the lowest value of the incremental column that a run reads; None when it reads all rows."""
        row = self._execute("since", run_id=run_id).fetchone()
        return row[0] if row else None

    def checksum(self, run_id: str) -> dict[str, Any] | None:
        """Return what is hashed of the rows of a run; None when its chunks have no checksums."""
        row = self._execute("checksum", run_id=run_id).fetchone()
        return row[0] if row else None

    def finish_steps(self, run_id: str) -> list[dict[str, Any]]:
        """Return the statements that run when all chunks are loaded."""
        row = self._execute_again("finish_steps", run_id=run_id).fetchone()
        return list(row[0]) if row else []

    def open_chunks(self, run_id: str) -> tuple[Chunk, ...]:
        """Return the chunks that are not committed, with the bounds of the persisted plan."""
        rows = self._execute_again("open_chunks", run_id=run_id).fetchall()
        return tuple(chunk_of(row) for row in rows)

    def all_chunks(self, run_id: str) -> tuple[tuple[Chunk, bool], ...]:
        """Return every chunk of a run in its order, and whether it is committed."""
        rows = self._execute("verify_chunks", run_id=run_id).fetchall()
        return tuple((chunk_of(row[:5]), row[5]) for row in rows)

    def chunk_failed(self, run_id: str, failed: FailedChunk, *, last: int, worker: int, sitting: int) -> None:
        """Record that a chunk was given up, with the reason; a committed chunk stays as it is.

        Of a merged chunk each cut is recorded, up to the `last`, and can be tried again by itself.
        """
        self._execute_again(
            "chunk_failed",
            run_id=run_id,
            chunk=failed.chunk,
            last=last,
            attempts=failed.attempts,
            error=failed.error,
            worker=worker,
            sitting=sitting,
        )

    def inserted_into(self, table: str) -> int:
        """Return how many rows the runs of this ledger have put into a table since one of them emptied it."""
        return int(self._execute_again("inserted_into", target_table=table).fetchall()[0][0])

    def totals(self, run_id: str) -> Totals:
        """Sum the run's committed chunks."""
        row = self._execute_again("totals", run_id=run_id).fetchone()
        done, failed, planned, *numbers = row or (0,) * 20
        return Totals(
            done=done,
            failed=failed,
            planned=planned,
            counts=Counts(**dict(zip((term.name for term in fields(Counts)), numbers, strict=False))),
        )

    def cuts(self, run_id: str) -> int:
        """Return how many cuts the plan of a run has; merging chunks does not change it."""
        return int(self._execute_again("count_cuts", run_id=run_id).fetchall()[0][0])

    def failed_chunks(self, run_id: str) -> tuple[FailedChunk, ...]:
        """Return what was given up and is not committed yet."""
        rows = self._execute_again("failed_chunks", run_id=run_id).fetchall()
        return tuple(FailedChunk(chunk=c, attempts=a, error=e) for c, a, e in rows)

    def quarantined_by_rule(self, run_id: str, kind: Literal["run", "replay"] = "run") -> dict[str, int]:
        """Return rule → records, largest first; a record that failed two rules counts for both.

        Of a replay: the records that failed again in it.
        """
        rows = self._execute_again("quarantined_by_rule", run_id=run_id, replay=kind == "replay").fetchall()
        return dict(rows)

    def replayable(self, run: str) -> Replayable | None:
        """Return a run by its name, or this job's newest for ``last``; None when there is none."""
        row = self._execute("replay_run", run=run, job=self.job).fetchone()
        if row is None:
            return None
        names = ("run_id", "job", "kind", "replay_of", "key", "target_table", "config", "rows_read", "lost", "newer")
        return Replayable(**dict(zip((*names, "given_up_for"), row, strict=True)))

    def older_unresolved(self, run_id: str, rule: str | None) -> tuple[Older, ...]:
        """Return the older runs of a run's job and table with unresolved records that no later run has read anew."""
        rows = self._execute_again("older_unresolved", run_id=run_id, rule=rule).fetchall()
        return tuple(Older(run_id=name, unresolved=records, rows_read=read) for name, records, read in rows)

    def replays(self, run_id: str) -> list[tuple[str, Mapping[str, Any]]]:
        """Return name and identity of each replay of a run that is done, the newest first."""
        return self._execute("verify_replays", run_id=run_id).fetchall()

    def replay_keys(self, run_id: str, rule: str | None) -> list[str]:
        """Return the keys of a run's unresolved records (that broke `rule`), each once, in the source's order."""
        return [row[0] for row in self._execute("replay_keys", run_id=run_id, rule=rule).fetchall()]

    def rules(self, run_id: str) -> list[str]:
        """Return what a run's records broke, resolved or not."""
        return [row[0] for row in self._execute("replay_rules", run_id=run_id).fetchall()]

    def unresolved(self, run_id: str, rule: str | None) -> tuple[int, int]:
        """Return the number of a run's unresolved records (that broke `rule`), and of those without a key."""
        row = self._execute_again("replay_left", run_id=run_id, rule=rule).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def chosen(self, run_id: str, rule: str, keys: Sequence[str]) -> tuple[int, int, list[str]]:
        """Return how many records with these keys are unresolved, how many of them break other rules, and which."""
        given = {"run_id": run_id, "rule": rule, "keys": list(keys)}
        row = self._execute_again("replay_chosen", **given).fetchone()
        left, changed = (int(row[0]), int(row[1])) if row else (0, 0)
        breaks = self._execute_again("replay_breaks", **given).fetchall() if changed else []
        return left, changed, [reason for (reason,) in breaks]

    def reopen(self, run_id: str, rule: str | None, states: Sequence[str]) -> int:
        """Make records unresolved again that replays have closed in one of these ways; returns their number."""
        return self._execute("reopen_records", run_id=run_id, rule=rule, states=list(states)).rowcount

    def closed(self, run_id: str, replay_id: str) -> dict[str, int]:
        """Return how many records a replay has closed without loading them, by ``resolved_as``, most first."""
        return dict(self._execute_again("closed_records", run_id=run_id, replay_id=replay_id).fetchall())

    def range_rows_read(self, run_id: str) -> int:
        """Return the rows that the chunks with a key range read."""
        return int(self._execute_again("range_rows_read", run_id=run_id).fetchall()[0][0])

    def warned(self, run_id: str) -> dict[str, int]:
        """Return rule → rows that failed a rule with ``on_fail: warn``."""
        return dict(self._execute_again("sum_warned", run_id=run_id).fetchall())

    def tables(self, run_id: str) -> tuple[TableCounts, ...]:
        """Return the rows by table, of a job with several; empty for others."""
        return tables_of(self._execute_again("sum_tables", run_id=run_id).fetchall())

    def has_loaded(self, target_table: str) -> bool:
        """Whether a run of this job has that target; False without a ledger."""
        if not self.exists():
            return False
        row = self._execute("has_loaded", job=self.job, target_table=target_table).fetchone()
        return bool(row and row[0])

    def loaded_tables(self, target_table: str) -> list[str]:
        """Return which tables of a job with several got rows by its done runs."""
        return [row[0] for row in self._execute("loaded_tables", target_table=target_table).fetchall()]

    def told(self, run_id: str, kind: Literal["run", "replay"] = "run") -> Told:
        """Return what a run's report tells beside the balance."""
        return Told(
            quarantined_by_reason=self.quarantined_by_rule(run_id, kind),
            failed=self.failed_chunks(run_id),
            warned=self.warned(run_id),
            tables=self.tables(run_id),
            late=tuple(self._execute_again("late_told", run_id=run_id).fetchone() or (None, None)),
        )

    def has_late(self, run_id: str) -> bool:
        """Whether rows of a run wait for rows of its later chunks."""
        return bool(self._execute_again("has_late", run_id=run_id).fetchall()[0][0])

    def fresh_tables(self) -> list[str]:
        """Return the quoted names of the tables that this job's abandoned runs of mode replace have loaded."""
        return [row[0] for row in self._execute("fresh_tables", job=self.job).fetchall()]

    def end_within(self, conn: psycopg.Connection[Any], run_id: str) -> None:
        """Write that the run is done, in the transaction under way on `conn`: never over another connection."""
        _demand(conn.execute(statement("end_run", self.schema, run_id=run_id, status="done", stop_reason=None)), run_id)

    def is_done(self, run_id: str) -> bool:
        """Ask whether a run is done, over a new connection when the first is lost."""
        row = self._execute_again("status", run_id=run_id).fetchone()
        return bool(row and row[0] == "done")

    def run_checked(self, run_id: str, checks: Sequence[RunCheck]) -> None:
        """Write what became of the rules across the run."""
        self._execute_again("run_checked", run_id=run_id, checks=json.dumps([asdict(check) for check in checks]))

    def limited(self, run_id: str, limits: Mapping[str, Mapping[str, Any]]) -> None:
        """Write what the limits of this sitting did, by name: ``setting``, ``waited_seconds`` and ``effect``."""
        self._execute_again("limited", run_id=run_id, limits=json.dumps(limits))

    def end(self, run_id: str, status: str, stop_reason: str | None) -> None:
        """Write the run's last word: ``done`` or ``stopped``.

        Raises:
            StopRunError: the ledger does not have the run any more.
        """
        _demand(self._execute_again("end_run", run_id=run_id, status=status, stop_reason=stop_reason), run_id)


def _demand(written: psycopg.Cursor[Any], run_id: str) -> None:
    if written.fetchone() is None:
        raise StopRunError(lost(run_id))


def _process() -> dict[str, object]:
    return {"pid": os.getpid(), "host": platform.node(), "version": keyhaul.__version__}
