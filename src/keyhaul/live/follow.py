"""A live run, watched from another process through the ledger until it ends; nothing is written there.

A run is under way while a session holds its job's lock, or while one of its workers has a session: the lock's
connection can be lost and the run goes on. When neither is there for `LOST_SECONDS`, its process has died.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TextIO

from psycopg.rows import tuple_row

from keyhaul.console import can_move_cursor, write_line
from keyhaul.errors import RefusedError
from keyhaul.ledger.reading import RunRow, facts_of, fetch
from keyhaul.live.tally import SHARE_BEFORE
from keyhaul.text import clock_time, one_line, per_second, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from rich.text import Text

POLL_SECONDS: Final = 1.0
LINE_SECONDS: Final = 10.0
"""Where the cursor cannot move, a line is written this often at most; the first and the last at once."""

LOST_SECONDS: Final = 5.0
"""How long a run may be without any session before it counts as dead: a worker is between two for a moment."""

WINDOW_SECONDS: Final = 15.0
NEARLY_DONE: Final = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A run as it was found at one poll.

    Attributes:
        elapsed_seconds: of working time, by the server's clock.
        rate: rows/s read over the last seconds.
        under_way: whether any session of the run is there.
        least: the fraction that was told last; it never falls.
    """

    run: RunRow
    elapsed_seconds: float
    rate: float
    under_way: bool
    least: float = 0.0

    @property
    def fraction(self) -> float:
        """The part of the rows, or of the chunks if more were found than expected, that is behind us."""
        run = self.run
        if run.status == "done":
            return 1.0
        waiting = SHARE_BEFORE["load"] * max(self.gathered_rows - run.counts.read, 0)
        rows = (run.counts.read + waiting) / run.estimated_rows if run.estimated_rows else 0.0
        chunks = run.chunks_done / run.chunks_planned if run.chunks_planned else 0.0
        return max(min(rows if 0 < rows <= 1 else chunks, NEARLY_DONE), self.least)

    @property
    def gathered_rows(self) -> int:
        """Rows that are read and put down, with a dedup across chunks; none is loaded before all are there."""
        return self.run.gathered.get("rows", 0)

    @property
    def read_rows(self) -> int:
        """Rows read so far, committed or put down."""
        return max(self.run.counts.read, self.gathered_rows)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the end at the present rate; None as long as nothing is known."""
        if self.gathered_rows and not self.run.counts.read:
            return None  # reading and loading have speeds of their own
        left = max(self.run.estimated_rows - self.run.counts.read, 0)
        return left / self.rate if self.rate > 0 and self.run.status == "running" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """The end of watching: the run as it was last, and whether its process died without a last word."""

    run: RunRow
    lost: bool


def follow(
    conn: psycopg.Connection[Any],
    schema: str,
    run_id: str,
    stream: TextIO,
    *,
    wait: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Followed:
    """Show a run on `stream` once a second until it is over, and return how it ended.

    A terminal gets a display that is redrawn in place and taken away at the end; any other stream gets plain
    lines. A run that is over already is returned at once.

    Args:
        conn: to the target's database, in autocommit mode.
        schema: the ledger's.
        run_id: from `lookback.find_run`.
        stream: usually stdout.
        wait: sleeps for so many seconds.
        clock: seconds that never run backwards.

    Raises:
        RefusedError: the run is not in the ledger any more.
        ConnectError: the connection is lost.
    """
    samples: deque[tuple[float, int]] = deque()
    seen_at, least = clock(), 0.0
    with _display(stream, clock) as show:
        while True:
            now = clock()
            moment = replace(_look(conn, schema, run_id, samples, now), least=least)
            least = moment.fraction
            if moment.under_way:
                seen_at = now
            lost = moment.run.status == "running" and now - seen_at >= LOST_SECONDS
            over = lost or moment.run.status != "running"
            show(moment, over)
            if over:
                return Followed(run=moment.run, lost=lost)
            wait(POLL_SECONDS)


def _look(
    conn: psycopg.Connection[Any], schema: str, run_id: str, samples: deque[tuple[float, int]], now: float
) -> Moment:
    ((sessions, age_seconds),) = fetch(conn, schema, "run_sessions", tuple_row, {"run_id": run_id}) or [(0, 0.0)]
    runs = fetch(conn, schema, "runs", facts_of(RunRow), {"run_id": run_id, "limit": 1, "schema": schema})
    if not runs:
        raise RefusedError(f"follow run {one_line(run_id)!r}: it is not in the ledger any more. `etl runs` lists them.")
    run = runs[0]
    while len(samples) > 1 and samples[0][0] < now - WINDOW_SECONDS:
        samples.popleft()
    elapsed = age_seconds if run.sittings == 1 and run.ended_at is None else run.seconds
    read = run.counts.read or run.gathered.get("rows", 0)
    if samples and read < samples[-1][1]:
        samples.clear()  # the loading begins: its rows are counted from the first
    samples.append((now, read))
    then, rows = samples[0]
    mean = per_second(read, elapsed)
    return Moment(
        run=run,
        elapsed_seconds=elapsed,
        rate=per_second(max(read - rows, 0), now - then) if now - then >= LOST_SECONDS else mean,
        under_way=run.alive or sessions > 0,
    )


def head(run: RunRow) -> str:
    """Return what is watched, as one line."""
    sitting = f", sitting {run.sittings}" if run.sittings > 1 else ""
    return one_line(
        f"run {run.run_id}: {run.job}, {run.source} → {run.target_table}, {plural(run.chunks_planned, 'chunk')}, "
        f"{plural(run.workers, 'worker')}{sitting}"
    )


def line(moment: Moment) -> str:
    """Return the state as one line for a log."""
    run = moment.run
    eta = "" if moment.eta_seconds is None else f", ETA {clock_time(moment.eta_seconds)}"
    failed = f", {plural(run.chunks_failed, 'failed chunk')}" if run.chunks_failed else ""
    gone = "" if moment.under_way or run.status != "running" else "; no session of it is there"
    where = _gathered(moment) or f"{run.chunks_done:,} of {run.chunks_planned:,} chunks"
    return (
        f"[{clock_time(moment.elapsed_seconds)}] {int(100 * moment.fraction)} %: {where}, read {moment.read_rows:,} of "
        f"about {run.estimated_rows:,}, loaded {run.counts.loaded:,}, quarantined {run.counts.quarantined:,}; "
        f"{moment.rate:,.0f} rows/s{eta}{failed}{gone}"
    )


def _gathered(moment: Moment) -> str:
    """Return how far the first of two phases is, as long as nothing is loaded; of a run without phases nothing."""
    run = moment.run
    if not run.gathered or run.chunks_done or run.status != "running":
        return ""
    return f"gathered {run.gathered['chunks']:,} of {run.chunks_planned:,} chunks before any is loaded"


def ending(followed: Followed) -> str:
    """Return how the run ended, as a sentence with what to do."""
    run = followed.run
    if followed.lost:
        return (
            f"run {run.run_id}: its process ({run.pid} on {one_line(run.host)}) is gone: no session holds the job's "
            f"lock. {run.chunks_done:,} of {run.chunks_planned:,} chunks are committed; the run's own command goes on "
            "with the rest"
        )
    why = f": {one_line(run.stop_reason)}" if run.stop_reason else ""
    return f"run {run.run_id}: {run.state}{why}"


@contextmanager
def _display(stream: TextIO, clock: Callable[[], float]) -> Iterator[Callable[[Moment, bool], None]]:
    """Yield what shows a moment, and whether it is the last one."""
    if not can_move_cursor(stream):
        written: list[float] = []

        def write(moment: Moment, over: bool) -> None:  # noqa: FBT001 - named where it is called
            if not written:
                write_line(stream, head(moment.run))
            if over or not written or clock() - written[-1] >= LINE_SECONDS:
                write_line(stream, line(moment))
                written.append(clock())

        yield write
        return
    from rich.console import Console, Group
    from rich.live import Live

    console = Console(file=stream, highlight=False, markup=False, emoji=False)
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:

        def draw(moment: Moment, _over: bool) -> None:  # noqa: FBT001 - as above
            live.update(Group(*_frame(moment, console.width)), refresh=True)

        yield draw


def _frame(moment: Moment, width: int) -> list[Text]:
    from rich.text import Text

    run = moment.run
    eta = "-" if moment.eta_seconds is None else clock_time(moment.eta_seconds)
    times = f"  {int(100 * moment.fraction):3d} %  {clock_time(moment.elapsed_seconds)}  ETA {eta}"
    room = max(width - len(times) - 1, 1)
    full = int(room * moment.fraction)
    bar = Text("━" * full, "green").append("━" * (room - full), "bright_black").append(times, "default")
    rows = Text.assemble(
        ("read ", "dim"),
        f"{moment.read_rows:,} of ~{run.estimated_rows:,}",
        ("  loaded ", "dim"),
        f"{run.counts.loaded:,}",
        ("  quarantined ", "dim"),
        (f"{run.counts.quarantined:,}", "yellow" if run.counts.quarantined else ""),
    )
    chunks = Text.assemble(
        ("chunks ", "dim"),
        f"{run.chunks_done:,} of {run.chunks_planned:,}",
        ("  now ", "dim"),
        f"{moment.rate:,.0f} rows/s",
        ("  failed ", "dim"),
        (str(run.chunks_failed), "bold red" if run.chunks_failed else ""),
    )
    lines = [Text(head(run), "bold"), bar, rows, chunks]
    if phase := _gathered(moment):
        lines.insert(2, Text(phase, "cyan"))
    if not moment.under_way and run.status == "running":
        lines.append(Text("no session of it is there: waiting a moment", "yellow"))
    for text in lines:
        text.no_wrap = True
        text.truncate(width, overflow="ellipsis")
    return lines
