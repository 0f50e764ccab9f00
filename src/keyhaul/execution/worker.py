"""One chunk, from its read to its ledger row: a function of (task, chunk) whose only shared state is the databases."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import duckdb
import polars as pl
import pyarrow as pa

from keyhaul import events
from keyhaul.errors import ChunkError, RejectedError, safe_message
from keyhaul.execution.task import target_uri
from keyhaul.fanout.spread import Spreader
from keyhaul.faults import pass_point
from keyhaul.model import RECORD, ChunkResult, Timings
from keyhaul.staging.copies import meant
from keyhaul.staging.stage import Stager, with_refused
from keyhaul.targets import transaction
from keyhaul.targets.replayed import Batch, open_keys
from keyhaul.targets.session import SESSIONS, CopySession
from keyhaul.transform.decoding import parsed
from keyhaul.transform.mapping import as_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.execution.task import Task
    from keyhaul.model import Chunk, Observer, Staged
    from keyhaul.sources.source import Batch as Read
    from keyhaul.sources.source import Reader
    from keyhaul.targets.session import Session
    from keyhaul.targets.sheets import Sheet
    from keyhaul.transform.mapping import WriteColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A chunk that is read and staged, before the target has seen it.

    Attributes:
        source: as read, with ``_record``.
        text_columns: source columns that travel as text in this chunk.
        batch: of a replay.
    """

    source: pl.DataFrame
    text_columns: frozenset[str]
    staged: Staged
    timings: Timings
    bytes_read: int
    batch: Batch | None


