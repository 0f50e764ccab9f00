"""What is told, and loaded, when the same job has several runs behind it."""

import io
import re

import psycopg
import pytest
from moving import job, rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.config.allowance import read_allowance
from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.execution.engine import run
from keyhaul.ledger.reading import list_runs
from keyhaul.printing.rejects import print_quarantine, quarantine_rows, why_none
from keyhaul.replay.older import permitted, told_older
from keyhaul.replay.resending import replay


def move(databases, *, fresh=False, **flags):
    return run(job(databases, **flags), lambda _event: None, Control(), fresh=fresh)


def again(databases, name="last", *, reopen=False, **flags):
    return replay(job(databases, **flags), name, lambda _event: None, Control(), reopen=reopen, changed=True)


def fill(databases, number=10, target="create table public.t (id int, v int)"):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, v int)",
        f"insert into public.t select g, g from generate_series(1, {number}) g",
    )
    run_sql(databases[1], target)


def listed(databases):
    with psycopg.connect(databases[1]) as conn:
        return list_runs(conn, "keyhaul")


def loaded(databases):
    return rows(databases[1], "select count(*), count(distinct id) from public.t")


def test_a_record_in_the_quarantine_of_several_runs_is_loaded_once(databases):
    fill(databases)
    names = [move(databases, mode="append", where=["id = 7"], rule=["no: id <> 7"]).run_id for _ in range(3)]
    assert again(databases, names[1], mode="append").left == 0
    assert [again(databases, name, mode="append").report for name in names] == [None] * 3
    assert loaded(databases) == [(1, 1)]
    said = "select run_id, message, resolved_by is not null from keyhaul.quarantine order by run_id"
    others = [row for row in rows(databases[1], said) if row[0] != names[1]]
    assert [row[2] for row in others] == [True, True]
    assert all(re.match(rf"resolved by replay \S+ of run {names[1]} \(before: ", row[1]) for row in others)


def test_a_record_that_another_runs_replay_closed_is_opened_again_until_one_of_them_has_loaded_it(databases):
    fill(databases)
    names = [move(databases, mode="append", where=["id = 7"], rule=["no: id <> 7"]).run_id for _ in range(3)]
    assert again(databases, names[0], mode="append", where=["false"]).closed == {"filtered": 1}
    assert again(databases, names[1], mode="append", reopen=True).report.counts.loaded == 1
    assert [again(databases, name, mode="append", reopen=True).report for name in names] == [None] * 3
    assert loaded(databases) == [(1, 1)]


def test_a_run_whose_records_the_replay_of_another_resolved_is_equal_by_the_mended_job(databases):
    fill(databases, target="create table public.t (id int primary key, v int)")
    older, newer = (move(databases, mode="upsert", rule=["no: id <> 7"]).run_id for _ in range(2))
    again(databases, older, mode="upsert")
    found = verify(job(databases, mode="upsert"), newer)
    assert (found.equal, found.rows) == (True, 10)


def test_a_record_of_another_source_or_of_an_unfinished_fresh_table_stays_in_the_quarantine(databases):
    fill(databases)
    run_sql(databases[0], "create table public.u as table public.t", "create unique index on public.u (id)")
    flags = {"mode": "append", "where": ["id = 7"], "into": "public.t"}
    other = move(databases, table="public.u", rule=["no: id <> 7"], **flags).run_id
    waiting = move(databases, rule=["no: id <> 7"], **flags).run_id
    run_sql(databases[1], f"update keyhaul.runs set fresh_table = 'f', status = 'stopped' where run_id = '{waiting}'")
    one = move(databases, fresh=True, rule=["no: id <> 7"], **flags).run_id
    run_sql(databases[1], f"update keyhaul.runs set status = 'stopped' where run_id = '{waiting}'")
    assert again(databases, one, **flags).left == 0
    assert sorted(rows(databases[1], "select run_id from keyhaul.quarantine where resolved_at is null")) == sorted(
        [(other,), (waiting,)]
    )


def incremental(databases):
    """Four runs by `v`: keys 3 and 10 are refused by the first, 10 (at the watermark) by two more."""
    fill(databases, target="create table public.t (id int primary key, v int)")
    flags = {"incremental": "v", "mode": "upsert"}
    names = [move(databases, rule=["no: id not in (3, 10)"], **flags).run_id for _ in range(3)]
    run_sql(databases[0], "insert into public.t values (11, 11)")
    return [*names, move(databases, rule=["no: id <> 3"], **{**flags, "where": ["id = 11"]}).run_id], flags


def test_replay_last_names_the_older_runs_that_an_incremental_job_has_left_records_in(databases):
    names, flags = incremental(databases)
    done = again(databases, **flags)
    assert (done.run_id, done.report, done.left) == (names[3], None, 0)
    assert told_older(done.older) == (
        "3 older runs of this job still have 4 unresolved records. Replay each by its name: " + ", ".join(names[:3])
    )
    allowed = [permitted(read_allowance(number), done.older, 0, done.rows_read) for number in (0, 3, 4, "25%", "40%")]
    assert allowed == [False, False, True, False, True]
    assert again(databases, names[1], **flags).older == (), "a run that is named speaks for itself"
    assert [(one.run_id, one.unresolved) for one in again(databases, **flags).older] == [(names[0], 1)]
    assert again(databases, names[0], **flags).left == 0
    assert again(databases, **flags).older == ()
    assert loaded(databases) == [(11, 11)]


