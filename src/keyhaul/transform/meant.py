"""Expressions of ``set`` and ``where`` in which a column's texts mean what they mean in PostgreSQL.

A comparison that the frame's own would answer wrongly becomes a column of its own, computed before the expression; what
can be neither compared nor computed is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.semantics import arithmetic
from keyhaul.semantics.comparing import (
    MeaningError,
    Operand,
    among,
    calculate,
    compare,
    is_exact,
    is_numeric,
    opaque,
    refusal,
)
from keyhaul.semantics.meanings import NUMERIC, Meaning, canonical
from keyhaul.transform import expressions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COMPUTED: Final = "_keyhaul_meant_{}"

_OPERATORS: Final = {
    "Lt": "<", "LtEq": "<=", "Eq": "=", "NotEq": "<>", "GtEq": ">=", "Gt": ">",
    "EqValidity": "is not distinct from", "NotEqValidity": "is distinct from",
}  # fmt: skip
_LONG: Final = 20
"""Items of a list that are still compared one by one."""
_CHOOSING: Final = frozenset({"Coalesce", "FillNull"})
_ORDERING: Final = {"MaxHorizontal": "max", "MinHorizontal": "min"}
_ARITHMETIC: Final = {
    "Plus": "+", "Minus": "-", "Multiply": "*", "Mul": "*", "TrueDivide": "/", "Div": "/", "Modulus": "%", "Rem": "%",
}  # fmt: skip
_FUNCTIONS: Final = {"Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Sign": "sign"}
_DIGITLESS: Final = pl.Decimal(38, 9)
"""What Polars makes of ``numeric`` without digits."""

Tree = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """An expression with what it needs.

    Attributes:
        expr: the expression, over the frame's columns and the computed ones.
        computed: column → what computes it, in this order.
        schema: of the frame with the computed columns.
        meaning: of the result's texts, where its type does not say it.
    """

    expr: pl.Expr
    computed: Mapping[str, pl.Expr]
    schema: Mapping[str, pl.DataType]
    meaning: Meaning | None


def mean(
    expression: pl.Expr,
    schema: Mapping[str, pl.DataType],
    meanings: Mapping[str, Meaning],
    taken: int = 0,
    *,
    digitless: bool = False,
) -> Meant:
    """Return the expression with PostgreSQL's comparisons.

    Args:
        expression: parsed.
        schema: column → type in the frame.
        meanings: of the columns whose type does not say it.
        taken: how many computed columns there are already.
        digitless: it was written with a cast to ``numeric`` or ``decimal`` without digits.

    Raises:
        MeaningError: it does something with a column that cannot be done here.
        polars.exceptions.PolarsError: the operands' types do not fit.
        RecursionError: it is deeper than Polars reads back.
    """
    walk = _Walk(schema=dict(schema), meanings=meanings, taken=taken, digitless=digitless)
    value = walk.visit(expressions.tree_of(expression))
    return Meant(
        expr=expressions.from_tree(value.tree), computed=walk.computed, schema=walk.schema, meaning=value.meaning
    )


@dataclass(frozen=True, slots=True)
class _Value:
    """A part of the expression.

    Attributes:
        tree: the expression; of a number that may be an error, one that raises it.
        meaning: of its texts.
        name: for messages.
        column: of a computed number, the column.
        risky: columns that may hold an error, which are the part's own or what it was computed of.
    """

    tree: Tree
    meaning: Meaning | None = None
    name: str = ""
    column: str = ""
    risky: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class _Walk:
    schema: dict[str, pl.DataType]
    meanings: Mapping[str, Meaning]
    taken: int
    digitless: bool = False
    computed: dict[str, pl.Expr] = field(default_factory=dict)

    def visit(self, tree: Tree) -> _Value:  # noqa: C901, PLR0911 - a case each
        """Return a part with all comparisons below it settled."""
        if isinstance(tree, str):
            return _Value(tree)
        kind, value = next(iter(tree.items()))
        if kind == "Column":
            return _Value(tree, self.meanings.get(value), value)
        children = {place: self.visit(child) for place, child in expressions.children_of(kind, value)}
        if kind == "Alias":
            return children[0]
        whole = _with_children(kind, value, {place: child.tree for place, child in children.items()})
        parts = list(children.values())
        if op := _compared(kind, value):
            return self._compared(whole, op, parts)
        family, member = expressions.called(value) if kind == "Function" else (kind, "")
        if (family, member) == ("Sql", "IsIn"):
            return self._listed(whole, parts)
        if any(part.meaning is not None and part.meaning.kind == "numeric" for part in parts):
            number = self._number(kind, value, whole, children)
            if number is not None:
                return number
        if member in {"IsNull", "IsNotNull"} or not any(part.meaning for part in parts):
            return _Value(whole)
        if kind == "Cast":
            return self._cast(whole, value, parts[0])
        if kind == "Ternary":
            return self._chosen(whole, children["truthy"], children["falsy"], children["predicate"])
        if family in _CHOOSING:
            return self._chosen(whole, *parts)
        return self._other(whole, family or kind, parts)

    def _compared(self, whole: Tree, op: str, parts: Sequence[_Value]) -> _Value:
        left, right = self._operand(parts[0]), self._operand(parts[1])
        outcome = compare(op, left, right)
        if outcome is None:
            return _Value(whole)
        return self._guarded(self._compute(outcome, pl.Boolean()), left.risky | right.risky)

    def _number(self, kind: str, value: Tree, whole: Tree, children: Mapping[str | int, _Value]) -> _Value | None:
        """Compute with numbers that have no declared precision; None for what is no arithmetic."""
        family, member = expressions.called(value) if kind == "Function" else (kind, "")
        operator = _ARITHMETIC.get(value["op"], "") if kind == "BinaryExpr" else ""
        decimals = 0
        if (family, member) == ("Sql", "Binary"):
            operator = _ARITHMETIC.get(value["function"]["Sql"]["Binary"], "")
        elif (family, member) == ("Sql", "Round"):
            operator, decimals = "round", value["function"]["Sql"]["Round"]["decimals"]
        elif family in _CHOOSING:
            operator = "coalesce"
        elif kind == "Function":
            operator = _FUNCTIONS.get(family, "") or _ORDERING.get(family, "")
        operands = {place: self._operand(child) for place, child in children.items()}
        if kind == "Ternary":
            return self._either(whole, operands)
        if not operator:
            return None
        floats = any(operand.dtype.is_float() for operand in operands.values() if not operand.is_constant)
        if floats:  # as PostgreSQL does, which makes both doubles
            return self._as_floats(kind, value, children, operands)
        found = calculate(operator, list(operands.values()), decimals)
        if found.expr is None:
            return None
        done = self._compute(found.expr, pl.String(), found.meaning, found.name)
        risky = found.risky | ({done.column} if operator in {"/", "%"} else frozenset())
        return self._guarded(done, risky)

    def _as_floats(
        self, kind: str, value: Tree, children: Mapping[str | int, _Value], operands: Mapping[str | int, Operand]
    ) -> _Value:
        trees = {place: child.tree for place, child in children.items()}
        for place, operand in operands.items():
            if is_numeric(operand) and operand.expr is not None:
                raised = arithmetic.raising(operand.expr) if operand.risky else operand.expr
                trees[place] = self._compute(arithmetic.to_float(raised), pl.Float64()).tree
        return _Value(_with_children(kind, value, trees))

    def _either(self, whole: Tree, operands: Mapping[str | int, Operand]) -> _Value | None:
        """CASE: all values as numbers."""
        branches = {place: operand for place, operand in operands.items() if place != "predicate"}
        if not all(
            operand.null or operand.number is not None or is_numeric(operand) or is_exact(operand.dtype)
            for operand in branches.values()
        ):
            return None
        value = dict(whole["Ternary"])
        risky: frozenset[str] = frozenset()
        name = ""
        for place, operand in branches.items():
            found = calculate("coalesce", [operand])
            if found.expr is None:
                return None
            done = self._guarded(self._compute(found.expr, pl.String(), found.meaning, found.name), operand.risky)
            value[place], name = done.tree, name or operand.name
        return _Value({"Ternary": value}, NUMERIC, name, "", risky)

    def _guarded(self, value: _Value, risky: frozenset[str]) -> _Value:
        """Return a value whose evaluation raises the error that a column has which it was computed of."""
        tree = value.tree
        for column in sorted(risky):
            own = column == value.column
            error = arithmetic.raising(pl.col(column))
            there = error if own else pl.when(error.is_null() | error.is_not_null()).then(expressions.from_tree(tree))
            tree = expressions.tree_of(there)
        return replace(value, tree=tree, risky=risky)

    def _listed(self, whole: Tree, parts: Sequence[_Value]) -> _Value:
        """``in (…)``: as one ``=`` after the other."""
        left = self._operand(parts[0])
        given = expressions.from_tree(parts[1].tree)
        if left.is_constant or given.meta.root_names():
            if any(part.meaning is not None for part in parts):
                raise refusal("compare with a list of columns", left)
            return _Value(whole)
        items = pl.select(given.alias("x")).to_series()
        items = items.explode() if isinstance(items.dtype, pl.List) else items
        if left.meaning is not None and items.len() > _LONG and isinstance(items.dtype, pl.String):
            return self._compute(among(left, items.drop_nulls().to_list()), pl.Boolean())
        outcomes = [compare("=", left, _item(item)) for item in items.drop_nulls().unique(maintain_order=True)]
        if left.meaning is None and any(outcome is None for outcome in outcomes):
            return _Value(whole)
        found = pl.lit(value=False)
        for outcome in outcomes:
            if outcome is None:
                return _Value(whole)
            found = found | outcome
        if left.expr is None:
            return _Value(whole)
        return self._compute(pl.when(left.expr.is_not_null()).then(found), pl.Boolean())

    def _cast(self, whole: Tree, value: Tree, inner: _Value) -> _Value:
        dtype = expressions.type_of(expressions.from_tree(whole), self.schema)
        if isinstance(dtype, pl.String) or (inner.meaning is not None and inner.meaning.is_string):
            return _Value(whole)
        del value
        operand = self._operand(inner)
        number = self._converted(operand, dtype) if is_numeric(operand) else None
        if number is None:
            raise refusal(f"cast to {dtype}", operand)
        return self._guarded(self._compute(number, dtype), operand.risky)

    def _converted(self, number: Operand, dtype: pl.DataType) -> pl.Expr | None:
        """Return a number as another type's, rounded as PostgreSQL rounds; None where it has no such cast."""
        if number.expr is None:
            return None
        text = pl.when(~number.expr.str.starts_with("!")).then(number.expr) if number.risky else number.expr
        if isinstance(dtype, pl.Decimal):
            if self.digitless and dtype == _DIGITLESS:
                msg = (
                    f"cast {number.name} to numeric without digits: it would be rounded to 9 decimals here. Leave the "
                    "cast out, since the column is numeric, or write the digits, as in numeric(38,9)"
                )
                raise MeaningError(msg)
            return arithmetic.to_decimal(text, dtype.precision, dtype.scale)
        if dtype.is_integer():
            return arithmetic.to_integer(text, dtype)
        return arithmetic.to_float(text).cast(dtype) if dtype.is_float() else None

    def _chosen(self, whole: Tree, *branches: _Value) -> _Value:
        """One of several values, as CASE or COALESCE choose: all of one type, or constants."""
        meanings = [branch.meaning for branch in branches if branch.meaning is not None]
        first = meanings[0] if meanings else None
        if first is None or first.is_string:
            return _Value(whole, first)
        for branch in branches:
            operand = self._operand(branch)
            if operand.null or (branch.meaning is not None and branch.meaning.like(first) and not opaque(operand)):
                continue
            if operand.text is not None:
                try:
                    same = canonical(first, operand.text) == operand.text
                except ValueError:
                    same = False
                if same and first.kind != "interval":
                    continue
            side = next(part for part in branches if part.meaning is first)
            raise refusal("choose between it and another value", self._operand(side))
        return _Value(whole, first)

    def _other(self, whole: Tree, what: str, parts: Sequence[_Value]) -> _Value:
        strange = next((part for part in parts if part.meaning is not None and not part.meaning.is_string), None)
        if strange is not None:
            raise refusal("compute with it", self._operand(strange))
        said = next(part for part in parts if part.meaning is not None)
        if what in _ORDERING and said.meaning is not None and not said.meaning.ordered:
            raise refusal("take the greatest or least", self._operand(said))
        return _Value(whole, said.meaning, said.name)

    def _operand(self, value: _Value) -> Operand:
        constant = _constant(value.tree)
        if constant is not None:
            return constant
        if value.column:
            return Operand(
                expr=pl.col(value.column), dtype=self.schema[value.column], meaning=value.meaning, name=value.name,
                risky=value.risky,
            )  # fmt: skip
        if isinstance(value.tree, dict) and "Column" in value.tree:
            column = value.tree["Column"]
            return Operand(expr=pl.col(column), dtype=self.schema[column], meaning=value.meaning, name=value.name)
        expression = expressions.exact(expressions.from_tree(value.tree), self.schema)
        return Operand(
            expr=expression,
            dtype=expressions.type_of(expression, self.schema),
            meaning=value.meaning,
            name=value.name or ", ".join(expression.meta.root_names()),
        )

    def _compute(
        self, expression: pl.Expr, dtype: pl.DataType, meaning: Meaning | None = None, name: str = ""
    ) -> _Value:
        column = COMPUTED.format(self.taken + len(self.computed))
        self.computed[column] = expression
        self.schema[column] = dtype
        return _Value({"Column": column}, meaning, name, column)


