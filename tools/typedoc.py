"""docs/types.md, written from the type contract: ``python tools/typedoc.py > docs/types.md``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.config.steps import Rule, Step
from keyhaul.errors import ConfigError
from keyhaul.model import Column
from keyhaul.postgres import pgtypes
from keyhaul.sources.sqlite import declared
from keyhaul.staging.rules import compile_rules
from keyhaul.transform import casts
from keyhaul.transform.compiled import compile_transform, meanings_of
from keyhaul.transform.computed import NoRouteError, write_computed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_HEAD = """\
# Types

Written from the contract by `python tools/typedoc.py > docs/types.md`; a test fails when it differs. Types have
their internal names here: `int8` is bigint, `float8` double precision, `bpchar` char(n), `"char"` is `char`.

A column that is copied keeps every value, or its record is quarantined with the rule `type:COLUMN` and the reason. A
column that cannot be carried is refused by name before the first row, with exit code 2 and nothing created. `etl plan`
shows the route of each column.

## The direct route

One type of a frame holds every value, and binary COPY writes it into the column.

"""

_NUMERIC = """
`numeric(p,s)` with `p` up to MAX_DIGITS and `s` from 0 to `p` is held as `Decimal(p, s)`; any other numeric takes the
text route, without a limit of digits. NaN has no place in a Decimal: the chunk that has one carries the column as text.

Timestamps and dates have values that no frame holds: ±infinity, and with some readers years before 4713 BC or past
294,246. A chunk that has one is read again with these columns as text; the other chunks keep the direct route. If a
rule, an expression or the dedup looks at such a column, the records with such values are quarantined: an expression
would see NULL there.

## The text route

PostgreSQL's own text form travels, through a temporary text column, and the target casts it back. Both sessions have
the same settings for it: SETTINGS.

"""

_FAMILIES = """
The same holds for whole families of types, whatever their names:

"""

_REFUSED = """
The target's type of the same name must be the same: an enum may have more labels but must have all, in any order;
the attributes of a composite type and the subtype of a range must be equal. This is compared before the first row.

## What is refused

Types of an extension that are not named above, and these:

"""

_PAIRS = """
Drop such a column (`transform: - drop: [c]`), or select it as text in the source's query (`c::text`).

## From one type to another

When the target is there and its column has another type. *Exact*: every value arrives. *Checked*: a value for which
the condition does not hold is quarantined. Nothing is rounded and nothing is cut.

"""

_SAME = """
The same type with another modifier:

| type | a copied value |
|---|---|
| `numeric(p,s)` | checked: no digit is lost, left or right of the point |
| `varchar(n)` | checked: not longer than the target's length |
| `bpchar(n)` | checked: not longer than the target's length |
| TIMES with a modifier | exact with as many digits or more; else checked: no digit of the seconds is lost |
| any other | refused, unless the target's has no modifier |

An enum into `text`, and every string type into `bpchar` (checked: no blank at the end either) are pairs too. All other
pairs are refused, with the step that would convert the column.

These two need to know the zone of the local times, `source: {time_zone: Europe/Berlin}`, and are refused without it:

"""

_COMPUTED = """
## Computed columns

A column that an expression computes takes the target's type as an assignment in PostgreSQL does: rounded, half away
from zero for decimals and half to even for floats, which `etl plan` says. A value that does not fit is quarantined.
An integer is computed in 128 bits and held as `Int64`. In a table that keyhaul creates, the column gets the type in the
second column.

"""

_CLAUSES = """
## In a clause

What `set`, `where`, rules, `dedup.on` and `dedup.order_by` make of a column. *yes*: what PostgreSQL makes of it, of
odd values too (NaN, ±infinity, 300 digits, 24:00, months beside days, labels in their own order).
*refused*: by name, before the first row, with what to write instead; IS NULL is asked of every type, and
`cast(c as varchar)` gives the text that PostgreSQL prints. Constants stand in quotes, as in SQL: `c > '09:00'`.
Tried by `tests/integration/test_clauses.py` on a server; this table is made by compiling each clause.

