"""What happens during a run, as frozen dataclasses; a live display and a log are two observers of them.

No event holds a password or a row's value.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from keyhaul.model import Counts, Report, Timings

Step = Literal["read", "transform", "stage", "load"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sentence that a person should read: what was chosen, emptied, created or noticed."""

    message: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The plan is in the ledger; the first read comes next.

    `done` is what earlier sittings of a resumed run have committed; zero for a new run.
    """

    run_id: str
    job: str
    source: str
    target: str
    resumed: bool
    chunks_planned: int
    chunks_done: int
    estimated_rows: int
    done: Counts
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkStarted:
    """A worker has taken a chunk. `worker` counts from 1; `cuts` are those of the plan that it was merged from."""

    chunk: int
    worker: int
    estimated_rows: int
    cuts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A worker goes on to the next step of its chunk. `rows` is what the step is given; 0 for a read."""

    chunk: int
    worker: int
    step: Step
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeld:
    """A chunk waits for ``memory_limit``, ``cpu_limit`` or ``rate_limit`` before it is begun."""

    chunk: int
    worker: int
    limit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReleased:
    """The chunk is begun after so many seconds of waiting, for all limits together."""

    chunk: int
    worker: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersAllowed:
    """``cpu_limit`` has changed how many workers may be active; `cpu_percent` is the machine's CPU, 0 to 100."""

    active: int
    workers: int
    cpu_percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersChosen:
    """The number of workers has changed, or is known not to change any more; `reason` says why, with numbers.

    Only of a job that leaves the number to us.
    """

    workers: int
    before: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkGathered:
    """A chunk is read and put down, to be loaded when all are; only with a dedup across chunks. Not committed."""

    chunk: int
    worker: int
    rows: int
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDone:
    """A chunk is committed with its ledger row; the counts are the ledger's."""

    chunk: int
    worker: int
    counts: Counts
    timings: Timings
    attempts: int
    bytes_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRetried:
    """A transient error; the ledger says that the chunk is not there, so it is tried again after a wait."""

    chunk: int
    worker: int
    attempt: int
    wait_seconds: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHalved:
    """A merged chunk has failed; its halves are tried next, until the cut that is guilty stands alone."""

    chunk: int
    worker: int
    cuts: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFailed:
    """A chunk is given up and recorded as failed; it can be tried again by the same command."""

    chunk: int
    worker: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """No further chunk is taken; those under way are finished (or cancelled, if `at_once`)."""

    reason: str
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LateLoaded:
    """A pass over the rows that waited for a row of a later chunk; `left` are the chunks of which some still wait."""

    number: int
    rows: int
    left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The run is over; the report is what the ledger says."""

    report: Report


def as_json(event: object) -> dict[str, Any]:
    """Return the event as a flat JSON-ready dict with its name under ``event``.

    Nested dataclasses (counts, timings, report) become nested dicts.

    Raises:
        TypeError: `event` is none of the above (a mistake of the caller).
    """
    if not dataclasses.is_dataclass(event) or isinstance(event, type):
        raise TypeError(f"write event: got {type(event).__name__}, expected a dataclass of keyhaul.events")
    out: dict[str, Any] = {"event": type(event).__name__}
    out.update(dataclasses.asdict(event))
    return out
