"""Comparisons as PostgreSQL means them, in the place of a frame's own, or a refusal with what to write instead.

Both languages of a job (Polars' SQL in ``set`` and ``where``, DuckDB's in rules) hand their comparisons here.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.semantics import arithmetic, constants, numerics
from keyhaul.semantics.meanings import NUMERIC, OPAQUE, Meaning, as_written, constant, key, keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Apply = "Callable[[pl.Expr, pl.Expr], pl.Expr]"

OPERATORS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "<>": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
_SAME: Final = {"is not distinct from": "=", "is distinct from": "<>"}
_EQUALITY: Final = frozenset({"=", "<>", *_SAME})
_MIRRORED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_FARTHEST: Final = 2**63 - 1
_DAYS: Final = 2**31 - 1


class MeaningError(Exception):
    """A clause cannot mean what PostgreSQL means by it; the text says why, and what to write instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """One side of a comparison.

    Attributes:
        expr: its values; None for a constant.
        dtype: their type in the frame.
        meaning: what they mean, where the type does not say it.
        name: for messages.
        text: of a constant in quotes.
        number: a constant number, as it was written.
        null: it is the constant NULL.
        risky: columns of texts that may be an error, which `keyhaul.semantics.arithmetic.raising` raises.
    """

    expr: pl.Expr | None = None
    dtype: pl.DataType = field(default_factory=pl.Null)
    meaning: Meaning | None = None
    name: str = ""
    text: str | None = None
    number: str | None = None
    null: bool = False
    risky: frozenset[str] = frozenset()

    @property
    def is_constant(self) -> bool:
        """Whether it is the same for each row."""
        return self.expr is None


def compare(op: str, left: Operand, right: Operand) -> pl.Expr | None:  # noqa: PLR0911 - a case each
    """Return a comparison's outcome as an expression; None when the frame's own means the same.

    Raises:
        MeaningError: it is neither.
    """
    if left.is_constant and right.is_constant:
        return None
    if left.is_constant:
        return compare(_MIRRORED.get(op, op), right, left)
    if left.meaning is None and right.meaning is not None:
        return compare(_MIRRORED.get(op, op), right, left)
    if op in _SAME:
        return _distinct(op, left, right)
    if right.null:
        return pl.lit(None, pl.Boolean)
    if left.meaning is None:
        return _native(op, left, right)
    _check(op, left, right)
    return _meant(op, left, left.meaning, right)


def _distinct(op: str, left: Operand, right: Operand) -> pl.Expr | None:
    """Compare so that NULL equals NULL."""
    if left.expr is None:
        return None
    nothing = left.expr.is_null()
    if right.null:
        return nothing if op == "is not distinct from" else ~nothing
    same = compare("=", left, right)
    if same is None:
        return None
    either = same.fill_null(value=False)
    if right.expr is not None:
        either = either | (nothing & right.expr.is_null())
    return either if op == "is not distinct from" else ~either


def _check(op: str, left: Operand, right: Operand) -> None:
    for side in (left, right):
        meaning = side.meaning
        if meaning is not None and not (meaning.equality if op in _EQUALITY else meaning.ordered):
            raise refusal(f"compare by {op}", side)


def refusal(what: str, side: Operand) -> MeaningError:
    """Return the refusal of something that is done with a column whose texts do not say what it means."""
    meaning = side.meaning
    if meaning is None:
        raise ValueError(side.name)
    name = as_written(side.name)
    how = f"cast({name} as varchar)"
    if meaning.is_string:
        advice = f"Write {how} to compare its bytes, or compare in the source's query"
    else:
        advice = f"Compute it in the source's query, or write {how} to work with its text as PostgreSQL prints it"
    why = meaning.why or "it travels as text"
    return MeaningError(f"{what}: {side.name} is {meaning.pg_type}, and {why}. {advice}")


