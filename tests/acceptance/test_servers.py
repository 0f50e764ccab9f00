"""Servers that restart, lock, fill up, run out of connections or refuse; each run is finished by the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager

import psycopg
import pytest
import support
from aftermath import fetch, sessions, value
from cluster import NOBODY, Cluster, binaries_of
from oracle import problems, truth_of, truth_of_a_clean_run

SOURCE = """
create table public.items (id bigint primary key, twin int, name text, amount numeric(12,2), doc jsonb);
insert into public.items
select g, g % 1900, repeat('name ' || g, 20), (g % 50 - 1) / 4.0, jsonb_build_object('g', g) from generate_series(1, 2000) g;
analyze public.items;
create function public.nap() returns bool language plpgsql volatile as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' then perform pg_sleep(0.001); end if;
    return true;
end $$;
create view public.slow as select * from public.items where public.nap();
"""
TARGET = "create table public.items (id bigint, twin int, name text, amount numeric(12,2), doc jsonb)"


ROUNDS = int(os.environ.get("KEYHAUL_MATRIX_ROUNDS", "1"))


def pytest_generate_tests(metafunc):
    """Do every test more than once, if that is asked for."""
    if ROUNDS > 1:
        metafunc.fixturenames.append("matrix_round")
        metafunc.parametrize("matrix_round", range(ROUNDS))


def command(source, target, *more, table="public.slow"):
    return [
        *("chunked", "--source", source, "--target", target, "--table", table, "--into", "public.items", "--key", "id"),
        *("--chunk", "100", "--workers", "2", "--mode", "append", "--job", "items", "--progress", "json"),
        *("--rule", "amount_positive: amount >= 0", "--allow-quarantined", "100%", *more),
    ]


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "servers", SOURCE) as uri:
        yield uri


@pytest.fixture(scope="module")
def truth(server, source, etl_home):
    return truth_of_a_clean_run(server, etl_home, TARGET, lambda target: command(source, target), source, "amount >= 0")


@pytest.fixture
def target(server, database):
    uri = database(server, "target")
    fetch(uri, TARGET)
    return uri


@pytest.fixture
def cluster(server):
    """A factory of servers of the test's own; all are stopped at its end."""
    with support.open_folder() as folder, ExitStack() as stack:

        def make(name, *, primary=None, **settings):
            own = Cluster(folder / name, binaries_of(server), **settings)
            own.make() if primary is None else own.follow(primary)
            stack.callback(own.stop)
            own.start()
            return own

        yield make


def judge(etl, truth, source, target, folder, args, code, **more):
    """Finish a run that ended with `code`, if it is not done, and have it judged."""
    if code:
        done = etl(*args)
        assert done.returncode == 0, done.stdout + done.stderr
    support.wait_until(lambda: not sessions(source) and not sessions(target), "sessions to end")
    found = problems(truth, target, "public.items", key="id", servers=[source, target], folders=[folder], **more)
    assert found == []


def notices(run):
    return [event["message"] for event in run.named("Notice")]


# --- a server that goes and comes -------------------------------------------------------------------


@pytest.mark.thin(2)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
@pytest.mark.parametrize("end", ["source", "target"])
def test_a_server_that_is_restarted_costs_no_row(
    start_etl, etl, server, source, target, truth, cluster, tmp_path, number, end
):
    own = cluster("own")
    fetch(own.uri(), SOURCE if end == "source" else TARGET)
    ends = (own.uri(), target) if end == "source" else (source, own.uri())
    args = command(*ends)
    run = start_etl(*args)
    run.wait_for("ChunkDone", 3)
    own.stop(number)
    own.start()
    code = run.end()
    assert code == (3 if end == "source" else 0), run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    if end == "source":
        assert "snapshot" in run.stdout
    judge(etl, truth, *ends, tmp_path, args, code)


# --- locks ------------------------------------------------------------------------------------------


@contextmanager
def locked(uri):
    """Hold the target's table in a transaction of a session with a name."""
    with psycopg.connect(uri, application_name="nightly vacuum full") as blocker:
        blocker.execute("lock table public.items in access exclusive mode")
        yield blocker.info.backend_pid
        blocker.rollback()


def test_a_table_that_another_session_locks_is_waited_for_and_its_holder_is_named(
    start_etl, etl, source, target, truth, tmp_path
):
    args = command(source, target)
    run = start_etl(*args)
    run.wait_for("ChunkDone", 3)
    with locked(target) as pid:
        told = run.wait_for("Notice", matching=lambda event: "lock held by" in event["message"])["message"]
    assert f"process {pid} (nightly vacuum full, idle in transaction, its transaction began 20" in told
    assert run.end() == 0, run.stderr
    judge(etl, truth, source, target, tmp_path, args, 0)


