"""What a job's mode needs of its target: a unique index that says which rows are there already."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import RefusedError
from keyhaul.postgres.pgtypes import family

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import psycopg

    from keyhaul.config.job import Target
    from keyhaul.targets.postgres import TargetTable

_ALWAYS: Final = (
    "select attname::text from pg_attribute where attrelid = %s::regclass and attidentity = 'a' order by attnum"
)

_UNIQUE: Final = """
select array_agg(a.attname::text order by k.n), coalesce((to_jsonb(i)->>'indnullsnotdistinct')::bool, false)
  from pg_index i cross join unnest(i.indkey::int2[]) with ordinality as k(attnum, n)
  join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
 where i.indrelid = %s::regclass and i.indisunique and i.indisvalid and i.indimmediate
   and i.indpred is null and i.indexprs is null and k.n <= i.indnkeyatts
 group by i.indexrelid, to_jsonb(i)
"""

_LOOSE: Final = frozenset({"citext", "float4", "float8", "interval", "jsonb", "hstore"})
"""Types whose = is true of values that differ: -0 and 0, one day and 24 hours, 1.0 and 1.00 in jsonb."""

_LOOSE_TEXTS: Final = """
select a.attname::text from pg_attribute a join pg_collation c on c.oid = a.attcollation
 where a.attrelid = %s::regclass and not c.collisdeterministic
"""


def with_mode(
    conn: psycopg.Connection[Any],
    target: TargetTable,
    settings: Target,
    written: Sequence[str],
    never_null: Collection[str] = (),
) -> TargetTable:
    """Return the target with the job's mode, checked.

    Args:
        conn: to the target.
        target: as inspected.
        settings: of the job.
        written: the columns that the job writes.
        never_null: those of them that the source has a value for in each row.

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
    one_null = _check_unique(conn, target, conflict, mode)
    if mode == "upsert" and not target.ddl.before:
        _refuse_identity(conn, target, set(written) - set(conflict))
    nullable = tuple(
        column.name
        for column in target.columns
        if column.name in conflict and not (column.not_null or column.null_refused)
        if column.name not in never_null and not one_null
    )
    return replace(
        target,
        mode=mode,
        conflict=conflict,
        newer_by=settings.newer_by,
        null_conflict=nullable,
        rewritten=_rewritten(conn, target, conflict) if mode == "upsert" else (),
    )


def _check_unique(conn: psycopg.Connection[Any], target: TargetTable, conflict: Sequence[str], mode: str) -> bool:
    """Return whether the unique index on the conflict columns takes two NULLs for the same.

    Raises:
        RefusedError: there is no such index.
    """
    unique = [(target.primary_key, False)]
    if not target.ddl.before:
        unique = conn.execute(_UNIQUE, [target.identifier.as_string(conn)]).fetchall()
    found = [one_null for names, one_null in unique if set(names) == set(conflict)]
    if not found:
        listed = "; ".join(", ".join(sorted(names)) for names, _ in unique if names) or "none"
        msg = (
            f"load {target.label}: no unique index on exactly {', '.join(conflict)}, expected one for mode {mode}. "
            f"There are: {listed}. Create it, or change --conflict"
        )
        raise RefusedError(msg)
    return any(found)


def _rewritten(conn: psycopg.Connection[Any], target: TargetTable, conflict: Sequence[str]) -> tuple[str, ...]:
    """Return the conflict columns of which two values can be equal and differ."""
    texts = set[str]()
    if not target.ddl.before:
        texts = {row[0] for row in conn.execute(_LOOSE_TEXTS, [target.identifier.as_string(conn)])}
    return tuple(
        column.name
        for column in target.columns
        if column.name in conflict
        and (
            column.name in texts
            or column.base_type in _LOOSE
            or (column.base_type == "numeric" and column.scale is None)
            or (column.base_type == "bpchar" and column.length is None)
            or family(column) in {"array", "range", "multirange", "composite"}
        )
    )


def _refuse_identity(conn: psycopg.Connection[Any], target: TargetTable, updated: set[str]) -> None:
    """Refuse to update a column that PostgreSQL lets nobody update.

    Raises:
        RefusedError: names it.
    """
    found = conn.execute(_ALWAYS, [target.identifier.as_string(conn)]).fetchall()
    always = [name for (name,) in found if name in updated]
    if always:
        name = ", ".join(always)
        msg = (
            f"load {target.label}: mode upsert would update {name}, which is GENERATED ALWAYS AS IDENTITY and no "
            f"conflict column: PostgreSQL lets nobody do that. Leave it out (transform: - drop: [{name}]), or make it "
            "GENERATED BY DEFAULT in the target"
        )
        raise RefusedError(msg)
