"""What `etl plan` prints: chunks, rows and bytes expected, the DDL, and the route of each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyhaul.before.outset import empties, lacks_mode
from keyhaul.before.sizing import auto_chunks
from keyhaul.config.parts import AutoChunk
from keyhaul.console import grid, write
from keyhaul.postgres.pgtypes import DIRECT_WIRE
from keyhaul.targets import replace as replacing
from keyhaul.text import size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from rich.console import Console, RenderableType

    from keyhaul.before.incremental import Delta
    from keyhaul.before.prepare import Prepared
    from keyhaul.before.sizing import Sizing
    from keyhaul.fanout.tables import Table
    from keyhaul.model import Chunk, Plan

CHUNKS_SHOWN: Final = 12


def print_plan(prepared: Prepared, plan: Plan, stream: TextIO, delta: Delta | None = None, *, sizing: Sizing) -> None:
    """Print what a run of this job would do; `delta`: what an incremental one reads; `sizing`: the chunks' rows.

    Raises:
        RefusedError: mode replace, and no fresh table can take the target's place.
    """
    swapped = _swapped(prepared)

    def build(_console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        yield from _head(prepared, plan, sizing)
        if delta is not None:
            yield Text(f"  reads  {delta.reads}")
            yield from (Text(f"  note   {warning}") for warning in delta.warnings)
        yield Text("")
        yield from _chunks(prepared, plan)
        yield Text("")
        if prepared.tables:
            for table in prepared.tables:
                yield from _table(table)
            return
        yield from _routes(prepared)
        notes = [column.note for column in prepared.columns if column.note]
        for note in notes:
            yield Text(f"note: {note}")
        yield Text("")
        ddl = prepared.target.ddl
        if swapped:
            yield from map(Text, swapped)
        elif ddl.before:
            yield Text("DDL that would run in the target before the load:")
            yield from (Text(f"{statement};") for statement in ddl.before)
        else:
            yield Text(f"{prepared.target.label} is there; no DDL would run.")
        if ddl.after:
            yield Text("and after it:")
            yield from (Text(f"{statement.sql};") for statement in ddl.after)
        yield from (Text(f"note: {sentence}") for sentence in ddl.left_out)
        if ddl.before and prepared.target.mode == "replace":
            yield Text("note: the table is created empty, with all of this; a fresh one then takes its place")

    write(stream, build)


def _swapped(prepared: Prepared) -> list[str]:
    """Return what mode replace would do with a target that is there; nothing in another case."""
    target = prepared.target
    if target.mode != "replace" or target.ddl.before:
        return []
    last = (
        f"Then it would take the place of {target.label} in one transaction, with its names, grants, comments, "
        "policies and sequences; the old table would be dropped."
    )
    before, after = replacing.preview(prepared.target_conn, target)
    return [
        "A fresh table would be created in the target before the load:",
        *(f"{statement};" for statement in before),
        *(["and completed after it:", *(f"{statement};" for statement in after)] if after else []),
        last,
    ]


def _head(prepared: Prepared, plan: Plan, sizing: Sizing) -> Iterable[RenderableType]:
    from rich.text import Text

    job = prepared.job
    how = "exact boundaries" if plan.exact else "boundaries from a sample"
    about = f"about {size(plan.estimated_bytes)}, " if plan.estimated_bytes else ""
    yield Text(f"Job {job.job}, nothing is moved by this command.", "bold")
    source, target = prepared.places
    yield Text(f"  from   {source}, read with {prepared.reader}")
    yield Text(f"  to     {target}, loaded with {job.target.loader}")
    if isinstance(job.chunk, AutoChunk):
        yield Text(f"  key    {', '.join(job.key)}; {auto_chunks(job.chunk, sizing.chunk_rows)}")
    else:
        yield Text(f"  key    {', '.join(job.key)}; chunks of {sizing.chunk_rows:,} rows")
    if sizing.notice:
        yield Text(f"  note   {sizing.notice}")
    count = len(plan.chunks)
    what = "cuts" if isinstance(job.chunk, AutoChunk) else "chunks"
    yield Text(f"  plan   {count:,} {what}, {plan.estimated_rows:,} rows, {about}{how}")
    if not prepared.source.indexed() and count > 1:
        yield Text("  note   no index leads with the key: each chunk scans the whole source")
    if prepared.target.holds_rows:
        what = ""
        if lacks_mode(prepared):
            what = ": the run empties it first" if empties(prepared) else ": without a mode the run is refused"
        yield Text(f"  note   {prepared.target.label} already holds rows{what}")


def _chunks(prepared: Prepared, plan: Plan) -> Iterable[RenderableType]:
    from rich.text import Text

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


def _table(table: Table) -> Iterable[RenderableType]:
    """Yield one of several tables: its mode, and what each column gets."""
    from rich.text import Text

    entry, target = table.entry, table.target
    mode = target.mode + (f" on {', '.join(target.conflict)}" if target.conflict else "")
    rows = f"a row for each element of {entry.unnest.column}" if entry.unnest else "a row for each record"
    yield Text(f"{target.label}: {mode}, {rows}{f', where {entry.where}' if entry.where else ''}", "bold")
    grid_ = grid([("column", "<"), ("from", "<"), ("target type", "<"), ("route", "<")])
    for column in table.columns:
        value = entry.columns.get(column.name)
        if value is None:
            what = "its sequence"
        elif value.parent:
            what = f"{value.column} of {value.parent}"
        else:
            what = f"uuid of {', '.join(value.uuid)}" if value.uuid else value.expression
        checked = ", each value checked" if column.fits is not None or column.may_fail else ""
        grid_.add_row("", Text(column.name), Text(what), Text(column.target.pg_type), Text(column.wire + checked))
    yield grid_
    yield from (Text(f"note: {column.note}") for column in table.columns if column.note)
    yield Text("  it is there; no DDL would run")
    yield Text("")


def _routes(prepared: Prepared) -> Iterable[RenderableType]:
    from rich.text import Text

    written = {column.name: column for column in prepared.columns}
    table = grid([("column", "<"), ("source type", "<"), ("target type", "<"), ("route", "<")])
    for name, output in prepared.transform.output.items():
        column = written.get(name)
        if column is None:
            table.add_row(
                "", Text(name), Text(prepared.sources[output.source or name].pg_type), "", "generated by the target"
            )
            continue
        origin = output.source
        have = prepared.sources[origin].pg_type if origin else f"computed ({output.dtype})"
        reason = prepared.routes[origin].reason if origin else ""
        route = column.wire if column.wire == DIRECT_WIRE or not reason else f"text: {reason}"
        checked = ", each value checked" if column.fits is not None else ""
        table.add_row("", Text(name), Text(have), Text(column.target.pg_type), Text(route + checked))
    yield table
