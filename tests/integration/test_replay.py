"""Quarantined records go through the job again: what loads now is resolved, nothing is loaded twice."""

import psycopg
import pytest
from moving import rows, run_sql

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.events import Notice
from keyhaul.execution.engine import run
from keyhaul.replay.resending import replay

ORPHANS = """
create table public.parent (id int primary key);
insert into public.parent select g from generate_series(0, 89) g;
create table public.t (id int primary key, ref int constraint parent_fk references public.parent, name text);
"""


def job(databases, **flags):
    source, target = databases
    given = {"source": source, "target": target, "table": "public.t", "key": "id", "job": "move", **flags}
    return load_job(None, given, {})


def move(databases, **flags):
    return run(job(databases, **flags), lambda _event: None, Control())


def again(databases, name="last", *, rule=None, observe=lambda _event: None, **flags):
    return replay(job(databases, **flags), name, observe, Control(), rule=rule, changed=True)


def counts(report):
    assert report.counts.balanced
    c = report.counts
    return c.read, c.loaded, c.filtered, c.quarantined


def unresolved(databases, select="key"):
    query = f"select {select} from keyhaul.quarantine where resolved_at is null order by chunk, record"
    return rows(databases[1], query)


def tried(databases):
    """Return how often the unresolved records were tried, and by whom the last time."""
    return rows(databases[1], "select distinct attempts, tried_by from keyhaul.quarantine where resolved_at is null")


def fill(databases, number=1000, target=ORPHANS):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, ref int, name text)",
        f"insert into public.t select g, g % 100, 'n' || g from generate_series(1, {number}) g",
    )
    run_sql(databases[1], target)


@pytest.mark.thin(3)
@pytest.mark.parametrize("loader", ["copy", "adbc"])
@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_orphans_whose_parents_came_later_load_and_the_rest_stays(databases, loader, reader):
    fill(databases)
    report = move(databases, chunk="250", loader=loader, reader=reader)
    assert counts(report) == (1000, 900, 0, 100)
    run_sql(databases[1], "insert into public.parent select g from generate_series(90, 95) g")
    done = again(databases, chunk="30", loader=loader, reader=reader)
    assert (done.run_id, done.left, done.report.chunks_done) == (report.run_id, 40, 4)
    assert counts(done.report) == (100, 60, 0, 40)
    assert done.report.quarantined_by_reason == {"parent_fk": 40}
    expected = rows(databases[0], "select id::text from public.t where ref >= 96 order by t.id")
    assert unresolved(databases) == expected
    assert tried(databases) == [(2, done.report.run_id)]
    assert rows(databases[1], "select id, ref, name from public.t order by id") == rows(
        databases[0], "select id, ref, name from public.t where ref < 96 order by id"
    )
    resolved = (
        "select resolved_by, count(*), min(attempts) from keyhaul.quarantine where resolved_at is not null group by 1"
    )
    assert rows(databases[1], resolved) == [(done.report.run_id, 60, 2)]
    history = f"select sum(rows_read), sum(rows_loaded), sum(rows_quarantined) from keyhaul.chunks where run_id = '{report.run_id}'"
    assert rows(databases[1], history) == [(1000, 900, 100)]


def test_a_second_replay_tries_only_what_is_left_and_loads_nothing_twice(databases):
    fill(databases)
    run_sql(databases[1], "alter table public.t drop constraint t_pkey")
    move(databases)
    run_sql(databases[1], "insert into public.parent select g from generate_series(90, 95) g")
    assert counts(again(databases).report) == (100, 60, 0, 40)
    assert counts(again(databases).report) == (40, 0, 0, 40)
    assert [number for number, _ in tried(databases)] == [3]
    run_sql(databases[1], "insert into public.parent select g from generate_series(96, 99) g")
    assert counts(again(databases).report) == (40, 40, 0, 0)
    done = again(databases)
    assert (done.report, done.left) == (None, 0)
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(1000, 1000)]


def test_a_rule_that_was_relaxed_lets_its_records_in(databases):
    fill(databases, 100, "select")
    move(databases, rule=["few: id <= 90"])
    done = again(databases, rule="few")
    assert counts(done.report) == (10, 10, 0, 0)
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(100, 100)]


def test_what_fails_for_another_reason_says_the_new_one(databases):
    fill(databases, 100, "select")
    move(databases, rule=["few: id <= 99"])
    run_sql(databases[1], "alter table public.t add constraint small check (id < 100)")
    assert again(databases).left == 1
    ((stage, rules, message, attempts),) = unresolved(databases, "stage, rules, message, attempts")
    assert (stage, rules, attempts) == ("load", ["small"], 2)
    assert "SQLSTATE 23514, constraint small" in message


