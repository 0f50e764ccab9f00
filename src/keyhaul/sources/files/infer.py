"""Types of columns that the job does not declare, from a sample of their texts; never by way of a float."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.sources.files.values import with_point

if TYPE_CHECKING:
    from collections.abc import Callable, Container

_MOMENT: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """What a column seems to be.

    Attributes:
        pg_type: as ``format_type`` prints it.
        evidence: for people: what was looked at, and what decided.
    """

    pg_type: str
    evidence: str


NUMBERS: Final = frozenset({"bigint", "numeric", "double precision"})
MOMENTS: Final = frozenset({"date", "timestamp with time zone", "timestamp without time zone", "uuid"})


def infer(texts: pl.Series, among: Container[str] | None = None, *, decimal: str = ".") -> Inferred:
    """Return the type that every text of a sample fits, unchanged in both directions.

    Leading zeros stay text, 1.10 is numeric, and so is a whole number beyond bigint. A value behind the sample that
    does not fit is a rejected record, never a NULL.

    Args:
        texts: the sample; NULL says nothing.
        among: the types that come into question besides text; None: all.
        decimal: what stands between the whole and the fraction of a number.
    """
    values = texts.drop_nulls()
    looked = f"{values.len():,} value{'s' * (values.len() != 1)} looked at"
    if values.is_empty():
        return Inferred(pg_type="text", evidence=f"{looked}: nothing says more")
    numbers = with_point(values, decimal)
    for pg_type, fits, say in _LADDER:
        if (among is None or pg_type in among) and fits(numbers if pg_type in NUMBERS else values):
            return Inferred(pg_type=pg_type, evidence=f"{looked}, {say(values)}")
    return Inferred(pg_type="text", evidence=f"{looked}, some are of no other type")


def _all(pattern: str) -> Callable[[pl.Series], bool]:
    return lambda values: bool(values.str.contains(pattern).all())


def _fits_bigint(values: pl.Series) -> bool:
    whole = bool(values.str.contains(r"^-?(0|[1-9][0-9]{0,18})$").all())
    return whole and values.cast(pl.Int64, strict=False).null_count() == 0


def _fits_double(values: pl.Series) -> bool:
    """Whether each is a number that a double prints again: 9007199254740993 beside 1e5 is not, nor is 1e400."""
    if not values.str.contains(r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,6})?$").all():
        return False
    return all(math.isfinite(read := float(text)) and Decimal(repr(read)) == Decimal(text) for text in values)


def _widest(values: pl.Series) -> str:
    return f"widest {values.gather([values.str.len_bytes().arg_max() or 0])[0]}"


def _like(values: pl.Series) -> str:
    return f"as {values[0]}"


_NUMBER: Final = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_LADDER: Final[tuple[tuple[str, Callable[[pl.Series], bool], Callable[[pl.Series], str]], ...]] = (
    ("boolean", _all(r"^(true|false|True|False|TRUE|FALSE)$"), _like),
    ("bigint", _fits_bigint, _widest),
    ("numeric", _all(_NUMBER), _widest),
    ("double precision", _fits_double, _widest),
    ("date", _all(r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), _like),
    ("timestamp with time zone", _all(_MOMENT + r"\s?(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"), _like),
    ("timestamp without time zone", _all(_MOMENT + "$"), _like),
    ("uuid", _all(r"(?i)^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"), _like),
)
