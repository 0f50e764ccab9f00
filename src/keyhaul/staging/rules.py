"""Rules as DuckDB conditions, bound against the chunk's columns before the first row; and the locked-down DuckDB."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl

from keyhaul.errors import ConfigError, first_line
from keyhaul.quoting import quote_name, quote_text
from keyhaul.semantics.comparing import MeaningError
from keyhaul.staging.functions import refused
from keyhaul.staging.meant import mean
from keyhaul.transform.expressions import SHORTER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from keyhaul.config.job import Rule
    from keyhaul.semantics.meanings import Meaning

CHUNK: Final = "chunk"
"""The name under which a rule could see the chunk; rules that do (a subquery) are refused."""

_SETTINGS: Final = {
    "threads": "1",
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}

_TOO_DEEP: Final = f"got operators nested too deeply, expected 300 in a row at the most. {SHORTER}"

_LIST: Final = '; what may be called stands in docs/guarantees.md, "Functions of a rule"'
_WITHOUT_BRACKETS: Final = frozenset(
    {"current_catalog", "current_role", "current_schema", "current_user", "session_user", "user"}
)
"""Functions that a name alone calls, where no column has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule as the stage runs it.

    Attributes:
        sql: true for a row that fails.
        columns: that it looks at.
        computed: columns that it needs besides, computed of these before, in order.
    """

    name: str
    sql: str
    on_fail: str
    message: str
    at: str
    columns: frozenset[str] = frozenset()
    computed: Mapping[str, pl.Expr] = field(default_factory=dict)


def duck_name(name: str, names: Iterable[str]) -> str:
    """Return what a column is called in DuckDB, where names that differ only in case are one name."""
    alone = sum(name.lower() == other.lower() for other in names) == 1
    return name if alone else f"_{name.encode().hex():_>64}"  # longer than any column's name


def compile_rules(
    rules: Sequence[Rule], schema: Mapping[str, pl.DataType], meanings: Mapping[str, Meaning] | None = None
) -> tuple[Check, ...]:
    """Turn a job's rules into checks, and bind each against the columns that the transform leaves.

    As in a CHECK constraint, a rule that is NULL for a row passes. ``not_null`` becomes one check for
    each of its columns.

    Args:
        rules: of the job.
        schema: column → type in the frame.
        meanings: of the columns whose type does not say what PostgreSQL means by them.

    Raises:
        ConfigError: a rule does not parse, names an unknown column, is not true or false, looks at
            other rows, or cannot mean what PostgreSQL means; all offenders, each with its place.
    """
    with locked_down() as con:
        checks = [check for rule in rules for check in _checks(con, rule, schema)]
        unknown = [
            f"{check.at}: check not_null: no column {name}, expected one of {', '.join(schema)}"
            for check in checks
            for name in sorted(check.columns - schema.keys())
        ]
        problems = unknown
        if not problems:
            told = [_misread(con, check, schema) for check in checks]
            checks, told = _meant(con, checks, told, schema, meanings or {})
            shown = pl.DataFrame(schema=dict(schema))
            for name, expression in (pair for check in checks for pair in check.computed.items()):
                shown = shown.with_columns(expression.alias(name))
            register(con, shown)
            found = [problem or _bind(con, check, schema) for problem, check in zip(told, checks, strict=True)]
            problems = [problem for problem in found if problem]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(checks)


def _meant(
    con: duckdb.DuckDBPyConnection,
    checks: Sequence[Check],
    told: Sequence[str],
    schema: Mapping[str, pl.DataType],
    meanings: Mapping[str, Meaning],
) -> tuple[list[Check], list[str]]:
    """Return the checks with PostgreSQL's comparisons, and what is wrong with each, or an empty string."""
    done: list[Check] = []
    problems: list[str] = []
    taken = 0
    for check, problem in zip(checks, told, strict=True):
        one, wrong = check, problem
        if not problem and not check.name.startswith("not_null:"):
            try:
                meant = mean(con, _condition(check), schema, meanings, taken)
            except MeaningError as error:
                wrong = f"{check.at}: read rule {check.name}: {error}"
            else:
                taken += len(meant.computed)
                one = replace(check, sql=f"not (\n{meant.sql}\n)", computed=meant.computed) if meant.computed else check
        done.append(one)
        problems.append(wrong)
    return done, problems


