"""The kinds of data-quality checks, and how the demand of each is read from a checks file.

A row check counts the rows that fail; NULL passes each of them but ``not_null``. The other kinds hold or do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from keyhaul.config.draft import WrittenNumber, shown
from keyhaul.config.entries import read_names, read_pairs
from keyhaul.config.parts import EMBEDDED
from keyhaul.errors import ConfigError
from keyhaul.postgres.dsn import Dsn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyhaul.config.draft import Draft, Place

FILE_TYPES: Final = (".parquet", ".csv")
ONE_PASS: Final = frozenset({"not_null", "accepted", "between", "matches", "length", "expression"})
"""Kinds that look at one row: all of a file's are counted in one pass."""
ROW_KINDS: Final = ONE_PASS | {"unique", "references"}
"""Kinds that count rows, and so have a threshold."""
TYPE: Final = re.compile(r"[^\W\d][\w ]*(\([0-9]+( *, *-?[0-9]+)?\))?[\w ]*(\[\])*")
_PLACES: Final = ("table", "query", "file")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8}) ?(s|min|h|d)")
_SECONDS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a number may be from another: by `amount`, or by `amount` percent of the other."""

    amount: Decimal
    relative: bool = False

    def permits(self, value: Decimal, other: Decimal) -> bool:
        """Return whether `value` is near enough to `other`; a NaN is never near, an infinity only to itself."""
        if value.is_nan() or other.is_nan():
            return False
        if value.is_infinite() or other.is_infinite():
            return value == other
        allowed = abs(other) * self.amount / 100 if self.relative else self.amount
        return abs(value - other) <= allowed

    def __str__(self) -> str:
        """Return it as it is written: ``0.5`` or ``5%``."""
        return f"{self.amount}%" if self.relative else str(self.amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Where rows are: exactly one of `table`, `query` and `file`.

    Attributes:
        uri: the database of a table or query; ``embedded`` is the one that comes with keyhaul.
        file: a Parquet or CSV file.
        types: of a CSV file's columns, as DuckDB names them; the others are text.
    """

    uri: str = field(default=EMBEDDED, repr=False)
    table: str | None = None
    query: str | None = None
    file: Path | None = None
    types: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a check asks; which fields are filled depends on its kind.

    Attributes:
        columns: that are looked at.
        values: that are accepted.
        low, high: limits, both included; of a length in characters, of a row count in rows.
        text: a regular expression, or a boolean SQL expression.
        where: the table or file that is referred to, or whose sum must be equal.
        other: columns there.
        seconds: greatest age of the newest value.
        since: the newest value is not before this.
        types: column → type; None takes any.
        only: no other column may be there.
        tolerances: ``sum``, ``null_share``, ``mean``, ``distinct`` → how far it may be off.
    """

    columns: tuple[str, ...] = ()
    values: tuple[str | int | Decimal | bool, ...] = ()
    low: str | int | Decimal | None = None
    high: str | int | Decimal | None = None
    text: str = ""
    where: Where | None = None
    other: tuple[str, ...] = ()
    seconds: int | None = None
    since: str | None = None
    types: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    only: bool = False
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict, hash=False)


def read_demand(draft: Draft, place: Place, value: object) -> Demand | None:
    """Return what the check at `place`, whose last part is its kind, asks; None after a mistake, which is noted."""
    before = len(draft.problems)
    demand = _READERS[str(place[-1])](draft, place, value)
    return demand if len(draft.problems) == before else None


def read_where(draft: Draft, place: Place, value: object, *, more: tuple[str, ...] = ("types",)) -> Where:
    """Return where rows are; mistakes are noted in the draft."""
    body = _mapping(draft, place, value, ("uri", *_PLACES, *more), "a mapping with table, query or file")
    given = [key for key in _PLACES if body.get(key) is not None]
    if body and len(given) != 1:
        draft.refuse(place, " and ".join(given) or "none of them", f"one of {', '.join(_PLACES)}")
    for key in given:
        if not isinstance(body[key], str) or not body[key].strip():
            draft.refuse((*place, key), draft.show((*place, key), body[key]), f"a {key}")
    uri, file = body.get("uri"), body.get("file")
    if uri is not None:
        _check_uri(draft, (*place, "uri"), uri, of_file=file is not None)
    if isinstance(file, str) and not file.lower().endswith(FILE_TYPES):
        draft.refuse((*place, "file"), shown(PurePath(file).suffix or file), "a file that ends in .parquet or .csv")
    types = {}
    if "types" in more and body.get("types") is not None:
        types = dict(read_pairs(draft, (*place, "types"), body["types"], "column: type") or ())
        _check_types(draft, (*place, "types"), types)
        if not (isinstance(file, str) and file.lower().endswith(".csv")):
            draft.refuse((*place, "types"), "types", "them with a CSV file only", "Others have types of their own")
    return Where(
        uri=uri if isinstance(uri, str) else EMBEDDED,
        table=body.get("table"),
        query=body.get("query"),
        file=Path(file) if isinstance(file, str) else None,
        types=types,
    )


def read_tolerance(draft: Draft, place: Place, value: object, *, percent: bool = True) -> Tolerance:
    """Return the tolerance that ``0.5`` or ``"5%"`` stands for; a mistake is noted."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    text = value.text if isinstance(value, WrittenNumber) else text
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?%?", text) or (text.endswith("%") and not percent):
        draft.refuse(place, draft.show(place, value), "a number such as 0.5" + (" or a percentage" if percent else ""))
        return Tolerance(amount=Decimal())
    return Tolerance(amount=Decimal(text.removesuffix("%")), relative=text.endswith("%"))


