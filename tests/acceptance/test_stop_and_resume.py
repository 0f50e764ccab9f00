"""What stops a run, what it says then, and that the same command finishes what was begun."""

from __future__ import annotations

import os
import platform
import signal
import time

import psycopg
import pytest
import support
from aftermath import (
    check_ledger,
    checksum,
    contents,
    fetch,
    sessions,
    terminate,
    text_of_ledger,
    value,
    wait_until_nothing_is_left,
)
from proxy import losing

import keyhaul
from keyhaul.config.job import load_job
from keyhaul.errors import ConnectError
from keyhaul.ledger.store import Ledger

ROWS = 400

# `slow` takes its time when a chunk is read, and only then: planning and counting are not held up.
SOURCE = f"""
create table public.items (id bigint not null, name text, amount numeric(12,2), doc jsonb);
insert into public.items select g, 'name ' || g, g / 4.0, jsonb_build_object('g', g) from generate_series(1, {ROWS}) g;
create unique index on public.items (id);
create function nap(seconds float8) returns bool language plpgsql volatile as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' then perform pg_sleep(seconds); end if;
    return true;
end $$;
create view public.slow as select * from public.items where nap(0.01);
create view public.very_slow as select * from public.items where nap(2);
create view public.slow_plan as select * from public.items where pg_sleep(1) is not null;
"""
NAPPING = """
create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb);
create function nap() returns trigger language plpgsql as 'begin perform pg_sleep(2); return new; end';
create trigger nap before insert on public.items for each row execute function nap();
"""
DRIVERS = [("connectorx", "copy"), ("adbc", "adbc")]
both_drivers = pytest.mark.parametrize("drivers", DRIVERS, ids="-".join)


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "source", SOURCE) as uri:
        yield uri


@pytest.fixture
def target(server, database, source):
    yield database(server, "target")
    terminate(source, "keyhaul%")  # what a failed test has left would disturb the next


def command(source, target, *more, table="public.items", chunk=10):
    where = ("--source", source, "--target", target, "--table", table, "--into", "public.items", "--key", "id")
    return ["chunked", *where, "--chunk", str(chunk), "--workers", "2", *more]


def run(etl, *args, code):
    done = etl(*args)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def finish(etl, source, target, *args):
    """Run the same command again: it must end the run, and the target must equal the source."""
    done = run(etl, *args, code=0)
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["loaded"] == ROWS
    wait_until_nothing_is_left(source, target)
    return done


def statuses(target):
    return dict(fetch(target, "select status, count(*) from keyhaul.chunks group by 1"))


# --- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "SIGINT", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_lets_running_chunks_finish_and_says_how_to_go_on(etl, start_etl, source, target, number, name, code):
    args = command(source, target, table="public.slow")
    going = start_etl(*args, "--progress", "plain")
    ledger = "select count(*) from keyhaul.chunks where status = 'done'"
    support.wait_until(
        lambda: fetch(target, "select to_regclass('keyhaul.chunks') is not null") == [(True,)], "the plan"
    )
    support.wait_until(lambda: value(target, ledger) >= 2, "two chunks to be done")
    going.send(number)
    assert going.end() == code
    assert f"interrupted by {name} after" in going.stdout
    assert "Next: etl resume" in going.stdout
    assert "goes on with" in going.stdout
    assert "stopping when the chunks under way are done" in going.stderr
    assert fetch(target, "select status from keyhaul.runs") == [("stopped",)]
    assert statuses(target).keys() == {"done", "planned"}
    wait_until_nothing_is_left(source, target)
    done = finish(etl, source, target, *args)
    assert "going on with an unfinished run" in done.stderr
    assert "newer snapshot" in done.stderr


def test_every_chunk_that_had_begun_is_done_after_an_interrupt(start_etl, source, target):
    going = start_etl(*command(source, target, "--progress", "json", table="public.slow"))
    going.wait_for("ChunkDone", 3)
    going.send(signal.SIGINT)
    assert going.end() == 130
    begun = {event["chunk"] for event in going.named("ChunkStarted")}
    assert begun == {event["chunk"] for event in going.named("ChunkDone")}
    assert 3 <= len(begun) < ROWS // 10
    report = going.named("RunFinished")[0]["report"]
    assert (report["outcome"], report["signal"], report["failed"]) == ("interrupted", 2, [])
    assert report["counts"]["loaded"] == value(target, "select count(*) from public.items") == 10 * len(begun)


