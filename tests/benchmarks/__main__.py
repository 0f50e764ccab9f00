"""``just bench``: the job that docs/performance.md describes, by keyhaul and by others, with the same rows at the end."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import contenders, extras, orders, pages, peers, results, rounds
from benchmarks.contenders import Ends
from benchmarks.servers import databases

DOCS = Path(__file__).resolve().parents[2] / "docs"
MINIMUM_ROWS = 1_000
"""Fewer have no copies or nothing for the quarantine."""


def main() -> int:
    """Run what is asked for, print the table, write the files; 1 when any contender gave other rows."""
    asked = _parser().parse_args()
    if bool(asked.source) != bool(asked.target):
        sys.exit("read options: got one of --source and --target, expected both or none")
    if asked.rows < MINIMUM_ROWS or asked.rounds < 1:
        sys.exit(f"read options: expected --rows from {MINIMUM_ROWS} and --rounds from 1")
    result = json.loads(asked.pages_from.read_text(encoding="utf-8")) if asked.pages_from else measure(asked)
    _keep(result, asked.json)
    if asked.docs:
        asked.docs.mkdir(parents=True, exist_ok=True)
        _keep(result, asked.docs / "performance.json")
        pages.write(result, asked.docs)
    return 1 if any(one["wrong"] for one in result["results"]) else 0


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Run the rounds and the extras on the databases that are asked for, and leave nothing in them."""
    venvs = peers.install(asked.venvs) if asked.peers else {}
    folder = Path(tempfile.mkdtemp(prefix="keyhaul-bench-jobs-"))
    try:
        with databases(asked.source, asked.target) as (source, target, server):
            ends = Ends(source=source, target=target, folder=folder)
            result: dict[str, Any] = {
                "command": _command(asked),
                "rows": asked.rows,
                "round_count": asked.rounds,
                "machine": results.machine(orders.versions(source), server),
            }
            try:
                orders.make_source(source, asked.rows)
                chosen = [contenders.raw_copy(ends), *contenders.keyhaul_variants(ends)]
                chosen += contenders.peers(ends, venvs, asked.rows) if asked.peers else []
                chosen += contenders.without_parts(ends, "adbc") if asked.guarantees else []
                if asked.only:
                    chosen = [one for one in chosen if one.name == contenders.RAW or asked.only in one.name]
                result["results"] = results.summarise(chosen, rounds.race(chosen, ends, asked.rounds), asked.rows)
                print(results.table(result["results"]), flush=True)
                _keep(result, asked.json)
                if asked.small:
                    result["small"] = extras.small(ends, asked.rounds)
                    _keep(result, asked.json)
                if asked.link:
                    result["link"] = extras.link(ends, asked.rounds, asked.link)
                    _keep(result, asked.json)
                if asked.memory:
                    result["memory"] = extras.memory(ends, asked.memory)
            finally:
                orders.drop_everything(source, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _keep(result: dict[str, Any], file: Path | None) -> None:
    """Write what is measured so far: a run of an hour that is broken off keeps its table."""
    if file is not None:
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="just bench", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="orders in the source (1,000,000)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender runs (5)")
    parser.add_argument("--peers", action="store_true", help="DuckDB, dlt, Sling and a pool of threads as well")
    parser.add_argument("--guarantees", action="store_true", help="keyhaul with each part of the job left out")
    parser.add_argument("--only", default="", help="only contenders with this in their name, and the raw COPY")
    parser.add_argument("--small", action="store_true", help="the overhead of a job of 10,000 rows")
    parser.add_argument(
        "--link",
        type=int,
        nargs="?",
        const=extras.LINK_ROWS,
        metavar="ROWS",
        help=f"1, 2, 4 and a chosen number of workers with each connection held to 3 MB/s ({extras.LINK_ROWS:,} rows)",
    )
    parser.add_argument("--memory", type=int, metavar="ROWS", help="memory over one run of so many rows")
    parser.add_argument("--source", help="URI of a source database; the schemas keyhaul_bench* there are replaced")
    parser.add_argument("--target", help="URI of a target database; the same")
    parser.add_argument("--venvs", type=Path, default=peers.default_folder(), help="where the peers' venvs are kept")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument(
        "--docs", type=Path, nargs="?", const=DOCS, help="write performance.md, .svg and .json there (docs)"
    )
    parser.add_argument(
        "--pages-from", type=Path, metavar="JSON", help="run nothing: write the pages from earlier results"
    )
    return parser


def _command(asked: argparse.Namespace) -> str:
    """Return the command that repeats this run, without URIs and paths."""
    words = ["just bench", f"--rows {asked.rows}", f"--rounds {asked.rounds}"]
    words += [f"--{name}" for name in ("peers", "guarantees", "small") if getattr(asked, name)]
    words += [f"--{name} {getattr(asked, name)}" for name in ("link", "memory") if getattr(asked, name)]
    words += [f"--only '{asked.only}'"] * bool(asked.only)
    words += ["--source … --target …"] * bool(asked.source)
    return " ".join([*words, "--docs"])


if __name__ == "__main__":
    sys.exit(main())
