"""Computed columns are rounded, and refused, as PostgreSQL does on assignment: the server itself is asked."""

from __future__ import annotations

import os
from decimal import Decimal

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from keyhaul.model import RECORD
from keyhaul.postgres import catalog
from keyhaul.postgres.pgtypes import SESSION_SETTINGS
from keyhaul.targets.rows import Destination, write_rows
from keyhaul.targets.session import CopySession
from keyhaul.transform.mapping import split, write_column

EXAMPLES = int(os.environ.get("KEYHAUL_TEST_EXAMPLES", "15"))
"""Of each property; a longer run sets the variable."""

some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

INT64 = 2**63 - 1

halves = st.integers(-20, 20).map(lambda n: Decimal(n) / 2)
decimals = (
    st.decimals(min_value=-(10**6), max_value=10**6, places=4)
    | halves
    | st.sampled_from(
        ["32767.5", "-32768.5", "32767.4999", "2147483647.5", "99.995", "99.9949", "999.95", "0.0005"]
    ).map(Decimal)
    | st.sampled_from([Decimal(10) ** 33, -(Decimal(10) ** 33), Decimal("9223372036854775807.5"), Decimal("9" * 33)])
)
whole = st.integers(-INT64 - 1, INT64) | st.integers(-1100, 1100) | st.sampled_from(
    [32767, 32768, -32768, -32769, 2**31, -(2**31) - 1, 2**24 + 1, 2**53 + 1, 99999, 100000]
)  # fmt: skip
floats = (
    st.floats(width=64)
    | st.integers(-20, 20).map(lambda n: n / 2)
    | st.sampled_from(
        [32767.5, -32768.5, 2147483647.5, 9.223372036854775e18, 2.0**63, 1e39, 1e-46, 0.1, 99999.9995, -0.0]
    )
)
words = st.text("aé\U0001f600 \\'", max_size=5).map(lambda text: text.rstrip(" "))

PAIRS = {
    "decimal": (pl.Decimal(38, 4), "numeric(38,4)", decimals,
                ["numeric(6,2)", "numeric(10,0)", "numeric(5,-2)", "numeric(2,4)", "numeric(38,4)", "numeric(38,0)",
                 "numeric(38,2)", "numeric(40,6)", "numeric", "smallint", "integer", "bigint", "double precision", "real"]),
    "integer": (pl.Int64(), "bigint", whole,
                ["smallint", "integer", "bigint", "numeric(5,0)", "numeric(4,2)", "numeric(3,-1)", "numeric(38,0)",
                 "numeric", "real", "double precision"]),
    "float": (pl.Float64(), "double precision", floats,
              ["real", "double precision", "smallint", "integer", "bigint", "numeric(8,3)"]),
    "text": (pl.String(), "text", words, ["text", "varchar(3)", "char(3)", "name"]),
}  # fmt: skip
CASES = [(name, target) for name, (*_, targets) in PAIRS.items() for target in targets]


@pytest.fixture(scope="module")
def connection(server):
    with psycopg.connect(server.uri("postgres"), autocommit=True) as admin:
        admin.execute("create database computed")
        with psycopg.connect(server.uri("computed"), autocommit=True, prepare_threshold=None) as conn:
            yield conn
        admin.execute("drop database computed with (force)")


@pytest.fixture(scope="module")
def session(server, connection):
    del connection
    options = " ".join("-c {}={}".format(name, value.replace(" ", "\\ ")) for name, value in SESSION_SETTINGS.items())
    made = CopySession(psycopg.conninfo.make_conninfo(server.uri("computed"), options=options))
    made._conn.prepare_threshold = None  # the table is another one each time
    yield made
    made.close()


def assigned(conn, values, source):
    """What the server stores for each value, as text; False where it refuses."""
    found = []
    for value in values:
        try:
            with conn.transaction():
                text = "NaN" if value != value else str(value)  # noqa: PLR0124 - only NaN differs from itself
                row = conn.execute(
                    sql.SQL("insert into t select {}::{} returning x::text").format(sql.Literal(text), sql.SQL(source))
                ).fetchone()
                found.append(row[0])
        except psycopg.errors.DataError:
            found.append(False)
    return found


def carried(conn, session, values, dtype):
    """What arrives of each value when keyhaul computed it; False where its record is quarantined."""
    relation = catalog.describe_table(conn, *catalog.resolve(conn, "public.t"))
    columns = [write_column("x", dtype, None, relation.columns[0])]
    # Decimals from text: Polars makes NULLs of those whose exponents differ much.
    texts = dtype.is_decimal()
    series = pl.Series("x", [f"{value:f}" if texts else value for value in values], dtype=None if texts else dtype)
    data = pl.DataFrame({RECORD: range(len(values)), "x": series.cast(dtype)}, schema_overrides={RECORD: pl.Int64})
    session.execute(sql.SQL("rollback"))
    accepted, rejected = split(data, columns)
    found = dict.fromkeys(rejected[RECORD], False)
    destination = Destination(table=sql.Identifier("public", "t"), columns=tuple(columns))
    for record in accepted[RECORD]:
        write_rows(session, destination, accepted.filter(pl.col(RECORD) == record))
        found[record] = session.execute(sql.SQL("delete from public.t returning x::text"))[0][0]
        session.execute(sql.SQL("commit"))
    return [found[number] for number in range(len(values))]


@pytest.mark.thin(2)
@pytest.mark.parametrize(("name", "target"), CASES)
@given(data=st.data())
@some
def test_a_computed_value_is_stored_as_the_server_would_assign_it(connection, session, name, target, data):
    dtype, source, strategy, _ = PAIRS[name]
    values = data.draw(st.lists(strategy, min_size=1, max_size=8), label="values")
    connection.execute("drop table if exists t")
    connection.execute(f"create table t (x {target})")
    expected = assigned(connection, values, source)
    connection.execute("truncate t")
    assert carried(connection, session, values, dtype) == expected