@pytest.mark.thin(2)
@both_drivers
def test_a_second_interrupt_cancels_what_is_being_read(etl, start_etl, source, target, drivers):
    words = ("--reader", drivers[0], "--loader", drivers[1])
    args = command(source, target, *words, table="public.very_slow")
    going = start_etl(*args, "--progress", "json")
    going.wait_for("ChunkStarted", 2)
    support.wait_until(lambda: "active" in {state for _, state in sessions(source)}, "a chunk to be read")
    going.send(signal.SIGINT)
    going.wait_for("Stopping")
    asked = time.monotonic()
    going.send(signal.SIGINT)
    assert going.end() == 130
    assert time.monotonic() - asked < 3
    wait_until_nothing_is_left(source, target)
    assert "Traceback" not in going.stderr
    assert statuses(target) == {"planned": 41}  # a view's key may be NULL: one chunk more
    assert value(target, "select count(*) from public.items") == 0


@pytest.mark.thin(2)
@both_drivers
def test_a_second_interrupt_cancels_what_is_being_loaded(etl, start_etl, source, target, drivers):
    fetch(target, NAPPING)
    args = command(source, target, "--reader", drivers[0], "--loader", drivers[1])
    going = start_etl(*args, "--progress", "json")
    going.wait_for("StepStarted", 2, matching=lambda event: event["step"] == "load")
    support.wait_until(lambda: [state for _, state in sessions(target)].count("active") == 2, "two chunks to be loaded")
    going.send(signal.SIGTERM)
    going.wait_for("Stopping")
    asked = time.monotonic()
    going.send(signal.SIGTERM)
    assert going.end() == 143
    assert time.monotonic() - asked < 3
    wait_until_nothing_is_left(source, target)
    assert "Traceback" not in going.stderr
    assert statuses(target) == {"planned": 40}
    fetch(target, "drop trigger nap on public.items")
    finish(etl, source, target, *args)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_during_planning_leaves_nothing_anywhere(start_etl, source, target, number, code):
    going = start_etl(*command(source, target, table="public.slow_plan"))
    support.wait_until(lambda: "active" in {state for _, state in sessions(source)}, "the planning to begin")
    asked = time.monotonic()
    going.send(number)
    assert going.end() == code
    assert time.monotonic() - asked < 3
    assert going.stderr == "error: interrupted before anything was moved\n"
    assert contents(target) == [("schema", "public", None)]
    wait_until_nothing_is_left(source, target)


# --- the same job, again ---------------------------------------------------------------------------


def test_a_second_process_on_the_same_job_is_refused_with_the_first_ones_pid_and_host(etl, start_etl, source, target):
    args = command(source, target, table="public.slow")
    first = start_etl(*args, "--progress", "json")
    first.wait_for("RunStarted")
    second = run(etl, *args, code=2)
    assert f"process {first.pid} on {platform.node()}" in second.stderr
    assert "Wait for it, or stop it" in second.stderr
    assert first.end() == 0
    assert check_ledger(target, "public.items")["loaded"] == ROWS
    assert value(target, "select sittings from keyhaul.runs") == 1


WAIT_FOR_ANOTHER = """
do $$ begin
    while not exists (select from pg_stat_activity where query like '%pg_try_advisory_lock%' and pid <> pg_backend_pid()
                      and datname = current_database()) loop
        perform pg_sleep(0.01), pg_stat_clear_snapshot();
    end loop;
end $$
"""


def begin_while_another_ends(start_etl, target, args, end):
    """Start a process while another has the job; `end` is what happens before that one is gone."""
    with psycopg.connect(target, autocommit=True) as another:
        Ledger(lambda: another, "keyhaul", "items").lock()
        begun = start_etl(*args)
        another.execute(WAIT_FOR_ANOTHER)
        end()
    return begun.end(), begun.stderr


