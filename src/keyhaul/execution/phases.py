"""A run whose copies can lie in different chunks: all chunks are gathered, then copies are told, then each is loaded.

A chunk keeps its number, its bounds and its one transaction in the target; only its reading comes before all loading.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Final

import polars as pl

from keyhaul import events
from keyhaul.errors import RefusedError, StopRunError
from keyhaul.execution.chunk import ChunkRunner, Produced
from keyhaul.model import RECORD, ChunkResult, Staged
from keyhaul.staging.copies import across_chunks, meant, meant_type
from keyhaul.staging.gather import Contest, Gathered, Store, remove
from keyhaul.staging.stage import REJECTED
from keyhaul.text import plural
from keyhaul.transform.decoding import parsed
from keyhaul.workfolder import open_work_folder, work_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.before.prepare import Prepared
    from keyhaul.config.job import Job
    from keyhaul.control import Control
    from keyhaul.execution.chunk import Shared
    from keyhaul.execution.pool import Pool
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Chunk, Observer

FORMAT: Final = 2
"""Of the files; another one is not read."""

_RUN_ID: Final = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{4}")
"""Nothing else in the work folder is ever removed, whatever a ledger says."""


def sweep(job: Job, ledger: Ledger, observe: Observer) -> None:
    """Remove what runs of this job have left that are done or given up; what is of others stays."""
    base = work_folder(job.work_dir)
    try:
        names = [entry.name for entry in base.iterdir() if _RUN_ID.fullmatch(entry.name) and entry.is_dir()]
    except OSError:  # it is not there, or another user's: nothing of ours is in it
        return
    for name in ledger.ended(names) if names else []:
        try:
            remove(base / name)
        except StopRunError as error:  # the run itself is over, and the next one tries again
            observe(events.Notice(message=str(error), level="warning"))


class Phases:
    """Both phases of one sitting, and the store between them."""

    def __init__(self, prepared: Prepared, observe: Observer, control: Control) -> None:
        """Look at the work folder; makes it, but nothing in it.

        Raises:
            ConfigError: it cannot be written, or another user could put a folder of his in the place of ours.
        """
        self._job = prepared.job
        self._prepared = prepared
        self._observe = observe
        self._control = control
        self._contest = _contest(prepared)
        self._ordered = prepared.source.describe().key_unique
        self._store: Store | None = None
        self._base = open_work_folder(self._job.work_dir)

    @classmethod
    def of(cls, prepared: Prepared, observe: Observer, control: Control) -> Phases | None:
        """Return the phases of a job whose copies could lie in different chunks; None for any other job."""
        return cls(prepared, observe, control) if across_chunks(prepared.job, prepared.transform) else None

    # --- before the first read -------------------------------------------------------------------

    def resume(self, run_id: str, *, loaded: int, left: int) -> bool:
        """Find what the run has gathered; returns whether that is all, so that the source is not read again.

        Args:
            run_id: of the unfinished run.
            loaded: its chunks in the target.
            left: its chunks that are not.

        Raises:
            RefusedError: chunks are loaded, and what decided about their copies is gone: a second winner could come in.
        """
        if not left:
            return True
        store = Store.open(self._base / run_id, self._contest, self._mark(), self._job.work_memory_mb)
        if store is not None and (not loaded or store.settled):
            self._store = store
            return store.settled or len(store.chunks()) == left
        if store is not None:
            store.close()
        if loaded:
            msg = (
                f"resume run {run_id}: {loaded:,} of its chunks are loaded, and the rows of the others, which were "
                f"gathered in {self._base / run_id}, are not there any more or of another job. Give the --work-dir "
                "where they are, or --fresh to start a new run"
            )
            raise RefusedError(msg)
        return False

    @staticmethod
    def check_still(now: int, loaded: int, run_id: str) -> None:
        """Refuse to go on when chunks came in after `resume` was asked: they chose among other gathered rows.

        Raises:
            RefusedError: `now` more chunks are loaded than were.
        """
        if now != loaded:
            msg = f"resume run {run_id}: another process has loaded chunks of it just now. Wait for its end"
            raise RefusedError(msg)

    def _open(self, run_id: str, *, resumed: bool) -> Store:
        """Return the store that `resume` has found, or a new one; the ledger knows the run by now."""
        if self._store is not None:
            return self._store
        folder = self._base / run_id
        if resumed:
            message = f"what was gathered is not in {folder} any more; nothing is loaded yet, so all is read anew"
            self._observe(events.Notice(message=message, level="warning"))
        remove(folder)
        return Store.create(folder, self._contest, self._mark(), self._job.work_memory_mb)

    def _mark(self) -> str:
        """Return what must be the same for a store to be used again: the job, and the types that it reads and has."""
        prepared = self._prepared
        types = {name: str(prepared.routes[name].dtype) for name in prepared.read_columns}
        output = {name: str(column.dtype) for name, column in prepared.transform.output.items()}
        what = json.dumps([FORMAT, self._job.fingerprint(), types, output])
        return hashlib.sha256(what.encode()).hexdigest()

    # --- moving ----------------------------------------------------------------------------------

    def move(self, pool: Pool, run_id: str, chunks: Sequence[Chunk], workers: int, *, resumed: bool) -> None:
        """Gather the chunks that are not yet, tell copies, and load; stops before the loading when one is missing.

        Args:
            pool: moves chunks.
            run_id: in the ledger.
            chunks: those that are not loaded, in the order in which they are taken.
            workers: at a time.
            resumed: whether `resume` was asked before.

        Raises:
            StopRunError: the work folder cannot be used; what is gathered or loaded stays.
        """
        if not chunks:
            return
        store = self._open(run_id, resumed=resumed)
        try:
            there = store.chunks()
            missing = [chunk for chunk in chunks if chunk.number not in there]
            if missing:
                self._say_gathering(len(chunks), len(missing))
                pool.gathered = (len(there), sum(chunk.estimated_rows for chunk in chunks if chunk.number in there))
                pool.move(missing, workers, lambda run, n, shared: Gatherer(run, n, shared, store, keyed=self._ordered))
            left = {chunk.number for chunk in chunks} - store.chunks()
            if left and not self._control.stopping.is_set():
                self._control.stop(
                    f"{plural(len(left), 'chunk')} could not be read, and which rows are copies is known only when "
                    "all chunks are: nothing is loaded yet"
                )
            if not left and not self._control.stopping.is_set():
                losers = self._settle(store)
                if not self._control.stopping.is_set():
                    message = f"gathered all rows; {plural(losers, 'row')} are copies of others. Loading begins"
                    self._observe(events.Notice(message=message))
                    pool.move(chunks, workers, lambda run, n, shared: Loader(run, n, shared, store))
        finally:
            store.close()

    def _say_gathering(self, chunks: int, missing: int) -> None:
        message = (
            f"copies can lie in different chunks, so {plural(chunks, 'chunk')} are gathered before any is loaded, in "
            f"{self._base}"
        )
        if missing < chunks:
            message += f"; {chunks - missing:,} of them are there already, from an earlier sitting's snapshot"
        self._observe(events.Notice(message=message))

    def _settle(self, store: Store) -> int:
        """Tell copies, in a thread of its own: a signal must not wait for the end of the query."""
        found: list[int] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                found.append(store.settle())
            except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
                failed.append(error)

        thread = threading.Thread(target=work, name="keyhaul-copies", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.1)
            if self._control.stopping.is_set():
                store.interrupt()  # again and again: it may just be between two statements
        if failed and not self._control.stopping.is_set():
            raise failed[0]
        return found[0] if found else 0


def _contest(prepared: Prepared) -> Contest:
    job, output = prepared.job, prepared.transform.output
    on, order_by, keep = (job.dedup.on, job.dedup.order_by, job.dedup.keep) if job.dedup else ((), (), "last")
    return Contest(
        on=tuple(_plain(meant_type(output[name])) for name in on),
        order_by=tuple(_plain(meant_type(output[name])) for name in order_by),
        key=tuple(_plain(prepared.routes[name].dtype) for name in job.key),
        keep=keep,
    )


def _plain(dtype: pl.DataType) -> pl.DataType:
    """Return the type without a set of values of its own, which would be another one in each chunk."""
    return pl.String() if isinstance(dtype, pl.Categorical | pl.Enum) else dtype


class Gatherer(ChunkRunner):
    """The first phase: reads and stages a chunk, and puts it down in the store. The target is not touched."""

    loads: ClassVar[bool] = False

    def __init__(self, context: RunContext, number: int, shared: Shared, store: Store, *, keyed: bool) -> None:
        """Take the store.

        Args:
            context: what all chunks have in common.
            number: of the worker, from 1.
            shared: by the workers.
            store: where chunks are put down.
            keyed: no two rows have one key.
        """
        super().__init__(context, number, shared)
        self._store = store
        self._keyed = keyed

    def _commit(self, chunk: Chunk, produced: Produced) -> ChunkResult:
        staged = produced.staged
        part = Gathered(
            chunk=chunk.number,
            accepted=staged.accepted,
            rejected=staged.rejected,
            counts=staged.counts,
            warned=staged.warned,
            text_columns=produced.text_columns,
            timings=replace(produced.timings, wait_seconds=self.waited_seconds),
            bytes_read=produced.bytes_read,
            place=produced.place,
        )
        source = produced.source.filter(pl.col(RECORD).is_in(staged.accepted[RECORD].implode()))
        self._store.put(part, source, self._contestants(produced))
        return ChunkResult(
            chunk=chunk.number,
            counts=staged.counts,
            timings=produced.timings,
            attempts=self.tries,
            bytes_read=produced.bytes_read,
        )

    def _committed(self, chunk: Chunk) -> ChunkResult | None:
        """Return None: a chunk that was put down was never in doubt, and putting it down again does nothing."""
        del chunk
        return None

    def _contestants(self, produced: Produced) -> pl.DataFrame:
        """Return the columns that decide; a key that no type holds (infinity) is NULL, as is a missing one."""
        context, accepted = self._context, produced.staged.accepted
        dedup = context.job.dedup
        on, order_by = (dedup.on, dedup.order_by) if dedup else ((), ())
        key = produced.source.select(
            RECORD,
            *(
                parsed(name, context.routes[name].dtype) if name in produced.text_columns else pl.col(name)
                for name in context.job.key
            ),
        )
        # Rows of one key are all in one chunk: there the other columns decide, by value as well.
        ties = accepted.select(RECORD, tie=pl.lit(0, pl.Int64)) if self._keyed else self.open_stager().ties(accepted)
        joined = accepted.select(RECORD).join(key, on=RECORD, how="left", maintain_order="left")
        joined = joined.join(ties, on=RECORD, how="left", maintain_order="left").drop(RECORD)
        keyed = accepted.with_columns(made.alias(name) for name, made in meant(dedup, context.transform.output).items())
        return self._store.contest.select(keyed, on, order_by, joined)


class Loader(ChunkRunner):
    """The second phase: loads a chunk from the store, without its losers, in its ordinary transaction."""

    reads: ClassVar[bool] = False

    def __init__(self, context: RunContext, number: int, shared: Shared, store: Store) -> None:
        """Take the store, in which copies are told."""
        super().__init__(context, number, shared)
        self._store = store

    def _produce(self, chunk: Chunk) -> Produced:
        started = time.perf_counter()
        self.step(chunk, "stage")
        part = self._store.take(chunk.number)
        seconds = part.timings.stage_seconds + time.perf_counter() - started

        def describe(found: pl.DataFrame) -> pl.DataFrame:
            if not found.height:
                return pl.DataFrame(schema=REJECTED)
            return self.open_stager().with_records(found, self._store.source(chunk.number))

        staged = Staged(
            accepted=part.accepted,
            rejected=part.rejected,
            counts=part.counts,
            describe=describe,
            warned=part.warned,
        )
        return Produced(
            source=part.accepted,
            text_columns=part.text_columns,
            staged=staged,
            timings=replace(part.timings, stage_seconds=seconds),
            bytes_read=part.bytes_read,
            place=part.place,
            batch=None,
        )
