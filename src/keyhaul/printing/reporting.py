"""The report at the end of a run, and the parts of it that looking back prints too: balance and reasons."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, TextIO

from keyhaul.console import grid, write
from keyhaul.errors import HOPELESS
from keyhaul.memory import peak_memory_bytes
from keyhaul.model import FATES, TERMS
from keyhaul.printing.bottleneck import Measured, bottleneck
from keyhaul.text import duration, one_line, per_second, plural, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import Console, RenderableType

    from keyhaul.model import Counts, Report, TableCounts

FAILURES_SHOWN = 5
REASONS_SHOWN = 10


def balance(counts: Counts) -> Iterable[RenderableType]:
    """Yield the balance: a line for each term, and whether they add up."""
    from rich.padding import Padding
    from rich.text import Text

    table = grid(columns="<>")
    for name in ("read", *TERMS):
        number: int = getattr(counts, name)
        style = "bold" if name == "read" else "yellow" if name == "quarantined" and number else ""
        table.add_row("", Text(name, style), Text(f"{number:,}", style))
        if name == "loaded" and counts.updated:
            table.add_row("", Text("  inserted"), Text(f"{counts.inserted:,}"))
            table.add_row("", Text("  updated"), Text(f"{counts.updated:,}"))
    yield table
    if counts.balanced:
        text = Text(f"✓ balanced: read = {' + '.join(TERMS)}", "green")
        yield Padding(text, (0, 0, 0, 2))
    else:
        yield Text(f"  ✗ not balanced: {counts.unaccounted:+,} rows read are not accounted for", "bold red")


def by_table(tables: Sequence[TableCounts]) -> Iterable[RenderableType]:
    """Yield the rows of each table, of a job with several; nothing for others."""
    from rich.text import Text

    if not tables:
        return
    yield ""
    yield "  The balance counts records. Rows by table:"
    table = grid([("table", "<"), *((fate, ">") for fate in FATES)])
    for one in tables:
        table.add_row("", Text(one_line(one.table)), *(f"{getattr(one, fate):,}" for fate in FATES))
    yield table


def headline(report: Report) -> str:
    """Return the one sentence that says how the run ended."""
    head = f"Run {report.run_id} "
    if report.outcome == "done":
        counts = report.counts
        rows = f"{counts.read:,}" if counts.loaded == counts.read else f"{counts.loaded:,} of {counts.read:,}"
        target = f" → {report.target_table}" if report.target_table else ""
        rate = per_second(report.sitting.read, report.seconds)
        head += f"done: {rows} rows of {report.job}{target} in {duration(report.seconds)} ({rate:,.0f} rows/s)"
        if report.resumed:
            head += f"; this sitting read {report.sitting.read:,}"
        return one_line(head)
    word: str = report.outcome
    if report.signal:
        word += f" by {_signal_name(report.signal)}"
    head += f"{word} after {report.chunks_done:,} of {plural(report.chunks_planned, 'chunk')} of {report.job}"
    head += f", {report.counts.loaded:,} rows loaded, {duration(report.seconds)}"
    return one_line(head + (f": {report.stop_reason}" if report.stop_reason else ""))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def print_report(
    report: Report,
    stream: TextIO,
    *,
    resume_command: str = "",
    replay_command: str = "",
    look_back_options: str = "",
    quiet: bool = False,
) -> None:
    """Print the end of a run for a person.

    Args:
        report: what the ledger says.
        stream: usually stdout.
        resume_command: the command line that continues this run; printed if something is left to do.
        replay_command: the one that sends quarantined records again; printed after a run that is done and has some.
        look_back_options: appended to ``etl show`` and ``etl quarantine``, for example a ``--target``.
            The caller leaves passwords out.
        quiet: print only if the run did not get to its end, and then only the reason and the next command.
    """
    if quiet and report.outcome == "done" and not report.failed:
        return

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        color = "green" if report.outcome == "done" and report.counts.balanced and not report.broken else "yellow"
        yield Text(headline(report), f"bold {color}")
        if not quiet:
            yield ""
            yield from balance(report.counts)
            yield from by_table(report.tables)
            yield ""
            yield from _facts(report)
        yield from _failures(report)
        if not quiet:
            total = report.counts.quarantined
            yield from reasons(f"Quarantined by reason ({plural(total, 'record')})", report.quarantined_by_reason)
            yield from reasons("Warnings of rules (these rows are loaded)", report.warned)
            yield from _run_checks(report)
        yield from _next(report, resume_command, replay_command, look_back_options, console)

    write(stream, build)


def _facts(report: Report) -> Iterable[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    table = grid(columns="<<")
    chunks = f"{report.chunks_done:,} of {report.chunks_planned:,} done"
    if report.failed:
        chunks += f", {len(report.failed):,} failed"
    table.add_row("", "chunks", f"{chunks}, {plural(report.workers, 'worker')}")
    if report.late_passes:
        passes = plural(report.late_passes, "pass", "passes")
        table.add_row("", "late rows", f"{report.late_rows:,} that waited for a later chunk's, in {passes}")
    times = report.timings
    steps = times.by_step()
    total = sum(steps.values())
    # One line for each step: four on one line are longer than 80 columns.
    for name, seconds in steps.items():
        share = 100 * seconds / total if total > 0 else 0.0
        table.add_row("", name, f"{duration(seconds):>8}  {share:3.0f} %")
    if report.held:
        table.add_row("", "limits", f"waited {_told_held(report)}")
    if 0 < report.fewest_workers < report.workers:
        table.add_row("", "cpu_limit", f"{plural(report.fewest_workers, 'active worker')} at the least")
    peak = peak_memory_bytes()
    if peak is not None:
        table.add_row("", "memory", f"{size(peak)} at most")
    yield table
    yield "  (seconds of each step are summed over the workers)"
    if report.workers_reason:
        yield Padding(Text(f"{report.workers_reason}."), (0, 0, 0, 2))
    measured = Measured(
        timings=times,
        chunks=report.chunks_timed,
        workers=report.workers,
        cores=os.cpu_count(),
        held=report.held,
        chosen=bool(report.workers_reason),
    )
    yield from told_bottleneck(measured)


def _told_held(report: Report) -> str:
    waits = sorted(report.held.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{duration(seconds)} for {limit}" for limit, seconds in waits)


def told_bottleneck(measured: Measured) -> Iterable[RenderableType]:
    """Yield what held a run up and which setting may help; nothing when too little was measured."""
    from rich.padding import Padding
    from rich.text import Text

    sentences = bottleneck(measured)
    if sentences:
        yield ""
    for sentence in sentences:
        yield Padding(Text(f"{sentence}."), (0, 0, 0, 2))


def _failures(report: Report) -> Iterable[RenderableType]:
    from rich.text import Text

    if not report.failed:
        return
    yield ""
    yield Text("Failed chunks", "bold red")
    for failure in report.failed[:FAILURES_SHOWN]:
        tries = plural(failure.attempts, "try", "tries")
        yield Text(f"  chunk {failure.chunk} after {tries}: {one_line(failure.error)}")
    more = len(report.failed) - FAILURES_SHOWN
    if more > 0:
        yield f"  and {more:,} more"


def reasons(title: str, counted: Mapping[str, int]) -> Iterable[RenderableType]:
    """Yield a title and the largest of the counted reasons; nothing if there are none."""
    from rich.text import Text

    if not counted:
        return
    yield ""
    yield Text(title, "bold yellow")
    table = grid(columns="><")
    for reason, number in list(counted.items())[:REASONS_SHOWN]:
        table.add_row("", f"{number:,}", Text(one_line(reason)))
    yield table
    more = len(counted) - REASONS_SHOWN
    if more > 0:
        yield f"  and {plural(more, 'more reason')}"


def _run_checks(report: Report) -> Iterable[RenderableType]:
    from rich.text import Text

    if not report.run_checks:
        return
    yield ""
    what = "the rows stay loaded" if report.outcome == "done" else "the target stays as it was"
    yield Text(f"Rules across the run ({what})", "bold")
    for check in report.run_checks:
        if check.passed:
            yield Text(f"  ✓ {one_line(check.name)}", "green")
        else:
            color = "bold red" if check.on_fail == "error" else "yellow"
            yield Text(f"  ✗ {one_line(f'{check.name}: {check.message}')}", color)


def _next(
    report: Report, resume_command: str, replay_command: str, options: str, console: Console
) -> Iterable[RenderableType]:
    from rich.text import Text

    options = f" {options}" if options else ""
    steps: list[tuple[str, str]] = []
    if report.outcome != "done" and resume_command:
        left = max(report.chunks_planned - report.chunks_done, 0)
        purpose = f"goes on with {plural(left, 'chunk')} left" if left else "goes on"
        if any(HOPELESS in one.error for one in report.failed):
            purpose += ", when what failed is mended"
        steps.append((resume_command, purpose if report.resumable else "starts a new run"))
    if report.counts.quarantined:
        steps.append((f"etl quarantine {report.run_id}{options}", "shows what was rejected, and why"))
        if report.outcome == "done" and not report.broken and replay_command:
            steps.append((replay_command, "sends it again when it is mended"))
    if len(steps) < 2:  # noqa: PLR2004 - one or two commands, never a list
        steps.append((f"etl show {report.run_id}{options}", "shows every chunk"))
    yield ""
    for position, (command, purpose) in enumerate(steps):
        line = Text("Next: " if position == 0 else "      ", "bold")
        line.append(one_line(command), "cyan")
        # A command that a person will copy must not be broken by what is said about it.
        if line.cell_len + len(purpose) + 4 <= console.width:
            line.append(f"  # {purpose}", "dim")
        yield line
