"""From measures to results: medians, ratios to the raw COPY of the same round, and the table that is printed."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import RAW

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.contenders import Contender
    from benchmarks.rounds import Measure

PACKAGES = ("keyhaul", "polars", "duckdb", "pyarrow", "connectorx", "adbc-driver-postgresql", "pgpq", "psycopg")

COLUMNS = {
    "contender": "<",
    "wall s": ">",
    "ratio": ">",
    "min to max": ">",
    "CPU s": ">",
    "µs CPU/row": ">",
    "peak MB": ">",
    "rows/s": ">",
}


def machine(postgres: str, server: str) -> dict[str, Any]:
    """Return what the numbers depend on; never a host's name."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "postgres": postgres,
        "server": server,
        "packages": {name: version(name) for name in PACKAGES},
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def summarise(contenders: Iterable[Contender], measures: Sequence[Measure], rows: int) -> list[dict[str, Any]]:
    """Return one JSON-ready result for each contender, in their order; those that are absent or wrong say why."""
    raw = {one.round: one.usage.wall_seconds for one in measures if one.name == RAW and not one.wrong}
    return [_result(one, [m for m in measures if m.name == one.name], raw, rows) for one in contenders]


def _result(contender: Contender, measures: Sequence[Measure], raw: dict[int, float], rows: int) -> dict[str, Any]:
    moved = contender.up_to or rows
    result: dict[str, Any] = {
        "name": contender.name,
        "group": contender.group,
        "note": contender.note,
        "source_rows": moved,
        "absent": contender.absent,
        "wrong": sorted({one.wrong for one in measures if one.wrong}),
        "rounds": [
            {
                "round": one.round,
                "wall_seconds": round(one.usage.wall_seconds, 3),
                "cpu_seconds": round(one.usage.cpu_seconds, 3),
                "peak_bytes": one.usage.peak_bytes,
                "steps": dict(one.steps),
                "wrong": one.wrong,
            }
            for one in measures
        ],
    }
    good = [one for one in measures if not one.wrong]
    if not good:
        return result
    ratios = (
        [one.usage.wall_seconds / raw[one.round] for one in good if one.round in raw] if not contender.up_to else []
    )
    wall, cpu = median(m.usage.wall_seconds for m in good), median(m.usage.cpu_seconds for m in good)
    result["median"] = {
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "peak_bytes": int(median(m.usage.peak_bytes for m in good)),
        "rows_per_second": round(moved / wall),
        "cpu_microseconds_per_row": round(cpu / moved * 1e6, 3),
        "steps": {name: round(median(m.steps[name] for m in good), 3) for name in good[0].steps},
    }
    if ratios:
        result["ratio"] = {
            "median": round(median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
        }
    return result


def cells(result: dict[str, Any]) -> list[str]:
    """Return a result as the cells of `COLUMNS`."""
    if "median" not in result:
        why = f"missing: {result['absent']}" if result["absent"] else f"WRONG: {'; '.join(result['wrong'])}"
        return [result["name"], why, *[""] * (len(COLUMNS) - 2)]
    of, ratio = result["median"], result.get("ratio")
    return [
        result["name"] + (" (some rounds WRONG)" if result["wrong"] else ""),
        f"{of['wall_seconds']:.2f}",
        f"{ratio['median']:.2f}" if ratio else "",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}" if ratio else "",
        f"{of['cpu_seconds']:.2f}",
        f"{of['cpu_microseconds_per_row']:.2f}",
        f"{of['peak_bytes'] / 1e6:,.0f}",
        f"{of['rows_per_second']:,}",
    ]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as lines of text; why one is missing stands behind its name."""
    lines = [list(COLUMNS), *(cells(one) for one in results)]
    numbers = [line for line in lines if line[2] or line[3] or line[4]]
    widths = [max(len(line[place]) for line in numbers) for place in range(len(COLUMNS))]
    widths[0] = max(len(line[0]) for line in lines)
    text = []
    for line in lines:
        if line not in numbers:
            text.append(f"{line[0]:<{widths[0]}}  {line[1]}")
            continue
        placed = (f"{cell:{side}{width}}" for cell, side, width in zip(line, COLUMNS.values(), widths, strict=True))
        text.append("  ".join(placed).rstrip())
    return "\n".join(text)