def test_a_lock_that_is_never_let_go_ends_the_run_with_the_name_of_its_holder(
    start_etl, etl, source, target, truth, tmp_path
):
    args = command(source, target)
    run = start_etl(*args, env={"ETL_LOCK_TIMEOUT_SECONDS": "6", "ETL_RETRIES": "0"})
    run.wait_for("ChunkDone", 3)
    with locked(target) as pid:
        run.wait_for("ChunkFailed", 1)
    assert run.end() == 3
    failed = [event["error"] for event in run.named("ChunkFailed")]
    assert any("lock timeout" in text and f"process {pid} (nightly vacuum full" in text for text in failed), failed
    judge(etl, truth, source, target, tmp_path, args, 3)


def test_a_lock_before_the_first_row_is_refused_with_the_name_of_its_holder(etl, source, target):
    with locked(target) as pid:
        done = etl(*command(source, target), env={"ETL_LOCK_TIMEOUT_SECONDS": "6"})
    assert done.returncode == 2
    assert f"process {pid} (nightly vacuum full" in done.stderr


# --- limits -----------------------------------------------------------------------------------------


def test_a_server_without_a_free_connection_is_tried_again(start_etl, etl, source, truth, cluster, tmp_path):
    own = cluster("own", max_connections="12", superuser_reserved_connections="0", reserved_connections="0")
    fetch(own.uri(), SOURCE)
    fetch(own.uri(), "create database target")
    fetch(own.uri("target"), TARGET)
    args = command(own.uri(), own.uri("target"))
    run = start_etl(*args)
    run.wait_for("ChunkDone", 2)
    taken = []
    until = time.monotonic() + 2
    try:
        while time.monotonic() < until:
            try:
                taken.append(psycopg.connect(own.uri(), application_name="greedy"))
            except psycopg.OperationalError:
                time.sleep(0.02)
        run.wait_for("ChunkRetried")
    finally:
        for connection in taken:
            connection.close()
    code = run.end()
    assert code in {0, 3}, run.stderr
    assert "Traceback" not in run.stderr
    judge(etl, truth, own.uri(), own.uri("target"), tmp_path, args, code)


def test_a_statement_that_takes_too_long_fails_its_chunk_and_says_so(start_etl, etl, source, target, truth, tmp_path):
    args = command(source, target)
    fetch(
        target,
        "create function public.late() returns trigger language plpgsql as"
        " 'begin if new.id = 1501 then perform pg_sleep(20); end if; return new; end'",
    )
    fetch(target, "create trigger late before insert on public.items for each row execute function public.late()")
    run = start_etl(*args, env={"ETL_STATEMENT_TIMEOUT_SECONDS": "4", "ETL_RETRIES": "0"})
    assert run.end() == 3, run.stderr
    failed = [event["error"] for event in run.named("ChunkFailed")]
    assert len(failed) == 1
    assert "statement timeout" in failed[0]
    fetch(target, "drop trigger late on public.items")
    judge(etl, truth, source, target, tmp_path, args, 3)


# --- refusals ---------------------------------------------------------------------------------------


def name_of(uri):
    return psycopg.conninfo.conninfo_to_dict(uri)["dbname"]


def test_a_target_that_becomes_read_only_ends_the_run_and_one_that_is_takes_nothing(
    start_etl, etl, source, target, truth, tmp_path
):
    args = command(source, target)
    admin = source
    switch = f"alter database {name_of(target)} set default_transaction_read_only = "
    fetch(admin, switch + "on")
    refused = etl(*args)
    assert refused.returncode == 2
    assert "read-only" in refused.stderr
    fetch(admin, switch + "off")
    assert not value(target, "select to_regclass('keyhaul.runs') is not null")
    run = start_etl(*args, env={"ETL_RETRIES": "0"})
    run.wait_for("ChunkDone", 2)
    fetch(admin, switch + "on")
    fetch(admin, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
          " and application_name like 'keyhaul %% worker %%'", name_of(target))  # fmt: skip
    code = run.end()
    fetch(admin, switch + "off")
    assert code == 3, run.stdout + run.stderr
    assert "read-only" in run.stdout
    judge(etl, truth, source, target, tmp_path, args, code)


# --- a standby --------------------------------------------------------------------------------------


