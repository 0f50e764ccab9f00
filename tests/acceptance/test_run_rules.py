"""Rules across the run, on the command line: the exit code, the report, JSON, and `etl show`."""

from __future__ import annotations

import json

import psycopg
from aftermath import value

JOB = """
source: {{uri: '{source}', table: public.t}}
target: {{uri: '{target}'}}
key: id
run_rules:
  enough: {{row_count: {{min: 20}}, on_fail: {on_fail}}}
  total: {{equals_source: sum(id)}}
"""


def test_a_failing_rule_gives_exit_code_1_and_the_rows_stay(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 10)")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(source=source, target=target, on_fail="error"), encoding="utf-8")
    found = etl("run", str(file))
    assert (found.returncode, "✗ enough: 10 rows, expected at least 20" in found.stdout) == (1, True)
    assert "✓ total" in found.stdout
    assert value(target, "select count(*) from public.t") == 10
    assert value(target, "select status from keyhaul.runs") == "done"
    shown = etl("show", "last", "--target", target).stdout
    assert "failed (error): 10 rows, expected at least 20" in " ".join(shown.split())
    again = etl("run", str(file), "--mode", "skip", "--quiet")
    assert (again.returncode, "rules across the run failed: enough" in again.stderr) == (1, True)
    file.write_text(JOB.format(source=source, target=target, on_fail="warn"), encoding="utf-8")
    warned = etl("run", str(file), "--mode", "skip", "--progress", "json")
    assert warned.returncode == 0
    checks = json.loads(warned.stdout.splitlines()[-1])["report"]["run_checks"]
    assert [(check["name"], check["passed"]) for check in checks] == [("enough", False), ("total", True)]


def test_a_rule_that_fails_for_a_fresh_table_keeps_the_old_one(databases, etl, tmp_path):
    source, target = databases
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(1, 10)")
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("create table public.t (id int primary key)")
        connection.execute("insert into public.t select generate_series(101, 130)")
    file = tmp_path / "job.yaml"
    file.write_text(JOB.format(source=source, target=target, on_fail="error"), encoding="utf-8")
    found = etl("run", str(file), "--mode", "replace")
    assert found.returncode == 1, found.stderr
    assert "enough failed for the fresh table: public.t stays as it was" in " ".join(found.stdout.split())
    assert "starts a new run" in found.stdout
    assert value(target, "select min(id) from public.t") == 101
    assert value(target, "select status from keyhaul.runs") == "abandoned"
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute("insert into public.t select generate_series(11, 50)")
    again = etl("run", str(file), "--mode", "replace")
    assert again.returncode == 0, again.stderr
    assert value(target, "select count(*) from public.t") == 50
    left = "select count(*) from pg_class where relname like '%keyhaul%' and relkind = 'r' and relnamespace = 'public'::regnamespace"
    assert value(target, left) == 0
