"""Numbers of any length, as PostgreSQL's numeric prints them: compared, added and multiplied without losing a digit.

Most numbers are short: they go through a decimal of 38 digits, whole columns at a time. The few that do not fit
there, with NaN and ±infinity, are compared by a text key, and computed one by one.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORT: Final = 19
"""Characters of a number that fits `_WIDE` for sure: up to 19 digits before the point, or 17 after it."""
_WIDE: Final = pl.Decimal(38, 18)
_DIGITS: Final = [str(digit) for digit in range(10)]


def key(text: pl.Expr) -> pl.Expr:
    """Return a text for each number whose bytes are in the numbers' order; equal numbers have equal texts.

    In order: -Infinity (3), negative (4), zero (5), positive (6), Infinity (7), NaN (8). Then the number of digits
    before the point and all digits, without zeros at either end; of a negative number, each digit's complement to
    nine and a last character above every digit.
    """
    negative = text.str.starts_with("-")
    body = text.str.strip_prefix("-")
    parts = body.str.split_exact(".", 1)
    whole = parts.struct.field("field_0").str.strip_chars_start("0")
    rest = parts.struct.field("field_1").fill_null("").str.strip_chars_end("0")
    digits = pl.concat_str(whole.str.len_bytes().cast(pl.String).str.zfill(6), whole, rest)
    below = digits.str.replace_many(_DIGITS, _DIGITS[::-1])
    return (
        pl.when(text == "NaN").then(pl.lit("8"))
        .when(text == "Infinity").then(pl.lit("7"))
        .when(text == "-Infinity").then(pl.lit("3"))
        .when((whole == "") & (rest == "")).then(pl.lit("5"))
        .when(negative).then(pl.concat_str(pl.lit("4"), below, pl.lit(":")))
        .when(text.is_not_null()).then(pl.concat_str(pl.lit("6"), digits))
    )  # fmt: skip


def short(text: pl.Expr) -> pl.Expr:
    """Return the numbers that fit a decimal for sure, NULL for others."""
    return pl.when(text.str.len_bytes() <= _SHORT).then(text).cast(_WIDE, strict=False)


def compare(apply: Callable[[pl.Expr, pl.Expr], pl.Expr], left: pl.Expr, right: pl.Expr | str) -> pl.Expr:
    """Return how two columns of numbers, or one and a constant, compare; NULL where one is NULL.

    Args:
        apply: one of ``< <= = <> >= >``.
        left: texts of numbers.
        right: texts of numbers, or a constant's text.
    """
    if isinstance(right, str):
        bound = pl.lit(pl.DataFrame({"x": [right]}).select(key(pl.col("x"))).item())
        if len(right) > _SHORT or right.strip("-") in {"NaN", "Infinity"}:
            return apply(key(left), bound)
        narrow = short(left)
        far = pl.when(narrow.is_not_null()).then(None).otherwise(left)
        exact = apply(narrow, pl.lit(Decimal(right)).cast(_WIDE))
        return pl.when(narrow.is_not_null()).then(exact).otherwise(apply(key(far), bound))
    one, other = short(left), short(right)
    both = one.is_not_null() & other.is_not_null()
    far = apply(key(pl.when(~both).then(left)), key(pl.when(~both).then(right)))
    return pl.when(both).then(apply(one, other)).otherwise(far)
