"""The seam: what the engine knows of a source, whatever its kind.

Walk of a run: `open_source` (sources.kinds) → `describe` → `sample`, `plan` → for each worker `open` → for each chunk
`Reader.read` → `close`. A resumed run asks `differs` of the `identity` in the ledger; a replay asks `reread`.

Errors mean the same everywhere, and no message has a secret or a value of a row in it:

* `ConfigError`, `RefusedError`: the job, path or address does not fit; before the first chunk, nothing was moved.
* `TransientError`: worth another try of this chunk (a lost connection, a busy server).
* `ChunkError`: this chunk cannot be read; the others are not concerned. One guilty record is no reason for it: it goes
  into `Batch.rejected`.
* `StopRunError`: no further chunk can be read (the snapshot is gone, a file has changed); the run can be resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from keyhaul.config.job import Job
    from keyhaul.config.lookupstep import Lookup
    from keyhaul.config.parts import Incremental
    from keyhaul.model import Chunk, Column, KnownFiles, Plan
    from keyhaul.postgres.definition import TableDefinition, TypeDefinition
    from keyhaul.postgres.dsn import Dsn
    from keyhaul.postgres.pgtypes import Route
    from keyhaul.transform.lookup import LookupRows, LookupTable

REJECTED_BY_SOURCE: Final[dict[str, pl.DataType]] = {
    "reason": pl.String(),
    "message": pl.String(),
    "place": pl.String(),
    "key": pl.String(),
    "raw": pl.String(),
}
"""Records that a source could not give in the types of its description, one row each.

* reason: a short name, the same for all records of one fault (``ragged_line``, ``storage_class``); never NULL.
* message: one sentence ``<column>: got …, expected …`` without the value.
* place: where a person finds it (``flights.csv line 12``, ``rowid 7``); NULL where the key says it.
* key: as the quarantine has keys (text; of several columns a JSON array of texts); NULL: a replay cannot find it.
* raw: the record as it was found, as text; bytes that are no text as ``\\x…``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a source says of itself before a row is read; `describe` returns the same one each time.

    Attributes:
        label: what is read, for people: ``public.flights``, ``flights.csv``, ``query``.
        place: where that is, for people and the ledger, without secrets: ``db on host:5432``, a folder.
        link: what the connection's protection is worth (``TLS verify-full``); empty where there is no network.
        table: the name of a target table that is called like the source, as SQL (quoted where it must be).
        database: `Dsn.identity` of a PostgreSQL source, to tell that the target is the same database; else empty.
        driver: what reads it, for people: ``connectorx``.
        columns: in the source's own order, those that can be loaded. `Column` as pg_catalog would describe the column
            of a target that is created for it (see `sources.columns.column_of`); not_null is a guarantee.
        routes: of each of `columns` and `own`: the exact Polars type of a batch's column, and whether it is direct,
            PostgreSQL text, or refused with a reason. No order.
        key: the columns whose values find a record again, in the job's order; without a key of the job those of `own`.
        own: columns of the source's own making (``_file``, ``_line``), in each batch and never loaded; only where
            there is no key. Their names begin with ``_``.
        primary_key: of a target that is created; empty where none is known.
        key_unique: no two records have one key, guaranteed.
        ranged: a range of the key has the same records in a PostgreSQL target's order (the types and collations of
            both ends are compared besides). False: verify compares the whole, and checksums are refused.
        orders: key column of text → what decides the order of its values, to be compared with the target's; a column
            that is missing can be compared with nothing.
        indexed: a chunk is read without reading the others' records.
        recomputed: each chunk runs a view or query anew, so the rows read are compared with those planned.
        notes: what a person should know of what is read, a sentence each.
        moment: one sentence for plan and report: what can be promised of one moment.
        evidence: column → what its type rests on, where the source does not say it itself (``bigint: 10,000 values
            looked at, widest 336776``).
        news: one sentence on what a new run reads and what it leaves out, told as it begins; empty where it reads all.
        resumed: what a person is told of a run that goes on, after "going on with an unfinished run; ".
    """

    label: str
    place: str
    table: str
    driver: str
    columns: tuple[Column, ...]
    routes: Mapping[str, Route]
    key: tuple[str, ...]
    moment: str
    resumed: str
    news: str = ""
    link: str = ""
    database: str = ""
    own: tuple[str, ...] = ()
    primary_key: tuple[str, ...] = ()
    key_unique: bool = False
    ranged: bool = False
    orders: Mapping[str, Any] = field(default_factory=dict)
    evidence: Mapping[str, str] = field(default_factory=dict)
    indexed: bool = True
    recomputed: bool = False
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> Column | None:
        """Return the column called `name`, or None."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a look at some records says.

    Attributes:
        row_bytes: mean Arrow bytes of a record, of the columns asked for; 0 without records.
        rows: all that there are, as far as is known without counting; negative: unknown.
    """

    row_bytes: float
    rows: float = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The records of a chunk, each exactly once: in `frame` or in `rejected`.

    The same chunk gives the same batch each time and in each process, in the same order where the source has one.

    Attributes:
        frame: the columns asked for, in that order, in the exact types of the description.
        rejected: as `REJECTED_BY_SOURCE`; they count as read, and are quarantined with stage ``read``.
        as_text: columns that came as PostgreSQL text (String) in this batch, because it has a value that its type
            does not hold (infinity, NaN, a far date) and the target's does.
        bytes_read: of Arrow buffers, or of the file's part where that is more.
        notices: sentences for a person on what these records showed, without a value; each once for the source.
        place: where they stand, for people (``part-3.csv, lines 250,001 to 300,412``); empty where the key says it.
    """

    frame: pl.DataFrame
    bytes_read: int
    place: str = ""
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_BY_SOURCE))
    as_text: frozenset[str] = frozenset()
    notices: tuple[str, ...] = ()


