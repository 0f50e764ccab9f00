"""What is seen while a run goes on: observers of events, for a terminal, a log and a program.

The displays only draw what `tally` has counted. An observer must not stop the run: a display whose
stream is gone falls silent.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, Protocol, Self, TextIO

from keyhaul.console import can_move_cursor, write_json, write_line
from keyhaul.events import (
    ChunkFailed,
    ChunkHalved,
    ChunkRetried,
    Notice,
    RunFinished,
    RunStarted,
    Stopping,
    WorkersChosen,
    as_json,
)
from keyhaul.live.tally import Tally
from keyhaul.memory import memory_bytes
from keyhaul.text import clock_time, duration, one_line, plural, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from keyhaul.live.tally import Flight, View

ProgressMode = Literal["auto", "live", "plain", "json", "off"]

NARROW_BAR = 10
"""Columns below which the bar gets a line of its own."""


class Progress(Protocol):
    """An observer that is shown between ``with`` and its end."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *exc_info: object) -> None:
        """Stop showing and leave the terminal as it was."""
        ...

    def __call__(self, event: object) -> None:
        """Take one event, in any thread."""
        ...


def sentence(event: object) -> tuple[str, str] | None:
    """Return an event that a person should read as (level, one line): ``info``, ``retry``, ``warning`` or ``error``."""
    if isinstance(event, Notice):
        level = "warning" if event.level == "warning" else "info"
        return level, ("warning: " if level == "warning" else "") + one_line(event.message)
    if isinstance(event, WorkersChosen):
        here = "from here on" if event.workers == event.before else f"not {event.before}"
        return "info", f"{plural(event.workers, 'worker')}, {here}: {one_line(event.reason)}"
    return _of_chunks(event)


def _of_chunks(event: object) -> tuple[str, str] | None:
    if isinstance(event, ChunkRetried):
        wait = duration(event.wait_seconds)
        return "retry", f"chunk {event.chunk}: try {event.attempt} failed, again in {wait}: {one_line(event.error)}"
    if isinstance(event, ChunkHalved):
        return "retry", f"chunk {event.chunk} failed and is halved ({event.cuts} cuts): {one_line(event.error)}"
    if isinstance(event, ChunkFailed):
        tries = plural(event.attempts, "try", "tries")
        return "error", f"chunk {event.chunk} failed after {tries}: {one_line(event.error)}"
    if isinstance(event, Stopping):
        how = "stopping at once" if event.at_once else "stopping when the chunks under way are done"
        return "warning", f"{how}: {one_line(event.reason)}"
    return None


def status_line(view: View) -> str:
    """Return the state as one line for a log."""
    at = f"[{clock_time(view.elapsed_seconds)}]"
    if view.started is None:
        return f"{at} planning"
    counts = view.counts
    of = "" if view.phase == "finished" else f" of about {view.total_rows:,}"
    eta = "" if view.eta_seconds is None or view.phase == "finished" else f", ETA {clock_time(view.eta_seconds)}"
    gathered = f" ({view.gathered:,} gathered, to be loaded when all are)" if view.gathered else ""
    troubles = f", {plural(view.retries, 'retry', 'retries')}" if view.retries else ""
    troubles += f", {plural(view.failed, 'failed chunk')}" if view.failed else ""
    troubles += f", waited {duration(view.limit_seconds)} for limits" if view.limit_seconds >= 1 else ""
    troubles += f", {plural(view.active, 'active worker')}" if view.active is not None else ""
    return (
        f"{at} {int(100 * view.fraction)} %: read {counts.read + view.gathered:,}{of}{gathered}, loaded "
        f"{counts.loaded:,}, quarantined {counts.quarantined:,}, duplicate {counts.duplicate:,}, filtered "
        f"{counts.filtered:,}; {view.current:,.0f} rows/s (mean {view.mean:,.0f}){eta}, memory "
        f"{size(memory_bytes())}{troubles}"
    )


