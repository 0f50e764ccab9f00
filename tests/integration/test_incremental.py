"""Incremental runs: what they read, what they leave, and what the next one begins at."""

import io
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moving import rows, run_sql

import keyhaul
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.execution.engine import run
from keyhaul.printing.planview import print_plan
from keyhaul.replay.resending import replay

TABLE = "create table public.t (id int primary key, note text, updated_at timestamptz)"
ALL = "select * from public.t order by id"


def job(databases, **flags):
    source, target = databases
    given_flags = {"source": source, "target": target, "table": "public.t", "key": "id", "incremental": "updated_at"}
    return load_job(None, {**given_flags, **flags}, {})


def go(databases, *, fresh=False, full=False, observe=lambda _event: None, **flags):
    return run(job(databases, **flags), observe, Control(), fresh=fresh, full=full)


def told(databases, **flags):
    """Run, and return the report with the notices."""
    notices = []
    report = go(databases, observe=lambda e: notices.append(getattr(e, "message", "")), **flags)
    return report, " | ".join(filter(None, notices))


def counts(report):
    c = report.counts
    return (c.read, c.loaded, c.updated, c.unchanged)


def runs(databases):
    return rows(databases[1], "select status, since, watermark from keyhaul.runs order by started_at")


def same(databases):
    return rows(databases[0], ALL) == rows(databases[1], ALL)


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        TABLE,
        "create index on public.t (updated_at)",
        "insert into public.t select g, 'first', timestamptz '2024-01-01 00:00Z' + g * interval '1 minute'"
        " from generate_series(1, 1000) g",
        "analyze public.t",
    )
    return databases


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_over_three_days_of_changes_the_target_equals_the_source_and_only_what_changed_is_read(filled, reader):
    flags = {"lag": "5m", "reader": reader, "chunk": "300"}
    assert counts(go(filled, **flags)) == (1000, 1000, 0, 0)
    assert same(filled)
    # The second day: 10 rows changed, 5 are new, one was committed late, within the lag of 16:40.
    run_sql(
        filled[0],
        "update public.t set note = 'second', updated_at = '2024-01-02 00:00Z' where id <= 10",
        "insert into public.t select g, 'new', '2024-01-02 00:01Z' from generate_series(2001, 2005) g",
        "insert into public.t values (3001, 'late', '2024-01-01 16:37Z')",
    )
    # Within the lag are ids 995 to 1000 of the first day, which are read again and are unchanged.
    report = go(filled, **flags)
    assert counts(report) == (10 + 5 + 1 + 6, 16, 10, 6)
    assert report.counts.balanced
    assert same(filled)
    # The third day: nothing but one change.
    run_sql(filled[0], "update public.t set note = 'third', updated_at = '2024-01-03 00:00Z' where id = 500")
    assert counts(go(filled, **flags)) == (1 + 15, 1, 1, 15)
    assert same(filled)
    assert [watermark for _, _, watermark in runs(filled)] == [
        "2024-01-01 16:40:00+00",
        "2024-01-02 00:01:00+00",
        "2024-01-03 00:00:00+00",
    ]
    assert [since for _, since, _ in runs(filled)] == [None, "2024-01-01 16:35:00+00", "2024-01-01 23:56:00+00"]


def test_a_run_with_nothing_new_reads_what_is_at_the_watermark_and_keeps_it(filled):
    go(filled)
    assert counts(go(filled)) == (1, 0, 0, 1)
    run_sql(filled[0], "delete from public.t where id > 900")
    report = go(filled)
    assert (counts(report), report.outcome) == ((0, 0, 0, 0), "done")
    assert {watermark for _, _, watermark in runs(filled)} == {"2024-01-01 16:40:00+00"}
    assert rows(filled[1], "select count(*) from public.t") == [(1000,)]  # deletes are out of scope


def test_rows_with_the_watermarks_own_value_are_never_lost(filled):
    go(filled)
    run_sql(filled[0], "insert into public.t values (5000, 'same moment', '2024-01-01 16:40Z')")
    assert counts(go(filled)) == (2, 1, 0, 1)
    assert same(filled)


def test_null_is_read_by_the_first_run_only_and_that_is_said(filled):
    run_sql(filled[0], "insert into public.t values (0, 'no moment', null)")
    report, said = told(filled)
    assert (counts(report), "whose updated_at is NULL: only the first run or --full reads them" in said) == (
        (1001, 1001, 0, 0),
        True,
    )
    run_sql(filled[0], "insert into public.t values (-1, 'no moment', null)")
    report, said = told(filled)
    assert (report.counts.read, "this run does not read them" in said) == (1, True)
    assert counts(go(filled, full=True)) == (1002, 1, 0, 1001)
    assert same(filled)


