"""What is told, and loaded, when the same job has several runs behind it."""

import re

import pytest
from moving import job, rows, run_sql

from keyhaul.control import Control
from keyhaul.engine import run
from keyhaul.errors import RefusedError
from keyhaul.replay import replay

FIRST = "select key from keyhaul.quarantine where resolved_at is null order by run_id, chunk, record"


def move(databases, *, fresh=False, **flags):
    return run(job(databases, **flags), lambda _event: None, Control(), fresh=fresh)


def again(databases, name="last", **flags):
    return replay(job(databases, **flags), name, lambda _event: None, Control())


def fill(databases, number=10, target="create table public.t (id int, v int)"):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, v int)",
        f"insert into public.t select g, g from generate_series(1, {number}) g",
    )
    run_sql(databases[1], target)


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
    assert all(re.match(rf"loaded by replay \S+ of run {names[1]} \(before: ", row[1]) for row in others)


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
