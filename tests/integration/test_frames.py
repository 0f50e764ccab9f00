"""A chunk's way is short: so few frames of keyhaul's own lie between where a thread begins, or the command, and COPY."""

import sys
import threading
import traceback
from pathlib import Path

import psycopg
import pytest
from moving import run_sql

import keyhaul
from keyhaul.cli import app

MOST = 8
PACKAGE = str(Path(keyhaul.__file__).parent)


def ours():
    return [
        f"{Path(frame.filename).stem}.{frame.name}"
        for frame in traceback.extract_stack(sys._getframe(1))
        if frame.filename.startswith(PACKAGE)
    ]


def test_from_the_command_to_its_workers_and_from_a_worker_to_copy_there_are_at_most_eight_frames(
    server, database, monkeypatch
):
    source, target = database(server, "near"), database(server, "far")
    run_sql(source, "create table public.t as select g id from generate_series(1, 10) g")
    run_sql(source, "alter table public.t add primary key (id)")
    stacks = {}
    copy, start = psycopg.Cursor.copy, threading.Thread.start

    def see_copy(cursor, *args, **options):
        stacks.setdefault(threading.current_thread().name, ours())
        return copy(cursor, *args, **options)

    def see_start(thread):
        if thread.name.startswith("keyhaul-worker"):
            stacks.setdefault("command", ours())
        start(thread)

    monkeypatch.setattr(psycopg.Cursor, "copy", see_copy)
    monkeypatch.setattr(threading.Thread, "start", see_start)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        app.app(["chunked", "--source", source, "--target", target, "--table", "public.t", "--key", "id", "--quiet"])
    assert ended.value.code == 0
    assert set(stacks) == {"command", "keyhaul-worker-1"}
    assert {name: stack for name, stack in stacks.items() if len(stack) > MOST} == {}
    assert (stacks["command"][0], stacks["keyhaul-worker-1"][0]) == ("app._move", "pool._work")
    assert stacks["keyhaul-worker-1"][-1] == "session.copy"
