"""Numbers that are too long for whole columns, or no finite ones: computed one by one, as PostgreSQL's numeric does.

An outcome that PostgreSQL refuses is a text that begins with `ERROR`.
"""

from __future__ import annotations

import decimal
from decimal import Decimal
from typing import Any, Final

from keyhaul.errors import DIVISION_BY_ZERO, NUMERIC_OVERFLOW

ERROR: Final = "!"
_DIVIDED: Final = ERROR + DIVISION_BY_ZERO
_TOO_LARGE: Final = ERROR + NUMERIC_OVERFLOW
_WHOLE_DIGITS, _DECIMALS = 131_072, 16_383
"""The most digits before and after the point: NUMERIC_WEIGHT_MAX and NUMERIC_DSCALE_MAX in numeric.c."""
QUOTIENT, SHOWN = 16, 1_000
"""Digits of a quotient at the least (NUMERIC_MIN_SIG_DIGITS), its decimals at the most (NUMERIC_MAX_DISPLAY_SCALE)."""
GROUP: Final = 4
"""Decimal digits of one digit of numeric's own: DEC_DIGITS."""
_EXACT: Final = decimal.Context(prec=600_000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])


def compute(symbol: str, left: str, right: str) -> str:
    """Return ``left symbol right``; an operand that is an error is the outcome."""
    if left.startswith(ERROR) or right.startswith(ERROR):
        return left if left.startswith(ERROR) else right
    a, b = Decimal(left), Decimal(right)
    if a.is_nan() or b.is_nan():
        return "NaN"
    if symbol in "/%" and not b:
        return _DIVIDED
    if symbol in "/%":
        return _quotient(a, b) if symbol == "/" else _rest(a, b)
    return _text({"+": _EXACT.add, "-": _EXACT.subtract, "*": _EXACT.multiply}[symbol](a, b))


def apply(function: str, decimals: int, text: str) -> str:
    """Return a function of one number, as `keyhaul.semantics.arithmetic.unary` has them."""
    value = text if text.startswith(ERROR) else Decimal(text)
    if isinstance(value, str) or value.is_nan():
        return text
    if function == "sign":
        return "0" if not value else "-1" if value < 0 else "1"
    if function == "abs":
        return _text(value.copy_abs())
    if value.is_infinite():
        return text
    ways = {"round": decimal.ROUND_HALF_UP, "floor": decimal.ROUND_FLOOR, "ceil": decimal.ROUND_CEILING}
    return _text(value.quantize(Decimal(1).scaleb(-decimals), ways[function], _EXACT))


def _text(value: Decimal) -> str:
    """Return a number as numeric prints it, or the error that it is too large."""
    if value.is_nan():
        return "NaN"
    if value.is_infinite():
        return "-Infinity" if value < 0 else "Infinity"
    if value and value.adjusted() >= _WHOLE_DIGITS:
        return _TOO_LARGE
    if _scale(value) > _DECIMALS:
        value = value.quantize(Decimal(1).scaleb(-_DECIMALS), decimal.ROUND_HALF_UP, _EXACT)
    return format(value or value.copy_abs(), "f")


def _scale(value: Decimal) -> int:
    exponent: Any = value.as_tuple().exponent
    return max(0, -int(exponent))


def _quotient(a: Decimal, b: Decimal) -> str:
    if a.is_infinite():
        return "NaN" if b.is_infinite() else _text(a if b > 0 else a.copy_negate())
    if b.is_infinite():
        return "0"
    (weight, first), (other_weight, other) = _leading(a), _leading(b)
    weight -= other_weight + (first <= other)
    scale = min(max(QUOTIENT - weight * GROUP, _scale(a), _scale(b), 0), SHOWN)
    over, under = _integer(a.copy_abs(), scale + _scale(b)), _integer(b.copy_abs(), _scale(b))
    whole = Decimal((over * 2 + under) // (under * 2)).scaleb(-scale, _EXACT)
    return _text(whole.copy_negate() if (a < 0) != (b < 0) else whole)


def _integer(value: Decimal, power: int) -> int:
    return int(value.scaleb(power, _EXACT))


def _leading(value: Decimal) -> tuple[int, int]:
    if not value:
        return 0, 0
    weight = value.adjusted() // GROUP
    return weight, int(value.copy_abs().scaleb(-weight * GROUP, _EXACT))


def _rest(a: Decimal, b: Decimal) -> str:
    if a.is_infinite():
        return "NaN"
    if b.is_infinite():
        return _text(a)
    rest = _EXACT.remainder(a, b)
    return _text(rest.quantize(Decimal(1).scaleb(-max(_scale(a), _scale(b))), context=_EXACT))
