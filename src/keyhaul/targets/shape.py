"""Whether a table is still the one that the run has planned for: looked at under the lock that a chunk's rows take.

Rows are sent in binary. Into a column that has another type by now they would be other values, without an error: four
bytes of an integer are a real as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from keyhaul.errors import StopRunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Execute = Callable[..., Any]
    """Runs a statement and returns its rows."""

_COLUMNS = """select a.attrelid::bigint, a.attname::text, a.attnum::bigint, a.atttypid::bigint, a.atttypmod::bigint,
       format_type(a.atttypid, a.atttypmod)
  from pg_catalog.pg_attribute a
 where a.attrelid = pg_catalog.to_regclass({name}) and a.attnum > 0 and not a.attisdropped"""

_FILES = """select coalesce(string_agg(c.relfilenode::text, ' ' order by c.oid), '')
  from pg_catalog.pg_class c
 where c.oid = {oid} or c.oid in (select relid from pg_catalog.pg_partition_tree({oid}::oid::regclass))"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A table as it was when the run began.

    Attributes:
        oid: which table it is, whatever it is called.
        columns: name → number, type and modifier as the catalog has them.
        files: where its rows are stored; TRUNCATE changes that, and so does what writes the table anew.
    """

    oid: int
    columns: Mapping[str, tuple[int, int, int]]
    files: str = ""


def shape_of(execute: Execute, table: sql.Identifier) -> Shape | None:
    """Return a table's shape, None when it is not there."""
    rows = list(execute(_asked(table)))
    if not rows:
        return None
    oid = int(rows[0][0])
    files = list(execute(sql.SQL(_FILES).format(oid=sql.Literal(oid))))
    return Shape(oid=oid, columns={row[1]: _numbers(row) for row in rows}, files=str(files[0][0]))


def check_shape(execute: Execute, table: sql.Identifier, shape: Shape | None, names: Iterable[str]) -> None:
    """Lock a table as writing rows does, and see that it is still the one that was planned for.

    Args:
        execute: runs a statement in the chunk's transaction.
        table: where the rows go.
        shape: when the run began; None: nothing is known of it.
        names: the columns that are written.

    Raises:
        StopRunError: it is another table, or one of these columns is gone or has another type; says which.
        Exception: what `execute` raises, for one that is not there.
    """
    if shape is None:
        return
    execute(sql.SQL("lock table {} in row exclusive mode").format(table))
    rows = list(execute(_asked(table)))
    label = table.as_string(None).replace('"', "")
    if not rows or int(rows[0][0]) != shape.oid:
        msg = (
            f"load {label}: it is another table than when the run began (renamed, swapped, or dropped and made anew). "
            "See where the rows are that were loaded; --fresh starts a new run"
        )
        raise StopRunError(msg)
    now = {row[1]: (_numbers(row), str(row[5])) for row in rows}
    changed = []
    for name in names:
        if name not in now:
            changed.append(f"its column {name} is gone")
        elif name in shape.columns and now[name][0] != shape.columns[name]:
            same = now[name][0][1:] == shape.columns[name][1:]
            what = "is another one (renamed, or made anew)" if same else f"has another type now, {now[name][1]}"
            changed.append(f"its column {name} {what}")
    if changed:
        msg = (
            f"load {label}: {' and '.join(changed)}, since the run began. The same command goes on with it as it is now"
        )
        raise StopRunError(msg)


def _numbers(row: Sequence[Any]) -> tuple[int, int, int]:
    return int(row[2]), int(row[3]), int(row[4])


def _asked(table: sql.Identifier) -> sql.Composed:
    return sql.SQL(_COLUMNS).format(name=sql.Literal(table.as_string(None)))
