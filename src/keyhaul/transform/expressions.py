"""Polars SQL expressions over one row, whose arithmetic is exact or fails.

Polars' own integer arithmetic wraps round silently, in the type of its operands (``length(s) - 10``
gives 4294967287), and its division by zero gives infinity or NULL. Here each integer operation is
done in 128 bits and must fit bigint, and a zero divisor raises, as in PostgreSQL.
"""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.errors import DIVISION_BY_ZERO, ConfigError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_ROW_WISE_NODES: Final = frozenset({"Column", "Literal", "Cast", "BinaryExpr", "Ternary", "Function", "Alias"})
_ROW_WISE_FUNCTIONS: Final = frozenset(
    {
        "Abs", "Atan2", "Bitwise", "Boolean", "Ceil", "Coalesce", "Exp", "FillNull", "Floor", "ListExpr", "Log",
        "Log1p", "MaxHorizontal", "MinHorizontal", "Negate", "Pow", "Round", "Sign", "Sql", "StringExpr",
        "TemporalExpr", "Trigonometry",
    }
)  # fmt: skip
"""Families of functions whose result depends on one row, as Polars 2.1 calls them when it serialises."""
_NOT_ROW_WISE: Final = {"Boolean": {"Any", "All"}, "Bitwise": {"And", "Or", "Xor"}, "StringExpr": {"ConcatVertical"}}
"""Members of those families that look at the whole column."""

_OPERATORS: Final = {
    "Plus": "+", "Minus": "-", "Multiply": "*", "Mul": "*", "TrueDivide": "/", "Div": "/", "FloorDivide": "//",
    "IntDiv": "//", "Modulus": "%", "Rem": "%",
}  # fmt: skip
_DIVISIONS: Final = frozenset({"/", "//", "%"})

MAX_OPERATORS: Final = 500
"""Operators, keywords and brackets of one expression. Polars 2.1 parses and serialises by recursion, up to 8 kB of
stack for each: 500 nested ones crash with 2 MB of stack (`interval interval …`), 3,000 to 6,000 `or` with 8 MB."""
MAX_LEVELS: Final = 127
"""Levels of JSON that Polars reads back (serde_json stops at 128); an operator makes two, exact arithmetic six."""
_NESTED: Final = 45
"""Brackets or prefixes in each other that Polars' parser takes; it stops at 49, in words about the syntax."""
SHORTER: Final = (
    "Write a list as `in (…)`, put a table of values into a lookup, or compute it in the source's query or a view"
)
_TOO_DEEP: Final = f"operators nested too deeply, expected about 60 in a row, or 20 of arithmetic. {SHORTER}"
_SHOWN_CHARACTERS: Final = 300
_TOKEN: Final = re.compile(
    r"""
    (?P<literal> '(?:[^']|'')*' | "(?:[^"]|"")*" | [+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)? )
    | (?P<word> \w+ ) | (?P<start> [\[({] ) | (?P<comma> , ) | (?P<end> [\])}] ) | (?P<operator> [^\s\w] )
    """,
    re.VERBOSE,
)
_DIGITLESS: Final = re.compile(r"(?:::|\bas)\s*(?:numeric|decimal|dec)\b(?!\s*\()", re.IGNORECASE)
_ODD_QUOTES: Final = re.compile(r"--|/\*|[#$`\\]|\b[nN]?[qQ]'")
"""What may end or begin a literal elsewhere than `_TOKEN` sees it."""

Schema = "Mapping[str, pl.DataType]"
Tree = Any


