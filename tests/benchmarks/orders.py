"""The data of the benchmark: the orders, the finished rows, the target, and whether a contender's rows are those.

Of every 200 rows one is another copy of an order that was there 100 rows before, with a newer `updated_at`: 0.5 %
duplicates. One amount of 1,000 is below zero; some of those are a newer copy, whose older one must then be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA = "keyhaul_bench"
LEDGER = "keyhaul_bench_ledger"
DLT = "keyhaul_bench_dlt"
SOURCE_TABLE = f"{SCHEMA}.orders"
FINISHED_TABLE = f"{SCHEMA}.finished"
TARGET_TABLE = f"{SCHEMA}.orders_loaded"
QUARANTINE_TABLE = f"{SCHEMA}.quarantine"

Expected = Literal["finished", "negative too", "copies too", "as they are"]
"""Which rows a contender has to give: those of the whole job, or of the job without a part."""

Target = Literal["indexed", "plain", "missing"]
"""The target before a run: an empty table with a primary key, the same with an index that is not unique, no table."""

COLUMNS = {
    "id": "bigint",
    "customer_id": "bigint",
    "status": "text",
    "amount": "numeric(12,2)",
    "currency": "text",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "note": "text",
    "net": "numeric(14,3)",
}
"""What is loaded; `net` is computed, the other eight are read."""

NEWEST = "select distinct on (id) * from {table} where {where} order by id, updated_at desc"
"""The rows that stay: the newest of each id, of those that no rule sets aside."""


def finished_query(where: str = "amount >= 0", table: str = SOURCE_TABLE) -> str:
    """Return SQL for the whole job, done by the database."""
    newest = NEWEST.format(table=table, where=where)
    return (
        "select id, customer_id, upper(status) as status, amount, currency, created_at, updated_at, note,"
        f" (amount * 0.8)::numeric(14,3) as net from ({newest}) as newest"
    )


ALL_ROWS = f"select {', '.join(COLUMNS).replace('status', 'upper(status) as status').replace(', net', '')}, (amount * 0.8)::numeric(14,3) as net from {SOURCE_TABLE}"
EXPECTED: dict[Expected, str] = {
    "finished": finished_query(),
    "negative too": finished_query("true"),
    "copies too": f"{ALL_ROWS} where amount >= 0",
    "as they are": f"select id, customer_id, status, amount, currency, created_at, updated_at, note, null::numeric as net from {SOURCE_TABLE}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A set of rows: how many, and the sum of their hashes, which no order changes."""

    rows: int
    hash: str


def make_source(uri: str, rows: int, *, finished: bool = True) -> None:
    """Fill the source with orders and, if asked, with the `finished` rows that the raw COPY sends."""
    make_orders(uri, rows)
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(f"create index on {SOURCE_TABLE} (id)")
        if finished:
            conn.execute(f"create table {FINISHED_TABLE} as {finished_query()}")
            conn.execute(f"create index on {FINISHED_TABLE} (id)")
            conn.execute(f"vacuum analyze {FINISHED_TABLE}")


def make_orders(uri: str, rows: int) -> None:
    """Fill the source with orders, and with nothing else."""
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(f"drop schema if exists {SCHEMA} cascade")
        conn.execute(f"create schema {SCHEMA}")
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items() if name != "net")
        conn.execute(f"create table {SOURCE_TABLE} ({columns})")
        conn.execute(_FILL, {"rows": rows})
        conn.execute(f"vacuum analyze {SOURCE_TABLE}")


_FILL = f"""
insert into {SOURCE_TABLE}
select case when i %% 200 = 199 then i - 99 else i + 1 end,
       (i * 7919) %% 250000,
       (array['new', 'paid', 'sent', 'delivered', 'returned'])[1 + i %% 5],
       case when i %% 1000 = 7 or i %% 10000 = 199 then -1 else 1 end * ((i * 104729) %% 9999999 + 1)::numeric / 100,
       (array['EUR', 'USD', 'GBP'])[1 + i %% 3],
       timestamptz '2024-01-01 00:00:00+00' + i * interval '1.25 second',
       timestamptz '2024-01-01 06:00:00+00' + i * interval '1.5 second' + (i %% 1000) * interval '1 microsecond',
       case when i %% 10 <> 3 then 'order ' || md5(i::text) || case when i %% 50 = 0 then ' ü' else '' end end
  from generate_series(0, %(rows)s::bigint - 1) as i
"""


