"""Data-quality checks as SQL: for each, the condition that is true for a row that fails.

PostgreSQL and DuckDB differ in a few words only. NULL makes a condition NULL, so that the row passes; only
``not_null`` says otherwise. Names and values are quoted here; an expression was bound alone before.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol

from keyhaul.quoting import quote_name, quote_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from keyhaul.config.checkfile import Expectation
    from keyhaul.config.checkkinds import Demand, Where

ROW: Final = "t"
"""What the rows that are checked are called in FROM."""
LARGEST_REAL: Final = Decimal("3.4e38")
HASHED_FROM: Final = 9
"""PostgreSQL's MIN_ARRAY_SIZE_FOR_HASHED_SAOP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The words in which two systems differ.

    Attributes:
        count: a template with ``{condition}``: how many rows there are for which it is true.
        number: a template with ``{value}``: any number as a double.
        text_types: beginnings of the names of types that hold text.
        sized_types: of those whose size in bytes is known without a look at the text, at most four to a character.
    """

    count: str
    number: str
    text_types: tuple[str, ...]
    sized_types: tuple[str, ...] = ()


POSTGRES: Final = Dialect(
    count="count(*) filter (where {condition})",
    number="({value})::float8",
    text_types=("text", "character", "name", "citext", "bpchar"),
    sized_types=("text", "character varying", "citext"),  # character(n) has blanks that do not count
)
DUCKDB: Final = Dialect(
    # Half the time of a filter: 15 checks of 5 million rows took 3.0 s and 6.2 s on a busy machine.
    count="coalesce(count_if({condition}), 0)",  # it is NULL without rows
    number="({value})::double",
    text_types=("VARCHAR",),
)


class System(Protocol):
    """Where the rows are, and what can be asked of it. All queries see one moment.

    Attributes:
        label: for people, and for telling results of one source from another's; no password.
        dialect: its words.
        columns: name → type, in order.
        key: columns that name a row; may be empty.
        from_item: what stands after FROM, with the alias `ROW`.
    """

    label: str
    dialect: Dialect
    columns: Mapping[str, str]
    key: tuple[str, ...]
    from_item: str

    def fetch(self, query: str) -> list[tuple[object, ...]]:
        """Run a query and return its rows."""

    def stream(self, query: str) -> Iterator[pa.RecordBatch]:
        """Run a query and yield its rows in bounded memory, first a batch without rows."""

    def refuses(self, query: str) -> str:
        """Return why a query cannot be asked, or an empty string; nothing is run."""

    def unmatched(self, column: str, pattern: str) -> str:
        """Return the condition that is true where a pattern is nowhere in a column's text; NULL for NULL."""

    def misread(self, expression: str) -> str:
        """Return why a text is not one boolean expression over one row, or an empty string; nothing is run."""

    def misread_pattern(self, pattern: str) -> str:
        """Return why a text is no regular expression, or an empty string."""

    def has_type(self, column: str, wanted: str) -> str:
        """Return what is wrong with a column's type, or an empty string."""

    def other(self, where: Where) -> str:
        """Return what stands after FROM for another table or file, without an alias."""

    def row_number(self) -> str:
        """Return an expression that names a row when there is no key, or an empty string."""

    def close(self) -> None:
        """Give everything back."""


def failing(check: Expectation, system: System) -> str:
    """Return the condition that is true for the rows that fail a check that counts rows."""
    demand = check.demand
    columns = [f"{ROW}.{quote_name(name)}" for name in demand.columns]
    match check.kind:
        case "not_null":
            condition = " or ".join(f"{column} is null" for column in columns)
        case "accepted":
            condition = _unlisted(columns[0], demand, system)
        case "between":
            condition = _outside(columns[0], demand, system)
        case "length":
            condition = _of_length(columns[0], demand, system)
        case "matches":
            condition = system.unmatched(demand.columns[0], demand.text)
        case "expression":
            condition = f"not (\n{demand.text}\n)"
        case "unique":
            condition = _repeated(columns, demand, system)
        case "references":
            condition = _dangling(columns, demand, system)
        case _:
            raise ValueError(check.kind)
    return condition


def _constant(value: str | int | Decimal | bool, system: System | None, column: str) -> str:  # noqa: FBT001 - a value of a file
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | Decimal):
        # `rating in (1, 2)` for a column of text means the texts 1 and 2; neither system would say so.
        of_text = system is not None and system.columns[column].startswith(system.dialect.text_types)
        if of_text:
            return quote_text(str(value))
        # `real` is compared as double precision otherwise, in which 0.1 is another number than the real 0.1.
        real = system is not None and system.columns[column] == "real" and abs(Decimal(value)) < LARGEST_REAL
        return f"{Decimal(value):f}" + "::real" * real
    return quote_text(value)


def _unlisted(column: str, demand: Demand, system: System) -> str:
    """Return the condition for a value that is none of those listed.

    PostgreSQL looks a text up in a list of nine or more, and compares it with each of fewer by way of an array: one
    after the other takes half of that (0.04 and 0.08 µs of CPU a row with five). Of a text alone: the values of a
    list find a common type that each alone need not have.
    """
    values = [_constant(value, system, demand.columns[0]) for value in demand.values]
    alike = system.columns[demand.columns[0]].startswith(system.dialect.sized_types) and len(values) < HASHED_FROM
    if alike and all(value.startswith("'") for value in values):
        return " and ".join(f"{column} <> {value}" for value in values)
    return f"{column} not in ({', '.join(values)})"


