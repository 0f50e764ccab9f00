"""What every reader promises, run on each of them."""

from __future__ import annotations

import datetime as dt
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import polars as pl
import psycopg
import pytest

from keyhaul.errors import ChunkError, StopRunError, TransientError
from keyhaul.postgres.dsn import Dsn
from keyhaul.postgres.pgtypes import SESSION_SETTINGS, out_of_range
from keyhaul.sources.postgres.readers import READERS, AdbcReader, UnreadableValueError, translate


@pytest.fixture(scope="module")
def source(server):
    with psycopg.connect(server.uri("postgres"), autocommit=True) as admin:
        admin.execute("create database readers")
        with psycopg.connect(server.uri("readers"), autocommit=True) as conn:
            conn.execute("create table t (id int, v text)")
            conn.execute("insert into t select n, 'v' || n from generate_series(1, 100) n")
            yield conn
        admin.execute("drop database readers with (force)")


@pytest.fixture
def snapshot(server, source):
    """A transaction that holds a snapshot, and the snapshot's name."""
    del source
    with psycopg.connect(server.uri("readers"), autocommit=True) as holder:
        holder.execute("begin isolation level repeatable read read only")
        yield holder, holder.execute("select pg_export_snapshot()").fetchone()[0]


@pytest.fixture
def uri(server):
    # Without default_transaction_read_only, which the worker sets besides: the reader keeps its promise alone.
    settings = {**SESSION_SETTINGS, "statement_timeout": "5s"}
    dsn = Dsn.parse(server.uri("readers"), "test")
    return dsn.uri(application_name="keyhaul reader under test", options=settings, connect_timeout_seconds=2)


@pytest.fixture(params=sorted(READERS))
def reader(request, snapshot):
    opened = READERS[request.param](snapshot[1])
    yield opened
    opened.close()


def rows(reader, query, uri):
    return pl.DataFrame(pl.from_arrow(reader.read(query, uri))).rows()


def test_rows_arrive_with_the_names_of_the_query(reader, uri):
    table = reader.read("select id, v as \"a 'b' %\" from t where id <= 2 order by id", uri)
    assert table.schema.names == ["id", "a 'b' %"]
    assert pl.DataFrame(pl.from_arrow(table)).rows() == [(1, "v1"), (2, "v2")]


def test_a_query_without_rows_has_its_columns(reader, uri):
    table = reader.read("select id, v from t where false", uri)
    assert (table.num_rows, table.schema.names) == (0, ["id", "v"])


