"""What comes after the last chunk: indexes and sequences, rules across the run, the swap of a fresh table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import psycopg
from psycopg import sql

from keyhaul import events
from keyhaul.before.runcheck import check_run
from keyhaul.errors import CancelledError, RefusedError
from keyhaul.execution.halting import Halting
from keyhaul.faults import pass_point
from keyhaul.targets import postgres
from keyhaul.targets import replace as replacing
from keyhaul.targets.ddl import AfterLoad, finish, sequence_steps
from keyhaul.targets.sequences import lagging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.before.prepare import Prepared
    from keyhaul.control import Control
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Observer, RunCheck
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.sequences import Lag


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        status: the ledger's word; ``abandoned`` will not be gone on with, the same command starts a new run.
        reason: why it is not done, or an empty string.
        checks: the rules across the run.
        written: the ledger says so already.
    """

    status: Literal["done", "stopped", "abandoned"]
    reason: str = ""
    checks: tuple[RunCheck, ...] = ()
    written: bool = False


class Ending:
    """Brings a run whose chunks are all committed to its end."""

    def __init__(self, prepared: Prepared, ledger: Ledger, run_id: str, control: Control, observe: Observer) -> None:
        """Take what the engine has."""
        self._prepared = prepared
        self._ledger = ledger
        self._run_id = run_id
        self._control = control
        self._observe = observe
        self._halting = Halting(control, observe)

    def conclude(self, expected_rows: int | None, *, resumed: bool) -> Ended:
        """Do what comes after the load, and say how the run ended.

        Rules across the run look at the table when it is finished; in mode replace at the fresh one, before
        it takes its place: one that fails keeps the old table. A second signal cancels the statement under way, and the
        same command goes on with what is left.

        Args:
            expected_rows: what an exact plan of a view or query counted; None where nothing is expected.
            resumed: whether this sitting's snapshot is newer than that of the first chunks.
        """
        lost = self._lost()
        if lost:
            return Ended(status="stopped", reason=f"all chunks are loaded, but {lost}")
        unstable = self._unstable(expected_rows)
        if unstable:
            return Ended(status="abandoned", reason=unstable)
        try:
            with self._halting:
                return self._conclude(resumed=resumed)
        except CancelledError as error:
            return Ended(status="stopped", reason=f"all chunks are loaded, and what comes after them was {error}")
        except RefusedError as error:
            return Ended(status="stopped", reason=f"all chunks are loaded, but {error}")

    def _conclude(self, *, resumed: bool) -> Ended:
        target = self._prepared.target
        if not target.fresh:
            self._finish()
            with self._halting.cancelling(self._ledger.connection):
                # A table that this run has made goes on where the source's own sequences are.
                steps = self._ledger.finish_steps(self._run_id)
                copied = frozenset(step["name"] for step in steps if step["kind"] == "sequence")
                advance_sequences(self._prepared, self._ledger, self._observe, copied=copied)
            pass_point("table.finished")
            return Ended(status="done", checks=self._check(target.identifier, resumed=resumed))
        checks = self._check(target.loaded, resumed=resumed)
        failed = [check.name for check in checks if not check.passed and check.on_fail == "error"]
        if failed:
            reason = f"{', '.join(failed)} failed for the fresh table: {target.label} stays as it was"
            return Ended(status="abandoned", reason=reason, checks=checks)
        last = [statement.sql for statement in self._statements()]
        with self._halting.cancelling(self._ledger.connection):
            last += sequences_of_fresh(self._prepared, self._ledger, self._observe)
        _swap_in(self._ledger, target, self._run_id, last, self._control, self._halting, self._tell)
        pass_point("table.finished")
        return Ended(status="done", checks=checks, written=True)

    def _tell(self, message: str) -> None:
        self._observe(events.Notice(message=message))

    def _lost(self) -> str:
        """Say what has become of the table meanwhile; an empty string when it is still the one that was loaded."""
        target, execute = self._prepared.target, self._ledger.connection.execute
        if target.shape is None:
            return ""
        now = postgres.with_shape(self._ledger.connection, target).shape
        again = "See what has become of its rows; --fresh starts a new run"
        if now is None or now.oid != target.shape.oid:
            return f"{target.label} is another table than when the run began. {again}"
        run = None if target.fresh else self._ledger.replayable(self._run_id)
        if run is not None and run.lost:
            return f"{run.lost}. {again}"
        if now.files == target.shape.files:
            return ""
        # TRUNCATE leaves this trace, and so does what writes all rows anew.
        counts = self._ledger.totals(self._run_id).counts
        found = execute(sql.SQL("select count(*) from {}").format(target.loaded)).fetchone()
        there, stored = int(found[0]) if found else 0, counts.loaded - counts.updated
        if there >= stored:
            return ""
        lacks = f"{target.label} has {there:,} rows by now, though {stored:,} were loaded"
        return f"{lacks}: it was emptied meanwhile, or lost rows and was written anew. {again}"

    def _unstable(self, expected_rows: int | None) -> str:
        """Return what is wrong when a view or query gave other rows to the chunks than to the plan."""
        if expected_rows is None:
            return ""
        read = self._ledger.range_rows_read(self._run_id)
        if read == expected_rows:
            return ""
        return (
            f"the source gave {expected_rows:,} rows when it was planned and {read:,} when it was read, in the "
            f"same snapshot: its answer is not the same each time. {self._what_is_there()}, put the query's rows into "
            "a table (create table … as …) and move that. The same command would start a new run"
        )

    def _what_is_there(self) -> str:
        target = self._prepared.target
        return f"{target.label} stays as it was" if target.fresh else f"Empty {target.label}"

    def _statements(self) -> list[AfterLoad]:
        target, definition = self._prepared.target, self._prepared.definition
        statements = [AfterLoad(**step) for step in self._ledger.finish_steps(self._run_id)]
        if definition is None:
            return statements
        # As this sitting found the source: a later one reads newer rows.
        columns = {statement.name for statement in statements if statement.kind == "sequence"}
        newer = sequence_steps(definition, target.schema, target.table, columns & definition.columns.keys())
        return [*(step for step in statements if step.kind != "sequence"), *newer]

    def _finish(self) -> None:
        """Create the indexes and constraints that wait for the rows."""
        target = self._prepared.target
        statements, conn = self._statements(), self._ledger.connection
        with self._halting.cancelling(conn):
            created = finish(conn, target.schema, target.table, statements)
        if created:
            self._tell(f"created {created} indexes and constraints of {target.label}")

    def _check(self, table: sql.Identifier, *, resumed: bool) -> tuple[RunCheck, ...]:
        """Evaluate the rules across the run before its last word: a run that dies here goes on with them."""
        rules = self._prepared.job.run_rules
        if not rules:
            return ()
        prepared = self._prepared
        conn, own = self._ledger.connection, prepared.target.names
        source = prepared.source
        with self._halting.cancelling(conn, also=source.cancel):
            checks = check_run(conn, table, rules, source.abilities.aggregates, own=own, resumed=resumed)
        self._ledger.run_checked(self._run_id, checks)
        return checks