def test_infinity_is_no_watermark_and_is_read_each_time(filled):
    run_sql(filled[0], "insert into public.t values (0, 'open', 'infinity')")
    go(filled)
    run_sql(filled[0], "update public.t set note = 'b', updated_at = '2024-01-02 00:00Z' where id = 3")
    assert counts(go(filled)) == (3, 1, 1, 2)
    assert rows(filled[1], "select note from public.t where id = 3") == [("b",)]


def test_a_moment_in_the_future_is_warned_of(filled):
    run_sql(filled[0], "insert into public.t values (0, 'typing error', '2924-01-01')")
    assert "in the future" in told(filled)[1]


@pytest.mark.parametrize(
    ("declared", "lag", "values", "since"),
    [
        ("int", "10", "-2147483648, -2147483645", "-2147483648"),
        ("bigint", "1.5", "1, 10", "8"),
        ("numeric(10,2)", "0.005", "1, 10", "9.995"),
        ("numeric", "1", "'NaN', 'Infinity', 10", "9"),
        ("date", "36h", "'2024-01-01', '2024-02-10', 'infinity'", "2024-02-08"),
        ("timestamp(0)", "0.4s", "'2024-01-01 10:00:00'", "2024-01-01 09:59:59.6"),
    ],
)
def test_the_bound_is_made_in_the_columns_own_type(databases, declared, lag, values, since):
    made = "), (".join(f"{n}, {value}" for n, value in enumerate(values.split(", "), 1))
    run_sql(
        databases[0],
        f"create table public.t (id int primary key, v {declared})",
        f"insert into public.t values ({made})",
    )
    for _ in range(2):
        go(databases, incremental="v", lag=lag)
    assert runs(databases)[1][1] == since


