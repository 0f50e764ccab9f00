"""A column of a source that is no PostgreSQL, described as pg_catalog would describe it in a target made for it."""

from __future__ import annotations

import re
from typing import Final

from keyhaul.model import Column

_TYPES: Final[dict[str, tuple[str, str]]] = {
    "smallint": ("int2", "N"),
    "integer": ("int4", "N"),
    "bigint": ("int8", "N"),
    "real": ("float4", "N"),
    "double precision": ("float8", "N"),
    "numeric": ("numeric", "N"),
    "boolean": ("bool", "B"),
    "text": ("text", "S"),
    "character varying": ("varchar", "S"),
    "character": ("bpchar", "S"),
    "bytea": ("bytea", "U"),
    "date": ("date", "D"),
    "time without time zone": ("time", "D"),
    "timestamp without time zone": ("timestamp", "D"),
    "timestamp with time zone": ("timestamptz", "D"),
    "interval": ("interval", "T"),
    "uuid": ("uuid", "U"),
    "json": ("json", "U"),
    "jsonb": ("jsonb", "U"),
    "inet": ("inet", "I"),
}
"""``format_type`` without a modifier → internal name and pg_type.typcategory."""

_FORM: Final = re.compile(r"([a-z]+(?: [a-z]+)*?)(?:\((\d+)(?:,(\d+))?\))?( with(?:out)? time zone)?")
_VARHDRSZ: Final = 4


def column_of(name: str, pg_type: str, *, not_null: bool = False) -> Column:
    """Return the column that a target made for it would have.

    Args:
        name: as the source has it.
        pg_type: as ``format_type`` prints it, such as ``numeric(12,2)`` or ``timestamp(3) without time zone``.
        not_null: the source guarantees that there is no NULL.

    Raises:
        ValueError: a type that is not one of `_TYPES` (a mistake of the caller).
    """
    found = _FORM.fullmatch(pg_type)
    bare = f"{found[1]}{found[4] or ''}" if found else ""
    if found is None or bare not in _TYPES:
        msg = f"describe column: type {pg_type!r}, expected one of {', '.join(_TYPES)}"
        raise ValueError(msg)
    base, category = _TYPES[bare]
    first = int(found[2]) if found[2] else None
    second = int(found[3]) if found[3] else 0
    numeric, texts = base == "numeric", base in {"varchar", "bpchar"}
    unbound = "bpchar" if base == "bpchar" else bare  # "character" alone means character(1)
    modifier = -1
    if first is not None:
        modifier = ((first << 16) | second) + _VARHDRSZ if numeric else first + _VARHDRSZ * texts
    return Column(
        name=name,
        pg_type=pg_type,
        base_type=base,
        not_null=not_null,
        precision=first if numeric or not texts else None,
        scale=second if numeric and first is not None else None,
        length=first if texts else None,
        modifier=modifier,
        type_category=category,
        cast_type=unbound,
        bare_type=unbound,
    )
