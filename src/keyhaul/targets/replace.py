"""Mode replace: a fresh table beside the target, which takes its place in one transaction when it is full."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors, sql

from keyhaul.errors import RefusedError, first_line
from keyhaul.faults import pass_point
from keyhaul.targets.anatomy import describe, unknown_options
from keyhaul.targets.carry import Pair, Step, creation, exchange, identities, qualified
from keyhaul.targets.ddl import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from keyhaul.targets.ddl import AfterLoad
    from keyhaul.targets.postgres import TargetTable

LOCK_SECONDS: Final = 2
"""How long one try of the swap waits for a lock: everyone who comes after it waits as long, readers too."""

TRIES: Final = 6
"""With the pauses between them about 20 s; then the run stops, and the same command tries again."""

_CHANGED: Final = ". If the table was changed during the load, give --fresh to load it anew"

_ROLLED_BACK: Final = (errors.LockNotAvailable, errors.DeadlockDetected)

_TROUBLES: Final = """
select case when c.relkind = 'p' then 'it is partitioned'
            when c.relispartition then 'it is a partition'
            when exists (select from pg_inherits where c.oid in (inhrelid, inhparent))
            then 'it inherits, or is inherited from'
            when c.reloftype <> 0 then 'it is a typed table'
            when c.relpersistence = 't' then 'it is a temporary table' end
  from pg_class c where c.oid = %(t)s
union all
select 'it belongs to ' || r.rolname || ', whose rights this user has not: only the owner can put a table in its place'
  from pg_class c join pg_roles r on r.oid = c.relowner where c.oid = %(t)s and not pg_has_role(c.relowner, 'usage')
union all
select 'this user may not create tables in its schema' from pg_class c
 where c.oid = %(t)s and not has_schema_privilege(c.relnamespace, 'create')
union all
select 'it is published by ' || pubname || ', whose subscribers would not get the new rows'
  from pg_publication_tables p join pg_class c on c.oid = %(t)s
 where p.schemaname = c.relnamespace::regnamespace::name and p.tablename = c.relname
union all
select 'a subscription writes to it' from pg_subscription_rel where srrelid = %(t)s
union all
select 'it has security labels' from pg_seclabel where classoid = 'pg_class'::regclass and objoid = %(t)s
union all
select 'its index ' || indexrelid::regclass || ' is invalid (reindex or drop it)' from pg_index
 where indrelid = %(t)s and not indisvalid
union all
select 'it belongs to the extension ' || e.extname from pg_depend d join pg_extension e on e.oid = d.refobjid
 where d.classid = 'pg_class'::regclass and d.objid = %(t)s and d.deptype = 'e'