class Worker:
    """Moves chunks one after the other over connections of its own; belongs to one thread.

    Attributes:
        reads, loads: which of the two ends it works on; a run with two phases has workers for each.
        waited_seconds: what the chunk under way has waited so far; the pool sets it back for each chunk.
    """

    reads: ClassVar[bool] = True
    loads: ClassVar[bool] = True

    def __init__(self, task: Task, number: int, observe: Observer) -> None:
        """Take a number from 1; connections are opened by the first chunk."""
        self._task = task
        self.number = number
        self.waited_seconds = 0.0
        self._observe = observe
        self._reader: Reader | None = None
        self._session: Session | None = None
        self._stager: Stager | None = None
        self._spreader: Spreader | None = None

    def move(self, chunk: Chunk, attempt: int) -> ChunkResult:
        """Read, transform, stage and load one chunk; returns what the ledger holds of it.

        Raises:
            TransientError: worth another try, after `committed` has been asked.
            ChunkError: this chunk cannot be moved.
            StopRunError: no further chunk can or should be.
        """
        try:
            return self._move(chunk, attempt)
        except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, duckdb.Error) as error:
            msg = f"move chunk {chunk.number}: {type(error).__name__}: {safe_message(error)}"
            raise ChunkError(msg) from error

    def _move(self, chunk: Chunk, attempt: int) -> ChunkResult:
        return self._commit(chunk, attempt, self._produce(chunk))

    def _produce(self, chunk: Chunk) -> Produced:
        """Read, transform and stage a chunk."""
        started = time.perf_counter()
        self._step(chunk, "read")
        chunk, crowded = self._without_resolved(chunk)
        pass_point("read.before")
        read = self._read(chunk)
        pass_point("read.after")
        read_at = time.perf_counter()
        source, text_columns = read.frame, read.as_text
        self._step(chunk, "transform", source.height)
        batch = self._batch(chunk, crowded, read)
        rejected = read.rejected
        if batch is not None and batch.found.height < source.height + rejected.height:
            meant = pl.col(RECORD).is_in(batch.found[RECORD].implode())
            source, rejected = source.filter(meant), rejected.filter(meant)
        frame, failed = self._transform(source, text_columns)
        pass_point("transform.after")
        transformed_at = time.perf_counter()
        self._step(chunk, "stage", frame.height)
        staged = self._open_stager().stage(source, frame, failed, self._columns(text_columns))
        staged = with_refused(staged, rejected)
        pass_point("stage.after")
        timings = Timings(
            read_seconds=read_at - started,
            transform_seconds=transformed_at - read_at,
            stage_seconds=time.perf_counter() - transformed_at,
        )
        return Produced(
            source=source,
            text_columns=text_columns,
            staged=staged,
            timings=timings,
            bytes_read=read.bytes_read,
            batch=batch,
        )

    def _commit(self, chunk: Chunk, attempt: int, produced: Produced) -> ChunkResult:
        """Load what was produced, with its ledger row."""
        staged, timings = produced.staged, produced.timings
        sheets: Sequence[Sheet] = ()
        if self._task.tables:
            started = time.perf_counter()
            staged, sheets = self._spread(staged, produced.text_columns)
            timings = replace(timings, stage_seconds=timings.stage_seconds + time.perf_counter() - started)
        timings = replace(timings, wait_seconds=timings.wait_seconds + self.waited_seconds)
        self._step(chunk, "load", staged.accepted.height)
        entry = self._entry(chunk, attempt, timings, produced.bytes_read)
        entry = replace(entry, batch=produced.batch, text_columns=produced.text_columns)
        try:
            return self._load(self._columns(produced.text_columns), staged, entry, sheets)
        except BaseException:
            self._drop_session()
            raise

    def expected(self, chunk: Chunk) -> tuple[Staged, Sequence[WriteColumn]]:
        """Read, transform and stage one chunk as `move` does, and load nothing.

        Returns:
            What the chunk became, and how its accepted rows are written.

        Raises:
            TransientError: worth another try.
            ChunkError: this chunk cannot be read or staged.
            StopRunError: no further chunk can be.
        """
        try:
            read = self._read(chunk)
            source, text_columns = read.frame, read.as_text
            columns = self._columns(text_columns)
            staged = self._open_stager().stage(source, *self._transform(source, text_columns), columns)
            return with_refused(staged, read.rejected), columns
        except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, duckdb.Error) as error:
            msg = f"read chunk {chunk.number}: {type(error).__name__}: {safe_message(error)}"
            raise ChunkError(msg) from error

    def _load(
        self, columns: Sequence[WriteColumn], staged: Staged, entry: transaction.LedgerEntry, sheets: Sequence[Sheet]
    ) -> ChunkResult:
        """Load a chunk; when the target rejects rows of it, through a session that can look for them."""
        session = self._open_session()
        try:
            return transaction.load(session, self._task.target, columns, staged, entry, sheets)
        except RejectedError:
            if session.recovers:
                raise
        self._drop_session()
        self._session = CopySession(target_uri(self._task, self.number))
        try:
            return transaction.load(self._session, self._task.target, columns, staged, entry, sheets)
        finally:
            self._drop_session()

    def committed(self, chunk: Chunk) -> ChunkResult | None:
        """Ask the ledger, over a fresh connection, whether a chunk is committed.

        Raises:
            TransientError: the target cannot be asked just now.
        """
        self._drop_session()
        session = self._open_session()
        try:
            found = transaction.claim(session, self._entry(chunk, 0, Timings(), 0))
        finally:
            self._drop_session()
        if isinstance(found, ChunkResult):
            return found
        self.waited_seconds += found
        return None

    def cancel(self) -> None:
        """Stop what the target does for this worker; called from another thread."""
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Give all connections back."""
        self._drop_session()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._stager is not None:
            self._stager.close()
            self._stager = None
        if self._spreader is not None:
            self._spreader.close()
            self._spreader = None

    # --- steps -----------------------------------------------------------------------------------

    def _step(self, chunk: Chunk, step: events.Step, rows: int = 0) -> None:
        self._observe(events.StepStarted(chunk=chunk.number, worker=self.number, step=step, rows=rows))

    def _without_resolved(self, chunk: Chunk) -> tuple[Chunk, frozenset[str]]:
        """Return a replay's batch without what was resolved since it was planned, and the keys of several records."""
        task = self._task
        if task.replay_of is None:
            return chunk, frozenset()
        try:
            keys = open_keys(self._open_session(), task.replay_of, task.job.ledger_schema, chunk.keys)
        except BaseException:
            self._drop_session()
            raise
        return replace(chunk, keys=tuple(keys)), frozenset(key for key, number in keys.items() if number > 1)

    def _batch(self, chunk: Chunk, crowded: frozenset[str], read: Read) -> Batch | None:
        """Say which records of a replay's batch were read, without rows of strange keys; None for a chunk of a run."""
        task = self._task
        if task.replay_of is None:
            return None
        batch = Batch(
            run_id=task.replay_of,
            replay_id=task.run_id,
            ledger_schema=task.job.ledger_schema,
            asked=frozenset(chunk.keys),
            crowded=crowded,
            found=pl.concat([self._open_stager().keys(read.frame), read.rejected.select(RECORD, "key")]),
        )
        batch, strange = batch.without_strange(unique=task.unique_key)
        if strange:
            self._observe(events.Notice(message=strange, level="warning"))
        return batch

    def _read(self, chunk: Chunk) -> Read:
        """Read a chunk, and number its records; those that the source rejects come after the others."""
        task = self._task
        if self._reader is None:
            self._reader = task.source.open(self.number, task.read_columns)
        read = self._reader.read(chunk)
        for notice in read.notices:
            self._observe(events.Notice(message=notice, level="warning"))
        numbered = read.frame.with_row_index(RECORD).with_columns(pl.col(RECORD).cast(pl.Int64))
        after = pl.int_range(numbered.height, numbered.height + pl.len(), dtype=pl.Int64).alias(RECORD)
        return replace(read, frame=numbered, rejected=read.rejected.with_columns(after))

    def _transform(self, source: pl.DataFrame, text_columns: frozenset[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the chunk after the transform, and the records that it could not do."""
        task = self._task
        visible, unseen = self._visible(source, text_columns) if text_columns & task.looked_at else (source, None)
        frame, failed = task.transform.apply(visible)
        return frame, failed if unseen is None else pl.concat([failed, unseen])

    def _visible(self, source: pl.DataFrame, text_columns: frozenset[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Give the columns that the job looks at their type again, and set apart the records where that cannot be.

        Those hold infinity, NaN, or a date that no Arrow type has; an expression would see NULL there.
        """
        odd = sorted(text_columns & self._task.looked_at)
        typed = source.with_columns(parsed(name, self._task.routes[name].dtype) for name in odd)
        lost = [typed[name].is_null() & source[name].is_not_null() for name in odd]
        unseen = pl.Series([False] * source.height, dtype=pl.Boolean) if not lost else lost[0]
        for mask in lost[1:]:
            unseen |= mask
        message = f"{', '.join(odd)}: no expression can see this value (infinity, NaN or a date far away)"
        rejected = source.filter(unseen).select(RECORD, message=pl.lit(message), rule=pl.lit("transform"))
        return typed.filter(~unseen), rejected

    def _columns(self, text_columns: frozenset[str]) -> Sequence[WriteColumn]:
        """Return the mapping for a chunk in which some columns travel as text."""
        task = self._task
        text = text_columns - task.looked_at
        if not text:
            return task.columns
        outputs = {name: column.source for name, column in task.transform.output.items() if column.source in text}
        copied = {name: str(source) for name, source in outputs.items()}
        return as_text(task.columns, task.sources, copied, task.job.source.time_zone)

    def _spread(self, staged: Staged, text_columns: frozenset[str]) -> tuple[Staged, Sequence[Sheet]]:
        """Turn the accepted records into the rows of several tables."""
        task = self._task
        text = text_columns - task.looked_at
        if self._spreader is None:
            self._spreader = Spreader()
        tables = [table.in_text(text, task.sources, task.job.source.time_zone) for table in task.tables]
        return self._spreader.spread(staged, tables)

    def _entry(self, chunk: Chunk, attempt: int, timings: Timings, size: int) -> transaction.LedgerEntry:
        task = self._task
        return transaction.LedgerEntry(
            run_id=task.run_id,
            chunk=chunk,
            ledger_schema=task.job.ledger_schema,
            worker=self.number,
            sitting=task.sitting,
            attempts=attempt,
            timings=timings,
            bytes_read=size,
            hashing=task.hashing,
        )

    def _open_stager(self) -> Stager:
        if self._stager is None:
            task = self._task
            dedup = task.dedup if self.loads else None  # without the other chunks, nobody is a copy yet
            self._stager = Stager(task.checks, dedup, task.columns, task.key, meant(dedup, task.transform.output))
        return self._stager

    def _open_session(self) -> Session:
        if self._session is None:
            # Rows of several tables go through savepoints, which ADBC does not come back from.
            loader = "copy" if self._task.tables else self._task.job.target.loader
            self._session = SESSIONS[loader](target_uri(self._task, self.number))
        return self._session

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