def parse(text: str, at: str, columns: Iterable[str]) -> pl.Expr:
    """Parse one Polars SQL expression over the named columns; it may look at one row only.

    Raises:
        ConfigError: it does not parse, is too long or too deep, names an unknown column, or looks at other rows.
    """
    count = operators(text)
    if count > MAX_OPERATORS:
        found = f"{count:,} operators, keywords and brackets, expected {MAX_OPERATORS} at the most. {SHORTER}"
        raise ConfigError(f"{at}: read expression {short(text)}: got {found}")
    try:
        expression = pl.sql_expr(text)
        tree = tree_of(expression)
    except RecursionError as error:
        raise ConfigError(too_deep(text, at)) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        line = first_line(error)
        if "recursion limit" in line:
            raise ConfigError(too_deep(text, at)) from error
        line = line if len(line) <= _SHOWN_CHARACTERS else f"{line[:_SHOWN_CHARACTERS]}…"
        hint = f", nested no more than {_NESTED} times. {SHORTER}" if count > _NESTED else ""
        msg = f"{at}: read expression {short(text)}: {line}, expected one Polars SQL expression{hint}"
        raise ConfigError(msg) from error
    if not all(_row_wise(kind, value) for kind, value in _nodes(tree)):
        msg = (
            f"{at}: read expression {short(text)}: it looks at more than one row, expected an expression over one row, "
            "because chunks are cut by key. Aggregate in the source's query"
        )
        raise ConfigError(msg)
    known = list(columns)
    unknown = sorted({name for name in expression.meta.root_names() if name not in known})
    if unknown:
        msg = f"{at}: read expression {short(text)}: no column {', '.join(unknown)}, expected one of {', '.join(known)}"
        raise ConfigError(msg)
    return expression


def operators(text: str) -> int:
    """Return how many operators, keywords and brackets a text has at the most: how deep its tree can be.

    Literals, commas, and names alone between commas or brackets do not count: a long list is not deep. Neither does
    what stands in quotes, unless the text has comments or other ways of quoting, where quotes prove nothing.
    """
    quoted = not _ODD_QUOTES.search(text)
    count, alone = 0, True
    for token in _TOKEN.finditer(text if quoted else re.sub("['\"]", " ", text)):
        kind = token.lastgroup
        signed = kind == "literal" and token[0][0] in "+-"
        count += kind in ("start", "operator") or (kind == "word" and not alone) or (signed and not alone)
        alone = kind in ("start", "comma")
    return count