union all
select 'it has the rule ' || rulename from pg_rewrite where ev_class = %(t)s
"""

# What PostgreSQL would take away, or refuse to take away, with the old table.
_DEPENDENTS: Final = """
with own(class, object) as (
    select 'pg_class'::regclass::oid, %(t)s::oid
    union select 'pg_class'::regclass, reltoastrelid from pg_class where oid = %(t)s
    union select 'pg_class'::regclass, indexrelid from pg_index where indrelid = %(t)s
    union select 'pg_class'::regclass, d.objid from pg_depend d join pg_class s on s.oid = d.objid and s.relkind = 'S'
           where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = %(t)s
    union select 'pg_type'::regclass, y.oid from pg_class c join pg_type y on y.oid = c.reltype or y.typelem = c.reltype
           where c.oid = %(t)s and c.reltype <> 0 and (y.typelem = 0 or y.typcategory = 'A')
    union select 'pg_attrdef'::regclass, oid from pg_attrdef where adrelid = %(t)s
    union select 'pg_constraint'::regclass, oid from pg_constraint where conrelid = %(t)s
    union select 'pg_trigger'::regclass, oid from pg_trigger where tgrelid = %(t)s
    union select 'pg_policy'::regclass, oid from pg_policy where polrelid = %(t)s
    union select 'pg_rewrite'::regclass, oid from pg_rewrite where ev_class = %(t)s
    union select 'pg_statistic_ext'::regclass, oid from pg_statistic_ext where stxrelid = %(t)s
    union select 'pg_publication_rel'::regclass, oid from pg_publication_rel where prrelid = %(t)s
)
select distinct i.type || ' ' || i.identity
  from pg_depend d join own o on (d.refclassid, d.refobjid) = (o.class, o.object)
       left join pg_rewrite w on d.classid = 'pg_rewrite'::regclass and w.oid = d.objid
       cross join lateral pg_identify_object(case when w.oid is null then d.classid else 'pg_class'::regclass end,
                                             coalesce(w.ev_class, d.objid), 0) i
 where not exists (select from own where (class, object) = (d.classid, d.objid))
   and not exists (select from pg_trigger where d.classid = 'pg_trigger'::regclass and oid = d.objid and tgisinternal)
   and not exists (select from pg_class where oid = %(t)s and reltoastrelid = d.refobjid)
   and not (d.refclassid = 'pg_class'::regclass and exists (select from pg_depend s join pg_class q
            on q.oid = s.objid and q.relkind = 'S' where s.objid = d.refobjid and s.classid = 'pg_class'::regclass
            and s.refobjid = %(t)s and s.deptype = 'a'))
 order by 1