def _with_children(kind: str, value: Tree, children: Mapping[str | int, Tree]) -> Tree:
    if kind == "Function":
        return {kind: {**value, "input": list(children.values())}}
    return {kind: {**value, **children}} if isinstance(value, dict) and children else {kind: value}


def _compared(kind: str, value: Tree) -> str:
    """Return the operator of a comparison, or an empty string."""
    if kind == "BinaryExpr":
        return _OPERATORS.get(value["op"], "")
    if kind == "Function" and expressions.called(value) == ("Sql", "Binary"):
        return _OPERATORS.get(value["function"]["Sql"]["Binary"], "")
    return ""


def _constant(tree: Tree) -> Operand | None:  # noqa: PLR0911 - a case each
    """Return a constant as it was written; None for anything else."""
    if not isinstance(tree, dict) or "Literal" not in tree:
        return None
    literal = tree["Literal"]
    if "Dyn" in literal:
        _, number = next(iter(literal["Dyn"].items()))
        return Operand(number=str(number).removesuffix(".0"))
    scalar = literal.get("Scalar")
    if not isinstance(scalar, dict):
        return None
    kind, value = next(iter(scalar.items()))
    if kind == "Null":
        return Operand(null=True)
    if kind == "String":
        return Operand(text=value)
    if kind == "Decimal":
        unscaled, _, scale = value
        return Operand(number=format(Decimal(unscaled).scaleb(-scale), "f"))
    return _typed_constant(tree, kind, value)


_NANOSECONDS: Final = {"Nanoseconds": 1, "Microseconds": 1_000, "Milliseconds": 1_000_000}


def _typed_constant(tree: Tree, kind: str, value: Tree) -> Operand | None:
    """``interval '1 hour'`` and ``time '09:00'`` compare as texts in quotes do."""
    if kind == "Duration":
        nanoseconds = value[0] * _NANOSECONDS[value[1]]
        return Operand(text=f"{nanoseconds // 1_000} us")
    if kind == "Time":
        micros = int(value) // 1_000
        seconds, micros = divmod(micros, 1_000_000)
        return Operand(text=f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{micros:06}")
    del tree
    return None


def _item(item: object) -> Operand:
    if isinstance(item, str):
        return Operand(text=item)
    if isinstance(item, Decimal):
        return Operand(number=format(item, "f"))
    if isinstance(item, int | float):
        return Operand(number=str(item))
    literal = pl.lit(item)
    return Operand(expr=literal, dtype=pl.select(literal).to_series().dtype)
