"""Rules across the run: what they find in the target, and how they are refused."""

from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import rows, run_sql
from psycopg import sql

from keyhaul.before.runcheck import check_run
from keyhaul.config.job import load_job
from keyhaul.config.runrules import RunRule
from keyhaul.control import Control
from keyhaul.errors import ConfigError
from keyhaul.execution.engine import run
from keyhaul.ledger.reading import list_runs
from keyhaul.model import RunCheck

HEAD = "source: {{uri: '{}', table: public.t}}\ntarget: {{uri: '{}'}}\nkey: id\njob: move\n"


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, code text, customer bigint, amount numeric(12,4))",
        "insert into public.t select g, case when g % 10 > 0 then 'c' || g / 4 end, nullif(g % 7, 0), g / 4.0"
        " from generate_series(1, 100) g",
    )
    run_sql(
        databases[1],
        "create table public.customers (id int primary key)",
        "insert into public.customers values (1), (2)",
    )
    return databases


def job(databases, path, text):
    file = path / "job.yaml"
    file.write_text(HEAD.format(*databases) + text, encoding="utf-8")
    return load_job(file, {}, {})


def go(databases, path, text, **more):
    return run(job(databases, path, text), lambda _event: None, Control(), **more)


def test_what_fails_is_counted_as_sql_counts_it_and_the_rows_stay(filled, tmp_path):
    text = """
run_rules:
  - unique: id
  - unique: [code]
  - {references: {column: customer, table: public.customers, to: id}, name: customers, on_fail: warn}
  - row_count: {min: 1, max: 99}
  - equals_source: sum(amount)
  - equals_source: max(code)
"""
    report = go(filled, tmp_path, text)
    assert report.outcome == "done"
    twins = "select sum(n)::int, count(*) from (select count(*) n from public.t where code is not null group by code) g where n > 1"
    strangers = "select count(*) from public.t where customer not in (1, 2)"
    (shared, values), (unknown,) = rows(filled[0], twins)[0], rows(filled[0], strangers)[0]
    assert (shared > 0, unknown > 0) == (True, True)
    assert report.run_checks == (
        RunCheck(name="unique_id", on_fail="error", passed=True),
        RunCheck(
            name="unique_code",
            on_fail="error",
            passed=False,
            offenders=shared,
            message=f"{shared} rows share their code with another, {values} values in all",
        ),
        RunCheck(
            name="customers",
            on_fail="warn",
            passed=False,
            offenders=unknown,
            message=f"{unknown} rows have a customer that public.customers has not",
        ),
        RunCheck(
            name="row_count", on_fail="error", passed=False, message="100 rows, expected at least 1 and at most 99"
        ),
        RunCheck(name="equals_source_sum_amount", on_fail="error", passed=True),
        RunCheck(name="equals_source_max_code", on_fail="error", passed=True),
    )
    assert report.broken == ("unique_code", "row_count")
    assert rows(filled[1], "select count(*) from public.t") == [(100,)]
    with psycopg.connect(filled[1], autocommit=True) as conn:
        (kept,) = list_runs(conn, "keyhaul")
    assert [(check["name"], check["passed"]) for check in kept.run_checks][1] == ("unique_code", False)
    assert kept.status == "done"


