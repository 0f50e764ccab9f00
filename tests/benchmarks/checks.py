"""``just bench-check``: 15 row checks beside ``select count(*), sum(length(note))`` on the same rows, in one run.

Both are timed in this process, in turn, after one round that does not count; `etl check` as a process gives the
memory. The failing rows are compared with plain SQL's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import duckdb
import psycopg
from benchmarks import measured, orders, results
from benchmarks.servers import databases

import keyhaul
from keyhaul.quality.files import _SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FLOATS_TABLE = f"{orders.SCHEMA}.orders_floats"
BASE = "select count(*), sum(length(note)) from {rows}"
CHECKS: dict[str, tuple[dict[str, Any], str]] = {
    "keys are there": ({"not_null": ["id", "customer_id", "created_at"]}, "id is null or customer_id is null or created_at is null"),
    "status is there": ({"not_null": "status"}, "status is null"),
    "amount is there": ({"not_null": "amount"}, "amount is null"),
    "note is there": ({"not_null": "note"}, "note is null"),
    "known status": (
        {"accepted": {"column": "status", "values": ["new", "paid", "sent", "delivered", "returned"]}},
        "status not in ('new', 'paid', 'sent', 'delivered', 'returned')",
    ),
    "known currency": ({"accepted": {"column": "currency", "values": ["EUR", "USD", "GBP"]}}, "currency not in ('EUR', 'USD', 'GBP')"),
    "amount": ({"between": {"column": "amount", "min": 0, "max": 100_000}}, "amount < 0 or amount > 100000"),
    "id": ({"between": {"column": "id", "min": 1}}, "id < 1"),
    "customer": ({"between": {"column": "customer_id", "min": 0, "max": 249_999}}, "customer_id < 0 or customer_id > 249999"),
    "created": (
        {"between": {"column": "created_at", "min": "2024-01-01", "max": "2030-01-01"}},
        "created_at < '2024-01-01' or created_at > '2030-01-01'",
    ),
    "currency": ({"length": {"column": "currency", "min": 3, "max": 3}}, "length(currency) <> 3"),
    "note": ({"length": {"column": "note", "max": 60}}, "length(note) > 60"),
    "status": ({"length": {"column": "status", "min": 3, "max": 10}}, "length(status) < 3 or length(status) > 10"),
    "in order": ({"expression": "updated_at >= created_at"}, "updated_at < created_at"),
    "returned": ({"expression": "status <> 'returned' or amount > 0"}, "status = 'returned' and amount <= 0"),
}  # fmt: skip
"""Of every kind that looks at one row but ``matches``, over all eight columns: the check, and the rows that fail it."""
PATTERNS = {
    "a regex on a code": ("currency", "^[A-Z]{3}$"),
    "a regex on a long text": ("note", "^order "),
    "a regex of classes on a long text": ("note", "^order [0-9a-f]{32}"),
}
"""What takes the place of the column's ``length``."""
REGEXES = {"PostgreSQL": "not {column} ~ '{pattern}'", "Parquet": "not regexp_matches({column}, '{pattern}')"}
TICKS = os.sysconf("SC_CLK_TCK")
COLUMNS = ("rows in", "15 checks", "base s", "checks s", "ratio", "min to max", "base CPU s", "checks CPU s", "CPU ratio",
           "etl check s", "peak MB")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One set of checks on one set of rows.

    Attributes:
        place, kind, checks: what it is called in the table.
        file: the checks file.
        base: runs the base query.
        failing: what plain SQL says of each check.
    """

    place: str
    kind: str
    checks: str
    file: Path
    base: Callable[[], object]
    failing: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Wall and CPU seconds, the latter of this process and, where the server is on this machine, of the server."""

    wall: float
    cpu: float


def main() -> int:
    """Run the rounds and print the table; 1 when a check has counted other rows than plain SQL."""
    parser = argparse.ArgumentParser(prog="just bench-check", description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000, help="orders (5,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed (5)")
    parser.add_argument("--only", default="", help="only cells with this in their description")
    parser.add_argument("--source", help="URI of a database; the schema keyhaul_bench there is replaced")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="keyhaul-bench-checks-"))
    try:
        with databases(asked.source, asked.source) as (uri, _, server):
            try:
                result = measure(uri, folder, asked.rows, asked.rounds, asked.only)
            finally:
                orders.drop_everything(uri)
            result |= {"machine": results.machine(result.pop("postgres"), server)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(result["cells"]))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(cell["wrong"] for cell in result["cells"]) else 0