def _outside(value: str, demand: Demand, system: System | None) -> str:
    column = demand.columns[0]
    limits = ((demand.low, "<"), (demand.high, ">"))
    return " or ".join(
        f"{value} {sign} {_constant(limit, system, column)}" for limit, sign in limits if limit is not None
    )


def text_between_numbers(demand: Demand, system: System) -> str:
    """Return what is wrong with a number as the limit of a text (its order is that of texts), or an empty string."""
    kind = system.columns[demand.columns[0]]
    limits = [limit for limit in (demand.low, demand.high) if isinstance(limit, int | Decimal)]
    if not limits or not kind.startswith(system.dialect.text_types):
        return ""
    return (
        f"got the number {limits[0]} for a column of text, where '1000' comes before '50'. Give a CSV file's column a "
        "type (types:), use expression: with a cast, or quote the limit to compare texts"
    )


def _of_length(column: str, demand: Demand, system: System) -> str:
    """Return the condition for a length outside its limits.

    PostgreSQL counts the characters of a text anew for each limit, and fetches long ones for it. The size in bytes,
    which is in their header, decides for most rows: both limits of 5 million short texts took 0.59 s of CPU, now 0.1 s.
    """
    length = f"length({column})"
    if not system.columns[demand.columns[0]].startswith(system.dialect.sized_types):
        return _outside(length, demand, None)
    size = f"octet_length({column})"
    parts = []
    if demand.low is not None:
        parts.append(f"({size} < {4 * int(demand.low)} and {length} < {int(demand.low)})")
    if demand.high is not None:
        parts.append(f"({size} > {int(demand.high)} and {length} > {int(demand.high)})")
    return " or ".join(parts)


def _repeated(columns: Sequence[str], demand: Demand, system: System) -> str:
    row = columns[0] if len(columns) == 1 else f"({', '.join(columns)})"
    return f"{row} in ({groups(demand, system)})"


def groups(demand: Demand, system: System, what: str = "") -> str:
    """Return a query for the values that several rows have; a NULL in one of the columns is nobody's duplicate."""
    names = [f"{ROW}.{quote_name(name)}" for name in demand.columns]
    present = " and ".join(f"{name} is not null" for name in names)
    listed = ", ".join(names)
    return f"select {what or listed} from {system.from_item} where {present} group by {listed} having count(*) > 1"


def _dangling(columns: Sequence[str], demand: Demand, system: System) -> str:
    if demand.where is None:
        raise ValueError(demand)
    present = " and ".join(f"{column} is not null" for column in columns)
    equal = " and ".join(f"r.{quote_name(o)} = {column}" for o, column in zip(demand.other, columns, strict=True))
    return f"{present} and not exists (select 1 from {system.other(demand.where)} as r where {equal})"


def count_of(check: Expectation, system: System) -> str:
    """Return a query for the number of failing rows of one check."""
    if check.kind == "unique":
        return f"select coalesce(sum(n), 0) from ({groups(check.demand, system, 'count(*) as n')}) as g"
    return f"select count(*) from {system.from_item} where {failing(check, system)}"


def distinct_of(column: str, system: System) -> str:
    """Return a query for the number of different values; a subquery, because it groups where count(distinct) sorts."""
    name = f"{ROW}.{quote_name(column)}"
    return f"select count(*) from (select {name} from {system.from_item} where {name} is not null group by {name}) as g"


def overview(checks: Sequence[Expectation], system: System) -> tuple[str, list[tuple[str, str]]]:
    """Return the one query over all rows, and what each of its columns after the row count is.

    Returns:
        The query; and (check, what) for its columns, where what is ``failures``, ``late``, ``age``, ``sum``,
        ``present`` or ``mean``.
    """
    parts: list[tuple[str, str, str]] = []
    for check in checks:
        column = f"{ROW}.{quote_name(check.demand.columns[0])}" if check.demand.columns else ""
        match check.kind:
            case "fresh":
                limit = (
                    f"now() - interval '{check.demand.seconds} seconds'"
                    if check.demand.since is None
                    else f"{quote_text(check.demand.since)}::timestamptz"
                )
                newest = f"max({column})::timestamptz"
                # PostgreSQL takes infinity from nothing only since 17, DuckDB never.
                age = f"case when isfinite({newest}) then extract(epoch from now() - {newest}) end"
                parts += [
                    (check.name, "late", f"{newest} is null or {newest} < {limit}"),
                    (check.name, "age", age),
                    (check.name, "there", f"{newest} is not null"),
                ]
            case "sum_equals":
                parts.append((check.name, "sum", sum_of(column)))
            case "drift":
                parts.append((check.name, "present", f"count({column})"))
                if "mean" in check.demand.tolerances:
                    parts.append((check.name, "mean", f"avg({system.dialect.number.format(value=column)})"))
            case "not_null" | "accepted" | "between" | "matches" | "length" | "expression":
                parts.append((check.name, "failures", system.dialect.count.format(condition=failing(check, system))))
            case _:
                pass
    listed = "".join(f",\n  {text}" for _, _, text in parts)
    return f"select count(*){listed}\nfrom {system.from_item}", [(name, what) for name, what, _ in parts]


def sum_of(column: str) -> str:
    """Return the sum of a column as text, so that no digit is lost; that of no rows is 0."""
    return f"coalesce(sum({column}), 0)::varchar"