def has_digitless_cast(text: str) -> bool:
    """Whether ``numeric`` or ``decimal`` stands in it without digits, which Polars takes for ``numeric(38,9)``."""
    return _DIGITLESS.search(re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", "", text)) is not None


def short(text: str) -> str:
    """Return an expression for a message: quoted, and no longer than a few lines."""
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def too_deep(text: str, at: str) -> str:
    """Return the message for an expression whose operators stand too deeply in each other."""
    return f"{at}: read expression {short(text)}: got {_TOO_DEEP}"


def exact(expression: pl.Expr, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """Return the same expression with arithmetic that is exact or raises.

    Integer results are bigint. A branch of CASE is evaluated only for the rows that choose it, so
    ``case when b <> 0 then a / b end`` and ``a / nullif(b, 0)`` do not raise.

    Raises:
        polars.exceptions.PolarsError: the operands' types do not fit.
        RecursionError: it is deeper than Polars reads back.
    """
    rewritten = from_tree(_rewrite(tree_of(expression), schema))
    return rewritten.cast(pl.Int64, strict=True) if type_of(rewritten, schema).is_integer() else rewritten


def type_of(expression: pl.Expr, schema: Mapping[str, pl.DataType]) -> pl.DataType:
    """Return the type of an expression's result; raises what Polars raises when types do not fit."""
    return pl.DataFrame(schema=dict(schema)).lazy().select(expression.alias("x")).collect().schema["x"]


def tree_of(expression: pl.Expr) -> Tree:
    """Return an expression as Polars serialises it."""
    return json.loads(expression.meta.serialize(format="json"))


def from_tree(tree: Tree) -> pl.Expr:
    """Return the expression of a tree; raises RecursionError when it is deeper than Polars reads back."""
    if _levels(tree) > MAX_LEVELS:
        raise RecursionError
    return pl.Expr.deserialize(io.BytesIO(json.dumps(tree).encode()), format="json")


def _levels(tree: Tree) -> int:
    """Return how many objects and lists of parsed JSON stand in each other."""
    count, level = 0, [tree]
    while level := [item for item in level if isinstance(item, dict | list)]:
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
        count += 1
    return count


def _nodes(tree: Tree) -> Iterator[tuple[str, Tree]]:
    """Yield each node as (kind, what it holds); a node without content, as ``"Len"``, holds None."""
    if isinstance(tree, str):
        yield tree, None
        return
    kind, value = next(iter(tree.items()))
    yield kind, value
    for _, child in children_of(kind, value):
        yield from _nodes(child)


def children_of(kind: str, value: Tree) -> list[tuple[str | int, Tree]]:
    """Return the parts of a node, each with its place in it."""
    names = {"BinaryExpr": ("left", "right"), "Cast": ("expr",), "Ternary": ("predicate", "truthy", "falsy")}
    if kind == "Function":
        return list(enumerate(value["input"]))
    if kind == "Alias":
        return [(0, value[0])]
    return [(name, value[name]) for name in names.get(kind, ())]


def _row_wise(kind: str, value: Tree) -> bool:
    if kind != "Function":
        return kind in _ROW_WISE_NODES
    family, member = called(value)
    return family in _ROW_WISE_FUNCTIONS and member not in _NOT_ROW_WISE.get(family, ())


def called(value: Tree) -> tuple[str, str]:
    """Return a function's family and member: ``("Sql", "Binary")``, ``("Abs", "")``."""
    name = value["function"]
    if isinstance(name, str):
        return name, ""
    family, member = next(iter(name.items()))
    return family, member if isinstance(member, str) else next(iter(member), "") if isinstance(member, dict) else ""


def _rewrite(tree: Tree, schema: Mapping[str, pl.DataType]) -> Tree:
    if isinstance(tree, str):
        return tree
    kind, value = next(iter(tree.items()))
    children = {place: _rewrite(child, schema) for place, child in children_of(kind, value)}
    if kind == "Function":
        value = {**value, "input": list(children.values())}
    elif kind == "Alias":
        value = [children[0], *value[1:]]
    elif isinstance(value, dict):
        value = {**value, **children}
    replaced = _exact_node(kind, value, schema)
    return {kind: value} if replaced is None else tree_of(replaced)


def _exact_node(kind: str, value: Tree, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """Return what stands for an arithmetic node, or None for any other."""
    if kind == "BinaryExpr" and value["op"] in _OPERATORS:
        return _exact_binary(
            _OPERATORS[value["op"]], from_tree(value["left"]), from_tree(value["right"]), kind, value, schema
        )
    if kind != "Function":
        return None
    if called(value) == ("Sql", "Binary"):
        left, right = map(from_tree, value["input"])
        return _exact_binary(_OPERATORS[value["function"]["Sql"]["Binary"]], left, right, kind, value, schema)
    if called(value) == ("Pow", "Generic"):
        loaded = map(from_tree, value["input"])
        powers = [load.cast(pl.Float64) if type_of(load, schema).is_integer() else load for load in loaded]
        return from_tree({kind: {**value, "input": [tree_of(power) for power in powers]}})
    if called(value) == ("Abs", ""):
        inner = from_tree(value["input"][0])
        if type_of(inner, schema).is_integer():
            return inner.cast(pl.Int128).abs().cast(pl.Int64, strict=True)
    return None


def _exact_binary(
    operator: str, left: pl.Expr, right: pl.Expr, kind: str, value: Tree, schema: Mapping[str, pl.DataType]
) -> pl.Expr | None:
    types = type_of(left, schema), type_of(right, schema)
    integers = types[0].is_integer() and types[1].is_integer()
    if operator in _DIVISIONS and types[1].is_numeric():
        right = _not_zero(left, right)
    if integers and operator != "/":
        left, right = left.cast(pl.Int128), right.cast(pl.Int128)
        return _apply(kind, value, left, right).cast(pl.Int64, strict=True)
    return _apply(kind, value, left, right) if operator in _DIVISIONS else None


def _apply(kind: str, value: Tree, left: pl.Expr, right: pl.Expr) -> pl.Expr:
    """Return the same operation on other operands."""
    if kind == "Function":
        return from_tree({kind: {**value, "input": [tree_of(left), tree_of(right)]}})
    return from_tree({kind: {**value, "left": tree_of(left), "right": tree_of(right)}})


def _not_zero(dividend: pl.Expr, divisor: pl.Expr) -> pl.Expr:
    """Return the divisor; evaluating it raises where it is zero (a cast of this text to a number does).

    As in PostgreSQL, NULL divided by zero is NULL. A constant zero raises even without rows.
    """
    wrong = (divisor == 0) & dividend.is_not_null() if divisor.meta.root_names() else divisor == 0
    text = pl.when(wrong).then(pl.lit(DIVISION_BY_ZERO)).otherwise(pl.lit(None, pl.String))
    return pl.when(text.cast(pl.Int64, strict=True).is_null()).then(divisor)
