"""What the private copy says of a table: its columns, its key, and what a created target does not get."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyhaul.errors import ConfigError
from keyhaul.quoting import quote_name
from keyhaul.sources.sqlite.declared import Declared, observe, read_declared

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROWID: Final = "_rowid"
"""The source's own column with the rowid, where a table has no primary key."""

MADE: Final = "_keyhaul_rows"
"""The table of the copy that holds the rows of a view or query."""

_ALIASES: Final = ("rowid", "_rowid_", "oid")
_VIRTUAL, _STORED, _HIDDEN = 2, 3, 1
"""PRAGMA table_xinfo, column hidden: of a virtual table, generated virtual, generated stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A column of the table.

    Attributes:
        name: as stored.
        text: its declared type as it stands there.
        declared: the same, understood; kind ``observed`` only where its values have no one type.
        not_null: SQLite guarantees that there is no NULL.
        classes: of an observed one, the storage classes that it has.
    """

    name: str
    text: str
    declared: Declared
    not_null: bool = False
    classes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the copy.

    Attributes:
        name: as stored; of a view or query the one that holds its rows.
        fields: in order.
        primary_key: in its own order; empty without one, and of a view or query.
        unique: lists of columns of which no two rows have the same values without a NULL.
        rowid: the name by which the rowid can be selected; empty where there is none.
        rowid_column: the column that is the rowid (INTEGER PRIMARY KEY), or empty.
        left_out: what a created target does not get, one sentence each.
        encoding: of the database's texts, as Python calls it.
    """

    name: str
    fields: tuple[Field, ...]
    primary_key: tuple[str, ...]
    unique: tuple[frozenset[str], ...]
    rowid: str
    rowid_column: str
    left_out: tuple[str, ...]
    encoding: str

    def field(self, name: str) -> Field | None:
        """Return the column called `name`, or None."""
        return next((field for field in self.fields if field.name == name), None)


def connect(copy: Path) -> sqlite3.Connection:
    """Open the private copy; a stranger's views and generated columns may call harmless functions only."""
    conn = sqlite3.connect(copy, isolation_level=None, check_same_thread=False)
    conn.execute("pragma trusted_schema = off")
    conn.execute("pragma synchronous = off")
    conn.execute("pragma journal_mode = off")
    return conn


