"""How many workers a sitting has when the job does not say: more than at first while they wait and it helps.

A worker on a slow link waits for its own connections; another one has connections of its own. Whether that helps is
not known beforehand, so the number is doubled, measured, and kept, doubled again or taken back. `decide` is pure.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MOST_WORKERS: Final = 16
"""Beyond this a person should say so: each takes memory for a chunk and a connection at both ends."""

CPU_BUSY: Final = 0.75
"""Part of the machine's CPU from which nobody is hired: what the workers wait for is probably on it."""

OWN_BUSY: Final = 0.5
"""Part of a worker's time in which it keeps a core busy, from which it is not called waiting."""

HALF_OF_IDEAL: Final = 0.5
"""Part of the growth that as many more workers could bring, which must be seen for more to be hired."""

WORTH_KEEPING: Final = 1.1
"""How much faster a larger number must be to stay, when it is not worth another step."""

SHORTEST_SECONDS: Final = 0.5
"""Of a shorter time the machine's CPU, counted in hundredths of a second, says too little."""

Action = Literal["wait", "change", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen since the number of workers last changed.

    Attributes:
        workers: at present.
        paces: rows a second of the chunks that were begun since, each by the one worker that moved it.
        seconds: that have passed since.
        chunk_seconds: what one of these chunks took, without waiting; the median.
        cpu_busy: part of the machine's CPU that was in use, from 0 to 1, by whomever.
        own_busy: CPU seconds of this process in a second of one worker.
        held: whether a worker has waited for one of the job's limits.
        left_chunks: that nobody has taken; cuts, if they are merged.
        left_rows: in them.
        before: the number of workers before the change, and their rows a second, all together; None at first.
    """

    workers: int
    paces: Sequence[float]
    seconds: float
    chunk_seconds: float
    cpu_busy: float
    own_busy: float
    held: bool
    left_chunks: int
    left_rows: float
    before: tuple[int, float] | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows a second of all workers: the median pace of one, times their number."""
        return self.workers * median(self.paces) if self.paces else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do about the number of workers.

    Attributes:
        action: ``wait`` for more to be seen, ``change`` the number, or ``end``: it stays as it is from here on.
        workers: the number from here on.
        reason: for a person, with numbers.
    """

    action: Action
    workers: int
    reason: str = ""


def decide(seen: Seen) -> Decision:
    """Return what to do: double the number at most, while workers wait, the machine idles, and the last step helped."""
    now = seen.workers
    wait = Decision(action="wait", workers=now)
    if len(seen.paces) < max(now, 2) or seen.seconds < SHORTEST_SECONDS or not seen.left_chunks:
        return wait
    after = _after_a_step(seen)
    if after is not None:
        return after
    more = min(2 * now, MOST_WORKERS, now + seen.left_chunks // 2)
    why_not = _why_not(seen, more)
    if why_not:
        return replace(wait, reason=why_not)
    waited = f"{now} waited {_idle(seen)}"
    if now >= MOST_WORKERS:
        return Decision(action="end", workers=now, reason=f"{waited}, and more are never hired")
    return Decision(action="change", workers=more, reason=waited)


def _idle(seen: Seen) -> str:
    return f"{100 * max(1 - seen.own_busy, 0):.0f} % of their time"


def _why_not(seen: Seen, more: int) -> str:
    """Return why nobody is hired now, or an empty string."""
    if seen.held:
        return "a limit of the job held them"
    if seen.cpu_busy >= CPU_BUSY:
        return f"the machine's CPU was {100 * seen.cpu_busy:.0f} % busy"
    if seen.own_busy >= OWN_BUSY:
        return f"they waited only {_idle(seen)}"
    little = more <= seen.workers < MOST_WORKERS or seen.left_rows < 2 * seen.rows_per_second * seen.chunk_seconds
    return f"they waited {_idle(seen)}, and too little was left for more" if little else ""


def _after_a_step(seen: Seen) -> Decision | None:
    """Return what to do after a step that was not worth another one; None after one that was, and before the first."""
    if seen.before is None or seen.workers <= seen.before[0]:
        return None
    number, pace = seen.before
    if seen.held:
        return Decision(action="change", workers=number, reason=f"a limit of the job held {seen.workers}")
    grown = seen.rows_per_second / pace if pace > 0 else 0.0
    if grown >= 1 + HALF_OF_IDEAL * (seen.workers / number - 1):
        return None
    told = f"{seen.workers} moved {grown:.1f} times the rows of {number}"
    if grown >= WORTH_KEEPING:
        return Decision(action="end", workers=seen.workers, reason=told)
    return Decision(action="change", workers=number, reason=told)


class Staffing:
    """The number of workers of a sitting, from what its chunks show. `measure` may be called from any thread.

    Attributes:
        workers: at present.
    """

    def __init__(
        self,
        workers: int,
        *,
        room: Callable[[], tuple[int, str]],
        machine_cpu: Callable[[], tuple[float, float]],
        own_cpu: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with so many.

        Args:
            workers: at first.
            room: how many workers connections and memory suffice for, and which of them is short; asked before
                anybody is hired.
            machine_cpu: CPU seconds that the machine has worked, and those that it has had.
            own_cpu: CPU seconds of this process.
            clock: seconds that never run backwards.
        """
        self.workers = self._first = self._most = workers
        self._room = room
        self._machine_cpu = machine_cpu
        self._own_cpu = own_cpu
        self._clock = clock
        self._lock = threading.Lock()
        self._reasons: list[str] = []
        self._waiting_for = ""
        self.begin()

    def begin(self) -> int:
        """Begin a phase, in which another number may be right; returns the number to begin with."""
        self._ended = False
        self._before: tuple[int, float] | None = None
        self._start(0.0)
        return self.workers

    @property
    def reason(self) -> str:
        """How many there are, and why, for a person."""
        first = f", {self._first} at first" if self._reasons and self._most > self._first else ""
        told = [*self._reasons[:1], *self._reasons[1:][-1:], *([self._waiting_for] if self._waiting_for else [])]
        why = "; ".join(told)
        return f"{plural(self.workers, 'worker')}{first}: {why or 'too few chunks to tell whether more would help'}"

    def measure(self, begun_at: float, rows: int, seconds: float) -> None:
        """Take a chunk: when it was begun, its rows, and the seconds that its worker was busy with it."""
        with self._lock:
            if begun_at >= self._changed_at and rows > 0 and seconds > 0:
                self._measured.append((rows / seconds, seconds))

    def look(self, *, held_seconds: float, left_chunks: int, left_rows: float) -> Decision | None:
        """Return what is to be changed now, or that nothing will be any more; None for nothing new.

        Args:
            held_seconds: that workers have waited for the job's limits so far, summed.
            left_chunks: that nobody has taken; cuts, if they are merged.
            left_rows: in them.
        """
        if self._ended or len(self._measured) < max(self.workers, 2):
            return None
        seen = self._seen(held_seconds, left_chunks, left_rows)
        found = decide(seen)
        if found.action == "wait":
            if found.reason:
                self._waiting_for = found.reason
                self._start(held_seconds)  # what was true for long may change: only the last chunks count
            return None
        if found.workers > self.workers:
            found = self._within_room(found)
        self._reasons.append(found.reason)
        self._waiting_for = ""
        self._ended = found.action == "end" or found.workers < self.workers
        self._before = (self.workers, seen.rows_per_second)
        self.workers = found.workers
        self._most = max(self._most, self.workers)
        self._start(held_seconds)
        return found

    def _within_room(self, wanted: Decision) -> Decision:
        room, short = self._room()
        if room >= wanted.workers:
            return wanted
        told = f"{wanted.reason}, and {short} for no more than {max(room, self.workers)}"
        if room > self.workers:
            return replace(wanted, workers=room, reason=told)
        return Decision(action="end", workers=self.workers, reason=told)

    def _start(self, held_seconds: float) -> None:
        """Forget what was measured with another number of workers."""
        with self._lock:
            self._changed_at = self._clock()
            self._measured: list[tuple[float, float]] = []
        self._held = held_seconds
        self._cpu = (*self._machine_cpu(), self._own_cpu())

    def _seen(self, held_seconds: float, left_chunks: int, left_rows: float) -> Seen:
        elapsed = self._clock() - self._changed_at
        worked, had, own = self._cpu
        worked_now, had_now = self._machine_cpu()
        with self._lock:
            paces, seconds = zip(*self._measured, strict=True)
        return Seen(
            workers=self.workers,
            paces=paces,
            seconds=elapsed,
            chunk_seconds=median(seconds),
            cpu_busy=(worked_now - worked) / (had_now - had) if had_now > had else 1.0,
            own_busy=(self._own_cpu() - own) / (elapsed * self.workers) if elapsed > 0 else 1.0,
            held=held_seconds > self._held,
            left_chunks=left_chunks,
            left_rows=left_rows,
            before=self._before,
        )
