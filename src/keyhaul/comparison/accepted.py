"""The rows that a chunk should have put into the target: those that the job accepts and the target did not reject."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import polars as pl
from psycopg import sql

from keyhaul.execution.steps import ChunkSteps
from keyhaul.ledger.statements import statement
from keyhaul.model import RECORD, Counts
from keyhaul.targets.writable import writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.before.context import RunContext
    from keyhaul.model import Chunk, Staged
    from keyhaul.targets.session import Session
    from keyhaul.transform.mapping import WriteColumn


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a chunk of the source has become now.

    Attributes:
        frame: the rows that should be there, with `RECORD`.
        columns: how they are written.
        counts: of the rows read; what is quarantined includes those that the target has rejected.
        rejected: rows that are in the run's quarantine, value for value, because the target rejected them.
    """

    frame: pl.DataFrame
    columns: Sequence[WriteColumn]
    counts: Counts
    rejected: int


class Accepted:
    """Reads chunks for a comparison; belongs to one thread."""

    def __init__(self, context: RunContext, number: int, run_id: str) -> None:
        """Take the run whose quarantine says what the target rejected; connections are opened by the first chunk."""
        self._context = context
        self._run_id = run_id
        self._steps = ChunkSteps(context, number, lambda _event: None)
        self._doubtful: frozenset[int] | None = None

    def read(self, session: Session, chunk: Chunk) -> Expected:
        """Return the rows of a chunk as they should be loaded, and what was left out and why.

        A row that is in the quarantine, value for value, because the target rejected it is left out, too.

        Args:
            session: in the target, to ask the ledger.
            chunk: of the run's plan.

        Raises:
            TransientError: worth another try.
            ChunkError: it cannot be read.
        """
        schema = self._context.job.ledger_schema
        if self._doubtful is None:
            rows = session.execute(statement("verify_doubtful", schema, run_id=self._run_id))
            self._doubtful = frozenset(row[0] for row in rows)
        staged, columns = self._steps.expected(chunk)
        if chunk.number not in self._doubtful or not staged.accepted.height:
            return Expected(frame=staged.accepted, columns=columns, counts=staged.counts, rejected=0)
        query = statement("verify_rejected", schema, run_id=self._run_id, chunk=chunk.number)
        encoding = str(session.execute(sql.SQL("select getdatabaseencoding()"))[0][0])
        frame = _without(staged, encoding, Counter(_canonical(row[0]) for row in session.execute(query)))
        rejected = staged.accepted.height - frame.height
        counts = staged.counts + Counts(quarantined=rejected)
        return Expected(frame=frame, columns=columns, counts=counts, rejected=rejected)

    def close(self) -> None:
        """Give the connections back."""
        self._steps.close()


def _without(staged: Staged, encoding: str, rejected: Counter[str]) -> pl.DataFrame:
    accepted = staged.accepted
    asked = accepted.select(
        RECORD,
        stage=pl.lit("load"),
        rules=pl.lit([], pl.List(pl.String)),
        message=pl.lit(""),
    )
    gone = []
    for record, data in writable(staged.describe(asked), encoding).select(RECORD, "data").iter_rows():
        row = _canonical(data)
        if rejected[row]:
            rejected[row] -= 1
            gone.append(record)
    return accepted.filter(~pl.col(RECORD).is_in(gone))


def _canonical(data: str) -> str:
    """Return a record's JSON in one form: jsonb and DuckDB order fields and write numbers each in their way."""
    return json.dumps(json.loads(data, parse_float=Decimal, parse_int=Decimal), sort_keys=True, default=_number)


def _number(value: Decimal) -> str:
    return f"{value.normalize():f}"