def test_who_waits_for_the_job_has_not_looked_at_the_target_yet(start_etl, source, target):
    fetch(target, "create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb)")

    def load():
        fetch(target, "insert into public.items values (1)")

    code, said = begin_while_another_ends(start_etl, target, command(source, target, "--job", "items"), load)
    assert code == 2, said
    assert "load public.items: it already holds rows and no mode is given" in said
    assert value(target, "select count(*) from public.items") == 1


def test_who_waits_for_the_job_has_not_looked_at_the_source_yet(etl, start_etl, source, target):
    def write():
        fetch(source, f"insert into public.items values ({ROWS + 1})")

    args = command(source, target, "--job", "items", "--mode", "replace")
    try:
        code, said = begin_while_another_ends(start_etl, target, args, write)
        assert code == 0, said
        assert value(target, "select count(*) from public.items") == ROWS + 1
    finally:
        fetch(source, f"delete from public.items where id > {ROWS}")


def test_a_process_that_still_plans_is_named_too_and_not_one_that_was_killed(etl, start_etl, source, target):
    args = command(source, target, "--job", "items")
    killed = start_etl(*command(source, target, "--job", "items", table="public.slow"), "--progress", "json")
    killed.wait_for("ChunkDone")
    killed.send(signal.SIGKILL)
    killed.end()
    fetch(target, "truncate public.items")
    planning = start_etl(*command(source, target, "--job", "items", "--fresh", table="public.slow_plan"))
    support.wait_until(lambda: "active" in {state for _, state in sessions(source)}, "the planning to begin")
    second = run(etl, *args, code=2)
    assert f"process {planning.pid} on {platform.node()}" in second.stderr
    assert f"process {killed.pid} " not in second.stderr
    planning.send(signal.SIGINT)
    assert planning.end() == 130


def test_another_job_may_run_at_the_same_time(etl, start_etl, source, target):
    first = start_etl(*command(source, target, "--job", "one", table="public.slow"), "--progress", "json")
    first.wait_for("RunStarted")
    where = ("--source", source, "--target", target, "--table", "public.items", "--into", "public.others")
    run(etl, "chunked", *where, "--key", "id", "--job", "two", code=0)
    assert first.running
    assert first.end() == 0
    assert value(target, "select count(*) from public.others") == ROWS


def interrupted(start_etl, args):
    going = start_etl(*args, "--progress", "json")
    going.wait_for("ChunkDone", 2)
    going.send(signal.SIGINT)
    assert going.end() == 130


def test_a_job_that_has_changed_is_refused_with_what_changed(etl, start_etl, source, target):
    interrupted(start_etl, command(source, target, "--job", "items", table="public.slow"))
    before = contents(target)
    changed = run(etl, *command(source, target, "--job", "items", "--where", "id > 5", chunk=20), code=2)
    for words in ("the job has changed", "chunk: 10 → 20", 'source.table: "public.slow" → "public.items"', "--fresh"):
        assert words in changed.stderr
    assert 'transform[0].where: nothing → "id > 5"' in changed.stderr
    assert contents(target) == before


def test_other_workers_reader_loader_and_order_are_still_the_same_job(etl, start_etl, source, target):
    args = command(source, target, "--job", "items", table="public.slow")
    interrupted(start_etl, args)
    words = ("--reader", "adbc", "--loader", "adbc", "--order", "desc", "--workers", "1", "--quiet")
    finish(etl, source, target, *args, *words)


def test_fresh_gives_the_unfinished_run_up_and_starts_anew(etl, start_etl, source, target):
    interrupted(start_etl, command(source, target, "--job", "items", table="public.slow"))
    fetch(target, "truncate public.items")
    args = command(source, target, "--job", "items", chunk=50)
    run(etl, *args, "--fresh", code=0)
    assert sorted(fetch(target, "select status from keyhaul.runs")) == [("abandoned",), ("done",)]
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["loaded"] == ROWS


def test_fresh_does_not_load_beside_what_the_given_up_run_has_loaded(etl, start_etl, source, target):
    args = command(source, target, table="public.slow")
    interrupted(start_etl, args)
    before = contents(target)
    refused = run(etl, *args, "--fresh", code=2)
    assert "already holds rows" in refused.stderr
    assert contents(target) == before


# --- chunks that fail ------------------------------------------------------------------------------

