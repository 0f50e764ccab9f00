"""Signals after the last chunk: the first is answered, a second cancels the statement, and the same command goes on."""

from __future__ import annotations

import signal
import time

import pytest
import support
from aftermath import check_ledger, checksum, fetch, value, wait_until_nothing_is_left

pytestmark = pytest.mark.thorough

ROWS = 100
FAST = "create or replace function public.slow(n int) returns int immutable language sql return n"
SLOW = (
    "create or replace function public.slow(n int) returns int immutable language plpgsql as "
    "'begin perform pg_sleep(0.6); return n; end'"
)
TABLE = """
create table public.t (id int primary key, name text);
create index by_name on public.t (name);
create index by_slow on public.t (public.slow(id));
"""
FILL = "insert into public.t select g, '{} ' || g from generate_series(1, {}) g"
MADE = (
    "select relname from pg_class where relnamespace = 'public'::regnamespace and relname !~ '^_keyhaul' and"
    " relkind in ('r', 'i') order by 1"
)
signals = pytest.mark.parametrize(("number", "name", "code"), [(2, "Ctrl-C", 130), (15, "SIGTERM", 143)])


@pytest.fixture
def ends(databases):
    source, target = databases
    fetch(source, f"{FAST}; {TABLE}; {FILL.format('new', ROWS)}")
    fetch(target, FAST)
    return source, target


def command(ends, *more):
    source, target = ends
    return [
        "chunked",
        "--source",
        source,
        "--target",
        target,
        "--table",
        "public.t",
        "--key",
        "id",
        "--chunk",
        "20",
        *more,
    ]


def wait_for_statement(uri, pattern):
    query = "select count(*) from pg_stat_activity where state = 'active' and query ~* %s and pid <> pg_backend_pid()"
    support.wait_until(lambda: value(uri, f"{query} and datname = current_database()", pattern) > 0, pattern)


def interrupted_twice(going, number, name, code):
    """Send two signals while a statement of the end runs; the first must be answered, the second ends the run."""
    going.send(number)
    told = going.wait_for("Notice", matching=lambda event: "once more cancels it" in event["message"])
    assert told["message"].startswith(f"{name}: all chunks are loaded")
    asked = time.monotonic()
    going.send(number)
    assert going.end() == code, going.printed
    assert time.monotonic() - asked < 4
    assert [event["at_once"] for event in going.named("Stopping")] == [True]
    assert "Traceback" not in going.stderr
    report = going.named("RunFinished")[0]["report"]
    assert (report["outcome"], report["signal"], report["chunks_done"]) == ("interrupted", number, 5)
    assert report["stop_reason"] == f"all chunks are loaded, and what comes after them was cancelled by {name}"


def finish(etl, ends, args):
    source, target = ends
    fetch(target, FAST)
    done = etl(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checksum(target, "public.t") == checksum(source, "public.t")
    assert check_ledger(target, "public.t")["loaded"] == ROWS
    assert fetch(target, MADE) == [("by_name",), ("by_slow",), ("t",), ("t_pkey",)]
    assert value(target, "select count(*) from pg_class where relname ~ '^_keyhaul'") == 0
    assert fetch(target, "select status, sittings from keyhaul.runs") == [("done", 2)]
    wait_until_nothing_is_left(source, target)


@signals
def test_two_signals_cancel_the_index_of_a_fresh_table_and_the_old_one_stays(etl, start_etl, ends, number, name, code):
    source, target = ends
    fetch(target, f"{TABLE}; {FILL.format('old', 7)}; {SLOW}")
    before = fetch(target, MADE), checksum(target, "public.t")
    args = command(ends, "--mode", "replace")
    going = start_etl(*args, "--progress", "json")
    wait_for_statement(target, "^create index")  # the plan in the ledger has its text
    interrupted_twice(going, number, name, code)
    wait_until_nothing_is_left(source, target)
    assert (fetch(target, MADE), checksum(target, "public.t")) == before
    assert value(target, "select status from keyhaul.runs") == "stopped"
    finish(etl, ends, args)


SLOW_DROP = """
create function public.dawdle() returns event_trigger language plpgsql as $$
begin
    if (select count(*) from keyhaul.chunks where status = 'done') = 5 then perform pg_sleep(30); end if;
end $$;
create event trigger dawdle on sql_drop execute function public.dawdle();
"""


def test_two_signals_within_the_swap_take_all_of_it_back(etl, start_etl, ends):
    source, target = ends
    fetch(target, f"{TABLE}; {FILL.format('old', 7)}; {SLOW_DROP}")
    before = fetch(target, MADE), checksum(target, "public.t")
    args = command(ends, "--mode", "replace")
    going = start_etl(*args, "--progress", "json")
    support.wait_until(lambda: value(target, "select to_regclass('keyhaul.chunks') is not null"), "the plan")
    support.wait_until(
        lambda: value(target, "select count(*) from keyhaul.chunks where status = 'done'") == 5, "all chunks"
    )
    wait_for_statement(target, "^drop table")
    interrupted_twice(going, signal.SIGINT, "Ctrl-C", 130)
    wait_until_nothing_is_left(source, target)
    assert (fetch(target, MADE), checksum(target, "public.t")) == before
    assert value(target, "select status from keyhaul.runs") == "stopped"
    fetch(target, "drop event trigger dawdle")
    finish(etl, ends, args)


def test_two_signals_cancel_an_index_of_a_new_table(etl, start_etl, ends):
    source, target = ends
    fetch(target, SLOW)
    args = command(ends)
    going = start_etl(*args, "--progress", "json")
    wait_for_statement(target, "^create index.*by_slow")
    interrupted_twice(going, signal.SIGINT, "Ctrl-C", 130)
    wait_until_nothing_is_left(source, target)
    assert value(target, "select count(*) from public.t") == ROWS
    finish(etl, ends, args)


@pytest.mark.parametrize("end", ["source", "target"])
def test_two_signals_cancel_a_rule_across_the_run(etl, start_etl, ends, tmp_path, end):
    source, target = ends
    job = tmp_path / "job.yaml"
    job.write_text(
        f"source: {{uri: '{source}', table: public.t}}\ntarget: {{uri: '{target}'}}\nkey: id\nchunk: 20\n"
        "run_rules:\n  - {name: sum, equals_source: sum(public.slow(id))}\n"
    )
    fetch(source if end == "source" else target, SLOW)
    if end == "target":
        fetch(source, "drop index by_slow")
    going = start_etl("run", str(job), "--progress", "json")
    wait_for_statement(source if end == "source" else target, r"^select \(\nsum")
    interrupted_twice(going, signal.SIGTERM, "SIGTERM", 143)
    wait_until_nothing_is_left(source, target)
    fetch(source, f"{FAST}; create index if not exists by_slow on public.t (public.slow(id))")
    if end == "target":
        fetch(target, f"{FAST}; create index by_slow on public.t (public.slow(id))")
    finish(etl, ends, ["run", str(job)])


def test_after_one_signal_the_run_still_comes_to_its_end(start_etl, ends):
    source, target = ends
    fetch(target, SLOW.replace("0.6", "0.03"))
    going = start_etl(*command(ends, "--progress", "plain"))
    wait_for_statement(target, "^create index.*by_slow")
    going.send(signal.SIGINT)
    assert going.end() == 0, going.printed
    assert "Ctrl-C: all chunks are loaded, and what comes after them goes on to its end" in going.stderr
    assert fetch(target, MADE) == [("by_name",), ("by_slow",), ("t",), ("t_pkey",)]
    wait_until_nothing_is_left(source, target)
