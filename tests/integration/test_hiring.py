"""The number of workers that nobody has given, through a slow link and without one; real servers, and an idle machine."""

import threading
import time

import psycopg
import pytest
import support
from benchmarks.link import throttled
from moving import rows, run_sql

from keyhaul import events
from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import ChunkError
from keyhaul.execution import engine, pool
from keyhaul.execution.engine import run
from keyhaul.history import frames as history
from keyhaul.ledger import reading
from keyhaul.limits import hiring
from keyhaul.limits.crew import DEFAULT_WORKERS, room_for_workers
from keyhaul.limits.hiring import MOST_WORKERS
from keyhaul.postgres.dsn import Dsn
from keyhaul.sources.postgres.source import PostgresSeats

ROWS = 24_000


@pytest.fixture
def filled(databases, monkeypatch):
    """A table of 2.4 MB, and a machine of which these tests alone decide that it is idle."""
    run_sql(
        databases[0],
        "create table public.t (id integer primary key, v text)",
        f"insert into public.t select i, repeat('v', 92) from generate_series(1, {ROWS}) i",
        "analyze public.t",
    )
    monkeypatch.setattr(engine, "cpu_seconds", lambda: (0.0, time.monotonic()))
    monkeypatch.setattr(pool, "cpu_percent", lambda: 1.0)
    return databases


def moved(databases, observe, **flags):
    given = {"source": databases[0], "target": databases[1], "table": "public.t", "key": "id", "job": "t", **flags}
    return run(load_job(None, given, {}), observe, Control())


def test_on_a_slow_link_more_workers_are_hired_and_all_of_them_are_told(filled):
    seen, over, most = [], threading.Event(), 0
    names = [psycopg.conninfo.conninfo_to_dict(uri)["dbname"] for uri in filled]

    def count():
        nonlocal most
        query = "select count(*) from pg_stat_activity where datname = any(%s) and pid <> pg_backend_pid()"
        with psycopg.connect(filled[0], autocommit=True) as conn:
            while not over.is_set():
                most = max(most, conn.execute(query, [names]).fetchone()[0])
                over.wait(0.01)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        with throttled(filled[0], 150_000) as source, throttled(filled[1], 150_000) as target:
            report = moved((source, target), seen.append, chunk=300, cpu_limit="99%")
    finally:
        over.set()
        thread.join()
    assert (report.counts.loaded, report.held) == (ROWS, {})
    chosen = [event for event in seen if isinstance(event, events.WorkersChosen)]
    assert (chosen[0].before, chosen[0].workers) == (DEFAULT_WORKERS, 2 * DEFAULT_WORKERS)
    highest = max(event.workers for event in chosen)
    assert highest <= MOST_WORKERS
    assert {event.worker for event in seen if isinstance(event, events.ChunkDone)} == set(range(1, highest + 1))
    assert DEFAULT_WORKERS * 2 < most <= highest * 2 + 3
    assert report.workers == chosen[-1].workers
    assert f"{DEFAULT_WORKERS} waited" in report.workers_reason
    (found,) = history.runs(filled[1]).rows(named=True)
    assert (found["workers"], found["workers_reason"]) == (report.workers, report.workers_reason)
    with psycopg.connect(filled[1]) as conn:
        assert reading.show_run(conn, "keyhaul", report.run_id).run.workers_reason == report.workers_reason


def test_a_number_that_the_job_gives_is_never_changed(filled):
    seen = []
    with throttled(filled[0], 1_500_000) as source:
        report = moved((source, filled[1]), seen.append, chunk=1000, workers=1)
    assert (report.workers, report.workers_reason) == (1, "")
    assert [event for event in seen if isinstance(event, events.WorkersChosen)] == []
    assert rows(filled[1], "select workers, workers_reason from keyhaul.runs") == [(1, None)]


def test_nobody_is_hired_while_a_limit_of_the_job_holds_the_workers(filled):
    seen = []
    run_sql(filled[0], "delete from public.t where id > 3000")
    report = moved(filled, seen.append, chunk=100, rate_limit=1000)
    assert report.workers == DEFAULT_WORKERS
    assert "a limit of the job held them" in report.workers_reason
    assert [event for event in seen if isinstance(event, events.WorkersChosen)] == []


