"""Most tests run commands that are forked (tests/forking.py): what they see is what a new interpreter would have done."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import forking
import pytest
import support
from moving import rows, run_sql

TABLE = (
    "create table public.t (id int primary key, v text)",
    "insert into public.t select g, 'v' || g from generate_series(1, 500) g",
)
ENDS = ("--source", "{source}", "--target", "{target}")


def told(done, *paths):
    """Return what a command ended with and printed, without what differs from run to run."""
    text = f"{done.returncode}\n{done.stdout}\n--\n{done.stderr}"
    for path in paths:
        text = text.replace(path, "PLACE")
    text = re.sub(r"[0-9]{8}T[0-9]{6}-[0-9a-f]{4}", "RUN", text)
    text = re.sub(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9:.]+", "TIME", text)
    text = re.sub(
        r"\b[0-9.,]+ (s|ms|MB|%|rows/s)|\(?[0-9,]+ rows/s\)?|\(mean [0-9,]+\)|^\[[0-9:]+\]",
        "N",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(r" +", " ", text)


@pytest.mark.parametrize(
    ("args", "env"),
    [
        pytest.param(("--help",), {}, id="help"),
        pytest.param((), {}, id="no arguments"),
        pytest.param(("chunkd",), {}, id="unknown command"),
        pytest.param(("run",), {}, id="missing argument"),
        pytest.param(("schema",), {}, id="long output"),
        pytest.param(("run", "none.yaml"), {}, id="missing file"),
        pytest.param(("chunked", *ENDS, "--table", "public.t", "--key", "id", "--progress", "off"), {}, id="move"),
        pytest.param(("chunked", *ENDS, "--table", "public.t", "--key", "id"), {"KEYHAUL_FAULT": "nowhere:1"}, id="wrong fault"),
        pytest.param(("chunked", *ENDS, "--table", "public.t", "--key", "id"), {"KEYHAUL_FAULT": "copy.half:1"}, id="killed"),
        pytest.param(("plan", *ENDS, "--table", "public.none", "--key", "id"), {}, id="refused"),
        pytest.param(("plan", "--table", "public.t", "--key", "id"), {"ETL_SOURCE_URL": "{source}", "ETL_TARGET_URL": "{target}"}, id="variables"),
        pytest.param(("plan", "--source", "postgresql://u:Pa55-w0rd!@127.0.0.1:1/x", "--key", "Pa55-w0rd!"), {}, id="secret"),
        pytest.param(("show", "last", "--target", "{target}"), {"PGOPTIONS": "-c search_path=pg_catalog"}, id="no run"),
    ],
)  # fmt: skip
def test_a_forked_command_does_and_says_what_a_new_interpreter_does(server, database, etl, tmp_path, args, env):
    seen = []
    for fresh in (False, True):
        source, target = database(server, "source"), database(server, "target")
        run_sql(source, *TABLE)
        given = [word.format(source=source, target=target) for word in args]
        varied = {name: value.format(source=source, target=target) for name, value in env.items()}
        done = etl(*given, env=varied, cwd=tmp_path, fresh=fresh)
        there = rows(
            target, "select relname::text from pg_class where relnamespace > 16384 and relkind = 'r' order by 1"
        )
        loaded = rows(target, "select count(*), sum(hashtext(t::text)) from public.t t") if ("t",) in there else []
        names = [uri.rpartition("/")[2] for uri in (source, target)]
        seen.append((told(done, source, target, *names), there, loaded))
    assert seen[0] == seen[1]


def test_a_command_inherits_nothing_from_one_before_it(server, database, etl, tmp_path):
    """Neither a fault, nor a secret, nor a variable, nor a folder, nor a handler of signals."""
    source, target = database(server, "source"), database(server, "target")
    run_sql(source, *TABLE)
    move = ("chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id", "--mode", "skip")
    killed = etl(*move, env={"KEYHAUL_FAULT": "copy.half:1:kill", "ANY_PASSWORD": "public-not-null-7"}, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    into = ("--job", "other", "--into", "public.public-not-null-7")
    done = etl(*move, *into, env={"PGAPPNAME": "other"}, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "public-not-null-7" in done.stdout, "a secret of the command before"


def test_a_forked_command_is_a_process_of_its_own(etl_home, tmp_path):
    """Its PID takes signals, its folder and open files are its own, and its end is told as one of a process."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    environment = support.clean_environment(etl_home, {"ETL_JOB": "mine"})
    command = ["follow", "last", "--target", "postgresql://127.0.0.1:1/none"]
    child = forking.Forked(command, env=environment, cwd=tmp_path, stdin=null, stdout=null, stderr=write)
    os.kill(child.pid, signal.SIGSTOP)
    try:
        with open(f"/proc/{child.pid}/environ", "rb"):  # noqa: PTH123 - it lives
            assert child.poll() is None
            assert child.pid not in (os.getpid(), forking._server())
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
    assert child.wait(10) == -signal.SIGKILL
    assert child.poll() == -signal.SIGKILL
    child.send_signal(signal.SIGTERM)  # of one that has ended: no effect
    for descriptor in (read, write, null):
        os.close(descriptor)


def test_what_an_interpreter_looks_at_when_it_starts_makes_a_new_one(etl_home):
    plain = support.clean_environment(etl_home)
    assert forking.can_fork(["plan"], plain) is (os.environ.get("KEYHAUL_THOROUGH") != "1")
    for name in ("PYTHONIOENCODING", "LC_ALL", "TZ", "POLARS_MAX_THREADS", "LD_PRELOAD"):
        assert not forking.can_fork(["plan"], plain | {name: "x"})
    assert not forking.can_fork(["plan", "x" * 200_000], plain)


def test_the_server_ends_with_the_process_that_asked_it(tmp_path):
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import forking, os, pathlib\n"
        "done = forking.run(['--version'], env=dict(os.environ), cwd=pathlib.Path('.'), timeout=60)\n"
        "print(json.dumps([done.stdout, [int(p) for p in pathlib.Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()]]))\n"
        "sys.stdout.flush(); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(forking.__file__)],  # noqa: PTH120 - for another process
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    printed, children = json.loads(done.stdout)
    assert printed.startswith("keyhaul ")
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in children) and time.monotonic() < deadline:  # noqa: PTH110 - of /proc
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in children)  # noqa: PTH110 - of /proc
