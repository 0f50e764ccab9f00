"""What a job's mode needs of its target: a unique index that says which rows are there already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from keyhaul.config.job import Target
    from keyhaul.targets.postgres import TargetTable

_UNIQUE: Final = """
select array_agg(a.attname::text order by k.n)
  from pg_index i cross join unnest(i.indkey::int2[]) with ordinality as k(attnum, n)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
 where i.indrelid = %s::regclass and i.indisunique and i.indisvalid and i.indimmediate
   and i.indpred is null and i.indexprs is null and k.n <= i.indnkeyatts
 group by i.indexrelid
"""


def with_mode(
    conn: psycopg.Connection[Any], target: TargetTable, settings: Target, written: Sequence[str]
) -> TargetTable:
    """Return the target with the job's mode, checked.

    Args:
        conn: to the target.
        target: as inspected.
        settings: of the job.
        written: the columns that the job writes.

    Raises:
        RefusedError: there is no unique index on the conflict columns, or a column is not written.
    """
    mode = settings.mode or "append"
    if mode in {"append", "replace"}:
        if settings.conflict or settings.newer_by:
            given = "conflict" if settings.conflict else "newer_by"
            msg = (
                f"load {target.label}: {given} is given, expected it with mode skip or upsert only. Give --mode upsert"
            )
            raise RefusedError(msg)
        return replace(target, mode=mode)
    if settings.newer_by and mode == "skip":
        msg = f"load {target.label}: newer_by is given with mode skip, which keeps what is there. Give --mode upsert"
        raise RefusedError(msg)
    conflict = tuple(settings.conflict or target.primary_key)
    if not conflict:
        msg = (
            f"load {target.label}: it has no primary key, and mode {mode} must know which rows are the same. "
            "Give --conflict"
        )
        raise RefusedError(msg)
    missing = [name for name in (*conflict, *filter(None, [settings.newer_by])) if name not in written]
    if missing:
        msg = (
            f"load {target.label}: mode {mode} looks at {', '.join(missing)}, which the job does not write. "
            "Change --conflict or --newer-by"
        )
        raise RefusedError(msg)
    if target.ddl.before:
        unique = [set(target.primary_key)]
    else:
        rows = conn.execute(_UNIQUE, [target.identifier.as_string(conn)]).fetchall()
        unique = [set(row[0]) for row in rows]
    if set(conflict) not in unique:
        listed = "; ".join(", ".join(sorted(names)) for names in unique if names) or "none"
        msg = (
            f"load {target.label}: no unique index on exactly {', '.join(conflict)}, expected one for mode {mode}. "
            f"There are: {listed}. Create it, or change --conflict"
        )
        raise RefusedError(msg)
    return replace(target, mode=mode, conflict=conflict, newer_by=settings.newer_by)
