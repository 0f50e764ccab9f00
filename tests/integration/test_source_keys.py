from __future__ import annotations

import os
from collections import Counter

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import move, run_sql
from psycopg import sql

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.postgres.pgtypes import SESSION_SETTINGS
from keyhaul.sources.postgres import sql as source_module
from keyhaul.sources.postgres.sql import SqlSource

EXAMPLES = int(os.environ.get("KEYHAUL_TEST_EXAMPLES", "12"))
"""Of each property; a longer run sets the variable."""

some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

letters = st.text(st.sampled_from("aAbBzZ äÄß-_'é\\%{\"1\U0001f600"), max_size=4)
whole = st.integers(-3, 3) | st.integers(-(10**12), 10**12)
digits = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-5, max_value=5)

KEYS = {
    "smallint": st.integers(-32768, 32767),
    "integer": st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 2),
    "bigint": st.integers(-(2**63), 2**63 - 1) | whole,
    "numeric": digits | st.sampled_from(["NaN", "1e30", "-1e30", "1.0", "1.00"]),
    "numeric(12,3)": digits | st.just("NaN"),
    "double precision": st.sampled_from(["NaN", "Infinity", "-Infinity", "0", "-0", "0.1", "1e-300", "5e-324"]),
    'text collate "C"': letters,
    "text": letters,
    "varchar(4)": letters,
    "character(4)": letters,
    "name": letters,
    "uuid": st.uuids(),
    "date": st.dates() | st.sampled_from(["infinity", "-infinity", "0044-03-15 BC", "5874897-12-31"]),
    "timestamp": st.datetimes() | st.sampled_from(["infinity", "-infinity", "4713-01-01 BC", "294276-12-31 23:59:59"]),
    "timestamptz": st.datetimes() | st.sampled_from(["infinity", "-infinity", "2020-03-29 02:30 Europe/Berlin"]),
    "time": st.times() | st.just("24:00"),
    "interval": st.sampled_from(["1 mon", "30 days", "720 hours", "-1 day", "1 year -3 days", "0"]),
    "boolean": st.booleans(),
    "bytea": st.binary(max_size=3).map(lambda value: "\\x" + value.hex()),
    "inet": st.sampled_from(["10.0.0.1", "10.0.0.1/8", "10.0.0.0/8", "::1", "192.168.1.1"]),
    "mood": st.sampled_from(["sad", "ok", 'it\'s "fine"']),
    "public.positive": st.integers(1, 9),
    "integer[]": st.lists(st.integers(-2, 2), max_size=2).map(lambda v: "{" + ",".join(map(str, v)) + "}"),
}

TYPES = """
create type mood as enum ('ok', 'sad', 'it''s "fine"');
create domain positive as integer check (value > 0);
"""


@pytest.fixture(scope="module")
def connection(server):
    with psycopg.connect(server.uri("postgres"), autocommit=True) as admin:
        admin.execute("create database source_keys")
        with psycopg.connect(server.uri("source_keys"), autocommit=True) as conn:
            conn.execute(TYPES)
            conn.execute("set lock_timeout = '5s'")
            yield conn
        admin.execute("drop database source_keys with (force)")


@pytest.fixture(scope="module")
def icu_connection(server_icu):
    with psycopg.connect(server_icu.uri("postgres"), autocommit=True) as admin:
        admin.execute("create database source_keys template template0 encoding 'UTF8'")
        with psycopg.connect(server_icu.uri("source_keys"), autocommit=True) as conn:
            conn.execute("create collation anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
            yield conn
        admin.execute("drop database source_keys with (force)")


def fill(conn, columns, rows, *, index=None, name="t"):
    """Make table `t (rid, k1, k2, …)` with one row for each tuple of `rows`; values are given as text."""
    definitions = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(column), sql.SQL(kind)) for column, kind in columns.items()
    )
    table = sql.Identifier("public", name)
    conn.execute(sql.SQL("drop table if exists {} cascade").format(table))
    conn.execute(sql.SQL("create unlogged table {} (rid serial, {})").format(table, definitions))
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    values = [sql.SQL("({})").format(sql.SQL(", ").join(sql.Literal(text(v)) for v in row)) for row in rows]
    if values:
        conn.execute(sql.SQL("insert into {} ({}) values {}").format(table, names, sql.SQL(", ").join(values)))
    if index:
        conn.execute(sql.SQL("create index on {} ({})").format(table, names))