def measure(uri: str, folder: Path, rows: int, rounds: int, only: str) -> dict[str, Any]:
    """Time every cell once a round, base and checks in turn."""
    make_rows(uri, folder, rows)
    found = cells(uri, folder, only)
    server = Server(uri)
    timed: dict[str, list[dict[str, Any]]] = {str(cell.file): [] for cell in found}
    for cell in found:  # a round that does not count
        cell.base()
        keyhaul.check(cell.file)
    for number in range(1, rounds + 1):
        for cell in found:
            one = time_once(cell, server, folder)
            timed[str(cell.file)].append(one)
            told = f"round {number}: {cell.place}, {cell.kind}, {cell.checks}: {one['ratio']:.2f}"
            print(told, file=sys.stderr, flush=True)
    listed = [summary(cell, timed[str(cell.file)]) for cell in found]
    return {"rows": rows, "rounds": rounds, "postgres": orders.versions(uri), "cells": listed}


def make_rows(uri: str, folder: Path, rows: int) -> None:
    """Make the orders in both kinds: amount as numeric and as a floating-point number, tables and files."""
    import adbc_driver_postgresql.dbapi as adbc
    import pyarrow as pa
    from pyarrow import parquet

    orders.make_orders(uri, rows)
    names = [name for name in orders.COLUMNS if name != "net"]
    with psycopg.connect(uri, autocommit=True) as conn:
        listed = ", ".join("amount::float8 as amount" if name == "amount" else name for name in names)
        conn.execute(f"create table {FLOATS_TABLE} as select {listed} from {orders.SOURCE_TABLE}")
        conn.execute(f"vacuum analyze {FLOATS_TABLE}")
    orders.checkpoint(uri)
    for kind, name in ((pa.decimal128(12, 2), "decimals"), (pa.float64(), "floats")):
        listed = ", ".join("amount::text as amount" if name == "amount" else name for name in names)
        with adbc.connect(uri) as connection, connection.cursor() as cursor:
            cursor.execute(f"select {listed} from {orders.SOURCE_TABLE}")
            with cursor.fetch_record_batch() as reader:
                types = {field.name: kind if field.name == "amount" else field.type for field in reader.schema}
                with parquet.ParquetWriter(folder / f"{name}.parquet", pa.schema(list(types.items()))) as writer:
                    for batch in _large(reader):
                        writer.write_table(batch.cast(pa.schema(list(types.items()))))


