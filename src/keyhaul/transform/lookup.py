"""A lookup held in memory, and its join with a chunk: rows keep their order, and none is multiplied.

Values are compared as the types of both sides say: equal types, integers of any width, or what becomes the
chunk's type and back without a change. NULL equals nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import polars as pl

from keyhaul.errors import ConfigError
from keyhaul.model import RECORD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.lookupstep import Lookup
    from keyhaul.semantics.meanings import Meaning

MB: Final = 1_000_000
_FOUND: Final = "_keyhaul_found"
_PLAIN: Final = (pl.Boolean, pl.String, pl.Binary, pl.Date, pl.Time, pl.Datetime, pl.Decimal)
FAILED_SCHEMA: Final = {RECORD: pl.Int64, "message": pl.String, "rule": pl.String}
"""Records that the transform rejects; `rule` is ``transform`` or ``lookup:NAME``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupTable:
    """The rows of a lookup as they were read.

    Attributes:
        frame: at least the columns that it names.
        meanings: of its columns whose type in a frame does not say what PostgreSQL means by them.
    """

    frame: pl.DataFrame
    meanings: Mapping[str, Meaning] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A lookup in memory; shared by the workers, which only read it.

    Attributes:
        lookup: what it does.
        keys: column of the chunk → type in which it is compared.
        frame: the keys as ``_keyhaul_key_N``, each combination once and without NULL, then the taken columns.
    """

    lookup: Lookup
    keys: Mapping[str, pl.DataType]
    frame: pl.DataFrame

    @property
    def taken(self) -> dict[str, pl.DataType]:
        """The new columns and their types, in order."""
        return {name: self.frame.schema[name] for name in self.lookup.take}

    def join(self, lazy: pl.LazyFrame) -> pl.LazyFrame:
        """Add the taken columns; NULL where there is no match."""
        return self._joined(lazy, self.frame)

    def split(self, chunk: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Add the taken columns, and separate the records without match.

        Returns:
            The matched rows in their order, and the others as `RECORD`, ``message`` and ``rule``.
        """
        joined = self._joined(chunk.lazy(), self.frame.with_columns(pl.lit(value=True).alias(_FOUND))).collect()
        lost = joined.filter(pl.col(_FOUND).is_null())
        found = joined.filter(pl.col(_FOUND).is_not_null()).drop(_FOUND)
        message = pl.concat_str(self._reasons(), separator="; ", ignore_nulls=True)
        return found, lost.select(RECORD, message=message, rule=pl.lit(self.lookup.rule))

    def _joined(self, lazy: pl.LazyFrame, right: pl.DataFrame) -> pl.LazyFrame:
        names = _key_names(self.keys)
        compared = [pl.col(c).cast(dtype).alias(n) for n, (c, dtype) in zip(names, self.keys.items(), strict=True)]
        left = lazy.with_columns(compared)
        return left.join(right.lazy(), on=names, how="left", maintain_order="left").drop(names)

    def _reasons(self) -> list[pl.Expr]:
        """Say for a record without match which key columns are NULL, else that they were not found; no values."""
        columns = list(self.keys)
        nulls = [pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is null")) for name in columns]
        whole = pl.all_horizontal([pl.col(name).is_not_null() for name in columns])
        return [*nulls, pl.when(whole).then(pl.lit(f"{', '.join(columns)} not found in {self.lookup.name}"))]


def hold(lookup: Lookup, frame: pl.DataFrame, keys: Mapping[str, pl.DataType]) -> Held:
    """Make a lookup's rows ready for the join.

    Args:
        lookup: what it does.
        frame: its rows, with at least the columns that it names.
        keys: column of the chunk → its type.

    Raises:
        ConfigError: a type does not fit or is not known to PostgreSQL, several rows have one key, or it holds
            more than its limit; all offenders, each with its place.
    """
    problems: list[str] = []
    compared: dict[str, pl.DataType] = {}
    columns: list[pl.Series] = []
    for name, (column, have) in zip(_key_names(keys), keys.items(), strict=True):
        try:
            compared[column] = pl.Int64() if have.is_integer() else have
            columns.append(_converted(frame[lookup.on[column]], compared[column]).alias(name))
        except _MisfitError as misfit:
            want, its = f"{have} as {column} has in the chunk", f"{lookup.on[column]} of {lookup.name}"
            problems.append(f"{_head(lookup)}: compare {its}: {misfit}, expected {want}. Cast one of them to the other")
    for column, name in lookup.take.items():
        try:
            columns.append(_known(frame[name]).alias(column))
        except _MisfitError as misfit:
            problems.append(f"{_head(lookup)}: take {name}: {misfit}, expected one that PostgreSQL has. Leave it out")
    if problems:
        raise ConfigError("\n".join(problems))
    order = [frame[lookup.first].alias("_keyhaul_first")] if lookup.first else []
    held = _one_row_each(lookup, pl.DataFrame([*columns, *order]).drop_nulls(_key_names(keys)), _key_names(keys))
    check_size(lookup, held.estimated_size())
    return Held(lookup=lookup, keys=compared, frame=held)


class LookupRows(Protocol):
    """The rows of one lookup in the run's snapshot."""

    @property
    def schema(self) -> Mapping[str, pl.DataType]:
        """The columns that the lookup names, with their types."""

    @property
    def meanings(self) -> Mapping[str, Meaning]:
        """What their texts mean, for those whose type in a frame does not say it."""

    @property
    def uuids(self) -> frozenset[str]:
        """The columns that are uuids: other text cannot be compared with them."""

    def fetch(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Return at least the rows with one of these keys: the lookup's key columns, each row once, no NULL."""


def check_columns(lookup: Lookup, known: list[str]) -> None:
    """Refuse a lookup that names a column which is not among the `known` ones."""
    unknown = [name for name in lookup.columns if name not in known]
    if unknown:
        msg = (
            f"{lookup.at}: read lookup {lookup.name}: it has no column {', '.join(unknown)}, expected one of "
            f"{', '.join(known)}. Change on, take or first"
        )
        raise ConfigError(msg)


def check_size(lookup: Lookup, size_bytes: float) -> None:
    """Refuse a lookup of more than its limit.

    Raises:
        ConfigError: it is larger.
    """
    if size_bytes > lookup.limit_mb * MB:
        msg = (
            f"{_head(lookup)}: it has {size_bytes / MB:,.1f} MB, expected at most {lookup.limit_mb} MB. "
            "Take fewer columns or rows (a query), or raise limit_mb if the memory is there"
        )
        raise ConfigError(msg)


def _head(lookup: Lookup) -> str:
    return f"{lookup.at}: hold lookup {lookup.name}"


def _key_names(keys: Mapping[str, pl.DataType]) -> list[str]:
    return [f"_keyhaul_key_{number}" for number in range(len(keys))]


def _one_row_each(lookup: Lookup, frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Return one row for each key: the only one, or the first in the wanted order."""
    if lookup.first:
        # Rows that are equal in `first` are ordered by what is taken, so that their place decides nothing.
        order = ["_keyhaul_first", *lookup.take]
        frame = frame.sort(order, nulls_last=True).unique(keys, keep="first", maintain_order=True)
        return frame.drop("_keyhaul_first")
    several = frame.group_by(keys).len().filter(pl.col("len") > 1).height
    if several:
        columns = ", ".join(lookup.on.values())
        msg = (
            f"{_head(lookup)}: {several:,} {'key has' if several == 1 else 'keys have'} several rows with the same "
            f"{columns}, expected one each. Give `first: COLUMN` to take the row with the lowest value there"
        )
        raise ConfigError(msg)
    return frame


class _MisfitError(Exception):
    """A column of a lookup cannot be used as it is; the text says what was got."""


def _converted(column: pl.Series, want: pl.DataType) -> pl.Series:
    """Return a key column in the type in which it is compared; no value may change on the way."""
    column = _known(column)
    have = column.dtype
    if have == want or column.null_count() == len(column):
        return column.cast(want)
    if not _comparable(have, want):
        raise _MisfitError(f"got {have}")
    try:
        text = isinstance(have, pl.String)
        cast = column.str.to_date("%Y-%m-%d", strict=True) if text else column.cast(want, strict=True)
        same = cast.cast(have, strict=True).eq_missing(column).all()
    except pl.exceptions.PolarsError:
        same = False
    if not same:
        raise _MisfitError(f"got {have} with values that have no equal {want}")
    return cast


def _comparable(have: pl.DataType, want: pl.DataType) -> bool:
    if isinstance(have, pl.Datetime) and isinstance(want, pl.Datetime):
        return bool(have.time_zone) == bool(want.time_zone)
    # Text is how a CSV file says a date; text that is a number was read as one already.
    dates = isinstance(have, pl.String) and isinstance(want, pl.Date)
    numbers = have.is_numeric() and want.is_numeric() and (not have.is_float() or want.is_float())
    return dates or numbers


def _known(column: pl.Series) -> pl.Series:
    """Return a column in a type that PostgreSQL has, unchanged in its values."""
    dtype = column.dtype
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Null):
        return column.cast(pl.String)
    if isinstance(dtype, pl.Datetime):
        exact = column.cast(pl.Datetime("us", dtype.time_zone))
        if dtype.time_unit == "ns" and not exact.cast(dtype).eq_missing(column).all():
            raise _MisfitError("got nanoseconds, of which PostgreSQL has only the microseconds")
        return exact.dt.convert_time_zone("UTC") if dtype.time_zone else exact
    if dtype.is_integer() and dtype not in (pl.Int8, pl.Int16, pl.Int32, pl.Int64):
        try:
            return column.cast(pl.Int64, strict=True)
        except pl.exceptions.PolarsError:
            raise _MisfitError(f"got {dtype} beyond bigint") from None
    if not (dtype.is_integer() or dtype in (pl.Float32, pl.Float64) or isinstance(dtype, _PLAIN)):
        raise _MisfitError(f"got {dtype}")
    return column
