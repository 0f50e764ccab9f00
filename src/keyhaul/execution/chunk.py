"""One chunk, from its admission to its ledger row: a function of (context, chunk) that shares only the databases."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final, Self

import polars as pl

from keyhaul import events
from keyhaul.errors import CancelledError, ChunkError, RejectedError, StopRunError, TransientError
from keyhaul.faults import pass_point
from keyhaul.limits.limiter import Limits
from keyhaul.model import RECORD, ChunkResult, Timings
from keyhaul.postgres.dsn import redact
from keyhaul.retrying import attempts
from keyhaul.sources.source import Relaying
from keyhaul.staging.stage import with_refused
from keyhaul.targets import transaction
from keyhaul.targets.replayed import Batch, open_keys
from keyhaul.targets.session import CopySession

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.control import Control
    from keyhaul.model import Chunk, Observer, Staged
    from keyhaul.sources.source import Batch as Read
    from keyhaul.targets.sheets import Sheet

from keyhaul.execution.heartbeat import Doubt
from keyhaul.execution.steps import ChunkSteps, speaking_of

_REFUSALS: Final = 3
"""Chunks in a row that the target did not take as they stand, after which a worker reads all others at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Produced:
    """A chunk that is read and staged, before the target has seen it.

    Attributes:
        source: as read, with `RECORD`.
        text_columns: source columns that travel as text in this chunk.
        batch: of a replay.
    """

    source: pl.DataFrame
    text_columns: frozenset[str]
    staged: Staged
    timings: Timings
    bytes_read: int
    place: str
    batch: Batch | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the runners of one pool have in common.

    Attributes:
        observe: told each step, from the workers' threads.
        control: may be told to stop.
        limits: what is asked before a chunk begins.
        lose: told that the target cannot be asked; raises when that has lasted too long.
        doubt: whether the snapshot may be lost, since a try has failed.
    """

    observe: Observer
    control: Control
    limits: Limits
    lose: Callable[[TransientError], None]
    doubt: Doubt


class ChunkRunner(ChunkSteps):
    """Moves chunks one after the other, each in one straight body: `run`.

    Attributes:
        reads: whether the source is read.
        tries: of the chunk under way.
    """

    reads: ClassVar[bool] = True

    def __init__(self, context: RunContext, number: int, shared: Shared) -> None:
        """Take a number from 1; connections are opened by the first chunk."""
        super().__init__(context, number, shared.observe)
        self._shared = shared
        self._control = shared.control
        self._refused = 0
        self.tries = 0

    @classmethod
    def alone(cls, context: RunContext, number: int, observe: Observer, control: Control) -> Self:
        """Return a runner without a pool, for a process that moves chunks of another's run."""
        shared = Shared(
            observe=observe, control=control, limits=Limits(), lose=lambda _error: None, doubt=Doubt(settled=False)
        )
        return cls(context, number, shared)

    def run(self, chunk: Chunk) -> ChunkResult:
        """Admit, read, transform, stage and load one chunk, again after an error that another try may get past.

        No try begins without a look in the ledger after a doubt, and the last one is followed by one, too: perhaps only
        the answer to its COMMIT was lost.

        Returns:
            What the ledger holds of it.

        Raises:
            ChunkError: this chunk cannot be moved, or not just now.
            StopRunError: no further chunk can or should be.
        """
        self.waited_seconds, self.tries = 0.0, 0
        retries, hopeless = self._context.job.retries, self._control.hopeless
        try:
            for attempt in attempts(retries, hopeless, partial(self._retried, chunk), self._waited):
                with attempt:
                    self.tries += 1
                    already = self._committed(chunk) if self.tries > 1 else None
                    if already is not None:
                        return already
                    if self.tries > 1 and self.reads:
                        self._shared.doubt.wait(hopeless)
                    return self.once(chunk)
        except TransientError:
            already = None if hopeless.is_set() else self._after_all(chunk)
            if already is None:
                raise
            return already
        raise CancelledError(f"move chunk {chunk.number}: no try was made")

    def once(self, chunk: Chunk) -> ChunkResult:
        """Move a chunk as soon as the limits let it in."""
        limits, number, result = self._shared.limits, chunk.number, None
        waited = limits.enter(
            number,
            chunk.estimated_rows,
            reads=self.reads,
            halted=self._control.stopping.is_set,
            tell=lambda limit: self._observe(events.ChunkHeld(chunk=number, worker=self.number, limit=limit)),
        )
        if waited:
            self._waited(waited)
            self._observe(events.ChunkReleased(chunk=number, worker=self.number, seconds=waited))
        try:
            with speaking_of("move", chunk):
                result = self._relay(chunk) or self._commit(chunk, self._produce(chunk))
        finally:
            if result is None:
                limits.leave(number)
            else:
                limits.leave(number, rows=result.counts.read, size_bytes=result.bytes_read)
        return result

    # --- doubt -----------------------------------------------------------------------------------

    def _retried(self, chunk: Chunk, attempt: int, wait_seconds: float, error: BaseException | None) -> None:
        self._shared.doubt.begin()
        told = self._clean(error) if error else ""
        self._observe(
            events.ChunkRetried(
                chunk=chunk.number, worker=self.number, attempt=attempt, wait_seconds=wait_seconds, error=told
            )
        )

    def _waited(self, seconds: float) -> None:
        self.waited_seconds += seconds

    def _after_all(self, chunk: Chunk) -> ChunkResult | None:
        try:
            return self._committed(chunk)
        except StopRunError as error:
            self._control.stop(self._clean(error))
        except ChunkError:
            pass
        return None

    def _committed(self, chunk: Chunk) -> ChunkResult | None:
        """Ask the ledger, over a fresh connection, whether a chunk is committed.

        Raises:
            TransientError: the target cannot be asked just now; it counts as gone for all when that lasts long.
        """
        self.drop_session()
        try:
            found = transaction.claim(self.open_session(), self.entry(chunk))
        except TransientError as error:
            self._shared.lose(error)
            raise
        finally:
            self.drop_session()
        if isinstance(found, ChunkResult):
            return found
        self._waited(found)
        return None

    def _clean(self, error: BaseException) -> str:
        return redact(str(error), self._context.target_dsn)

    # --- the steps -------------------------------------------------------------------------------

    def _relay(self, chunk: Chunk) -> ChunkResult | None:
        """Hand a chunk over as it stands; None when it is to be read, for this time or for good."""
        context = self._context
        if self._refused >= _REFUSALS or not (context.relays and self.reads and self.loads):
            return None
        reader = self.open_reader()
        if not isinstance(reader, Relaying):
            return None
        started = time.perf_counter()
        self.step(chunk, "read")
        given = reader.relay(chunk, frozenset(column.name for column in context.columns))
        if given is None:
            return None
        timings = Timings(read_seconds=time.perf_counter() - started, wait_seconds=self.waited_seconds)
        self.step(chunk, "load", given.records)
        session = self.open_session()
        try:
            if not isinstance(session, CopySession) or not session.relays:
                return None
            entry = replace(self.entry(chunk, self.tries, timings, len(given.text)), place=given.place)
            result = transaction.relay(session, context.target, given, entry)
        except BaseException:
            self.drop_session()
            raise
        self._refused = 0 if result is not None else self._refused + 1
        return result

    def _produce(self, chunk: Chunk) -> Produced:
        """Read, transform and stage a chunk."""
        started = time.perf_counter()
        self.step(chunk, "read")
        chunk, crowded = self._without_resolved(chunk)
        pass_point("read.before")
        read = self.read(chunk)
        pass_point("read.after")
        read_at = time.perf_counter()
        source, text_columns = read.frame, read.as_text
        self.step(chunk, "transform", source.height)
        batch = self._batch(chunk, crowded, read)
        rejected = read.rejected
        if batch is not None and batch.found.height < source.height + rejected.height:
            meant = pl.col(RECORD).is_in(batch.found[RECORD].implode())
            source, rejected = source.filter(meant), rejected.filter(meant)
        frame, failed = self.transform(source, text_columns)
        pass_point("transform.after")
        transformed_at = time.perf_counter()
        self.step(chunk, "stage", frame.height)
        staged = self.open_stager().stage(source, frame, failed, self.columns(text_columns))
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
            place=read.place,
            batch=batch,
        )

    def _commit(self, chunk: Chunk, produced: Produced) -> ChunkResult:
        """Load what was produced, with its ledger row."""
        staged, timings = produced.staged, produced.timings
        sheets: Sequence[Sheet] = ()
        if self._context.tables:
            started = time.perf_counter()
            staged, sheets = self.spread(staged, produced.text_columns)
            timings = replace(timings, stage_seconds=timings.stage_seconds + time.perf_counter() - started)
        timings = replace(timings, wait_seconds=timings.wait_seconds + self.waited_seconds)
        self.step(chunk, "load", staged.accepted.height)
        entry = self.entry(chunk, self.tries, timings, produced.bytes_read)
        entry = replace(entry, batch=produced.batch, text_columns=produced.text_columns, place=produced.place)
        columns, target = self.columns(produced.text_columns), self._context.target
        session = self.open_session()
        try:
            return transaction.load(session, target, columns, staged, entry, sheets)
        except RejectedError:
            if session.recovers:
                self.drop_session()
                raise
        except BaseException:
            self.drop_session()
            raise
        # Which rows the target rejects, only a session that goes on after an error can find out.
        self.drop_session()
        self._session = session = CopySession(self._context.target_uri(self.number))
        try:
            return transaction.load(session, target, columns, staged, entry, sheets)
        finally:
            self.drop_session()

    def _without_resolved(self, chunk: Chunk) -> tuple[Chunk, frozenset[str]]:
        """Return a replay's batch without what was resolved since it was planned, and the keys of several records."""
        context = self._context
        if context.replay_of is None:
            return chunk, frozenset()
        try:
            keys = open_keys(self.open_session(), context.replay_of, context.job.ledger_schema, chunk.keys)
        except BaseException:
            self.drop_session()
            raise
        return replace(chunk, keys=tuple(keys)), frozenset(key for key, number in keys.items() if number > 1)

    def _batch(self, chunk: Chunk, crowded: frozenset[str], read: Read) -> Batch | None:
        """Say which records of a replay's batch were read, without rows of strange keys; None for a chunk of a run."""
        context = self._context
        if context.replay_of is None:
            return None
        batch = Batch(
            run_id=context.replay_of,
            replay_id=context.run_id,
            ledger_schema=context.job.ledger_schema,
            asked=frozenset(chunk.keys),
            crowded=crowded,
            found=pl.concat([self.open_stager().keys(read.frame), read.rejected.select(RECORD, "key")]),
        )
        batch, strange = batch.without_strange(unique=context.unique_key)
        if strange:
            self._observe(events.Notice(message=strange, level="warning"))
        return batch
