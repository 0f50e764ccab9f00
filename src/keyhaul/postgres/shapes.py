"""Whether a type that both ends have under one name is the same type: its labels, attributes and subtype.

Text that one type prints is read by another without a word when both are composites of two integers,
or arrays of a domain with fewer decimals. So the catalogs are compared, before the first row.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from keyhaul.postgres.definition import read_types
from keyhaul.postgres.pgtypes import family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import psycopg

    from keyhaul.model import Column
    from keyhaul.postgres.definition import TypeDefinition

_LABEL = re.compile(r"'(?:[^']|'')*'")


def differences(
    pairs: Iterable[tuple[Column, Column]],
    ours: Callable[[Column], Sequence[TypeDefinition]],
    theirs: Callable[[Column], Sequence[TypeDefinition]],
) -> list[str]:
    """Return one sentence for each pair of columns of one type whose values the target's type would not keep.

    Args:
        pairs: the source's column and the target's.
        ours: what a type of the source is made of; see `parts`. Asked only where it matters.
        theirs: the same of the target.
    """
    problems = []
    for origin, column in pairs:
        if origin.base_type != column.base_type or not family(origin):
            continue
        both = zip_longest(ours(origin), theirs(column))
        found = [problem for pair in both if (problem := _difference(*pair))]
        if found:
            problems.append(f"{column.name}: {found[0]}")
    return problems


def parts(conn: psycopg.Connection[Any], column: Column) -> list[TypeDefinition]:
    """Return the types that a column is made of, domains left out: what is beneath them counts."""
    return [part for part in read_types(conn, [column.type_oid]) if part.kind != "domain"]


_MONEY = """
with recursive made(name, part) as (
    select * from unnest(%s::text[], %s::oid[])
    union
    select made.name, n.part
      from made join pg_type t on t.oid = made.part
     cross join lateral (
           select t.typelem union select t.typbasetype union select r.rngsubtype from pg_range r
            where t.oid in (r.rngtypid, r.rngmultitypid)
            union select a.atttypid from pg_attribute a
            where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) as n(part)
     where n.part <> 0)
select distinct name from made where part = 'pg_catalog.money'::regtype
"""

OUR_DECIMALS: Final = 2
"""Of a money in our own sessions, whose ``lc_monetary`` is C; and so of its text, and of a number cast to it."""


def money_in(conn: psycopg.Connection[Any], columns: Sequence[Column]) -> list[str]:
    """Return the names of the columns whose type is money or has one inside."""
    given = [[column.name for column in columns], [column.type_oid for column in columns]]
    return [name for (name,) in conn.execute(_MONEY, given).fetchall()]


def money_decimals(conn: psycopg.Connection[Any]) -> int:
    """Return how many decimals a money has in a session: its bytes are an integer of the smallest unit."""
    row = conn.execute("select cash_send(1::numeric::money)").fetchone()
    return len(str(int.from_bytes(row[0]))) - 1 if row else OUR_DECIMALS


def money_problem(origin: str | None, ours: int | None, theirs: int | None) -> str:
    """Return why a money would not be the same amount in the target, and what to do; an empty string where it would.

    Args:
        origin: the source's column that is copied; None for a value that a step makes.
        ours: decimals of the money in it; None where there is none, but a text or number.
        theirs: decimals of the money in the target's column; None where there is none.
    """
    here, there = (OUR_DECIMALS if one is None else one for one in (ours, theirs))
    if here == there:
        return ""
    shift = OUR_DECIMALS - here
    factor = f" * {10**shift}" if shift > 0 else f" / {10**-shift}" if shift < 0 else ""
    number = f"{origin}::numeric{factor} as {origin}" if origin and ours is not None else ""
    if theirs is None:
        return (
            f"a money has {here} decimals in the source (its lc_monetary), and would be written as if it had {there}. "
            f"Read it as a number, in a query: {number}"
        )
    what = f"in the source and {there} in the target" if ours is not None else f"as text and {there} in the target"
    example = f"{12.34:.{here}f}" if here else "1234"
    other = f"{int(example.replace('.', '')) / 10**there:,.{there}f}"
    instead = f", and read it as a number, in a query: {number}" if number else ""
    return (
        f"a money has {here} decimals {what} (lc_monetary there), so {example} would be {other}. "
        f"Make the target's column numeric{instead}; or set lc_monetary alike"
    )


def _difference(ours: TypeDefinition | None, theirs: TypeDefinition | None) -> str:
    if ours is None or theirs is None or (ours.name, ours.kind) != (theirs.name, theirs.kind):
        names = [f"{part.schema}.{part.name}" if part else "nothing" for part in (theirs, ours)]
        return f"it is made of {names[0]}, expected {names[1]}"
    name = f"{theirs.schema}.{theirs.name}"
    if ours.kind == "enum":
        labels = [_LABEL.findall(part.shape) for part in (ours, theirs)]
        missing = [label for label in labels[0] if label not in labels[1]]
        return f"{name} has no label {', '.join(missing)}" if missing else ""
    return "" if ours.shape == theirs.shape else f"{name} is made of {theirs.shape}, expected {ours.shape}"
