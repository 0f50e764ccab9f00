"""`etl plan` shows the route of each column and the DDL, names what cannot be carried, and changes nothing."""

from __future__ import annotations

import json

import psycopg
import pytest

TABLE = (
    "create type public.mood as enum ('sad', 'ok')",
    """create table public.orders (id serial primary key, amount numeric(12,2) not null default 0, wide numeric, doc jsonb, made timestamptz,
         mood public.mood, tags text[], plain int, doubled int generated always as (plain * 2) stored, xmin_copy xid, mode aclitem)""",
    "create index by_made on public.orders (made desc)",
    "insert into public.orders (amount, plain) select g, g from generate_series(1, 25) g",
)


def run(uri, *statements):
    with psycopg.connect(uri, autocommit=True) as conn:
        return [conn.execute(statement) for statement in statements][-1]


def relations(uri):
    """What is in a database beside the catalogs."""
    query = "select oid::regclass::text from pg_class where relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) and relkind in ('r', 'S', 'p') and relname not like 'pg_toast%'"
    kinds = "select typname from pg_type where typnamespace = 'public'::regnamespace"
    with psycopg.connect(uri) as conn:
        return [name for (name,) in [*conn.execute(query), *conn.execute(kinds)]]


def flat(text):
    return " ".join(text.split())


@pytest.fixture
def orders(databases):
    run(databases[0], *TABLE)
    return databases


def words(databases, *more):
    return ("--source", databases[0], "--target", databases[1], "--table", "public.orders", "--key", "id", *more)


def test_types_that_cannot_be_carried_are_named_with_what_to_do_and_nothing_is_created(etl, orders):
    for command in ("plan", "chunked"):
        done = etl(command, *words(orders))
        assert done.returncode == 2
        assert done.stdout == ""
        told = flat(done.stderr)
        assert (
            "read column xmin_copy: type xid is not in the type contract. Drop the column (transform: - drop: [xmin_copy])"
            in told
        )
        assert "read column mode: type aclitem is not in the type contract" in told
        assert "for example mode::text" in told
    assert relations(orders[1]) == []


def test_with_these_columns_dropped_the_plan_shows_routes_and_ddl_and_the_job_runs(etl, orders, tmp_path):
    file = tmp_path / "orders.yaml"
    job = {"source": {"uri": orders[0], "table": "public.orders"}, "target": {"uri": orders[1]}, "key": "id", "chunk": 10,
           "transform": [{"drop": ["xmin_copy", "mode"]}]}  # fmt: skip
    file.write_text(json.dumps(job), encoding="utf-8")
    planned = etl("plan", str(file), env={"COLUMNS": "200"})
    assert (planned.returncode, planned.stderr) == (0, "")
    told = flat(planned.stdout)
    for line in (
        "3 chunks, 25 rows",
        "id integer integer direct",
        "amount numeric(12,2) numeric(12,2) direct",
        "wide numeric numeric text: numeric without a precision of at most 38 digits",
        "doc jsonb jsonb direct",
        "made timestamp with time zone timestamp with time zone direct",
        "tags text[] text[] text: NULL elements",
        "plain integer integer direct",
        "doubled integer integer direct",
        "DDL that would run in the target before the load:",
        "create type \"public\".\"mood\" as enum ('sad', 'ok');",
        'create sequence "public"."orders_id_seq" as integer',
        '"amount" numeric(12,2) default 0 not null',
        'constraint "orders_pkey" PRIMARY KEY (id)',
        "and after it:",
        'create index "by_made" on "public"."orders" USING btree (made DESC);',
        "note: doubled: its values are copied and not generated",
    ):
        assert line in told, line
    assert relations(orders[1]) == []
    done = etl("run", str(file))
    assert done.returncode == 0, done.stderr
    query = "select id, amount, wide, doc, made, mood, tags, plain, doubled from public.orders order by id"
    assert run(orders[1], query).fetchall() == run(orders[0], query).fetchall()
    assert etl("plan", str(file), env={"COLUMNS": "200"}).stdout.count("public.orders is there; no DDL would run.") == 1


def test_the_plan_says_which_values_are_checked_and_what_is_rounded(etl, databases):
    run(databases[0], "create table public.t (id bigint primary key, a numeric(12,4), b text)")
    run(databases[1], "create table public.t (id integer primary key, a numeric(12,2), b varchar(5))")
    done = etl(
        "plan",
        "--source",
        databases[0],
        "--target",
        databases[1],
        "--table",
        "public.t",
        "--key",
        "id",
        "--set",
        "a = a * 2.5",
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = flat(done.stdout)
    assert "id bigint integer direct, each value checked" in told
    assert "b text character varying(5) direct, each value checked" in told
    assert "note: a is rounded to 2 decimals" in told
