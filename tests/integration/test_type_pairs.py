"""What becomes of the values of one type in a column of another: exact, quarantined or refused, as listed."""

import psycopg
import pytest
from moving import move, rows, run_sql
from support import drop_database, make_database

from keyhaul.errors import RefusedError

BIG = "9223372036854775807"

# source type, target type, values → what arrives; None for a value that is quarantined.
PAIRS = [
    ("smallint", "integer", {"-32768": "-32768", "32767": "32767"}),
    ("smallint", "bigint", {"-32768": "-32768", "32767": "32767"}),
    ("integer", "bigint", {"-2147483648": "-2147483648", "2147483647": "2147483647"}),
    ("integer", "smallint", {"32767": "32767", "32768": None, "-32768": "-32768", "-32769": None}),
    ("bigint", "integer", {"2147483647": "2147483647", "2147483648": None, "-2147483649": None}),
    ("bigint", "smallint", {"1": "1", BIG: None}),
    ("bigint", "double precision", {"1": "1", "9007199254740992": "9.007199254740992e+15", "9007199254740993": None, BIG: None}),
    ("bigint", "real", {"1": "1", "16777216": "1.6777216e+07", "16777217": None, BIG: None}),
    ("integer", "double precision", {"1": "1", "2147483647": "2147483647"}),
    ("integer", "real", {"1": "1", "16777217": None, "2147483647": None, "-2147483648": "-2.1474836e+09"}),
    ("smallint", "real", {"1": "1", "-32768": "-32768"}),
    ("double precision", "bigint", {"1": "1", "1.5": None, "NaN": None, "Infinity": None, "1e300": None, "-9e15": "-9000000000000000"}),
    ("double precision", "integer", {"7": "7", "2147483648": None, "-2147483648": "-2147483648", "0.1": None}),
    ("double precision", "real", {"1.5": "1.5", "0.1": None, "NaN": "NaN", "Infinity": "Infinity", "1e300": None}),
    ("real", "double precision", {"1.5": "1.5", "0.1": "0.10000000149011612", "NaN": "NaN"}),
    ("real", "integer", {"2": "2", "2.5": None, "3e9": None}),
    ("bigint", "numeric", {"1": "1", BIG: BIG}),
    ("bigint", "numeric(5,0)", {"99999": "99999", "100000": None}),
    ("integer", "numeric(6,2)", {"9999": "9999.00", "10000": None}),
    ("numeric(10,2)", "numeric(12,2)", {"1.50": "1.50", "-99999999.99": "-99999999.99"}),
    ("numeric(10,2)", "numeric(12,4)", {"1.50": "1.5000", "99999999.99": "99999999.9900"}),
    ("numeric(10,2)", "numeric(10,4)", {"1.50": "1.5000", "1000000": None, "999999.99": "999999.9900"}),
    ("numeric(10,2)", "numeric(10,1)", {"1.50": "1.5", "1.55": None}),
    ("numeric(10,2)", "numeric", {"1.50": "1.50", "NaN": "NaN"}),
    ("numeric(10,2)", "numeric(5,2)", {"NaN": "NaN", "999.99": "999.99", "1000": None}),
    ("numeric", "numeric(6,2)", {"1.5": "1.50", "1.500": "1.50", "1.555": None, "10000": None, "NaN": "NaN", "Infinity": None}),
    ("numeric", "integer", {"1": "1", "1.00": "1", "1.5": None, "2147483648": None, "NaN": None}),
    ("numeric(10,2)", "bigint", {"1.00": "1", "1.50": None}),
    ("text", "varchar(3)", {"abc": "abc", "abcd": None, "üüü": "üüü", "": ""}),
    ("varchar(5)", "text", {"abc": "abc", "a ": "a "}),
    ("varchar(5)", "varchar(9)", {"abc": "abc"}),
    ("varchar(9)", "varchar(5)", {"abcde": "abcde", "abcdef": None}),
    ("char(5)", "text", {"ab": "ab"}),
    ("text", "char(3)", {"ab": "ab", "ab ": None, "abcd": None}),
    ("text", "name", {"ab": "ab", "x" * 63: "x" * 63, "x" * 64: None, "ü" * 32: None}),
    ("uuid", "text", {"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}),
    ("jsonb", "json", {'{"a": 1}': '{"a": 1}'}),
    ("json", "text", {'{"a":1, "a":2}': '{"a":1, "a":2}'}),
    ("date", "timestamp", {"2024-02-29": "2024-02-29 00:00:00", "infinity": "infinity", "4713-01-01 BC": "4713-01-01 00:00:00 BC"}),
    ("timestamp", "date", {"2024-02-29 00:00:00": "2024-02-29", "2024-02-29 00:00:01": None, "infinity": "infinity"}),
    ("timestamp", "timestamp(0)", {"2024-02-29 01:02:03": "2024-02-29 01:02:03", "2024-02-29 01:02:03.5": None}),
    ("timestamp(3)", "timestamp(6)", {"2024-02-29 01:02:03.123": "2024-02-29 01:02:03.123"}),
    ("timestamptz", "timestamptz(3)", {"2024-02-29 01:02:03.123+00": "2024-02-29 01:02:03.123+00", "2024-01-01 00:00:00.1234+00": None}),
    ("time", "time(0)", {"01:02:03": "01:02:03", "01:02:03.5": None, "24:00:00": "24:00:00"}),
    ("cidr", "inet", {"10.0.0.0/8": "10.0.0.0/8"}),
    ("oid", "bigint", {"4294967295": "4294967295"}),
    ("integer", "integer not null", {"1": "1", None: None}),
]  # fmt: skip

REFUSED = [
    ("bigint", "timestamptz"),
    ("bigint", "timestamp"),
    ("integer", "date"),
    ("integer", "text"),
    ("integer", "boolean"),
    ("boolean", "integer"),
    ("varchar(16)", "uuid"),
    ("text", "integer"),
    ("text", "jsonb"),
    ("text", "timestamptz"),
    ("json", "jsonb"),
    ("double precision", "numeric"),
    ("numeric(10,2)", "double precision"),
    ("timestamp", "timestamptz"),
    ("timestamptz", "timestamp"),
    ("bytea", "text"),
    ("uuid", "bytea"),
    ("bit(3)", "bit(5)"),
    ("integer[]", "bigint[]"),
    ("interval", "time"),
    ("money", "numeric"),
]


@pytest.fixture(scope="module")
def databases(server):
    uris = [make_database(server, name) for name in ("pairs_source", "pairs_target")]
    yield uris
    for uri in uris:
        drop_database(server, uri)


def prepare(databases, have, want, values):
    source, target = databases
    literals = ["null" if value is None else "'" + value.replace("'", "''") + "'" for value in values]
    lines = [f"({number}, {literal})" for number, literal in enumerate(literals)]
    run_sql(source, "drop table if exists public.pair", f"create table public.pair (id int primary key, v {have})")
    if lines:
        run_sql(source, f"insert into public.pair values {', '.join(lines)}")
    run_sql(target, "drop table if exists public.pair", f"create table public.pair (id int primary key, v {want})")


@pytest.mark.thin(2)
@pytest.mark.parametrize(("reader", "loader"), [("connectorx", "copy"), ("adbc", "adbc")])
@pytest.mark.parametrize(("have", "want", "values"), PAIRS, ids=[f"{a} to {b}" for a, b, _ in PAIRS])
def test_each_value_arrives_unchanged_or_is_quarantined(databases, reader, loader, have, want, values):
    prepare(databases, have, want, values)
    report = move(databases, "public.pair", reader=reader, loader=loader)
    arrived = dict(rows(databases[1], "select id, v::text from public.pair"))
    expected = {number: there for number, (value, there) in enumerate(values.items()) if there is not None}
    assert arrived == expected
    bad = [number for number, there in enumerate(values.values()) if there is None]
    found = rows(
        databases[1], f"select record, rules from keyhaul.quarantine where run_id = '{report.run_id}' order by 1"
    )
    assert found == [(number, ["type:v"]) for number in bad]


@pytest.mark.parametrize(("have", "want"), REFUSED, ids=[f"{a} to {b}" for a, b in REFUSED])
def test_a_pair_without_an_exact_way_is_refused_with_what_would_do_it(databases, have, want):
    prepare(databases, have, want, [])
    with pytest.raises(RefusedError, match=r"write public\.pair\.v: got .*, expected .*\. (Convert|Say|A copied)"):
        move(databases, "public.pair")
    assert rows(databases[1], "select count(*) from public.pair") == [(0,)]


def test_a_computed_text_that_the_target_does_not_take_costs_its_record_alone(databases):
    prepare(databases, "text", "uuid", {"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11": "", "no uuid": "", None: ""})
    report = move(databases, "public.pair", set=["v = cast(v as varchar)"])
    assert rows(databases[1], "select id, v::text from public.pair order by id") == [
        (0, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (2, None),
    ]
    assert report.counts.quarantined == 1
    found = f"select record, rules, message, data->>'v' from keyhaul.quarantine where run_id = '{report.run_id}'"
    assert rows(databases[1], found) == [(1, ["type:v"], "v is no uuid", "no uuid")]


def test_a_computed_double_is_rounded_to_a_numeric_as_postgresql_rounds_it(databases):
    values = ["0.125", "0.135", "2.5", "1234567.8949999999", "-0.005", "1e15", "0.1", "99999999999999.99", "NaN"]
    prepare(databases, "double precision", "numeric(20,2)", dict.fromkeys(values))
    move(databases, "public.pair", set=["v = cast(v as double)"])
    there = rows(databases[1], "select id, v::text from public.pair order by id")
    assert there == rows(databases[0], "select id, v::numeric(20,2)::text from public.pair order by id")


ODD_SCALES = (
    "0", "100", "-12300", "1250", "9999900", "9999999", "10000000", "990", "9990", "10000", "12.5",
    "0.0012", "0.01", "-0.0099", "0.00991", "0.0100", "0.1", "50", "500", "5000",
)  # fmt: skip


@pytest.mark.parametrize("origin", ["numeric", "numeric(12,2)", "bigint"])
@pytest.mark.parametrize("into", ["numeric(5,-2)", "numeric(2,4)", "numeric(2,-3)"])
def test_a_number_that_a_numeric_of_an_odd_scale_holds_arrives_and_no_other(databases, origin, into):
    listed = ", ".join(f"({number}, {value}::{origin})" for number, value in enumerate(ODD_SCALES, 1))
    drop = "drop table if exists public.t"
    made = f"create table public.t (id int primary key, a {origin})"
    run_sql(databases[0], drop, made, f"insert into public.t values {listed}")
    run_sql(databases[1], drop, f"create table public.t (id int primary key, a {into})")
    move(databases, "public.t", mode="append")
    kept = []
    for (number,) in rows(databases[0], "select id from public.t order by id"):
        exact = f"select a::numeric, (a::{into})::numeric = a from public.t where id = {number}"
        try:
            kept += [value for value, same in rows(databases[0], exact) if same]
        except psycopg.errors.NumericValueOutOfRange:
            continue
    assert [value for (value,) in rows(databases[1], "select a from public.t order by id")] == kept