"""


def fresh_name(run_id: str) -> str:
    """Return the name of the table that a run loads in the place of its target."""
    return f"_keyhaul_{run_id}"


def refuse(conn: psycopg.Connection[Any], target: TargetTable) -> None:
    """Refuse a target that no fresh table can take the place of. Changes nothing.

    Raises:
        RefusedError: names everything that would be lost with the old table.
    """
    with conn.transaction(), qualified(conn):
        oid = _oid(conn, target, target.table)
        if oid is None:
            return  # it will be created, and nothing knows it yet
        problems = [row[0] for row in conn.execute(_TROUBLES, {"t": oid}).fetchall() if row[0]]
        dependents = [row[0] for row in conn.execute(_DEPENDENTS, {"t": oid}).fetchall()]
    if dependents:
        problems.append(f"these depend on it: {', '.join(dependents)}")
    if problems:
        msg = (
            f"replace {target.label}: {'; '.join(problems)}. Remove what is named here, "
            "or empty the table and give --mode append"
        )
        raise RefusedError(msg)


def preview(conn: psycopg.Connection[Any], target: TargetTable) -> tuple[list[str], list[str], list[str]]:
    """Return what would create the fresh table of a target that is there, what would complete it, and notes.

    The swap is rehearsed as at the start of a run, in a transaction that is taken back; not while the table is in use,
    for nobody is to wait behind a plan.

    Raises:
        RefusedError: no fresh table can take the target's place.
    """
    refuse(conn, target)
    target = replace(target, fresh=fresh_name("RUN"))
    notes = []
    with _telling(f"create {target.label} anew"), conn.transaction(force_rollback=True), qualified(conn):
        pair = _pair(conn, target)
        notes += _left_behind(conn, target, pair.oid)
        before, after = creation(conn, pair)
        try:
            with conn.transaction():
                conn.execute("set local lock_timeout = '100ms'")
                _create(conn, pair, before)
                _rehearse(conn, target, pair, after, nowait=True)
        except _ROLLED_BACK:
            notes.append(
                f"{target.label} is in use, so that the swap could not be rehearsed; a run does so at its start"
            )
    return [text for text in before if "'default_tablespace'" not in text], [step.sql for step in after], notes


def left_behind(conn: psycopg.Connection[Any], target: TargetTable) -> list[str]:
    """Return sentences on what a target has that a fresh table would not get, though nothing is refused for it."""
    with conn.transaction(), qualified(conn):
        oid = _oid(conn, target, target.table)
        return _left_behind(conn, target, oid) if oid is not None else []


def _left_behind(conn: psycopg.Connection[Any], target: TargetTable, oid: int) -> list[str]:
    return [
        f"{target.label} has the {what}, which is not known here and not carried" for what in unknown_options(conn, oid)
    ]


def _create(conn: psycopg.Connection[Any], pair: Pair, before: Sequence[str]) -> None:
    for statement in before:
        conn.execute(statement)
    for statement in identities(conn, pair):
        conn.execute(statement)


def _rehearse(
    conn: psycopg.Connection[Any], target: TargetTable, pair: Pair, after: Sequence[Step], *, nowait: bool = False
) -> None:
    with conn.transaction(force_rollback=True):
        _lock(conn, pair, nowait=nowait)
        for step in after:
            conn.execute(step.sql)
        _exchange(conn, target, pair)


def finish_empty(conn: psycopg.Connection[Any], target: TargetTable) -> tuple[AfterLoad, ...]:
    """Complete a target that was just created, so that the fresh table gets its definition from it.

    Returns:
        What is left for the end: the steps that advance its sequences.
    """
    finish(conn, target.schema, target.table, [step for step in target.ddl.after if step.kind != "sequence"])
    return tuple(step for step in target.ddl.after if step.kind == "sequence")


def create(conn: psycopg.Connection[Any], target: TargetTable, run_id: str) -> TargetTable:
    """Create the fresh table, in the caller's transaction, and rehearse the swap; returns the target that loads it.

    The rehearsal is taken back: it shows, before the first row, that nothing of the definition is lost. When
    the table is in use it is left out, for the swap looks again.

    Raises:
        RefusedError: the server does not let us, or the fresh table would be another.
    """
    refuse(conn, target)
    target = replace(target, fresh=fresh_name(run_id))
    with _telling(f"create {target.label} anew"), conn.transaction(), qualified(conn):
        pair = _pair(conn, target)
        before, after = creation(conn, pair)
        _create(conn, pair, before)
        with suppress(*_ROLLED_BACK):
            _rehearse(conn, target, pair, after)
    pass_point("fresh.created")
    return target


def complete(conn: psycopg.Connection[Any], target: TargetTable) -> int:
    """Build what waits for the rows of the fresh table and is not there yet, and gather its statistics.

    Returns:
        How many indexes and constraints were made.

    Raises:
        RefusedError: the rows or the server do not let one through; the target is as it was.
    """
    with _telling(f"finish the fresh {target.label}"):
        with conn.transaction(), qualified(conn):
            pair = _pair(conn, target)
            _, after = creation(conn, pair)
        made = 0
        for step in after:
            with conn.transaction():
                if not _is_there(conn, pair, step):
                    conn.execute("select set_config('default_tablespace', %s, true)", [step.tablespace])
                    conn.execute(step.sql)
                    made += step.kind != "statistics"
            pass_point("fresh.indexed")
        conn.execute(sql.SQL("analyze {}").format(target.loaded))
    pass_point("fresh.complete")
    return made


def swap(
    conn: psycopg.Connection[Any],
    target: TargetTable,
    last: Sequence[str],
    done: Callable[[psycopg.Connection[Any]], None],
    stopping: Callable[[float], bool],
) -> int:
    """Put the fresh table in the place of the old one, which is dropped, in one transaction.

    Args:
        conn: in autocommit mode.
        target: with `fresh`.
        last: statements that run in the transaction when the table has its name: they advance sequences.
        done: writes the run's last word into the ledger, in the same transaction.
        stopping: waits some seconds for a person who wants to stop; returns whether there is one.

    Returns:
        The rows of the old table by its statistics; -1 when there are none.

    Raises:
        RefusedError: the table was changed while the fresh one was loaded, or others held it all the time.
        psycopg.OperationalError: the connection was lost, and the outcome with it.
    """
    for attempt in range(1, TRIES + 1):
        try:
            with _telling(f"replace {target.label}", _CHANGED), conn.transaction(), qualified(conn):
                _lock(conn, _pair(conn, target))
                pair = _pair(conn, target)  # another run may have swapped its own table in while this one waited
                pass_point("swap.locked")
                refuse(conn, target)
                row = conn.execute("select reltuples::bigint from pg_class where oid = %s", [pair.oid]).fetchone()
                _exchange(conn, target, pair)
                for statement in last:
                    conn.execute(statement)
                done(conn)
                pass_point("swap.before")
            pass_point("swap.after")
        except _ROLLED_BACK:
            if stopping(min(attempt / 2, 3)):
                break
        else:
            return int(row[0]) if row else -1
    msg = f"replace {target.label}: other sessions held it for {TRIES} tries of {LOCK_SECONDS} s, so the old rows stay"
    raise RefusedError(f"{msg}. End their transactions and run the same command again: only the swap is left")


def leftovers(conn: psycopg.Connection[Any], names: Sequence[str]) -> tuple[sql.Identifier, ...]:
    """Return which of the ledger's fresh tables are still there, `names` being quoted ones."""
    found = conn.execute(
        "select parse_ident(n) from unnest(%s::text[]) n where to_regclass(n) is not null", [list(names)]
    )
    return tuple(sql.Identifier(*row[0]) for row in found.fetchall())


