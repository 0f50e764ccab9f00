"""Rules across the run, bound to the real catalogs before it and evaluated in the target after it."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from keyhaul.errors import ConfigError, RefusedError, first_line
from keyhaul.model import RunCheck
from keyhaul.postgres import catalog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.config.runrules import RunRule
    from keyhaul.sources.source import Aggregates
    from keyhaul.targets.postgres import TargetTable

Connection = psycopg.Connection[Any]

NEWER = "the source as this sitting reads it, newer than that of the first chunks"


def check_run_rules(conn: Connection, target: TargetTable, source: Aggregates | None, rules: Sequence[RunRule]) -> None:
    """Bind every rule to the target and the source, without reading a row.

    Args:
        conn: to the target, in autocommit mode.
        target: there already, or what it will be.
        source: what computes an aggregate in the source; None: nothing does.
        rules: of the job.

    Raises:
        ConfigError: a column, table, type or aggregate does not fit; one line for each, with its place.
    """
    item: sql.Composable = target.identifier
    if target.ddl.before:
        nulls = [sql.SQL("null::{} as {}").format(sql.SQL(c.cast_type or c.pg_type), sql.Identifier(c.name))
                 for c in target.columns]  # fmt: skip
        item = sql.SQL("(select {}) as nothing").format(sql.SQL(", ").join(nulls))
    problems = []
    for rule in rules:
        try:
            catalog.explain(conn, _statement(conn, rule, item, target.names))
            if rule.kind == "equals_source":
                _check_aggregate(source, rule, target.label)
        except psycopg.errors.UndefinedObject:
            if not target.ddl.before:  # a type that is created with the table is not there yet
                raise
        except ConfigError as error:
            problems.append(f"{rule.at}: {error}")
        except psycopg.Error as error:
            told = f"{first_line(error)}, expected what {target.label} has"
            problems.append(f"{rule.at}: bind run rule {rule.name}: {told}. Change it")
    if problems:
        raise ConfigError("\n".join(problems))


def check_run(
    conn: Connection,
    table: sql.Identifier,
    rules: Sequence[RunRule],
    source: Aggregates | None,
    *,
    own: tuple[str, str] | None = None,
    resumed: bool = False,
) -> tuple[RunCheck, ...]:
    """Evaluate the rules over a whole table of the target; changes nothing.

    NULL is as in SQL: a row with a NULL in its columns breaks neither ``unique`` nor ``references``.

    Args:
        conn: to the target, in autocommit mode.
        table: the one that was loaded, or one that will take its place.
        rules: of the job, bound by `check_run_rules`.
        source: the run's, for ``equals_source``; None where no rule is one.
        own: schema and name under which a rule refers to this table itself, where it does not have it yet.
        resumed: whether its moment is newer than the one of the first chunks, which a message then says.

    Returns:
        One result for each rule, in order.

    Raises:
        RefusedError: a rule cannot be evaluated; names it.
        ConfigError: a referenced table is gone.
    """
    checks = []
    for rule in rules:
        try:
            with conn.transaction():
                conn.execute("set transaction read only")
                checks.append(_check(conn, table, rule, source, own, resumed=resumed))
        except (psycopg.DataError, psycopg.ProgrammingError, psycopg.InternalError, RefusedError) as error:
            told = first_line(error)
            msg = f"{rule.at}: check run rule {rule.name}: {told}. Mend the rule and run the same command again"
            raise RefusedError(msg) from error
    return tuple(checks)


def _check(
    conn: Connection,
    table: sql.Identifier,
    rule: RunRule,
    source: Aggregates | None,
    own: tuple[str, str] | None,
    *,
    resumed: bool,
) -> RunCheck:
    row: Sequence[Any] = conn.execute(_statement(conn, rule, table, own)).fetchone() or (0, 0)
    offenders, passed = 0, True
    match rule.kind:
        case "unique":
            offenders = int(row[0])
            passed = offenders == 0
            message = f"{offenders:,} rows share their {', '.join(rule.columns)} with another, {row[1]:,} values in all"
        case "references":
            offenders = int(row[0])
            passed = offenders == 0
            message = f"{offenders:,} rows have a {', '.join(rule.columns)} that {rule.table} has not"
        case "row_count":
            count = int(row[0])
            passed = (rule.least is None or count >= rule.least) and (rule.most is None or count <= rule.most)
            bounds = [f"at least {rule.least:,}" if rule.least is not None else ""]
            bounds.append(f"at most {rule.most:,}" if rule.most is not None else "")
            message = f"{count:,} rows, expected {' and '.join(filter(None, bounds))}"
        case "equals_source":
            theirs = _able(source).compute(rule.aggregate)
            passed = _equal(row[0], theirs)
            message = f"{rule.aggregate} is {_shown(row[0])} in the target and {_shown(theirs)} in the source"
            if resumed:
                message += f" ({NEWER})"
    return RunCheck(name=rule.name, on_fail=rule.on_fail, passed=passed, offenders=offenders,
                    message="" if passed else message)  # fmt: skip


def _statement(
    conn: Connection, rule: RunRule, item: sql.Composable, own: tuple[str, str] | None = None
) -> sql.Composed:
    names = [sql.Identifier("t", name) for name in rule.columns]
    present = sql.SQL(" and ").join(sql.SQL("{} is not null").format(name) for name in names)
    match rule.kind:
        case "unique":
            return sql.SQL(
                "select coalesce(sum(n), 0)::bigint, count(*) from (select count(*) as n from (select * from {}) as t"
                " where {} group by {} having count(*) > 1) as g"
            ).format(item, present, sql.SQL(", ").join(names))
        case "references":
            others = [sql.Identifier("o", name) for name in rule.others or rule.columns]
            equal = sql.SQL(" and ").join(
                sql.SQL("{} = {}").format(other, name) for other, name in zip(others, names, strict=True)
            )
            return sql.SQL(
                "select count(*) from (select * from {}) as t where {} and not exists"
                " (select from (select * from {}) as o where {})"
            ).format(item, present, _referenced(conn, rule, item, own), equal)
        case "row_count":
            return sql.SQL("select count(*) from {}").format(item)
        case "equals_source":
            return catalog.aggregate(rule.aggregate, item)


def _referenced(conn: Connection, rule: RunRule, item: sql.Composable, own: tuple[str, str] | None) -> sql.Composable:
    """Return the table that a rule refers to: `item`, where that is the target itself."""
    found = catalog.resolve(conn, rule.table)
    parts = tuple(catalog.parse_name(conn, rule.table) or ()) if found is None else found[1:]
    if own is not None and parts in {own, own[1:]}:
        return item
    if found is None:
        msg = f"bind run rule {rule.name}: {rule.table} is not in the target, expected a table there. Change it"
        raise ConfigError(msg)
    return sql.Identifier(*found[1:])


def _check_aggregate(source: Aggregates | None, rule: RunRule, label: str) -> None:
    try:
        _able(source).check(rule.aggregate)
    except RefusedError:
        raise
    except ConfigError as error:
        msg = f"bind run rule {rule.name}: {error}, expected what {label} has. Change it"
        raise ConfigError(msg) from error


def _able(source: Aggregates | None) -> Aggregates:
    if source is None:
        raise RefusedError("this kind of source computes no aggregates, which equals_source needs. Leave the rule out")
    return source


def _equal(ours: str | None, theirs: str | None) -> bool:
    """Compare two results exactly; 1.0 is 1.00, NULL is NULL."""
    if ours is None or theirs is None or ours == theirs:
        return ours == theirs
    try:
        return Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False


def _shown(value: str | None) -> str:
    return "NULL" if value is None else value
