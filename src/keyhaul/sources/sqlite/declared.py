"""From a type as SQLite declares it to what its values must be: the type contract of SQLite.

SQLite enforces no type: a column declared INTEGER may hold a text. Here the declaration is the promise, and each
value is held against it. The tables below are also docs/types.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from keyhaul.postgres.pgtypes import MAX_DECIMAL_PRECISION

Kind = Literal[
    "integer", "real", "numeric", "boolean", "date", "timestamp", "timestamptz", "time", "text", "blob", "observed"
]
StorageClass = Literal["integer", "real", "text", "blob"]

MOMENT: Final = "YYYY-MM-DD HH:MM[:SS[.ffffff]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contract:
    """What the values of one kind of column must be.

    Attributes:
        pg_type: of a created target; numeric gets its digits besides.
        takes: storage classes that may fit; a value of any other is rejected.
        expected: what a value must be, for messages.
    """

    pg_type: str
    takes: tuple[StorageClass, ...]
    expected: str


CONTRACTS: Final[dict[Kind, Contract]] = {
    "integer": Contract(pg_type="bigint", takes=("integer",), expected="an integer"),
    "real": Contract(pg_type="double precision", takes=("real",), expected="a real"),
    "numeric": Contract(pg_type="numeric", takes=("integer", "real"), expected="a number"),
    "boolean": Contract(pg_type="boolean", takes=("integer",), expected="0 or 1"),
    "date": Contract(pg_type="date", takes=("text",), expected="a text YYYY-MM-DD"),
    "timestamp": Contract(pg_type="timestamp without time zone", takes=("text",), expected=f"a text {MOMENT}"),
    "timestamptz": Contract(
        pg_type="timestamp with time zone", takes=("text",), expected=f"a text {MOMENT} with Z or +HH:MM"
    ),
    "time": Contract(pg_type="time without time zone", takes=("text",), expected="a text HH:MM[:SS[.ffffff]]"),
    "text": Contract(pg_type="text", takes=("text", "integer"), expected="a text in UTF-8 without U+0000"),
    "blob": Contract(pg_type="bytea", takes=("blob",), expected="a blob"),
}
"""Kind → contract. A type that is observed becomes one of the others before anything is read."""

NAMED: Final[dict[str, Kind]] = {
    "BOOLEAN": "boolean",
    "BOOL": "boolean",
    "DATE": "date",
    "DATETIME": "timestamp",
    "DATETIME2": "timestamp",
    "SMALLDATETIME": "timestamp",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP WITHOUT TIME ZONE": "timestamp",
    "TIMESTAMPTZ": "timestamptz",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
    "DATETIMEOFFSET": "timestamptz",
    "TIME": "time",
    "TIME WITHOUT TIME ZONE": "time",
    "DECIMAL": "numeric",
    "DEC": "numeric",
    "NUMERIC": "numeric",
    "NUMBER": "numeric",
    "MONEY": "numeric",
    "JSON": "text",
    "UUID": "text",
    "GUID": "text",
    "UNIQUEIDENTIFIER": "text",
    "XML": "text",
    "STRING": "text",
    "INTERVAL": "observed",
    "POINT": "observed",
    "ANY": "observed",
    "": "observed",
}
"""Declared names with a meaning of their own, without their digits."""

AFFINITIES: Final[tuple[tuple[tuple[str, ...], Kind], ...]] = (
    (("INT",), "integer"),
    (("CHAR", "CLOB", "TEXT"), "text"),
    (("BLOB",), "blob"),
    (("REAL", "FLOA", "DOUB"), "real"),
)
"""Every other name, by what it contains, first match first, as SQLite decides a column's affinity
(sqlite.org/datatype3.html, 3.1); one that contains none of these is observed."""

_DIGITS: Final = re.compile(r"\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A declared type, understood.

    Attributes:
        kind: what its values must be.
        precision, scale: of a numeric with digits that a decimal of 38 holds; else None.
    """

    kind: Kind
    precision: int | None = None
    scale: int | None = None

    @property
    def pg_type(self) -> str:
        """The type of a column that is created for it."""
        digits = f"({self.precision},{self.scale})" if self.precision is not None else ""
        return CONTRACTS[self.kind].pg_type + digits


def read_declared(text: str) -> Declared:
    """Understand a type as it stands in CREATE TABLE, such as ``DECIMAL(10, 2)``; empty where there is none."""
    upper = text.upper()
    name = " ".join(re.sub(r"\([^)]*\)", " ", upper).split())
    named = NAMED.get(name)
    by_affinity = (kind for parts, kind in AFFINITIES if any(part in name for part in parts))
    kind: Kind = named if named is not None else next(by_affinity, "observed")
    digits = _DIGITS.search(upper) if kind == "numeric" else None
    if digits is None:
        return Declared(kind=kind)
    precision, scale = int(digits[1]), int(digits[2] or 0)
    if not 0 < precision <= MAX_DECIMAL_PRECISION or scale > precision:
        return Declared(kind=kind)
    return Declared(kind=kind, precision=precision, scale=scale)


def observe(classes: frozenset[str]) -> Declared | None:
    """Return what a column without a declared type is, by the storage classes of all its values; None: no one type.

    A column without values is a text: nothing can be lost.
    """
    if classes <= {"text"}:
        return Declared(kind="text")
    if classes == {"integer"}:
        return Declared(kind="integer")
    if classes == {"real"}:
        return Declared(kind="real")
    if classes == {"integer", "real"}:
        return Declared(kind="numeric")
    if classes == {"blob"}:
        return Declared(kind="blob")
    return None