def _exchange(conn: psycopg.Connection[Any], target: TargetTable, pair: Pair) -> None:
    """Run the swap's statements and compare the table before and after."""
    before = describe(conn, pair.oid)
    for statement in exchange(conn, pair):
        conn.execute(statement)
    after = describe(conn, _oid(conn, target, target.table) or 0)
    if before != after:
        different = "; ".join(sorted(before ^ after)[:4])
        msg = (
            f"replace {target.label}: the fresh table would not be the same as the old one, in: {different}{_CHANGED}; "
            "else empty it and give --mode append"
        )
        raise RefusedError(msg)


def _lock(conn: psycopg.Connection[Any], pair: Pair, *, nowait: bool = False) -> None:
    if not nowait:
        conn.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
    lock = f"lock table {pair.old_name}, {pair.new_name} in access exclusive mode"
    conn.execute(f"{lock} nowait" if nowait else lock)


def _pair(conn: psycopg.Connection[Any], target: TargetTable) -> Pair:
    oid = _oid(conn, target, target.table)
    if oid is None:
        msg = f"replace {target.label}: it is not there any more. Give --fresh to start a new run"
        raise RefusedError(msg)
    return Pair(schema=target.schema, table=target.table, fresh=target.fresh, oid=oid)


def _oid(conn: psycopg.Connection[Any], target: TargetTable, table: str) -> int | None:
    name = sql.Identifier(target.schema, table).as_string(conn)
    row = conn.execute("select to_regclass(%s)::oid", [name]).fetchone()
    return row[0] if row else None


def _is_there(conn: psycopg.Connection[Any], pair: Pair, step: Step) -> bool:
    queries = {
        "constraint": "select from pg_constraint where conrelid = to_regclass(%(new)s) and conname = %(name)s",
        "index": "select from pg_class where oid = to_regclass(format('%%I.%%I', %(schema)s::text, %(name)s::text))",
        "statistics": "select from pg_statistic_ext where stxrelid = to_regclass(%(new)s) and stxname = %(name)s",
    }
    return conn.execute(queries[step.kind], {**pair.values(), "name": step.name}).fetchone() is not None


@contextmanager
def _telling(what: str, advice: str = "") -> Iterator[None]:
    """Say a server's refusal in one line; locks and lost connections are for those who can try again."""
    try:
        yield
    except _ROLLED_BACK:
        raise
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        msg = f"{what}: {first_line(error)}{advice}"
        raise RefusedError(msg) from error
