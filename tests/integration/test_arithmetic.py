"""Numbers without a declared precision are computed with as PostgreSQL's numeric does, digit for digit."""

import itertools
import random

import polars as pl
import psycopg
import pytest
from moving import move, rows, run_sql
from support import drop_database, make_database

from keyhaul.errors import ConfigError
from keyhaul.semantics import arithmetic

NUMBERS = [
    "0", "0.00", "1", "1.0", "-1", "5", "10", "0.005", "-0.5", "0.10", "9999", "10000", "9999.9999", "-10000.5",
    "0.00009999", "1" + "0" * 35, "-0." + "0" * 19 + "1", "NaN", "Infinity", "-Infinity", "9" * 38, "-" + "9" * 38,
    "1" * 37 + ".5", "12345678901234567.1", "9" * 300, "0." + "0" * 299 + "1", "1" + "0" * 300 + ".5", "2.5", "-2.5",
]  # fmt: skip

ANSWERED = """create function pg_temp.answered(query text, l numeric, r numeric) returns text language plpgsql as $$
declare answer numeric;
begin execute 'select ' || query into answer using l, r; return answer;
exception when others then return '!' || sqlerrm; end $$"""


def made(count):
    """Numbers of up to 60 digits, the point anywhere."""
    drawn = random.Random(20261201)  # noqa: S311 - values of a test
    for _ in range(count):
        digits = "".join(drawn.choices("0123456789", k=drawn.choice([3, 8, 15, 19, 20, 30, 37, 38, 39, 60])))
        point = drawn.randint(0, len(digits))
        whole, rest = digits[:point].lstrip("0") or "0", digits[point:]
        yield drawn.choice(["", "-"]) + whole + (f".{rest}" if rest else "")


@pytest.fixture(scope="module")
def ends(server):
    uris = [make_database(server, name) for name in ("arithmetic_source", "arithmetic_target")]
    yield uris
    for uri in uris:
        drop_database(server, uri)


def test_every_digit_is_that_of_postgresql(ends):
    numbers = [*NUMBERS, *made(30)]
    pairs = list(itertools.product(numbers, numbers))
    with psycopg.connect(ends[0], autocommit=True) as conn:
        conn.execute(ANSWERED)
        conn.execute("create temp table pairs (i int, l numeric, r numeric)")
        with conn.cursor().copy("copy pairs from stdin") as copy:
            for number, (left, right) in enumerate(pairs):
                copy.write_row([number, left, right])
        asked = {"+": "$1 + $2", "-": "$1 - $2", "*": "$1 * $2", "/": "$1 / $2", "%": "mod($1, $2)"}
        alone = {(name, 0): f"{name}($1)" for name in ("abs", "sign", "floor", "ceil", "round")}
        alone |= {("round", digits): f"round($1, {digits})" for digits in (2, 20)}
        columns = [f"pg_temp.answered('{query}', l, r)" for query in (*asked.values(), *alone.values())]
        found = conn.execute(f"select l::text, r::text, {', '.join(columns)} from pairs order by i").fetchall()
    frame = pl.DataFrame(found, schema=["l", "r", *(f"c{n}" for n in range(len(columns)))], orient="row")
    ours = [arithmetic.binary(operator, pl.col("l"), pl.col("r")) for operator in asked]
    ours += [arithmetic.unary(name, pl.col("l"), digits) for name, digits in alone]
    computed = frame.select(expression.alias(f"c{n}") for n, expression in enumerate(ours))
    for n, query in enumerate((*asked.values(), *alone.values())):
        wrong = frame.select("l", "r", right=f"c{n}").with_columns(ours=computed[f"c{n}"])
        wrong = wrong.filter(~pl.col("right").eq_missing(pl.col("ours")))
        assert wrong.is_empty(), (query, wrong.head(3).rows())


AMOUNTS = ["-1", "0", "5", "10", "45", "0.005", "1.10", "NaN", "Infinity", "9" * 300, None]

EXPRESSIONS = {
    "net": "amount * 0.80",
    "taken": "-amount",
    "added": "amount + q - 1",
    "priced": "d * amount",
    "share": "case when n <> 0 then amount / n end",
    "filled": "coalesce(amount, 0)",
    "either": "case when q > 3 then amount else 0 end",
    "most": "greatest(amount, n, 1)",
    "fewest": "least(amount, n, 3, q, d, amount * 2, 7.5, n + 1)",
    "short": "round(amount, 1)",
    "size": "abs(amount)",
    "far": "abs(amount - n) > 2.5",
    "whole": "amount % 2 = 0",
    "twice": "amount * 2 between n and n * 3",
    "listed": "amount + 1 in (1, 2.10, 6)",
}


def fill(uri):
    run_sql(
        uri,
        "drop table if exists public.m",
        "create table m (id int primary key, amount numeric, n numeric, q int, d numeric(9,2))",
    )
    with psycopg.connect(uri, autocommit=True) as conn:
        filled = [(n, text, str(n % 4), n, n / 4) for n, text in enumerate(AMOUNTS)]
        conn.cursor().executemany("insert into m values (%s, %s, %s, %s, %s)", filled)