def test_older_runs_do_not_count_once_a_later_one_has_read_all_rows(databases):
    names, flags = incremental(databases)
    kept = [(row.run_id, row.counts.quarantined, row.rows_unresolved) for row in listed(databases)]
    assert kept == [(names[3], 0, 0), (names[2], 1, 1), (names[1], 1, 1), (names[0], 2, 2)]
    run(job(databases, **flags), lambda _event: None, Control(), full=True)
    assert again(databases, **flags).older == ()


def test_the_last_run_of_a_job_that_reads_all_rows_stands_for_the_older_ones(databases):
    fill(databases, target="create table public.t (id int primary key, v int)")
    for _ in range(2):
        move(databases, mode="upsert", rule=["no: id <> 3"])
    done = again(databases, mode="upsert", rule=["no: id <> 3"])
    assert (done.left, done.older) == (1, ())


def quarantine(databases, name):
    """Return what `etl quarantine` prints of a run that has no unresolved record."""
    with psycopg.connect(databases[1]) as conn:
        rest, stream = quarantine_rows(conn, "keyhaul", name), io.StringIO()
        print_quarantine(name, {}, rest, len(rest), stream, none=why_none(conn, "keyhaul", name))
    assert rest == ()
    return stream.getvalue().strip()


def test_a_quarantine_whose_records_are_resolved_or_were_tried_again_does_not_say_that_there_were_none(databases):
    fill(databases)
    clean = move(databases, where=["id < 3"]).run_id
    name = move(databases, mode="append", where=["id > 4"], rule=["no: id > 6"]).run_id
    assert quarantine(databases, clean) == f"Run {clean}: no record was quarantined"
    first, second = (again(databases, rule=["no: id > 6"]).report.run_id for _ in range(2))
    assert quarantine(databases, first) == (
        f"Run {first}: 2 records were quarantined, which replay {second} has tried again: etl quarantine {name}"
    )
    done = again(databases, name).report.run_id
    assert quarantine(databases, name) == f"Run {name}: 2 records were quarantined, all are resolved: --all shows them"
    assert quarantine(databases, done) == f"Run {done}: no record was quarantined, 2 were resolved: --all shows them"


def test_a_run_given_up_by_fresh_is_not_replayed_beside_the_one_that_read_its_rows_anew(databases):
    fill(databases)
    name = move(databases, rule=["no: id <> 7"]).run_id
    run_sql(databases[1], "update keyhaul.runs set status = 'stopped'", "truncate public.t")
    newer = move(databases, fresh=True, rule=["no: id <> 7"]).run_id
    with pytest.raises(RefusedError, match=rf"given up by --fresh.* Replay run {newer}, which reads these records"):
        again(databases, name)
    assert again(databases).left == 0
    assert loaded(databases) == [(10, 10)]


def test_an_incremental_run_is_refused_once_another_job_has_replaced_its_table(databases):
    fill(databases, target="create table public.t (id int primary key, v int)")
    flags = {"incremental": "v", "mode": "upsert"}
    move(databases, **flags)
    other = move(databases, job="other", mode="replace", where=["id < 4"]).run_id
    for _ in range(2):  # a run that went on all the same, by an older version, does not make it whole
        with pytest.raises(RefusedError, match=rf"run {other} has replaced it since .* Give --full to read all rows"):
            move(databases, **flags)
        run_sql(databases[1], f"update keyhaul.runs set job = 'hidden' where run_id = '{other}'")
        run_sql(databases[1], "update keyhaul.runs set target_table = 'public.u' where job = 'hidden'")
        move(databases, **flags)
        run_sql(databases[1], "update keyhaul.runs set target_table = 'public.t' where job = 'hidden'")
    run(job(databases, **flags), lambda _event: None, Control(), full=True)
    assert move(databases, **flags).counts.read == 1
    assert loaded(databases) == [(10, 10)]


def test_an_incremental_run_goes_on_after_a_replace_with_all_rows_of_its_source(databases):
    fill(databases, target="create table public.t (id int primary key, v int)")
    flags = {"incremental": "v", "mode": "upsert"}
    move(databases, **flags)
    run_sql(databases[0], "insert into public.t values (11, 11)")
    whole = move(databases, job="weekly", mode="replace").run_id
    run_sql(databases[0], "insert into public.t values (12, 12)")
    run_sql(databases[1], "update keyhaul.runs set ended_at = now() where job <> 'weekly'")
    with pytest.raises(RefusedError, match=f"run {whole} has replaced it"):
        move(databases, **flags)  # what that run loaded after the other's snapshot would be missing
    run_sql(databases[1], "update keyhaul.runs set ended_at = started_at where job <> 'weekly'")
    assert move(databases, **flags).counts.loaded == 1
    assert move(databases, **flags).counts.read == 1
    assert loaded(databases) == [(12, 12)]


def test_a_replay_that_may_put_an_older_row_over_a_newer_one_says_so(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, email text, v int)",
        "insert into public.t values (1, 'a', -1), (2, 'a', 2)",
    )
    run_sql(databases[1], "create table public.t (id int, email text primary key, v int)")
    flags = {"mode": "upsert", "conflict": "email"}
    move(databases, rule=["positive: v > 0"], **flags)
    told = []
    replay(job(databases, newer_by="v", **flags), "last", told.append, Control(), changed=True)
    assert "older row" not in str(told)
    run_sql(databases[1], "update keyhaul.quarantine set resolved_at = null")
    replay(job(databases, **flags), "last", told.append, Control(), changed=True)
    assert "an older row may take a newer one's place" in str(told)
    assert rows(databases[1], "select * from public.t") == [(1, "a", -1)]