# A trigger that drops rows: the counts would not balance, so the chunk is given up whole.
DROPPING = (
    "create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb);"
    "create function public.fair() returns trigger language plpgsql as"
    " $$ begin if {} then return new; end if; return null; end $$;"
    "create trigger fair before insert on public.items for each row execute function public.fair()"
)


def late(target, run, rows):
    """Return a connection that is at the COMMIT of a run's first chunk, as a killed process may leave one behind."""
    conn = psycopg.connect(target)
    conn.execute("select from keyhaul.runs where run_id = %s and status = 'running' for key share", [run])
    conn.execute("select from keyhaul.chunks where run_id = %s and chunk = 1 for update", [run])
    stored = conn.execute(rows).rowcount
    conn.execute(
        "update keyhaul.chunks set status = 'done', rows_read = %s, rows_loaded = %s where run_id = %s and chunk = 1",
        [stored, stored, run],
    )
    return conn


def killed(start_etl, target, args):
    """Kill a run before its first chunk is loaded; return its name."""
    assert start_etl(*args, env={"KEYHAUL_FAULT": "claim.after:1:kill"}).end() == -signal.SIGKILL
    return value(target, "select run_id from keyhaul.runs")


def waits(target):
    query = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    support.wait_until(lambda: value(target, query), "a session to wait")


def test_fresh_waits_for_a_commit_that_a_killed_process_has_left_behind(start_etl, source, target):
    fetch(target, "create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb)")
    args = command(source, target, "--job", "items")
    run_id = killed(start_etl, target, args)
    with late(target, run_id, "insert into public.items select g, 'late' from generate_series(1, 10) g"):
        second = start_etl(*args, "--fresh")
        waits(target)
    assert second.end() == 2, second.printed
    assert "it already holds rows and no mode is given" in second.stderr
    assert value(target, "select count(*) from public.items") == 10
    assert fetch(target, "select status from keyhaul.runs") == [("running",)]


def test_a_dedup_is_not_decided_anew_beside_a_commit_that_a_killed_process_has_left_behind(
    start_etl, source, target, tmp_path
):
    fetch(target, "create table public.items (id bigint, name text, amount numeric(12,2), doc jsonb)")
    args = command(source, target, "--job", "items", "--dedup", "amount", chunk=100)
    run_id = killed(start_etl, target, [*args, "--work-dir", str(tmp_path / "one")])
    with late(target, run_id, "insert into public.items select g, 'late' from generate_series(1, 100) g"):
        second = start_etl(*args, "--work-dir", str(tmp_path / "two"))
        waits(target)
    assert second.end() == 2, second.printed
    assert "1 of its chunks are loaded, and the rows of the others" in second.stderr
    assert value(target, "select count(*) from public.items") == 100


def test_a_run_whose_ledger_rows_are_deleted_under_it_is_not_told_as_done(start_etl, source, target):
    going = start_etl(*command(source, target, "--progress", "json", table="public.slow"))
    going.wait_for("ChunkDone", 2)
    fetch(target, "delete from keyhaul.runs")
    assert going.end() == 3, going.printed
    assert "does not have the whole plan of run" in going.printed


def test_nothing_is_asked_after_the_last_word_of_a_run(source, target, monkeypatch):
    end = Ledger.end

    def end_and_go(self, *args):
        end(self, *args)
        self._open = gone

    def gone():
        raise ConnectError("connect to the target: got nothing, expected a server. Wait")

    monkeypatch.setattr(Ledger, "end", end_and_go)
    monkeypatch.setattr("keyhaul.ledger.patience.RECONNECT_SECONDS", 1.0)
    given = {"source": source, "target": target, "table": "public.items", "key": "id", "job": "items"}
    report = keyhaul.run(load_job(None, given, {}))
    assert (report.outcome, report.counts.loaded) == ("done", ROWS)


def test_ten_failures_in_a_row_stop_the_run_and_a_repair_resumes_it(etl, source, target):
    fetch(target, DROPPING.format("new.amount < 0"))
    args = command(source, target)
    stopped = run(etl, *args, code=3)
    assert "10 chunks in a row failed" in stopped.stdout
    assert "a trigger or rule there drops or adds rows" in stopped.stdout
    assert "Next: etl resume" in stopped.stdout
    found = statuses(target)
    assert 10 <= found["failed"] <= 11  # the other worker may have been at its last
    assert found["planned"] == 40 - found["failed"]
    assert value(target, "select count(*) from public.items") == 0
    fetch(target, "drop trigger fair on public.items")
    finish(etl, source, target, *args)


