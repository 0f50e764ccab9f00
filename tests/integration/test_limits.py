"""What a run may use, against real servers: memory, the machine's CPU, rows a second, connections; and what it does once."""

import os
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from moving import rows, run_sql

from keyhaul import events
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution import pool
from keyhaul.execution.engine import run
from keyhaul.sources.postgres.sql import SqlSource
from keyhaul.targets import session

MOVE = """
import sys
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.execution.engine import run
from keyhaul.memory import peak_memory_bytes

source, target, limit, chunk = sys.argv[1:]
flags = dict(source=source, target=target, table="public.wide", key="id", memory_limit=limit, workers=2, chunk=chunk)
report = run(load_job(None, flags, {}), lambda _event: None, Control())
print(report.outcome, report.counts.loaded, peak_memory_bytes())
"""

ONE_MB = {
    "compressible": "repeat(md5(i::text), 31250)",
    "not compressible": "(select string_agg(md5(i::text || j::text), '') from generate_series(1, 31250) j)",
}


def moved(databases, observe=lambda _event: None, **flags):
    given = {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "job": "t", **flags}
    return run(load_job(None, given, {}), observe, Control())


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        "create table public.t (id integer primary key, v text)",
        "insert into public.t select i, 'v' || i from generate_series(1, 200) i",
    )
    return databases


@pytest.mark.thin(4)
@pytest.mark.parametrize(
    ("value", "number", "chunk"),
    [("compressible", 1000, "50000"), ("not compressible", 60, "50000"), ("not compressible", 60, "auto")],
)
@pytest.mark.timeout(300)
def test_the_memory_limit_holds_with_rows_of_one_megabyte(databases, value, number, chunk):
    run_sql(
        databases[0],
        "create table public.wide (id integer primary key, v text)",
        f"insert into public.wide select i, {ONE_MB[value]} from generate_series(1, {number}) i",
        "analyze public.wide",
    )
    done = subprocess.run(
        [sys.executable, "-c", MOVE, *databases, "300MB", chunk],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    outcome, loaded, peak = done.stdout.split()
    assert (outcome, int(loaded), done.stderr) == ("done", number, "")
    assert int(peak) < 300_000_000
    # Chunks of one row would hold the limit too, and take for ever.
    [(chunks,)] = rows(databases[1], "select count(*) from keyhaul.chunks")
    assert chunks <= number / 2


def test_a_chunk_that_memory_allows_is_as_large_as_the_job_says(filled):
    assert moved(filled, chunk=50, memory_limit="60%").held == {}
    assert rows(filled[1], "select chunks_planned, chunk_rows from keyhaul.runs") == [(4, 50)]


def test_a_limit_below_what_the_process_takes_is_told_and_the_run_ends_all_the_same(filled):
    seen = []
    # Narrow rows, planned when nothing is known of their width: an empty sample.
    run_sql(filled[0], "update public.t set v = repeat('x', 60000)")
    report = moved(filled, seen.append, chunk=100, workers=2, memory_limit="1MB")
    assert report.counts.loaded == 200
    warned = [event.message for event in seen if isinstance(event, events.Notice) and event.level == "warning"]
    assert any("memory_limit is 1 MB, and without any row this process takes about" in text for text in warned)
    assert any("not 100: rows of about 60.0 kB in chunks of 2 workers would not stay within" in text for text in warned)


def test_the_rate_limit_is_held_told_and_recorded(filled):
    seen = []
    began = time.monotonic()
    report = moved(filled, seen.append, chunk=40, workers=2, rate_limit=100)
    # The first 40 rows are free; the 160 others have been paid for when the last of them is begun, but its own 40.
    assert time.monotonic() - began > (200 - 40) / 100
    assert report.counts.loaded == 200
    assert report.held["rate_limit"] > 1
    assert {event.limit for event in seen if isinstance(event, events.ChunkHeld)} == {"rate_limit"}
    assert sum(e.seconds for e in seen if isinstance(e, events.ChunkReleased)) == pytest.approx(
        report.held["rate_limit"], rel=0.2
    )
    [(waited,)] = rows(filled[1], "select sum(wait_seconds) from keyhaul.chunks")
    assert waited == pytest.approx(report.held["rate_limit"], rel=0.2)


def test_the_cpu_limit_lowers_the_workers_and_the_run_ends_all_the_same(filled, monkeypatch):
    monkeypatch.setattr(pool, "cpu_percent", lambda: 99.0)
    seen = []
    report = moved(filled, seen.append, chunk=20, workers=3, rate_limit=50, cpu_limit="85%")
    assert (report.outcome, report.counts.loaded, report.fewest_workers) == ("done", 200, 1)
    changes = [event for event in seen if isinstance(event, events.WorkersAllowed)]
    assert [(event.active, event.workers, event.cpu_percent) for event in changes] == [(2, 3, 99.0), (1, 3, 99.0)]


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_connections_are_at_most_two_for_each_worker_and_three(filled, reader):
    run_sql(filled[0], "insert into public.t select i, 'v' || i from generate_series(201, 60000) i")
    over, most = threading.Event(), 0

    def count():
        nonlocal most
        with psycopg.connect(filled[0], autocommit=True) as conn:
            while not over.is_set():
                [(found,)] = conn.execute(
                    "select count(*) from pg_stat_activity where datname = any(%s) and pid <> pg_backend_pid()",
                    [[psycopg.conninfo.conninfo_to_dict(uri)["dbname"] for uri in filled]],
                ).fetchall()
                most = max(most, found)
                over.wait(0.01)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        assert moved(filled, chunk=2000, workers=3, reader=reader).counts.loaded == 60000
    finally:
        over.set()
        thread.join()
    assert 3 < most <= 3 * 2 + 3


def test_the_plan_is_computed_once_and_not_again_when_a_run_goes_on(filled, monkeypatch):
    plans = []
    original = SqlSource.plan
    monkeypatch.setattr(SqlSource, "plan", lambda self, chunk: plans.append(chunk) or original(self, chunk))
    run_sql(filled[1], "create table public.t (id integer primary key, v text)")
    control = Control()

    def stop(event):
        if isinstance(event, events.ChunkDone):
            control.stop("the test says so")

    flags = {"source": filled[0], "target": filled[1], "table": "public.t", "key": "id", "job": "t", "chunk": 50}
    assert run(load_job(None, {**flags, "workers": 1}, {}), stop, control).outcome == "stopped"
    assert moved(filled, chunk=50).outcome == "done"
    assert plans == [50]


def test_no_record_batch_that_is_loaded_has_more_than_64k_rows(filled, monkeypatch):
    run_sql(filled[0], "insert into public.t select i, 'v' || i from generate_series(201, 150000) i")
    sizes = []
    original = session._encoder

    class Seen:
        def __init__(self, encoder):
            self._encoder = encoder

        def __getattr__(self, name):
            return getattr(self._encoder, name)

        def write_batch(self, batch):
            sizes.append(batch.num_rows)
            return self._encoder.write_batch(batch)

    monkeypatch.setattr(session, "_encoder", lambda *given: Seen(original(*given)))
    assert moved(filled, chunk=150_000).counts.loaded == 150_000
    assert sum(sizes) == 150_000
    assert max(sizes) < 64_000
