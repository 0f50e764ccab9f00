"""What `etl plan` prints: chunks, rows and bytes expected, the DDL, and the route of each column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyhaul.console import grid, write
from keyhaul.text import one_line, plural, size

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from rich.console import Console, RenderableType

    from keyhaul.before.preview import Preview, TablePreview
    from keyhaul.model import Chunk

CHUNKS_SHOWN: Final = 12


def print_plan(preview: Preview, stream: TextIO) -> None:
    """Print what a run of a job would do."""

    def build(_console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        yield Text(f"Job {preview.job}, nothing is moved by this command.", "bold")
        yield from map(Text, _head(preview))
        yield Text("")
        yield from _chunks(preview)
        yield Text("")
        yield from _records(preview)
        for table in preview.tables:
            yield from _table(table)

    write(stream, build)


def _head(preview: Preview) -> Iterable[str]:
    plan = preview.plan
    parts = any(chunk.kind == "part" for chunk in plan.chunks)
    how = "exact boundaries" if plan.exact else "estimated from a sample" if parts else "boundaries from a sample"
    about = f"about {size(plan.estimated_bytes)}, " if plan.estimated_bytes else ""
    what = "cuts" if preview.merged else "chunks"
    yield f"  from   {preview.source}, read with {preview.reader}"
    yield f"  to     {preview.target}, loaded with {preview.loader}"
    yield f"  key    {'none, parts of the source' if parts else ', '.join(preview.key)}; {preview.chunking}"
    yield f"  plan   {len(plan.chunks):,} {what}, {plan.estimated_rows:,} rows, {about}{how}"
    if preview.delta is not None:
        yield f"  reads  {preview.delta.reads}"
    yield from (f"  note   {note}" for note in preview.notes)


def _chunks(preview: Preview) -> Iterable[RenderableType]:
    from rich.text import Text

    table = grid([("chunk", ">"), ("range", "<"), ("rows", ">")])
    shown = list(preview.chunks)
    if len(shown) > CHUNKS_SHOWN:
        half = CHUNKS_SHOWN // 2
        for chunk in shown[:half]:
            table.add_row("", str(chunk.number), Text(_range(preview.key, chunk)), f"{chunk.estimated_rows:,}")
        table.add_row("", "…", Text(f"{len(shown) - 2 * half:,} more"), "")
        shown = shown[-half:]
    for chunk in shown:
        table.add_row("", str(chunk.number), Text(_range(preview.key, chunk)), f"{chunk.estimated_rows:,}")
    yield table


VALUE_WIDTH: Final = 32


def _records(preview: Preview) -> Iterable[RenderableType]:
    """Yield the first records, a column each, and what the first part has besides."""
    from rich.text import Text

    if preview.records:
        numbers = [(f"record {number}", "<") for number in range(1, len(preview.records) + 1)]
        table = grid([("column", "<"), *numbers])
        for name in preview.records[0]:
            values = [_value(record[name]) for record in preview.records]
            table.add_row("", Text(name), *(Text(value) for value in values))
        yield table
    for reason, count in preview.rejected.items():
        yield Text(f"{plural(count, 'record')} of the first part would be quarantined: {reason}")
    if preview.records or preview.rejected:
        yield Text("")


def _value(text: str | None) -> str:
    if text is None:
        return "NULL"
    plain = one_line(text)
    return plain if len(plain) <= VALUE_WIDTH else f"{plain[: VALUE_WIDTH - 1]}…"


def _range(key: tuple[str, ...], chunk: Chunk) -> str:
    if chunk.kind == "nulls":
        return f"{', '.join(key)} is null"
    if chunk.kind == "part":
        return f"part {'.'.join(chunk.lower or ())}"
    lower = "" if chunk.lower is None else ", ".join(chunk.lower)
    upper = "" if chunk.upper is None else ", ".join(chunk.upper)
    return f"[{lower or 'lowest'} … {upper or 'highest'}{')' if upper else ']'}"


def _table(table: TablePreview) -> Iterable[RenderableType]:
    """Yield a table: what each column gets, notes, and the statements that would run."""
    from rich.text import Text

    if table.rows:
        yield Text(f"{table.label}: {table.rows}", "bold")
    made = "from" if table.rows else "source type"
    columns = grid([("column", "<"), (made, "<"), ("target type", "<"), ("route", "<")])
    for column in table.columns:
        columns.add_row("", Text(column.name), Text(column.origin), Text(column.pg_type), Text(column.route))
    yield columns
    yield from (Text(f"note: {note}") for note in table.notes)
    yield Text("")
    if table.replaced:
        yield Text("A fresh table would be created in the target before the load:")
    elif table.before:
        yield Text("DDL that would run in the target before the load:")
    else:
        yield Text(f"{table.label} is there; no DDL would run.")
    yield from (Text(f"{statement};") for statement in table.before)
    if table.after:
        yield Text("and completed after it:" if table.replaced else "and after it:")
        yield from (Text(f"{statement};") for statement in table.after)
    if table.replaced:
        yield Text(
            f"Then it would take the place of {table.label} in one transaction, with its names, grants, comments, "
            "policies and sequences; the old table would be dropped."
        )
    if table.rows:
        yield Text("")