def test_a_domain_whose_check_refuses_the_bound_is_read_all_the_same(databases):
    run_sql(
        databases[0],
        "create domain public.positive as int check (value > 5)",
        "create table public.t (id int primary key, v public.positive)",
        "insert into public.t values (1, 7), (2, 9)",
    )
    for _ in range(2):
        report = go(databases, incremental="v", lag="8")
    assert counts(report) == (2, 0, 0, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"incremental": "nothing"}, "has no column nothing, expected one of id, note, updated_at"),
        ({"incremental": "note"}, "note is text, expected an integer, numeric, date or timestamp"),
        ({"lag": "5"}, "the lag of updated_at .timestamp with time zone. is 5, expected a duration"),
        ({"incremental": "id", "lag": "5m"}, "the lag of id .integer. is 5m, expected a number"),
        ({"mode": "append"}, "append with incremental, expected upsert or skip"),
        ({"lag": "5 parsecs"}, "expected a duration such as"),
        ({"incremental": None, "lag": "5m"}, "incremental.column"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(filled, flags, message):
    flags = {"incremental": "updated_at", **flags}
    with pytest.raises(ConfigError, match=message):
        go(filled, **flags)
    assert rows(filled[1], "select to_regclass('keyhaul.runs'), to_regclass('public.t')") == [(None, None)]


def test_a_target_that_is_gone_or_empty_is_not_filled_with_the_delta_alone(filled):
    go(filled)
    run_sql(filled[1], "truncate public.t")
    with pytest.raises(RefusedError, match=r"it is empty, though run .* has loaded it.* --full"):
        go(filled)
    run_sql(filled[1], "drop table public.t")
    with pytest.raises(RefusedError, match="not there any more"):
        go(filled)
    assert counts(go(filled, full=True)) == (1000, 1000, 0, 0)


def test_another_target_column_or_source_begins_with_all_rows(filled):
    flags = {"job": "one"}
    go(filled, **flags)
    assert go(filled, into="public.other", **flags).counts.read == 1000
    assert go(filled, incremental="id", **flags).counts.read == 1000
    query = {"table": None, "query": "select * from public.t", "into": "public.t", "conflict": "id"}
    assert go(filled, **flags, **query).counts.read == 1000
    assert go(filled, **flags, **query).counts.read == 1
    report, said = told(filled, **flags, where="id > 5")
    assert (report.counts.read, "the job has changed since its last run (transform" in said) == (1, True)


def test_a_replay_is_not_limited_by_the_watermark(filled):
    run_sql(filled[1], TABLE, "alter table public.t add constraint odd check (note <> 'bad')")
    run_sql(filled[0], "update public.t set note = 'bad' where id = 7")
    assert go(filled).counts.quarantined == 1
    go(filled)
    run_sql(filled[0], "update public.t set note = 'mended' where id = 7")  # and its moment stays
    first = rows(filled[1], "select run_id from keyhaul.runs order by started_at limit 1")[0][0]
    done = replay(job(filled), first, lambda _event: None, Control(), changed=True)
    assert (done.left, done.report.counts.loaded) == (0, 1)
    assert same(filled)


def test_a_nullable_key_is_limited_as_well(databases):
    run_sql(
        databases[0],
        "create table public.t (k int, id int, updated_at timestamp)",
        "insert into public.t values (null, 1, '2024-01-01'), (1, 2, '2024-01-02'), (null, 3, '2024-01-03')",
    )
    run_sql(databases[1], "create table public.t (k int, id int primary key, updated_at timestamp)")
    flags = {"key": "k", "conflict": "id"}
    assert go(databases, **flags).counts.read == 3
    run_sql(databases[0], "insert into public.t values (2, 4, '2024-01-04'), (null, 5, '2024-01-05')")
    assert counts(go(databases, **flags)) == (3, 2, 0, 1)


def test_the_plan_and_the_chunks_of_a_small_delta_use_the_columns_index(filled):
    run_sql(
        filled[0],
        "insert into public.t select g, repeat('x', 200), '2024-01-01' from generate_series(10001, 60000) g",
        "vacuum analyze public.t",
    )
    go(filled)
    run_sql(filled[0], "update public.t set updated_at = '2024-01-05' where id between 20000 and 20099", "analyze")
    scans = "select seq_scan from pg_stat_user_tables where relname = 't'"
    run_sql(filled[0], "select pg_stat_force_next_flush()")
    before = rows(filled[0], scans)
    assert go(filled, chunk="50").counts.read == 101
    assert rows(filled[0], scans) == before


def test_a_plan_from_python_is_what_etl_plan_prints_and_full_reads_all(filled):
    run_sql(filled[0], "insert into public.t select g, 'old', '2024-01-01' from generate_series(1001, 1005) g")
    assert go(filled).counts.read == 1005
    run_sql(filled[0], "update public.t set updated_at = '2024-01-05 00:00Z' where id % 80 = 0")

    planned = keyhaul.plan(job(filled))
    assert sum(chunk.estimated_rows for chunk in planned.chunks) == planned.plan.estimated_rows == 13
    assert planned.delta is not None
    assert planned.delta.reads == "rows with updated_at >= 2024-01-01 16:40:00+00"
    printed = io.StringIO()
    print_plan(planned, printed)
    assert "  plan   1 chunks, 13 rows, " in printed.getvalue()
    assert "  reads  rows with updated_at >= 2024-01-01 16:40:00+00\n" in printed.getvalue()
    assert keyhaul.plan(job(filled), full=True).plan.estimated_rows == 1005

    assert keyhaul.run(job(filled)).counts.read == 13
    assert keyhaul.run(job(filled), full=True).counts.read == 1005
    for done in (keyhaul.plan, keyhaul.run):
        with pytest.raises(ConfigError, match="--full: got a job that is not incremental"):
            done(job(filled, incremental=None, mode="append"), full=True)


def test_a_missing_index_is_warned_of(databases):
    run_sql(databases[0], TABLE, "insert into public.t values (1, 'a', '2024-01-01')")
    go(databases)
    assert "no index of public.t leads with updated_at" in told(databases)[1]


CHANGES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=25)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(days=st.lists(CHANGES, min_size=2, max_size=4), lag=st.integers(3, 5), chunk=st.integers(1, 20))
def test_whatever_changes_the_target_equals_the_source_after_each_run(databases, days, lag, chunk):
    """Each change is late by at most 3, which the lag covers."""
    for uri in databases:
        run_sql(uri, "drop table if exists public.t", "drop schema if exists keyhaul cascade")
    run_sql(databases[0], "create table public.t (id int primary key, note text, updated_at numeric(6,1))")
    clock = 0
    for number, day in enumerate(days):
        for key, late, step in day:
            clock += step
            run_sql(
                databases[0],
                f"insert into public.t values ({key}, 'day {number}', {Decimal(clock - late)}) on conflict (id)"
                " do update set note = excluded.note, updated_at = excluded.updated_at",
            )
        assert go(databases, lag=str(lag), chunk=str(chunk)).counts.balanced
        assert same(databases)