def text(value):
    return None if value is None else str(value)


def open_source(conn, *, table="public.t", query=None, key=("k",)):
    dsn = conn.info.dsn + f" password={conn.info.password}"
    options = " ".join("-c {}={}".format(n, v.replace(" ", "\\ ")) for n, v in SESSION_SETTINGS.items())
    mine = psycopg.connect(dsn, options=options, autocommit=True)
    try:
        return SqlSource.open(mine, table=None if query else table, query=query, key=key)
    except BaseException:
        mine.close()
        raise


def read_all(source, plan, column="rid", conn=None):
    """What each chunk's own query returns, in the source's snapshot."""
    return [
        [row[0] for row in (conn or source.conn).execute(source.ranges.query(chunk, [column], frozenset())).fetchall()]
        for chunk in plan.chunks
    ]


def check_partition(source, chunk_rows):
    """Plan and read everything: each row once, equal keys together, chunks in the key's order and not too large."""
    plan = source.plan(chunk_rows)
    read = read_all(source, plan)
    item, key = source.relation.from_item, sql.SQL(", ").join(map(sql.Identifier, source.ranges.names))
    present = sql.SQL(" and ").join(sql.SQL("{} is not null").format(sql.Identifier(k)) for k in source.ranges.names)
    rows = source.conn.execute(sql.SQL("select rid from {}").format(item)).fetchall()
    assert sorted(rid for chunk in read for rid in chunk) == sorted(rid for (rid,) in rows)
    ranks = dict(
        source.conn.execute(
            sql.SQL("select rid, dense_rank() over (order by {}) from {} where {}").format(key, item, present)
        ).fetchall()
    )
    highest = 0
    for chunk, rids in zip(plan.chunks, read, strict=True):
        if chunk.kind == "nulls":
            assert not ranks.keys() & set(rids)
            continue
        held = Counter(ranks[rid] for rid in rids)
        assert not held or min(held) > highest
        highest = max(held, default=highest)
        assert len(rids) <= chunk_rows or len(rids) < chunk_rows + max(held.values())
    assert plan.chunks[0].lower is None
    assert [c.lower for c in plan.chunks if c.kind == "range"][1:] == [
        c.upper for c in plan.chunks if c.kind == "range"
    ][:-1]
    return plan, read


@pytest.mark.parametrize("kind", KEYS)
@given(data=st.data())
@some
def test_every_row_is_in_exactly_one_chunk(connection, kind, data):
    rows = data.draw(st.lists(st.tuples(KEYS[kind] | st.none()), max_size=25), label="rows")
    index = data.draw(st.booleans(), label="index")
    size = data.draw(st.integers(1, 12), label="chunk_rows")
    fill(connection, {"k": kind}, rows, index=index)
    source = open_source(connection)
    try:
        check_partition(source, size)
    finally:
        source.conn.close()


@pytest.mark.parametrize("collation", ["en-US-x-icu", "de-AT-x-icu", "anycase"])
@given(data=st.data())
@some
def test_every_row_is_in_exactly_one_chunk_in_an_icu_collation(icu_connection, collation, data):
    rows = data.draw(st.lists(st.tuples(letters | st.none()), max_size=25), label="rows")
    index = data.draw(st.booleans(), label="index")
    size = data.draw(st.integers(1, 6), label="chunk_rows")
    fill(icu_connection, {"k": f'text collate "{collation}"'}, rows, index=index)
    source = open_source(icu_connection)
    try:
        check_partition(source, size)
    finally:
        source.conn.close()


COMPOSITES = [("integer", "integer"), ("text", "bigint"), ("date", 'text collate "C"'), ("numeric", "boolean")]


