"""What a person or a script sees of a run, and of the runs before it."""

from __future__ import annotations

import csv
import json
import signal

import pytest
import support
from aftermath import check_ledger, checksum, contents, fetch, files_in, value

SOURCE = """
create table public.items (id bigint primary key, name text, amount numeric(12,2));
insert into public.items select g, case when g = 90 then '=1+1' else 'name ' || g end, g / 4.0 from generate_series(1, 100) g;
analyze public.items;
"""
RULE = ("--rule", "few: id <= 95 and id <> 90")


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "source", SOURCE) as uri:
        yield uri


@pytest.fixture
def target(server, database):
    return database(server, "target")


def command(source, target, *more, name="chunked"):
    where = ("--source", source, "--target", target, "--table", "public.items", "--key", "id", "--chunk", "10")
    return [name, *where, *more]


def test_json_is_one_object_a_line_and_ends_with_the_report(etl, source, target):
    done = etl(*command(source, target, *RULE, "--progress", "json"))
    assert done.returncode == 1
    assert done.stderr == ""
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in events} == {
        "Notice", "RunStarted", "ChunkStarted", "StepStarted", "ChunkDone", "RunFinished"
    }  # fmt: skip
    assert all(event["time"].endswith("+00:00") for event in events)
    assert len([event for event in events if event["event"] == "ChunkDone"]) == 10
    assert events[-1]["event"] == "RunFinished"
    report = events[-1]["report"]
    assert (report["outcome"], report["chunks_planned"], report["chunks_done"]) == ("done", 10, 10)
    assert report["counts"] == {
        "read": 100, "loaded": 94, "unchanged": 0, "duplicate": 0, "filtered": 0, "quarantined": 6, "updated": 0
    }  # fmt: skip
    assert report["quarantined_by_reason"] == {"few": 6}
    assert report["run_id"] == value(target, "select run_id from keyhaul.runs")


def test_quiet_prints_nothing_when_all_is_well(etl, source, target):
    done = etl(*command(source, target, "--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert checksum(target, "public.items") == checksum(source, "public.items")


def test_quiet_still_says_what_stopped_a_run_and_how_to_go_on(etl, source, target):
    fetch(
        target,
        "create table public.items (id bigint, name text, amount numeric);"
        "create function public.fair() returns trigger language plpgsql as"
        " $$ begin if new.id <> 55 then return new; end if; return null; end $$;"
        "create trigger fair before insert on public.items for each row execute function public.fair()",
    )
    done = etl(*command(source, target, "--quiet"))
    assert done.returncode == 3
    said = done.stdout + done.stderr
    assert "chunk 6" in said
    assert "a trigger or rule there drops or adds rows" in said
    assert "Next: etl resume" in said


def test_quiet_says_that_more_was_quarantined_than_allowed(etl, source, target):
    done = etl(*command(source, target, *RULE, "--quiet"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "6 records are quarantined, more than allowed. See: etl quarantine" in done.stderr


def test_a_log_says_what_was_done_and_where_the_quarantine_is(etl, source, target):
    done = etl(*command(source, target, *RULE, "--progress", "plain"))
    assert done.returncode == 1
    run_id = value(target, "select run_id from keyhaul.runs")
    for words in (f"Run {run_id} done: 94 of 100 rows", "balanced", "6  few", f"etl quarantine {run_id}"):
        assert words in done.stdout
    assert "created public.items" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr


def test_runs_show_and_quarantine_tell_what_the_last_run_did(etl, source, target, tmp_path):
    assert etl(*command(source, target, *RULE, "--quiet")).returncode == 1
    run_id = value(target, "select run_id from keyhaul.runs")
    env = {"ETL_TARGET_URL": target}
    runs, shown, left_out = (etl(*words, env=env) for words in (["runs"], ["show", "last"], ["quarantine", "last"]))
    assert [result.returncode for result in (runs, shown, left_out)] == [0, 0, 0]
    assert run_id in runs.stdout
    assert " done " in runs.stdout
    for words in (f"Run {run_id} done", "10 of 10 done", "read         100", "loaded        94", "balanced"):
        assert words in shown.stdout
    for words in ("6 records quarantined", "6  few", "key 90", "key 100", "name 96"):
        assert words in left_out.stdout
    exported = etl("quarantine", "last", "--export", "bad.csv", env=env, cwd=tmp_path)
    assert exported.returncode == 0
    assert f"wrote 6 records of run {run_id}" in exported.stdout
    assert files_in(tmp_path) == ["bad.csv"]
    with (tmp_path / "bad.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["90", "96", "97", "98", "99", "100"]
    assert {row["rules"] for row in rows} == {"few"}
    assert json.loads(rows[0]["data"]) == {"id": 90, "name": "=1+1", "amount": 22.5}
    assert json.loads(rows[1]["data"])["name"] == "name 96"
    again = etl("quarantine", "last", "--export", "bad.csv", env=env, cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_looking_back_at_an_interrupted_run_says_that_it_stopped(etl, start_etl, source, target):
    going = start_etl(*command(source, target, "--workers", "1", "--progress", "json"))
    going.wait_for("RunStarted")
    going.send(signal.SIGINT)
    code = going.end()
    shown = etl("show", "last", "--target", target)
    assert shown.returncode == 0
    assert code == 130
    assert "stopped" in shown.stdout


def test_plan_moves_nothing_and_creates_nothing(etl, source, target):
    before = contents(target)
    planned = etl(*command(source, target, "--set", "total = amount * 2", name="plan"))
    assert planned.returncode == 0, planned.stderr
    assert contents(target) == before
    for words in (
        "nothing is moved",
        "10 chunks, 100 rows",
        'create table "public"."items"',
        "PRIMARY KEY (id)",
        "numeric(12,2)",
        "computed",
    ):
        assert words in planned.stdout


def test_plan_of_an_existing_table_says_so_and_a_run_follows_it(etl, source, target):
    fetch(target, "create table public.items (id bigint, name text, amount numeric(14,4))")
    before = contents(target)
    planned = etl(*command(source, target, name="plan"))
    assert planned.returncode == 0, planned.stderr
    assert "no DDL would run" in planned.stdout
    assert contents(target) == before
    assert etl(*command(source, target, "--quiet")).returncode == 0
    assert check_ledger(target, "public.items")["loaded"] == 100


def test_append_adds_to_what_a_table_holds(etl, source, target):
    fetch(
        target,
        "create table public.items (id bigint, name text, amount numeric(12,2)); insert into public.items values (-1)",
    )
    assert etl(*command(source, target, "--quiet"), env={"ETL_MODE": "append"}).returncode == 0
    assert value(target, "select count(*) from public.items") == 101
    assert value(target, "select rows_loaded from keyhaul.chunks order by chunk limit 1") == 10


def test_a_ledger_may_have_another_schema(etl, source, target):
    env = {"ETL_LEDGER_SCHEMA": "Etl 'log'", "ETL_TARGET_URL": target}
    assert etl(*command(source, target, "--quiet"), env=env).returncode == 0
    assert value(target, """select count(*) from "Etl 'log'".chunks where status = 'done'""") == 10
    assert fetch(target, "select to_regnamespace('keyhaul')") == [(None,)]
    shown = etl("show", "last", "--target", target, "--ledger-schema", "Etl 'log'")
    assert shown.returncode == 0
    assert "10 of 10 done" in shown.stdout