def test_records_that_are_gone_or_filtered_now_are_resolved_and_say_so(databases):
    fill(databases, 100, "select")
    move(databases, rule=["few: id <= 97"])
    run_sql(databases[0], "delete from public.t where id = 98")
    done = again(databases, where=["id <> 99"])
    assert (counts(done.report), done.left) == ((3, 1, 2, 0), 0)
    said = "select key, split_part(message, ' (before: ', 1) from keyhaul.quarantine where key <> '100' order by 1"
    assert rows(databases[1], said) == [
        ("98", "the record is not in the source any more"),
        ("99", "the job filters this record now"),
    ]
    assert rows(databases[1], "select max(id) from public.t") == [(100,)]


def test_keys_of_several_columns_with_quotes_are_read_again(databases):
    run_sql(
        databases[0],
        "create table public.t (a text, b timestamptz, c numeric(8,2), v int, primary key (a, b, c))",
        """insert into public.t select format(E'it''s "%s", {\\\\} [é] %%', g), '2026-01-01'::timestamptz + g * interval '1.5 s',
           g / 4.0, g from generate_series(1, 200) g""",
        "insert into public.t values ('', '1999-12-31', 0, 201), (' ', '1999-12-31', 0, 202), ('NULL', '1999-12-31', 0, 203), (E'a\\nb', '1999-12-31', 0, 204)",
    )
    move(databases, key="a,b,c", chunk="50", rule=["few: v between 20 and 150"])
    assert len(unresolved(databases)) == 73
    done = again(databases, key="a,b,c", chunk="20")
    assert counts(done.report) == (73, 73, 0, 0)
    assert rows(databases[1], "select * from public.t order by v") == rows(
        databases[0], "select * from public.t order by v"
    )


@pytest.mark.thin(3)
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", ["it''s", '"', "a,b", "{}", "\\", "NULL", "", " ", "é😀", "$$"]),
        ("bytea", ["\\x004142", "\\x4142", "\\x5c78", "\\x"]),
        ("timestamp", ["2026-01-01 00:00:00.5", "2026-01-01 00:00:00.000001", "0044-03-15 12:00:00 BC", "0001-01-01"]),
        ("timestamptz", ["2026-01-01 00:00:00.25+05", "2026-06-01"]),
        ("timestamptz", ["infinity", "2026-06-01", "9999-12-31 23:59:59.5+00"]),
        ("date", ["0044-03-15 BC", "2026-01-01", "9999-12-31"]),
        ("uuid", ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        ("numeric", ["1.50", "1e30", "NaN"]),
        ("numeric(10,3)", ["1.5", "-0.001"]),
        ("float8", ["0.1", "1e300", "-Infinity", "NaN"]),
        ("float4", ["0.1", "3.4e38"]),
        ("boolean", ["true", "false"]),
        ("time", ["12:00:00.5", "00:00"]),
        ("interval", ["1 day 2:00", "1 mon"]),
        ("char(4)", ["ab", "abcd"]),
        ("inet", ["10.0.0.1", "::1/64"]),
    ],
)
@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_a_key_of_any_type_is_found_again_by_its_text(databases, kind, values, reader):
    listed = ", ".join(f"('{value}', 1)" for value in values)
    run_sql(
        databases[0], f"create table public.t (id {kind} primary key, v int)", f"insert into public.t values {listed}"
    )
    move(databases, rule=["no: v <> 1"], reader=reader)
    assert len(unresolved(databases)) == len(values)
    done = again(databases, reader=reader)
    assert (counts(done.report), done.report.failed) == ((len(values), len(values), 0, 0), ())
    query = "select id::text, v from public.t order by 1"
    assert rows(databases[1], query) == rows(databases[0], query)


def test_only_the_records_of_a_rule_are_sent_again(databases):
    fill(databases, 100, "select")
    move(databases, rule=["low: id > 5", "high: id <= 90"])
    done = again(databases, rule="low")
    assert (counts(done.report), done.left) == ((5, 5, 0, 0), 0)
    assert len(unresolved(databases)) == 10
    with pytest.raises(RefusedError, match=r"none of its records broke 'hgh', expected one of high, low"):
        again(databases, rule="hgh")


def test_records_without_a_key_stay_and_this_is_said(databases):
    run_sql(
        databases[0],
        "create table public.t (id int unique, v int)",
        "insert into public.t select nullif(g, 7), g from generate_series(1, 20) g",
    )
    move(databases, rule=["few: v between 8 and 15"])
    told = []
    done = again(databases, observe=told.append)
    assert (counts(done.report), done.left, done.without_key) == ((11, 11, 0, 0), 1, 1)
    assert "NULL key, cannot be read again, left: 1 record" in " ".join(
        e.message for e in told if isinstance(e, Notice)
    )