def _mapping(draft: Draft, place: Place, value: object, known: tuple[str, ...], expected: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        draft.refuse(place, "an empty mapping" if value == {} else draft.show(place, value), expected)
        return {}
    for key in sorted(value.keys() - set(known)):
        draft.refuse_unknown((*place, key), known)
    return value


def _check_uri(draft: Draft, place: Place, uri: object, *, of_file: bool) -> None:
    if of_file:
        draft.refuse(place, "a database for a file", "no uri beside file", "Remove one")
    elif not isinstance(uri, str):
        draft.refuse(place, draft.show(place, uri), "a postgresql:// URI or embedded")
    elif uri != EMBEDDED and place not in draft.problems:
        try:
            Dsn.parse(uri, draft.heading(place))
        except ConfigError as error:
            draft.problems[place] = str(error)


def _check_types(draft: Draft, place: Place, types: Mapping[str, str | None]) -> None:
    for name, text in types.items():
        if text is not None and not TYPE.fullmatch(text):
            draft.refuse((*place, name), shown(text), "a type such as bigint or numeric(12,2)")


def _column(draft: Draft, place: Place, body: Mapping[str, Any]) -> tuple[str, ...]:
    name = body.get("column")
    if body and (not isinstance(name, str) or not name):
        draft.refuse((*place, "column"), draft.show((*place, "column"), name), "a column")
    return (name,) if isinstance(name, str) else ()


def _scalar(draft: Draft, place: Place, value: object) -> str | int | Decimal | bool | None:
    """Return text, a number or true/false as it is written; a decimal stays what the file says."""
    if isinstance(value, WrittenNumber):
        return Decimal(value.text)
    if isinstance(value, str | int):
        return value
    draft.refuse(place, draft.show(place, value), "text or a number")
    return None


def _columns_of(draft: Draft, place: Place, value: object) -> Demand:
    return Demand(columns=read_names(draft, place, value))


def _accepted(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "values"), "a mapping with column and values")
    values = body.get("values")
    if body and (not isinstance(values, list) or not values):
        draft.refuse((*place, "values"), draft.show((*place, "values"), values), "a list of values")
    listed = values if isinstance(values, list) else []
    found = [_scalar(draft, (*place, "values", number), item) for number, item in enumerate(listed)]
    return Demand(columns=_column(draft, place, body), values=tuple(item for item in found if item is not None))


def _limits(draft: Draft, place: Place, body: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in (("min", "low"), ("max", "high")):
        if body.get(key) is None:
            continue
        found[name] = _scalar(draft, (*place, key), body[key])
        wrong = isinstance(found[name], bool) or (whole and (not isinstance(found[name], int) or found[name] < 0))
        if wrong:
            draft.refuse((*place, key), draft.show((*place, key), body[key]), "a whole number" if whole else "a limit")
    if body and not found:
        draft.refuse(place, "neither", "min or max or both")
    return found


def _between(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "min", "max"), "a mapping with column, min and max")
    return Demand(columns=_column(draft, place, body), **_limits(draft, place, body, whole=False))


def _length(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "min", "max"), "a mapping with column, min and max")
    return Demand(columns=_column(draft, place, body), **_limits(draft, place, body, whole=True))


def _row_count(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("min", "max"), "a mapping with min and max")
    return Demand(**_limits(draft, place, body, whole=True))


def _text(draft: Draft, place: Place, value: object, expected: str) -> str:
    if not isinstance(value, str) or not value.strip():
        draft.refuse(place, draft.show(place, value), expected)
        return ""
    return value


