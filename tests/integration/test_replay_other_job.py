"""A replay by a job that is not quite the run's: what is refused and told, what stays open, what is opened again."""

import pytest
from moving import job, rows, run_sql

from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.events import Notice
from keyhaul.execution.engine import run
from keyhaul.replay.resending import replay


def move(databases, **flags):
    return run(job(databases, **flags), lambda _event: None, Control())


def again(databases, *, observe=lambda _event: None, broke=None, reopen=False, **flags):
    return replay(job(databases, **flags), "last", observe, Control(), rule=broke, reopen=reopen, changed=True)


def told(databases, **flags):
    """Return the end of a replay, and what it warned of."""
    seen = []
    done = again(databases, observe=seen.append, **flags)
    return done, [event.message for event in seen if isinstance(event, Notice) and event.level == "warning"]


def still_open(databases):
    query = "select key, rules[1] from keyhaul.quarantine where resolved_at is null order by chunk, record"
    return rows(databases[1], query)


def counted(report):
    c = report.counts
    assert c.balanced
    return c.read, c.loaded, c.unchanged, c.duplicate, c.filtered, c.quarantined


def fill(databases):
    """Two hundred people with 50 e-mails; the last nine have a bad quantity."""
    run_sql(
        databases[0],
        "create table public.t (id int primary key, email text, qty int)",
        "insert into public.t select g, 'e' || g % 50, case when g > 191 then -1 else 1 end from generate_series(1, 200) g",
    )


# --- flags that were forgotten -------------------------------------------------------------------------


def test_a_replay_without_the_dedup_of_its_run_is_refused(databases, tmp_path):
    fill(databases)
    dedup = {"dedup": "email", "order_by": "id", "work_dir": str(tmp_path)}
    move(databases, **dedup, rule=["pos: qty > 0"])
    assert rows(databases[1], "select count(*), count(distinct email) from public.t") == [(50, 50)]
    with pytest.raises(RefusedError, match=r"had dedup on email, this job has none.*--mode skip --conflict email"):
        again(databases)
    with pytest.raises(RefusedError, match="had dedup on email, this job has another"):
        again(databases, dedup="id")
    run_sql(databases[1], "create unique index on public.t (email)")
    assert counted(again(databases, mode="skip", conflict="email").report) == (9, 0, 9, 0, 0, 0)
    assert rows(databases[1], "select count(*), count(distinct email) from public.t") == [(50, 50)]


def test_a_dedup_that_a_unique_key_makes_idle_may_be_left_out(databases):
    fill(databases)
    move(databases, dedup="id,email", rule=["pos: qty > 0"])
    assert counted(again(databases).report) == (9, 9, 0, 0, 0, 0)


def test_what_differs_from_the_job_of_the_run_is_said_in_one_warning(databases):
    fill(databases)
    first = move(databases, set=["email = upper(email)"], rule=["pos: qty > 0"])
    done, warned = told(databases, chunk="3", rule=["pos: qty > -5"])
    assert done.left == 0
    (message,) = warned
    assert message == (
        f"this job differs from that of run {first.run_id}, and the records go through this one: "
        'rules.pos.check: "qty > 0" → "qty > -5"; transform[0].set.email: "upper(email)" → nothing'
    )


def test_other_chunks_and_a_mended_query_are_no_difference(databases):
    fill(databases)
    shape = {"table": None, "into": "public.t", "rule": ["pos: qty > 0"]}
    move(databases, **shape, query="select * from public.t")
    run_sql(databases[1], "alter table public.t add primary key (id)")
    done, warned = told(databases, **shape, query="select id, email, abs(qty) as qty from public.t", chunk="4")
    assert (done.left, warned) == (0, [])


# --- what is left of the records that were chosen ------------------------------------------------------


def test_records_chosen_by_a_rule_are_left_when_they_break_another_now(databases):
    fill(databases)
    first = move(databases, rule=["pos: qty > 0", "few: id < 200"])
    done = again(databases, broke="pos", rule=["other: qty > -1"])
    assert (done.run_id, done.left, done.changed, done.breaks) == (first.run_id, 9, 9, ["other"])
    assert done.told("pos") == [
        f"9 quarantined records of run {first.run_id} that broke pos are left, 9 of them now break: other"
    ]
    assert counted(done.report) == (9, 0, 0, 0, 0, 9)
    assert again(databases, broke="other", rule=["other: qty > -5"]).left == 0
    assert still_open(databases) == []