def test_equals_source_sees_a_filtered_row_and_no_difference_of_scale(filled, tmp_path):
    run_sql(filled[1], "create table public.t (id int primary key, code text, customer bigint, amount numeric(30,9))")
    text = "run_rules: {total: {equals_source: sum(amount)}, none: {equals_source: sum(amount) filter (where false)}}\n"
    assert go(filled, tmp_path, text).broken == ()
    run_sql(filled[1], "truncate public.t")
    report = go(filled, tmp_path, text + "transform: [{where: id <> 4}]\n")
    assert report.broken == ("total",)
    assert report.run_checks[0].message == ("sum(amount) is 1261.500000000 in the target and 1262.5000 in the source")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("unique: nothing", r"line 5: bind run rule unique_nothing: column t.nothing does not exist"),
        ("references: {column: customer, table: public.gone}", r"line 5: bind .*public.gone is not in the target"),
        (
            "references: {column: code, table: public.customers, to: id}",
            r"line 5: .*operator does not exist: integer = text",
        ),
        ("references: {column: customer, table: public.customers}", r"line 5: .*column o.customer does not exist"),
        ("equals_source: amount", r"line 5: .*must appear in the GROUP BY clause or be used in an aggregate"),
        ("equals_source: sum(nothing)", r"line 5: .*column \"nothing\" does not exist"),
        ("row_count: {min: 3, max: 2}", r"line 5: .*got 2, less than min, expected at least 3"),
        ("row_count: {}", r"line 5: .*expected a mapping with min, max or both"),
        ("uniqe: id", r"line 5: .*expected one of unique, references, row_count, equals_source"),
        ("{unique: id, row_count: {min: 1}}", r"line 5: .*got a rule with unique, row_count"),
        ("{unique: id, on_fail: stop}", r"line 5: .*expected one of error, warn"),
        (
            "references: {column: [id, code], table: public.customers, to: id}",
            r"line 5: .*expected 2, as many as in column",
        ),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_rule_that_does_not_fit_is_refused_with_its_line_and_nothing_is_moved(filled, tmp_path, rule, message, there):
    if there:
        run_sql(
            filled[1], "create table public.t (id int primary key, code text, customer bigint, amount numeric(12,4))"
        )
    with pytest.raises(ConfigError, match=message):
        go(filled, tmp_path, f"run_rules: [{rule if rule.startswith('{') else '{' + rule + '}'}]\n")
    assert rows(filled[1], "select to_regclass('keyhaul.runs') is null, to_regclass('public.t') is null") == [
        (True, not there)
    ]


def test_a_table_with_types_of_its_own_is_checked_after_it_was_created(filled, tmp_path):
    run_sql(filled[0], "create type public.mood as enum ('a', 'b')", "alter table public.t add column mood public.mood")
    assert go(filled, tmp_path, "run_rules: [{unique: mood}, {unique: id}]\n").broken == ()


def test_a_run_that_was_resumed_says_that_the_source_is_newer(filled, tmp_path):
    text = "run_rules: [{equals_source: count(*)}]\nchunk: 10\nstop_on_error: true\nworkers: 1\n"
    ready = "create table public.t (id int primary key, code text, customer bigint, amount numeric(12,4))"
    fail = "create function public.no() returns trigger language plpgsql as 'begin return null; end'"
    run_sql(filled[1], ready, fail)
    trigger = "create trigger no before insert on public.t for each row when (new.id = 55) execute function public.no()"
    run_sql(filled[1], trigger)
    stopped = go(filled, tmp_path, text)
    assert (stopped.outcome, stopped.run_checks) == ("stopped", ())
    run_sql(filled[1], "drop trigger no on public.t")
    run_sql(filled[0], "insert into public.t values (0)")
    report = go(filled, tmp_path, text)
    assert report.broken == ("equals_source_count",)
    assert report.run_checks[0].message == (
        "count(*) is 100 in the target and 101 in the source (the source as this sitting reads it, newer than that of "
        "the first chunks)"
    )


NUMBERS = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([Decimal("1.0"), Decimal("1.00"), Decimal("NaN")]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), parents=st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5)
)
def test_unique_and_references_say_what_postgresqls_own_constraints_say(databases, pairs, parents):
    with psycopg.connect(databases[1], autocommit=True) as conn:
        conn.execute("drop table if exists public.c, public.p")
        conn.execute("create table public.c (a numeric, b numeric)")
        conn.execute("create table public.p (a numeric, b numeric, unique (a, b))")
        for table, values in (("c", pairs), ("p", parents)):
            for pair in values:
                conn.execute(f"insert into public.{table} values (%s, %s) on conflict do nothing", pair)
        wanted = [
            RunRule(name="u", kind="unique", columns=("a", "b")),
            RunRule(name="r", kind="references", columns=("a", "b"), table="public.p"),
        ]
        found = check_run(conn, sql.Identifier("public", "c"), wanted, None)
        for check, constraint in zip(
            found, ["unique (a, b)", "foreign key (a, b) references public.p (a, b)"], strict=True
        ):
            holds = True
            try:
                conn.execute(f"alter table public.c add {constraint}")
            except (psycopg.errors.UniqueViolation, psycopg.errors.ForeignKeyViolation):
                holds = False
            assert (check.passed, check.offenders == 0) == (holds, holds)