def _meant(op: str, left: Operand, meaning: Meaning, right: Operand) -> pl.Expr | None:
    apply: Callable[[pl.Expr, pl.Expr], pl.Expr] = OPERATORS[op]
    if left.expr is None:
        return None
    if meaning.kind == "numeric":
        return _numbers(op, left, right)
    if right.text is not None:
        if meaning.kind == "collated":
            return None
        return apply(key(meaning, left.expr), _constant(meaning, right.text, left))
    if right.expr is not None and right.meaning is not None and meaning.like(right.meaning):
        return apply(key(meaning, left.expr), key(right.meaning, right.expr))
    if meaning.is_string and (right.meaning is None or right.meaning.is_string) and right.dtype == pl.String:
        return None
    expected = f"a constant in quotes or another {meaning.pg_type}"
    what = right.name or right.number or str(right.dtype)
    msg = f"compare {left.name} ({meaning.pg_type}): got {what}, expected {expected}. Write it in quotes"
    raise MeaningError(msg)


def _constant(meaning: Meaning, text: str, column: Operand) -> pl.Expr:
    try:
        return constant(meaning, text)
    except ValueError as error:
        msg = f"compare {column.name} ({meaning.pg_type}): got {text!r}, {error}"
        raise MeaningError(msg) from error


def among(left: Operand, texts: Sequence[str]) -> pl.Expr:
    """Return whether a value is one of many constants in quotes.

    Raises:
        MeaningError: it cannot be compared.
    """
    if left.expr is None or left.meaning is None:
        raise ValueError(left.name)
    _check("=", left, left)
    try:
        found = keys(left.meaning, texts)
    except ValueError as error:
        msg = f"compare {left.name} ({left.meaning.pg_type}) with a list: {error}"
        raise MeaningError(msg) from error
    return key(left.meaning, left.expr).is_in(found.implode())


def _numbers(op: str, left: Operand, right: Operand) -> pl.Expr:
    """Compare with a number of whatever length; a float is compared as PostgreSQL does, which makes both floats."""
    apply: Callable[[pl.Expr, pl.Expr], pl.Expr] = OPERATORS[op]
    if left.expr is None:
        raise ValueError(left.name)
    given = right.text if right.text is not None else right.number
    if given is not None:
        try:
            return numerics.compare(apply, left.expr, constants.read_numeric(given))
        except ValueError as error:
            msg = f"compare {left.name} with {given!r}: {error}"
            raise MeaningError(msg) from error
    if right.expr is not None and right.dtype.is_float():
        return apply(left.expr.cast(pl.Float64), right.expr.cast(pl.Float64))
    exact = right.dtype.is_integer() or isinstance(right.dtype, pl.Decimal)
    numeric = right.meaning is not None and right.meaning.kind == "numeric"
    if right.expr is not None and (numeric or (right.meaning is None and exact)):
        return numerics.compare(apply, left.expr, right.expr.cast(pl.String))
    msg = f"compare {left.name}: got {right.name or right.dtype}, expected a number"
    raise MeaningError(msg)


# --- arithmetic ------------------------------------------------------------------------------------------


def is_numeric(operand: Operand) -> bool:
    """Whether it is a number without a declared precision, which travels as text."""
    return operand.meaning is not None and operand.meaning.kind == "numeric"


def calculate(operator: str, operands: Sequence[Operand], decimals: int = 0, precision: int = 0) -> Operand:
    """Return what PostgreSQL computes of numbers, one of which has no declared precision.

    Args:
        operator: a member of `arithmetic.BINARY` or `arithmetic.UNARY`, or ``max``, ``min``, ``coalesce``, ``cast``.
        operands: two for ``+ - * / %``, one for a function.
        decimals: of ``round`` and ``cast``.
        precision: of ``cast``.

    Raises:
        MeaningError: an operand is no exact number.
    """
    given = [number_text(operand, operator) for operand in operands]
    texts = [pl.lit(text) if isinstance(text, str) else text for text in given]
    risky = frozenset().union(*(operand.risky for operand in operands))
    if operator in arithmetic.BINARY:
        both = given if any(isinstance(one, pl.Expr) for one in given) else texts
        value = arithmetic.binary(operator, both[0], both[1])
    elif operator in arithmetic.UNARY:
        value = arithmetic.unary(operator, texts[0], decimals)
    elif operator == "cast":
        value = arithmetic.limited(texts[0], precision, decimals)
    elif operator == "coalesce":
        value = pl.coalesce(texts)
    else:
        value = arithmetic.extreme(operator, texts)
    name = next((operand.name for operand in operands if operand.name), "")
    return Operand(expr=value, dtype=pl.String(), meaning=NUMERIC, name=name, risky=risky)


