"""A row that the target rejects costs itself: it is quarantined with the constraint, the others load."""

import pytest
from moving import move, rows, run_sql


def fill(databases, number, *target):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, ref int, amount int, name text)",
        f"insert into public.t select g, g % 100, g, 'n' || g from generate_series(1, {number}) g",
    )
    run_sql(databases[1], *target)


def quarantined(databases, report):
    query = (
        f"select key::int, rules, stage, message from keyhaul.quarantine where run_id = '{report.run_id}' order by 1"
    )
    return rows(databases[1], query)


CHECK = "create table public.t (id int primary key, ref int, amount int constraint small check (amount <> 777 and amount <> 4242), name text)"


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_the_guilty_rows_of_a_check_stand_alone_in_quarantine_and_the_rest_loads(databases, loader):
    fill(databases, 5000, CHECK)
    report = move(databases, "public.t", chunk="2500", loader=loader)
    assert (report.counts.loaded, report.counts.quarantined, report.counts.balanced) == (4998, 2, True)
    assert [(key, rules, stage) for key, rules, stage, _ in quarantined(databases, report)] == [
        (777, ["small"], "load"),
        (4242, ["small"], "load"),
    ]
    assert "SQLSTATE 23514, constraint small" in quarantined(databases, report)[0][3]
    assert rows(databases[1], "select count(*) from public.t") == [(4998,)]


def test_many_orphans_are_found_and_only_they(databases):
    fill(
        databases,
        5000,
        "create table public.parent (id int primary key)",
        "insert into public.parent select g from generate_series(0, 89) g",
        "create table public.t (id int primary key, ref int constraint parent_fk references public.parent, amount int, name text)",
    )
    report = move(databases, "public.t", chunk="5000")
    assert (report.counts.loaded, report.counts.quarantined) == (4500, 500)
    expected = rows(databases[0], "select id from public.t where ref >= 90 order by 1")
    assert [(key,) for key, *_ in quarantined(databases, report)] == expected
    assert {tuple(rules) for _, rules, _, _ in quarantined(databases, report)} == {("parent_fk",)}


def test_a_deferred_constraint_is_found_before_the_commit(databases):
    fill(
        databases,
        200,
        "create table public.parent (id int primary key)",
        "insert into public.parent select g from generate_series(0, 98) g",
        "create table public.t (id int primary key, ref int constraint parent_fk references public.parent deferrable initially deferred, amount int, name text)",
    )
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (198, 2)
    assert [key for key, *_ in quarantined(databases, report)] == [99, 199]


def test_a_row_that_is_there_already_is_quarantined_by_the_primary_key(databases):
    fill(
        databases,
        300,
        "create table public.t (id int primary key, ref int, amount int, name text)",
        "insert into public.t select g, 0, 0, 'old' from generate_series(100, 104) g",
    )
    source, target = databases
    from keyhaul.config.job import load_job
    from keyhaul.control import Control
    from keyhaul.execution.engine import run

    flags = {"source": source, "target": target, "table": "public.t", "key": "id"}
    report = run(load_job(None, flags, {"ETL_MODE": "append"}), lambda _: None, Control())
    assert (report.counts.loaded, report.counts.quarantined) == (295, 5)
    assert [key for key, *_ in quarantined(databases, report)] == [100, 101, 102, 103, 104]
    assert rows(target, "select count(*) from public.t where name = 'old'") == [(5,)]


def test_an_exception_of_a_trigger_costs_its_row(databases):
    fill(
        databases,
        500,
        "create table public.t (id int primary key, ref int, amount int, name text)",
        "create function public.no() returns trigger language plpgsql as $$ begin if new.id = 250 then raise exception 'not this one'; end if; return new; end $$",
        "create trigger no before insert on public.t for each row execute function public.no()",
    )
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (499, 1)
    assert [(key, rules) for key, rules, *_ in quarantined(databases, report)] == [(250, ["sqlstate:P0001"])]


def test_a_reference_within_the_table_waits_for_its_parent(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, ref int)",
        "insert into public.t select g, case when g < 1000 then g + 1 end from generate_series(1, 1000) g",
        "insert into public.t values (2001, 5555)",
    )
    run_sql(databases[1], "create table public.t (id int primary key, ref int constraint self references public.t)")
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (1000, 1)
    assert [key for key, *_ in quarantined(databases, report)] == [2001]


def test_without_pl_pgsql_many_orphans_are_found_all_the_same(databases):
    fill(
        databases,
        1000,
        "drop extension plpgsql",
        "create table public.parent (id int primary key)",
        "insert into public.parent select g from generate_series(0, 89) g",
        "create table public.t (id int primary key, ref int constraint parent_fk references public.parent, amount int, name text)",
    )
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (900, 100)
    assert {tuple(rules) for _, rules, _, _ in quarantined(databases, report)} == {("parent_fk",)}


def test_many_exceptions_of_a_trigger_cost_their_rows_and_are_told_as_the_server_says_them(databases):
    fill(
        databases,
        1000,
        "create table public.t (id int primary key, ref int, amount int, name text)",
        "create function public.no() returns trigger language plpgsql as $$ begin if new.id % 10 = 3 then raise exception 'not this one'; end if; return new; end $$",
        "create trigger no before insert on public.t for each row execute function public.no()",
    )
    report = move(databases, "public.t")
    assert (report.counts.loaded, report.counts.quarantined) == (900, 100)
    found = quarantined(databases, report)
    assert [key for key, *_ in found] == list(range(3, 1000, 10))
    assert {(tuple(rules), message) for _, rules, _, message in found} == {
        (("sqlstate:P0001",), "load chunk: not this one (SQLSTATE P0001)")
    }


def test_among_references_within_the_table_only_those_that_lead_nowhere_are_refused(databases):
    """Each row refers to the next; each 20th refers to nothing, one breaks a check, and what leads there is refused."""
    run_sql(
        databases[0],
        "create table public.t (id int primary key, ref int, amount int)",
        "insert into public.t select g, case when g % 20 = 0 and g <= 800 then 5000 + g when g < 3000 then g + 1 end, g"
        " from generate_series(1, 3000) g",
    )
    run_sql(
        databases[1],
        "create table public.t (id int primary key, ref int constraint self references public.t,"
        " amount int constraint small check (amount <> 1500))",
    )
    report = move(databases, "public.t", chunk="3000")
    assert (report.counts.loaded, report.counts.quarantined) == (1500, 1500)
    found = quarantined(databases, report)
    assert [(key, rules) for key, rules, *_ in found] == [
        (key, ["small" if key == 1500 else "self"]) for key in range(1, 1501)
    ]
