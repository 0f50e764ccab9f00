"""Arithmetic of numbers of any length, in texts as PostgreSQL's numeric prints them: its digits, and no other.

A number of up to 38 digits is an integer of 128 bits with a scale, so that whole columns are computed at a time. What
does not fit there (300 digits, NaN, ±infinity, a quotient with many digits) is computed alone. An outcome that
PostgreSQL refuses is a text that begins with ``!``: it is an error only for a row that uses it (see `raising`).
"""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.errors import FIELD_OVERFLOW, FLOAT_RANGE, INTEGER_RANGE
from keyhaul.semantics import numerics
from keyhaul.semantics.longnumbers import ERROR, GROUP, QUOTIENT, SHOWN, apply, compute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Parts = tuple[pl.Series, pl.Series, pl.Series]

BINARY: Final = frozenset({"+", "-", "*", "/", "%"})
UNARY: Final = frozenset({"abs", "sign", "floor", "ceil", "round"})

_DIGITS: Final = 38
"""That an integer of 128 bits has for sure."""
_TENS: Final = pl.Series([10**power for power in range(_DIGITS + 1)], dtype=pl.Int128)
_ZERO: Final = pl.lit(0, pl.Int128)
"""Polars 2.1 cannot negate an integer of 128 bits."""


def binary(symbol: str, left: pl.Expr | str, right: pl.Expr | str) -> pl.Expr:
    """Return the text of ``left symbol right`` for texts of numbers, NULL where one is NULL.

    Args:
        symbol: a member of `BINARY`.
        left: texts of numbers, or a constant's text.
        right: texts of numbers, or a constant's text.
    """
    sides = {"l": left, "r": right}
    given = pl.struct(side.alias(name) for name, side in sides.items() if isinstance(side, pl.Expr))
    fixed = {name: side for name, side in sides.items() if isinstance(side, str)}
    return given.map_batches(partial(_binary, symbol, fixed), return_dtype=pl.String, is_elementwise=True)


def unary(function: str, text: pl.Expr, decimals: int = 0) -> pl.Expr:
    """Return the text of a function of one number, NULL where it is NULL.

    Args:
        function: a member of `UNARY`; ``round`` goes half away from zero.
        text: of a number.
        decimals: of ``round``.
    """
    return text.map_batches(partial(_unary, function, decimals), return_dtype=pl.String, is_elementwise=True)


def extreme(which: str, texts: Sequence[pl.Expr]) -> pl.Expr:
    """Return the text of the greatest (``max``) or least (``min``) of numbers, NULL where all are NULL."""
    given = pl.struct(text.alias(str(number)) for number, text in enumerate(texts))
    return given.map_batches(partial(_extreme, which), return_dtype=pl.String, is_elementwise=True)


def raising(text: pl.Expr) -> pl.Expr:
    """Return the text itself; evaluating it raises where it is an error, whose words are in the message."""
    return _unless(text.str.starts_with(ERROR), text.str.slice(1), text)