def test_a_chunk_that_fails_costs_itself_and_the_same_command_finishes_after_a_repair(etl, source, target):
    fetch(target, DROPPING.format("new.id not in (15, 205)"))
    args = command(source, target)
    stopped = run(etl, *args, code=3)
    assert "2 of 40 chunks failed" in stopped.stdout
    assert "chunk 2 after 1 try" in stopped.stdout
    assert "chunk 21 after 1 try" in stopped.stdout
    assert statuses(target) == {"done": 38, "failed": 2}
    assert value(target, "select count(*) from public.items") == 380
    assert "name 15" not in stopped.stdout + stopped.stderr + text_of_ledger(target)
    fetch(target, "drop trigger fair on public.items")
    finish(etl, source, target, *args)


def test_stop_on_error_stops_at_the_first_failed_chunk(etl, source, target):
    fetch(target, DROPPING.format("new.id not in (5, 395)"))
    args = command(source, target, "--workers", "1", "--stop-on-error")
    stopped = run(etl, *args, code=3)
    assert "--stop-on-error" in stopped.stdout
    assert statuses(target) == {"failed": 1, "planned": 39}
    descending = run(etl, *args, "--order", "desc", code=3)
    assert "chunk 40 after 1 try" in descending.stdout
    assert statuses(target) == {"failed": 2, "planned": 38}
    fetch(target, "drop trigger fair on public.items")
    finish(etl, source, target, *args)


def test_a_rule_that_says_stop_stops_the_run(etl, start_etl, source, target, tmp_path):
    (tmp_path / "job.yaml").write_text(
        'source: {uri: "${SOURCE}", table: public.items}\ntarget: {uri: "${TARGET}"}\nkey: id\nchunk: 10\n'
        "workers: 1\nrules:\n  few: {check: id < 35, on_fail: stop}\n",
        encoding="utf-8",
    )
    stopped = start_etl("run", "job.yaml", env={"SOURCE": source, "TARGET": target})
    assert stopped.end() == 3
    assert "check rule few: 6 rows of this chunk fail it" in stopped.stdout
    assert statuses(target) == {"done": 3, "planned": 37}


@pytest.mark.parametrize(("allowed", "code"), [(None, 1), ("3", 1), ("4", 0), ("1%", 0), ("0.9%", 1)])
def test_the_exit_code_says_whether_more_was_quarantined_than_allowed(etl, source, target, allowed, code):
    words = () if allowed is None else ("--allow-quarantined", allowed)
    done = run(etl, *command(source, target, "--rule", "few: id <= 396", *words, chunk=100), code=code)
    assert "396 of 400 rows" in done.stdout
    assert check_ledger(target, "public.items") == {
        "read": 400, "loaded": 396, "unchanged": 0, "duplicate": 0, "filtered": 0, "quarantined": 4
    }  # fmt: skip
    assert fetch(target, "select key, rules, data->>'name' from keyhaul.quarantine order by 1") == [
        (str(number), ["few"], f"name {number}") for number in (397, 398, 399, 400)
    ]


# --- connections that are lost ---------------------------------------------------------------------


@pytest.mark.thin(2)
@both_drivers
def test_lost_connections_of_workers_are_retried_and_nothing_is_loaded_twice(start_etl, source, target, drivers):
    words = ("--reader", drivers[0], "--loader", drivers[1], "--progress", "json")
    going = start_etl(*command(source, target, *words, table="public.slow"))
    going.wait_for("ChunkDone")
    for uri, pattern in ((target, "keyhaul % worker %"), (source, "keyhaul % chunk %")):
        retries = len(going.named("ChunkRetried"))

        def lost(uri=uri, pattern=pattern, retries=retries):
            """One that has answered already is missed by nobody: its chunk is not tried again."""
            if len(going.named("ChunkRetried")) > retries:
                return True
            terminate(uri, pattern)
            time.sleep(0.3)
            return False

        support.wait_until(lost, "a chunk whose session is lost")
        done = len(going.named("ChunkDone"))
        going.wait_for("ChunkDone", done + 1)
    assert going.end() == 0, going.stderr
    assert "r2d2" not in going.stderr  # no line of a driver's own
    assert going.named("ChunkFailed") == []
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["loaded"] == ROWS