@pytest.mark.parametrize("kinds", COMPOSITES, ids=" ".join)
@given(data=st.data())
@some
def test_every_row_is_in_exactly_one_chunk_of_a_composite_key(connection, kinds, data):
    values = st.tuples(*(KEYS[kind] | st.none() for kind in kinds))
    rows = data.draw(st.lists(values | st.sampled_from([(None, None)]), max_size=25), label="rows")
    index = data.draw(st.booleans(), label="index")
    size = data.draw(st.integers(1, 8), label="chunk_rows")
    fill(connection, {"k": kinds[0], "l": kinds[1]}, rows, index=index)
    source = open_source(connection, key=("k", "l"))
    try:
        check_partition(source, size)
    finally:
        source.conn.close()


@pytest.fixture
def opened(connection):
    """A factory of sources over `connection`; closes them."""
    sources = []

    def make(**how):
        sources.append(open_source(connection, **how))
        return sources[-1]

    yield make
    for source in sources:
        source.conn.close()


@pytest.mark.parametrize("index", [True, False])
def test_an_empty_table_is_one_open_chunk(connection, opened, index):
    fill(connection, {"k": "integer not null"}, [], index=index)
    plan, read = check_partition(opened(), 10)
    assert [(c.lower, c.upper, c.kind) for c in plan.chunks] == [(None, None, "range")]
    assert (plan.estimated_rows, read) == (0, [[]])


@pytest.mark.parametrize("index", [True, False])
def test_one_row_is_one_open_chunk(connection, opened, index):
    fill(connection, {"k": "integer not null"}, [(7,)], index=index)
    plan, read = check_partition(opened(), 1)
    assert (len(plan.chunks), plan.estimated_rows, read) == (1, 1, [[1]])


@pytest.mark.parametrize("index", [True, False])
def test_chunks_have_equal_rows_whatever_the_gaps(connection, opened, index):
    fill(connection, {"k": "bigint not null"}, [(n * 10**12,) for n in range(-5, 15)], index=index)
    plan, read = check_partition(opened(), 5)
    assert [len(rids) for rids in read] == [5, 5, 5, 5]
    assert [c.estimated_rows for c in plan.chunks] == [5, 5, 5, 5]
    assert plan.chunks[1].lower == ("0",)
    assert plan.exact


@pytest.mark.parametrize("index", [True, False])
def test_more_rows_of_one_key_than_a_chunk_holds_stay_together(connection, opened, index):
    fill(connection, {"k": "integer not null"}, [(1,)] * 3 + [(2,)] * 20 + [(3,)] * 3, index=index)
    plan, read = check_partition(opened(), 4)
    assert sum(len(rids) for rids in read) == 26
    assert max(map(len, read)) in {20, 23}
    assert 26 <= plan.estimated_rows <= 28


def test_null_keys_have_a_chunk_of_their_own_when_the_key_is_nullable(connection, opened):
    fill(connection, {"k": "integer"}, [(None,), (1,), (None,)])
    plan, read = check_partition(opened(), 10)
    assert [c.kind for c in plan.chunks] == ["range", "nulls"]
    assert read == [[2], [1, 3]]


def test_a_null_in_either_column_of_a_composite_key_goes_to_the_chunk_of_nulls(connection, opened):
    rows = [(1, 1), (1, None), (None, 1), (None, None), (2, 0)]
    fill(connection, {"k": "integer", "l": "integer"}, rows, index=True)
    _, read = check_partition(opened(key=("k", "l")), 1)
    assert [sorted(rids) for rids in read] == [[1], [5], [2, 3, 4]]


@pytest.mark.parametrize("index", [True, False])
def test_rows_below_the_first_and_above_the_last_boundary_are_still_read(connection, opened, index):
    fill(connection, {"k": "integer not null"}, [(n,) for n in range(10, 20)], index=index)
    source = opened()
    plan = source.plan(3)
    connection.execute("insert into t (k) values (-1000), (1000), (12)")
    read = read_all(source, plan, "k", conn=connection)
    assert sorted(k for chunk in read for k in chunk) == [-1000, 10, 11, 12, 12, *range(13, 20), 1000]
    assert -1000 in read[0]
    assert 1000 in read[-1]