def make_target(uri: str, target: Target) -> None:
    """Leave the target database as a run finds it: no ledger, no rows, the table as `target` says."""
    with psycopg.connect(uri, autocommit=True) as conn:
        for schema in (LEDGER, DLT, f"{DLT}_staging"):
            conn.execute(f"drop schema if exists {schema} cascade")
        conn.execute(f"create schema if not exists {SCHEMA}")
        conn.execute(f"drop table if exists {TARGET_TABLE}, {QUARANTINE_TABLE}")
        conn.execute(f"create table {QUARANTINE_TABLE} (data jsonb)")
        if target == "missing":
            return
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        conn.execute(f"create table {TARGET_TABLE} ({columns})")
        if target == "indexed":
            conn.execute(f"alter table {TARGET_TABLE} add primary key (id)")
        else:
            conn.execute(f"create index on {TARGET_TABLE} (id)")


def checkpoint(uri: str) -> bool:
    """Write what is dirty, so that no contender pays for another; False when the login may not."""
    with psycopg.connect(uri, autocommit=True) as conn:
        try:
            conn.execute("checkpoint")
        except psycopg.errors.InsufficientPrivilege:
            return False
    return True


def expected(uri: str, kinds: set[Expected], up_to: int | None = None) -> dict[Expected, Digest]:
    """Return, by SQL in the source, what each kind of contender has to give; `up_to` an id, or all."""
    with psycopg.connect(uri, autocommit=True) as conn:
        return {kind: digest(conn, EXPECTED[kind], up_to) for kind in kinds}


def digest(conn: psycopg.Connection[Any], query: str, up_to: int | None = None) -> Digest:
    """Return the digest of a query's rows, each value in the type that the target's column has."""
    conn.execute("set timezone = 'UTC'")
    values = ", ".join(f"{name}::{kind}" for name, kind in COLUMNS.items())
    limit = "" if up_to is None else f"where id <= {up_to}"
    found = conn.execute(
        f"select count(*), coalesce(sum(hashtextextended(row({values})::text, 0)::numeric), 0)::text"
        f" from ({query}) as q {limit}"
    ).fetchone()
    if found is None:
        raise RuntimeError(query)
    return Digest(rows=found[0], hash=found[1])


def loaded(uri: str, table: str) -> Digest:
    """Return the digest of what a contender has loaded; a column that it did not load counts as NULL."""
    with psycopg.connect(uri, autocommit=True) as conn:
        found = conn.execute(sql.SQL("select * from {} limit 0").format(sql.Identifier(*table.split(".")))).description
        there = {column.name for column in found or ()}
        columns = ", ".join(name if name in there else f"null as {name}" for name in COLUMNS)
        return digest(conn, f"select {columns} from {table}")


def steps(uri: str) -> dict[str, float]:
    """Return the seconds of each step of keyhaul's last run, summed over the workers; empty without a ledger."""
    with psycopg.connect(uri, autocommit=True) as conn:
        there = conn.execute("select to_regclass(%s)", [f"{LEDGER}.chunks"]).fetchone()
        if not there or there[0] is None:
            return {}
        found = conn.execute(
            f"select sum(read_seconds), sum(transform_seconds), sum(stage_seconds), sum(load_seconds),"
            f" (select workers from {LEDGER}.runs limit 1),"
            f" extract(epoch from max(ended_at) - min(started_at)) from {LEDGER}.chunks"
        ).fetchone()
    names = ("read", "transform", "stage", "load", "workers", "first to last chunk")
    return {name: round(float(value or 0), 3) for name, value in zip(names, found or (), strict=False)}


def quarantined(uri: str) -> int:
    """Return the records in the quarantine of keyhaul's ledger."""
    return _count(uri, f"{LEDGER}.quarantine")


def negative(uri: str) -> int:
    """Return the orders of the source that belong into the quarantine."""
    return _count(uri, f"{SOURCE_TABLE} where amount < 0")


def _count(uri: str, what: str) -> int:
    with psycopg.connect(uri, autocommit=True) as conn:
        found = conn.execute(f"select count(*) from {what}").fetchone()
    return int(found[0]) if found else 0


def versions(uri: str) -> str:
    """Return the server's version."""
    with psycopg.connect(uri, autocommit=True) as conn:
        found = conn.execute("select current_setting('server_version')").fetchone()
    return str(found[0]) if found else ""


def drop_everything(*uris: str) -> None:
    """Remove what the benchmark has made."""
    for uri in uris:
        with psycopg.connect(uri, autocommit=True) as conn:
            for schema in _schemas():
                conn.execute(f"drop schema if exists {schema} cascade")


def _schemas() -> Iterator[str]:
    yield from (SCHEMA, LEDGER, DLT, f"{DLT}_staging")
