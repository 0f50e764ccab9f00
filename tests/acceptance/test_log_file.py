from __future__ import annotations

import json
import stat

from moving import run_sql


def test_every_event_is_a_line_with_its_run_and_chunk(databases, etl, tmp_path):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)", "insert into public.t select generate_series(1, 500)")
    log = tmp_path / "run.jsonl"
    command = [
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--chunk",
        "100",
        "--source",
        source,
        "--target",
        target,
    ]
    done = etl(*command, "--log-file", str(log))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    runs = {line["run"] for line in lines if line["event"] != "Notice"}
    assert len(runs) == 1
    assert None not in runs
    assert sorted(line["chunk"] for line in lines if line["event"] == "ChunkDone") == [1, 2, 3, 4, 5]
    assert [line["event"] for line in lines][-1] == "RunFinished"
    assert "keyhaul:" not in log.read_text(), "the password of a URI"
    before = len(lines)
    again = etl(*command, "--log-file", str(log))
    assert again.returncode == 2
    last = log.read_text().splitlines()
    assert len(last) > before, "a log is appended to"
    assert json.loads(last[-1])["error"] == "RefusedError"


def test_a_log_that_cannot_be_written_is_refused_before_anything_is_moved(databases, etl, tmp_path):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)")
    done = etl(
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--source",
        source,
        "--target",
        target,
        "--log-file",
        str(tmp_path / "no" / "log"),
    )
    assert done.returncode == 2
    assert "Change --log-file" in done.stderr


def test_a_full_disk_costs_the_log_and_not_the_run(databases, etl):
    source, target = databases
    run_sql(source, "create table public.t (id int primary key)", "insert into public.t select generate_series(1, 50)")
    done = etl(
        "chunked",
        "--table",
        "public.t",
        "--key",
        "id",
        "--source",
        source,
        "--target",
        target,
        "--log-file",
        "/dev/full",
    )
    assert done.returncode == 0
    assert "The run goes on without its log" in done.stderr
