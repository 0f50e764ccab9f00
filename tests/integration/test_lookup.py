"""Lookups in real moves: what plain SQL says is taken, and what it does not find is in quarantine."""

import re
from pathlib import Path

import polars as pl
import pytest
from moving import rows, run_sql

from keyhaul.before import prepare as preparing
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError
from keyhaul.execution.engine import run
from keyhaul.sessions.connecting import find_ends
from keyhaul.sources.postgres.sql import SqlSource

DATA = Path(__file__).parents[2] / "data"
FLIGHTS = 20_000


def job(tmp_path, databases, lookups, table="public.flights", **flags):
    source, target = databases
    path = tmp_path / "job.yaml"
    lines = "".join(f"  - {line}\n" for line in lookups)
    path.write_text(f"job: j\nkey: id\nsource: {{table: {table}}}\ntransform:\n{lines}")
    given = {"source": source, "target": target, "chunk": "3000", **flags}
    return load_job(path, given, {})


def move(*args, **flags):
    return run(job(*args, **flags), lambda _event: None, Control(), fresh=True)


def refusal(*args, **flags):
    loaded = job(*args, **flags)
    with pytest.raises(ConfigError) as caught, preparing.prepare(loaded, find_ends(loaded)):
        pass
    return re.sub(r"^\S*job.yaml", "job.yaml", str(caught.value), flags=re.MULTILINE)


def copy_in(uri, table, file, columns):
    import psycopg

    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(f"create table {table} ({columns})")
        with conn.cursor().copy(f"copy {table} from stdin with (format csv, header true, null 'NA')") as copy:
            copy.write(file)


@pytest.fixture
def flights(databases):
    """20,000 of the bundled flights in the source, and the planes and airports as tables beside them."""
    frame = pl.read_parquet(DATA / "flights.parquet").select("id", "carrier", "tailnum", "dest").head(FLIGHTS)
    types = "id int primary key, carrier text, tailnum text, dest text"
    copy_in(databases[0], "public.flights", frame.write_csv(null_value="NA").encode(), types)
    planes = "tailnum varchar(6), year smallint, type text, manufacturer text, model text, engines int, seats int, speed int, engine text"
    copy_in(databases[0], "public.planes", (DATA / "planes.csv").read_bytes(), planes)
    return databases


def quarantined(databases):
    found = rows(databases[1], "select key::int, stage, rules, message from keyhaul.quarantine order by 1")
    return [tuple(row) for row in found]


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_flights_take_airlines_from_a_file_and_planes_from_a_table_as_sql_would(tmp_path, flights, reader):
    airlines = f"lookup: {{source: {{file: {DATA / 'airlines.csv'}}}, on: carrier, take: {{airline: name}}}}"
    planes = (
        "lookup: {source: {table: public.planes}, on: tailnum, take: {built: year, model: model}, missing: quarantine}"
    )
    report = move(tmp_path, flights, [airlines, planes], reader=reader)
    assert report.outcome == "done"
    assert report.counts.balanced
    expected = rows(
        flights[0],
        "select f.id, f.carrier, f.tailnum, f.dest, p.year::bigint, p.model from public.flights f"
        " join public.planes p using (tailnum) order by 1",
    )
    found = rows(flights[1], "select id, carrier, tailnum, dest, built, model from public.flights order by 1")
    assert found == expected
    assert len(expected) > FLIGHTS // 2
    names = dict(pl.read_csv(DATA / "airlines.csv").rows())
    assert {name: code for code, name in rows(flights[1], "select distinct carrier, airline from public.flights")} == {
        names[code]: code for code in {row[1] for row in expected}
    }
    lost = rows(
        flights[0],
        "select id, case when tailnum is null then 'tailnum is null' else 'tailnum not found in planes' end"
        " from public.flights f where not exists (select from public.planes p where p.tailnum = f.tailnum) order by 1",
    )
    assert len({message for _, message in lost}) == 2
    assert quarantined(flights) == [(key, "lookup", ["lookup:planes"], message) for key, message in lost]
    assert report.counts.quarantined == len(lost)
    assert dict(report.quarantined_by_reason) == {"lookup:planes": len(lost)}
    types = "select column_name, data_type from information_schema.columns where table_name = 'flights' and column_name in ('airline', 'built') order by 1"
    assert rows(flights[1], types) == [("airline", "text"), ("built", "bigint")]


