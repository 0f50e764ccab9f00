"""How wide the source's rows are, and how many of them a chunk may have within the memory limit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyhaul.limits.crew import DEFAULT_WORKERS
from keyhaul.limits.limiter import FIRST_USE_BYTES, PEAK_FACTOR, SMALLEST_BUDGET_BYTES, Limits
from keyhaul.memory import machine_memory_bytes, memory_bytes
from keyhaul.text import plural, size

if TYPE_CHECKING:
    from keyhaul.before.prepare import Prepared
    from keyhaul.config.job import Job
    from keyhaul.config.parts import AutoChunk
    from keyhaul.sources.source import Sample

MOST_CUTS: Final = 2_000
"""Cuts of a table whose size is known: 10,000 rows each up to 20 million rows, 25,000 of 50 million. Each costs a step
of the walk over the index, a row in the ledger, and nothing when it is merged. Measured in docs/design.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What the memory limit makes of a job's chunks.

    Attributes:
        row_bytes: of Arrow, from a sample of the source; 0 when it has no rows.
        chunk_rows: between two boundaries of the plan: the job's, or fewer; of an auto chunk, those of a cut.
        budget_bytes: of the process, for all chunks in flight together.
        notice: what a person should know of it; empty when the limit changes nothing.
    """

    row_bytes: float
    chunk_rows: int
    wanted_rows: int
    budget_bytes: int
    notice: str = ""

    def limits(self, job: Job) -> Limits:
        """Return the limits of a sitting."""
        return Limits(
            budget_bytes=self.budget_bytes,
            row_bytes=self.row_bytes,
            cpu_percent=job.cpu_limit.value if job.cpu_limit else None,
            rows_per_second=job.rate_limit,
        )

    def told(self, job: Job, limits: Limits, workers: int) -> dict[str, dict[str, Any]]:
        """Return what the limits of a sitting were and did, for the ledger: limit → setting, waits and effect."""
        settings = {
            "memory_limit": f"{job.memory_limit}" + " of memory" * (job.memory_limit.percent is not None),
            "cpu_limit": f"{job.cpu_limit} of all CPUs" if job.cpu_limit else "",
            "rate_limit": f"{job.rate_limit:,} rows/s" if job.rate_limit else "",
        }
        effects = {}
        if self.chunk_rows < self.wanted_rows:
            effects["memory_limit"] = f"chunks of {plural(self.chunk_rows, 'row')}, not {self.wanted_rows:,}"
        if job.cpu_limit and limits.governor.fewest < workers:
            effects["cpu_limit"] = f"{plural(limits.governor.fewest, 'active worker')} at the least"
        return {
            name: {
                "setting": setting,
                "waited_seconds": round(limits.held.get(name, 0.0), 3),
                "effect": effects.get(name, ""),
            }
            for name, setting in settings.items()
            if setting
        }


def size_up(prepared: Prepared) -> Sizing:
    """Look at some of the source's rows, and fit the chunks of all workers into the memory limit."""
    job = prepared.job
    limit = job.memory_limit.of(machine_memory_bytes())
    own = memory_bytes() + FIRST_USE_BYTES
    budget = max(limit - own, SMALLEST_BUDGET_BYTES)
    sample = prepared.source.sample(prepared.read_columns)
    width = sample.row_bytes
    workers = job.workers or DEFAULT_WORKERS
    wanted = job.chunk if isinstance(job.chunk, int) else cut_rows(job.chunk, sample)
    fitting = int(budget / workers / PEAK_FACTOR / width) if width else wanted
    rows = max(1, min(wanted, fitting))
    notices = []
    if limit - own < SMALLEST_BUDGET_BYTES:
        notices.append(
            f"memory_limit is {size(limit)}, and without any row this process takes about {size(own)}: the limit will "
            "be exceeded. Raise it"
        )
    if rows < wanted:
        each = f"{width / 1e6:.1f} MB" if width >= 1e5 else f"{width / 1e3:.1f} kB"  # noqa: PLR2004 - 0.1 MB
        notices.append(
            f"chunks have {plural(rows, 'row')}, not {wanted:,}: rows of about {each} in chunks of "
            f"{plural(workers, 'worker')} would not stay within memory_limit ({size(limit)})"
        )
    notice = "; ".join(notices)
    return Sizing(row_bytes=width, chunk_rows=rows, wanted_rows=wanted, budget_bytes=budget, notice=notice)


def auto_chunks(auto: AutoChunk, rows: int) -> str:
    """Return what becomes of cuts of so many rows, for a person."""
    return (
        f"cuts of {plural(rows, 'row')}, merged when they are moved to chunks of about {auto.target_seconds:g} s, "
        f"{auto.min_rows:,} to {auto.max_rows:,} rows and at most {auto.max_bytes}"
    )


def cut_rows(auto: AutoChunk, sample: Sample) -> int:
    """Return how many rows lie between two boundaries of a plan whose cuts are merged later.

    Args:
        auto: the job's limits for a chunk.
        sample: says how many rows there are; unknown (a view, a query, a table never analyzed, the rows of an
            incremental run), it is cut as finely as a small table.
    """
    rows = max(auto.min_rows, math.ceil(sample.rows / MOST_CUTS))
    fitting = int((auto.max_bytes.bytes or 0) / sample.row_bytes) if sample.row_bytes else rows
    return max(1, min(rows, auto.max_rows, fitting))
