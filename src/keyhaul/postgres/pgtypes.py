"""The type contract: how each PostgreSQL type is read, what holds it, and how it is written.

Two routes carry a column:

* *direct*: one Polars type holds it exactly and binary COPY writes it straight into the column;
* *text*: PostgreSQL's own text form travels, through a temporary text column, and the target
  casts it back. Used where no Arrow type holds every value.

Whatever is in neither table is *refused* by name before the first row moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import polars as pl

if TYPE_CHECKING:
    from keyhaul.model import Column, RouteKind

Encoder = Literal["plain", "jsonb", "uuid"]

MAX_DECIMAL_PRECISION: Final = 38
"""Digits of an Arrow decimal128; a wider numeric takes the text route."""

TIMESTAMP_FLOOR_MICROSECONDS: Final = -220_000_000_000_000_000
"""Below 4713 BC (-210,866,803,200,000,000), where PostgreSQL's timestamps begin. The readers turn
±infinity and years past 294,246 into wrapped-round values around -9.22e18 (measured: ADBC 1.13,
PostgreSQL 18), all of them below this line."""

TIMESTAMP_CEILING_MICROSECONDS: Final = 8_000_000_000_000_000_000
"""About the year 255,000. connectorx's clamp for an infinite timestamp lies above it (year 262,142)."""

DATE_FLOOR_DAYS: Final = -2_500_000
"""Below 4713 BC; the readers wrap ±infinity to about -2.1e9."""

DATE_CEILING_DAYS: Final = 90_000_000
"""About the year 248,000; see TIMESTAMP_CEILING_MICROSECONDS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectType:
    """A type with a direct route.

    Attributes:
        dtype: what holds it in a frame; None for numeric, whose dtype depends on its modifier.
        select_text: select it as ``::text`` because a reader would change it or panic on it.
        encoder: how the string becomes the binary form.
    """

    dtype: pl.DataType | None
    select_text: bool = False
    encoder: Encoder = "plain"


_UTC_MICROSECONDS: Final = pl.Datetime("us", "UTC")

DIRECT: Final[dict[str, DirectType]] = {
    "int2": DirectType(dtype=pl.Int16()),
    "int4": DirectType(dtype=pl.Int32()),
    "int8": DirectType(dtype=pl.Int64()),
    "float4": DirectType(dtype=pl.Float32()),
    "float8": DirectType(dtype=pl.Float64()),
    "bool": DirectType(dtype=pl.Boolean()),
    "text": DirectType(dtype=pl.String()),
    "varchar": DirectType(dtype=pl.String()),
    "bpchar": DirectType(dtype=pl.String(), select_text=True),
    "name": DirectType(dtype=pl.String(), select_text=True),
    "bytea": DirectType(dtype=pl.Binary()),
    "date": DirectType(dtype=pl.Date()),
    "timestamp": DirectType(dtype=pl.Datetime("us")),
    "timestamptz": DirectType(dtype=_UTC_MICROSECONDS),
    "numeric": DirectType(dtype=None, select_text=True),
    "uuid": DirectType(dtype=pl.String(), select_text=True, encoder="uuid"),
    "json": DirectType(dtype=pl.String(), select_text=True),
    "jsonb": DirectType(dtype=pl.String(), select_text=True, encoder="jsonb"),
}

TEXT: Final[dict[str, str]] = {
    "money": "an amount by lc_monetary; refused where that has other decimals in the target",
    "time": "24:00 is later than any Arrow time",
    "timetz": "no Arrow type has a time with a zone",
    "interval": "months, days and time are three numbers",
    "inet": "no Arrow type",
    "cidr": "no Arrow type",
    "macaddr": "no Arrow type",
    "macaddr8": "no Arrow type",
    "bit": "no Arrow type keeps its length",
    "varbit": "no Arrow type keeps its length",
    "tsvector": "no Arrow type",
    "tsquery": "no Arrow type",
    "point": "no Arrow type",
    "line": "no Arrow type",
    "lseg": "no Arrow type",
    "box": "no Arrow type",
    "path": "no Arrow type",
    "polygon": "no Arrow type",
    "circle": "no Arrow type",
    "pg_lsn": "no Arrow type",
    "oid": "no reader has unsigned 32 bits",
    "char": "one byte, with a text form of its own",
    "xml": "checked by the target",
    "jsonpath": "no Arrow type",
    "txid_snapshot": "no Arrow type",
    "pg_snapshot": "no Arrow type",
    "citext": "extension type",
    "hstore": "extension type",
    "ltree": "extension type",
    "lquery": "extension type",
    "vector": "extension type",
    "halfvec": "extension type",
    "sparsevec": "extension type",
    "regclass": "the object is looked up by its qualified name in the target",
    "regcollation": "the object is looked up by its qualified name in the target",
    "regconfig": "the object is looked up by its qualified name in the target",
    "regdictionary": "the object is looked up by its qualified name in the target",
    "regnamespace": "the object is looked up by its name in the target",
    "regoper": "the object is looked up by its qualified name in the target",
    "regoperator": "the object is looked up by its qualified name in the target",
    "regproc": "the object is looked up by its qualified name in the target",
    "regprocedure": "the object is looked up by its qualified name in the target",
    "regrole": "the role is looked up by its name in the target",
    "regtype": "the object is looked up by its qualified name in the target",
}
"""Type → why it takes the text route. The server takes the text form back unchanged, with our session settings."""

WHOLE_FAMILIES: Final[dict[str, str]] = {
    "enum": "its label",
    "range": "no Arrow type",
    "multirange": "no Arrow type",
    "composite": "no driver reads it",
    "array": "NULL elements, several dimensions and other lower bounds have no Arrow type",
}
"""Families of types, whatever their names: why they take the text route."""

REFUSED: Final[dict[str, str]] = {
    "aclitem": "privileges of the roles of one server",
    "cid": "a command's number in one transaction",
    "gtsvector": "the inside of an index",
    "pg_brin_bloom_summary": "the inside of an index",
    "pg_brin_minmax_multi_summary": "the inside of an index",
    "pg_dependencies": "statistics that ANALYZE makes",
    "pg_mcv_list": "statistics that ANALYZE makes",
    "pg_ndistinct": "statistics that ANALYZE makes",
    "pg_node_tree": "the inside of an expression",
    "refcursor": "a cursor of one transaction",
    "tid": "a row's place in one table",
    "xid": "a transaction's number in one server",
    "xid8": "a transaction's number in one server",
}
"""Built-in types that mean nothing in another database: why. So is every type that is not built in and in no table."""

_KINDS: Final = {"e": "enum", "r": "range", "m": "multirange", "c": "composite"}
"""pg_type.typtype → family."""

DIRECT_WIRE: Final = "direct"
"""The wire of a value that binary COPY writes straight into its column."""

TEXT_WIRE: Final = "text"
"""The wire of a value that goes through a temporary text column; other wires name another type."""

MODIFIED_TIME: Final = frozenset({"timestamp", "timestamptz", "time", "timetz"})
"""Types whose modifier is the number of digits of the seconds."""


def family(column: Column) -> str:
    """Return ``enum``, ``range``, ``multirange``, ``composite``, ``array``, or an empty string."""
    return _KINDS.get(column.type_kind, "array" if column.type_category == "A" else "")


def names_objects(column: Column) -> bool:
    """Whether the column's text form names other objects, so that it must be read with an empty search path."""
    return column.base_type.lstrip("_").startswith("reg")