# --- records that were closed without being loaded -----------------------------------------------------


def test_records_that_a_replay_filtered_by_mistake_can_be_opened_again(databases):
    fill(databases)
    move(databases, rule=["pos: qty > 0"])
    run_sql(databases[0], "delete from public.t where id = 192")
    done = again(databases, where=["qty > 5"])
    assert (done.left, counted(done.report)) == (0, (9, 0, 0, 0, 9, 0))
    assert done.closed == {"filtered": 8, "gone": 1}
    assert done.told(None)[1] == (
        "9 records closed without being loaded (8 filtered by the job now, 1 not in the source any more): "
        f"`etl replay {done.run_id} … --reopen` tries them again"
    )
    assert again(databases).report is None
    done = again(databases, reopen=True)
    assert (done.left, counted(done.report), done.closed) == (0, (9, 8, 0, 0, 1, 0), {"gone": 1})
    messages = rows(databases[1], "select distinct message from keyhaul.quarantine where key <> '192'")
    assert messages == [("not (qty > 0)",)]
    assert again(databases, reopen=True).left == 0
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(199, 199)]


def test_no_record_that_was_loaded_is_opened_again(databases):
    fill(databases)
    move(databases, rule=["pos: qty > 0"])
    again(databases, where=["id <> 199"])
    assert counted(again(databases, reopen=True, broke="pos").report) == (1, 1, 0, 0, 0, 0)
    assert again(databases, reopen=True).report is None
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(200, 200)]


def test_a_reopened_replay_that_was_cut_short_loads_no_record_twice(databases):
    fill(databases)
    move(databases, rule=["pos: qty > 0"])
    again(databases, where=["false"])
    run_sql(
        databases[1],
        "alter table public.t drop constraint t_pkey",
        "create function public.kill() returns trigger language plpgsql as $$ begin"
        " if new.id = 195 then perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(5); end if;"
        " return new; end $$",
        "create constraint trigger kill after insert on public.t deferrable initially deferred"
        " for each row execute function public.kill()",
    )
    cut = again(databases, reopen=True, chunk="1", workers="1")
    assert (cut.report.outcome, cut.left) == ("stopped", 1)
    run_sql(databases[1], "drop trigger kill on public.t")
    assert counted(again(databases, reopen=True).report) == (1, 1, 0, 0, 0, 0)
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(200, 200)]


def test_records_of_a_key_with_several_rows_of_which_some_were_left_out_are_opened_again_in_mode_skip(databases):
    run_sql(
        databases[0],
        "create table public.t (sub int, id int not null, v int)",
        "insert into public.t values (1, 1, -1), (2, 1, -2), (3, 1, 5)",
    )
    run_sql(databases[1], "create table public.t (sub int, id int, v int, unique (sub, id))")
    move(databases, mode="append", rule=["pos: v > 0"])
    skip = {"mode": "skip", "conflict": "sub,id"}
    done = again(databases, **skip, where=["sub <> 2"])
    assert (counted(done.report), done.closed) == ((3, 1, 1, 0, 1, 0), {"doubtful": 2})
    assert counted(again(databases, reopen=True, **skip).report) == (3, 1, 2, 0, 0, 0)
    assert rows(databases[1], "select sub, v from public.t order by sub") == [(1, -1), (2, -2), (3, 5)]


