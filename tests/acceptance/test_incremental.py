"""An incremental run as a process: killed midway, with the source changing, and resumed by the same command."""

from __future__ import annotations

import signal

import psycopg
from aftermath import fetch, value

TABLE = """
create table public.t (id int primary key, note text, updated_at timestamptz not null);
create index on public.t (updated_at);
insert into public.t select g, 'first', timestamptz '2024-01-01' + g * interval '1 second' from generate_series(1, 20000) g;
analyze public.t;
"""
ALL = "select * from public.t order by id"


def change(uri, *statements):
    with psycopg.connect(uri, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_killed_run_reads_with_the_same_bound_when_it_goes_on_and_its_watermark_counts_only_then(
    databases, etl, start_etl
):
    source, target = databases
    change(source, TABLE)
    words = ["chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id"]
    words += ["--incremental", "updated_at", "--lag", "10s", "--chunk", "500", "--workers", "1", "--progress", "json"]
    assert etl(*words).returncode == 0
    change(source, "update public.t set note = 'second', updated_at = '2024-01-03' where id % 2 = 0")

    process = start_etl(*words)
    process.wait_for("ChunkDone", 3)
    process.send(signal.SIGKILL)
    process.end()
    done = value(target, "select count(*) from keyhaul.chunks c join keyhaul.runs r using (run_id) where r.status ="
                 " 'running' and c.status = 'done'")  # fmt: skip
    assert 3 <= done < 20
    # In chunks that are committed and in chunks that are not; older than the killed run's watermark and newer.
    change(source, "update public.t set note = 'third', updated_at = '2024-01-04' where id % 1000 = 7")

    shown = etl("plan", *words[1:-2])
    assert "reads  rows with updated_at >= 2024-01-01 05:33:10+00" in shown.stdout
    resumed = etl(*words)
    assert (resumed.returncode, "going on with an unfinished run" in resumed.stdout) == (0, True)
    assert "What has changed in the others since is read by the next run" in resumed.stdout
    assert fetch(target, "select status, since, watermark from keyhaul.runs order by started_at") == [
        ("done", None, "2024-01-01 05:33:20+00"),
        ("done", "2024-01-01 05:33:10+00", "2024-01-03 00:00:00+00"),
    ]
    second = "select sum(rows_read) from keyhaul.runs join keyhaul.chunks using (run_id) where runs.sittings = 2"
    assert 10_000 < value(target, second) <= 10_005 + 20  # 20,000 without the bound
    assert fetch(source, ALL) != fetch(target, ALL)  # the chunks that were committed before the kill

    assert etl(*words).returncode == 0
    assert fetch(source, ALL) == fetch(target, ALL)
    # 10,000 of the second day are inside the lag, less the 0 that changed again; 20 of the third are new.
    (read, since) = fetch(
        target,
        "select sum(rows_read)::bigint, max(since) from keyhaul.runs join keyhaul.chunks using (run_id)"
        " group by run_id order by run_id desc limit 1",
    )[0]
    assert (read, since) == (10_020, "2024-01-02 23:59:50+00")
    shown = etl("show", "last", "--target", target)
    assert "rows with updated_at >= 2024-01-02 23:59:50+00" in shown.stdout
    assert "2024-01-04 00:00:00+00" in shown.stdout


def test_a_fresh_run_does_not_begin_at_a_killed_ones_watermark_and_full_reads_all_rows(databases, etl, start_etl):
    source, target = databases
    change(source, TABLE)
    words = ["chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id"]
    refused = etl(*words, "--full")
    assert (refused.returncode, "--full: got a job that is not incremental" in refused.stderr) == (2, True)
    words += ["--incremental", "updated_at", "--chunk", "500", "--workers", "1", "--progress", "json"]
    assert etl(*words).returncode == 0
    change(source, "update public.t set note = 'unnoticed'", "update public.t set updated_at = '2024-01-03'")
    process = start_etl(*words)
    process.wait_for("ChunkDone", 1)
    process.send(signal.SIGKILL)
    process.end()
    refused = etl(*words, "--full")
    assert (refused.returncode, "Give --fresh as well" in refused.stderr) == (2, True)
    # The killed run's watermark does not count: the new one reads what that one had to read.
    assert etl(*words, "--fresh").returncode == 0
    assert fetch(target, "select status, since, watermark from keyhaul.runs order by started_at offset 1") == [
        ("abandoned", "2024-01-01 05:33:20+00", "2024-01-03 00:00:00+00"),
        ("done", "2024-01-01 05:33:20+00", "2024-01-03 00:00:00+00"),
    ]
    assert fetch(source, ALL) == fetch(target, ALL)
    change(source, "update public.t set note = 'unnoticed again'")
    change(source, "update public.t set updated_at = '2024-01-01'")
    assert etl(*words).returncode == 0
    assert fetch(source, ALL) != fetch(target, ALL)
    full = etl(*words, "--full")
    assert (full.returncode, "reads all rows of public.t" in full.stdout) == (0, True)
    assert fetch(source, ALL) == fetch(target, ALL)
