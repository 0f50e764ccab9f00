"""A clause keeps, loads and quarantines the rows that PostgreSQL's own answer names, for every type; or it is refused."""

import itertools
import os
import re

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from moving import move, rows, run_sql
from psycopg import sql
from support import drop_database, make_database

from keyhaul.errors import ConfigError, RefusedError

THOROUGH = bool(os.environ.get("KEYHAUL_THOROUGH"))

profile = settings(
    max_examples=25 if THOROUGH else 1,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

NUMBERS = [
    "0", "0.00", "1", "1.0", "-1", "5", "10", "45", "0.005", "-0.5", "0.1", "1e35", "-1e35", "-1e-20", "1e-20", "NaN",
    "Infinity", "-Infinity", "99999999999999999999999999999999999999", "12345678901234567.1", "1234567890123456789.5",
    "9" * 300, "-" + "9" * 300, "0." + "0" * 299 + "1", "1" + "0" * 300 + ".5",
]  # fmt: skip
FLOATS = ["0", "-0", "1", "-1", "0.1", "1.5", "1e35", "-1e35", "1e-20", "NaN", "Infinity", "-Infinity"]
MOMENTS = ["2020-01-01 00:00:00", "2020-01-01 00:00:00.000001", "1999-12-31 23:59:59", "2020-06-01 12:30:00"]
BOUNDED = ["0", "0.01", "-0.01", "5", "10", "45", "1234567890.99", "-1234567890.99"]

VALUES = {
    "numeric": NUMBERS,
    "numeric(50,10)": [text for text in NUMBERS if len(text) < 40 and "Inf" not in text and "e35" not in text],
    "numeric(12,2)": BOUNDED,
    "numeric(38,20)": ["0.1", "0.10000000000000000001", "-0.1", "123456789012345678.1", "0", "2", "2.5"],
    "int2": ["0", "-1", "5", "10", "32767"],
    "int4": ["0", "-1", "5", "10", "2147483647"],
    "int8": ["0", "-1", "5", "10", "9223372036854775807", "9007199254740993", "9007199254740992"],
    "float4": FLOATS,
    "float8": FLOATS,
    "bool": ["t", "f"],
    "text": ["", "a", "B", "b", "ä", "10", "9"],
    "varchar(5)": ["", "a", "B", "b", "10", "9"],
    "char(3)": ["", "a", "ab", "b", "10", "9"],
    "name": ["", "a", "B", "b", "10", "9"],
    "bytea": ["\\x", "\\x00", "\\x00ff", "\\xff", "\\x6100"],
    "date": ["2020-01-01", "1999-12-31", "0001-01-01", "2020-12-31"],
    "timestamp": MOMENTS,
    "timestamptz": [*[f"{moment}+00" for moment in MOMENTS], "2020-01-01 01:00:00+01"],
    "time": ["08:00", "24:00", "00:00", "09:00", "9:00:00.5", "23:59:59.999999", "9:00:00.45"],
    "timetz": ["08:00+00", "24:00-02", "00:00+14", "09:00+01", "08:00:00.5+00", "10:00+02", "08:00+00:30"],
    "interval": [
        "1 hour",
        "60 minutes",
        "1 mon",
        "30 days",
        "720 hours",
        "1 year",
        "360 days",
        "-1 day",
        "-1 day 02:00:00",
        "1 mon -30 days",
        "0",
        "00:00:00.000001",
        "-00:00:00.5",
        "100 years 3 mons 2 days 04:05:06.7",
        "178000000 years",
    ],
    "public.mood": ["sad", "ok", "happy"],
    "inet": [
        "10.0.0.9",
        "10.0.0.10",
        "10.0.0.0/8",
        "10.0.0.9/8",
        "10.5.0.0/16",
        "::1",
        "::",
        "fe80::1/64",
        "::ffff:10.0.0.9",
        "2001:db8::8:800:200c:417a",
        "0.0.0.0/0",
        "255.255.255.255",
    ],
    "cidr": ["10.0.0.0/8", "10.5.0.0/16", "::/0", "fe80::/64", "10.0.0.0/9", "0.0.0.0/0"],
    "uuid": ["00000000-0000-0000-0000-00000000000a", "F0000000-0000-0000-0000-000000000000", "9" * 32],
    "macaddr": ["08:00:2b:01:02:03", "ff:00:00:00:00:00", "00:00:00:00:00:0a"],
    "macaddr8": ["08:00:2b:01:02:03:04:05", "ff:00:00:00:00:00:00:00"],
    "bit(4)": ["0001", "1000", "1111", "0000"],
    "varbit": ["1", "10", "100000000", "01", "0", "", "1111"],
    "oid": ["0", "9", "10", "4294967295"],
    "pg_lsn": ["0/0", "16/B374D848", "9/0", "10/0", "0/FFFFFFFF"],
}
"""Type → values, odd ones among them, all of whose comparisons are PostgreSQL's."""

OPAQUE = {
    "json": ['{"a": 1}', "1"],
    "jsonb": ['{"a": 1}', '{"a": 1.0}', "1", "1.0"],
    "money": ["1.00", "-2.50", "1000"],
    "int4[]": ["{1}", "{1,2}", "{10}", "{9}"],
    "numeric[]": ["{1}", "{1.0}", "{10}"],
    "float8[]": ["{0}", "{-0}"],
    "pair": ["(1,a)", "(1.0,a)"],
    "int4range": ["[1,3)", "[1,2]", "empty"],
    "numrange": ["[1,3)", "[1.0,3)"],
    "point": ["(1,2)"],
    "tsvector": ["a b"],
    '"char"': ["a", "b"],
}
"""Type → values; nothing but IS NULL is asked of them."""

GROUPS_OF = 4

OPERATORS = ("<", "<=", "=", ">=", ">", "<>")


@pytest.fixture(scope="module")
def ends(server):
    uris = [make_database(server, name) for name in ("clauses_source", "clauses_target")]
    for uri in uris:
        run_sql(uri, "create type mood as enum ('sad', 'ok', 'happy')", "create type pair as (n numeric, t text)")
    yield uris
    for uri in uris:
        drop_database(server, uri)


def literal(text):
    return "null" if text is None else "'" + text.replace("'", "''") + "'"


GROUPS = [list(VALUES)[start::GROUPS_OF] for start in range(GROUPS_OF)]
"""A command costs more than a condition, so several types stand in one table, each in columns of its own."""


def fill(uri, pools):
    """Make public.t of two columns for each type: its values and NULL, each twice, beside each of which w has another."""
    texts = [[*values, None, *values] for values in pools.values()]
    columns = [sql.SQL("v{0} {1}, w{0} {1}").format(sql.SQL(str(n)), sql.SQL(kind)) for n, kind in enumerate(pools)]
    marks = ", ".join(["%s"] * (2 + 2 * len(texts)))
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute("drop table if exists public.t")
        conn.execute(
            sql.SQL("create table public.t (id int primary key, g int, {})").format(sql.SQL(", ").join(columns))
        )
        filled = [
            [
                number,
                number % 3,
                *(one for mine in texts for one in (mine[number % len(mine)], mine[-number % len(mine)])),
            ]
            for number in range(max(map(len, texts)))
        ]
        conn.cursor().executemany(sql.SQL("insert into public.t values ({})").format(sql.SQL(marks)), filled)


def conditions(constants, v, w):
    """Every comparison with each constant, and between two columns."""
    given = [literal(text) for text in constants]
    asked = [f"{v} {op} {one}" for op in OPERATORS for one in given]
    asked += [f"{v} between {one} and {other}" for one, other in itertools.pairwise(given)]
    asked += [f"{v} in ({one}, {other})" for one, other in itertools.pairwise(given)]
    between = [f"{v} {op} {w}" for op in OPERATORS]
    return [*asked, f"{v} not in ({given[0]})", f"{given[0]} < {v}", f"{v} is null", *between]


def answers(uri, asked):
    """PostgreSQL's own: for each condition id → true, false or NULL."""
    found = rows(uri, f"select id, {', '.join(asked)} from public.t order by id")
    return {condition: {row[0]: row[n] for row in found} for n, condition in enumerate(asked, 1)}


def clauses_of(kinds):
    """How many of each type's values stand in conditions: few by default, others each time in a thorough run."""
    few = 12 if THOROUGH else 4
    return st.tuples(
        *(
            st.lists(st.sampled_from(pool), min_size=min(2, len(pool)), max_size=min(few, len(pool)), unique=True)
            for pool in (VALUES[kind] for kind in kinds)
        )
    )


def moved(ends, **flags):
    run_sql(ends[1], "drop table if exists public.u")
    return move(ends, "public.t", into="public.u", **flags)


@pytest.mark.parametrize("kinds", GROUPS, ids=" ".join)
def test_a_comparison_is_that_of_postgresql_in_set_and_in_rules(ends, kinds):
    source, target = ends
    fill(source, {kind: VALUES[kind] for kind in kinds})

    @profile
    @given(constants=clauses_of(kinds))
    def compared(constants):
        asked = [one for n, few in enumerate(constants) for one in conditions(few, f"v{n}", f"w{n}")]
        right = answers(source, asked)
        moved(ends, set=[f"c{n} = {condition}" for n, condition in enumerate(asked)])
        found = rows(target, f"select id, {', '.join(f'c{n}' for n in range(len(asked)))} from public.u order by id")
        for n, condition in enumerate(asked, 1):
            assert {row[0]: row[n] for row in found} == right[condition], condition
        report = moved(ends, rule=[f"c{n}: {condition}" for n, condition in enumerate(asked)])
        failed = rows(target, f"select key::int, rules from keyhaul.quarantine where run_id = '{report.run_id}'")
        for n, condition in enumerate(asked):
            guilty = {key for key, rules in failed if f"c{n}" in rules}
            assert guilty == {key for key, passed in right[condition].items() if passed is False}, condition

    compared()


def fill_in_turn(uri, pools):
    """Make public.t of rows in which the column of one type, told by k, varies as in `fill`, and each other is the same."""
    columns = [sql.SQL("v{} {}").format(sql.SQL(str(n)), sql.SQL(kind)) for n, kind in enumerate(pools)]
    same = [values[0] for values in pools.values()]
    marks = sql.SQL(", ").join(map(sql.SQL, ["%s"] * (3 + len(same))))
    made = sorted(
        (number, k, text)
        for k, values in enumerate(pools.values())
        for number, text in enumerate([*values, "", *values])
    )
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute("drop table if exists public.t")
        every = sql.SQL(", ").join(columns)
        conn.execute(sql.SQL("create table public.t (id int primary key, k int, g int, {})").format(every))
        filled = []
        for number, (at, k, text) in enumerate(made):
            nothing = at == len(list(pools.values())[k])
            filled.append([number, k, at % 5 + 5 * k, *same[:k], None if nothing else text, *same[k + 1 :]])
        conn.cursor().executemany(sql.SQL("insert into public.t values ({})").format(marks), filled)


@pytest.mark.parametrize("across", [False, True], ids=["in one chunk", "across chunks"])
def test_copies_and_their_order_are_those_of_postgresql(ends, across):
    """Copies are told, and ordered, by the columns of all types; only one of them differs between any two rows of a g."""
    source, target = ends
    fill_in_turn(source, VALUES)
    names = [f"v{n}" for n in range(len(VALUES))]
    flags = {"chunk": 200} if across else {"key": "g", "chunk": 5000}
    moved(ends, dedup="g", order_by=",".join(names), **flags)
    for n, kind in enumerate(VALUES):
        ordered = f"select distinct on (g) g, v{n}::text from public.t where k = {n} order by g, t.v{n} desc nulls last"
        winners = dict(rows(target, f"select g, v{n}::text from public.u where k = {n}"))
        right = dict(rows(source, ordered))
        assert winners.keys() == right.keys()
        same = ", ".join(
            f"{literal(winners[g])}::{kind} is not distinct from {literal(text)}::{kind}" for g, text in right.items()
        )
        assert all(rows(source, f"select {same}")[0]), (kind, winners, right)
    on = ["k", *names] if across else ["g", *names]
    moved(ends, dedup=",".join(on), **flags)
    for n, kind in enumerate(VALUES):
        told = f"({'k' if across else 'g'}, v{n})"
        null = f"v{n} is null"
        counted = f"select count(distinct {told}) filter (where not {null}) + count(*) filter (where {null}) from "
        right = rows(source, f"{counted} public.t where k = {n}")
        assert rows(target, f"select count(*) from public.u where k = {n}") == right, kind
        assert rows(target, f"{counted} public.u where k = {n}") == right, kind


def test_what_cannot_mean_what_postgresql_means_is_refused_by_name(ends):
    fill(ends[0], OPAQUE)
    every = []
    for n, values in enumerate(OPAQUE.values()):
        one, v, w = literal(values[0]), f"v{n}", f"w{n}"
        asked = [f"{v} < {one}", f"{v} = {one}", f"{v} in ({one})", f"{v} between {one} and {one}"]
        every.append([*asked, f"{v} > {w}", f"{v} = {w}"])
    names = [f"c{n}_{m}" for n in range(len(OPAQUE)) for m in range(len(every[n]))]
    pairs = dict(zip(names, itertools.chain(*every), strict=True))
    for flags in (
        {"set": [f"{c} = {asked}" for c, asked in pairs.items()]},
        {"rule": [f"{c}: {a}" for c, a in pairs.items()]},
    ):
        with pytest.raises(ConfigError) as refused:
            moved(ends, **flags)
        lines = str(refused.value).splitlines()
        for name, asked in pairs.items():
            v = asked.split(" ", 1)[0]
            told = [line for line in lines if re.search(rf"\b{name}\b", line)]
            assert len(told) == 1, (name, asked)
            assert re.search(rf"{v} is .*, and .*cast\({v} as varchar\)", told[0])
    for n, asked in enumerate(every):  # a step of its own each: the first that is wrong ends it
        with pytest.raises(ConfigError, match=rf"v{n} is .*, and .*cast\(v{n} as varchar\)"):
            moved(ends, where=[asked[n % len(asked)]])
    columns = [f"v{n}" for n in range(len(OPAQUE))]
    for flags in ({"dedup": ",".join(columns)}, {"dedup": "g", "order_by": ",".join(columns)}):
        with pytest.raises(RefusedError) as refused:
            moved(ends, chunk=1000, **flags)
        for v in columns:
            assert re.search(rf"{v}: .*cast\({v} as varchar\)", str(refused.value)), v
    present = [f"{v} is not null" for v in columns]
    report = moved(ends, where=present, rule=[f"r{n}: {one}" for n, one in enumerate(present)])
    nulls = rows(ends[0], f"select count(*) from public.t where not ({' and '.join(present)})")[0][0]
    assert (report.counts.filtered, report.counts.quarantined) == (nulls, 0)
    assert nulls > 0
