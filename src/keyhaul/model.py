"""The nouns that the modules hand to each other. No driver is imported here.

Row counts are rows of the source; durations are seconds; sizes are bytes of Arrow buffers.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import polars as pl

RECORD = "_keyhaul_record"
"""The hidden column of every frame: the row's ordinal in its chunk, int64, from 0."""

ChunkKind = Literal["range", "nulls", "keys", "part"]
N = TypeVar("N", "Counts", "Timings")
RouteKind = Literal["direct", "text", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A half-open key range ``[lower, upper)``, the rows whose key has a NULL, those with one of some keys, or a part.

    Attributes:
        number: position in the plan, from 1, ascending in key order; the NULL chunk is last.
        kind: ``range``, ``nulls``, ``keys`` (a batch of a replay), or ``part`` (what its source calls by texts of its
            own: a file and its lines, a group of rows).
        lower: the key's columns as text, inclusive; None is open-ended. Of a part, the source's own texts.
        upper: the same, exclusive; None is open-ended.
        estimated_rows: rows expected, from the boundaries (exact) or statistics (sampled).
        keys: of a batch, as the quarantine has them: text, a JSON array of texts for a key of several columns.
        cuts: the neighbouring cuts of the plan that it was merged from, in key order, of which `number` is the first
            one's; empty for a chunk as it was planned.
    """

    number: int
    kind: ChunkKind = "range"
    lower: tuple[str, ...] | None = None
    upper: tuple[str, ...] | None = None
    estimated_rows: int = 0
    keys: tuple[str, ...] = ()
    cuts: tuple[Chunk, ...] = ()

    @property
    def last(self) -> int:
        """The number of the last cut in it; its own for a chunk as it was planned."""
        return self.cuts[-1].number if self.cuts else self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a source or a target, as pg_catalog describes it.

    Attributes:
        name: as stored, not quoted.
        pg_type: as ``format_type`` prints it, with its modifier, for example ``numeric(12,2)``.
        base_type: the built-in type's internal name, for example ``numeric``, ``int4``; for a
            domain the type beneath it.
        not_null: the database guarantees that no NULL is there.
        null_refused: its domain is NOT NULL. That guarantees nothing: an outer join, or a subquery without
            rows, gives a NULL of such a domain.
        has_default: an INSERT may leave the column out.
        generated: the database computes it; it is never written.
        precision: digits of a numeric; digits of the seconds of a time or timestamp.
        scale: of a numeric.
        length: in characters, of varchar and char.
        modifier: the type's atttypmod, a domain's resolved; -1 without one.
        type_category, type_kind: pg_type.typcategory and typtype.
        cast_type: the type without its modifier: a cast to it never cuts, the assignment after it checks.
        bare_type: the same; of a domain the type beneath it, which no value of that type is refused by.
        labels: of an enum, in its order.
        collation: ``equality`` when different texts may be equal, ``order`` when only the order is not that of the
            bytes; empty when both are the bytes', or the type has none.
    """

    name: str
    pg_type: str
    base_type: str
    not_null: bool = False
    null_refused: bool = False
    has_default: bool = False
    generated: bool = False
    precision: int | None = None
    scale: int | None = None
    length: int | None = None
    modifier: int = -1
    type_category: str = ""
    type_kind: str = "b"
    type_oid: int = 0
    cast_type: str = ""
    bare_type: str = ""
    labels: tuple[str, ...] = ()
    collation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The ordered chunks of one run, written to the ledger before the first read."""

    chunks: tuple[Chunk, ...]
    estimated_rows: int
    estimated_bytes: int
    exact: bool


def fact(meaning: str, unit: str = "", *, shown: str = "", framed: bool = True, default: object = MISSING) -> Any:  # noqa: ANN401 - of any field
    """Return a dataclass's field that says what it means: frames, `etl show`, the page and the docs read it there.

    Args:
        meaning: one sentence, without what the name and the unit say.
        unit: of a number, for example ``rows``.
        shown: what `etl show` and the page call it, for a fact that they print as it stands.
        framed: whether the frames of `keyhaul.history` have it.
        default: as of any field.
    """
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "shown": shown, "framed": framed})


def added(one: N, other: N) -> N:
    """Return the sum of two values field by field."""
    return type(one)(**{term.name: getattr(one, term.name) + getattr(other, term.name) for term in fields(one)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The balance of a chunk or a run: `read` is the sum of `TERMS`.

    This is the only list of its terms: the ledger has a column ``rows_…`` for each, and what sums, shows or frames
    them reads the fields here.
    """

    read: int = fact("read from the source: loaded + unchanged + duplicate + filtered + quarantined", "rows", default=0)
    loaded: int = fact("inserted or updated, counted by the target", "rows", default=0)
    updated: int = fact("of those loaded, how many replaced a row", "rows", default=0)
    unchanged: int = fact("in the target already, equal or kept", "rows", default=0)
    duplicate: int = fact("copies that lost against another row", "rows", default=0)
    filtered: int = fact("left out by a `where`", "rows", default=0)
    quarantined: int = fact("rejected", "rows", default=0)

    def __add__(self, other: Counts) -> Counts:
        """Add two balances, term by term."""
        return added(self, other)

    @property
    def inserted(self) -> int:
        """Of the rows loaded those that replaced none."""
        return self.loaded - self.updated

    @property
    def unaccounted(self) -> int:
        """The rows read that no term has; 0 in a balance."""
        told: int = sum(getattr(self, term) for term in TERMS)
        return self.read - told

    @property
    def balanced(self) -> bool:
        """Whether every row read is accounted for."""
        return not self.unaccounted


TERMS: Final = tuple(term.name for term in fields(Counts) if term.name not in {"read", "updated"})
"""What a row that is read can become, in the order in which it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCounts:
    """Rows of one table of a job with several: stored (inserted, updated), there already, or preferred by another.

    Attributes:
        duplicate: another row of the same write has their conflict columns and was written in their place.
    """

    table: str
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    duplicate: int = 0

    def __add__(self, other: TableCounts) -> TableCounts:
        """Add the rows of another write of the same table."""
        return TableCounts(table=self.table, **{fate: getattr(self, fate) + getattr(other, fate) for fate in FATES})


FATES: Final = tuple(fate.name for fate in fields(TableCounts) if fate.name != "table")
"""What a row of one of several tables can become, in the order in which it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of wall time that one chunk (or, summed, a run's workers) spent in each step.

    Attributes:
        wait_seconds: from a worker's taking the chunk to its COMMIT, in which nothing was done for it: one of the
            job's limits, the sleep before another try, another transaction's lock on its ledger row. A try that
            failed is in no step.
    """

    read_seconds: float = fact("spent in reading", "s", default=0.0)
    transform_seconds: float = fact("spent in decoding and transforming", "s", default=0.0)
    stage_seconds: float = fact("spent in rules and duplicates", "s", default=0.0)
    load_seconds: float = fact("spent in the target's transaction", "s", default=0.0)
    wait_seconds: float = fact(
        "spent in waiting: for a limit, before another try, or for a lock on the chunk's ledger row", "s", default=0.0
    )

    @property
    def busy_seconds(self) -> float:
        """The seconds in which a worker had something to do: all but the waiting."""
        return sum(self.by_step().values()) - self.wait_seconds

    def by_step(self) -> dict[str, float]:
        """Return the seconds of each step by its name, in their order; the last one is ``wait``."""
        return {step.name.removesuffix("_seconds"): getattr(self, step.name) for step in fields(self)}

    def __add__(self, other: Timings) -> Timings:
        """Add two timings, step by step."""
        return added(self, other)


STEPS: Final = tuple(step.name.removesuffix("_seconds") for step in fields(Timings) if step.name != "wait_seconds")
"""What a worker does with a chunk, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What a chunk became: rows to load, records to quarantine, and the counts so far.

    Attributes:
        accepted: rows for the target, in source order, with `RECORD`.
        rejected: one row per rejected record: `RECORD` int64, ``stage`` str, ``rules``
            list[str], ``message`` str, ``key`` str (nullable), ``data`` str (JSON object).
        counts: ``loaded`` is still 0; the target fills it.
        describe: completes further rejected records (`RECORD`, ``stage``, ``rules``, ``message``) with
            ``key`` and ``data``, for those that only the target finds.
        warned: rule name → rows that failed a rule with ``on_fail: warn``; they are loaded.
        duplicates: `RECORD` of the rows that the dedup left out; None where nobody has looked.
    """

    accepted: pl.DataFrame
    rejected: pl.DataFrame
    counts: Counts
    describe: Callable[[pl.DataFrame], pl.DataFrame]
    warned: Mapping[str, int] = field(default_factory=dict)
    duplicates: pl.Series | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkResult:
    """What the ledger holds of a chunk that is committed."""

    chunk: int
    counts: Counts
    timings: Timings
    attempts: int
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedChunk:
    """A chunk that was given up: its number, tries and the reason."""

    chunk: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """What became of a rule across the run.

    Attributes:
        on_fail: ``error`` or ``warn``.
        offenders: rows that break ``unique`` or ``references``; 0 for the other kinds.
        message: what was found; empty when it passed. Counts and aggregates, no row's value.
    """

    name: str
    on_fail: Literal["error", "warn"]
    passed: bool
    offenders: int = 0
    message: str = ""


Outcome = Literal["done", "stopped", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The end of a run.

    Attributes:
        outcome: ``done`` (every chunk committed), ``stopped``, ``interrupted`` (by a signal).
        resumable: the same command goes on with it; otherwise that starts a new run.
        counts: the whole run's balance, summed by SQL from the ledger; includes earlier sittings.
        sitting: the rows of this process alone, for rates.
        quarantined_by_reason: ``rule or stage`` → records, largest first.
        run_checks: the rules across the run, in the job's order; none before the run is done.
        tables: rows by table, of a job with several; `counts` are records then.
        held: limit → seconds that this process's workers have waited for it, summed.
        workers: at a time, at the end; `workers_reason` says why so many, and is empty when the job does.
        fewest_workers: that ``cpu_limit`` allowed at a time; 0 without one.
        late_passes: over rows that waited for a row of a later chunk, which they refer to; `late_rows` of them came.
        timings: of this process alone, as is `chunks_timed`, the number of chunks that it committed.
    """

    run_id: str
    job: str
    outcome: Outcome
    resumable: bool
    resumed: bool
    counts: Counts
    sitting: Counts
    timings: Timings
    chunks_planned: int
    chunks_done: int
    failed: Sequence[FailedChunk]
    seconds: float
    workers: int
    quarantined_by_reason: Mapping[str, int] = field(default_factory=dict)
    warned: Mapping[str, int] = field(default_factory=dict)
    run_checks: Sequence[RunCheck] = ()
    target_table: str = ""
    tables: Sequence[TableCounts] = ()
    stop_reason: str = ""
    signal: int = 0
    chunks_timed: int = 0
    held: Mapping[str, float] = field(default_factory=dict)
    fewest_workers: int = 0
    workers_reason: str = ""
    late_passes: int = 0
    late_rows: int = 0

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the rules across the run that failed with ``on_fail: error``."""
        return tuple(check.name for check in self.run_checks if not check.passed and check.on_fail == "error")


class Observer(Protocol):
    """Anything that wants to know: called with each event, in the thread where it happened."""

    def __call__(self, event: object) -> None:
        """Take one event of `keyhaul.events`; must be quick and must not raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFiles:
    """Which files of a job its runs have read, as the ledger has it: their paths, and `Source.identity` of each.

    Attributes:
        loaded: of the runs that are done: path → size and what else tells two states apart, and ``run``.
        only: read these and no others, in this order; None: those that are not in `loaded`.
        rows: how many rows those of `loaded` gave.
    """

    loaded: Mapping[str, Mapping[str, Any]]
    only: tuple[str, ...] | None = None
    rows: int = 0


FilesWanted = Literal["new", "fresh", "all", "loaded"]
"""Files of a job that loads only new ones: those of its unfinished run, else the new ones; the new ones in any case;
all; those that its runs have read."""
