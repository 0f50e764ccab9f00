"""Does a view or query give the same rows each time it runs? Each chunk runs it anew, in the same snapshot."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import RefusedError

if TYPE_CHECKING:
    import psycopg

    from keyhaul.postgres.catalog import Relation

_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/|\"[^\"]*\"", re.DOTALL)
_NUMBERING: Final = re.compile(
    r"\b(row_number|ntile|lag|lead|first_value|last_value|nth_value)\s*\([^()]*\)\s*over\s*\(([^()]*)\)"
)
_LIMIT: Final = re.compile(r"\b(limit\s+(?!all\b)|offset\s+[1-9$]|fetch\s+(first|next)\b)")
_VOLATILE: Final = re.compile(
    r"\b(random|random_normal|gen_random_uuid|uuidv7|uuid_generate_v\d\w*|clock_timestamp|timeofday|nextval)\s*\(|\btablesample\b"
)
_SHAKEN: Final = (
    "each chunk runs it anew, so rows would be lost and others loaded twice. "
    "Put its rows into a table first (create table … as …) and move that"
)


def check_stable(conn: psycopg.Connection[Any], relation: Relation, query: str | None) -> None:
    """Refuse a view or query whose answer may differ from one execution to the next.

    Found by its text: rows numbered or limited without an order, random values, sequences. What the
    text does not show (a function that does the same) is told after the load, when the rows read are
    not as many as were planned.

    Raises:
        RefusedError: names what makes it unstable and what to do.
    """
    text = query
    if relation.kind == "v":
        row = conn.execute("select pg_get_viewdef(%s::oid)", [relation.oid]).fetchone()
        text = row[0] if row else None
    if not text:
        return
    plain = _QUOTED.sub(" ", text).lower()
    numbering = next((found for found in _NUMBERING.finditer(plain) if "order by" not in found[2]), None)
    volatile = _VOLATILE.search(plain)
    if numbering is not None:
        why = f"{numbering[1]}() over () has no ORDER BY"
    elif _LIMIT.search(plain) and "order by" not in plain:
        why = "LIMIT or OFFSET without ORDER BY"
    elif volatile is not None:
        why = f"{volatile[0].rstrip('( ')} gives other values each time"
    else:
        return
    msg = f"read source {relation.label}: {why}, and {_SHAKEN}"
    raise RefusedError(msg)
