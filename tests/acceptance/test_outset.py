"""A second run into a table that holds rows: what it may empty, and what a run says that must not be repeated."""

from __future__ import annotations

import json
import re

import psycopg
from aftermath import value

JOB = """
job: {job}
source: {{query: "select id, carrier from public.flights where id <= 100"}}
target: {{table: public.outset}}
key: id
"""


def test_only_a_table_that_the_job_has_loaded_is_emptied_in_the_embedded_warehouse(etl, tmp_path):
    file, other = tmp_path / "job.yaml", tmp_path / "other.yaml"
    file.write_text(JOB.format(job="outset"), encoding="utf-8")
    other.write_text(JOB.format(job="another"), encoding="utf-8")
    first = etl("run", str(file))
    assert first.returncode == 0, first.stderr
    assert "public.outset already holds rows: the run empties it first" in etl("plan", str(file)).stdout
    again = etl("run", str(file), "--progress", "plain")
    assert again.returncode == 0, again.stderr
    said = "emptied public.outset in the embedded warehouse, where this job had loaded it"
    assert said in again.stdout + again.stderr
    assert "done: 100 rows of outset" in again.stdout
    assert "public.outset already holds rows: without a mode the run is refused" in etl("plan", str(other)).stdout
    refused = etl("run", str(other))
    assert refused.returncode == 2
    assert "load public.outset: it already holds rows and no mode is given" in refused.stderr


def test_a_run_whose_table_a_later_run_has_emptied_is_not_replayed(etl, databases):
    with psycopg.connect(databases[0], autocommit=True) as connection:
        connection.execute("create table public.emptied (id int primary key)")
        connection.execute("insert into public.emptied select generate_series(1, 100)")
    into = ("--source", databases[0], "--table", "public.emptied", "--key", "id", "--into", "public.emptied_copy")
    run_id = re.findall(r"Run (\S+) done", etl("chunked", *into, "--rule", "no: id > 10").stdout)[0]
    newer = re.findall(r"Run (\S+) done: 100 rows", etl("chunked", *into).stdout)[0]
    refused = etl("replay", run_id, *into)
    assert refused.returncode == 2, refused.stdout
    assert f"run {newer} has emptied its target table since. Replay run {newer}, which reads" in refused.stderr
    assert "0 quarantined records" in etl("replay", "last", *into).stdout


def test_a_run_whose_table_another_one_has_replaced_is_not_gone_on_with(databases, etl):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 1000)")
    args = ("--source", source, "--target", target, "--table", "public.t", "--key", "id", "--chunk", "100")
    killed = etl("chunked", *args, "--mode", "append", env={"KEYHAUL_FAULT": "commit.after:5:kill"})
    assert killed.returncode == -9
    run_id = value(target, "select run_id from keyhaul.runs")
    replaced = etl("chunked", *args, "--mode", "replace", "--job", "other", "--where", "id > 900")
    assert replaced.returncode == 0, replaced.stderr
    other = value(target, "select run_id from keyhaul.runs where job = 'other'")
    found = etl("chunked", *args, "--mode", "append")
    assert found.returncode == 2, found.stdout
    assert (
        f"resume run {run_id}: run {other} has replaced its target table since, though chunks of this run"
        in found.stderr
    )
    assert value(target, "select count(*) from public.t") == 100
    assert etl("chunked", *args, "--mode", "skip", "--fresh").returncode == 0
    assert value(target, "select count(*) from public.t") == 1000


UNSTABLE = """
create table public.t (id int primary key);
insert into public.t select generate_series(1, 1000);
create function public.some(id int) returns boolean volatile language sql as 'select random() < 0.5';
create view public.v as select id from public.t where public.some(id);
"""


def test_a_run_whose_source_changed_its_answer_is_not_called_one_that_goes_on(databases, etl):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(UNSTABLE)
    args = ("--source", source, "--target", target, "--table", "public.v", "--key", "id", "--chunk", "300")
    found = etl("chunked", *args, "--mode", "append")
    assert found.returncode == 1, found.stdout + found.stderr
    said = " ".join(found.stdout.split())
    assert "its answer is not the same each time. Empty public.v, put the query's rows into a table" in said
    assert "starts a new run" in said
    assert "goes on" not in said
    assert value(target, "select status from keyhaul.runs") == "abandoned"
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("truncate public.v")
        connection.execute("insert into public.v values (5000)")
    found = etl("chunked", *args, "--mode", "replace", "--progress", "json")
    assert found.returncode == 1, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])["report"]
    assert (report["outcome"], report["resumable"]) == ("stopped", False)
    assert "public.v stays as it was" in report["stop_reason"]
    assert value(target, "select id from public.v") == 5000
