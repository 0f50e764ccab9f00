"""The steps of a chunk before the target sees it, and the connections that they need."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

import duckdb
import polars as pl
import pyarrow as pa

from keyhaul import events
from keyhaul.errors import ChunkError, safe_message
from keyhaul.fanout.spread import Spreader
from keyhaul.model import RECORD, Timings
from keyhaul.staging.copies import meant
from keyhaul.staging.stage import Stager, with_refused
from keyhaul.targets.session import SESSIONS
from keyhaul.targets.transaction import LedgerEntry
from keyhaul.transform.decoding import parsed
from keyhaul.transform.mapping import as_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.model import Chunk, Observer, Staged
    from keyhaul.sources.source import Batch as Read
    from keyhaul.sources.source import Reader
    from keyhaul.targets.session import Session
    from keyhaul.targets.sheets import Sheet
    from keyhaul.transform.mapping import WriteColumn

_NO_TIME: Final = Timings()


class ChunkSteps:
    """The steps of a chunk over connections of their own; belongs to one thread.

    Attributes:
        loads: whether rows come into the target; a run with two phases has runners for each end.
        waited_seconds: what the chunk under way has waited so far.
    """

    loads: ClassVar[bool] = True

    def __init__(self, context: RunContext, number: int, observe: Observer) -> None:
        """Take a number from 1; connections are opened by the first chunk."""
        self._context = context
        self.number = number
        self.waited_seconds = 0.0
        self._observe = observe
        self._reader: Reader | None = None
        self._session: Session | None = None
        self._stager: Stager | None = None
        self._spreader: Spreader | None = None

    def expected(self, chunk: Chunk) -> tuple[Staged, Sequence[WriteColumn]]:
        """Read, transform and stage one chunk as a run does, and load nothing.

        Returns:
            What the chunk became, and how its accepted rows are written.

        Raises:
            TransientError: worth another try.
            ChunkError: this chunk cannot be read or staged.
            StopRunError: no further chunk can be.
        """
        with speaking_of("read", chunk):
            read = self.read(chunk)
            source, text_columns = read.frame, read.as_text
            columns = self.columns(text_columns)
            staged = self.open_stager().stage(source, *self.transform(source, text_columns), columns)
            return with_refused(staged, read.rejected), columns

    def cancel(self) -> None:
        """Stop what the target does for this worker; called from another thread."""
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Give all connections back."""
        self.drop_session()
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

    def step(self, chunk: Chunk, step: events.Step, rows: int = 0) -> None:
        """Tell that a step begins."""
        self._observe(events.StepStarted(chunk=chunk.number, worker=self.number, step=step, rows=rows))

    def read(self, chunk: Chunk) -> Read:
        """Read a chunk, and number its records; those that the source rejects come after the others."""
        read = self.open_reader().read(chunk)
        for notice in read.notices:
            self._observe(events.Notice(message=notice, level="warning"))
        numbered = read.frame.with_row_index(RECORD).with_columns(pl.col(RECORD).cast(pl.Int64))
        after = pl.int_range(numbered.height, numbered.height + pl.len(), dtype=pl.Int64).alias(RECORD)
        return replace(read, frame=numbered, rejected=read.rejected.with_columns(after))

    def transform(self, source: pl.DataFrame, text_columns: frozenset[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the chunk after the transform, and the records that it could not do."""
        context = self._context
        visible, unseen = self._visible(source, text_columns) if text_columns & context.looked_at else (source, None)
        frame, failed = context.transform.apply(visible)
        return frame, failed if unseen is None else pl.concat([failed, unseen])

    def _visible(self, source: pl.DataFrame, text_columns: frozenset[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Give the columns that the job looks at their type again, and set apart the records where that cannot be.

        Those hold infinity, NaN, or a date that no Arrow type has; an expression would see NULL there.
        """
        odd = sorted(text_columns & self._context.looked_at)
        typed = source.with_columns(parsed(name, self._context.routes[name].dtype) for name in odd)
        lost = [typed[name].is_null() & source[name].is_not_null() for name in odd]
        unseen = pl.Series([False] * source.height, dtype=pl.Boolean) if not lost else lost[0]
        for mask in lost[1:]:
            unseen |= mask
        message = f"{', '.join(odd)}: no expression can see this value (infinity, NaN or a date far away)"
        rejected = source.filter(unseen).select(RECORD, message=pl.lit(message), rule=pl.lit("transform"))
        return typed.filter(~unseen), rejected

    def columns(self, text_columns: frozenset[str]) -> Sequence[WriteColumn]:
        """Return the mapping for a chunk in which some columns travel as text."""
        context = self._context
        text = text_columns - context.looked_at
        if not text:
            return context.columns
        outputs = {name: column.source for name, column in context.transform.output.items() if column.source in text}
        copied = {name: str(source) for name, source in outputs.items()}
        return as_text(context.columns, context.sources, copied, context.job.source.time_zone)

    def spread(self, staged: Staged, text_columns: frozenset[str]) -> tuple[Staged, Sequence[Sheet]]:
        """Turn the accepted records into the rows of several tables."""
        context = self._context
        text = text_columns - context.looked_at
        if self._spreader is None:
            self._spreader = Spreader()
        tables = [table.in_text(text, context.sources, context.job.source.time_zone) for table in context.tables]
        return self._spreader.spread(staged, tables)

    def entry(self, chunk: Chunk, attempt: int = 0, timings: Timings = _NO_TIME, size: int = 0) -> LedgerEntry:
        """Return what the chunk's ledger row will say beside the counts."""
        context = self._context
        return LedgerEntry(
            run_id=context.run_id,
            chunk=chunk,
            ledger_schema=context.job.ledger_schema,
            worker=self.number,
            sitting=context.sitting,
            attempts=attempt,
            timings=timings,
            bytes_read=size,
            hashing=context.hashing,
        )

    def open_reader(self) -> Reader:
        """Return the reader; made when there is none."""
        if self._reader is None:
            self._reader = self._context.open_reader(self.number)
        return self._reader

    def open_stager(self) -> Stager:
        """Return the stager; made when there is none."""
        if self._stager is None:
            context = self._context
            dedup = context.job.dedup if self.loads else None  # without the other chunks, nobody is a copy yet
            meanings = meant(dedup, context.transform.output)
            self._stager = Stager(context.checks, dedup, context.columns, context.job.key, meanings)
        return self._stager

    def open_session(self) -> Session:
        """Return the session in the target; opened when there is none."""
        if self._session is None:
            # Rows of several tables go through savepoints, which ADBC does not come back from.
            loader = "copy" if self._context.tables else self._context.job.target.loader
            self._session = SESSIONS[loader](self._context.target_uri(self.number))
        return self._session

    def drop_session(self) -> None:
        """Close the session, whatever its state."""
        if self._session is not None:
            self._session.close()
            self._session = None


@contextmanager
def speaking_of(verb: str, chunk: Chunk) -> Iterator[None]:
    """Raise what a library says of a chunk as our own error."""
    try:
        yield
    except (pa.ArrowException, pl.exceptions.PolarsError, pl.exceptions.PanicException, duckdb.Error) as error:
        msg = f"{verb} chunk {chunk.number}: {type(error).__name__}: {safe_message(error)}"
        raise ChunkError(msg) from error