SESSION_SETTINGS: Final[dict[str, str]] = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
    "lc_monetary": "C",
    "xmloption": "content",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "row_security": "off",
}
"""What both sessions set, so that a text form means the same on either side. Not search_path: the user's
query, and the triggers of the user's tables, may rely on theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one source column travels.

    Attributes:
        kind: ``direct``, ``text`` or ``refused``.
        dtype: what holds it in a frame (String for a text route).
        select_text: whether the query selects ``column::text``.
        reason: why it is not direct; for ``refused``, what to do.
    """

    kind: RouteKind
    dtype: pl.DataType
    select_text: bool
    reason: str = ""


def is_bounded_numeric(column: Column) -> bool:
    """Whether the numeric has a declared precision and scale that an Arrow decimal128 holds."""
    return (
        column.precision is not None
        and column.scale is not None
        and column.precision <= MAX_DECIMAL_PRECISION
        and 0 <= column.scale <= column.precision
    )


def route(column: Column) -> Route:
    """Return how a source column travels; the answer depends on its catalog entry alone."""
    direct = DIRECT.get(column.base_type)
    if direct is not None and direct.dtype is not None:
        return Route(kind="direct", dtype=direct.dtype, select_text=direct.select_text)
    if column.base_type == "numeric" and is_bounded_numeric(column):
        return Route(kind="direct", dtype=pl.Decimal(column.precision, column.scale or 0), select_text=True)
    reason = _why_text(column)
    if reason:
        return Route(kind="text", dtype=pl.String(), select_text=True, reason=reason)
    return Route(
        kind="refused",
        dtype=pl.String(),
        select_text=True,
        reason=(
            f"type {column.pg_type} is not in the type contract. Drop the column (transform: - drop: [{column.name}]) "
            f"or select it as a known type in a query, for example {column.name}::text"
        ),
    )


def _why_text(column: Column) -> str:
    """Return why a column takes the text route, or an empty string."""
    if column.base_type == "numeric":
        return f"numeric without a precision of at most {MAX_DECIMAL_PRECISION} digits"
    return TEXT.get(column.base_type) or WHOLE_FAMILIES.get(family(column), "")


def out_of_range(column: str, dtype: pl.DataType) -> pl.Expr | None:
    """Return an expression that is true when a column holds a value the readers could not carry.

    Those are ±infinity and instants that 64 bits of microseconds since 1970 cannot hold; the readers
    wrap or clamp them without a word. None for a type that has no such values.
    """
    physical = pl.col(column).to_physical()
    if isinstance(dtype, pl.Datetime):
        bounds = (TIMESTAMP_FLOOR_MICROSECONDS, TIMESTAMP_CEILING_MICROSECONDS)
    elif isinstance(dtype, pl.Date):
        bounds = (DATE_FLOOR_DAYS, DATE_CEILING_DAYS)
    else:
        return None
    return (physical.min() < bounds[0]) | (physical.max() > bounds[1])


def ddl_type(dtype: pl.DataType) -> str | None:
    """Return the PostgreSQL type for a computed column of a target that is to be created, or None.

    Integers become bigint whatever their width, because an expression may outgrow its inputs.
    """
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})"
    if dtype.is_integer():
        return "bigint"
    if isinstance(dtype, pl.Datetime):
        return "timestamp with time zone" if dtype.time_zone else "timestamp without time zone"
    table: dict[type[pl.DataType], str] = {
        pl.Float32: "real",
        pl.Float64: "double precision",
        pl.Boolean: "boolean",
        pl.String: "text",
        pl.Binary: "bytea",
        pl.Date: "date",
        pl.Time: "time without time zone",
    }
    return table.get(type(dtype))