def test_a_lookup_may_be_in_another_database_and_a_query(tmp_path, flights, database, server):
    other = database(server, "other")
    run_sql(
        other,
        "create table public.homes (carrier text, home text, at date)",
        "insert into public.homes values ('UA', 'Chicago', '2012-01-01'), ('UA', 'Denver', null),"
        " ('AA', 'Dallas', '2013-01-01'), ('AA', 'Fort Worth', '2001-01-01'), (null, 'nowhere', null)",
    )
    query = "select carrier, upper(home) as home, at from public.homes; -- all of them"
    text = f"lookup: {{source: {{query: '{query}', uri: '{other}'}}, on: carrier, take: home, first: at}}"
    report = move(tmp_path, flights, [text])
    assert report.counts.loaded == FLIGHTS
    found = dict(rows(flights[1], "select distinct carrier, home from public.flights where home is not null"))
    assert found == {"UA": "CHICAGO", "AA": "FORT WORTH"}
    same = "select count(*) from public.flights where carrier in ('UA', 'AA')"
    assert rows(flights[1], "select count(home) from public.flights") == rows(flights[0], same)


def test_a_lookup_in_the_source_is_of_the_runs_own_moment(tmp_path, databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, ref int)",
        "insert into public.t select g, g from generate_series(1, 10) g",
        "create table public.names (ref bigint, name text)",
        "insert into public.names select g, 'before' from generate_series(1, 10) g",
    )
    text = "lookup: {source: {table: public.names}, on: ref, take: name}"
    loaded = job(tmp_path, databases, [text], table="public.t")
    opened = SqlSource.open

    def open_then_change(*args, **kwargs):
        source = opened(*args, **kwargs)
        run_sql(databases[0], "update public.names set name = 'after'", "delete from public.names where ref > 5")
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqlSource, "open", staticmethod(open_then_change))
        run(loaded, lambda _event: None, Control(), fresh=True)
    assert rows(databases[1], "select name, count(*) from public.t group by 1") == [("before", 10)]
    assert rows(databases[0], "select name, count(*) from public.names group by 1") == [("after", 5)]


def test_types_of_the_contract_are_taken_as_they_are(tmp_path, databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, code char(4), colour text)",
        "create type public.hue as enum ('red', 'blue')",
        "create table public.codes (code char(6), hue public.hue, amount numeric(12,2), at timestamptz, doc jsonb, u uuid, span interval, raw bytea)",
        "insert into public.t values (1, 'ab', 'blue'), (2, 'cd', 'red'), (3, null, null)",
        "insert into public.codes values ('ab', 'blue', 12345.67, '2013-01-01 00:00:00.123456+02', '{\"a\": 1}', '00000000-0000-0000-0000-000000000001', '1 day', '\\x00ff'), ('cd', 'red', null, null, null, null, null, null)",
    )
    taken = "lookup: {source: {table: codes}, on: {code: code, colour: hue}, take: [amount, at, doc, u, span, raw]}"
    report = move(tmp_path, databases, [taken], table="public.t")
    assert report.counts.loaded == 3
    query = "select code, {} from {} order by 1"
    columns = "amount, at, doc::text, u::text, span::text, raw"
    expected = rows(databases[0], query.format(columns, "public.t left join public.codes using (code)"))
    assert rows(databases[1], query.format(columns, "public.t")) == expected
    assert str(expected[0][1]) == "12345.67"


@pytest.mark.parametrize("more", ["", ", per_chunk: true"])
def test_what_is_taken_means_what_postgresql_means_by_it(tmp_path, databases, more):
    """A price without a precision is a number, a time a time: they compare and compute as such."""
    run_sql(
        databases[0],
        "create table public.prices (code int primary key, price numeric, opens time)",
        "insert into public.prices values (1, 9, '10:00'), (2, 10, '09:30'), (3, 100.50, '24:00')",
        "create table public.sold (id int primary key, code int)",
        "insert into public.sold values (1, 1), (2, 2), (3, 3)",
    )
    taken = f"lookup: {{source: {{table: public.prices}}, on: code, take: [price, opens]{more}}}"
    steps = ["set: {dear: price > '9.5', due: price * 2, late: opens > '9:45'}", "where: price >= 9"]
    report = move(tmp_path, databases, [taken, *steps], "public.sold")
    assert report.counts.loaded == 3
    query = "select id, price::text, dear, due::text, late, pg_typeof(price)::text, pg_typeof(due)::text from {} order by id"
    assert rows(databases[1], query.format("public.sold")) == [
        (1, "9", False, "18", True, "numeric", "numeric"),
        (2, "10", True, "20", False, "numeric", "numeric"),
        (3, "100.50", True, "201.00", True, "numeric", "numeric"),
    ]


