"""`--mode replace` as a process: a reader that never sees the table half full, SIGKILL, what is left, plan and replay."""

from __future__ import annotations

import random
import signal
import threading
import time

import psycopg
import pytest
import support
from aftermath import check_ledger, checksum, fetch, value

OLD, NEW = 700, 4000
TABLE = "create table public.t (id int primary key, ref int, name text)"
SOURCE = f"{TABLE}; insert into public.t select g, g % 100, 'new' || g from generate_series(1, {NEW}) g"
TARGET = f"""
create table public.parent (id int primary key);
insert into public.parent select generate_series(0, 99);
{TABLE};
alter table public.t add constraint to_parent foreign key (ref) references public.parent;
create index by_name on public.t (name);
create index by_ref on public.t (ref);
grant select on public.t to public;
insert into public.t select g, g % 100, 'old' || g from generate_series(1, {OLD}) g;
"""
MADE = "select relname from pg_class where relnamespace = 'public'::regnamespace order by 1"


@pytest.fixture
def ends(databases):
    fetch(databases[0], SOURCE)
    fetch(databases[1], TARGET)
    return databases


def flags(ends, *more):
    source, target = ends
    words = ("--source", source, "--target", target, "--table", "public.t", "--key", "id", "--chunk", "200")
    return (*words, "--mode", "replace", *more)


class Reader:
    """Counts the table in a loop, in its own thread, each time as a statement of its own."""

    def __init__(self, uri):
        self.seen = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(uri,))
        self._error = None

    def _read(self, uri):
        try:
            with psycopg.connect(uri, autocommit=True) as conn:
                while not self._over.is_set():
                    held = conn.execute("select count(*), min(name) from public.t").fetchone()
                    if not self.seen or self.seen[-1][0] != held:
                        self.seen.append([held, 0])
                    self.seen[-1][1] += 1
        except psycopg.Error as error:
            self._error = error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        assert self._error is None


def test_a_reader_sees_the_old_rows_then_the_new_ones_and_nothing_between(etl, ends):
    target = ends[1]
    before = fetch(target, MADE)
    with Reader(target) as reader:
        done = etl("chunked", *flags(ends))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [held for held, _ in reader.seen] == [(OLD, "old1"), (NEW, "new1")]
    assert all(times > 10 for _, times in reader.seen)
    assert f"replaced public.t (old: rows not counted → new: {NEW:,} rows)" in done.stdout + done.stderr
    assert checksum(target, "public.t") == checksum(ends[0], "public.t")
    assert fetch(target, MADE) == before
    again = etl("chunked", *flags(ends))
    assert again.returncode == 0
    assert f"(old: {NEW:,} rows by its statistics → new: {NEW:,} rows)" in again.stdout + again.stderr


