#!/usr/bin/env bash
# connectorx 0.4.6: every read_sql leaves three threads behind, and their memory, for 30 seconds. Each call makes a pool of
# connections of its own, and nothing ends that pool's threads before its timer. Who reads many small pieces, as a loop
# over key ranges does, has thousands of threads at a time: 1,000 quick reads, 3,000 threads, 60 MB. In a container
# with a limit of processes (pids.max counts threads) further reads fail. One would expect that nothing is left of a call
# that has returned its table.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check connectorx==0.4.6 pyarrow==25.0.1 2>"$work/pip.log" ||
    { cat "$work/pip.log"; exit 2; }
cd "$work"
"$work/venv/bin/python" - <<'PY'
import importlib.metadata
import sqlite3
import sys
import time
from pathlib import Path

import connectorx

READS = 200


def told(word):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{word}:"))
    return int(line.split()[1])


with sqlite3.connect("few.db") as db:
    db.execute("create table t as select 1 as a")
uri = f"sqlite://{Path('few.db').resolve()}"
connectorx.read_sql(uri, "select a from t", return_type="arrow")
before, memory = told("Threads"), told("VmRSS")
for _ in range(READS):
    connectorx.read_sql(uri, "select a from t", return_type="arrow")
after = told("Threads")
print("connectorx", importlib.metadata.version("connectorx"))
print(f"threads before: {before}, after {READS} reads: {after}; resident memory: +{(told('VmRSS') - memory) // 1024} MB")
seen = [after - before]
for seconds in (15, 25):
    time.sleep(seconds)
    seen.append(told("Threads") - before)
    print(f"{seconds} s later: {told('Threads')}")
left, still, gone = seen
sys.exit(0 if left >= 3 * READS - 10 and still >= 3 * READS - 10 and gone < READS else 1)
PY
