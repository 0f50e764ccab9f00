"""The other measures: a small job's overhead, a slow link by number of workers, memory over many rows."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import contenders, orders
from benchmarks.link import throttled
from benchmarks.rounds import run_one

if TYPE_CHECKING:
    from benchmarks.contenders import Contender, Ends
    from benchmarks.orders import Digest
    from benchmarks.rounds import Measure

SMALL_ROWS = 10_000
LINK_ROWS = 1_000_000
"""So many that the second in which a process starts and plans is a small part of what four workers take."""
LINK_CHUNK = 10_000
LINK_BYTES_PER_SECOND = 3_000_000
LINK_WORKERS = (1, 2, 4, None)
"""None: keyhaul chooses, with chunks of fixed size and once more with auto chunks."""
CURVE_POINTS = 120


def small(ends: Ends, rounds: int) -> dict[str, Any]:
    """Time a job of 10,000 rows from the shell: nearly all of it is overhead."""
    orders.make_source(ends.source, SMALL_ROWS, finished=False)
    found = {reader: _times(contenders.small_job(ends, reader), ends, rounds) for reader in ("connectorx", "adbc")}
    return {"rows": SMALL_ROWS, "wall_seconds": found}


def link(ends: Ends, rounds: int, rows: int = LINK_ROWS) -> dict[str, Any]:
    """Time the job with each connection to either database held to 3 MB/s, by number of workers."""
    orders.make_source(ends.source, rows, finished=False)
    fixed = min(LINK_CHUNK, max(rows // 60, 1))
    wanted: list[tuple[int | None, int | str]] = [(workers, fixed) for workers in LINK_WORKERS]
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        source = stack.enter_context(throttled(ends.source, LINK_BYTES_PER_SECOND))
        target = stack.enter_context(throttled(ends.target, LINK_BYTES_PER_SECOND))
        for reader in ("connectorx", "adbc"):
            for workers, chunk in [*wanted, (None, "auto")]:
                one = contenders.linked_job(replace(ends, source=source, target=target), reader, workers, chunk)
                name = f"{workers or 'chosen'}" + (", chunk auto" if chunk == "auto" else "")
                found.setdefault(reader, {})[name] = _times(one, ends, rounds)
    return {"rows": rows, "chunk": fixed, "bytes_per_second": LINK_BYTES_PER_SECOND, "wall_seconds": found}


def memory(ends: Ends, rows: int) -> dict[str, Any]:
    """Record the memory of one run over `rows` rows with each reader."""
    orders.make_source(ends.source, rows, finished=False)
    curves, want = {}, None
    for reader in ("connectorx", "adbc"):
        one = contenders.small_job(ends, reader)
        want = want or _expected(one, ends)
        usage = _run(one, ends, 1, want).usage
        step = max(len(usage.curve) // CURVE_POINTS, 1)
        curves[reader] = {
            "peak_bytes": usage.peak_bytes,
            "wall_seconds": round(usage.wall_seconds, 2),
            "curve": [[second, size] for second, size in usage.curve[::step]],
        }
    return {"rows": rows, "readers": curves}


def _times(contender: Contender, ends: Ends, rounds: int) -> dict[str, Any]:
    runs = [_run(contender, ends, number) for number in range(1, rounds + 1)]
    walls = [run.usage.wall_seconds for run in runs]
    workers = sorted({int(run.steps["workers"]) for run in runs if "workers" in run.steps})
    return {
        "median": round(median(walls), 3),
        "min": round(min(walls), 3),
        "max": round(max(walls), 3),
        "workers": workers,
    }


def _run(contender: Contender, ends: Ends, number: int, want: Digest | None = None) -> Measure:
    """Run once, checked like the others; the check itself goes past any slow link."""
    measure = run_one(contender, ends, number, want or _expected(contender, ends))
    if measure.wrong:
        raise SystemExit(f"run {contender.name}: {measure.wrong}")
    print(f"{contender.name}: {measure.usage.wall_seconds:.2f} s", file=sys.stderr, flush=True)
    return measure


def _expected(contender: Contender, ends: Ends) -> Digest:
    return orders.expected(ends.source, {contender.expected})[contender.expected]