def _condition(check: Check) -> str:
    """Return what a check asks, as it was written."""
    return check.sql.removeprefix("not (\n").removesuffix("\n)")


def _checks(con: duckdb.DuckDBPyConnection, rule: Rule, schema: Mapping[str, pl.DataType]) -> Iterator[Check]:
    for column in rule.columns:
        yield Check(
            name=f"not_null:{column}",
            sql=f"{quote_name(duck_name(column, schema) if column in schema else column)} is null",
            on_fail=rule.on_fail,
            message=f"{column} is null",
            at=rule.at,
            columns=frozenset({column}),
        )
    if rule.check is not None:
        yield Check(
            name=rule.name,
            sql=f"not (\n{rule.check}\n)",
            on_fail=rule.on_fail,
            message=f"not ({rule.check})"[:300],
            at=rule.at,
            columns=_columns_in(con, rule.check, schema),
        )


def _columns_in(con: duckdb.DuckDBPyConnection, text: str, schema: Mapping[str, pl.DataType]) -> frozenset[str]:
    """Return the columns that a rule names; DuckDB's names ignore case."""
    tree = _parsed(con, text)
    paths = [node["column_names"] for node in _nodes(tree) if "column_names" in node]
    if tree.get("error") or any([name.lower() for name in path] == [CHUNK] for path in paths):
        return frozenset(schema)  # the whole row as one value
    found = {name.lower() for path in paths for name in path}
    return frozenset(name for name in schema if name.lower() in found)


def _parsed(con: duckdb.DuckDBPyConnection, expression: str) -> dict[str, Any]:
    """Return DuckDB's syntax tree of ``select EXPRESSION``; ``error`` is true in it when there is none."""
    try:
        serialized = con.execute("select json_serialize_sql(?)", [f"select {expression}"]).fetchall()
        return json.loads(serialized[0][0]) if serialized else {"error": True}
    except RecursionError:  # deeper than Python reads, which is less deep than DuckDB does
        return {"error": True, "error_message": _TOO_DEEP}


def told(line: str) -> str:
    """Return a line of DuckDB's about an expression; its advice to change a setting is nothing for a job file."""
    return _TOO_DEEP if "expression depth limit" in line else line


def _nodes(tree: object) -> Iterator[dict[str, Any]]:
    """Yield every object of parsed JSON, however deep."""
    pending = [tree]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            yield one
            pending += one.values()
        elif isinstance(one, list):
            pending += one


def _bind(con: duckdb.DuckDBPyConnection, check: Check, schema: Mapping[str, pl.DataType]) -> str:
    """Return what is wrong with a check, or an empty string."""
    condition = check.sql.removeprefix("not ")  # `not` would make a number true or false
    try:
        con.execute(f"select 1 from {CHUNK} where {check.sql}").fetchall()
        described = con.execute(f"describe select {condition} as x from {CHUNK}").fetchall()
    except duckdb.Error as error:
        text = told(first_line(error).rstrip("!."))
        known = f", expected one of {', '.join(schema)}" if "not found in FROM clause" in text else ""
        return f"{check.at}: read rule {check.name}: {text}{known}{_cast_hint(text, check, schema)}"
    if described[0][1] != "BOOLEAN":
        return f"{check.at}: read rule {check.name}: its type is {described[0][1]}, expected true or false"
    return ""


_TEMPORAL: Final = re.compile(r"\b(?:DATE|TIMESTAMP(?: WITH TIME ZONE)?|TIME|INTERVAL)\b")