def test_a_key_that_may_be_there_twice_is_refused_unless_the_target_knows_what_it_has(databases):
    run_sql(
        databases[0],
        "create table public.t (id int not null, v int)",
        "insert into public.t select g, v from generate_series(1, 10) g, generate_series(1, 2) v",
    )
    run_sql(databases[1], "create table public.t (id int, v int)")
    move(databases, rule=["first: v = 1"])
    with pytest.raises(RefusedError, match=r"several rows of public\.t may have one key"):
        again(databases)
    run_sql(databases[1], "alter table public.t add primary key (id)")
    done = again(databases)
    assert (done.left, done.report.counts.loaded, done.report.counts.balanced) == (10, 0, True)
    assert rows(databases[1], "select count(*), sum(v) from public.t") == [(10, 10)]


def kill_at(target, number):
    """Make the target end the session that inserts the row with this id."""
    run_sql(
        target,
        "create function public.kill() returns trigger language plpgsql as $$ begin"
        f" if new.id = {number} then perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); end if;"
        " return new; end $$",
        "create constraint trigger kill after insert on public.t deferrable initially deferred"
        " for each row execute function public.kill()",
    )


def test_a_replay_that_was_cut_short_is_repeated_without_loading_a_record_twice(databases):
    fill(databases)
    run_sql(databases[1], "alter table public.t drop constraint t_pkey")
    first = move(databases)
    run_sql(databases[1], "insert into public.parent select g from generate_series(90, 99) g")
    kill_at(databases[1], 595)
    cut = again(databases, chunk="10", workers="1")
    assert (cut.report.outcome, cut.left) == ("stopped", 10)
    assert (cut.report.chunks_done, len(cut.report.failed)) == (9, 1)
    run_sql(databases[1], "drop trigger kill on public.t")
    assert counts(again(databases, chunk="10").report) == (10, 10, 0, 0)
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(1000, 1000)]
    states = "select kind, status from keyhaul.runs order by started_at"
    assert rows(databases[1], states) == [("run", "done"), ("replay", "abandoned"), ("replay", "done")]
    assert first.outcome == "done"


def test_a_record_resolved_while_its_batch_is_under_way_is_not_loaded_again(databases):
    fill(databases)
    run_sql(databases[1], "alter table public.t drop constraint t_pkey")
    move(databases)
    run_sql(databases[1], "insert into public.parent select g from generate_series(90, 99) g")
    with psycopg.connect(databases[1]) as late:  # the backend of a killed replay, about to commit
        late.execute("insert into public.t values (90, 90, 'n90')")
        late.execute("update keyhaul.quarantine set resolved_at = now(), resolved_by = 'late' where key = '90'")

        def commit_at_load(event):
            if getattr(event, "step", "") == "load":
                late.commit()

        done = again(databases, observe=commit_at_load)
    assert counts(done.report) == (99, 99, 0, 0)
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(1000, 1000)]


def test_runs_and_replays_do_not_go_on_with_each_other(databases):
    fill(databases)
    move(databases)
    kill_at(databases[1], 595)
    run_sql(databases[1], "insert into public.parent values (95)")
    assert again(databases).report.outcome == "stopped"
    run_sql(databases[1], "drop trigger kill on public.t", "delete from public.t")
    report = move(databases, mode="append")
    assert (report.resumed, report.counts.read) == (False, 1000)
    run_sql(databases[1], f"update keyhaul.runs set status = 'stopped' where run_id = '{report.run_id}'")
    assert again(databases, report.run_id, mode="append").report.resumed is False
    assert move(databases, mode="append").run_id == report.run_id


def test_a_replay_is_refused_for_another_run_job_key_source_or_target(databases, database, server):
    fill(databases)
    report = move(databases)
    done = again(databases)
    with pytest.raises(RefusedError, match=rf"it is a replay of run {report.run_id}"):
        again(databases, done.report.run_id)
    with pytest.raises(RefusedError, match="it is not in the ledger"):
        again(databases, "20200101T000000-abcd")
    with pytest.raises(RefusedError, match="it is of job move, expected other"):
        again(databases, report.run_id, job="other")
    with pytest.raises(RefusedError, match="no run of this job is in the ledger"):
        again(databases, job="other")
    with pytest.raises(RefusedError, match="its key is id, not ref"):
        again(databases, key="ref")
    run_sql(databases[0], "create table public.u as table public.t")
    with pytest.raises(RefusedError, match="its records are in another source: table"):
        again(databases, table="public.u", into="public.t")
    run_sql(databases[1], "create table public.u (like public.t)")
    with pytest.raises(RefusedError, match=r"it loaded public.t, not public.u"):
        again(databases, into="public.u")
    with pytest.raises(RefusedError, match="no run is recorded"):
        again((databases[0], database(server)), report.run_id)