@pytest.mark.thin(3)
@pytest.mark.parametrize("seed", [0, 1, 2, 6, 7, 8])
def test_killed_at_any_moment_the_table_is_old_or_new_and_the_same_command_ends_it(etl, start_etl, ends, seed):
    target = ends[1]
    before = fetch(target, MADE)
    generator = random.Random(seed)  # noqa: S311 - a test's
    with Reader(target) as reader:
        process = start_etl("chunked", *flags(ends, "--progress", "json"))
        if seed < 6:
            process.wait_for("ChunkDone", generator.randint(1, NEW // 200))
        else:  # close to the swap, and in it
            process.wait_for("ChunkDone", NEW // 200)
            time.sleep(generator.uniform(0, 0.12))
        process.send(signal.SIGKILL)
        process.end()
        support.wait_until(lambda: fetch(target, SESSIONS) == [], "the killed process's sessions to end")
        held = fetch(target, "select count(*), min(name) from public.t")
        assert held in ([(OLD, "old1")], [(NEW, "new1")])
        status = value(target, "select status from keyhaul.runs")
        assert (status == "done") == (held == [(NEW, "new1")]), "the swap and the ledger's word are one"
        assert etl("chunked", *flags(ends)).returncode == 0
    assert [held for held, _ in reader.seen] == [(OLD, "old1"), (NEW, "new1")]
    assert checksum(target, "public.t") == checksum(ends[0], "public.t")
    assert fetch(target, MADE) == before
    assert value(target, "select count(*) from keyhaul.runs") == (2 if status == "done" else 1)


SESSIONS = "select pid from pg_stat_activity where application_name like 'keyhaul%%'"


@pytest.mark.thin(2)
@pytest.mark.parametrize("statement", ["create index", "lock table", "drop table"])
def test_killed_inside_a_statement_of_the_end(etl, start_etl, ends, statement):
    """Another session holds what the statement waits for; the kill comes while it waits, then the lock goes."""
    target = ends[1]
    before = fetch(target, MADE)
    held = {"drop table": "lock table public.parent in access share mode", "lock table": "select from public.t"}
    with psycopg.connect(target) as other:
        if statement in held:
            other.execute(held[statement])
        process = start_etl("chunked", *flags(ends, "--progress", "json"))
        if statement not in held:
            process.wait_for("ChunkDone", 1)
            fresh = value(target, "select fresh_table from keyhaul.runs")
            other.execute(f"lock table {fresh} in share update exclusive mode")
        query = f"select pid from pg_stat_activity where wait_event_type = 'Lock' and query like '{statement}%%'"
        process.wait_for("ChunkDone", NEW // 200)
        support.wait_until(lambda: fetch(target, query) != [], f"{statement} to wait")
        process.send(signal.SIGKILL)
        process.end()
        assert fetch(target, "select count(*) from public.t") == [(OLD,)]
    support.wait_until(lambda: fetch(target, SESSIONS) == [], "the killed process's sessions to end")
    assert fetch(target, "select count(*) from public.t") == [(OLD,)]
    assert etl("chunked", *flags(ends)).returncode == 0
    assert fetch(target, "select count(*), min(name) from public.t") == [(NEW, "new1")]
    assert fetch(target, MADE) == before
    check_ledger(target, "public.t")


def test_a_swap_that_gets_no_lock_leaves_a_run_that_the_same_command_ends(etl, ends):
    target = ends[1]
    with psycopg.connect(target) as other:
        other.execute("select from public.t")
        done = etl("chunked", *flags(ends), timeout_seconds=120)
        assert done.returncode == 3
        assert "other sessions held it" in done.stdout + done.stderr
        assert fetch(target, "select count(*) from public.t") == [(OLD,)]
    again = etl("chunked", *flags(ends))
    assert again.returncode == 0
    assert value(target, "select sum(attempts) from keyhaul.chunks") == NEW // 200, "nothing is loaded twice"
    check_ledger(target, "public.t")


def test_fresh_drops_what_given_up_runs_have_loaded_and_nothing_else(etl, start_etl, ends):
    target = ends[1]
    fetch(target, "create table public._keyhaul_20200101t000000_abcd (mine int)")
    before = fetch(target, MADE)
    process = start_etl("chunked", *flags(ends, "--progress", "json"))
    process.wait_for("ChunkDone", 2)
    process.send(signal.SIGKILL)
    process.end()
    left = value(target, "select fresh_table from keyhaul.runs")
    assert value(target, "select to_regclass(%s) is not null", left)
    done = etl("chunked", *flags(ends, "--fresh"))
    assert done.returncode == 0
    assert fetch(target, MADE) == before
    assert fetch(target, "select status from keyhaul.runs order by started_at") == [("abandoned",), ("done",)]


def test_plan_shows_the_swap_and_refuses_what_a_run_refuses(etl, ends):
    plan = etl("plan", *flags(ends))
    assert plan.returncode == 0
    for words in (
        'create table "public"."_keyhaul_RUN"',
        "USING btree (name)",
        "take the place of public.t in one transaction",
    ):
        assert words in plan.stdout
    fetch(ends[1], "create view public.v as select id from public.t")
    for command in ("plan", "chunked"):
        refused = etl(command, *flags(ends))
        assert refused.returncode == 2
        assert "these depend on it: view public.v" in refused.stderr
    assert fetch(ends[1], "select to_regclass('keyhaul.runs')") == [(None,)]


def test_a_replay_loads_into_the_table_that_took_the_place(etl, ends):
    target = ends[1]
    fetch(target, "delete from public.t; delete from public.parent where id = 99")
    assert etl("chunked", *flags(ends)).returncode == 1
    assert value(target, "select count(*) from public.t") == NEW - NEW // 100
    fetch(target, "insert into public.parent values (99)")
    done = etl("replay", "last", *flags(ends))
    assert done.returncode == 0, done.stdout + done.stderr
    assert checksum(target, "public.t") == checksum(ends[0], "public.t")
    run_id = value(target, "select run_id from keyhaul.runs where kind = 'run'")
    assert etl("chunked", *flags(ends)).returncode == 0
    again = etl("replay", run_id, *flags(ends))
    assert again.returncode == 2
    assert "has replaced its target table since" in again.stderr


def test_a_replay_of_a_replace_that_has_not_ended_is_refused(etl, start_etl, ends):
    process = start_etl("chunked", *flags(ends, "--progress", "json"))
    process.wait_for("ChunkDone", 2)
    process.send(signal.SIGKILL)
    process.end()
    refused = etl("replay", "last", *flags(ends))
    assert refused.returncode == 2
    assert "it has not replaced its target table" in refused.stderr