def find_table(conn: sqlite3.Connection, name: str) -> str:
    """Return the stored name of a table; the rows of a view or virtual table are put into a table first.

    Raises:
        ConfigError: there is none of that name.
    """
    plain = name.removeprefix("main.")
    wanted = plain[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")+"', plain) else plain
    row = conn.execute(
        "select name, type, coalesce(sql, '') from sqlite_master"
        " where type in ('table', 'view') and lower(name) = lower(?) order by name <> ?",
        [wanted, wanted],
    ).fetchone()
    if row is None:
        names = conn.execute(
            "select name from sqlite_master where type in ('table', 'view') and name not like 'sqlite!_%' escape '!'"
            " order by 1 limit 10"
        ).fetchall()
        listed = ", ".join(found for (found,) in names) or "none"
        msg = f"read source table: {name} is not there. Tables in this file: {listed}. Change --table or source.table"
        raise ConfigError(msg)
    stored, kind, text = row
    if kind == "view" or re.match(r"\s*create\s+virtual\b", text, re.IGNORECASE):
        return put_down(conn, f"select * from {quote_name(stored)}", f"read source table {stored}")
    return str(stored)


def put_down(conn: sqlite3.Connection, query: str, what: str) -> str:
    """Run a SELECT once and put its rows into a table of the copy, with the types of the columns that it takes over.

    Raises:
        ConfigError: it is no SELECT, does not run, or two of its columns have one name.
    """
    try:
        conn.execute(f"create temp view {MADE}_view as {query}")
        fields = conn.execute(f"pragma temp.table_xinfo({MADE}_view)").fetchall()
        names = [str(row[1]) for row in fields]
        twice = sorted({name for name in names if [n.lower() for n in names].count(name.lower()) > 1 or ":" in name})
        if twice:
            msg = f"{what}: the column names {', '.join(twice)} are not unique, expected a name of its own for each"
            raise ConfigError(msg)
        listed = ", ".join(f"{quote_name(row[1])} {row[2]}" for row in fields)
        conn.execute(f"create table {MADE} ({listed})")
        conn.execute(f"insert into {MADE} select * from {MADE}_view")
    except sqlite3.Error as error:
        msg = f"{what}: {error}, expected one SELECT"
        raise ConfigError(msg) from error
    return MADE


def read_table(conn: sqlite3.Connection, name: str) -> Table:
    """Describe a table of the copy; a column without a declared type is described by all of its values."""
    rows = conn.execute(f"pragma table_xinfo({quote_name(name)})").fetchall()
    shown = [row for row in rows if row[6] != _HIDDEN]
    rowid = _rowid(conn, name, {str(row[1]).lower() for row in shown})
    keyed = sorted((row for row in shown if row[5]), key=lambda row: int(row[5]))
    primary_key = tuple(str(row[1]) for row in keyed)
    rowid_column = _rowid_column(conn, name, keyed, rowid)
    fields = []
    for row in shown:
        column, text = str(row[1]), str(row[2])
        sure = bool(row[3]) or column == rowid_column or (bool(row[5]) and not rowid)
        fields.append(_observed(conn, name, Field(name=column, text=text, declared=read_declared(text), not_null=sure)))
    unique, left_out = _indexes(conn, name)
    encoding = str(conn.execute("pragma encoding").fetchone()[0])
    return Table(
        name=name,
        fields=tuple(fields),
        primary_key=primary_key,
        unique=(*([frozenset(primary_key)] if primary_key else []), *unique),
        rowid=rowid,
        rowid_column=rowid_column,
        left_out=(*_extras(conn, name, shown), *left_out),
        encoding=encoding,
    )


def _rowid(conn: sqlite3.Connection, name: str, columns: set[str]) -> str:
    """Return the first name of the rowid that no column has; empty where the table is WITHOUT ROWID."""
    for alias in _ALIASES:
        if alias in columns:
            continue
        try:
            conn.execute(f"select {alias} from {quote_name(name)} limit 0")
        except sqlite3.OperationalError:
            return ""
        return alias
    return ""


def _rowid_column(conn: sqlite3.Connection, name: str, keyed: Sequence[Sequence[object]], rowid: str) -> str:
    """Return the column that is the rowid: declared INTEGER, alone in the key, and without an index for it."""
    if len(keyed) != 1 or not rowid or str(keyed[0][2]).upper() != "INTEGER":
        return ""
    indexes = conn.execute(f"pragma index_list({quote_name(name)})").fetchall()
    return "" if any(index[3] == "pk" for index in indexes) else str(keyed[0][1])  # INTEGER PRIMARY KEY DESC has one


def _observed(conn: sqlite3.Connection, name: str, field: Field) -> Field:
    if field.declared.kind != "observed":
        return field
    column = quote_name(field.name)
    query = f"select distinct typeof({column}) from {quote_name(name)} where {column} is not null"
    classes = frozenset(str(row[0]) for row in conn.execute(query))
    return replace(field, declared=observe(classes) or field.declared, classes=classes)


def _indexes(conn: sqlite3.Connection, name: str) -> tuple[list[frozenset[str]], list[str]]:
    """Return the columns of the unique indexes, and a sentence for each index."""
    unique, told = [], []
    for index in conn.execute(f"pragma index_list({quote_name(name)})").fetchall():
        if index[3] == "pk":
            continue
        columns = [row[0] for row in conn.execute("select name from pragma_index_info(?)", [index[1]])]
        if index[2] and not index[4] and None not in columns:
            unique.append(frozenset(map(str, columns)))
        label = f"index {index[1]}" if index[3] == "c" else f"unique ({', '.join(map(str, columns))})"
        told.append(f"{label}: not created")
    return unique, told


def _extras(conn: sqlite3.Connection, name: str, shown: Sequence[Sequence[object]]) -> list[str]:
    """Return what else a created target does not get."""
    told = [f"{row[1]}: its default is not created" for row in shown if row[4] is not None]
    told += [f"{row[1]}: its values are copied and not generated" for row in shown if row[6] in {_VIRTUAL, _STORED}]
    keys = conn.execute('select distinct id, "table" from pragma_foreign_key_list(?)', [name]).fetchall()
    told += [f"foreign key to {other}: not created" for _, other in keys]
    text = conn.execute("select coalesce(sql, '') from sqlite_master where name = ?", [name]).fetchone()
    if text and re.search(r"\bcheck\s*\(", text[0], re.IGNORECASE):
        told.append("check constraints: not created")
    if text and re.search(r"\bcollate\b", text[0], re.IGNORECASE):
        told.append("collations: not created")
    triggers = conn.execute("select name from sqlite_master where type = 'trigger' and tbl_name = ?", [name])
    told += [f"trigger {trigger}: not created" for (trigger,) in triggers]
    return told
