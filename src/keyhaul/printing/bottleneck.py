"""What held a run up, and which setting may help: from the measured seconds of its steps, and no further."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from keyhaul.text import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.model import Timings

SHORTEST_SECONDS: Final = 1.0
"""Of less time than this in all steps together nothing is said: connections and caches decide there."""

STANDS_OUT: Final = 0.45
"""Share from which a step is called the bottleneck: with five kinds of time, more than two equal ones have."""

AHEAD: Final = 0.1
"""How far it must be ahead of the next one: of two equal steps, neither is the bottleneck."""

SHORT_CHUNK_SECONDS: Final = 0.1
"""Mean time of a chunk below which its fixed cost counts: a query, a transaction and a ledger row take 5 to 15 ms
on the same machine, and several round trips of the network elsewhere."""

FEW_CHUNKS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of the chunks that are committed.

    Attributes:
        timings: summed over them.
        chunks: how many they are.
        workers: how many there were at a time.
        cores: of the machine that ran them; None when it is not this one.
        held: limit → seconds waited for it, where that is known apart from other waits.
        chosen: the number of workers was ours to choose: whether more would help was tried, or told.
    """

    timings: Timings
    chunks: int
    workers: int
    cores: int | None = None
    held: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False


def shares(timings: Timings) -> dict[str, float]:
    """Return step → part of the workers' time, from 0 to 1, largest first; all 0 when no time was measured."""
    seconds = timings.by_step()
    total = sum(seconds.values())
    found = {step: spent / total if total > 0 else 0.0 for step, spent in seconds.items()}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


_NAMES: Final = {
    "read": "reading",
    "transform": "transforming",
    "stage": "rules and duplicates",
    "load": "loading",
    "wait": "waiting",
}
_CULPRITS: Final = {
    "read": "the source, or the way to it, is the bottleneck",
    "transform": "the transform, on this side, or a lookup that each chunk reads, is the bottleneck",
    "stage": "rules and duplicates, on this side, are the bottleneck",
    "load": "the target, or the way to it, is the bottleneck",
    "wait": "the workers were held back",
}
_ADVICE: Final = {
    "read": "If no index leads with the key (`etl plan` says so), one helps most; reader adbc takes less of the "
    "client's CPU",
    "transform": "Fewer or simpler steps help; a Python step runs one chunk at a time; a per_chunk lookup needs an "
    "index on its key",
    "stage": "Fewer or simpler rules help",
    "load": "Indexes, triggers and foreign keys of the target cost there; a table that the run creates, or mode "
    "replace, gets its indexes after the rows",
    "wait": "Behind it are the job's limits, tries that failed, or another process on the "
    "same chunks: the log says which",
}


def bottleneck(measured: Measured) -> tuple[str, ...]:
    """Return sentences: the shares with what stands out, and what may help; empty when too little was measured."""
    times = measured.timings
    found = shares(times)
    total = times.read_seconds + times.transform_seconds + times.stage_seconds + times.load_seconds + times.wait_seconds
    if total < SHORTEST_SECONDS:
        return ()
    told = ", ".join(f"{_NAMES[step]} {100 * share:.0f} %" for step, share in found.items() if share >= 0.005)  # noqa: PLR2004 - half a percent
    (first, share), (_, second), *_ = found.items()
    if share < STANDS_OUT or share - second < AHEAD:
        return (f"{told} of the workers' time; no step stands out", *_more(measured, total, first))
    advice = _ADVICE[first]
    limit = max(measured.held, key=lambda name: measured.held[name], default="")
    if first == "wait" and measured.held.get(limit, 0.0) > times.wait_seconds / 2:
        advice = f"Most of it for {limit}: a higher one would help"
    return (f"{told} of the workers' time; {_CULPRITS[first]}", advice, *_more(measured, total, first))


def _more(measured: Measured, total: float, first: str) -> tuple[str, ...]:
    """Return what the number of workers and the size of the chunks have to do with it."""
    advice = []
    each = total / max(measured.chunks, 1)
    if measured.chunks >= FEW_CHUNKS and each < SHORT_CHUNK_SECONDS:
        advice.append(f"A chunk took {duration(each)}: larger ones (--chunk) share the cost of a query and a COMMIT")
    if first == "wait" or measured.cores is None or measured.chosen:
        return tuple(advice)
    workers, cores = measured.workers, measured.cores
    if workers < cores and measured.chunks > workers:
        advice.append(f"{workers} of this machine's {cores} cores had a worker: more --workers may help")
    elif first in {"read", "load"} and measured.chunks > workers:
        server = "source" if first == "read" else "target"
        advice.append(f"More --workers help if the {server} is on another machine and has CPU or disk to spare")
    return tuple(advice)
