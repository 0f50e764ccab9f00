"""`etl replay` as a person or a script meets it: exit codes, what is printed, and SIGKILL."""

from __future__ import annotations

import signal

import pytest
from aftermath import fetch, value

SOURCE = """
create table public.t (id int primary key, ref int, name text);
insert into public.t select g, g % 100, 'n' || g from generate_series(1, 2000) g;
"""
TARGET = """
create table public.parent (id int primary key);
insert into public.parent select g from generate_series(0, 89) g;
create table public.t (id int, ref int constraint parent_fk references public.parent, name text);
"""


@pytest.fixture
def ends(databases):
    source, target = databases
    fetch(source, SOURCE)
    fetch(target, TARGET)
    return databases


def flags(ends, *more):
    source, target = ends
    return ("--source", source, "--target", target, "--table", "public.t", "--key", "id", *more)


def test_replay_says_what_is_left_and_with_which_exit_code(etl, ends):
    target = ends[1]
    assert etl("chunked", *flags(ends)).returncode == 1
    run_id = value(target, "select run_id from keyhaul.runs")
    fetch(target, "insert into public.parent select g from generate_series(90, 98) g")
    done = etl("replay", run_id, *flags(ends))
    assert done.returncode == 1
    assert f"20 quarantined records of run {run_id} are left" in done.stdout
    assert "read         200\n" in done.stdout
    assert "loaded       180\n" in done.stdout
    shown = etl("show", run_id, "--target", target).stdout
    assert "180 of 200 quarantined records; 20 are left" in shown
    assert "1,800" in shown, "what the run itself did stays as it was"
    assert f"Run {run_id}: 20 records quarantined" in etl("quarantine", run_id, "--target", target).stdout
    assert f"Run {run_id}: 200 records quarantined" in etl("quarantine", run_id, "--all", "--target", target).stdout
    fetch(target, "insert into public.parent values (99)")
    done = etl("replay", "last", *flags(ends), "--rule", "parent_fk")
    assert done.returncode == 0
    again = etl("replay", "last", *flags(ends))
    assert (again.returncode, again.stdout) == (0, f"0 quarantined records of run {run_id} are left\n")
    assert fetch(target, "select count(*), count(distinct id) from public.t") == [(2000, 2000)]
    assert etl("chunked", *flags(ends, "--mode", "append", "--fresh"), "--where", "id < 0").returncode == 0


def test_what_is_left_or_closed_by_a_replay_of_another_job_is_said_and_can_be_tried_again(etl, ends):
    run = etl("chunked", *flags(ends, "--rule", "few: id <= 1990", "--where", "ref < 90"))
    run_id = value(ends[1], "select run_id from keyhaul.runs")
    assert f"      etl replay {run_id} --source " in run.stdout
    still = etl("replay", "last", *flags(ends, "--rule", "few", "--check", "other: id <= 1995", "--changed"))
    left = f"1 quarantined records of run {run_id} that broke few are left, 1 of them now break: other\n"
    assert (still.returncode, still.stdout.endswith(left)) == (1, True)
    closed = etl("replay", "last", *flags(ends, "--where", "id < 0", "--changed"))
    assert closed.returncode == 0
    assert (
        f"1 record closed without being loaded (1 filtered by the job now): `etl replay {run_id} … --reopen`"
        in closed.stdout
    )
    nothing = etl("replay", "last", *flags(ends, "--changed")).stdout
    assert nothing == f"0 quarantined records of run {run_id} are left\n"
    assert "loaded       1\n" in etl("replay", "last", *flags(ends, "--reopen", "--changed")).stdout


def test_an_unknown_run_and_another_job_are_refused(etl, ends):
    etl("chunked", *flags(ends))
    run_id = value(ends[1], "select run_id from keyhaul.runs")
    unknown = etl("replay", "20200101T000000-abcd", *flags(ends))
    assert unknown.returncode == 2
    assert "it is not in the ledger of" in unknown.stderr
    assert run_id in unknown.stderr
    other = etl("replay", run_id, *flags(ends), "--job", "other")
    assert other.returncode == 2
    assert f"replay run {run_id}: it is of job t, expected other" in other.stderr
    assert value(ends[1], "select count(*) from keyhaul.runs") == 1


def test_replay_last_ends_with_code_1_while_older_runs_of_an_incremental_job_have_records(etl, databases):
    source, target = databases
    fetch(source, "create table public.t (id int primary key, v int); insert into public.t values (1, 1), (2, 2)")
    fetch(target, "create table public.t (id int primary key, v int)")
    ends = flags(databases, "--incremental", "v", "--mode", "upsert")
    assert etl("chunked", *ends, "--rule", "no: id <> 1").returncode == 1
    older = value(target, "select run_id from keyhaul.runs")
    assert etl("chunked", *ends).returncode == 0
    told = f"1 older run of this job still has 1 unresolved record. Replay it by its name: {older}\n"
    done = etl("replay", "last", *ends)
    assert (done.returncode, done.stdout.partition("are left\n")[2]) == (1, told)
    quiet = etl("replay", "last", *ends, "--quiet")
    assert (quiet.returncode, quiet.stderr) == (1, f"error: {told}")
    assert etl("replay", "last", *ends, "--allow-quarantined", "1").returncode == 0
    exported = etl("quarantine", "last", "--target", target, "--export", "none.csv", "--force").stdout
    assert exported.endswith("to none.csv: no record was quarantined\n")
    assert etl("replay", older, *ends, "--changed").returncode == 0
    assert etl("replay", "last", *ends).returncode == 0


def test_a_replay_killed_between_batches_and_inside_one_is_repeated_by_the_same_command(etl, start_etl, ends):
    target = ends[1]
    etl("chunked", *flags(ends))
    fetch(target, "insert into public.parent select g from generate_series(90, 99) g")
    fetch(
        target,
        "create function public.slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.02);"
        " return new; end $$;"
        "create trigger slow before insert on public.t for each row execute function public.slow()",
    )
    command = ("replay", "last", *flags(ends), "--chunk", "10", "--workers", "2")
    left = 200
    for batches in (1, 2, 3):
        process = start_etl(*command, "--progress", "json")
        process.wait_for("ChunkDone", batches)
        process.send(signal.SIGKILL)
        assert process.end() == -signal.SIGKILL
        now = value(target, "select count(*) from keyhaul.quarantine where resolved_at is null")
        assert now < left
        left = now
    done = etl(*command)
    assert done.returncode == 0
    assert "0 quarantined records" in done.stdout
    assert fetch(target, "select count(*), count(distinct id) from public.t") == [(2000, 2000)]
    states = "select status, count(*) from keyhaul.runs where kind = 'replay' group by 1 order by 1"
    assert fetch(target, states) == [("abandoned", 3), ("done", 1)]
    tries = "select count(*) from keyhaul.chunks join keyhaul.runs using (run_id) where replay_of is not null and chunks.status = 'done' group by replay_of having sum(rows_loaded) = 200"
    assert len(fetch(target, tries)) == 1, "every record was loaded by exactly one committed batch"
