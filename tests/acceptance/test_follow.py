"""A run watched from another process: to its end, past its death, and without a hold on it."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading

import psycopg
import pytest
import support
from aftermath import fetch, sessions, terminate, value

from keyhaul.ledger import reading
from keyhaul.live import follow

ROWS = 300
SOURCE = f"""
create table public.items (id bigint primary key, name text);
insert into public.items select g, 'name ' || g from generate_series(1, {ROWS}) g;
create function nap(seconds float8) returns bool language plpgsql volatile as $$
begin
    if current_setting('application_name') like 'keyhaul % chunk %' then perform pg_sleep(seconds); end if;
    return true;
end $$;
create view public.slow as select * from public.items where nap(0.015);
"""


@pytest.fixture
def ends(databases):
    with psycopg.connect(databases[0], autocommit=True) as connection:
        connection.execute(SOURCE)
    yield databases
    terminate(databases[0], "keyhaul%")


def command(ends, *more, table="public.slow"):
    where = ("--source", ends[0], "--target", ends[1], "--table", table, "--into", "public.items", "--key", "id")
    return ["chunked", *where, "--chunk", "10", "--workers", "1", "--progress", "json", *more]


def start(start_etl, ends, *more):
    going = start_etl(*command(ends, *more))
    return going, going.wait_for("RunStarted")["run_id"]


def watch(start_etl, ends, run, *more):
    return start_etl("show", run, "--follow", "--target", ends[1], *more)


def wait_for_line(process, text):
    support.wait_until(lambda: text in process.stdout, f"{text!r} in {process.stdout}{process.stderr}", 60)


@pytest.mark.thin(2)
@pytest.mark.parametrize(
    ("rules", "allowed", "code"),
    [((), (), 0), (("--rule", "low: id < 300"), (), 1), (("--rule", "low: id < 300"), ("--allow-quarantined", "1"), 0)],
)
def test_a_live_run_is_followed_to_its_end_and_gives_its_exit_code(start_etl, ends, rules, allowed, code):
    going, run_id = start(start_etl, ends, *rules)
    watched = watch(start_etl, ends, "last", *allowed)
    wait_for_line(watched, f"run {run_id}: slow, public.slow in ")
    assert going.running, "watched while it runs"
    assert watched.end() == code
    assert going.end() == (1 if rules else 0)
    lines = watched.stdout.splitlines()
    assert lines[1].startswith("[0:")
    last = next((line for line in lines if " 100 %: 31 of 31 chunks, read 300 of about 300, loaded " in line), "")
    assert f"quarantined {1 if rules else 0};" in last, lines
    assert f"run {run_id}: done" in lines
    assert any("✓ balanced" in line for line in lines), "then the run is shown as ever"
    assert watched.stderr == ""


def test_a_run_that_was_killed_is_told_and_not_followed_for_ever(start_etl, ends):
    going, run_id = start(start_etl, ends)
    watched = watch(start_etl, ends, run_id)
    wait_for_line(watched, "chunks, read")
    going.send(signal.SIGKILL)
    going.end()
    assert watched.end() == 3
    assert f"run {run_id}: its process ({going.pid} on " in watched.stderr
    assert "is gone: no session holds the job's lock." in watched.stderr
    assert "the run's own command goes on with the rest" in watched.stderr
    assert f"Run {run_id} interrupted" in watched.stdout


def test_ctrl_c_leaves_the_run_alone(start_etl, ends):
    going, run_id = start(start_etl, ends)
    watched = watch(start_etl, ends, run_id)
    wait_for_line(watched, "chunks, read")
    watched.send(signal.SIGINT)
    assert watched.end() == 130
    assert watched.stderr == f"not watching run {run_id} any more; it goes on\n"
    assert going.end() == 0
    assert value(ends[1], "select count(*) from public.items") == ROWS


def test_a_stopped_run_is_told_with_its_reason(start_etl, ends, etl):
    going, run_id = start(start_etl, ends)
    watched = watch(start_etl, ends, run_id)
    wait_for_line(watched, "chunks, read")
    going.send(signal.SIGINT)
    assert going.end() == 130
    assert watched.end() == 3
    assert f"run {run_id}: stopped: Ctrl-C" in watched.stdout
    over = etl("show", "last", "--follow", "--target", ends[1])
    assert over.returncode == 3, "one that is over is told at once"
    assert over.stdout.splitlines()[0].startswith(f"run {run_id}: slow, ")


def test_a_run_that_has_lost_the_session_of_its_lock_is_still_alive(start_etl, ends):
    going, run_id = start(start_etl, ends)
    going.wait_for("ChunkDone", 2)
    terminate(ends[1], f"keyhaul {run_id} ledger%")
    with psycopg.connect(ends[1], autocommit=True) as conn:
        assert not reading.list_runs(conn, "keyhaul", 1)[0].alive
        followed = follow.follow(conn, "keyhaul", run_id, io.StringIO())
    assert (followed.lost, followed.run.status) == (False, "done")
    assert going.end() == 0


def test_one_poll_is_made_each_second_and_lines_are_few(start_etl, ends):
    going, run_id = start(start_etl, ends)
    waits, stream, seconds = [], io.StringIO(), [0.0]

    def wait(pause):
        waits.append(pause)
        seconds[0] += 1
        if len(waits) == 25:
            going.send(signal.SIGINT)
            going.end()

    with psycopg.connect(ends[1], autocommit=True) as conn:
        followed = follow.follow(conn, "keyhaul", run_id, stream, wait=wait, clock=lambda: seconds[0])
    assert set(waits) == {1.0}
    assert followed.run.status == "stopped"
    assert len(stream.getvalue().splitlines()) == 1 + 3 + 1, "its head, three in 25 s, its end"


def test_a_terminal_gets_a_display_that_is_taken_away(start_etl, ends, etl_home):
    going, run_id = start(start_etl, ends)
    near, far = pty.openpty()
    shown = []

    def read():
        try:
            while data := os.read(near, 65536):
                shown.append(data)
        except OSError:
            pass  # the far end is closed

    reader = threading.Thread(target=read)
    reader.start()
    program = [sys.executable, "-m", "keyhaul", "show", run_id, "--follow", "--target", ends[1]]
    environment = support.clean_environment(etl_home, {"TERM": "xterm-256color", "NO_COLOR": None, "COLUMNS": "100"})
    watched = subprocess.Popen(program, env=environment, stdin=subprocess.DEVNULL, stdout=far, stderr=far)
    os.close(far)
    assert watched.wait(60) == 0
    going.end()
    reader.join(20)
    os.close(near)
    text = b"".join(shown).decode()
    assert "━" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is given back"
    assert f"run {run_id}: done" in text


def test_following_leaves_no_session_behind(start_etl, ends, etl):
    going, run_id = start(start_etl, ends)
    going.end()
    assert etl("show", run_id, "--follow", "--target", ends[1]).returncode == 0
    support.wait_until(lambda: sessions(ends[1]) == [], "the sessions to end")
    assert fetch(ends[1], "select count(*) from keyhaul.runs") == [(1,)]


def test_a_wrong_allowance_is_refused(etl, ends):
    done = etl("show", "last", "--follow", "--allow-quarantined", "many", "--target", ends[1])
    assert done.returncode == 2
    assert "got --allow-quarantined 'many', expected a whole number or a percentage" in done.stderr
