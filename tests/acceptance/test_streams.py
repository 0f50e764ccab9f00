"""Streams that are closed, full or read by nobody: the exit code still tells what became of the command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import support
from aftermath import check_ledger, fetch, value, wait_until_nothing_is_left

SOURCE = """
create table public.items (id bigint primary key, name text);
insert into public.items select g, 'name ' || g from generate_series(1, 100) g;
analyze public.items;
"""
TRAP = """
create table public.items (id bigint, name text);
create function public.fair() returns trigger language plpgsql as
 $$ begin if new.id <> 55 then return new; end if; return null; end $$;
create trigger fair before insert on public.items for each row execute function public.fair();
"""


@pytest.fixture(scope="module")
def source(server):
    with support.database_of(server, "source", SOURCE) as uri:
        yield uri


@pytest.fixture
def target(server, database):
    return database(server, "target")


def command(source, target, *more, name="chunked"):
    where = ("--source", source, "--target", target, "--table", "public.items", "--key", "id", "--chunk", "10")
    return [name, *where, *more]


@pytest.fixture
def redirected(etl_home, tmp_path):
    """``redirected(">&-", "runs")`` runs ``etl runs`` with a shell's redirection; ``"| true"`` is a pipe without reader."""

    def run(how, *args):
        read, write = os.pipe()
        os.close(read)
        try:
            return subprocess.run(
                ["/bin/sh", "-c", f'exec "$0" -m keyhaul "$@" {"" if how == "| true" else how}', sys.executable, *args],
                env=support.clean_environment(etl_home),
                cwd=tmp_path,
                timeout=60,
                stdin=subprocess.DEVNULL,
                stdout=write if how == "| true" else subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            os.close(write)

    return run


WAYS = {"| true": "Broken pipe", ">/dev/full": "No space left on device", ">&-": "it is closed"}
ways = pytest.mark.parametrize(("how", "why"), WAYS.items())


@pytest.mark.thin(3)
@ways
@pytest.mark.parametrize("progress", ["plain", "json"])
def test_a_run_that_was_done_is_done_though_its_report_cannot_be_written(
    redirected, source, target, how, why, progress
):
    done = redirected(how, *command(source, target, "--progress", progress))
    assert done.returncode == 0, done.stderr
    assert value(target, "select count(*) from public.items") == 100
    run_id = value(target, "select run_id from keyhaul.runs where status = 'done'")
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(said) == 1
    assert f"error: write to stdout: {why}, so what was printed is not whole. What became of it: etl show" in said[0]
    assert f"etl show {run_id} --target " in said[0]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@ways
def test_a_run_that_was_stopped_is_stopped_though_its_report_cannot_be_written(redirected, source, target, how, why):
    fetch(target, TRAP)
    done = redirected(how, *command(source, target))
    assert done.returncode == 3, done.stderr
    assert f"error: write to stdout: {why}, so what was printed is not whole" in done.stderr
    assert "Traceback" not in done.stderr
    quiet = redirected(how, *command(source, target, "--quiet"))
    assert quiet.returncode == 3


@ways
def test_a_run_with_too_many_rejected_rows_keeps_its_code(redirected, source, target, how, why):
    done = redirected(how, *command(source, target, "--rule", "few: id <= 95"))
    assert done.returncode == 1, done.stderr
    assert why in done.stderr
    again = redirected(how, "replay", "last", *command(source, target, "--check", "few: id <= 95")[1:])
    assert again.returncode == 1, again.stderr
    assert why in again.stderr


def test_a_run_that_prints_nothing_says_nothing_of_a_stream_that_it_does_not_need(redirected, source, target):
    done = redirected(">&-", *command(source, target, "--quiet"))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.thin(3)
@pytest.mark.parametrize("how", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_without_stderr_a_run_loads_all_the_same(redirected, source, target, how):
    done = redirected(how, *command(source, target))
    assert done.returncode == 0, done.stdout + done.stderr
    assert check_ledger(target, "public.items")["loaded"] == 100
    wait_until_nothing_is_left(source, target)


def test_without_stderr_a_wrong_command_still_has_its_code(redirected, source, target):
    assert redirected("2>&-", *command(source, target, "--mode", "sideways")).returncode == 2
    assert redirected("2>&-", *command(source, target, "--key", "none")).returncode == 2
    assert redirected(">&- 2>&-", "run").returncode == 2


def reading(source, target):
    """Commands that only read, each of which prints to stdout."""
    return [
        command(source, target, name="plan"),
        ["runs", "--target", target],
        ["show", "last", "--target", target],
        ["show", "last", "--target", target, "--follow"],
        ["quarantine", "last", "--target", target],
        ["verify", "last", *command(source, target)[1:-2]],
        ["verify", "last", "--against-ledger", "--target", target, "--json"],
        ["schema"],
        ["--version"],
        ["chunked", "--help"],
    ]


def test_a_command_that_only_reads_ends_quietly_when_nobody_reads_on(redirected, etl, source, target):
    assert etl(*command(source, target, "--checksum")).returncode == 0
    for args in reading(source, target):
        done = redirected("| true", *args)
        assert done.returncode == 0, (args, done.stderr)
        assert "error" not in done.stderr, args
    fetch(target, "delete from public.items where id = 7")
    assert redirected("| true", "verify", "last", *command(source, target)[1:-2], "--json").returncode == 1


@pytest.mark.thin(2)
@pytest.mark.parametrize("how", [">/dev/full", ">&-"])
def test_a_command_that_only_reads_says_in_one_line_that_it_cannot_write(redirected, etl, source, target, how):
    assert etl(*command(source, target, "--checksum")).returncode == 0
    for args in reading(source, target):
        done = redirected(how, *args)
        assert done.returncode == 3, (args, done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith("error")]
        assert said == [
            f"error: write to stdout: {WAYS[how]}, so what was printed is not whole. Mend this and try again"
        ]
        assert "Traceback" not in done.stderr


def test_a_check_whose_verdict_cannot_be_written_is_no_good_one(redirected, source, tmp_path):
    checks = tmp_path / "checks.yaml"
    checks.write_text(f"source: {{uri: '{source}', table: public.items}}\nchecks:\n  - not_null: name\n")
    assert redirected("", "check", str(checks)).returncode == 0
    assert redirected("| true", "check", str(checks)).returncode == 0
    full = redirected(">/dev/full", "check", str(checks))
    assert full.returncode == 2, full.stderr
    assert "error: write to stdout: No space left on device" in full.stderr


@pytest.fixture
def unread(etl_home, tmp_path):
    """``unread("stderr", 4096, "chunked", …)`` starts etl with a pipe that nobody reads, with room for 4096 bytes."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"." * 4096)
    os.set_blocking(write, True)
    started = []

    def start(stream, room, *args):
        if room:
            os.read(read, room)
        process = subprocess.Popen(
            [sys.executable, "-m", "keyhaul", *args],
            env=support.clean_environment(etl_home),
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            **({"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: write}),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
    os.close(read)
    os.close(write)


@pytest.mark.thin(3)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("stream", "room", "progress"), [("stderr", 0, "plain"), ("stdout", 8192, "json")])
def test_a_run_whose_stream_nobody_reads_is_stopped_by_a_signal(
    unread, etl, source, target, number, code, stream, room, progress
):
    args = command(source, target, "--workers", "2")
    going = unread(stream, room, *args, "--progress", progress)
    there = "select to_regclass('keyhaul.chunks') is not null"
    support.wait_until(lambda: value(target, there), "the plan")
    time.sleep(1)
    assert going.poll() is None
    going.send_signal(number)
    assert going.wait(timeout=10) == code
    wait_until_nothing_is_left(source, target)
    assert etl(*args).returncode == 0
    assert check_ledger(target, "public.items")["loaded"] == 100


def test_watching_a_run_ends_when_nobody_reads_on_and_the_run_goes_on(etl_home, start_etl, source, target):
    fetch(
        target,
        "create table public.items (id bigint, name text);"
        "create function nap() returns trigger language plpgsql as 'begin perform pg_sleep(0.2); return new; end';"
        "create trigger nap before insert on public.items for each row execute function nap()",
    )
    going = start_etl(*command(source, target, "--progress", "json"))
    going.wait_for("RunStarted")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "keyhaul", "show", "last", "--follow", "--target", target],
        env=support.clean_environment(etl_home),
        timeout=30,
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert going.running
    assert going.end() == 0


def test_a_narrow_encoding_changes_none_of_it(etl_home, source, target):
    for args, code in ((command(source, target), 0), (["runs", "--target", target], 3), (["--version"], 3)):
        with Path("/dev/full").open("w", encoding="ascii") as full:
            done = subprocess.run(
                [sys.executable, "-m", "keyhaul", *args],
                env=support.clean_environment(etl_home, {"PYTHONIOENCODING": "ascii"}),
                timeout=60,
                stdin=subprocess.DEVNULL,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == code, (args, done.stderr)
        assert "error: write to stdout: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