"""

_COLLATED = """
Text under a collation with another order than its bytes': `=` and dedup as above, order refused. Under one that is not
deterministic (ICU, case does not count) all are refused. A record with ±infinity in a date or timestamp, or with NaN
in a numeric with a precision, is quarantined where a clause looks at the column.

A `numeric` without digits is computed with as PostgreSQL does, digit for digit, for every value (300 digits, NaN,
Infinity): `+ - * / %`, `abs`, `sign`, `floor`, `ceil`, `round`, `coalesce`, `greatest`, `least`, in `set` and `where`
`case`, `nullif` and casts to `numeric(p,s)`, `bigint` and `double precision` as well, in rules casts to `numeric(p,s)`.
With a float both become floats. A zero divisor, a number with too many digits, a NaN in such a cast and, as of any
float, a result that becomes infinite cost their record. A cast to `numeric` without digits is refused, since Polars and
DuckDB would round; so is what is not named here.
(`tests/integration/test_arithmetic.py`.) Up to 38 digits whole columns are computed at a time, longer ones alone.

The same holds for what a lookup takes from a table. After a `python` step a column is what its type in the frame says:
a text is a text.

"""

_TAIL = """
## A new table

A missing target gets the source's types with their modifiers, collations, domains, enums, composite types and ranges
(created first), NOT NULL, defaults, generated and identity columns, own sequences for serial columns, the primary key;
after the load indexes, unique, check and exclusion constraints, foreign keys with `--with-foreign-keys`, and the
sequences' values. What is left out is said by `etl plan`: what depends on a column that is renamed, dropped or
computed, and triggers, partitioning and row security. An extension's type wants `create extension` in the target first.
"""

_SQLITE: Final = """
## From SQLite

SQLite enforces no type: a column declared INTEGER may hold a text. The declaration is taken as the promise: a value
that does not keep it is rejected with its record (stage `read`, the reason, the raw text), and the others of its
chunk arrive. The kind of a column follows from its declared name:

"""

_SQLITE_VALUES: Final = """
Digits in parentheses count for a numeric alone, up to 38; `VARCHAR(n)` is `text`, as SQLite does not enforce `n`. What
a column of each kind becomes, and which values it may have:

"""

_SQLITE_TAIL: Final = """
- An integer is exact in each of these; in a text column it is its digits (SQLite makes them of a text in a column
  declared STRING or JSON).
- SQLite stores a decimal such as 0.99 as the double next to it. It arrives as the shortest number that is that double:
  0.99 again. One that needs more digits than were declared is rejected, never rounded.
- A moment has at most six digits of the second, and none but zeros beyond. Numbers (Julian days, seconds since 1970)
  are rejected: convert them in a query (`datetime(ts, 'unixepoch')`). `24:00`, a second 60 and the year 0 do not exist.
- A column without a declared type (as every expression of a query) has the type of its values, all of which are looked
  at before the run: integers, reals, integers and reals (`numeric`), texts or blobs. Mixed otherwise, it is refused by
  name.
- A created target gets types, NOT NULL and the primary key. Not: defaults, generation (values of a generated column are
  copied), CHECK, UNIQUE, other indexes, foreign keys, collations, triggers. `etl plan` names each.
