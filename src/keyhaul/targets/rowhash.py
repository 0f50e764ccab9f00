"""Checksums of a chunk's part of the target: how many rows there are, and a sum over their hashes in any order.

A row is hashed as a whole, so that two rows which swap a value differ; hashes are summed, so that two equal rows do
not cancel out. The text of a row tells NULL from an empty text, and where each column ends.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from psycopg import sql

from keyhaul.errors import ChunkError
from keyhaul.ledger.statements import statement
from keyhaul.model import Chunk
from keyhaul.targets.keyrange import within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from keyhaul.model import Column
    from keyhaul.targets.session import Session

QUIET: Final = {"search_path": "", "jit": "off", "max_parallel_workers_per_gather": "0"}
"""Settings under which rows are hashed: names of objects are written out, and each worker takes one core."""

TAG: Final = sql.SQL(
    "concat_ws(' ', current_setting('server_version_num')::int / 10000, getdatabaseencoding(),"
    " hashtextextended('keyhaul' collate \"C\", 0))"
)
"""What two hashes must have in common to be compared. PostgreSQL keeps `hashtextextended`, and the texts of values,
within a major version on one platform; the hash of a fixed text tells platforms apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashing:
    """What is hashed of a table's rows, and by what the rows of a chunk are found.

    Attributes:
        columns: their names, in the order in which they are hashed.
        key: the table's columns that are the job's key, in its order.
        indexed: an index leads with the key.
    """

    columns: tuple[str, ...]
    key: tuple[Column, ...]
    indexed: bool = True

    @property
    def nullable(self) -> tuple[str, ...]:
        """The key's columns that can be NULL."""
        return tuple(column.name for column in self.key if not column.not_null)

    def settings(self, chunk: Chunk) -> dict[str, str]:
        """Return the settings under which a chunk is hashed."""
        # A fresh table has no statistics, by which a range with one open end looks like a third of it.
        bounded = chunk.lower is not None or chunk.upper is not None
        return {**QUIET, "enable_seqscan": "off"} if self.indexed and bounded else QUIET

    def state(self, table: sql.Identifier, chunk: Chunk) -> sql.Composed:
        """Return the query for a chunk's part of the table: ``rows`` bigint and ``hash`` numeric, in one row.

        The sum of 64-bit hashes is exact, whatever the number of rows. No rows have the sum 0.
        """
        names = sql.SQL(", ").join(sql.SQL("t.{}").format(sql.Identifier(name)) for name in self.columns)
        return sql.SQL(
            'select count(*) as rows, coalesce(sum(hashtextextended(row({})::text collate "C", 0)), 0) as hash'
            " from {} as t where {}"
        ).format(names, table, within(chunk, self.key, self.nullable))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a checksum belongs: the table that is hashed, and the run in whose chunks' rows it stands."""

    table: sql.Identifier
    ledger_schema: str
    run_id: str


def hash_part(session: Session, table: sql.Identifier, hashing: Hashing, chunk: Chunk) -> tuple[int, str]:
    """Return how many rows a chunk's part of the table has, and the sum of their hashes as text, exact."""
    whole = hashing.state(table, chunk)
    with _set(session, hashing.settings(chunk)):
        found = session.execute(sql.SQL("select rows, hash::text from ({}) as s").format(whole))
    return int(found[0][0]), str(found[0][1])


def store(session: Session, place: Place, hashing: Hashing, chunk: Chunk) -> None:
    """Write the checksum of a chunk's part into the chunk's ledger row, in the transaction that loads the chunk.

    Raises:
        ChunkError: the ledger has no such row.
    """
    query = statement(
        "store_checksum",
        place.ledger_schema,
        run_id=place.run_id,
        chunk=chunk.number,
        state=hashing.state(place.table, chunk),
        tag=TAG,
    )
    with _set(session, hashing.settings(chunk)):
        written = session.execute(query)
    if not written:
        msg = f"store checksum of chunk {chunk.number}: its ledger row is gone"
        raise ChunkError(msg)


class Renewal:
    """The checksums of chunks that are loaded, kept true while a replay or late rows come into their parts.

    What the rows written add to a checksum is added; a row that somebody else has changed before stays a difference.
    """

    def __init__(self, session: Session, place: Place, hashing: Hashing, chunks: Sequence[Chunk]) -> None:
        """Hash the parts of these chunks, before anything is written."""
        self._session = session
        self._place = place
        self._hashing = hashing
        self._chunks = chunks
        self._before = [hash_part(session, place.table, hashing, chunk) for chunk in self._chunks]

    @classmethod
    def of_records(cls, session: Session, place: Place, hashing: Hashing, keys: Sequence[str]) -> Self:
        """Lock the ledger rows of the chunks to which these quarantined records belong, and hash their parts.

        The rows are locked in the order of the chunks, before anything is written: two batches never wait crosswise.
        """
        query = statement("chunks_of_records", place.ledger_schema, run_id=place.run_id, keys=sorted(keys), tag=TAG)
        chunks = [
            Chunk(number=number, kind=kind, lower=_bound(lower), upper=_bound(upper))
            for number, kind, lower, upper in session.execute(query)
        ]
        return cls(session, place, hashing, chunks)

    def store(self) -> None:
        """Add what has changed since."""
        for chunk, (rows, total) in zip(self._chunks, self._before, strict=True):
            query = statement(
                "move_checksum",
                self._place.ledger_schema,
                run_id=self._place.run_id,
                chunk=chunk.number,
                state=self._hashing.state(self._place.table, chunk),
                rows=rows,
                hash=total,
            )
            with _set(self._session, self._hashing.settings(chunk)):
                self._session.execute(query)


@contextmanager
def _set(session: Session, settings: Mapping[str, str]) -> Iterator[None]:
    """Change settings of the transaction, and change them back: triggers of rows written later rely on theirs."""
    read = sql.SQL(", ").join(sql.SQL("current_setting({})").format(sql.Literal(name)) for name in settings)
    before = session.execute(sql.SQL("select {}").format(read))[0]
    _change(session, settings)
    yield
    _change(session, dict(zip(settings, map(str, before), strict=True)))  # an error ends the transaction anyway


def _change(session: Session, settings: Mapping[str, str]) -> None:
    calls = (
        sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), sql.Literal(value))
        for name, value in settings.items()
    )
    session.execute(sql.SQL("select {}").format(sql.SQL(", ").join(calls)))


def _bound(found: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(found)
