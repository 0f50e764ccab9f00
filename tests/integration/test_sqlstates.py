"""Whose error a target's SQLSTATE tells: a row's costs the row, and what no further try gets past promises none."""

from pathlib import Path

import psycopg
import pytest
from moving import job, move, rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.errors import HOPELESS, RefusedError
from keyhaul.targets import sqlstates

ROWS = "insert into public.t select g, 'x' from generate_series(1, 2000) g"


def tables(databases, *more):
    for uri in databases:
        run_sql(uri, "create table public.t (id int primary key, v text)")
    run_sql(databases[0], ROWS)
    run_sql(databases[1], *more)


def raising(condition, state):
    return (
        f"create function public.f() returns trigger language plpgsql as $$ begin if {condition} then raise exception 'no' using errcode = '{state}'; end if; return new; end $$",
        "create trigger f before insert on public.t for each row execute function public.f()",
    )


@pytest.mark.parametrize("loader", ["copy", "adbc"])
@pytest.mark.parametrize("state", ["50001", "U0001", "XX000", "0A000", "42P01", "55000", "21000", "38001"])
def test_an_error_that_a_trigger_raises_for_one_row_costs_that_row(databases, state, loader):
    tables(databases, *raising("new.id = 700", state))
    report = move(databases, "public.t", mode="append", chunk="500", loader=loader)
    assert (report.outcome, report.counts.loaded, report.quarantined_by_reason) == (
        "done",
        1999,
        {f"sqlstate:{state}": 1},
    )


@pytest.mark.parametrize("number", [3, 100])
def test_many_rows_that_an_index_cannot_hold_are_found_and_only_they(databases, number):
    tables(databases, "create index on public.t (v)")
    run_sql(databases[0], f"update public.t set v = (select string_agg(md5(random()::text || id || g), '') from generate_series(1, 200) g) where id % 20 = 0 and id <= {20 * number}")  # fmt: skip
    report = move(databases, "public.t", mode="append", chunk="500")
    assert (report.outcome, report.counts.loaded, report.quarantined_by_reason) == ("done", 2000 - number, {"t_v_idx": number})  # fmt: skip
    assert "SQLSTATE 54000" in rows(databases[1], "select message from keyhaul.quarantine limit 1")[0][0]


def test_an_error_that_all_rows_share_fails_the_chunk_and_promises_nothing(databases):
    tables(databases, *raising("true", "0A000"))
    report = move(databases, "public.t", mode="append", chunk="2000")
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("stopped", 0, 0)
    assert report.failed[0].error == f"load chunk: no (SQLSTATE 0A000), for each of its 2,000 records. {HOPELESS}"
    assert rows(databases[1], "select count(*) from keyhaul.quarantine") == [(0,)]


@pytest.mark.parametrize("state", ["53100", "58030", "XX001"])
def test_an_error_of_the_server_is_no_rows_fault(databases, state):
    tables(databases, *raising("new.id % 10 = 0", state))
    report = move(databases, "public.t", mode="append", chunk="2000")
    assert (report.outcome, report.counts.quarantined) == ("stopped", 0)
    assert f"SQLSTATE {state}" in report.failed[0].error
    assert HOPELESS not in report.failed[0].error


@pytest.fixture
def latin(server):
    name = "latin_one"
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        conn.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0")
    yield server.uri(name)
    with psycopg.connect(server.uri("postgres"), autocommit=True) as conn:
        conn.execute(f"drop database {name} with (force)")


def test_a_character_that_the_targets_encoding_lacks_costs_its_row(database, server, latin):
    databases = database(server, "source"), latin
    tables(databases)
    run_sql(databases[0], "update public.t set v = 'é5 €\\' where id % 100 = 7")
    report = move(databases, "public.t", mode="append", chunk="500")
    assert (report.outcome, report.counts.loaded, report.quarantined_by_reason) == (
        "done",
        1980,
        {"sqlstate:22P05": 20},
    )
    kept = rows(databases[1], "select data->>'v', message from keyhaul.quarantine where key = '7'")
    assert kept[0][0] == "é5 \\u20ac\\"
    assert "characters that the ledger's encoding lacks stand as \\u" in kept[0][1]
    compared = verify(job(databases, mode="append"))
    assert (compared.changed, compared.missing, compared.extra, compared.rows) == (0, 0, 0, 1980)


def test_a_key_that_the_ledgers_encoding_lacks_is_not_written_as_another(database, server, latin):
    databases = database(server, "source"), latin
    for uri in databases:
        run_sql(uri, "create table public.t (id text primary key)")
    run_sql(databases[0], "insert into public.t values ('a'), ('b€')")
    report = move(databases, "public.t", mode="append")
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", 1, 1)
    assert rows(databases[1], "select key, data->>'id' from keyhaul.quarantine") == [(None, "b\\u20ac")]


def test_upsert_is_refused_where_it_would_update_an_identity_that_is_always_generated(databases, etl):
    for uri in databases:
        run_sql(uri, "create table public.t (code text primary key, n int generated always as identity)")
    run_sql(databases[0], "insert into public.t (code) select 'c' || g from generate_series(1, 20) g")
    words = ("--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "code", "--mode", "upsert")  # fmt: skip
    planned = etl("plan", *words)
    assert planned.returncode == 2
    assert "mode upsert would update n, which is GENERATED ALWAYS AS IDENTITY" in " ".join(planned.stderr.split())
    with pytest.raises(RefusedError, match="Leave it out"):
        move(databases, "public.t", key="code", mode="upsert")
    assert move(databases, "public.t", key="code", mode="skip").counts.loaded == 20


def test_a_right_that_is_missing_promises_no_further_try(databases, etl):
    tables(databases, *raising("false", "P0001"), "create table public.log (id int)")
    run_sql(databases[1], "create or replace function public.f() returns trigger language plpgsql as $$ begin insert into public.gone values (1); return new; end $$")  # fmt: skip
    done = etl("chunked", "--source", databases[0], "--target", databases[1], "--table", "public.t", "--key", "id", "--mode", "append")  # fmt: skip
    assert done.returncode == 3
    assert "when what failed is mended" in done.stdout
    assert "SQLSTATE 42P01" in done.stdout


def test_the_guarantees_have_the_whole_list():
    page = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
    assert sqlstates.table() in page


def test_a_whole_state_counts_before_its_class_and_an_unknown_one_is_a_rows():
    asked = ("53300", "53100", "40002", "40P01", "42501", "42P01", "XX000", "XX001", "22P05", "Z9999", "57P01", "57014")
    meant = ["again", "server", "row", "again", "perhaps", "statement", "perhaps", "server", "row", "row", "again", "server"]  # fmt: skip
    assert [sqlstates.whose(state) for state in asked] == meant
