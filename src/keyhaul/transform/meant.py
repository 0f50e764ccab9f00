"""Expressions of ``set`` and ``where`` in which a column's texts mean what they mean in PostgreSQL.

A comparison that the frame's own would answer wrongly becomes a column of its own, computed before the expression; what
can be neither compared nor computed is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.transform import expressions
from keyhaul.transform.comparing import Operand, among, compare, opaque, refusal
from keyhaul.transform.meanings import Meaning, canonical

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
_ORDERING: Final = frozenset({"MaxHorizontal", "MinHorizontal"})

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
    expression: pl.Expr, schema: Mapping[str, pl.DataType], meanings: Mapping[str, Meaning], taken: int = 0
) -> Meant:
    """Return the expression with PostgreSQL's comparisons.

    Args:
        expression: parsed.
        schema: column → type in the frame.
        meanings: of the columns whose type does not say it.
        taken: how many computed columns there are already.

    Raises:
        MeaningError: it does something with a column that cannot be done here.
        polars.exceptions.PolarsError: the operands' types do not fit.
        RecursionError: it is deeper than Polars reads back.
    """
    walk = _Walk(schema=dict(schema), meanings=meanings, taken=taken)
    value = walk.visit(expressions.tree_of(expression))
    return Meant(
        expr=expressions.from_tree(value.tree), computed=walk.computed, schema=walk.schema, meaning=value.meaning
    )


@dataclass(frozen=True, slots=True)
class _Value:
    """A part of the expression, with what its texts mean and a name for messages."""

    tree: Tree
    meaning: Meaning | None = None
    name: str = ""


@dataclass(slots=True, kw_only=True)
class _Walk:
    schema: dict[str, pl.DataType]
    meanings: Mapping[str, Meaning]
    taken: int
    computed: dict[str, pl.Expr] = field(default_factory=dict)

    def visit(self, tree: Tree) -> _Value:  # noqa: PLR0911 - a case each
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
        outcome = compare(op, self._operand(parts[0]), self._operand(parts[1]))
        return _Value(whole) if outcome is None else self._compute(outcome, pl.Boolean())

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
        raise refusal(f"cast to {dtype}", self._operand(inner))

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
        return _Value({"Column": column}, meaning, name)


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
        return Operand(number=str(number))
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