def _swap_in(
    ledger: Ledger,
    target: TargetTable,
    run_id: str,
    last: Sequence[str],
    control: Control,
    halting: Halting,
    tell: Callable[[str], None],
) -> None:
    """Put the fresh table in the target's place, and write that the run is done, in one transaction.

    Args:
        ledger: of the job.
        target: with its fresh table.
        run_id: whose chunks are all committed.
        last: statements for the table when it has its name: they advance sequences.
        control: a person who stops the run ends the waiting for locks.
        halting: one who does so again cancels the statement under way; a COMMIT is not taken back.
        tell: takes a sentence for a person.

    Raises:
        RefusedError, CancelledError: the target stays as it was; the same command tries again.
        psycopg.OperationalError: the connection was lost, and nothing was done.
    """
    conn = ledger.connection
    with halting.cancelling(conn):
        created = replacing.complete(conn, target)
    if created:
        tell(f"created {created} indexes and constraints of the fresh {target.label}")
    loaded = ledger.totals(run_id).counts.loaded
    rows = -1

    def done(conn: psycopg.Connection[tuple[object, ...]]) -> None:
        ledger.end_within(conn, run_id)
        halting.check()

    conn = ledger.connection
    try:
        with halting.cancelling(conn):
            rows = replacing.swap(conn, target, last, done, control.stopping.wait)
    except (psycopg.OperationalError, CancelledError):
        if not ledger.is_done(run_id):  # the answer to the COMMIT may be all that was lost
            raise
    was = f"{rows:,} rows by its statistics" if rows >= 0 else "rows not counted"
    tell(f"replaced {target.label} (old: {was} → new: {loaded:,} rows)")


def advance_sequences(
    prepared: Prepared, ledger: Ledger, observe: Observer, *, copied: frozenset[str] = frozenset()
) -> None:
    """Bring the sequences of the columns that were written to their highest value where the job lets it; tell the rest.

    Those of `copied` columns have the state of the source's sequences, and are left there.

    By itself only where all rows came from this ledger: what others have in a table may have its reasons.
    """
    wanted = prepared.job.target.sequences
    tables = [(table.target, table.columns) for table in prepared.tables] or [(prepared.target, prepared.columns)]
    conn = ledger.connection
    for target, columns in tables:
        lags = lagging(conn, target.identifier, [column.name for column in columns], target.identifier)
        if not lags:
            continue
        label = f"{target.schema}.{target.table}"
        ours = wanted == "always" or (wanted == "auto" and _all_from(ledger, target, label))
        for lag in (lag for lag in lags if lag.column not in copied):
            if ours and lag.may_set:
                conn.execute(lag.statement.encode())
                told = f"set the sequence {lag.sequence} of {label}.{lag.column} to {lag.value:,}, its highest value"
                observe(events.Notice(message=told))
            else:
                observe(events.Notice(message=_behind(label, lag), level="warning"))


def sequences_of_fresh(prepared: Prepared, ledger: Ledger, observe: Observer) -> list[str]:
    """Return what brings the sequences of a table that is replaced to the highest value of the fresh one."""
    target = prepared.target
    names = [column.name for column in prepared.columns]
    statements = []
    for lag in lagging(ledger.connection, target.identifier, names, target.loaded):
        if lag.may_set and prepared.job.target.sequences != "never":
            statements.append(lag.statement)
        else:
            observe(events.Notice(message=_behind(target.label, lag), level="warning"))
    return statements


def _all_from(ledger: Ledger, target: TargetTable, label: str) -> bool:
    query = sql.SQL("select count(*) from {}").format(target.identifier)
    row = ledger.connection.execute(query).fetchone()
    return row is not None and row[0] <= ledger.inserted_into(label)


def _behind(label: str, lag: Lag) -> str:
    statement = lag.statement.split(" where ", 1)[0]
    return (
        f"the sequence {lag.sequence} of {label}.{lag.column} is behind its highest value, {lag.value:,}: the next "
        f"INSERT that takes a value from it can fail. Run {statement}, or set target.sequences: always"
    )
