"""`etl verify` as a person or a script meets it: which job is meant, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from aftermath import fetch, value
from support import clean_environment, wait_until

SOURCE = """
create table public.t (id int primary key, ref int, name text);
insert into public.t select g, g % 100, 'n' || g from generate_series(1, 2000) g;
"""


@pytest.fixture
def ends(databases):
    fetch(databases[0], SOURCE)
    return databases


def flags(ends, *more):
    source, target = ends
    return ("--source", source, "--target", target, "--table", "public.t", "--key", "id", *more)


def test_a_clean_move_is_equal_by_the_runs_name_by_last_and_by_the_job_file(etl, etl_home, ends):
    source, target = ends
    assert etl("chunked", *flags(ends, "--chunk", "500")).returncode == 0
    run_id = value(target, "select run_id from keyhaul.runs")
    file = etl_home / "orders.yaml"
    file.write_text("source: {table: public.t}\nkey: id\njob: t\nchunk: 500\n", encoding="utf-8")
    for command in (
        [run_id],
        ["last"],
        [],
        [str(file)],
        [run_id, str(file)],
        ["last", "--table", "public.t", "--key", "id"],
    ):
        done = etl("verify", *command, "--source", source, "--target", target)
        assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "verified 2,000 rows"), (command, done.stderr)
        assert done.stdout.endswith(": equal\n")
        assert "comparing with the source as it is now" in done.stderr


def test_the_flags_of_the_run_are_those_of_its_verify(etl, ends, tmp_path):
    run = (
        *("--chunk", "500", "--loader", "copy", "--memory-limit", "400MB", "--cpu-limit", "99%", "--order", "desc"),
        *(
            "--rate-limit",
            "1000000",
            "--stop-on-error",
            "--allow-quarantined",
            "1%",
            "--with-foreign-keys",
            "--checksum",
        ),
        *("--work-dir", str(tmp_path), "--rule", "named: name <> ''", "--workers", "2"),
    )
    moved = etl("chunked", *flags(ends, *run))
    assert moved.returncode == 0, moved.stderr
    done = etl("verify", *flags(ends, *run))
    assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "verified 2,000 rows"), done.stderr
    assert "--chunk" not in etl("verify", "--help").stdout  # it has no use for it


def test_differences_are_named_without_values_unless_asked_and_end_with_code_1(etl, ends):
    target = ends[1]
    etl("chunked", *flags(ends, "--chunk", "500"))
    fetch(
        target,
        "update public.t set name = 'secret' where id = 700; delete from public.t where id = 1; insert into public.t values (9999, 0, 'new')",
    )
    done = etl("verify", *flags(ends))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[:6] == [
        "chunk 1: 1 missing",
        "chunk 2: 1 changed",
        "chunk 4: 1 extra",
        "  id=1  missing in the target",
        "  id=700  changed: name",
        "  id=9999  extra in the target",
    ]
    assert lines[-1].startswith("verified 2,000 rows in 4 chunks of public.t in ")
    assert lines[-1].endswith(": 3 differences")
    assert "secret" not in done.stdout + done.stderr
    shown = etl("verify", *flags(ends, "--show-values", "--limit", "2")).stdout
    assert "      name: source n700, target secret\n" in shown
    assert "and 1 more difference: --limit shows more" in shown


def test_json_is_one_object_and_nothing_else(etl, ends):
    target = ends[1]
    etl("chunked", *flags(ends, "--chunk", "500"))
    fetch(target, "update public.t set name = null, ref = 5 where id = 700")
    done = etl("verify", *flags(ends, "--json"))
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert (found["equal"], found["different"], found["changed"], found["rows"]) == (False, 1, 1, 2000)
    assert found["differences"] == [
        {"chunk": 2, "kind": "changed", "key": ["700"], "columns": ["ref", "name"], "expected": {}, "found": {}}
    ]
    with_values = json.loads(etl("verify", *flags(ends, "--json", "--show-values")).stdout)
    assert with_values["differences"][0]["found"] == {"ref": "5", "name": None}


def test_what_is_wrong_or_missing_ends_with_code_2_and_says_what_to_give(etl, ends):
    source, target = ends
    done = etl("verify", "last", "--source", source, "--target", target)
    assert (done.returncode, "no run is recorded" in done.stderr) == (2, True)
    etl("chunked", *flags(ends, "--rule", "all: id > 0"))
    run_id = value(target, "select run_id from keyhaul.runs")
    assert etl("verify", run_id, "--source", source, "--target", target).returncode == 0
    assert etl("verify", run_id, *flags(ends, "--rule", "all: id > 0")).returncode == 0
    done = etl("verify", run_id, *flags(ends))
    assert (done.returncode, "rules" in done.stderr) == (2, True)
    etl("chunked", *flags(ends, "--mode", "skip", "--fresh"))
    done = etl("verify", "last", "--target", target)
    assert (done.returncode, "Give --source URI or ETL_SOURCE_URL" in done.stderr) == (2, True)
    assert etl("verify", "one", "two").returncode == 2


@pytest.mark.thin(3)
@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_soon_and_leaves_no_session(etl, etl_home, ends, reader, number, code):
    source, target = ends
    assert etl("chunked", *flags(ends, "--chunk", "500")).returncode == 0
    fetch(
        source,
        "alter table public.t rename to base; create view public.t as"
        " select id, ref, case when pg_sleep(0.02) is null then '' else name end as name from public.base",
    )
    busy = "select count(*) from pg_stat_activity where application_name like 'keyhaul%chunk%' and state = 'active'"
    process = subprocess.Popen(
        [sys.executable, "-m", "keyhaul", "verify", *flags(ends, "--reader", reader)],
        env=clean_environment(etl_home),
        cwd=etl_home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: value(source, busy) > 0, "a chunk to be read")
    began = time.monotonic()
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=20)
    assert (process.returncode, "interrupted" in told) == (code, True)
    assert time.monotonic() - began < 8
    alive = "select count(*) from pg_stat_activity where application_name like 'keyhaul%'"
    wait_until(lambda: value(source, alive) == 0 == value(target, alive), "all sessions to end", 5)


def test_a_stored_query_with_a_hidden_secret_is_refused_and_never_executed(etl, ends):
    source, target = ends
    fetch(source, "create table public.cn (id int primary key, dsn text)")
    fetch(source, "insert into public.cn select g, 'host=x password=hunter2pass' from generate_series(1, 3) g")
    where = ("--source", source, "--target", target)
    query = ("--query", "select id, dsn from public.cn where dsn = 'host=x password=hunter2pass'")
    asked = (*where, *query, "--key", "id", "--into", "public.cn", "--job", "cn")
    assert etl("chunked", *asked).returncode == 0
    run_id = value(target, "select run_id from keyhaul.runs")
    done = etl("verify", "last", *where)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"a secret in its source.query is hidden in the ledger. Give the job: etl verify {run_id} JOB.yaml" in (
        done.stderr
    )
    assert "hunter2pass" not in done.stderr
    assert etl("verify", "last", *asked).returncode == 0


def test_last_is_the_newest_run_of_the_job_that_is_named_and_never_a_replay(etl, ends):
    source, target = ends
    fetch(source, "create table public.u (id int primary key); insert into public.u values (1), (2)")
    where = ("--source", source, "--target", target)
    assert etl("chunked", *flags(ends, "--job", "a", "--into", "public.a")).returncode == 0
    assert etl("chunked", *where, "--table", "public.u", "--key", "id", "--job", "b").returncode == 0
    for words in (["last", "--job", "a"], ["--job", "a"]):
        done = etl("verify", *words, *where)
        assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "verified 2,000 rows"), done.stderr
    assert etl("verify", "last", *where).stdout.startswith("verified 2 rows in ")
    run_id = value(target, "select run_id from keyhaul.runs where job = 'a'")
    fetch(
        target,
        "insert into keyhaul.runs select (jsonb_populate_record(r, jsonb_build_object('run_id', '29990101T000000-0000',"
        f" 'kind', 'replay', 'replay_of', '{run_id}', 'started_at', now() + interval '1 minute'))).*"
        f" from keyhaul.runs r where run_id = '{run_id}'",
    )
    done = etl("verify", "last", *where)
    assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "verified 2 rows"), done.stderr
    done = etl("verify", "29990101T000000-0000", *where)
    assert (done.returncode, f"it is a replay of run {run_id}. Name that run" in done.stderr) == (2, True)
    done = etl("verify", "last", "--job", "c", *where)
    assert (done.returncode, "verify job c: no run of this job is in the ledger" in done.stderr) == (2, True)


def test_a_run_that_read_by_a_watermark_is_compared_by_its_name_and_by_flags(etl, ends):
    source, target = ends
    again = flags(ends, "--incremental", "ref", "--lag", "2", "--mode", "upsert")
    assert etl("chunked", *again).returncode == 0
    assert etl("chunked", *again).returncode == 0
    for words in (
        ["last", "--source", source, "--target", target],
        ["last", *flags(ends, "--mode", "upsert")],
    ):
        done = etl("verify", *words)
        assert (done.returncode, "\nverified 2,000 rows in " in done.stdout) == (0, True), done.stderr


def test_rows_that_the_job_would_leave_out_now_are_told_though_nothing_differs(etl, ends):
    asked = flags(ends, "--mode", "upsert", "--rule", "small: ref < 100", "--where", "ref >= 0")
    assert etl("chunked", *asked).returncode == 0
    assert " compared, " not in etl("verify", *asked).stdout
    fetch(ends[0], "update public.t set ref = 100 where id < 3; update public.t set ref = -1 where id = 3")
    done = etl("verify", *asked)
    assert (done.returncode, done.stdout.splitlines()[-2]) == (
        0,
        "2,000 rows read, 1,997 compared, 2 would be quarantined now (the run quarantined 0), 1 filtered (by the run 0)",
    )
    assert "warning: 2 rows of the source would be quarantined now, and the run quarantined 0" in done.stderr
    found = json.loads(etl("verify", *asked, "--json").stdout)
    assert (found["equal"], found["read"], found["compared"], found["rows"]) == (True, 2000, 1997, 1997)
    assert (found["quarantined"], found["filtered"], found["duplicate"], found["older"]) == (2, 1, 0, 0)
    assert (found["run"]["read"], found["run"]["quarantined"], found["run"]["filtered"]) == (2000, 0, 0)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_result_that_nobody_reads_or_that_cannot_be_written_has_a_code_that_is_not_a_difference(
    etl, etl_home, ends, words
):
    assert etl("chunked", *flags(ends)).returncode == 0

    def verify(stdout, *shell):
        return subprocess.run(
            [*shell, sys.executable, "-m", "keyhaul", "verify", *flags(ends, *words)],
            env=clean_environment(etl_home), cwd=etl_home, stdout=stdout, stderr=subprocess.PIPE, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def into_a_closed_pipe():
        reader, writer = os.pipe()
        os.close(reader)
        try:
            return verify(writer)
        finally:
            os.close(writer)

    done = into_a_closed_pipe()
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = verify(full)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        3,
        "error: write to stdout: No space left on device, so what was printed is not whole. Mend this and try again",
    )
    done = verify(None, "sh", "-c", 'exec "$0" "$@" >&-')
    assert (done.returncode, "error: write to stdout: it is closed, so" in done.stderr) == (3, True)
    assert "Traceback" not in done.stderr
    fetch(ends[1], "delete from public.t where id = 1")
    assert into_a_closed_pipe().returncode == 1