def test_expressions_move_what_postgresql_computes(ends):
    source, target = ends
    fill(source)
    run_sql(target, "drop table if exists public.u")
    report = move(ends, "public.m", into="public.u", set=[f"{name} = {text}" for name, text in EXPRESSIONS.items()])
    assert report.counts.quarantined == 0
    right = rows(
        source, f"select id, {', '.join(f'({text})::text' for text in EXPRESSIONS.values())} from public.m order by id"
    )
    assert (
        rows(target, f"select id, {', '.join(f'{name}::text' for name in EXPRESSIONS)} from public.u order by id")
        == right
    )
    kinds = rows(target, "select pg_typeof(net)::text, pg_typeof(far)::text from public.u limit 1")
    assert kinds == [("numeric", "boolean")]


def test_a_rule_and_a_filter_ask_what_postgresql_answers(ends):
    source, target = ends
    fill(source)
    conditions = {
        "a": "amount * 2 >= n", "b": "round(amount, 1) = amount", "c": "abs(amount) between n and n + 9",
        "d": "amount - (q + 1) < 0", "e": "coalesce(amount, 0) * 0.5 < 5", "f": "greatest(amount, n, q, d, amount * 2, 1.5, n + 1) > 2",
        "g": "amount::decimal(5,2) > 1 or amount > 9", "h": "case when n <> 0 then amount / n > 1 else true end",
    }  # fmt: skip
    run_sql(target, "drop table if exists public.u")
    kept = {"where": ["abs(amount) < 1e9 and amount / 2 < 1000"]}
    report = move(
        ends, "public.m", into="public.u", **kept, rule=[f"{name}: {text}" for name, text in conditions.items()]
    )
    failed = rows(target, f"select key::int, rules from keyhaul.quarantine where run_id = '{report.run_id}'")
    for name, text in conditions.items():
        query = f"select id from public.m where abs(amount) < 1e9 and amount / 2 < 1000 and not ({text}) order by id"
        assert sorted(key for key, rules in failed if name in rules) == [key for (key,) in rows(source, query)], text
    assert (
        report.counts.filtered
        == rows(source, "select count(*) from public.m where (abs(amount) < 1e9) is not true")[0][0]
    )


def test_what_postgresql_refuses_costs_its_record(ends):
    source, target = ends
    fill(source)
    run_sql(target, "drop table if exists public.u")
    steps = ["a = amount / n", "b = cast(amount as decimal(12,2))", "c = amount::bigint", "e = amount::double"]
    report = move(ends, "public.m", into="public.u", set=steps, rule=["r: amount / (n - 1) <> 7"])
    query = f"select key::int, message from keyhaul.quarantine where run_id = '{report.run_id}' order by 1"
    assert dict(rows(target, query)) == {
        0: "division by zero",
        1: "division by zero",
        4: "division by zero",
        5: "division by zero",
        7: "numeric field overflow",
        8: "division by zero",
        9: "numeric field overflow",
    }
    told = "select id, a::text, b::text, c::text, e::text from {} order by id"
    right = "(select id, amount / n as a, amount::decimal(12,2) as b, amount::bigint as c, amount::float8 as e from public.m where id in (2, 3, 6, 10)) as x"
    assert rows(target, told.format("public.u")) == rows(source, told.format(right))


def test_a_target_that_is_there_rounds_as_an_assignment_does(ends):
    source, target = ends
    fill(source)
    columns = {"a": "numeric(6,2)", "b": "int", "c": "float8", "e": "text", "f": "numeric(3,-1)"}
    table = "create table {} (id int primary key, amount numeric, n numeric, q int, d numeric, {})"
    typed = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    run_sql(target, "drop table if exists public.u", table.format("public.u", typed))
    report = move(ends, "public.m", into="public.u", set=[f"{name} = amount * 1.105" for name in columns])
    refused = rows(target, f"select key::int from keyhaul.quarantine where run_id = '{report.run_id}' order by 1")
    assert refused == [(7,), (8,), (9,)]  # NaN is no int, the others fit nowhere
    run_sql(source, "drop table if exists public.u", table.format("public.u", typed))
    run_sql(
        source, f"insert into public.u select *, {', '.join(['amount * 1.105'] * 5)} from m where id not in (7, 8, 9)"
    )
    told = f"select id, {', '.join(f'{name}::text' for name in columns)} from public.u order by id"
    assert rows(target, told) == rows(source, told)


def test_what_is_no_exact_arithmetic_is_refused_with_what_to_write(ends):
    fill(ends[0])
    for text, said in {
        "amount::numeric": r"rounded to 9 decimals here. .*numeric\(38,9\)",
        "sqrt(amount)": "amount is numeric.*Compute it in the source's query",
        "amount // 2": "amount is numeric.*Compute it in the source's query",
        "amount * (q > 1)": "expected a number",
    }.items():
        with pytest.raises(ConfigError, match=said):
            move(ends, "public.m", into="public.u", set=[f"x = {text}"])
    with pytest.raises(ConfigError, match=r"DuckDB would round to 3 decimals.*numeric\(38,9\)"):
        move(ends, "public.m", into="public.u", rule=["r: amount::numeric > 1"])
