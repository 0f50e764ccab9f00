"""What `etl plan` prints: chunks, rows and bytes expected, the DDL, and the route of each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyhaul.console import grid, write
from keyhaul.text import size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from rich.console import Console, RenderableType

    from keyhaul.model import Chunk, Plan
    from keyhaul.prepare import Prepared

CHUNKS_SHOWN: Final = 12


def print_plan(prepared: Prepared, plan: Plan, stream: TextIO) -> None:
    """Print what a run of this job would do."""

    def build(_console: Console) -> Iterable[RenderableType]:
        from rich.text import Text  # noqa: PLC0415

        yield from _head(prepared, plan)
        yield Text("")
        yield from _chunks(prepared, plan)
        yield Text("")
        yield from _routes(prepared)
        notes = [column.note for column in prepared.columns if column.note]
        for note in notes:
            yield Text(f"note: {note}")
        yield Text("")
        if prepared.target.ddl:
            yield Text("DDL that would run in the target:")
            for statement in prepared.target.ddl:
                yield Text(f"{statement};")
        else:
            yield Text(f"{prepared.target.label} is there; no DDL would run.")

    write(stream, build)


def _head(prepared: Prepared, plan: Plan) -> Iterable[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    ends, job = prepared.ends, prepared.job
    how = "exact boundaries" if plan.exact else "boundaries from a sample"
    about = f"about {size(plan.estimated_bytes)}, " if plan.estimated_bytes else ""
    yield Text(f"Job {job.job}, nothing is moved by this command.", "bold")
    yield Text(f"  from   {prepared.source.relation.label} in {ends.source.label}, read with {job.source.reader}")
    yield Text(f"  to     {prepared.target.label} in {ends.target.label}, loaded with {job.target.loader}")
    yield Text(f"  key    {', '.join(job.key)}; chunks of {job.chunk:,} rows")
    count = len(plan.chunks)
    yield Text(f"  plan   {count:,} chunks, {plan.estimated_rows:,} rows, {about}{how}")
    if not prepared.source.indexed() and count > 1:
        yield Text("  note   no index leads with the key: each chunk scans the whole source")
    if prepared.target.holds_rows:
        yield Text(f"  note   {prepared.target.label} already holds rows")


def _chunks(prepared: Prepared, plan: Plan) -> Iterable[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    table = grid([("chunk", ">"), ("range", "<"), ("rows", ">")])
    shown = list(plan.chunks)
    if len(shown) > CHUNKS_SHOWN:
        half = CHUNKS_SHOWN // 2
        for chunk in shown[:half]:
            table.add_row("", str(chunk.number), Text(_range(prepared, chunk)), f"{chunk.estimated_rows:,}")
        table.add_row("", "…", Text(f"{len(shown) - 2 * half:,} more"), "")
        shown = shown[-half:]
    for chunk in shown:
        table.add_row("", str(chunk.number), Text(_range(prepared, chunk)), f"{chunk.estimated_rows:,}")
    yield table


def _range(prepared: Prepared, chunk: Chunk) -> str:
    key = ", ".join(prepared.job.key)
    if chunk.kind == "nulls":
        return f"{key} is null"
    lower = "" if chunk.lower is None else ", ".join(chunk.lower)
    upper = "" if chunk.upper is None else ", ".join(chunk.upper)
    return f"[{lower or 'lowest'} … {upper or 'highest'}{')' if upper else ']'}"


def _routes(prepared: Prepared) -> Iterable[RenderableType]:
    from rich.text import Text  # noqa: PLC0415

    written = {column.name: column for column in prepared.columns}
    table = grid([("column", "<"), ("source type", "<"), ("target type", "<"), ("route", "<")])
    for name, output in prepared.transform.output.items():
        column = written[name]
        origin = output.source
        have = prepared.sources[origin].pg_type if origin else f"computed ({output.dtype})"
        reason = prepared.routes[origin].reason if origin else ""
        route = column.wire if column.wire == "direct" or not reason else f"text: {reason}"
        checked = ", each value checked" if column.fits is not None else ""
        table.add_row("", Text(name), Text(have), Text(column.target.pg_type), Text(route + checked))
    yield table