"""

_ENCODERS: Final = {"plain": "as it is", "jsonb": "with jsonb's version byte", "uuid": "as 16 bytes"}

_COMPUTED_TYPES: Final[Sequence[tuple[str, pl.DataType]]] = (
    ("Boolean", pl.Boolean()),
    ("Int64", pl.Int64()),
    ("Decimal(12, 2)", pl.Decimal(12, 2)),
    ("Float64", pl.Float64()),
    ("String", pl.String()),
    ("Binary", pl.Binary()),
    ("Date", pl.Date()),
    ("Time", pl.Time()),
    ("Datetime", pl.Datetime("us")),
    ("Datetime, UTC", pl.Datetime("us", "UTC")),
)


def types() -> str:
    """Return the text of docs/types.md."""
    settings = ", ".join(f"`{name} = {value}`" for name, value in pgtypes.SESSION_SETTINGS.items())
    times = ", ".join(f"`{name}`" for name in sorted(pgtypes.MODIFIED_TIME))
    parts = (
        _HEAD,
        _table("type", "selected", "held as", "written", rows=_direct()),
        _NUMERIC.replace("MAX_DIGITS", str(pgtypes.MAX_DECIMAL_PRECISION)).replace("SETTINGS", settings),
        _table("type", "why not direct", rows=((f"`{name}`", why) for name, why in pgtypes.TEXT.items())),
        _FAMILIES,
        _table("family", "why not direct", rows=((name, why) for name, why in pgtypes.WHOLE_FAMILIES.items())),
        _REFUSED,
        _table("type", "what it is", rows=((f"`{name}`", why) for name, why in pgtypes.REFUSED.items())),
        _PAIRS,
        _table("from", "into", "a copied value", rows=_pairs(casts.CASTS)),
        _SAME.replace("TIMES", times),
        _table("from", "into", "a copied value", rows=_pairs(casts.ZONED)),
        _COMPUTED,
        _table("an expression's type", "in a new table", "goes into", rows=_computed()),
        _CLAUSES,
        _table("type", "`=` `<>` `in`", "`<` `<=` `>=` `>` `between`", "dedup", "order by", rows=_clauses()),
        _COLLATED,
        _TAIL,
        _SQLITE,
        _table("declared as", "kind", rows=_sqlite_names()),
        _SQLITE_VALUES,
        _table("kind", "in a new table", "storage classes", "expected", rows=_sqlite_kinds()),
        _SQLITE_TAIL,
    )
    return "".join(parts)


def _table(*heads: str, rows: Iterable[Sequence[str]]) -> str:
    lines = (heads, ["---"] * len(heads), *rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines).replace("| --- ", "|---").replace("--- |", "---|")


def _direct() -> Iterator[Sequence[str]]:
    for name, direct in pgtypes.DIRECT.items():
        held = str(direct.dtype) if direct.dtype is not None else "Decimal(p, s)"
        selected = "as `::text`" if direct.select_text else "as it is"
        yield f"`{name}`", selected, f"`{held}`", _ENCODERS[direct.encoder]


def _pairs(pairs: dict[tuple[str, str], casts.Cast]) -> Iterator[Sequence[str]]:
    """Yield one row for each type and outcome, with all the types that it goes into."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for (have, want), cast in pairs.items():
        grouped.setdefault((have, cast.does), []).append(want)
    for (have, does), wanted in sorted(grouped.items()):
        yield f"`{have}`", ", ".join(f"`{want}`" for want in wanted), does


def _sqlite_names() -> Iterator[Sequence[str]]:
    """Yield the names with a meaning of their own by kind, then what a name may contain, in SQLite's order."""
    grouped: dict[str, list[str]] = {}
    for name, kind in declared.NAMED.items():
        grouped.setdefault(kind, []).append(f"`{name}`" if name else "nothing")
    for kind, names in grouped.items():
        yield ", ".join(names), kind
    for parts, kind in declared.AFFINITIES:
        yield f"else a name with {' or '.join(f'`{part}`' for part in parts)}", kind
    yield "anything else", "observed"


def _sqlite_kinds() -> Iterator[Sequence[str]]:
    for kind, contract in declared.CONTRACTS.items():
        digits = ", `numeric(p,s)`" if kind == "numeric" else ""
        yield kind, f"`{contract.pg_type}`{digits}", " or ".join(contract.takes), contract.expected


def _computed() -> Iterator[Sequence[str]]:
    for label, dtype in _COMPUTED_TYPES:
        yield f"`{label}`", f"`{pgtypes.ddl_type(dtype) or 'refused'}`", ", ".join(_takes(dtype))
    yield "of a `numeric` without digits", "`numeric`", ", ".join(_takes(pl.String(), numeric=True))