VALUES = {
    "int2": ("'-32768'::int2", pl.Int16(), -32768),
    "int4": ("'2147483647'::int4", pl.Int32(), 2**31 - 1),
    "int8": ("'-9223372036854775808'::int8", pl.Int64(), -(2**63)),
    "float4": ("'0.1'::float4", pl.Float32(), 0.10000000149011612),
    "float8": ("'5e-324'::float8", pl.Float64(), 5e-324),
    "infinity": ("'-infinity'::float8", pl.Float64(), float("-inf")),
    "bool": ("true", pl.Boolean(), True),
    "text": ("e'\\u00e9\\U0001F600\\n'::text", pl.String(), "é\U0001f600\n"),
    "empty": ("''::text", pl.String(), ""),
    "varchar": ("'ab '::varchar(5)", pl.String(), "ab "),
    "bytea": ("'\\x00ff27'::bytea", pl.Binary(), b"\x00\xff'"),
    "date": ("'0044-03-15 BC'::date::text", pl.String(), "0044-03-15 BC"),
    "day": ("'2020-02-29'::date", pl.Date(), dt.date(2020, 2, 29)),
    "timestamp": ("'1969-12-31 23:59:59.999999'::timestamp", pl.Datetime("us"),
                  dt.datetime(1969, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001
    "numeric": ("'1.00000000000000000000000000001'::numeric::text", pl.String(), "1.00000000000000000000000000001"),
    "time": ("'24:00'::time::text", pl.String(), "24:00:00"),
    "jsonb": ("'{\"a\": 1e400, \"b\": 1.10}'::json::text", pl.String(), '{"a": 1e400, "b": 1.10}'),
    "array": ("'{{1,NULL},{3,4}}'::int[]::text", pl.String(), "{{1,NULL},{3,4}}"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_value_has_the_same_type_and_is_exact_whoever_reads_it(reader, uri, name):
    expression, dtype, value = VALUES[name]
    frame = pl.DataFrame(pl.from_arrow(reader.read(f"select {expression} as x union all select null", uri)))
    assert frame.schema["x"] == dtype
    assert sorted(frame["x"].to_list(), key=lambda v: v is None) == [value, None]


def test_an_instant_is_in_utc_whoever_reads_it(reader, uri):
    frame = pl.DataFrame(pl.from_arrow(reader.read("select '2020-03-29 02:30+02'::timestamptz as x", uri)))
    assert frame.schema["x"].time_zone is not None
    assert frame["x"].dt.convert_time_zone("UTC").item() == dt.datetime(2020, 3, 29, 0, 30, tzinfo=dt.UTC)


def test_a_row_that_is_inserted_after_the_snapshot_is_not_seen(reader, uri, source):
    first = rows(reader, "select count(*) as n from t", uri)
    source.execute("insert into t values (1000, 'later')")
    try:
        assert rows(reader, "select count(*) as n from t", uri) == first == [(100,)]
    finally:
        source.execute("delete from t where id = 1000")


@pytest.mark.parametrize(
    "query",
    [
        "with gone as (delete from t returning id) select id from gone",
        "select nextval('s') as id",
        "select id from t for update",
    ],
)
def test_a_query_that_writes_is_refused(reader, uri, source, query):
    source.execute("create sequence if not exists s")
    with pytest.raises(ChunkError, match=r"read-only transaction|WITH clause containing a data-modifying"):
        reader.read(query, uri)
    assert source.execute("select count(*) from t").fetchone() == (100,)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select nosuch from t", "nosuch"),
        ("selekt", "syntax error"),
        ("select 1 / (id - 50) as x from t", "division by zero"),
        ("select pg_sleep(30)::text as x", "statement timeout"),
        ("select v::int as x from t", "invalid input syntax"),
    ],
)
def test_an_error_of_the_server_is_a_chunk_error_with_its_words(server, snapshot, reader, source, query, message):
    del snapshot, source
    short = Dsn.parse(server.uri("readers"), "test").uri(application_name="x", options={"statement_timeout": "300"})
    with pytest.raises(ChunkError, match=f"^read chunk with (ADBC|connectorx): .*{message}") as caught:
        reader.read(query, short)
    assert not isinstance(caught.value, TransientError)


@pytest.mark.parametrize("kind", ["interval", "point", "int4range", "'1 mon'::interval[]", "'(1,2)'::record"])
def test_a_type_that_the_driver_cannot_read_never_ends_in_a_panic(reader, uri, kind):
    value = {"interval": "'1 mon'::interval", "point": "'(1,2)'::point", "int4range": "'[1,2)'::int4range",
             "'1 mon'::interval[]": "array['1 mon'::interval]", "'(1,2)'::record": "row(1, 2)"}[kind]  # fmt: skip
    try:
        reader.read(f"select {value} as x", uri)
    except ChunkError as error:
        assert str(error).startswith("read chunk with ")  # noqa: PT017 - an answer is fine as well


@pytest.mark.parametrize("value", ["'infinity'::timestamp", "'294276-12-31'::timestamptz", "'infinity'::date"])
def test_a_moment_that_arrow_cannot_hold_is_told_or_lies_beyond_the_known_bounds(reader, uri, value):
    try:
        frame = pl.DataFrame(pl.from_arrow(reader.read(f"select {value} as x", uri)))
    except UnreadableValueError:
        return
    assert frame.select(out_of_range("x", frame.schema["x"])).item()


def test_a_reader_goes_on_after_an_error(reader, uri):
    with pytest.raises(ChunkError):
        reader.read("select nosuch from t", uri)
    assert rows(reader, "select count(*) as n from t", uri) == [(100,)]


def test_a_lost_snapshot_stops_the_run_and_says_how_to_go_on(reader, uri, snapshot):
    holder, _ = snapshot
    holder.close()
    with pytest.raises(StopRunError, match=r"the run's snapshot is gone.* Run the same command again"):
        reader.read("select 1 as x", uri)


def end_backend(conn):
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        ended = conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
            " and application_name = 'keyhaul reader under test'"
        ).fetchall()
        if ended:
            return True
    return False


def test_a_lost_connection_is_worth_another_try(reader, uri, source):
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(end_backend, source)
        with pytest.raises(TransientError):
            reader.read("select pg_sleep(5)::text as x", uri)
        assert ended.result()
    assert rows(reader, "select 1 as x", uri) == [(1,)]


def test_a_server_that_is_not_there_is_worth_another_try():
    # connectorx tries for 30 s before it says so; its words are translated in the next test.
    reader = AdbcReader("00000003-00000001-1")
    with pytest.raises(TransientError):
        reader.read("select 1 as x", "postgresql://nobody@127.0.0.1:1/none?connect_timeout=1")
    reader.close()


@pytest.mark.parametrize(
    "words",
    [
        "timed out in bb8",
        "error communicating with the server: Connection reset by peer (os error 104)",
        "db error: FATAL: terminating connection due to administrator command",
        "FATAL: the database system is starting up",
        "FATAL: sorry, too many clients already",
        "ERROR: deadlock detected",
    ],
)
def test_what_another_try_may_get_past_is_told_by_its_words(words):
    assert isinstance(translate(RuntimeError(words), "connectorx"), TransientError)


class PanicException(BaseException):
    """As pyo3 raises it: not an Exception."""


def test_a_panic_becomes_an_error_of_ours():
    error = translate(PanicException("called `Result::unwrap()` on an `Err` value"), "connectorx")
    assert isinstance(error, UnreadableValueError)
    assert isinstance(translate(PanicException("connection closed"), "connectorx"), ChunkError)


def test_both_readers_give_the_same_rows(snapshot, uri, source):
    source.execute("create table if not exists wide as select n as i, n::float8 / 3 as f, md5(n::text) as s,"
                   " n % 2 = 0 as b, date '2000-01-01' + n as d, (n::numeric / 7)::text as x"
                   " from generate_series(1, 500) n")  # fmt: skip
    found = []
    with psycopg.connect(source.info.dsn, password=source.info.password) as holder:
        holder.execute("set transaction isolation level repeatable read")
        name = holder.execute("select pg_export_snapshot()").fetchone()[0]
        for make in READERS.values():
            reader = make(name)
            found.append(pl.DataFrame(pl.from_arrow(reader.read("select * from wide order by i", uri))))
            reader.close()
    assert found[0].equals(found[1])
    assert found[0].schema == found[1].schema
    assert Decimal(found[0]["x"][6]) == 1
    del snapshot