def _cast_hint(text: str, check: Check, schema: Mapping[str, pl.DataType]) -> str:
    """Return what to do where DuckDB misses an operator for a text that is something else in the database."""
    texts = [name for name in sorted(check.columns) if schema.get(name) == pl.String]
    if "VARCHAR" not in text or not texts:
        return ""
    other = _TEMPORAL.search(text)
    return (
        f". {' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} text: compare with a text in quotes, or cast "
        f"it, as in {texts[0]}::{other[0].lower() if other else 'decimal(38,9)'}"
    )


def _misread(con: duckdb.DuckDBPyConnection, check: Check, schema: Mapping[str, pl.DataType]) -> str:
    """Return why the text of a check is not one expression over one row, or an empty string."""
    problem = not_one_expression(con, _condition(check), schema)
    ambiguous = sorted(c for c in check.columns if duck_name(c, schema) != c and not check.name.startswith("not_null:"))
    if not problem and ambiguous:
        names = " and ".join(ambiguous)
        problem = f"{names} differ only in case, which DuckDB does not see. Rename one (transform: - rename)"
    return f"{check.at}: read rule {check.name}: {problem}" if problem else ""


def not_one_expression(con: duckdb.DuckDBPyConnection, expression: str, columns: Iterable[str]) -> str:
    """Return why a text is not one expression over one row of `columns`; it is parsed and not run."""
    # Without our parentheses as well: `a) or (b` is an expression only inside them.
    for text in (expression, f"(\n{expression}\n)"):
        tree = _parsed(con, text)
        if tree.get("error") or len(tree.get("statements", [])) != 1:
            return told(str(tree.get("error_message", "it is not one expression")))
        if outside := refused(con, _called(tree, columns)):
            called = f"it calls {' and '.join(outside)}, expected an expression over one row"
            return f"{called}. Leave out what reads settings, the catalog or the session, waits or writes{_LIST}"
        classes = {node.get("class") for node in _nodes(tree)}
        if "SUBQUERY" in classes:
            return "it has a subquery, expected an expression over one row. Compare with another table after the load"
        if "STAR" in classes:
            return "it has a *, expected columns by name"
    return ""


def _called(tree: object, columns: Iterable[str]) -> set[str]:
    """Return the functions that parsed JSON calls, by brackets or by a name alone that no column has."""
    nodes = list(_nodes(tree))
    alone = _WITHOUT_BRACKETS - {name.lower() for name in columns}
    paths = [node["column_names"] for node in nodes if "column_names" in node]
    found = {str(node["function_name"]).lower() for node in nodes if "function_name" in node}
    return found | {name for path in paths if len(path) == 1 and (name := path[0].lower()) in alone}


def register(con: duckdb.DuckDBPyConnection, frame: pl.DataFrame) -> None:
    """Show a frame to DuckDB as `CHUNK`, under names that it tells apart."""
    names = {name: duck for name in frame.columns if (duck := duck_name(name, frame.columns)) != name}
    shown = frame.rename(names) if names else frame
    con.register(CHUNK, shown.to_arrow(compat_level=pl.CompatLevel.newest()))


def limited(file: Path, spill: Path, *, memory_mb: int, threads: int) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB over `file`, made when missing, that reaches nothing beside it but the folder `spill`."""
    settings = {name: value for name, value in _SETTINGS.items() if name != "enable_external_access"}
    con = duckdb.connect(str(file), config={**settings, "threads": str(threads), "memory_limit": f"{memory_mb}MB"})
    # In this order: without access, the place to spill to cannot be set any more.
    con.execute(f"set temp_directory = {quote_text(str(spill))}")
    con.execute("set enable_external_access = false")
    con.execute("set preserve_insertion_order = false")
    con.execute("set timezone = 'UTC'")
    con.execute("set lock_configuration = true")
    return con


def locked_down() -> duckdb.DuckDBPyConnection:
    """Return a DuckDB in memory, of one thread, that reaches nothing outside itself."""
    con = duckdb.connect(":memory:", config=dict(_SETTINGS))
    con.execute("load icu")
    con.execute("set timezone = 'UTC'")
    con.execute("set lock_configuration = true")
    return con
