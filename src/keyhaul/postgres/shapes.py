"""Whether a type that both ends have under one name is the same type: its labels, attributes and subtype.

Text that one type prints is read by another without a word when both are composites of two integers,
or arrays of a domain with fewer decimals. So the catalogs are compared, before the first row.
"""

from __future__ import annotations

import re
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

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
