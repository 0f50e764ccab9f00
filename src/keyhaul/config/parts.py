"""The parts of a job as pydantic models that carry what the documentation says: auto chunk, target, dedup."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from keyhaul.config.fields import LagOf, Names, SizeOf
from keyhaul.config.lag import Lag
from keyhaul.quantity import read_size

MOST_ROWS: Final = 2_147_483_647

EMBEDDED: Final = "embedded"
"""The URI that means: the PostgreSQL that comes with keyhaul."""

EMBEDDED_TABLE: Final = "public.flights"

AUTO: Final = "auto"
"""The chunk that means: as large as its time allows, by the defaults; and the tag of that kind in pydantic's errors."""


Command = Literal["move", "replay", "verify"]
MOVES: Final[tuple[Command, ...]] = ("move",)
MOVES_AND_REPLAYS: Final[tuple[Command, ...]] = ("move", "replay")
EVERYWHERE: Final[tuple[Command, ...]] = ("move", "replay", "verify")


class Flag(NamedTuple):
    """An option of the command line that gives a setting; tools/flagtable.py writes the command line's table of them.

    Attributes:
        name: with its dashes.
        value: what the help calls its value; empty for a switch.
        help: a short sentence.
        many: it may be given several times.
        commands: that have it; ``move`` stands for run, chunked and plan.
    """

    name: str
    value: str = ""
    help: str = ""
    many: bool = False
    commands: tuple[Command, ...] = MOVES_AND_REPLAYS

    @property
    def word(self) -> str:
        """The name as Python has it."""
        return self.name[2:].replace("-", "_")


