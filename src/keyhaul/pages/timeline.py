"""When a run's workers did what: its chunks on one clock that leaves out the time between sittings. Pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from keyhaul.model import STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime


_OVERLAP_SECONDS: Final = 0.05
"""Clocks of two processes and of a transaction differ by less than this."""

MOST_BARS: Final = 1_500
"""Of more chunks than this, neighbours in a lane are drawn as one: a page of 100,000 bars is 30 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """One sitting on the clock: it begins `offset_seconds` after the run's beginning, pauses left out."""

    number: int
    begin: datetime
    end: datetime
    offset_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Maps moments to seconds of working time.

    Attributes:
        seconds: from the beginning of the first sitting to the end of the last, without the time between them.
    """

    sittings: tuple[Sitting, ...]
    seconds: float

    def at(self, sitting: int, moment: datetime) -> float:
        """Return a moment of a sitting in seconds, within the clock."""
        found = next((s for s in self.sittings if s.number == sitting), self.sittings[-1])
        return min(max(found.offset_seconds + (moment - found.begin).total_seconds(), 0.0), self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A chunk in a lane, or several that stand side by side.

    Attributes:
        begin, end: in seconds of the clock.
        parts: step, begin and end of what is known; empty for several chunks.
        first, last: numbers of the chunks.
        attempts: the highest number of tries.
        failed: whether one was given up; such a one has no length.
        cut: it seemed to begin before the worker's last chunk had ended, and begins there now.
    """

    begin: float
    end: float
    parts: tuple[tuple[str, float, float], ...]
    first: int
    last: int
    rows: int
    attempts: int
    failed: bool
    cut: bool = False


def clock_of(run: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]]) -> Clock:
    """Return the clock of a run from its first moment; zero seconds as long as no chunk has ended."""
    moved = [chunk for chunk in chunks if chunk["ended_at"] is not None]
    spans: dict[int, tuple[datetime, datetime]] = {}
    for chunk in moved:
        begin, end = chunk["started_at"] or chunk["ended_at"], chunk["ended_at"]
        known = spans.get(chunk["sitting"], (begin, end))
        spans[chunk["sitting"]] = (min(known[0], begin), max(known[1], end))
    first = min(spans, default=None)
    if first == 1:
        spans[1] = (min(run["started_at"], spans[1][0]), spans[1][1])
    if first is not None and run["ended_at"] is not None and run["sittings"] in spans:
        begin, end = spans[run["sittings"]]
        spans[run["sittings"]] = (begin, max(end, run["ended_at"]))
    offset, sittings = 0.0, []
    for number, (begin, end) in sorted(spans.items()):
        sittings.append(Sitting(number=number, begin=begin, end=end, offset_seconds=offset))
        offset += (end - begin).total_seconds()
    return Clock(sittings=tuple(sittings), seconds=offset)


def lanes(chunks: Sequence[Mapping[str, Any]], clock: Clock) -> dict[int, tuple[Bar, ...]]:
    """Return the bars of each worker, by worker and time; a worker does one thing at a time.

    A dedup across chunks reads all of them before it loads any, and the ledger knows only when a chunk was loaded:
    of such a chunk the load is shown, and as much of its other steps as fits before it.
    """
    found: dict[int, list[Bar]] = {}
    for chunk in chunks:
        if chunk["ended_at"] is not None and chunk["worker"] is not None:
            found.setdefault(chunk["worker"], []).append(_bar(chunk, clock))
    total = sum(map(len, found.values()))
    close = clock.seconds / 1000 if total > MOST_BARS else None
    return {worker: tuple(_merged(_in_turn(bars), close)) for worker, bars in sorted(found.items())}


def _bar(chunk: Mapping[str, Any], clock: Clock) -> Bar:
    end = clock.at(chunk["sitting"], chunk["ended_at"])
    begin = end if chunk["started_at"] is None else clock.at(chunk["sitting"], chunk["started_at"])
    parts, at = [], begin
    for step in STEPS[:-1]:
        until = min(at + chunk[f"{step}_seconds"], end)
        parts.append((step, at, until))
        at = until
    # The load is the transaction, which ends with the chunk; what lies before it is opening a session.
    parts.append((STEPS[-1], max(at, end - chunk["load_seconds"]), end))
    return Bar(
        begin=begin,
        end=end,
        parts=tuple(part for part in parts if part[2] > part[1]),
        first=chunk["chunk"],
        last=chunk["chunk"],
        rows=chunk["rows_read"],
        attempts=chunk["attempts"],
        failed=chunk["status"] == "failed",
    )


def _in_turn(bars: Sequence[Bar]) -> list[Bar]:
    """Return a worker's bars by time, none beginning before the one before it has ended."""
    out: list[Bar] = []
    for bar in sorted(bars, key=lambda bar: (bar.end, bar.begin)):
        free = out[-1].end if out else 0.0
        if bar.begin >= free - _OVERLAP_SECONDS:
            out.append(bar)
            continue
        parts = tuple((step, max(begin, free), end) for step, begin, end in bar.parts if end > free)
        out.append(replace(bar, begin=min(free, bar.end), parts=parts, cut=True))
    return out


def _merged(bars: Sequence[Bar], close: float | None) -> list[Bar]:
    """Return the bars with those that are less than `close` seconds apart as one; a failed one stays alone."""
    out: list[Bar] = []
    for bar in bars:
        before = out[-1] if out and close is not None else None
        if before is None or close is None or before.failed or bar.failed or bar.begin - before.end > close:
            out.append(bar)
            continue
        out[-1] = Bar(
            begin=before.begin,
            end=max(before.end, bar.end),
            parts=(),
            first=min(before.first, bar.first),
            last=max(before.last, bar.last),
            rows=before.rows + bar.rows,
            attempts=max(before.attempts, bar.attempts),
            failed=False,
        )
    return out


def rates(chunks: Sequence[Mapping[str, Any]], clock: Clock, bins: int) -> list[float]:
    """Return rows read per second in each of `bins` equal parts of the clock.

    A chunk's rows are spread evenly over the time it took: the ledger does not know when each was read.
    """
    rows = [0.0] * bins
    if clock.seconds <= 0:
        return rows
    width = clock.seconds / bins
    for chunk in chunks:
        if chunk["status"] != "done" or chunk["started_at"] is None:
            continue
        begin, end = (clock.at(chunk["sitting"], chunk[name]) for name in ("started_at", "ended_at"))
        first, last = (min(int(moment / width), bins - 1) for moment in (begin, end))
        for place in range(first, last + 1):
            inside = min(end, (place + 1) * width) - max(begin, place * width)
            share = inside / (end - begin) if end > begin else 1 / (last - first + 1)
            rows[place] += chunk["rows_read"] * max(share, 0.0)
    return [number / width for number in rows]


def ticks(highest: float, wanted: int = 5) -> list[float]:
    """Return round numbers from 0 to at most `highest`, about `wanted` steps of 1, 2 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0]
    raw = highest / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((power * factor for factor in (1, 2, 5) if power * factor >= raw), 10 * power)
    return [step * number for number in range(int(highest / step + 1e-9) + 1)]


def time_ticks(seconds: float) -> list[float]:
    """Return four to eight moments of a clock of this length, on round seconds, minutes or hours."""
    steps = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
    if seconds <= steps[0] * 4:
        return ticks(seconds)
    step = next((step for step in steps if seconds / step <= 7), steps[-1] * max(1, round(seconds / steps[-1] / 6)))  # noqa: PLR2004 - ticks
    return [float(step * number) for number in range(int(seconds / step) + 1)]
