"""Sources and targets that would lose or change rows without an error: refused, or told after the load."""

import psycopg
import pytest
from moving import move, rows, run_sql

from keyhaul.errors import ConfigError, RefusedError


@pytest.fixture
def log(databases):
    run_sql(databases[0], "create table public.log (id int primary key, msg text)",
            "insert into public.log select g, 'm' || g from generate_series(1, 500) g")  # fmt: skip
    return databases


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("select row_number() over () as id, msg from public.log", "row_number"),
        ("select row_number() over (partition by msg) as id, msg from public.log", "row_number"),
        ("select * from public.log limit 100", "LIMIT"),
        ("select * from public.log fetch first 10 rows only", "LIMIT"),
        ("select (random() * 100)::int as id, msg from public.log", "random"),
        ("select * from public.log tablesample system (50)", "tablesample"),
    ],
)
def test_a_query_that_gives_other_rows_each_time_is_refused(log, query, why):
    with pytest.raises(RefusedError, match=rf"{why}.*each chunk runs it anew"):
        move(log, None, query=query, into="public.out")
    run_sql(log[0], f"create view public.shifting as {query}")
    with pytest.raises(RefusedError, match="each chunk runs it anew"):
        move(log, "public.shifting")


@pytest.mark.parametrize(
    "query",
    [
        "select row_number() over (order by id) as id, msg from public.log",
        "select * from public.log order by id limit 100",
        "select id, 'limit 5 random()' as msg from public.log -- limit 3",
    ],
)
def test_a_query_with_an_order_is_moved(log, query):
    report = move(log, None, query=query, into="public.out", chunk="60")
    assert rows(log[1], "select count(*), count(distinct id) from public.out") == [(report.counts.loaded,) * 2]


def test_a_function_that_gives_other_rows_each_time_is_told_after_the_load(log):
    run_sql(
        log[0],
        "create sequence public.calls",
        "create function public.fewer() returns setof public.log language plpgsql as $$ begin"
        " return query select * from public.log where id <= 400 - coalesce(pg_backend_pid() % 7, 0) - 1; end $$",
        "create view public.odd as select * from public.fewer()",
    )
    found = {move(log, "public.odd", into=f"public.odd{n}", chunk="30").outcome for n in range(6)}
    assert "stopped" in found


def test_a_source_that_hides_rows_from_the_user_is_refused(log, server):
    source, target = log
    run_sql(
        source,
        "drop role if exists half_blind",
        "create role half_blind login password 'pw'",
        "grant select on public.log to half_blind",
        "alter table public.log enable row level security",
        "create policy few on public.log using (id < 100)",
    )
    name = source.rpartition("/")[2]
    hidden = f"postgresql://half_blind:pw@127.0.0.1:{server.port}/{name}"
    with pytest.raises(ConfigError, match="row-level security hides rows"):
        move([hidden, target], "public.log")
    run_sql(source, "drop owned by half_blind", "drop role half_blind")


def test_null_elements_stay_null_whatever_array_nulls_says(databases):
    run_sql(
        databases[0],
        "create table public.a (id int primary key, v text[])",
        "insert into public.a values (1, array['a', null, 'NULL'])",
    )
    with psycopg.connect(databases[1], autocommit=True) as conn:
        conn.execute(f"alter database {conn.info.dbname} set array_nulls = off")
    move(databases, "public.a")
    assert rows(databases[1], "select v[2] is null, v[3] from public.a") == [(True, "NULL")]


def test_a_column_called_like_the_hidden_one_in_any_case_is_refused(databases):
    run_sql(databases[0], 'create table public.r (id int primary key, "_Keyhaul_Record" int)')
    with pytest.raises(RefusedError, match="a column is called _Keyhaul_Record"):
        move(databases, "public.r")


def test_a_trigger_that_deletes_rows_fails_the_chunk(log):
    run_sql(
        log[1],
        "create table public.log (id int primary key, msg text)",
        "create function public.eat() returns trigger language plpgsql as"
        " $$ begin delete from public.log where id = new.id - 1; return null; end $$",
        "create trigger eat after insert on public.log for each row execute function public.eat()",
    )
    report = move(log, "public.log")
    assert (report.outcome, report.counts.loaded) == ("stopped", 0)
    assert "a trigger or rule there drops or adds rows" in report.failed[0].error


def test_a_table_is_not_moved_into_itself(log):
    with pytest.raises(RefusedError, match="it is the table that is read"):
        move([log[0], log[0]], "public.log", mode="append")
