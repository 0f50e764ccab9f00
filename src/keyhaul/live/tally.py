"""The numbers of a run while it goes on, made from its events.

`Tally` takes the events in whatever order the workers' threads deliver them. Its numbers come from
committed chunks alone; the bar, the rate of the moment and the ETA also count the part of a chunk that
its finished steps stand for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from keyhaul.events import (
    ChunkDone,
    ChunkFailed,
    ChunkGathered,
    ChunkHalved,
    ChunkHeld,
    ChunkReleased,
    ChunkRetried,
    ChunkStarted,
    RunFinished,
    RunStarted,
    StepStarted,
    Stopping,
    WorkersAllowed,
)
from keyhaul.model import Counts
from keyhaul.text import per_second

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Phase = Literal["planning", "running", "stopping", "finished"]

SHARE_BEFORE: Mapping[str, float] = {"read": 0.0, "transform": 0.35, "stage": 0.45, "load": 0.60}
"""Part of a chunk's work that is behind it when a step begins: read 35 %, transform 10 %, stage 15 %, load 40 %."""

WINDOW_SECONDS = 10.0
SAMPLE_SECONDS = 0.25
PEAK_SPAN_SECONDS = 2.0
"""A peak over a shorter span would be the size of a chunk, not a rate."""

NEARLY_DONE = 0.999
"""The bar's limit until the run says that it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A chunk under way on one worker; `step` is a step's name or ``waits``, `since` a reading of the clock."""

    worker: int
    chunk: int | None
    step: str
    rows: int
    expected: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The state of a run at one moment.

    Attributes:
        fraction: of the whole run, earlier sittings included; never falls, 1 only when the run is done.
        total_rows: the estimate, corrected by what was found.
        counts: the balance of committed chunks, earlier sittings included.
        current, mean, peak: rows/s read in this sitting.
        eta_seconds: None as long as nothing is known.
        limit_seconds: that workers have waited for the job's limits, summed.
        active: workers that ``cpu_limit`` allows at the moment; None when all.
        gathered: rows that are read and put down, and not loaded before all are.
        workers: the worker's flights, by worker, `since` replaced by the seconds in this step.
    """

    phase: Phase
    started: RunStarted | None
    reason: str
    fraction: float
    total_rows: int
    counts: Counts
    current: float
    mean: float
    peak: float
    elapsed_seconds: float
    eta_seconds: float | None
    workers: tuple[Flight, ...]
    retries: int
    failed: int
    limit_seconds: float = 0.0
    active: int | None = None
    gathered: int = 0


class Tally:
    """Keeps the numbers of a run from its events; safe to call from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at zero; `clock` gives seconds and never runs backwards."""
        self._lock = threading.Lock()
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._phase: Phase = "planning"
        self._started: RunStarted | None = None
        self._reason = ""
        self._sitting = Counts()
        self._expected: dict[int, int] = {}
        self._cuts: dict[int, int] = {}
        self._cuts_behind = 0
        self._done: set[int] = set()
        self._failed: dict[int, int] = {}
        self._gathered: dict[int, int] = {}
        self._estimated_behind = 0
        self._flights: dict[int, Flight] = {}
        self._retries = 0
        self._held: dict[int, float] = {}
        self._waited = 0.0
        self._allowed: int | None = None
        self._fraction = 0.0
        self._peak = 0.0
        self._longest_chunk = 0.0
        self._samples: deque[tuple[float, float]] = deque([(self._began, 0.0)])

    def __call__(self, event: object) -> None:
        """Take one event."""
        with self._lock:
            now = self._clock()
            if isinstance(event, RunStarted):
                self._started, self._began = event, now
                self._samples = deque([(now, 0.0)])
                self._phase = "running" if self._phase == "planning" else self._phase
            elif isinstance(event, Stopping):
                self._reason = event.reason
                # What waits for a limit is not begun any more, and says nothing further.
                self._waited, self._held = self._waits(now), {}
                self._phase = "finished" if self._phase == "finished" else "stopping"
            elif isinstance(event, RunFinished):
                self._phase, self._ended = "finished", now
                if event.report.outcome == "done":
                    self._fraction = 1.0
            else:
                self._take_limit_event(event, now)
                self._take_chunk_event(event, now)
            self._sample(now)

    def _take_chunk_event(self, event: object, now: float) -> None:
        if isinstance(event, ChunkStarted):
            self._expected[event.chunk] = max(event.estimated_rows, 0)
            self._cuts[event.chunk] = event.cuts
            self._fly(event.worker, event.chunk, "read", 0, now)
        elif isinstance(event, StepStarted):
            self._fly(event.worker, event.chunk, event.step, event.rows, now)
        elif isinstance(event, ChunkGathered):
            self._gathered[event.chunk] = event.rows
            self._land(event.worker, event.chunk, now)
        elif isinstance(event, ChunkRetried):
            self._retries += 1
            self._fly(event.worker, event.chunk, "waits", 0, now)
        elif isinstance(event, ChunkHalved):
            # As if it had never been taken: its halves are.
            self._expected.pop(event.chunk, None)
            self._land(event.worker, event.chunk, now)
        elif isinstance(event, ChunkFailed):
            if event.chunk not in self._done and event.chunk not in self._failed:
                self._failed[event.chunk] = self._settle(event.chunk)
            self._land(event.worker, event.chunk, now)
        elif isinstance(event, ChunkDone):
            self._count(event)
            self._land(event.worker, event.chunk, now)

    def _count(self, event: ChunkDone) -> None:
        """Count a chunk once, also when the ledger is asked after a lost answer and says so again."""
        if event.chunk in self._done:
            return
        self._done.add(event.chunk)
        if self._failed.pop(event.chunk, None) is None:
            self._settle(event.chunk)
        self._sitting += event.counts
        self._longest_chunk = max(self._longest_chunk, event.timings.busy_seconds)

    def _take_limit_event(self, event: object, now: float) -> None:
        if isinstance(event, WorkersAllowed):
            self._allowed = event.active if event.active < event.workers else None
        elif isinstance(event, ChunkHeld):
            self._fly(event.worker, event.chunk, "waits", 0, now)
            self._held.setdefault(event.worker, now)
        elif isinstance(event, ChunkReleased):
            self._waited += now - self._held.pop(event.worker, now)
            self._fly(event.worker, event.chunk, "read", 0, now)

    def _waits(self, now: float) -> float:
        """Return the seconds that workers have waited for limits so far, those that still do included."""
        return self._waited + sum(now - since for since in self._held.values())

    def _settle(self, chunk: int) -> int:
        """Take a chunk out of what is still to come, and return the rows that it was expected to have."""
        expected = self._expected.pop(chunk, None)
        cuts = self._cuts.pop(chunk, 1)
        if expected is None:
            plan = self._started
            each = plan.estimated_rows // plan.chunks_planned if plan is not None and plan.chunks_planned else 0
            expected = each * cuts
        self._estimated_behind += expected
        self._cuts_behind += cuts
        self._gathered.pop(chunk, None)
        return expected

    def _fly(self, worker: int, chunk: int, step: str, rows: int, now: float) -> None:
        if chunk not in self._done:
            expected = self._expected.get(chunk, 0)
            self._flights[worker] = Flight(
                worker=worker, chunk=chunk, step=step, rows=rows, expected=expected, since=now
            )

    def _land(self, worker: int, chunk: int, now: float) -> None:
        idle = Flight(worker=worker, chunk=None, step="idle", rows=0, expected=0, since=now)
        for other, flight in list(self._flights.items()):
            if flight.chunk == chunk:
                self._flights[other] = replace(idle, worker=other)
        self._flights[worker] = idle

    def _under_way(self) -> float:
        """Rows that the finished steps of the chunks in flight, and of those that wait to be loaded, stand for."""
        flights = [f for f in self._flights.values() if f.chunk is not None and f.chunk not in self._gathered]
        waiting = SHARE_BEFORE["load"] * sum(self._gathered.values())
        return waiting + sum(SHARE_BEFORE.get(f.step, 0.0) * (f.rows or f.expected) for f in flights)

    def _settled_and_rest(self) -> tuple[float, float]:
        """Rows that are behind us (failed chunks as estimated), and rows that are still to come."""
        earlier = self._started.done.read if self._started else 0
        settled = earlier + self._sitting.read + sum(self._failed.values())
        if self._started is None:
            return settled, self._under_way()
        rest: float = self._started.estimated_rows - earlier - self._estimated_behind
        chunks_behind = self._started.chunks_done + self._cuts_behind
        chunks_left = self._started.chunks_planned - chunks_behind
        if chunks_left <= 0:
            return settled, 0.0
        if rest <= 0:  # the estimate was too low: what is left is taken to be like what was found
            rest = chunks_left * max(settled / chunks_behind if chunks_behind else 0, 1)
        return settled, max(rest, self._under_way())

    def _advance(self) -> tuple[float, float, float]:
        """Move the bar, never back; return the rows that are settled, to come, and of these under way."""
        settled, rest = self._settled_and_rest()
        under_way = min(self._under_way(), rest)
        if self._fraction < 1 and self._started is not None and settled + rest > 0:
            self._fraction = min(max(self._fraction, (settled + under_way) / (settled + rest)), NEARLY_DONE)
        return settled, rest, under_way

    def _sample(self, now: float) -> float:
        """Note the position, and return the rows/s over the last seconds."""
        position = self._sitting.read + self._under_way()
        # With chunks that take longer than the window, the window is one chunk long; else it would see none land.
        window = max(WINDOW_SECONDS, self._longest_chunk)
        while len(self._samples) > 1 and self._samples[1][0] <= now - window:
            self._samples.popleft()
        then, there = self._samples[0]
        if now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, position))
        # A retry takes a chunk back to its start: the position falls, and a rate is never below zero.
        rate = max(position - there, 0.0) / (now - then) if now > then else 0.0
        if now - then >= PEAK_SPAN_SECONDS:
            self._peak = max(self._peak, rate)
        return rate

    def view(self) -> View:
        """Return the state at this moment."""
        with self._lock:
            now = self._ended if self._ended is not None else self._clock()
            current = self._sample(now)
            elapsed = max(now - self._began, 0.0)
            settled, rest, under_way = self._advance()
            gathered = sum(self._gathered.values())
            mean = per_second(self._sitting.read + gathered, elapsed)
            # Half the moment, half the whole sitting: follows a change, and does not jump with every chunk.
            pace = (current + per_second(round(self._sitting.read + under_way), elapsed)) / 2
            return View(
                phase=self._phase,
                started=self._started,
                reason=self._reason,
                fraction=self._fraction,
                total_rows=round(settled + rest),
                counts=(self._started.done if self._started else Counts()) + self._sitting,
                current=current,
                mean=mean,
                peak=max(self._peak, mean),
                elapsed_seconds=elapsed,
                eta_seconds=(rest - under_way) / pace if pace > 0 and self._started else None,
                workers=tuple(
                    replace(flight, since=max(now - flight.since, 0.0)) for _, flight in sorted(self._flights.items())
                ),
                retries=self._retries,
                failed=len(self._failed),
                limit_seconds=self._waits(now),
                active=self._allowed,
                gathered=gathered,
            )
