"""The last pass of a run: rows that refer to a row of a later chunk, loaded when all chunks are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from keyhaul import events
from keyhaul.errors import CancelledError, ChunkError, RejectedError
from keyhaul.execution.halting import Halting
from keyhaul.execution.steps import ChunkSteps
from keyhaul.model import Chunk, Counts, Staged
from keyhaul.postgres.dsn import redact
from keyhaul.retrying import attempts
from keyhaul.staging.stage import REJECTED
from keyhaul.targets import transaction
from keyhaul.targets.session import CopySession
from keyhaul.targets.transaction import Late
from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.before.prepare import Prepared
    from keyhaul.control import Control
    from keyhaul.ledger.store import Ledger
    from keyhaul.model import Observer
    from keyhaul.targets.transaction import Piece

T = TypeVar("T")


def load_late(run: Prepared, ledger: Ledger, control: Control, observe: Observer) -> str:
    """Load the rows that wait for others of the run, pass after pass until nothing more loads.

    Each step is a transaction that takes them out of the quarantine and moves them in the balance: whoever is killed
    here, the same command goes on.

    Returns:
        Why the run cannot be brought to its end, or an empty string.

    Raises:
        StopRunError: the run is another process's by now.
    """
    if not ledger.has_late(run.run_id):
        return ""
    halting = Halting(control, observe)
    worker = _LateWorker(run, control, observe)
    try:
        with halting, halting.cancelling(ledger.connection, also=worker.cancel):
            worker.load_all()
    except CancelledError as error:
        return f"all chunks are loaded, and what waits for rows of other chunks was {error}"
    except ChunkError as error:
        told = redact(str(error), *run.ends.all)
        return f"all chunks are loaded, but not what waits for rows of other chunks: {told}"
    finally:
        worker.close()
    return ""


class _LateWorker(ChunkSteps):
    """Takes what waits through a session of its own, in the thread that calls it."""

    def __init__(self, context: RunContext, control: Control, observe: Observer) -> None:
        super().__init__(context, 1, observe)
        self._control = control

    def load_all(self) -> None:
        """Make passes as long as one changes anything, then throw away what was put down."""
        number = 0
        while pieces := self._try(lambda late: late.pieces()):
            number += 1
            loaded, refused = self._pass(pieces)
            if not loaded and not refused:
                break
            left = len({piece.chunk.number for piece in self._try(lambda late: late.pieces())})
            self._observe(events.LateLoaded(number=number, rows=loaded, left=left))
            message = f"pass {number} over rows that wait for a row of a later chunk: {plural(loaded, 'row')} loaded"
            self._observe(events.Notice(message=message))
        self._try(lambda late: late.over())

    def _pass(self, pieces: Sequence[Piece]) -> tuple[int, int]:
        """Load what can be loaded together; what is left, and where something else is in the way, piece by piece."""
        loaded, refused = 0, 0
        if not self._context.tables:
            try:
                loaded = self._try(lambda late: late.together(pieces))
            except RejectedError:
                self.drop_session()
            else:
                if self._context.target.mode == "append":
                    return loaded, 0
        for piece in pieces:
            alone = partial(Late.alone, piece=piece, first=not loaded)
            more, others = self._try(alone)
            loaded, refused = loaded + more, refused + others
        return loaded, refused

    def _try(self, step: Callable[[Late], T]) -> T:
        """Take one step, and again after an error that another try may get past: what is done is not there any more."""
        for attempt in attempts(self._context.job.retries, self._control.hopeless):
            with attempt:
                try:
                    return step(self._late())
                except BaseException:
                    self.drop_session()
                    raise
        msg = "load late rows: no try was made"  # a cancelled run makes none
        raise CancelledError(msg)

    def _late(self) -> Late:
        context = self._context
        session = self._session
        if not isinstance(session, CopySession):
            self._session = session = CopySession(context.target_uri(self.number))
        spread = (lambda frame, text: self.spread(_staged(frame), text)[1]) if context.tables else None
        tables = [table.target.loaded for table in context.tables] or [context.target.loaded]
        run = transaction.late_run(self.entry(Chunk(number=0, kind="range")), tables)
        return Late(session, run, context.target, self.columns, spread)


def _staged(frame: pl.DataFrame) -> Staged:
    """Return records that were accepted before."""
    none = pl.DataFrame(schema=REJECTED)
    return Staged(
        accepted=frame, rejected=none, counts=Counts(), describe=lambda found: found if found.height else none
    )
