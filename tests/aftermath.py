"""What a run left behind: the rows, what its ledger says of them, and what should be gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import support
from psycopg import sql

if TYPE_CHECKING:
    from pathlib import Path


def fetch(uri: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement and return its rows."""
    with psycopg.connect(uri, autocommit=True) as connection:
        cursor = connection.execute(query, values or None)
        return cursor.fetchall() if cursor.description else []


def value(uri: str, query: str, *values: object) -> Any:
    """Return the first column of the first row."""
    return fetch(uri, query, *values)[0][0]


def checksum(uri: str, relation: str) -> tuple[int, int]:
    """Return the number of rows and a sum over their hashes: equal for equal rows in any order."""
    return fetch(uri, f"select count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) from {relation} t")[0]


def check_ledger(uri: str, table: str) -> dict[str, int]:
    """Assert that the one run of this ledger is done and agrees with `table`; return its balance."""
    assert fetch(uri, "select status from keyhaul.runs where status <> 'abandoned'") == [("done",)]
    chunks = fetch(
        uri,
        "select c.chunk, c.status, c.rows_quarantined, (select count(*) from keyhaul.quarantine q"
        " where (q.run_id, q.chunk) = (c.run_id, c.chunk)), c.error from keyhaul.chunks c"
        " join keyhaul.runs r using (run_id) where r.status = 'done' order by c.chunk",
    )
    assert uncovered(uri) == []
    assert {status for _, status, *_ in chunks} == {"done"}
    assert {error for *_, error in chunks} == {None}
    assert [chunk for chunk, _, counted, held, _ in chunks if counted != held] == []
    names = ("read", "loaded", "unchanged", "duplicate", "filtered", "quarantined")
    sums = ", ".join(f"sum(rows_{name})::bigint" for name in names)
    (row,) = fetch(
        uri, f"select {sums} from keyhaul.chunks join keyhaul.runs using (run_id) where runs.status = 'done'"
    )
    counts = dict(zip(names, row, strict=True))
    assert counts["read"] == sum(row[1:])
    assert counts["loaded"] == value(uri, f"select count(*) from {table}")
    assert counts["quarantined"] == value(uri, "select count(*) from keyhaul.quarantine")
    return counts


def uncovered(uri: str) -> list[str]:
    """Return where the ranges of a ledger's done runs leave a gap in the key space, overlap, or are not the plan's."""
    wrong = []
    for run_id, planned in fetch(
        uri, "select run_id, chunks_planned from keyhaul.runs where status = 'done' and kind = 'run'"
    ):
        free, upper, ended = 1, None, False
        for chunk, cuts, kind, lower, here in fetch(
            uri,
            "select chunk, cuts, kind, lower_bound, upper_bound from keyhaul.chunks where run_id = %s order by 1",
            run_id,
        ):
            if chunk != free:
                wrong.append(f"chunk {chunk} where cut {free} begins")
            if ended and kind == "range":
                wrong.append(f"chunk {chunk} after one that is open above")
            if kind == "range" and (lower != upper or (chunk > 1 and lower is None)):
                wrong.append(f"chunk {chunk} begins at {lower}, the one before ends at {upper}")
            free, upper, ended = chunk + cuts, here, kind == "range" and here is None
        if free != planned + 1:
            wrong.append(f"{free - 1} cuts, the plan has {planned}")
        if upper is not None:
            wrong.append(f"nothing from {upper} on")
    return wrong


def wait_until_nothing_is_left(*uris: str) -> None:
    """Wait until no session, lock or temporary table of keyhaul is in these databases; fail if one stays."""
    for uri in uris:
        support.wait_until(lambda uri=uri: sessions(uri) == [], "keyhaul's sessions to end")
        locks = (
            "select count(*) from pg_locks where locktype = 'advisory'"
            " and database = (select oid from pg_database where datname = current_database())"
        )
        assert value(uri, locks) == 0
        assert value(uri, "select count(*) from pg_class where relpersistence = 't'") == 0


def sessions(uri: str) -> list[tuple[Any, ...]]:
    """Return application_name and state of keyhaul's sessions in this database."""
    return fetch(
        uri,
        "select application_name, state from pg_stat_activity"
        " where datname = current_database() and application_name like 'keyhaul%%' and pid <> pg_backend_pid()",
    )


def terminate(uri: str, pattern: str) -> int:
    """End the sessions of this database whose application_name is like `pattern`; return their number."""
    return value(
        uri,
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and application_name like %s and pid <> pg_backend_pid()",
        pattern,
    )


def contents(uri: str) -> list[tuple[Any, ...]]:
    """Return every schema, table, view, type and function of a database that its users made, and each table's rows."""
    made = fetch(
        uri,
        "select 'schema', nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"
        " union all select relkind::text, oid::regclass::text from pg_class where relnamespace in"
        " (select oid from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema')"
        " union all select 'function', oid::regprocedure::text from pg_proc where pronamespace = 'public'::regnamespace"
        " order by 1, 2",
    )
    return [(kind, name, checksum(uri, name) if kind == "r" else None) for kind, name in made]


def text_of_ledger(uri: str) -> str:
    """Return everything that the ledger holds, as text."""
    tables = [name for (name,) in fetch(uri, "select tablename from pg_tables where schemaname = 'keyhaul'")]
    rows = [sql.SQL("select t::text from keyhaul.{} t").format(sql.Identifier(name)) for name in tables]
    with psycopg.connect(uri) as connection:
        return "\n".join(text for query in rows for (text,) in connection.execute(query))


def files_in(folder: Path) -> list[str]:
    """Return the names of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