MAY_FAIL: Final = frozenset({"/", "%", "cast"})
"""What `calculate` may give a text for that is an error."""


def outcome_or_error(outcome: pl.Expr, columns: Iterable[str]) -> pl.Expr:
    """Return a comparison's outcome as text, or the words of the error that it was computed of."""
    return arithmetic.or_error(outcome, columns)


def number_text(operand: Operand, operator: str) -> pl.Expr | str:
    """Return numbers as numeric prints them, a constant as its text.

    Raises:
        MeaningError: it is no exact number.
    """
    if operand.null:
        return pl.lit(None, pl.String)
    given = operand.text if operand.text is not None else operand.number
    if given is not None:
        try:
            return constants.read_numeric(given)
        except ValueError as error:
            msg = f"compute by {operator}: got {given!r}, {error}"
            raise MeaningError(msg) from error
    if operand.expr is not None and is_numeric(operand):
        return operand.expr
    if operand.expr is None or operand.meaning is not None or not is_exact(operand.dtype):
        hint = " without a float. Compute it in a step before (transform: - set)" if operand.dtype.is_float() else ""
        msg = f"compute by {operator}: got {operand.name or operand.dtype} ({operand.dtype}), expected a number{hint}"
        raise MeaningError(msg)
    return operand.expr.cast(pl.String)


def is_exact(dtype: pl.DataType) -> bool:
    """Whether it is a type of exact numbers."""
    return dtype.is_integer() or isinstance(dtype, pl.Decimal)


# --- values whose type in the frame says what they mean -----------------------------------------------


def _native(op: str, left: Operand, right: Operand) -> pl.Expr | None:  # noqa: PLR0911 - a case each
    apply: Callable[[pl.Expr, pl.Expr], pl.Expr] = OPERATORS[op]
    if left.expr is None:
        return None
    if right.text is not None and isinstance(left.dtype, pl.Decimal):
        return _numbers(op, replace(left, expr=left.expr.cast(pl.String)), right)
    if right.text is not None and not isinstance(left.dtype, pl.String):
        try:
            value = _typed(left.dtype, right.text)
        except ValueError as error:
            msg = f"compare {left.name or left.dtype}: got {right.text!r}, {error}"
            raise MeaningError(msg) from error
        return None if value is None else apply(left.expr, value)
    if right.number is not None and left.dtype.is_float():
        return apply(left.expr.cast(pl.Float64), pl.lit(float(right.number), pl.Float64))
    exact = left.dtype.is_integer() or isinstance(left.dtype, pl.Decimal)
    if right.number is not None and exact and not right.number.lstrip("+-").isdigit():
        return numerics.compare(apply, left.expr.cast(pl.String), constants.read_numeric(right.number))
    if right.expr is not None and {left.dtype, right.dtype} == {pl.Float32(), pl.Float64()}:
        return apply(left.expr.cast(pl.Float64), right.expr.cast(pl.Float64))
    return None


def _typed(dtype: pl.DataType, text: str) -> pl.Expr | None:  # noqa: PLR0911 - a case each
    """Return a constant in quotes in a column's type; None for a type without constants."""
    if dtype.is_integer():
        return pl.lit(constants.read_integer(text), pl.Int128)
    if dtype.is_float():
        return pl.lit(constants.read_float(text), pl.Float64).cast(dtype)
    if isinstance(dtype, pl.Boolean):
        return pl.lit(constants.read_boolean(text))
    if isinstance(dtype, pl.Binary):
        return pl.lit(constants.read_bytes(text))
    if isinstance(dtype, pl.Date):
        date = constants.read_date(text)
        return pl.lit(date * _DAYS).cast(pl.Int32).cast(dtype) if isinstance(date, int) else pl.lit(date)
    if isinstance(dtype, pl.Datetime):
        moment = constants.read_moment(text, zoned=bool(dtype.time_zone))
        if isinstance(moment, int):
            return pl.lit(moment * _FARTHEST).cast(dtype)
        return pl.lit(moment.replace(tzinfo=None), pl.Datetime("us")).dt.replace_time_zone(dtype.time_zone)
    return None


def opaque(operand: Operand) -> bool:
    """Whether nothing but IS NULL can be asked of it."""
    return operand.meaning is not None and operand.meaning.kind == OPAQUE