def _matches(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "pattern"), "a mapping with column and pattern")
    pattern = _text(draft, (*place, "pattern"), body.get("pattern"), "a regular expression") if body else ""
    return Demand(columns=_column(draft, place, body), text=pattern)


def _expression(draft: Draft, place: Place, value: object) -> Demand:
    return Demand(text=_text(draft, place, value, 'a condition such as "distance > 0"'))


def _references(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("columns", "in", "to"), "a mapping with columns, in and to")
    if not body:
        return Demand()
    columns = read_names(draft, (*place, "columns"), body.get("columns"))
    other = read_names(draft, (*place, "to"), body["to"]) if "to" in body else columns
    if other and columns and len(other) != len(columns):
        draft.refuse((*place, "to"), f"{len(other)} columns", f"{len(columns)}, as many as in columns")
    where = read_where(draft, (*place, "in"), body.get("in"))
    if isinstance(body.get("in"), dict) and "uri" in body["in"]:
        draft.refuse((*place, "in", "uri"), "another database", "a table of the same one", "Compare after a move")
    return Demand(columns=columns, where=where, other=other)


def _fresh(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "max_age", "since"), "a mapping with column and max_age or since")
    age, since = body.get("max_age"), body.get("since")
    if body and (age is None) == (since is None):
        draft.refuse(place, "both" if age else "neither", "one of max_age and since")
    seconds = None
    if age is not None:
        match = _DURATION.fullmatch(age) if isinstance(age, str) else None
        if match is None:
            draft.refuse((*place, "max_age"), draft.show((*place, "max_age"), age), "an age such as 26h, 90min or 2d")
        else:
            seconds = int(match[1]) * _SECONDS[match[2]]
    if since is not None and not _is_moment(since):
        draft.refuse((*place, "since"), draft.show((*place, "since"), since), "a moment such as 2013-12-31T23:00:00Z")
    return Demand(columns=_column(draft, place, body), seconds=seconds, since=since)


def _is_moment(text: object) -> bool:
    try:
        datetime.fromisoformat(text if isinstance(text, str) else "")
    except ValueError:
        return False
    return True


def _typed(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("types", "only"), "a mapping with types: column to type")
    listed = body.get("types")
    types: dict[str, str | None] = {}
    if isinstance(listed, list):
        types = dict.fromkeys(read_names(draft, (*place, "types"), listed))
    elif body:
        types = dict(read_pairs(draft, (*place, "types"), listed, "column: type") or ())
        _check_types(draft, (*place, "types"), types)
    only = body.get("only", False)
    if not isinstance(only, bool):
        draft.refuse((*place, "only"), draft.show((*place, "only"), only), "true or false")
    return Demand(columns=tuple(types), types=types, only=bool(only))


def _sum_equals(draft: Draft, place: Place, value: object) -> Demand:
    body = _mapping(draft, place, value, ("column", "in", "to", "tolerance"), "a mapping with column and in")
    if not body:
        return Demand()
    columns = _column(draft, place, body)
    other = read_names(draft, (*place, "to"), body["to"]) if "to" in body else columns
    if len(other) > 1:
        draft.refuse((*place, "to"), "several columns", "one column")
    tolerance = read_tolerance(draft, (*place, "tolerance"), body.get("tolerance", 0))
    where = read_where(draft, (*place, "in"), body.get("in"))
    return Demand(columns=columns, where=where, other=other, tolerances={"sum": tolerance})


def _drift(draft: Draft, place: Place, value: object) -> Demand:
    names = ("null_share", "mean", "distinct")
    body = _mapping(draft, place, value, ("column", *names), f"a mapping with column and {', '.join(names)}")
    found = {
        name: read_tolerance(draft, (*place, name), body[name], percent=name != "null_share")
        for name in names
        if name in body
    }
    if body and not found:
        draft.refuse(place, "none of them", f"one or more of {', '.join(names)}")
    return Demand(columns=_column(draft, place, body), tolerances=found)


_READERS: Final[Mapping[str, Callable[[Draft, Place, object], Demand]]] = {
    "not_null": _columns_of,
    "unique": _columns_of,
    "accepted": _accepted,
    "between": _between,
    "matches": _matches,
    "length": _length,
    "references": _references,
    "row_count": _row_count,
    "fresh": _fresh,
    "columns": _typed,
    "sum_equals": _sum_equals,
    "expression": _expression,
    "drift": _drift,
}
KINDS: Final = tuple(_READERS)
