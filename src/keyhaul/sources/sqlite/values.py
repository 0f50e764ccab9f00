"""From what SQLite stores to the exact types of the contract; one way for the fast path and the strict one.

Each function gives NULL for a value that does not fit. The caller compares the NULLs: on the fast path one too many
means that the chunk is read again strictly, there it means that the record is rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.halving import halve

if TYPE_CHECKING:
    from keyhaul.sources.sqlite.declared import Declared

EXACT_INTEGERS: Final = 2.0**53
"""Below it a double holds every whole number; connectorx makes doubles of integers where it expects doubles."""

_TIME: Final = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6}0*)?)?"
_DAY: Final = r"\d{4}-\d{2}-\d{2}"
_FORMS: Final = {
    "date": f"^{_DAY}$",
    "time": f"^{_TIME}$",
    "timestamp": f"^{_DAY}(?:[ T]{_TIME})?$",
    "timestamptz": f"^{_DAY}[ T]{_TIME}(?:Z|[+-]\\d{{2}}:\\d{{2}})$",
}
"""Stricter than the parsers, which take 2024-2-9 and a second 60."""


def from_integer(values: pl.Series, declared: Declared) -> pl.Series:
    """Take integers: of an integer, numeric or boolean column, or the digits of a text."""
    if declared.kind == "boolean":
        return values.cast(pl.Boolean).set(~values.is_in([0, 1]), None)
    if declared.kind == "numeric" and declared.precision is not None:
        return values.cast(pl.Decimal(38, 0)).cast(_decimal(declared), strict=False)
    return values.cast(pl.String) if declared.kind in {"numeric", "text"} else values


def from_real(values: pl.Series, declared: Declared) -> pl.Series:
    """Take doubles: as they are, or as the shortest number that is that double.

    SQLite has stored 0.99 of a DECIMAL as the double next to it; that one is 0.99 again here. A double that needs more
    digits than were declared does not fit.
    """
    if declared.kind == "real":
        return values
    text = values.cast(pl.String)
    if declared.precision is None:
        plain = text.str.replace(r"\.0$", "").str.replace(r"^-0$", "0")
        return plain.str.replace(r"inf$", "Infinity").set(values.is_nan(), None)
    wanted, scale = _decimal(declared), declared.scale or 0
    # Few doubles are that large; below, a decimal and its double are one to one.
    large = values.abs() >= EXACT_INTEGERS / 10.0**scale
    held = values.cast(wanted, strict=False)
    held = held.set(held.cast(pl.Float64) != values, None)
    if not large.any():
        return held
    whole = values.cast(pl.Int128, strict=False).cast(pl.Decimal(38, 0), strict=False).cast(wanted, strict=False)
    fits = text.str.contains(rf"^-?\d+\.(?:0|\d{{0,{scale}}})$")
    digits = text.set(~fits, None).cast(wanted, strict=False)
    return pl.select(
        pl.when(~large).then(held).when(values.abs() >= EXACT_INTEGERS).then(whole).otherwise(digits)
    ).to_series()


def from_text(values: pl.Series, declared: Declared) -> pl.Series:
    """Take texts: of a text column without U+0000, which PostgreSQL has no place for, or a date or time in ISO form."""
    if declared.kind == "text":
        return values.set(values.str.contains("\0", literal=True), None)
    fits = values.str.contains(_FORMS[declared.kind])
    if declared.kind != "time":
        fits &= ~values.str.starts_with("0000")  # PostgreSQL has no year 0
    given = values if fits.all() else values.set(~fits, None)
    if declared.kind == "time":
        return given
    if declared.kind == "date":
        return given.str.to_date("%Y-%m-%d", strict=False)
    return _moments(given, zoned=declared.kind == "timestamptz")


def _moments(given: pl.Series, *, zoned: bool) -> pl.Series:
    form = "%Y-%m-%d %H:%M:%S%.f" + ("%#z" if zoned else "")
    parsed = given.str.to_datetime(form, time_unit="us", strict=False)
    if parsed.null_count() == given.null_count():
        return parsed
    whole = given.str.replace("T", " ", literal=True).str.replace(r"Z$", "+00:00")
    whole = whole.str.replace(r"^(\d{4}-\d{2}-\d{2})$", "$1 00:00:00")
    whole = whole.str.replace(r"^(.{10} \d{2}:\d{2})($|[+-])", "$1:00$2")
    whole = whole.str.replace(r"(\.\d{6})0+", "$1")
    return whole.str.to_datetime(form, time_unit="us", strict=False)


def _decimal(declared: Declared) -> pl.Decimal:
    return pl.Decimal(declared.precision or 38, declared.scale or 0)


def texts(values: pl.Series) -> pl.Series:
    """Return the texts that bytes are in UTF-8; NULL for those that are none."""
    found = [pl.Series(values.name, [], dtype=pl.String)]

    def attempt(part: pl.DataFrame) -> pl.exceptions.ComputeError | None:
        try:
            found.append(part.to_series().cast(pl.String))
        except pl.exceptions.ComputeError as error:
            return error
        return None

    halve(
        values.to_frame(), attempt, lambda part, _error: found.append(pl.Series([None] * part.height, dtype=pl.String))
    )
    return pl.concat(found)