class Reader(Protocol):
    """Reads chunks one after the other for one worker's thread; connections are opened by the first read."""

    def read(self, chunk: Chunk) -> Batch:
        """Return a chunk's records. Memory is bounded by the chunk. Idempotent, also after an error.

        Raises:
            TransientError, ChunkError, StopRunError: see the module. After `Source.cancel` within five seconds.
        """

    def close(self) -> None:
        """Give connections back, whatever their state; never raises. Twice is once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """A chunk's records as the CSV in which they stand, for PostgreSQL's COPY.

    Attributes:
        text: whole records, UTF-8, quoted by ``"``; an empty field without quotes is NULL.
        records: how many.
        columns: that a record has, in its order.
        place: as of `Batch`.
    """

    text: bytes
    records: int
    columns: tuple[str, ...]
    delimiter: str
    place: str = ""


@runtime_checkable
class Relaying(Protocol):
    """A reader of a source that can hand chunks over as they are; see `Abilities.relays`."""

    def relay(self, chunk: Chunk, columns: Collection[str]) -> Relay | None:
        """Return a chunk's bytes, if it has just these columns and PostgreSQL reads them as `Reader.read` does.

        PostgreSQL may refuse some of them: then the chunk is read in the ordinary way. None: it is to be read so.

        Raises:
            TransientError, ChunkError, StopRunError: as `Reader.read`.
        """


class Source(Protocol):
    """An open source. Its methods are called from the main thread, but for `touch`, `cancel` and `open`."""

    def describe(self) -> Description:
        """Return what is read; the same each time, without a look at the source."""

    def identity(self, columns: Sequence[str]) -> Mapping[str, Any]:
        """Return what makes it the same source for a run that goes on, JSON-ready, without secrets.

        Of a file path, size and checksum or date; of a database which table it is and the types of the columns that
        are read, not the moment.
        """

    def differs(self, was: Mapping[str, Any], columns: Sequence[str]) -> Sequence[str]:
        """Return what has changed since a run that goes on was planned, a few words each; empty when it can.

        Args:
            was: its `identity`, as the ledger has it; empty when it has none.
            columns: that are read now.
        """

    def sample(self, columns: Sequence[str]) -> Sample:
        """Look at some records, cheaply. A fault that a chunk would meet again is no error here (row_bytes 0)."""

    def plan(self, chunk_rows: int) -> Plan:
        """Return ordered chunks of about so many rows, so that each record is in exactly one.

        A chunk is a key range (kind ``range``, bounds as the key's text, one ``nulls`` for keys with a NULL) or a
        ``part``, whose `lower` has texts that only this source understands and whose `upper` is None. The chunks are
        written to the ledger and may be read by a later process: all that finds their records must be in them or in
        the source. Neighbouring ranges may be merged into one with both ends; parts never are.

        Raises:
            ConfigError, RefusedError: it cannot be cut so.
        """

    def reread(self, keys: Sequence[str], chunk_rows: int) -> Plan:
        """Return chunks of kind ``keys`` for records that a replay sends again.

        Reading one gives the records that have one of these keys now, all of them, without the limit of an
        incremental run. A key that is not there any more gives nothing.
        """

    def open(self, worker: int, columns: Sequence[str]) -> Reader:
        """Return a reader of these columns (the key's and its own are among them); nothing is connected yet."""

    def ticket(self, columns: Sequence[str]) -> Ticket:
        """Return what another process needs to open such a reader: see `Ticket`.

        Raises:
            RefusedError: another process could not read the same.
        """

    def touch(self) -> None:
        """Make sure that the moment is still held; cheap, from a thread of its own, every ten seconds.

        Raises:
            StopRunError: it is lost, so that what is read from now on would be of another moment.
        """

    def cancel(self) -> None:
        """End what readers and this source itself do just now; from any thread, and again until they have ended.

        Raises:
            ConfigError: the source cannot be told; the reads end by their timeout.
        """

    def close(self) -> None:
        """Let go of the moment and of every connection; never raises. Twice is once."""

    @property
    def abilities(self) -> Abilities:
        """What it can do besides; `Abilities()` is a whole source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """Plain data with which `sources.kinds.join` opens a reader in another process; JSON-ready, no secrets.

    Attributes:
        kind: of the source.
        columns: that the reader reads.
        state: what only that kind understands: a snapshot's name, the key, a private copy's path.
        secret: the variable that has the address with its password; empty where none is needed.
    """

    kind: str
    columns: tuple[str, ...]
    state: Mapping[str, Any]
    secret: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What opens a source.

    Attributes:
        job: whose `source` and `key` it is; timeouts and limits of its sessions too.
        run_id: in the names of sessions.
        dsn: of a PostgreSQL source, the embedded one's as well; None for any other.
        known: of a job that loads only new files; None: all files are read.
        types: of columns of the target table that is there, which decide where texts leave it open; name → pg_type.
    """

    job: Job
    run_id: str
    dsn: Dsn | None = None
    known: KnownFiles | None = None
    types: Mapping[str, str] = field(default_factory=dict)


# --- what some sources can do besides ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a source can do besides; None: a job that needs it is refused, or does without.

    Attributes:
        seats: it has a limited number of connections.
        increments: it can read what is new since a value (``incremental``).
        aggregates: it can compute one (``equals_source``).
        lookups: rows of another table of it, in its moment (a lookup without a `uri`).
        catalog: a created target can be like it, beyond its columns.
        relays: its readers are `Relaying`: a chunk of which a job changes nothing goes into the target as it stands.
    """

    seats: Seats | None = None
    increments: Increments | None = None
    aggregates: Aggregates | None = None
    lookups: Lookups | None = None
    catalog: Catalog | None = None
    relays: bool = False


class Seats(Protocol):
    """Connections of a server; the target may be the same server."""

    @property
    def server(self) -> str:
        """The first part of `Dsn.identity`: equal to the target's where it is the same server; else any other text."""

    def free(self) -> int:
        """Return how many further connections it would take now."""

    def room(self, run_id: str) -> int:
        """Return how many connections are not others' (those of this run count as free)."""


class Increments(Protocol):
    """Reading what is new; values travel as text and are compared by the source, in the column's own type."""

    def check(self, wanted: Incremental) -> None:
        """Refuse a column that is not there or has no fitting order, and a lag that cannot be taken from it.

        Raises:
            ConfigError, RefusedError: it does not fit.
        """

    def since(self, wanted: Incremental, watermark: str) -> str:
        """Return the watermark less the lag, rounded down to a value of the column's type."""

    def highest(self, column: str, since: str | None, before: str | None) -> str | None:
        """Return the greatest value from `since` on, at least `before`; None without one."""

    def warnings(self, column: str, since: str | None, watermark: str | None) -> Sequence[str]:
        """Return sentences for a person: no index, a value in the future, rows that are never read."""

    def limit(self, column: str, since: str | None) -> None:
        """Plan and read only records from `since` on, from now on; None: all. `reread` is not limited."""


class Aggregates(Protocol):
    """One value over all records, in the source's moment."""

    def check(self, expression: str) -> None:
        """Bind an aggregate without reading a row.

        Raises:
            ConfigError: it does not fit; the source's own words.
        """

    def compute(self, expression: str) -> str | None:
        """Return its value as text, numbers in PostgreSQL's form.

        Raises:
            RefusedError: it cannot be evaluated.
            CancelledError: `Source.cancel` was called.
        """


class Lookups(Protocol):
    """Rows of other tables, in the source's moment."""

    def load(self, lookup: Lookup) -> LookupTable:
        """Return all rows with the columns that the lookup names.

        Raises:
            ConfigError: it cannot be read, or is too large.
        """

    def open(self, lookup: Lookup) -> LookupRows:
        """Describe a lookup that is read for each chunk; no row is read here.

        Raises:
            ConfigError: it cannot be read, or its keys cannot be compared there.
        """


class Catalog(Protocol):
    """What pg_catalog knows of the source besides its columns."""

    def definition(self, columns: Collection[str]) -> TableDefinition | None:
        """Return how the table is defined, with the types of these columns; None for a view or query."""

    def shapes(self, column: Column) -> Sequence[TypeDefinition]:
        """Return what a column's type is made of (labels, attributes, subtypes), domains left out."""

    def decimals(self, columns: Sequence[Column]) -> Mapping[str, int]:
        """Return those of the columns that have a money in them, with the decimals that it has in this database."""