def to_integer(text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return numbers as integers, rounded half away from zero; evaluating it raises for one that does not fit."""
    number = unary("round", text).cast(pl.Int128, strict=False).cast(dtype, strict=False)
    return _unless(text.is_not_null() & number.is_null(), pl.lit(INTEGER_RANGE), number)


def to_decimal(text: pl.Expr, precision: int, scale: int) -> pl.Expr:
    """Return numbers as decimals, rounded half away from zero; evaluating it raises for one that does not fit."""
    number = unary("round", text, scale).cast(pl.Decimal(precision, scale), strict=False)
    return _unless(text.is_not_null() & number.is_null(), pl.lit(FIELD_OVERFLOW), number)


def whole_digits(text: pl.Expr) -> pl.Expr:
    """Return how many digits numbers have before the point."""
    whole = text.str.strip_prefix("-").str.split_exact(".", 1).struct.field("field_0")
    return whole.str.strip_chars_start("0").str.len_bytes()


def limited(text: pl.Expr, precision: int, scale: int) -> pl.Expr:
    """Return the text of numbers cast to ``numeric(precision, scale)``, or the error that one has too many digits."""
    rounded = unary("round", text, scale)
    wide = (whole_digits(rounded) > precision - scale) | text.str.ends_with("Infinity")
    wrong = wide & ~text.str.starts_with(ERROR) & (text != "NaN")
    return pl.when(wrong).then(pl.lit(ERROR + FIELD_OVERFLOW)).otherwise(rounded)


def or_error(outcome: pl.Expr, columns: Iterable[str]) -> pl.Expr:
    """Return ``true`` or ``false`` as text, or the words of the error in one of the columns."""
    said = outcome.cast(pl.String)
    for column in columns:
        text = pl.col(column)
        said = pl.when(text.str.starts_with(ERROR)).then(text.str.slice(1)).otherwise(said)
    return said


def to_float(text: pl.Expr) -> pl.Expr:
    """Return the nearest doubles; evaluating it raises for a number that none is near to."""
    number = text.cast(pl.Float64, strict=False)
    zero = text.str.contains("[1-9]") & (number == 0)
    endless = number.is_infinite() & ~text.str.ends_with("Infinity")
    return _unless(zero | endless, pl.lit(FLOAT_RANGE), number)


def in_range(result: pl.Expr, given: Mapping[str, pl.DataType]) -> pl.Expr:
    """Return a computed float; evaluating it raises where it is infinite and nothing that it was computed of is.

    Args:
        result: of floats.
        given: the columns that it looks at, with their types; a text may say Infinity.
    """
    finite = pl.lit(value=True)
    for name, dtype in given.items():
        if dtype.is_float():
            finite = finite & pl.col(name).is_finite()
        elif isinstance(dtype, pl.String):
            finite = finite & ~pl.col(name).str.contains("(?i)inf")
    return _unless(result.is_infinite() & finite, pl.lit(FLOAT_RANGE), result)


def _unless(wrong: pl.Expr, message: pl.Expr, value: pl.Expr) -> pl.Expr:
    """Return values; evaluating it raises where one is wrong (a cast of the message to a number does)."""
    words = pl.when(wrong).then(message)
    return pl.when(words.cast(pl.Int64, strict=True).is_null()).then(value)


# --- whole columns -----------------------------------------------------------------------------


def _parts(text: pl.Series) -> Parts:
    """Return texts as integers (NULL for one that is too long), their decimals, and the digits that they have."""
    point = text.str.find(".", literal=True).cast(pl.Int64)
    length = text.str.len_bytes().cast(pl.Int64)
    scale = (length - 1 - point).fill_null(0)
    digits = length - point.is_not_null().cast(pl.Int64) - text.str.starts_with("-").cast(pl.Int64)
    return text.str.replace(".", "", literal=True).cast(pl.Int128, strict=False), scale, digits


def _shifted(number: pl.Series, by: pl.Series, digits: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return integers times a power of ten, NULL where there is no room, and the digits that they have then."""
    room = (by >= 0) & (digits + by < _DIGITS)
    power = _TENS.gather(by.clip(0, _DIGITS).fill_null(0).cast(pl.UInt32))
    return _only(number * power, room), digits + by


def _only(number: pl.Series, where: pl.Series) -> pl.Series:
    return pl.select(pl.when(where).then(number)).to_series()


def _larger(left: pl.Series, right: pl.Series) -> pl.Series:
    return pl.select(pl.max_horizontal(left, right)).to_series()


def _written(number: pl.Series, scale: pl.Series) -> pl.Series:
    """Return integers as numbers with so many decimals."""
    n, s = pl.col("n"), pl.col("s")
    if scale.n_unique() == 1:
        return _evenly_written(number, scale[0])
    padded = n.abs().cast(pl.String).str.zfill(s + 1)
    whole = pl.when(n < 0).then(pl.lit("-")).otherwise(pl.lit("")) + padded.str.head(
        padded.str.len_bytes().cast(pl.Int64) - s
    )
    text = pl.when(s > 0).then(pl.concat_str(whole, pl.lit("."), padded.str.tail(s))).otherwise(whole)
    return pl.DataFrame({"n": number, "s": scale}).select(pl.when(n.is_not_null()).then(text)).to_series()


def _evenly_written(number: pl.Series, scale: int) -> pl.Series:
    """Return integers as numbers that all have so many decimals: a decimal's own text, several times as fast."""
    n = pl.col("n")
    if scale == 0:
        return number.cast(pl.String)
    padded = n.abs().cast(pl.String).str.zfill(scale + 1)
    sign = pl.when(n < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    text = pl.concat_str(sign, padded.str.head(-scale), pl.lit("."), padded.str.tail(scale))
    return pl.DataFrame({"n": number}).select(text).to_series()


def _completed(found: pl.Series, given: tuple[pl.Series, ...], one: Callable[..., str]) -> pl.Series:
    """Return the texts with those that were not found computed one by one."""
    present = given[0].is_not_null()
    for other in given[1:]:
        present &= other.is_not_null()
    missing = (found.is_null() & present).arg_true()
    if not missing.len():
        return found
    rows = zip(*(series.gather(missing).to_list() for series in given), strict=True)
    values = pl.Series([one(*row) for row in rows], dtype=pl.String)
    return found.scatter(missing, values)


def _side(name: str, fixed: Mapping[str, str], given: pl.Series) -> tuple[pl.Series, Parts]:
    """Return one side's texts and their parts; a constant's are computed once."""
    if name not in fixed:
        text = given.struct.field(name)
        return text, _parts(text)
    one = pl.Series([fixed[name]])
    number, scale, digits = (part.new_from_index(0, given.len()) for part in _parts(one))
    return one.new_from_index(0, given.len()), (number, scale, digits)


def _binary(symbol: str, fixed: Mapping[str, str], given: pl.Series) -> pl.Series:
    (left, (a, sa, da)), (right, (b, sb, db)) = _side("l", fixed, given), _side("r", fixed, given)
    if symbol == "*":
        found, scale = _only(a * b, da + db <= _DIGITS), sa + sb
    elif symbol == "/":
        found, scale = _divided(left, right, (a, sa, da), (b, sb, db))
    else:
        scale = _larger(sa, sb)
        (a, _), (b, _) = _shifted(a, scale - sa, da), _shifted(b, scale - sb, db)
        found = _remainder(a, b) if symbol == "%" else a + b if symbol == "+" else a - b
    return _completed(_written(found, scale), (left, right), partial(compute, symbol))


def _extreme(which: str, given: pl.Series) -> pl.Series:
    """Compare one column after the other: an expression that holds all comparisons would double with each."""
    value, *others = (given.struct.field(field) for field in given.struct.fields)
    one, other = pl.col("v"), pl.col("o")
    first = numerics.compare(operator.ge if which == "max" else operator.le, one, other)
    for series in others:
        both = pl.DataFrame({"v": value, "o": series})
        value = both.select(pl.when(other.is_null() | first).then(one).otherwise(other)).to_series()
    return value


def _remainder(a: pl.Series, b: pl.Series) -> pl.Series:
    """Return what a division leaves, with the dividend's sign; NULL where the divisor is zero."""
    one, other = pl.col("a"), pl.col("b")
    rest = one.abs() % other.abs()
    signed = pl.when(one < 0).then(_ZERO - rest).otherwise(rest)
    return pl.DataFrame({"a": a, "b": b}).select(pl.when(other != 0).then(signed)).to_series()


def _first(text: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Return the place and the value of the first of numeric's own digits, each of four decimal ones; in steps."""
    frame = text.alias("t").to_frame().select(body=pl.col("t").str.strip_prefix("-"))
    body, plain, digits = pl.col("body"), pl.col("plain"), pl.col("digits")
    length = pl.all().str.len_bytes().cast(pl.Int64)
    frame = frame.with_columns(
        point=body.str.find(".", literal=True).cast(pl.Int64), plain=body.str.replace(".", "", literal=True)
    )
    frame = frame.with_columns(digits=plain.str.strip_chars_start("0"))
    lengths = frame.select("body", "plain", "digits").select(length)
    zeros = lengths["plain"] - lengths["digits"]
    exponent = frame["point"].fill_null(lengths["body"]) - 1 - zeros
    weight = exponent.to_frame("e").select(pl.col("e").floordiv(GROUP)).to_series()
    width = exponent - weight * GROUP + 1
    head = frame.select(digits=digits, w=width).select(
        digits.str.head(pl.col("w")).str.pad_end(pl.col("w"), "0").cast(pl.Int64, strict=False)
    )
    zero = lengths["digits"] == 0
    nothing = zero.cast(pl.Int64) * 0
    return weight.zip_with(~zero, nothing), head.to_series().zip_with(~zero, nothing)


def _divided(
    left: pl.Series,
    right: pl.Series,
    dividend: Parts,
    divisor: Parts,
) -> tuple[pl.Series, pl.Series]:
    """Return quotients with their decimals, as select_div_scale in numeric.c has them; NULL where it takes more."""
    (a, sa, da), (b, sb, _) = dividend, divisor
    (weight, first), (other_weight, other) = _first(left), _first(right)
    scale = _quotient_scale(weight - other_weight - (first <= other).cast(pl.Int64), sa, sb)
    raised, _ = _shifted(a, scale - sa + sb, da)
    one, by = pl.col("a"), pl.col("b")
    rounded = (one.abs() * 2 + by.abs()) // (by.abs() * 2)  # a quotient half way goes away from zero
    quotient = pl.when((one < 0) ^ (by < 0)).then(_ZERO - rounded).otherwise(rounded)
    room = (by != 0) & (one.abs() < 10 ** (_DIGITS - 1)) & (by.abs() < 10 ** (_DIGITS - 1))
    return pl.DataFrame({"a": raised, "b": b}).select(pl.when(room).then(quotient)).to_series(), scale


def _quotient_scale(weight: pl.Series, one: pl.Series, other: pl.Series) -> pl.Series:
    wanted = pl.max_horizontal(QUOTIENT - pl.col("w") * GROUP, "a", "b", 0)
    return pl.DataFrame({"w": weight, "a": one, "b": other}).select(wanted.clip(upper_bound=SHOWN)).to_series()


def _unary(function: str, decimals: int, text: pl.Series) -> pl.Series:
    number, scale, digits = _parts(text)
    n, p = pl.col("n"), pl.col("p")
    if function == "round":
        longer, _ = _shifted(number, decimals - scale, digits)
        half = (n.abs() * 2 + p) // (p * 2)
        found = pl.select(
            pl.when(scale <= decimals).then(longer).otherwise(
                _cut(number, scale - decimals, digits, pl.when(n < 0).then(_ZERO - half).otherwise(half))
            )
        ).to_series()  # fmt: skip
        return _completed(_written(found, scale * 0 + decimals), (text,), partial(apply, function, decimals))
    if function == "abs":
        return _completed(_written(number.abs(), scale), (text,), partial(apply, function, decimals))
    if function == "sign":
        found = number.sign()
    else:
        found = _cut(number, scale, digits, n // p if function == "floor" else _ZERO - ((_ZERO - n) // p))
    return _completed(_written(found, scale * 0), (text,), partial(apply, function, decimals))


def _cut(number: pl.Series, by: pl.Series, digits: pl.Series, how: pl.Expr) -> pl.Series:
    """Return integers ``n`` brought down by a power of ten ``p``, NULL where there is no room to compute it."""
    power = _TENS.gather(by.clip(0, _DIGITS).fill_null(0).cast(pl.UInt32))
    room = (digits < _DIGITS - 1) & (by < _DIGITS - 1)
    return pl.DataFrame({"n": number, "p": power, "room": room}).select(pl.when("room").then(how)).to_series()