def test_the_loss_of_the_snapshot_stops_the_run_and_says_what_it_means(etl, start_etl, source, target):
    args = command(source, target, table="public.slow")
    going = start_etl(*args)
    support.wait_until(
        lambda: fetch(target, "select to_regclass('keyhaul.chunks') is not null") == [(True,)], "the plan"
    )
    support.wait_until(lambda: terminate(source, "keyhaul % snapshot") == 1, "the snapshot's connection")
    assert going.end() == 3
    assert "the run's snapshot is gone, because the connection that holds it was lost" in going.stdout
    assert "from a newer snapshot" in going.stdout
    assert "Traceback" not in going.stderr
    assert "failed" not in statuses(target)
    finish(etl, source, target, *args)


def test_the_loss_of_the_ledgers_connection_costs_nothing(start_etl, source, target):
    going = start_etl(*command(source, target, "--progress", "json", table="public.slow"))
    going.wait_for("ChunkDone")
    assert terminate(target, "keyhaul % ledger%") == 1
    assert going.end() == 0, going.stderr
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["loaded"] == ROWS


@pytest.fixture
def own_server():
    """A server that a test may crash; what it has committed survives."""
    with support.running_server() as running:
        fetch(running.uri("postgres"), "alter role keyhaul set synchronous_commit = on")
        yield running


def test_a_target_that_crashes_and_recovers_is_waited_for(start_etl, source, own_server):
    target = support.make_database(own_server, "target")
    going = start_etl(*command(source, target, "--progress", "json", table="public.slow"))
    going.wait_for("ChunkDone", 3)
    # The server ends every session and replays its log when one of its processes dies like this.
    backend = value(target, "select pid from pg_stat_activity where application_name like 'keyhaul %%ledger%%'")
    os.kill(backend, signal.SIGKILL)
    assert going.end() == 0, going.stderr + going.stdout
    assert going.named("ChunkFailed") == []
    assert checksum(target, "public.items") == checksum(source, "public.items")
    assert check_ledger(target, "public.items")["loaded"] == ROWS


@pytest.mark.thin(3)
@both_drivers
@pytest.mark.parametrize("lose", ["answer", "commit"])
def test_a_lost_commit_or_answer_to_it_neither_loses_nor_repeats_rows(start_etl, server, source, target, drivers, lose):
    words = ("--reader", drivers[0], "--loader", drivers[1], "--progress", "json", "--rule", "even: id % 2 = 0")
    with losing(server.port, times=4, lose=lose) as proxy:
        through = target.replace(f":{server.port}/", f":{proxy.port}/")
        going = start_etl(*command(source, through, *words, chunk=50))
        assert going.end() == 1, going.stderr
    assert proxy.cut == 4
    assert len(going.named("ChunkRetried")) == 4
    assert going.named("ChunkFailed") == []
    assert checksum(target, "public.items") == checksum(source, "(select * from public.items where id % 2 = 0)")
    assert check_ledger(target, "public.items")["quarantined"] == ROWS // 2
    # With only the answer lost, every chunk was there at the first try.
    attempts = value(target, "select sum(attempts) from keyhaul.chunks")
    assert attempts == (8 if lose == "answer" else 12)


def test_a_commit_whose_answer_is_lost_at_the_last_try_is_no_failure(start_etl, server, source, target):
    with losing(server.port, times=4, lose="answer") as proxy:
        through = target.replace(f":{server.port}/", f":{proxy.port}/")
        going = start_etl(
            *command(source, through, "--progress", "json", "--stop-on-error", chunk=50), env={"ETL_RETRIES": "0"}
        )
        assert going.end() == 0, going.stderr
    assert proxy.cut == 4
    assert going.named("ChunkFailed") == []
    assert check_ledger(target, "public.items")["loaded"] == ROWS