def frame(view: View, width: int, height: int) -> Group:
    """Return the live display: no line is longer than `width`, and no more than `height` lines."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Text] = [_head(view)]
    if view.started is None:
        lines.append(Text(f"planning  {clock_time(view.elapsed_seconds)}", "cyan"))
    else:
        lines += _bar(view, width)
        lines += _flow(_numbers(view), width)
        lines += _flow(_rates(view), width)
        # A line for the terminal's own cursor and one for "and n more workers" stay free.
        room = max(height - len(lines) - 2, 1)
        lines += [_worker(flight) for flight in view.workers[:room]]
        if len(view.workers) > room:
            lines.append(Text(f"and {plural(len(view.workers) - room, 'more worker')}", "dim"))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return Group(*lines[: max(height - 1, 1)])


def _head(view: View) -> Text:
    from rich.text import Text

    if view.started is None:
        return Text("keyhaul", "bold")
    head = Text.assemble((one_line(view.started.job), "bold"), f"  {one_line(view.started.source)}")
    head.append(f" → {one_line(view.started.target)}")
    if view.started.resumed:
        head.append("  resumed", "cyan")
    if view.phase == "stopping":
        head = Text(f"stopping: {one_line(view.reason)}", "bold yellow")
    return head


def _bar(view: View, width: int) -> list[Text]:
    from rich.text import Text

    eta = "-" if view.eta_seconds is None else clock_time(view.eta_seconds)
    times = f"{int(100 * view.fraction):3d} %  {clock_time(view.elapsed_seconds)}  ETA {eta}"
    room = width - len(times) - 2
    below = room < NARROW_BAR
    if below:
        room = width
    full = int(room * view.fraction)
    bar = Text("━" * full, "green").append("━" * (room - full), "bright_black")
    return [bar, Text(times)] if below else [bar.append(f"  {times}", "default")]


def _numbers(view: View) -> list[Text]:
    from rich.text import Text

    counts = view.counts
    items = [Text.assemble(("read ", "dim"), f"{counts.read + view.gathered:,} of ~{view.total_rows:,}")]
    if view.gathered:
        items.append(Text.assemble(("gathered, to be loaded ", "dim"), (f"{view.gathered:,}", "cyan")))
    for name, color in (("loaded", ""), ("quarantined", "yellow"), ("duplicate", ""), ("filtered", "")):
        number: int = getattr(counts, name)
        items.append(Text.assemble((f"{name} ", "dim"), (f"{number:,}", color if number else "")))
    return items


def _rates(view: View) -> list[Text]:
    from rich.text import Text

    values = [
        ("now", f"{view.current:,.0f} rows/s", ""),
        ("mean", f"{view.mean:,.0f}", ""),
        ("peak", f"{view.peak:,.0f}", ""),
        ("memory", size(memory_bytes()), ""),
        ("retries", str(view.retries), "yellow" if view.retries else ""),
        ("failed", str(view.failed), "bold red" if view.failed else ""),
    ]
    if view.limit_seconds >= 1:
        values.append(("waited for limits", duration(view.limit_seconds), "yellow"))
    if view.active is not None:
        values.append(("active", plural(view.active, "worker"), "yellow"))
    return [Text.assemble((f"{name} ", "dim"), (value, style)) for name, value, style in values]


def _flow(items: list[Text], width: int) -> list[Text]:
    """Set items on as few lines as `width` allows, breaking between them only."""
    from rich.text import Text

    lines = [Text()]
    for item in items:
        if lines[-1] and lines[-1].cell_len + 2 + item.cell_len > width:
            lines.append(Text())
        if lines[-1]:
            lines[-1].append("  ")
        lines[-1].append_text(item)
    return lines


def _worker(flight: Flight) -> Text:
    from rich.text import Text

    name = Text(f"{flight.worker:3d}  ", "cyan")
    if flight.chunk is None:
        return name.append("idle", "dim")
    rows = f"{flight.rows:,} rows" if flight.rows else ""
    step = f"{flight.step:<9} {rows:>12}  {duration(flight.since):>6}"
    return name.append(f"chunk {flight.chunk:<5} {step}", "yellow" if flight.step == "waits" else "default")


class LiveProgress:
    """A display that is redrawn in place, for a terminal."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Draw on `stream`, usually stderr, so that stdout stays free for the report."""
        from rich.console import Console

        self._tally = Tally(clock)
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False)
        self._live: Live | None = None
        self._line_widths: list[int] = []

    def __enter__(self) -> Self:
        """Begin to draw, four times a second, in a thread of its own."""
        from rich.live import Live

        self._live = Live(
            console=self._console,
            get_renderable=self._draw,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=self._console.file is sys.stderr,
        )
        with contextlib.suppress(OSError, ValueError):
            self._live.start(refresh=True)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Take the display away and show the cursor; a run that did not end leaves its last numbers."""
        live, self._live = self._live, None
        view = self._tally.view()
        with contextlib.suppress(OSError, ValueError):
            try:
                if live is not None:
                    live.stop()
                if view.started is not None and view.phase != "finished":
                    self._say(status_line(view), "")
            finally:
                self._console.show_cursor()

    def __call__(self, event: object) -> None:
        """Take one event; what a person should read is printed above the display."""
        self._tally(event)
        said = sentence(event)
        # Retries stand in the display as a number and at their worker; a restarting server makes many.
        if said is not None and said[0] != "retry":
            with contextlib.suppress(OSError, ValueError):
                self._say(said[1], {"warning": "yellow", "error": "bold red"}.get(said[0], ""))

    def _draw(self) -> Group:
        """Return the next frame; called just before it replaces the last one."""
        from rich.text import Text

        width = self._console.width
        # A terminal that has become narrower has broken the last frame's lines; rich goes back over as many
        # lines as it wrote, and would leave the others standing.
        broken = sum((line - 1) // width for line in self._line_widths if line > width)
        if broken and self._console.is_terminal:
            self._console.file.write(f"\r\x1b[{broken}A\x1b[J")
        shown = frame(self._tally.view(), width, self._console.height)
        self._line_widths = [line.cell_len for line in shown.renderables if isinstance(line, Text)]
        return shown

    def _say(self, line: str, style: str) -> None:
        from rich.text import Text

        self._console.print(Text(line, style))


class PlainProgress:
    """Lines for a log: one every `interval_seconds`, and one for each event that a person should read.

    Without an interval only warnings, failed chunks and the reason of a stop are left.
    """

    def __init__(
        self, stream: TextIO, *, interval_seconds: float | None = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Write to `stream`, usually stderr."""
        self._stream = stream
        self._interval_seconds = interval_seconds
        self._tally = Tally(clock)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._timer = threading.Thread(target=self._tick, name="keyhaul-progress", daemon=True)

    def __enter__(self) -> Self:
        """Start the timer, if there is an interval."""
        if self._interval_seconds is not None:
            self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End the timer."""
        self._over.set()
        if self._timer.is_alive():
            self._timer.join()

    def __call__(self, event: object) -> None:
        """Take one event."""
        self._tally(event)
        said = sentence(event)
        if said is not None and (self._interval_seconds is not None or said[0] in {"warning", "error"}):
            self._write(said[1])
        if self._interval_seconds is None:
            return
        if isinstance(event, RunStarted):
            so_far = f", resumed: {event.chunks_done:,} of them are done" if event.resumed else ""
            self._write(
                f"run {one_line(event.run_id)}: {one_line(event.job)}, {one_line(event.source)} → "
                f"{one_line(event.target)}, {plural(event.chunks_planned, 'chunk')}{so_far}, "
                f"about {event.estimated_rows:,} rows, {plural(event.workers, 'worker')}"
            )
        elif isinstance(event, RunFinished):
            self._over.set()
            self._write(status_line(self._tally.view()))

    def _tick(self) -> None:
        while not self._over.wait(self._interval_seconds):
            self._write(status_line(self._tally.view()))

    def _write(self, line: str) -> None:
        with self._lock:
            write_line(self._stream, line)


class JsonProgress:
    """One JSON object for each event, a line each, with its name under ``event`` and its moment under ``time``."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`, usually stdout."""
        self._stream = stream
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to end."""

    def __call__(self, event: object) -> None:
        """Write one event and flush."""
        with self._lock, contextlib.suppress(OSError, ValueError):  # of a stream that is gone
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            write_json(self._stream, {"time": at, **as_json(event)})


def make_progress(mode: ProgressMode, *, quiet: bool = False, stdout: TextIO, stderr: TextIO) -> Progress:
    """Return the observer for `mode`.

    ``auto`` and ``live`` draw on a terminal that can move its cursor and are ``plain`` elsewhere. ``json`` goes to
    stdout, everything else to stderr. ``off``, and `quiet` with any mode but ``json``, leave the warnings.
    """
    if mode == "json":
        return JsonProgress(stdout)
    if quiet or mode == "off":
        return PlainProgress(stderr, interval_seconds=None)
    if mode in {"auto", "live"} and can_move_cursor(stderr):
        return LiveProgress(stderr)
    return PlainProgress(stderr)