def test_copies_that_a_replay_left_out_are_told_as_copies(databases):
    fill(databases)
    run_sql(databases[0], "update public.t set email = 'x' where id > 195")
    move(databases, rule=["pos: qty > 0"])
    run_sql(databases[1], "create unique index on public.t (email) where email = 'x'")
    run_sql(databases[1], "create table public.u (id int)", "delete from public.t where email <> 'x'")
    run_sql(databases[1], "create unique index on public.t (email)")
    done = again(databases, dedup="email", mode="skip", conflict="email", where=["id > 195"])
    assert counted(done.report) == (9, 1, 0, 4, 4, 0)
    assert done.closed == {"filtered": 4, "duplicate": 4}
    messages = (
        "select split_part(message, ' (before: ', 1), count(*) from keyhaul.quarantine where resolved_as <> 'loaded'"
        " group by 1 order by 1"
    )
    assert rows(databases[1], messages) == [
        ("the job filters this record now", 4),
        ("the record is a copy of another one now", 4),
    ]


# --- keys that several rows have, and keys whose text has changed --------------------------------------


def test_of_rows_with_one_key_as_many_records_stay_open_as_failed(databases):
    run_sql(
        databases[0],
        "create table public.t (sub int, id int, v int)",
        "insert into public.t values (1, 1, -1), (2, 1, -2), (3, 1, 5), (1, 2, -1), (9, null, -1)",
    )
    run_sql(databases[1], "create table public.t (sub int, id int, v int, unique (sub, id))")
    move(databases, mode="append", rule=["pos: v > 0"])
    run_sql(databases[0], "update public.t set v = 9 where (sub, id) = (1, 1)")
    done = again(databases, mode="skip", conflict="sub,id", rule=["pos: v > 0"])
    assert counted(done.report) == (4, 1, 1, 0, 0, 2)
    assert done.report.quarantined_by_reason == {"pos": 2}
    assert (done.left, done.without_key) == (3, 1)
    data = "select data->>'sub', key, data->>'v' from keyhaul.quarantine where resolved_at is null order by 2, 1"
    assert rows(databases[1], data) == [("2", "1", "-2"), ("1", "2", "-1"), ("9", None, "-1")]
    assert rows(databases[1], "select * from public.t order by v") == [(3, 1, 5), (1, 1, 9)]


def test_of_a_query_too_and_keys_of_several_records_stay_with_it(databases):
    run_sql(
        databases[0],
        "create table public.s (id numeric, v int)",
        "insert into public.s select g, -1 from generate_series(1, 20) g union all values (3, -1)",
    )
    run_sql(databases[1], "create table public.t (id numeric primary key, v int)")
    query = {"table": None, "into": "public.t", "query": "select * from public.s"}
    move(databases, **query, mode="append", rule=["pos: v > 0"])
    run_sql(databases[0], "update public.s set id = 7.0 where id = 7")
    done, warned = told(databases, **query, mode="append")
    assert (done.report.outcome, done.left, done.report.counts.loaded) == ("done", 3, 18)
    assert still_open(databases) == [("3", "pos"), ("7", "pos"), ("3", "pos")]
    assert "(3, 7)" in warned[-1]


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_a_key_whose_text_has_changed_is_left_out_and_the_others_load(databases, reader):
    run_sql(
        databases[0],
        "create table public.t (id numeric primary key, v int)",
        "insert into public.t select g, -1 from generate_series(1, 20) g",
    )
    move(databases, reader=reader, rule=["pos: v > 0"])
    run_sql(databases[0], "update public.t set id = 7.0 where id = 7", "delete from public.t where id = 9")
    done, warned = told(databases, reader=reader)
    assert (done.report.outcome, done.left, counted(done.report)) == ("done", 2, (18, 18, 0, 0, 0, 0))
    assert [key for key, _ in still_open(databases)] == ["7", "9"]
    assert "1 row came with a key whose text is not the quarantine's (7.0)" in warned[-1]
    assert "2 keys got none or have several records: left out, unresolved (7, 9)" in warned[-1]
    assert rows(databases[1], "select count(*), count(distinct id) from public.t") == [(18, 18)]


def test_a_query_without_the_name_of_its_run_is_told_to_give_it(databases):
    fill(databases)
    query = {"table": None, "into": "public.t", "job": None}
    move(databases, **query, query="select * from public.t", rule=["pos: qty > 0"])
    with pytest.raises(RefusedError, match=r"no run of this job is in the ledger.*give --job NAME"):
        again(databases, **query, query="select id, email, abs(qty) as qty from public.t")
