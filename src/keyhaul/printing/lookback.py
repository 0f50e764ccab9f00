"""What `etl runs` and `etl show` print of past runs and their chunks."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, TextIO

from keyhaul.console import fitted, grid, write
from keyhaul.printing.bottleneck import Measured
from keyhaul.printing.reporting import balance, by_table, told_bottleneck
from keyhaul.text import duration, one_line, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console, RenderableType
    from rich.table import Table

    from keyhaul.ledger.reading import ChunkRow, RunDetail, RunRow

_STATE_STYLES = {"done": "green", "running": "cyan", "stopped": "yellow", "interrupted": "yellow", "failed": "red"}


def print_runs(runs: Sequence[RunRow], stream: TextIO) -> None:
    """Print past runs, one line each; a narrow terminal gets fewer columns."""

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        columns = {
            "run": ("<", [Text(one_line(r.run_id)) for r in runs]),
            "job": ("<", [Text(one_line(r.job)) for r in runs]),
            "started (UTC)": ("<", [Text(r.started_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")) for r in runs]),
            "status": ("<", [Text(r.state, _STATE_STYLES.get(r.state, "dim")) for r in runs]),
            "loaded": (">", [Text(f"{r.counts.loaded:,}") for r in runs]),
            "quarantined": (">", [Text(f"{r.counts.quarantined:,}", _mark(r.counts.quarantined)) for r in runs]),
            "unresolved": (">", [Text(f"{r.rows_unresolved:,}", _mark(r.rows_unresolved)) for r in runs]),
            "seconds": (">", [Text(f"{r.seconds:,.1f}") for r in runs]),
            "rows/s": (">", [Text(f"{r.rows_per_second:,.0f}") for r in runs]),
        }
        # The run's name begins with its start.
        expendable = ("started (UTC)", "seconds", "rows/s", "quarantined", "job", "unresolved", "loaded")
        yield fitted(console, columns, expendable) if runs else "no run is recorded"

    write(stream, build)


def _mark(number: int) -> str:
    return "yellow" if number else ""


def print_run(detail: RunDetail, stream: TextIO, *, all_command: str = "") -> None:
    """Print one run: its head, its balance and its chunks.

    Args:
        detail: from `show_run`.
        stream: usually stdout.
        all_command: what shows every chunk; by default ``etl show RUN --all``.
    """
    run = detail.run

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        yield Text.assemble((f"Run {one_line(run.run_id)} ", "bold"), (run.state, _STATE_STYLES.get(run.state, "")))
        yield from _facts(run)
        yield ""
        yield from balance(run.counts)
        yield from by_table(detail.tables)
        # Where it ran is another machine, as far as the ledger's reader knows: nothing is said of its cores.
        held = {name: limit["waited_seconds"] for name, limit in run.limits.items()}
        yield from told_bottleneck(
            Measured(timings=run.timings, chunks=run.chunks_done, workers=run.workers, held=held)
        )
        yield ""
        yield _chunks_table(detail.chunks, console)
        if len(detail.chunks) < run.chunks_planned:
            command = all_command or f"etl show {run.run_id} --all"
            yield f"  {len(detail.chunks):,} of {run.chunks_planned:,} chunks: the slowest, the failed and the retried."
            yield Text(f"  All: {one_line(command)}")
        for chunk in detail.chunks:
            if chunk.error:
                tries = plural(chunk.attempts, "try", "tries")
                yield Text(f"  chunk {chunk.chunk} {chunk.status} after {tries}: {one_line(chunk.error)}", "red")

    write(stream, build)


def _facts(run: RunRow) -> Iterable[RenderableType]:
    from rich.text import Text

    ended = f", ended {run.ended_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if run.ended_at else ""
    failed = f", {run.chunks_failed:,} failed" if run.chunks_failed else ""
    chunks = "chunks merged from cuts" if run.auto else "chunks"
    shown = run.shown()
    facts = {
        **{name: shown.pop(name) for name in ("job", "source", "target")},
        "key": f"{', '.join(run.key)} in {chunks} of {run.chunk_rows:,} rows",
        "chunks": f"{run.chunks_done:,} of {run.chunks_planned:,} done{failed}",
        "started": f"{run.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}{ended} (UTC)",
        "time": f"{duration(run.seconds)} in {plural(run.sittings, 'sitting')}, {plural(run.workers, 'worker')}, "
        f"{run.rows_per_second:,.0f} rows/s",
        "process": f"{run.pid} on {run.host}, keyhaul {run.version}",
    }
    if run.incremental:
        facts["reads"] = "all rows" if run.since is None else f"rows with {run.incremental} >= {run.since}"
        counts = "" if run.status == "done" else ", not counted before the run is done"
        facts["watermark"] = "none, no row has a value" if run.watermark is None else f"{run.watermark}{counts}"
    for name, limit in run.limits.items():
        did = [limit["effect"]] if limit["effect"] else []
        did += [f"workers waited {duration(limit['waited_seconds'])} for it"] if limit["waited_seconds"] else []
        if did:
            facts[name] = f"{limit['setting']}: {'; '.join(did)}"
    for check in run.run_checks:
        word = "passed" if check["passed"] else f"failed ({check['on_fail']}): {check['message']}"
        facts[f"rule {check['name']}"] = word
    if run.rows_resolved:
        left = f"quarantined records; {run.rows_unresolved:,} are left"
        facts["resolved"] = f"{run.rows_resolved:,} of {run.counts.quarantined:,} {left}"
    facts |= shown
    table = grid(columns="<<")
    for name, value in facts.items():
        table.add_row("", Text(name, "dim"), Text(one_line(value), overflow="fold", no_wrap=False))
    table.columns[2].no_wrap, table.columns[2].overflow = False, "fold"
    yield table


def _chunks_table(chunks: Sequence[ChunkRow], console: Console) -> Table:
    from rich.text import Text

    place = "records" if any(c.kind == "part" for c in chunks) else "keys"
    columns = {
        "chunk": (">", [Text(str(c.chunk)) for c in chunks]),
        place: ("<", [Text(c.range) for c in chunks]),
        "status": ("<", [Text(c.status, _STATE_STYLES.get(c.status, "dim")) for c in chunks]),
        "rows": (">", [Text(f"{c.counts.read:,}") for c in chunks]),
        "read s": (">", [Text(f"{c.timings.read_seconds:.2f}") for c in chunks]),
        "transf.": (">", [Text(f"{c.timings.transform_seconds:.2f}") for c in chunks]),
        "stage": (">", [Text(f"{c.timings.stage_seconds:.2f}") for c in chunks]),
        "load": (">", [Text(f"{c.timings.load_seconds:.2f}") for c in chunks]),
        "wait": (">", [Text(f"{c.timings.wait_seconds:.2f}") for c in chunks]),
        "tries": (">", [Text(str(c.attempts), _mark(c.attempts > 1)) for c in chunks]),
        "worker": (">", [Text("" if c.worker is None else str(c.worker)) for c in chunks]),
    }
    # A range of uuids is 76 columns long: the numbers come first, and a pipe gets it whole.
    for cell in columns[place][1]:
        cell.truncate(max(console.width - 66, 14), overflow="ellipsis")
    return fitted(console, columns, ("worker", "wait", "transf.", "stage", "read s", "load", "status", "rows"))