@pytest.mark.parametrize("kind", ["integer", "text", "uuid"])
def test_a_sampled_plan_loses_nothing(connection, opened, monkeypatch, kind):
    monkeypatch.setattr(source_module, "EXACT_ROWS", 100)
    value = {"integer": "n % 700", "text": "md5((n % 700)::text)", "uuid": "md5((n % 700)::text)::uuid"}[kind]
    fill(connection, {"k": kind}, [], index=True)
    connection.execute(f"insert into t (k) select {value} from generate_series(1, 5000) n")
    connection.execute("insert into t (k) values (null), (null)")
    connection.execute("analyze t")
    source = opened()
    plan = source.plan(500)
    read = read_all(source, plan)
    assert not plan.exact
    assert sorted(rid for chunk in read for rid in chunk) == list(range(1, 5003))
    assert len(plan.chunks) > 5
    assert len(read[-1]) == 2


def test_a_key_that_leads_a_longer_index_is_walked(connection, opened):
    fill(connection, {"k": "integer not null", "l": "integer"}, [(n, 0) for n in range(10)], index=True)
    source = opened()
    assert source.indexed()
    assert not opened(key=("l",)).indexed()
    check_partition(source, 3)


@pytest.mark.parametrize("how", ["k desc", "k) where (k > 3", "abs(k)"])
def test_an_index_that_does_not_hold_all_keys_ascending_is_not_walked(connection, opened, how):
    fill(connection, {"k": "integer not null"}, [(n,) for n in range(10)])
    connection.execute(f"create index on t ({how})")
    source = opened()
    assert not source.indexed()
    check_partition(source, 3)


def test_a_view_is_cut_like_a_table(connection, opened):
    fill(connection, {"k": "integer"}, [(n % 4,) for n in range(12)])
    connection.execute("create view v as select rid, k from t where k > 0")
    _, read = check_partition(opened(table="v"), 3)
    assert [len(rids) for rids in read] == [3, 3, 3, 0]


def test_a_materialized_view_is_cut_like_a_table(connection, opened):
    fill(connection, {"k": "integer"}, [(n % 4,) for n in range(12)])
    connection.execute("create materialized view mv as select rid, k from t")
    _, read = check_partition(opened(table="public.mv"), 6)
    assert [len(rids) for rids in read] == [6, 6, 0]


def test_a_partitioned_table_is_read_whole(connection, opened):
    connection.execute("drop table if exists t cascade")
    connection.execute("create table t (rid int, k int) partition by range (k)")
    connection.execute("create table t1 partition of t for values from (0) to (50)")
    connection.execute("create table t2 partition of t default")
    connection.execute("create index on t (k)")
    connection.execute("insert into t select n, n from generate_series(1, 100) n")
    _, read = check_partition(opened(), 30)
    assert [len(rids) for rids in read] == [30, 30, 30, 10, 0]


QUERIES = [
    "select rid, k from public.t",
    "select rid, k from public.t;",
    "select rid, k from public.t ; ; ",
    "select rid, k from public.t -- all of it",
    "select rid, k from public.t; -- all of it; really",
    "select rid, k /* a ; comment -- here */ from public.t /* the; end */;\n/* of /* it */ */ -- ok\n",
    "with w as (select * from public.t) select rid, k from w where k::text not like '%;--'",
    "select rid, k from public.t where ';' <> $$;--$$ and E'\\';' <> ';--'",
    "select rid, k from public.t order by k limit 1000",
    "values (1, 1), (2, 2), (3, 3)",
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_cut_like_a_table_whatever_it_ends_with(connection, opened, query):
    fill(connection, {"k": "integer"}, [(1,), (2,), (3,)])
    if query.startswith("values"):
        query = f"select * from ({query}) v (rid, k)"
    plan, read = check_partition(opened(query=query), 2)
    assert [sorted(rids) for rids in read] == [[1, 2], [3], []]
    assert plan.estimated_rows == 3


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select rid, rid from public.t", "the column names rid are not unique"),
        ("select rid, k + 1, k + 2 from public.t", "are not unique"),
        ("select nosuch from public.t", 'column "nosuch" does not exist'),
        ("selekt", "syntax error"),
        ("select 1 as rid, 2 as k; delete from public.t", "cannot insert multiple commands"),
        ("select rid, k from public.t) q; delete from public.t; select * from (select 1", "expected one SELECT"),
        ("delete from public.t returning rid, k", "syntax error"),
        (" ", "expected one SELECT"),
        ("-- nothing", "expected one SELECT"),
    ],
)
def test_a_query_that_is_not_one_select_is_refused(connection, opened, query, message):
    fill(connection, {"k": "integer"}, [(1,)])
    with pytest.raises(ConfigError, match=message) as caught:
        opened(query=query)
    assert "read source.query" in str(caught.value)
    assert connection.execute("select count(*) from t").fetchone() == (1,)


