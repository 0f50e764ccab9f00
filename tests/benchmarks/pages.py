"""docs/performance.md and its plots, from the JSON of a benchmark."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import chart
from benchmarks.results import COLUMNS, cells

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = {
    "baseline": "The whole job",
    "keyhaul": "The whole job",
    "peer": "The whole job",
    "without": "keyhaul with a part of the job left out",
}
JOB = """\
Orders of eight columns (two bigint, three text, numeric(12,2), two timestamptz) go from one database to another:
`status = upper(status)`, `net = amount * 0.8`, of rows with one id (0.5 % are copies) the newest stays, rows with
`amount < 0` (0.1 %) are set aside, and the target has a primary key. The **ratio** is the wall time against that of a
raw COPY in the same round: two concurrent streams of `COPY … TO STDOUT (format binary)` into
`COPY … FROM STDIN (format binary)`, of rows that are finished already, into the same table with the same key. Every
contender is a whole process, from its start to its end; they run in turn, each round begins with another one, and
before each the target is made anew and both databases have a checkpoint. What each has loaded is compared with what
PostgreSQL itself makes of the job, by count and by the sum of the rows' hashes. CPU is that of the client (user and
system, with its children), not of the servers. Memory is the sum over the client's processes of their peak resident
size. Rows are those of the source.
"""


def write(result: dict[str, Any], folder: Path) -> None:
    """Write performance.md, performance.svg and, when memory was measured, memory.svg into `folder`."""
    title = f"{result['rows']:,} orders, wall time against a raw COPY, {result['round_count']} rounds"
    (folder / "performance.svg").write_text(chart.svg(result["results"], title), encoding="utf-8")
    if "memory" in result:
        (folder / "memory.svg").write_text(chart.curve(result["memory"]), encoding="utf-8")
    (folder / "performance.md").write_text(page(result), encoding="utf-8")


def page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Performance\n",
        f"Written by `{result['command']}` from performance.json; that command repeats it.{result.get('remark', '')}\n",
        JOB,
        "![Ratio to a raw COPY](performance.svg)\n",
        _machine(result["machine"]),
    ]
    for heading in dict.fromkeys(GROUPS.values()):
        chosen = [one for one in result["results"] if GROUPS[one["group"]] == heading]
        if chosen:
            parts += [f"## {heading}\n", _table(chosen), _notes(chosen), _costs(chosen, result["results"])]
    parts.append(_steps(result))
    parts += [build(result[name]) for name, build in EXTRAS.items() if name in result]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _machine(of: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in of["packages"].items())
    return (
        f"Machine: {of['cores']} cores ({of['cpu']}), {of['memory_gb']} GB of memory, {of['system']}, Python "
        f"{of['python']}, PostgreSQL {of['postgres']}: {of['server']}. {packages}.\n"
    )


def _table(results: list[dict[str, Any]]) -> str:
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "|".join("---" if s == "<" else "---:" for s in COLUMNS.values()) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(cells(one))} |" for one in results)]) + "\n"


def _notes(results: list[dict[str, Any]]) -> str:
    return "".join(f"- {one['name']}: {one['note']}.\n" for one in results if one["note"])


def _costs(without: list[dict[str, Any]], results: list[dict[str, Any]]) -> str:
    """Return what each part that was left out costs; empty for other groups."""
    whole = next((one["median"] for one in results if one["name"] == WHOLE and "median" in one), None)
    measured = [one for one in without if one["group"] == "without" and "median" in one]
    if whole is None or not measured:
        return ""
    lines = []
    for one in measured:
        wall, cpu = (1 - one["median"][name] / whole[name] for name in ("wall_seconds", "cpu_seconds"))
        lines.append(f"| {one['name'].removeprefix('without ')} | {wall:.0%} | {cpu:.0%} |")
    text = (
        f"What each part costs: the share of the wall time and of the client's CPU of `{WHOLE}` that goes without it.\n"
    )
    return "\n".join([text, "| part | wall | client CPU |", "|---|---:|---:|", *lines]) + "\n"


WHOLE = "keyhaul adbc + copy"
"""The contender that those without a part are compared with: they have its reader and loader."""


def _steps(result: dict[str, Any]) -> str:
    shown = [one for one in result["results"] if one.get("median", {}).get("steps")]
    if not shown:
        return ""
    names = list(shown[0]["median"]["steps"])
    lines = [f"| contender | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for one in shown:
        seconds = one["median"]["steps"]
        lines.append(f"| {one['name']} | {' | '.join(format(seconds[name], 'g') for name in names)} |")
    text = "Seconds of keyhaul's steps from the ledger, summed over the workers; medians.\n"
    return "\n".join(["## Where the time goes\n", text, *lines]) + "\n"


def _small(of: dict[str, Any]) -> str:
    lines = [
        f"| {reader} | {t['median']:.2f} | {t['min']:.2f} to {t['max']:.2f} |"
        for reader, t in of["wall_seconds"].items()
    ]
    head = ["## A small job\n", f"{of['rows']:,} rows, from the shell, on a server that runs.\n"]
    return "\n".join([*head, "| reader | wall s | min to max |", "|---|---:|---:|", *lines]) + "\n"


def _link(of: dict[str, Any]) -> str:
    lines = []
    for reader, walls in of["wall_seconds"].items():
        one = walls["1"]["median"]
        lines += [
            f"| {reader} | {_chosen(workers, t)} | {t['median']:.2f} | {t['min']:.2f} to {t['max']:.2f} "
            f"| {one / t['median']:.2f} |"
            for workers, t in walls.items()
        ]
    text = (
        f"{of['rows']:,} rows in chunks of {of['chunk']:,}; each connection, to either database, passes "
        f"{of['bytes_per_second'] / 1e6:g} MB/s in each direction.\n"
    )
    head = ["| reader | workers | wall s | min to max | speed-up |", "|---|---:|---:|---:|---:|"]
    return "\n".join(["## A slow link\n", text, *head, *lines]) + "\n"


def _chosen(workers: str, times: dict[str, Any]) -> str:
    """Return a number of workers as it is given, or what keyhaul made of it."""
    found = " or ".join(str(number) for number in times.get("workers", ()))
    return f"{workers} ({found})" if workers.startswith("chosen") else workers


def _memory(of: dict[str, Any]) -> str:
    lines = [
        f"| {reader} | {one['peak_bytes'] / 1e6:,.0f} | {one['wall_seconds']:,.1f} |"
        for reader, one in of["readers"].items()
    ]
    head = ["| reader | peak MB | wall s |", "|---|---:|---:|"]
    plot = "![Memory over time](memory.svg)"
    return "\n".join(["## Memory\n", f"{of['rows']:,} rows in one run.\n", *head, *lines, "", plot]) + "\n"


EXTRAS = {"small": _small, "link": _link, "memory": _memory}