def setting(
    default: Any,  # noqa: ANN401  # a field of any type
    meaning: str,
    expected: str,
    flags: Flag | tuple[Flag, ...] = (),
    variable: str = "",
    **limits: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Return a model field that carries what the messages, the command line and the documentation say about it."""
    told: dict[str, Any] = {"expected": expected, "flags": (flags,) if isinstance(flags, Flag) else flags}
    return Field(default, description=meaning, json_schema_extra={**told, "variable": variable}, **limits)


class Part(BaseModel):
    """The settings that all parts of a job share: frozen, strict, no unknown key."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)


class AutoChunk(Part):
    """Chunks of the time that they take: the plan is cut finely, and neighbours are merged when a worker takes them."""

    target_seconds: float = setting(
        2.0,
        "Time that one worker should need for a chunk, in seconds.",
        "a number of seconds above 0, to 3600",
        gt=0,
        le=3600,
    )
    min_rows: int = setting(
        10_000,
        "Fewest rows of a chunk, and of a cut of the plan; the first chunks have so many.",
        "a whole number from 1",
        ge=1,
        le=MOST_ROWS,
    )
    max_rows: int = setting(1_000_000, "Most rows of a chunk.", "a whole number from min_rows", ge=1, le=MOST_ROWS)
    max_bytes: SizeOf = setting(
        read_size("12MB"),
        "Most bytes of a chunk as it is read (Arrow), by the widest rows met so far; it comes before min_rows.",
        "a size from 1MB such as 64MB",
    )


def _kind_of_chunk(value: object) -> str:
    return AUTO if isinstance(value, dict | AutoChunk) else "rows"


ChunkOf = Annotated[
    Annotated[int, Field(ge=1, le=MOST_ROWS), Tag("rows")] | Annotated[AutoChunk, Tag(AUTO)],
    Discriminator(_kind_of_chunk),
]


class Target(Part):
    """Where the rows go; a loaded job always has a table."""

    uri: str = setting(
        EMBEDDED,
        "The target database; the ledger is there too.",
        "a postgresql:// URI or embedded",
        Flag("--target", value="URI", help="Target database [embedded].", commands=EVERYWHERE),
        "ETL_TARGET_URL",
        repr=False,
    )
    table: str = setting(
        "",
        "Table to load, created when missing; the source's name by default.",
        "a table such as public.flights",
        Flag("--into", value="T", help="Table to load [the source's name].", commands=EVERYWHERE),
        "ETL_INTO",
        min_length=1,
    )
    mode: Literal["append", "skip", "upsert", "replace"] | None = setting(
        None,
        "What becomes of a row that is there already: append does not look, skip keeps what is there, upsert "
        "updates what differs, replace loads a fresh table that takes the place of this one. Without a mode a table "
        "that holds rows is refused; in the embedded warehouse one that this job has loaded before is emptied first.",
        "append, skip, upsert or replace",
        Flag("--mode", value="append|skip|upsert|replace", help="Rows that are there.", commands=EVERYWHERE),
        "ETL_MODE",
    )
    conflict: Names | None = setting(
        None,
        "Columns of the unique index that says what is there already, for skip and upsert; the primary key by default.",
        "a column or a list of columns",
        Flag("--conflict", value="C1[,C2…]", help="What says so [primary key].", commands=EVERYWHERE),
        "ETL_CONFLICT",
    )
    newer_by: str | None = setting(
        None,
        "For upsert: only a row with a greater value in this column replaces the one that is there.",
        "a column",
        Flag("--newer-by", value="C", help="Upsert only what is newer by it.", commands=EVERYWHERE),
        "ETL_NEWER_BY",
        min_length=1,
    )
    no_create: bool = setting(
        False,
        "Refuse a missing table, in place of creating it.",
        "true or false",
        Flag("--no-create", help="Refuse a missing target table."),
        "ETL_NO_CREATE",
    )
    with_foreign_keys: bool = setting(
        False,
        "Create the source's foreign keys too, after the load, when the table is created.",
        "true or false",
        Flag("--with-foreign-keys", help="Create the source's foreign keys as well."),
        "ETL_WITH_FOREIGN_KEYS",
    )
    sequences: Literal["auto", "always", "never"] = setting(
        "auto",
        "Whether a run ends with the sequences of the columns it wrote at their highest value, so that the next INSERT "
        "of an application does not fail: auto where all rows of the table came from this ledger. A sequence that is "
        "left behind is told, with the statement that mends it.",
        "auto, always or never",
        (),
        "ETL_SEQUENCES",
    )
    allow_null_conflicts: bool = setting(
        False,
        "Let an incremental job have conflict columns that can be NULL: rows with a NULL there are loaded again each "
        "time.",
        "true or false",
        (),
        "ETL_ALLOW_NULL_CONFLICTS",
    )
    loader: Literal["copy", "adbc"] = setting(
        "copy",
        "The library that loads.",
        "copy or adbc",
        Flag("--loader", value="NAME", help="copy or adbc."),
        "ETL_LOADER",
    )
    relay: bool = setting(
        True,
        "Whether CSV of which a job changes nothing goes to COPY as it stands, where PostgreSQL reads it alike.",
        "true or false",
        (),
        "ETL_RELAY",
    )


class Dedup(Part):
    """Which rows are copies of one another, and which copy stays."""

    on: Names = setting(
        ...,
        "Columns whose equal values make rows copies.",
        "a column or a list of columns",
        Flag("--dedup", value="C1[,C2…]", help="Keep one row for each value.", commands=EVERYWHERE),
    )
    order_by: Names = setting(
        (),
        "Columns that order the copies, ascending.",
        "a column or a list of columns",
        Flag("--order-by", value="C", help="Of copies the highest stays (keep: last).", commands=EVERYWHERE),
    )
    keep: Literal["first", "last"] = setting("last", "Which copy in that order stays.", "first or last")


class Incremental(Part):
    """What a run reads of a source that was read before: the rows above the last run's watermark."""

    column: str = setting(
        ...,
        "Column that grows with every change of a row: only rows from the last done run's highest value on are read.",
        "a column",
        Flag("--incremental", value="C", help="Read only what is new by this column."),
        "ETL_INCREMENTAL",
        min_length=1,
    )
    lag: LagOf = setting(
        Lag(),
        "How far below that value reading begins, for rows that are committed late.",
        "a duration such as 30s, 5m, 2h or 1d, or a number for a column of numbers",
        Flag("--lag", value="5m", help="Begin so far below what was read last [0]."),
        "ETL_LAG",
    )