def _large(reader: Any) -> Any:
    """Yield tables of about a million rows, as other writers make row groups; ADBC's batches are small."""
    import pyarrow as pa

    waiting, size = [], 0
    for batch in reader:
        waiting.append(batch)
        size += batch.num_rows
        if size >= 1_000_000:
            yield pa.Table.from_batches(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.Table.from_batches(waiting)


def cells(uri: str, folder: Path, only: str) -> list[Cell]:
    """Return what is timed: all, or those with `only` in their description."""
    found = []
    for place, kind, rows in (
        ("PostgreSQL", "numeric", orders.SOURCE_TABLE),
        ("PostgreSQL", "floats", FLOATS_TABLE),
        ("Parquet", "decimals", str(folder / "decimals.parquet")),
        ("Parquet", "floats", str(folder / "floats.parquet")),
    ):
        source = {"uri": uri, "table": rows} if place == "PostgreSQL" else {"file": rows}
        ask = _asker(uri, rows if place == "PostgreSQL" else f"'{rows}'", place)
        for name in ("no regex", *PATTERNS):
            if only not in f"{place} {kind} {name}":
                continue
            listed = dict(CHECKS)
            if name in PATTERNS:
                column, pattern = PATTERNS[name]
                wrong = REGEXES[place].format(column=column, pattern=pattern)
                listed[column] = ({"matches": {"column": column, "pattern": pattern}}, wrong)
            file = folder / f"{place}-{kind}-{name}.yaml".replace(" ", "-")
            file.write_text(
                json.dumps({"source": source, "checks": [{"name": n, **c} for n, (c, _) in listed.items()]})
            )
            counts = ", ".join(f"count(*) filter (where {wrong})" for _, wrong in listed.values())
            ((*numbers,),) = ask(f"select {counts} from {{rows}}")
            base = lambda ask=ask: ask(BASE)  # noqa: E731
            found.append(Cell(place=place, kind=kind, checks=name, file=file, base=base,
                              failing=dict(zip(listed, numbers, strict=True))))  # fmt: skip
    return found


def _asker(uri: str, rows: str, place: str) -> Callable[[str], Sequence[Any]]:
    """Return what runs a query over the rows: with a connection that is kept, or in DuckDB with the settings of a check."""
    if place == "PostgreSQL":
        conn = psycopg.connect(uri, autocommit=True)
        conn.execute("set timezone = 'UTC'")
        return lambda query: conn.execute(query.replace("{rows}", rows).encode()).fetchall()

    def ask(query: str) -> Sequence[Any]:
        with duckdb.connect(":memory:", config=dict(_SETTINGS)) as con:
            con.execute("load icu")
            con.execute("set timezone = 'UTC'")
            return con.execute(query.replace("{rows}", rows)).fetchall()

    return ask


class Server:
    """The CPU seconds of a PostgreSQL server on this machine; none of one elsewhere."""

    def __init__(self, uri: str | None) -> None:
        """Find the server's first process by way of a session; None is no server."""
        self.pid = None
        if uri is None:
            return
        with psycopg.connect(uri) as conn:
            backend = conn.info.backend_pid
            local = _stat(backend) is not None and conn.info.hostaddr in {"127.0.0.1", "::1", ""}
            if local:
                self.pid = int((_stat(backend) or ["", "0"])[1])

    def seconds(self) -> float:
        """Return what the server and all its processes, ended or not, have taken."""
        if self.pid is None:
            return 0.0
        own = sum(int(ticks) for ticks in (_stat(self.pid) or [])[11:15])  # with the children that have ended
        children = [
            pid for task in Path(f"/proc/{self.pid}/task").iterdir() for pid in (task / "children").read_text().split()
        ]
        return (own + sum(int(ticks) for pid in children for ticks in (_stat(int(pid)) or [])[11:13])) / TICKS


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None


def _timed(server: Server, what: Callable[[], object]) -> tuple[Cost, Any]:
    cpu, wall = server.seconds() + time.process_time(), time.perf_counter()
    found = what()
    wall = time.perf_counter() - wall
    time.sleep(0.05)  # parallel workers of the server are counted when they have ended
    return Cost(wall=wall, cpu=server.seconds() + time.process_time() - cpu), found


def time_once(cell: Cell, server: Server, folder: Path) -> dict[str, Any]:
    """Run the base query, the checks and the command once, and compare what the checks count."""
    base, _ = _timed(server, cell.base)
    checks, verdicts = _timed(server, lambda: keyhaul.check(cell.file))
    counted = {verdict.name: verdict.failures for verdict in verdicts.verdicts}
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    usage = measured.run([sys.executable, "-m", "keyhaul", "check", str(cell.file), "--json"], env, folder)
    wrong = [name for name, number in cell.failing.items() if counted.get(name) != number]
    if usage.returncode not in {0, 1}:
        wrong.append(f"etl check ended with {usage.returncode}: {usage.output[-300:]}")
    return {"base": base, "checks": checks, "ratio": checks.wall / base.wall, "command": usage, "wrong": wrong}


def summary(cell: Cell, rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of a cell's rounds, ready for JSON."""
    ratios = [one["ratio"] for one in rounds]
    middle = {
        "base_seconds": median(one["base"].wall for one in rounds),
        "checks_seconds": median(one["checks"].wall for one in rounds),
        "ratio": median(ratios),
        "least_ratio": min(ratios),
        "greatest_ratio": max(ratios),
        "base_cpu_seconds": median(one["base"].cpu for one in rounds),
        "checks_cpu_seconds": median(one["checks"].cpu for one in rounds),
        "cpu_ratio": median(one["checks"].cpu / max(one["base"].cpu, 0.001) for one in rounds),
        "command_seconds": median(one["command"].wall_seconds for one in rounds),
    }
    return {
        "place": cell.place,
        "rows": cell.kind,
        "checks": cell.checks,
        **{name: round(value, 3) for name, value in middle.items()},
        "peak_bytes": max(one["command"].peak_bytes for one in rounds),
        "wrong": sorted({name for one in rounds for name in one["wrong"]}),
    }


def table(listed: Sequence[dict[str, Any]]) -> str:
    """Return the cells as a table in Markdown; one that counted other rows says so instead of its numbers."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    for one in listed:
        told = [
            f"{one['base_seconds']:.2f}",
            f"{one['checks_seconds']:.2f}",
            f"**{one['ratio']:.2f}**",
            f"{one['least_ratio']:.2f} to {one['greatest_ratio']:.2f}",
            f"{one['base_cpu_seconds']:.2f}",
            f"{one['checks_cpu_seconds']:.2f}",
            f"{one['cpu_ratio']:.2f}",
            f"{one['command_seconds']:.2f}",
            f"{one['peak_bytes'] / 1e6:,.0f}",
        ]
        told = [f"WRONG: {'; '.join(one['wrong'])}"] if one["wrong"] else told
        lines.append(f"| {one['place']}, {one['rows']} | {one['checks']} | {' | '.join(told)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
