"""Rules in which a column's texts mean what they mean in PostgreSQL.

A comparison that DuckDB would answer wrongly becomes a column of the chunk, computed before the rules are asked; what
can be neither compared nor computed is refused by name. See `keyhaul.transform.meant` for the other language of a job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.semantics.comparing import (
    MAY_FAIL,
    MeaningError,
    Operand,
    among,
    calculate,
    compare,
    is_numeric,
    outcome_or_error,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import duckdb

    from keyhaul.semantics.meanings import Meaning

COMPUTED: Final = "_keyhaul_rule_{}"

_OPERATORS: Final = {
    "COMPARE_LESSTHAN": "<", "COMPARE_LESSTHANOREQUALTO": "<=", "COMPARE_EQUAL": "=", "COMPARE_NOTEQUAL": "<>",
    "COMPARE_GREATERTHANOREQUALTO": ">=", "COMPARE_GREATERTHAN": ">",
    "COMPARE_NOT_DISTINCT_FROM": "is not distinct from", "COMPARE_DISTINCT_FROM": "is distinct from",
}  # fmt: skip
_ASKED: Final = frozenset({"OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"})
_LISTS: Final = frozenset({"COMPARE_IN", "COMPARE_NOT_IN"})
_LONG: Final = 20
_TEXTS: Final = frozenset({"VARCHAR", "TEXT", "STRING", "CHAR", "BPCHAR", "NVARCHAR"})
_OF_TIME: Final = {"TIME": "time", "INTERVAL": "interval", "UUID": "uuid"}

_ARITHMETIC: Final = {
    **{symbol: symbol for symbol in "+-*/%"}, "mod": "%", "abs": "abs", "floor": "floor", "ceil": "ceil",
    "ceiling": "ceil", "sign": "sign", "round": "round", "greatest": "max", "least": "min",
}  # fmt: skip
_FAILING: Final = "cast('true' as boolean)"

Node = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """A rule with what it needs: its text for DuckDB, and the columns that are computed before, in order."""

    sql: str
    computed: Mapping[str, pl.Expr]


def mean(
    con: duckdb.DuckDBPyConnection,
    text: str,
    schema: Mapping[str, pl.DataType],
    meanings: Mapping[str, Meaning],
    taken: int,
) -> Meant:
    """Return a rule with PostgreSQL's comparisons; the same text when DuckDB's are right.

    Args:
        con: parses.
        text: one expression over one row, see `keyhaul.staging.rules.not_one_expression`.
        schema: column → type in the frame.
        meanings: of the columns whose type does not say it.
        taken: how many computed columns there are already.

    Raises:
        MeaningError: it does something with a column that cannot be done here.
    """
    serialized = con.execute("select json_serialize_sql(?)", [f"select (\n{text}\n)"]).fetchall()
    tree: Node = json.loads(serialized[0][0])
    walk = _Walk(schema=schema, meanings=meanings, taken=taken, con=con)
    walk.settle(tree["statements"][0]["node"]["select_list"])
    if not walk.computed:
        return Meant(sql=text, computed={})
    try:
        written = con.execute("select json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()
    except RecursionError:
        msg = "got operators nested too deeply, expected about 100 in a row where a column travels as text"
        raise MeaningError(msg) from None
    return Meant(sql=str(written[0][0]).removeprefix("SELECT "), computed=walk.computed)


@dataclass(slots=True, kw_only=True)
class _Walk:
    schema: Mapping[str, pl.DataType]
    meanings: Mapping[str, Meaning]
    taken: int
    con: duckdb.DuckDBPyConnection
    computed: dict[str, pl.Expr] = field(default_factory=dict)
    risky: set[str] = field(default_factory=set)

    def settle(self, top: list[Any]) -> None:
        """Put a column in the place of each comparison that DuckDB would answer wrongly, however deep it is."""
        pending: list[tuple[Any, Any]] = [(top, place) for place in range(len(top))]
        while pending:
            container, place = pending.pop()
            value = container[place]
            if isinstance(value, list):
                pending += [(value, number) for number in range(len(value))]
            if not isinstance(value, dict):
                continue
            self.risky = set()
            outcome = self._outcome(value)
            if outcome is not None:
                container[place] = self._replacement(outcome)
            elif not self._is_plain(value):
                pending += [(value, name) for name in value]

    def _is_plain(self, node: Node) -> bool:
        """Whether it is a column alone, with what may be asked of every column; refuses what may not."""
        if node.get("type") in _ASKED or (node.get("class") == "CAST" and _type_of(node) in _TEXTS):
            inner = node.get("child") or node["children"][0]
            return self._column(inner) is not None
        name = self._column(node)
        meaning = None if name is None else self.meanings.get(name)
        if meaning is not None and not meaning.is_string:
            raise refusal("compute with it", Operand(meaning=meaning, name=str(name)))
        return name is not None

    def _outcome(self, node: Node) -> pl.Expr | None:
        """Return what a comparison comes to, when DuckDB's own would not say it."""
        kind = node.get("type", "")
        if kind in _OPERATORS:
            return self._compared(_OPERATORS[kind], node["left"], node["right"])
        if kind in {"COMPARE_BETWEEN", "COMPARE_NOT_BETWEEN"}:
            low = self._compared(">=", node["input"], node["lower"])
            high = self._compared("<=", node["input"], node["upper"])
            if low is None or high is None:
                return None
            return low & high if kind == "COMPARE_BETWEEN" else ~(low & high)
        return self._listed(kind, node["children"]) if kind in _LISTS else None

    def _compared(self, op: str, left: Node, right: Node) -> pl.Expr | None:
        one, other = self._operand(left), self._operand(right)
        if one is None or other is None:
            for node, against in ((left, other), (right, one)):
                if against is not None and against.meaning is not None:
                    if against.meaning.is_string and against.meaning.ordered:
                        return None
                    raise refusal(f"compare it with an expression ({_shown(node)})", against)
            return None
        return compare(op, one, other)

    def _listed(self, kind: str, nodes: Sequence[Node]) -> pl.Expr | None:
        left = self._operand(nodes[0])
        if left is None or left.is_constant:
            return None
        items = [self._operand(node) for node in nodes[1:]]
        texts = [item.text for item in items if item is not None and item.text is not None]
        if left.meaning is not None and len(nodes) > _LONG and len(texts) == len(nodes) - 1:
            found = among(left, texts)
            return found if kind == "COMPARE_IN" else ~found
        outcomes = [self._compared("=", nodes[0], node) for node in nodes[1:]]
        if not outcomes or any(outcome is None for outcome in outcomes):
            return None
        found = pl.any_horizontal([outcome for outcome in outcomes if outcome is not None])
        return found if kind == "COMPARE_IN" else ~found

    def _column(self, node: Node) -> str | None:
        """Return the column that a name means; DuckDB's names ignore case."""
        if node.get("class") != "COLUMN_REF":
            return None
        said = node["column_names"][-1].lower()
        found = [name for name in self.schema if name.lower() == said]
        return found[0] if len(found) == 1 else None

    def _operand(self, node: Node) -> Operand | None:
        """Return a side of a comparison: a column or a constant; None for anything else."""
        name = self._column(node)
        if name is not None:
            return Operand(expr=pl.col(name), dtype=self.schema[name], meaning=self.meanings.get(name), name=name)
        if node.get("class") == "CAST" and _type_of(node) in _OF_TIME and node["child"].get("class") == "CONSTANT":
            return self._operand(node["child"])
        if node.get("class") != "CONSTANT":
            return self._number(node)
        return _constant(node["literal"])

    def _number(self, node: Node) -> Operand | None:
        """Compute with numbers that have no declared precision; None for anything else."""
        if not self._has_number(node):
            return None
        name, nodes, decimals, precision = self._called(node)
        operands = [self._operand(child) or self._plain(child) for child in nodes]
        known = [operand for operand in operands if operand is not None]
        if not name or len(known) < len(operands):
            return None
        if name in {"+", "-"} and len(known) == 1:
            known.insert(0, Operand(number="0"))
        found = calculate(name, known, decimals, precision)
        if found.expr is None:
            return found
        column = self._compute(found.expr)["column_names"][0]  # once, however often the comparison looks at it
        if name in MAY_FAIL:
            self.risky.add(column)
        return replace(found, expr=pl.col(column))

    def _plain(self, node: Node) -> Operand | None:
        """Return integers and decimals that are added or multiplied, beside a number without a precision."""
        name, nodes, _, _ = self._called(node)
        if name not in {"+", "-", "*"} or self._has_number(node):
            return None
        operands = [self._operand(child) or self._plain(child) for child in nodes]
        known = [operand for operand in operands if operand is not None]
        if len(known) < len(operands):
            return None
        return calculate(name, known if len(known) > 1 else [Operand(number="0"), *known])

    def _called(self, node: Node) -> tuple[str, list[Node], int, int]:
        """Return what is computed of what, with the decimals and the precision that it has."""
        if node.get("type") == "OPERATOR_COALESCE":
            return "coalesce", node["children"], 0, 0
        if node.get("class") == "CAST" and _type_of(node) == "DECIMAL":
            digits = [int(child["literal"]["text"]) for child in node["type_expr"].get("children", [])]
            if not digits:
                msg = (
                    "cast to numeric without digits: DuckDB would round to 3 decimals. Leave the cast out, since the "
                    "column is numeric, or write the digits, as in numeric(38,9)"
                )
                raise MeaningError(msg)
            return "cast", [node["child"]], (*digits, 0)[1], digits[0]
        if node.get("class") != "FUNCTION":
            return "", [], 0, 0
        name = _ARITHMETIC.get(str(node.get("function_name")).lower(), "")
        nodes = _arguments(node)
        if name != "round" or len(nodes) == 1:
            return name, nodes, 0, 0
        decimals = nodes[1].get("literal", {}).get("text", "")
        return ("round" if decimals.isdigit() else ""), nodes[:1], int(decimals) if decimals.isdigit() else 0, 0

    def _has_number(self, node: object) -> bool:
        """Whether a column without a declared precision stands in it."""
        pending = [node]
        while pending:
            one = pending.pop()
            if isinstance(one, list):
                pending += one
            if isinstance(one, dict):
                name = self._column(one)
                if name is not None and is_numeric(Operand(meaning=self.meanings.get(name))):
                    return True
                pending += one.values()
        return False

    def _replacement(self, outcome: pl.Expr) -> Node:
        """Return the column that stands for a comparison; reading it fails where what it was computed of did."""
        if not self.risky:
            return self._compute(outcome)
        column = self._compute(outcome_or_error(outcome, sorted(self.risky)))
        serialized = self.con.execute("select json_serialize_sql(?)", [f"select {_FAILING}"]).fetchall()
        cast: Node = json.loads(serialized[0][0])["statements"][0]["node"]["select_list"][0]
        cast["child"] = column
        return cast

    def _compute(self, expression: pl.Expr) -> Node:
        column = COMPUTED.format(self.taken + len(self.computed))
        self.computed[column] = expression
        return {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "column_names": [column]}


def _constant(literal: Node) -> Operand | None:
    if literal["kind"] == "STRING":
        return Operand(text=literal["text"])
    if literal["kind"] in {"INTEGER", "NUMERIC"}:
        return Operand(number=literal["text"])
    return Operand(null=True) if literal["kind"] == "NULL_LITERAL" else None


def _arguments(node: Node) -> list[Node]:
    """Return a function's arguments, as DuckDB 2.0 has them or as older ones do."""
    if "arguments" in node:
        return [argument["expression"] for argument in node["arguments"]]
    return list(node.get("children", []))


def _type_of(node: Node) -> str:
    return str(node.get("type_expr", {}).get("type_name", "")).upper()


def _shown(node: Node) -> str:
    return str(node.get("function_name") or node.get("class", "")).lower()