def test_connections_of_the_server_and_of_the_database_are_the_bound_and_some_stay_free(filled):
    name = psycopg.conninfo.conninfo_to_dict(filled[0])["dbname"]
    elsewhere = filled[1].replace("127.0.0.1", "localhost")
    run_sql(filled[1], "drop role if exists plain_one", "create role plain_one login in role pg_read_all_stats")

    # The source's session is in a transaction, as the one that holds a snapshot.
    with psycopg.connect(filled[0]) as source, psycopg.connect(filled[1], autocommit=True) as target:
        source.execute("set session authorization plain_one")  # superusers are under no limit of a database
        others = "select count(*) from pg_stat_activity where datid is not null and application_name !~ '^keyhaul r '"

        def room(here=filled[1]):
            found = room_for_workers(
                PostgresSeats(source, Dsn.parse(filled[0], "x")), target, Dsn.parse(here, "x"), "r"
            )
            return found, source.execute(others).fetchone()[0]

        found, used = room()
        assert found == (200 - 3 - used - 5 - 3) // 2
        for number, conn in enumerate((source, target), 1):
            conn.execute(f"set application_name = 'keyhaul r worker {number}'")
            assert room() == ((200 - 3 - used + number - 5 - 3) // 2, used - number)
        target.execute(f'alter database "{name}" connection limit 20')
        assert room()[0] == (20 - 5 - 3) // 2
        assert room(elsewhere)[0] == 20 - 5 - 2
        target.execute(f'alter database "{name}" connection limit 3')
        assert room()[0] == 0
    run_sql(filled[1], "drop role plain_one")


def test_those_who_are_let_go_end_with_their_chunk_and_the_others_do_not_wait_for_them(filled, monkeypatch):
    script = [
        hiring.Decision(action="change", workers=4, reason="the test says so"),
        hiring.Decision(action="change", workers=1, reason="the test says so again"),
    ]
    monkeypatch.setattr(hiring, "decide", lambda _seen: script.pop(0))
    seen = []
    report = moved(filled, seen.append, chunk=600)
    changed = [event for event in seen if isinstance(event, events.WorkersChosen)]
    assert [(event.before, event.workers) for event in changed] == [(DEFAULT_WORKERS, 4), (4, 1)]
    after = seen[seen.index(changed[1]) :]
    begun = [event.worker for event in after if isinstance(event, events.ChunkStarted)]
    assert len([worker for worker in begun if worker > 1]) <= 3  # taken just before, told just after
    assert begun.count(1) > 5
    assert (report.counts.loaded, report.workers, report.held) == (ROWS, 1, {})


def test_what_a_worker_gives_back_that_was_let_go_is_moved_by_another(filled, monkeypatch, tmp_path):
    script = [
        hiring.Decision(action="change", workers=4, reason="the test says so"),
        hiring.Decision(action="change", workers=1, reason="the test says so again"),
    ]
    seen, held = [], []
    once = pool.ChunkRunner.once

    def decide(now):
        waits = len(script) == 1 and not held  # for the fourth to have a merged chunk
        return hiring.Decision(action="wait", workers=now.workers) if waits else script.pop(0)

    def alone():
        others = {thread for thread in threading.enumerate() if thread.name.startswith("keyhaul-worker-")}
        return others == {threading.current_thread()}

    def move_or_hold(worker, chunk):
        if worker.number == 4 and chunk.cuts and not held:
            held.append(chunk.number)
            support.wait_until(alone, "the other workers to end")
            raise ChunkError("move chunk: the test says no")
        return once(worker, chunk)

    monkeypatch.setattr(hiring, "decide", decide)
    monkeypatch.setattr(pool.ChunkRunner, "once", move_or_hold)
    file = tmp_path / "auto.yaml"
    file.write_text("chunk: {min_rows: 300, max_rows: 900, target_seconds: 60}\n")
    given = {"source": filled[0], "target": filled[1], "table": "public.t", "key": "id", "job": "t"}
    report = run(load_job(file, given, {}), seen.append, Control())
    assert [event.chunk for event in seen if isinstance(event, events.ChunkHalved)][:1] == held
    assert (report.outcome, report.counts.loaded, report.workers) == ("done", ROWS, 1)


def test_memory_that_suffices_for_no_more_chunks_at_a_time_is_the_bound(filled, monkeypatch):
    monkeypatch.setattr(hiring, "SHORTEST_SECONDS", 0.0)
    run_sql(filled[0], "delete from public.t where id > 1000", "update public.t set v = repeat('v', 60000)")
    report = moved(filled, lambda _event: None, memory_limit="1MB")
    assert (report.counts.loaded, report.workers) == (1000, DEFAULT_WORKERS)
    assert f"and memory_limit has room for no more than {DEFAULT_WORKERS}" in report.workers_reason