NAMES = [
    "Upper",
    "select",
    "my key",
    'quo"te',
    "per%cent",
    "%s",
    "{brace}",
    "\U0001f600",
    "ä'ö",
    "_n",
    "_text0",
    "_lag0",
    "q",
    "_total",
]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_a_key_column(connection, opened, name, index):
    fill(connection, {name: "integer"}, [(n,) for n in (10, 9, 100, 1, 99)] + [(None,)], index=index)
    _, read = check_partition(opened(key=(name,)), 2)
    assert [sorted(rids) for rids in read] == [[2, 4], [1, 5], [3], [6]]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_a_table(connection, opened, name):
    fill(connection, {"k": "integer"}, [(1,), (2,), (3,)], name=name)
    quoted = '"' + name.replace('"', '""') + '"'
    _, read = check_partition(opened(table=f"public.{quoted}"), 2)
    assert [sorted(rids) for rids in read] == [[1, 2], [3], []]
    source = opened(table=f"public.{name}")
    assert source.relation.label == f"public.{name}"


def test_a_table_is_found_without_its_schema(connection, opened):
    fill(connection, {"k": "integer"}, [(1,)])
    assert opened(table="t").relation.label == "public.t"


def test_a_missing_table_is_refused_with_those_that_are_there(connection, opened):
    fill(connection, {"k": "integer"}, [])
    with pytest.raises(ConfigError, match=r"public\.nosuch is not there\. Tables in this database: public\."):
        opened(table="public.nosuch")


def test_an_index_or_a_sequence_is_no_source(connection, opened):
    fill(connection, {"k": "integer"}, [], index=True)
    with pytest.raises(ConfigError, match=r"public\.t_rid_seq is not a table or view"):
        opened(table="t_rid_seq")


def test_an_unknown_key_column_is_refused_with_those_that_are_there(connection, opened):
    fill(connection, {"k": "integer"}, [])
    with pytest.raises(ConfigError, match=r"public\.t has no column nosuch, expected one of rid, k\. Change --key"):
        opened(key=("nosuch",))


@pytest.mark.parametrize("kind", ["json", "point", "xid"])
def test_a_key_whose_type_has_no_order_is_refused(connection, opened, kind):
    fill(connection, {"k": kind}, [])
    with pytest.raises(RefusedError, match=f"cut chunks by key: k {kind} has no order"):
        opened()


@pytest.fixture
def citext(icu_connection):
    """A function that makes table t with a citext key, the extension being in the given schema."""

    def make(schema):
        icu_connection.execute(f"drop extension if exists citext cascade; create schema if not exists {schema}")
        icu_connection.execute(f"create extension citext schema {schema}")
        rows = [(value,) for value in ("a", "A", "b", "B", "C", "c", "D", None)]
        fill(icu_connection, {"k": f"{schema}.citext"}, rows, index=True)

    return make


def test_a_key_of_an_extension_type_is_compared_as_it_is_sorted(icu_connection, citext):
    citext("public")
    source = open_source(icu_connection)
    try:
        _, read = check_partition(source, 2)
    finally:
        source.conn.close()
    assert [sorted(rids) for rids in read] == [[1, 2], [3, 4], [5, 6], [7], [8]]


def test_a_key_that_would_be_compared_otherwise_than_it_is_sorted_is_refused(icu_connection, citext):
    citext("ext")
    with pytest.raises(RefusedError, match=r"citext \(schema ext\) are not in this user's search_path"):
        open_source(icu_connection)


def test_a_table_without_columns_is_refused_by_name(databases):
    run_sql(databases[0], "create table public.nothing ()")
    with pytest.raises(RefusedError, match=r"^read source public\.nothing: it has no columns, expected at least one"):
        move(databases, "public.nothing")
