"""Rows that wait for a row of a later chunk, when the process is killed in the middle of it."""

import signal

import psycopg
import pytest

SOURCE = [
    "create table public.late (id int primary key, boss int, name text)",
    "insert into public.late select g, case when g = 1 then null when g % 2 = 0 then g / 2 else 101 - g end, 'n' || g from generate_series(1, 100) g",
    "update public.late set boss = 999 where id = 50",
]
TARGET = "create table public.late (id int {}, boss int references public.late, name text{})"
JOB = """
job: late
source: {{uri: "{}", table: public.late}}
target: {{uri: "{}"}}
key: id
chunk: 10
targets:
  - table: public.late
    columns: {{id: id, boss: boss, name: name}}
"""


def run_sql(uri, *statements):
    with psycopg.connect(uri, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def rows(uri, query):
    with psycopg.connect(uri, autocommit=True) as connection:
        return connection.execute(query).fetchall()


def loaded(databases):
    """What arrived, once each; the run's balance, and what is left waiting."""
    arrived = rows(databases[1], "select id, boss, name from public.late order by id, name")
    assert len(arrived) == len(set(arrived))
    found = rows(
        databases[1],
        "select (select count(*)::int from keyhaul.late), (select count(*)::int from keyhaul.runs where status = 'done'),"
        " sum(rows_read)::int, sum(rows_loaded)::int, sum(rows_quarantined)::int,"
        " (select count(*)::int from keyhaul.quarantine), (select min(late_rows)::int from keyhaul.runs),"
        " (select min(late_passes) from keyhaul.runs) from keyhaul.chunks",
    )
    return arrived, found[0]


ONE = ["late.parked:1", "late.parked:4", "late.written:1", "late.committed:1", "run.closed:1"]
"""Of one table all that can come comes in one transaction; of several each chunk's in its own."""


@pytest.mark.parametrize(
    ("fault", "several"), [*((fault, False) for fault in ONE), ("late.written:2", True), ("late.committed:2", True)]
)
def test_a_run_that_is_killed_among_late_rows_goes_on_and_loads_each_once(etl, databases, tmp_path, fault, several):
    run_sql(databases[0], *SOURCE)
    run_sql(databases[1], TARGET.format("primary key", ""))
    file = tmp_path / "late.yaml"
    file.write_text(JOB.format(*databases), encoding="utf-8")
    command = ["chunked", "--source", databases[0], "--target", databases[1], "--table", "public.late", "--key", "id"]
    command = ["chunked", str(file)] if several else [*command, "--mode", "append", "--chunk", "10"]
    command += ["--workers", "1", "--progress", "off", "--allow-quarantined", "100%"]
    assert etl(*command, env={"KEYHAUL_FAULT": fault}).returncode == -signal.SIGKILL
    if fault != "run.closed:1":
        done = etl(*command)
        assert done.returncode == 0, done.stderr
    want = rows(
        databases[0],
        "with recursive bad as (select 50 as id union select l.id from public.late l join bad on l.boss = bad.id)"
        " select id, boss, name from public.late where id not in (select id from bad) order by id",
    )
    left = 100 - len(want)
    assert 0 < left < 100
    arrived, (waiting, runs, read, came, out, quarantined, late, passes) = loaded(databases)
    assert arrived == want
    assert (waiting, runs, read, came, out, quarantined) == (0, 1, 100, 100 - left, left, left)
    assert late > 0
    assert passes >= 1
    if fault == "run.closed:1":
        shown = etl("show", "last", "--target", databases[1])
        assert f"late passes {passes} late rows {late}" in " ".join(shown.stdout.split())
