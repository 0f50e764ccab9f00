"""`etl verify --against-ledger` as a person or a script meets it: the source may be gone, exit codes, what is printed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psycopg
import pytest
from aftermath import fetch, value
from listener import Listener, listening
from support import clean_environment, drop_database, wait_until


class Freezing(Listener):
    """A proxy that forwards until it is frozen; then it takes what comes and sends nothing, also to new connections."""

    def __init__(self, server_port):
        super().__init__()
        self._server_port = server_port
        self.frozen = False

    async def _connection(self, client, to_client):
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        back = asyncio.create_task(self._forward(server, to_client))
        await self._forward(client, to_server)
        back.cancel()
        to_server.transport.abort()
        to_client.transport.abort()

    async def _forward(self, source, to):
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if not self.frozen:
                    to.write(data)
                    await to.drain()


SOURCE = """
create table public.t (id int primary key, ref int, name text);
insert into public.t select g, g % 100, 'n' || g from generate_series(1, 2000) g;
"""


@pytest.fixture
def ends(databases):
    fetch(databases[0], SOURCE)
    return databases


def moved(ends, *more):
    source, target = ends
    where = ("--source", source, "--target", target, "--table", "public.t", "--key", "id", "--chunk", "500")
    return ("chunked", *where, "--progress", "off", *more)


def test_without_the_source_damage_is_told_by_chunk_and_ends_with_code_1(etl, etl_home, ends, server):
    source, target = ends
    assert etl(*moved(ends, "--checksum")).returncode == 0
    drop_database(server, source)
    run_id = value(target, "select run_id from keyhaul.runs")
    file = etl_home / "job.yaml"
    file.write_text(
        f'source: {{uri: "{source}", table: public.t}}\nkey: id\njob: t\ntransform: [python: "gone:gone"]\n',
        encoding="utf-8",
    )
    for words in ([run_id], [str(file)], ["last", "--job", "t", "--workers", "3"]):
        done = etl("verify", *words, "--against-ledger", "--target", target)
        assert (done.returncode, done.stderr) == (0, ""), words
        head, _, end = done.stdout.partition(" in 0.")
        assert head == "verified 2,000 rows in 4 chunks of public.t against the ledger"
        assert end.endswith("s: equal\n")
    fetch(
        target,
        "update public.t set name = 'secret' where id = 700; delete from public.t where id = 1; insert into public.t values (9999, 0, 'new')",
    )
    done = etl("verify", "--against-ledger", "--target", target)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[:-1]) == (
        1,
        [
            "chunk 1: 500 rows when it was loaded, 499 now",
            "chunk 2: 500 rows as when it was loaded, with other values",
            "chunk 4: 500 rows when it was loaded, 501 now",
        ],
    )
    assert lines[-1].endswith("s: 3 chunks differ")
    shown = etl("verify", "--against-ledger", "--show-values", env={"ETL_TARGET_URL": target}).stdout.splitlines()
    assert shown[:2] == [
        "chunk 1: 500 rows when it was loaded, 499 now (… to 501)",
        "chunk 2: 500 rows as when it was loaded, with other values (501 to 1001)",
    ]
    found = json.loads(etl("verify", "--against-ledger", "--target", target, "--json").stdout)
    assert (found["equal"], found["different"], found["rows"], found["run_id"]) == (False, 3, 2000, run_id)
    assert found["ranges"] is False
    assert found["by_chunk"][0] == {"chunk": 1, "rows_stored": 500, "rows_found": 499, "lower": None, "upper": None}
    shown = json.loads(etl("verify", "--against-ledger", "--target", target, "--json", "--show-values").stdout)
    assert (shown["ranges"], shown["by_chunk"][0]["lower"], shown["by_chunk"][0]["upper"]) == (True, None, ["501"])
    left = "select count(*) from pg_stat_activity where application_name like 'keyhaul%'"
    wait_until(lambda: value(target, left) == 0, "all sessions to end", 5)


def test_what_is_wrong_or_missing_ends_with_code_2_and_says_what_to_do(etl, ends):
    target = ends[1]
    done = etl("verify", "--against-ledger", "--target", target)
    assert (done.returncode, "no run is recorded" in done.stderr) == (2, True)
    assert etl(*moved(ends)).returncode == 0
    done = etl("verify", "last", "--against-ledger", "--target", target)
    assert done.returncode == 2
    assert "its chunks have no checksums. Give --checksum to the next run" in done.stderr
    done = etl(
        "verify", "--against-ledger", "--target", target, "--table", "public.t", "--no-extra", "--key", "id", "-n", "3"
    )
    assert done.returncode == 2
    assert (
        "got --extra, --key, --limit, --table, expected none of what says how the source is read or which rows are named"
        in done.stderr
    )
    done = etl("verify", "--against-ledger", "--target", target, "--workers", "0")
    assert (done.returncode, "--workers: got '0'" in done.stderr) == (2, True)
    done = etl(*moved(ends, "--checksum", "--set", "id = id + 0", "--fresh", "--mode", "replace"))
    assert (done.returncode, "Leave out --checksum" in done.stderr) == (2, True)
    plan = etl("plan", *moved(ends, "--checksum", "--set", "id = id + 0", "--mode", "append")[1:])
    assert (plan.returncode, "the key is not among the target's columns" in plan.stderr) == (2, True)


def test_a_run_that_was_killed_and_has_gone_on_is_equal(etl, ends):
    command = moved(ends, "--checksum", "--workers", "2")
    assert etl(*command, env={"KEYHAUL_FAULT": "checksum.written:2"}).returncode == -signal.SIGKILL
    target = ends[1]
    half = etl("verify", "--against-ledger", "--target", target)
    assert half.returncode == 1
    assert half.stdout.splitlines()[-1].endswith(": not complete")
    wait_until(lambda: etl(*command).returncode == 0, "the killed run's lock to be free")
    done = etl("verify", "--against-ledger", "--target", target)
    assert (done.returncode, done.stdout.partition(" in ")[0]) == (0, "verified 2,000 rows")


def test_a_signal_ends_a_comparison_soon_and_leaves_no_session(etl, etl_home, ends):
    target = ends[1]
    assert etl(*moved(ends, "--checksum")).returncode == 0
    busy = "select count(*) from pg_stat_activity where application_name like 'keyhaul%worker%' and wait_event_type = 'Lock'"
    with psycopg.connect(target) as holder:
        holder.execute("lock table public.t in access exclusive mode")
        process = subprocess.Popen(
            [sys.executable, "-m", "keyhaul", "verify", "--against-ledger", "--target", target, "--workers", "2"],
            env=clean_environment(etl_home), cwd=etl_home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: value(target, busy) == 2, "two chunks to wait")
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        _, told = process.communicate(timeout=20)
    assert (process.returncode, "interrupted" in told) == (143, True)
    assert time.monotonic() - began < 8
    alive = "select count(*) from pg_stat_activity where application_name like 'keyhaul%'"
    wait_until(lambda: value(target, alive) == 0, "all sessions to end", 5)


def test_the_limits_of_a_job_are_taken_from_the_environment_where_there_is_no_job_file(etl, ends):
    target = ends[1]
    assert etl(*moved(ends, "--checksum")).returncode == 0
    command = ("verify", "--against-ledger", "--target", target, "--workers", "1")
    with psycopg.connect(target) as holder:
        holder.execute("lock table public.t in access exclusive mode")
        began = time.monotonic()
        done = etl(*command, env={"ETL_LOCK_TIMEOUT_SECONDS": "1", "ETL_RETRIES": "0"})
        assert (done.returncode, "chunk 1: canceling statement due to lock timeout" in done.stderr) == (3, True)
        assert ". Nothing was changed; the same command begins anew" in done.stderr
        assert time.monotonic() - began < 15
        done = etl(*command, env={"ETL_STATEMENT_TIMEOUT_SECONDS": "1", "ETL_RETRIES": "0"})
        assert (done.returncode, "canceling statement due to statement timeout" in done.stderr) == (3, True)
    done = etl(*command, env={"ETL_NETWORK_TIMEOUT_SECONDS": "soon"})
    assert (done.returncode, "ETL_NETWORK_TIMEOUT_SECONDS" in done.stderr) == (2, True)


def test_when_its_sessions_are_ended_it_says_so_and_what_to_do(start_etl, etl, ends):
    target = ends[1]
    assert etl(*moved(ends, "--checksum")).returncode == 0
    busy = "select count(*) from pg_stat_activity where application_name like 'keyhaul%worker%' and wait_event_type = 'Lock'"
    with psycopg.connect(target) as holder:
        holder.execute("lock table public.t in access exclusive mode")
        process = start_etl("verify", "--against-ledger", "--target", target, "--workers", "2")
        wait_until(lambda: value(target, busy) == 2, "two chunks to wait")
        fetch(
            target,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'keyhaul%'",
        )
        code, told = process.end(), process.stderr
    assert code == 3
    assert "the snapshot is gone, because the session that held it was ended. Nothing was changed; the same" in told
    assert "rollback" not in told


def test_a_signal_ends_it_soon_though_the_link_is_dead(etl, etl_home, ends, server):
    target = ends[1]
    assert etl(*moved(ends, "--checksum")).returncode == 0
    busy = "select count(*) from pg_stat_activity where application_name like 'keyhaul%worker%' and wait_event_type = 'Lock'"
    with listening(Freezing(server.port)) as proxy, psycopg.connect(target) as holder:
        holder.execute("lock table public.t in access exclusive mode")
        through = target.replace(f":{server.port}/", f":{proxy.port}/")
        process = subprocess.Popen(
            [sys.executable, "-m", "keyhaul", "verify", "--against-ledger", "--target", through, "--workers", "1"],
            env=clean_environment(etl_home), cwd=etl_home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: value(target, busy) == 1, "a chunk to wait")
        proxy.frozen = True
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=100)
        assert (process.returncode, time.monotonic() - began < 20) == (130, True)
    assert [line for line in told.splitlines() if line.startswith("error")] == [
        "error: interrupted: nothing is known of the chunks that were not compared"
    ]
    assert "rollback" not in told


def test_no_advice_is_given_that_would_be_refused_where_the_table_has_been_replaced(etl, ends):
    target = ends[1]
    assert etl(*moved(ends, "--checksum", "--mode", "replace")).returncode == 0
    run_id = value(target, "select run_id from keyhaul.runs")
    assert etl(*moved(ends, "--checksum", "--mode", "replace", "--fresh")).returncode == 0
    done = etl("verify", run_id, "--against-ledger", "--target", target)
    assert (done.returncode, "has replaced its target table since. Name a run whose rows" in done.stderr) == (2, True)
    assert "without --against-ledger" not in done.stderr
