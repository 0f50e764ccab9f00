#!/usr/bin/env bash
# duckdb 2.0.0 (Python): a Python signal handler that raises while a query runs ends the query, but its exception is lost.
# Whatever the handler raised (SystemExit with a code, KeyboardInterrupt, one's own class), the caller gets
# RuntimeError("Query interrupted"), neither caused by it nor with it as context. A program whose handler of SIGTERM calls
# sys.exit(143), as services do, falls into `except Exception` instead of ending. A RuntimeError is no duckdb.Error either,
# so `except duckdb.Error` does not see it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.0 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
"$work/venv/bin/python" - <<'PY'
import os
import signal
import sys
import threading

import duckdb


class Stop(BaseException):
    """A program's own word for the end."""


def leave(number, frame):
    sys.exit(143)


def stop(number, frame):
    raise Stop


LONG = "select count(*) from range(1_000_000) a, range(1_000_000) b where a.range * b.range % 7 = 3"
print("duckdb", duckdb.__version__)
seen = []
for number, handler in ((signal.SIGTERM, leave), (signal.SIGUSR1, stop), (signal.SIGINT, signal.default_int_handler)):
    signal.signal(number, handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    timer.start()
    try:
        duckdb.connect().execute(LONG).fetchall()
    except BaseException as error:
        lost = error.__cause__ is None and error.__context__ is None
        seen.append((type(error).__name__, str(error), isinstance(error, duckdb.Error), lost))
        print(f"{handler.__name__}: {type(error).__name__}: {error}; duckdb.Error: {seen[-1][2]}; the first one is lost: {lost}")
    timer.join()
sys.exit(0 if seen == [("RuntimeError", "Query interrupted", False, True)] * 3 else 1)
PY