def test_a_file_that_has_changed_makes_a_stopped_run_another_job(tmp_path, flights):
    path = tmp_path / "names.csv"
    path.write_text("carrier,name\nAA,a\n")
    text = f"lookup: {{source: {{file: {path}}}, on: carrier, take: name}}"
    before = job(tmp_path, flights, [text]).fingerprint()
    path.write_text("carrier,name\nAA,b\n")
    assert job(tmp_path, flights, [text]).fingerprint() != before


PLANES = "source: {table: public.planes}, on: tailnum"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: {table: public.plains}, on: tailnum, take: year", "read lookup plains: public.plains is not there. Tables in this database: public.flights, public.planes. Change source.table of the lookup"),
        ("source: {query: 'selec 1'}, on: tailnum, take: year", 'read lookup query: syntax error at or near "selec", expected one SELECT'),
        ("source: {query: 'select 1 as tailnum, 1/0 as year'}, on: tailnum, take: year", "division by zero"),
        (f"{PLANES}, take: [yaer, kind]", "read lookup planes: it has no column yaer, kind, expected one of tailnum, year, type"),
        (f"{PLANES}, take: year, first: when", "it has no column when"),
        ("source: {table: public.planes}, on: {id: tailnum}, take: year", "compare tailnum of planes: got String, expected Int32 as id has in the chunk"),
        ("source: {table: public.planes}, on: nosuch, take: year", "look up by nosuch: no such column, expected one of id, carrier, tailnum, dest"),
        ("source: {table: public.planes}, on: {tailnum: manufacturer}, take: year", "keys have several rows with the same manufacturer, expected one each"),
        ("source: {query: 'select tailnum, year::numeric as n from public.planes'}, on: tailnum, take: year, first: n", "it has no column year"),
        ("source: {query: 'select tailnum, year::numeric as n from public.planes'}, on: tailnum, take: n, first: n", "compare lookup query.n: numeric travels as text"),
        ("source: {query: 'select tailnum, xmin as n from public.planes'}, on: tailnum, take: n", "type xid is not in the type contract"),
        ("source: {query: \"select 'x' as tailnum, date 'infinity' as d\"}, on: tailnum, take: d", "got a date, time or number that has no place in its type"),
        ("source: {query: \"select 'x' as tailnum, 'NaN'::numeric(5,2) as d\"}, on: tailnum, take: d", "(infinity, NaN), expected finite ones in d"),
        ("source: {query: \"select g::text as tailnum, repeat('x', 1000) as d from generate_series(1, 2000) g\"}, on: tailnum, take: d, limit_mb: 1", "it has 2.1 MB, expected at most 1 MB"),
        ("source: {file: nosuch.csv}, on: tailnum, take: year", "read lookup file nosuch.csv: got no such file"),
        ("source: {table: t, uri: 'postgresql://u:secret@127.0.0.1:1/d'}, on: tailnum, take: year", "nothing listens there (connection refused). Is the server running? Else change source.uri of the lookup"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_up_is_refused_before_the_first_row(tmp_path, flights, text, expected):
    message = refusal(tmp_path, flights, [f"lookup: {{{text}}}"])
    assert expected in message
    assert "secret" not in message
    assert message.startswith("job.yaml line 5: ")
    assert rows(flights[1], "select count(*) from pg_namespace where nspname = 'keyhaul'") == [(0,)]


def test_a_table_whose_statistics_say_too_much_is_not_read(tmp_path, flights):
    run_sql(
        flights[0],
        "create table public.wide as select g::text as tailnum, repeat(md5(g::text), 10) as d from generate_series(1, 5000) g",
        "analyze public.wide",
        "truncate public.wide",
        "update pg_class set reltuples = 5000, relpages = 300 where relname = 'wide'",
    )
    text = "lookup: {source: {table: public.wide}, on: tailnum, take: d, limit_mb: 1}"
    assert "expected at most 1 MB" in refusal(tmp_path, flights, [text])


def test_two_lookups_that_are_wrong_leave_the_first_one_told(tmp_path, flights):
    wrong = "lookup: {source: {table: nosuch}, on: tailnum, take: year}"
    assert refusal(tmp_path, flights, [wrong, wrong]).startswith("job.yaml line 5: read lookup nosuch: ")