def _takes(dtype: pl.DataType, *, numeric: bool = False) -> Iterator[str]:
    """Yield each type that takes the computed one, with what happens to a value."""
    said: dict[str, list[str]] = {}
    for name in (*pgtypes.DIRECT, "time"):
        digits = (9, 1) if name == "numeric" else (None, None)
        target = Column(name="c", pg_type=name, base_type=name, precision=digits[0], scale=digits[1])
        try:
            written = write_computed("c", dtype, target, numeric=numeric)
        except NoRouteError:
            continue
        note = written.note.removeprefix("c is ").replace("1 decimals", "its decimals")
        if note.startswith("read as"):
            note = "read by the target"
        said.setdefault(note or ("checked" if written.fits is not None else ""), []).append(f"`{name}`")
    for note, names in said.items():
        yield f"{', '.join(names)} ({note})" if note else ", ".join(names)


_CONSTANTS: Final[Mapping[str, str]] = {
    "int2": "1", "int4": "1", "int8": "1", "float4": "1.5", "float8": "1.5", "numeric(12,2)": "1.5", "numeric": "1.5",
    "bool": "t", "text": "a", "varchar": "a", "bpchar": "a", "name": "a", "bytea": r"\x00", "date": "2020-01-01",
    "timestamp": "2020-01-01 09:00", "timestamptz": "2020-01-01 09:00+01", "uuid": "0" * 32, "json": "1", "jsonb": "1",
    "time": "09:00", "timetz": "09:00+01", "interval": "1 mon", "inet": "10.0.0.9", "cidr": "10.0.0.0/8",
    "macaddr": "08:00:2b:01:02:03", "macaddr8": "08:00:2b:01:02:03:04:05", "bit": "101", "varbit": "101",
    "pg_lsn": "16/B374D848", "oid": "1", "enum": "ok",
}  # fmt: skip
"""Type → a constant that it takes; any text for a type that is not here."""


def _clauses() -> Iterator[Sequence[str]]:
    """Compile each clause over a column of each type: yield what comes of it, types with the same answers together."""
    names = [*pgtypes.DIRECT, *pgtypes.TEXT, *pgtypes.WHOLE_FAMILIES]
    names.insert(names.index("numeric"), "numeric(12,2)")
    same: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        same.setdefault(tuple(_answers(name)), []).append(f"`{name}`")
    for answers, kinds in same.items():
        yield ", ".join(kinds), *answers


def _answers(name: str) -> Iterator[str]:
    column = _column(name)
    one = f"'{_CONSTANTS.get(name, 'x')}'"
    for clauses in (
        (f"c = {one}", f"c <> {one}", f"c in ({one})"),
        (f"c < {one}", f"c >= {one}", f"c between {one} and {one}"),
    ):
        yield "yes" if all(_compiles(column, clause) for clause in clauses) else "refused"
    meaning = meanings_of({"c": column}).get("c")
    yield "yes" if meaning is None or meaning.equality else "refused"
    yield "yes" if meaning is None or meaning.ordered else "refused"


def _column(name: str) -> Column:
    kinds = {"enum": "e", "range": "r", "multirange": "m", "composite": "c"}
    digits = (12, 2) if name == "numeric(12,2)" else (None, None)
    return Column(
        name="c",
        pg_type=name,
        base_type=name.partition("(")[0],
        precision=digits[0],
        scale=digits[1],
        type_kind=kinds.get(name, "b"),
        type_category="A" if name == "array" else "",
        labels=("sad", "ok", "happy") if name == "enum" else (),
    )


def _compiles(column: Column, clause: str) -> bool:
    types, meanings = {"c": pgtypes.route(column).dtype}, meanings_of({"c": column})
    try:
        compile_transform([Step(kind="where", where=clause)], types, meanings=meanings)
        compile_rules([Rule(name="r", check=clause)], types, meanings)
    except ConfigError:
        return False
    return True


if __name__ == "__main__":
    sys.stdout.write(types())