@pytest.fixture
def standby(cluster):
    primary = cluster("primary", wal_level="replica", max_wal_senders="4")
    fetch(primary.uri(), SOURCE)
    follower = cluster("standby", primary=primary, hot_standby="on", max_standby_streaming_delay="200ms")
    support.wait_until(
        lambda: fetch(follower.uri(), "select to_regclass('public.slow') is not null") == [(True,)], "the standby"
    )
    return primary, follower


def test_a_standby_is_a_source_and_no_target(etl, start_etl, source, target, truth, standby, tmp_path):
    _, follower = standby
    args = command(follower.uri(), target)
    run = start_etl(*args)
    assert run.end() == 0, run.stderr
    judge(etl, truth, follower.uri(), target, tmp_path, args, 0)
    refused = etl(*command(source, follower.uri()))
    assert refused.returncode == 2
    assert "a standby?" in refused.stderr


def test_a_recovery_conflict_of_a_standby_is_retried_or_ends_a_run_that_goes_on(
    start_etl, etl, target, truth, standby, tmp_path
):
    primary, follower = standby
    args = command(follower.uri(), target)
    run = start_etl(*args)
    run.wait_for("ChunkDone", 2)
    for _ in range(3):  # dead rows that the snapshot on the standby still sees
        fetch(primary.uri(), "update public.items set name = name")
        fetch(primary.uri(), "vacuum public.items")
    code = run.end()
    assert code in {0, 3}, run.stdout + run.stderr
    assert code == 0 or "snapshot" in run.stdout or "conflict with recovery" in run.stdout
    conflicts = "select sum(confl_snapshot)::int from pg_stat_database_conflicts"
    support.wait_until(lambda: value(follower.uri(), conflicts) > 0, "a recovery conflict to be counted")
    judge(etl, truth, follower.uri(), target, tmp_path, args, code)


# --- full disks -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """A factory of a small file system; its second value makes it larger."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    with support.open_folder() as folder, ExitStack() as stack:

        def make(kilobytes):
            place = folder / "disk"
            place.mkdir()
            mounted = subprocess.run(
                ["/bin/mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)],
                capture_output=True,
                check=False,
            )
            if mounted.returncode:
                pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.decode().strip()}")
            stack.callback(subprocess.run, ["/bin/umount", "-l", str(place)], check=True)

            def grow():
                subprocess.run(["/bin/mount", "-o", "remount,size=256m", str(place)], check=True)

            return place, grow

        yield make


def test_a_target_whose_disk_is_full_ends_the_run_and_goes_on_when_there_is_room(
    start_etl, etl, source, truth, cluster, small_disk, tmp_path
):
    place, grow = small_disk(400)
    os.chown(place, NOBODY, NOBODY)
    own = cluster("own")
    fetch(own.uri(), f"create tablespace small location '{place}'")
    fetch(own.uri(), TARGET.replace(")", ") tablespace small") if TARGET.count(")") == 1 else TARGET)
    fetch(own.uri(), "alter table public.items set tablespace small")
    args = command(source, own.uri(), table="public.items")
    run = start_etl(*args, env={"ETL_RETRIES": "0"})
    assert run.end() == 3, run.stdout + run.stderr
    assert "No space left on device" in run.stdout
    grow()
    judge(etl, truth, source, own.uri(), tmp_path, args, 3)


def test_a_full_work_folder_ends_the_run_and_goes_on_when_there_is_room(
    start_etl, etl, server, database, source, target, small_disk, tmp_path
):
    place, grow = small_disk(400)
    whole = database(server, "whole")
    fetch(whole, TARGET)
    done = etl(*command(source, whole, "--dedup", "twin", table="public.items"))
    assert done.returncode == 0, done.stderr
    args = command(source, target, "--dedup", "twin", "--work-dir", str(place), table="public.items")
    run = start_etl(*args, env={"ETL_RETRIES": "0"})
    code = run.end()
    assert code == 3, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert value(target, "select count(*) from public.items") == 0
    grow()
    judge(etl, truth_of(whole, "public.items"), source, target, place, args, code)


def test_an_export_on_a_full_disk_is_refused_and_leaves_no_half_of_a_file(etl, source, target, small_disk):
    done = etl(*command(source, target, "--rule", "none: id < 0", table="public.items"))
    assert done.returncode == 0, done.stderr
    place, _ = small_disk(64)
    refused = etl("quarantine", "last", "--target", target, "--export", str(place / "rejected.csv"))
    assert refused.returncode not in {0, 70}, refused.stdout + refused.stderr
    assert "No space left" in refused.stderr
    assert list(place.iterdir()) == []
