"""What a run of a job would do now: one frozen value, which `etl plan` prints and `keyhaul.plan` returns."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul import events
from keyhaul.before.checksums import check_checksum
from keyhaul.before.incremental import check_full, find_delta, increments_of
from keyhaul.before.outset import empties, lacks_mode
from keyhaul.before.prepare import FILLED, null_conflict, prepare
from keyhaul.before.sizing import auto_chunks, size_up
from keyhaul.config.parts import AutoChunk
from keyhaul.model import RECORD
from keyhaul.postgres.pgtypes import DIRECT_WIRE
from keyhaul.sessions.connecting import find_ends
from keyhaul.targets import replace as replacing
from keyhaul.targets.postgres import rehearse_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyhaul.before.incremental import Delta
    from keyhaul.before.prepare import Prepared
    from keyhaul.before.sizing import Sizing
    from keyhaul.config.job import Job
    from keyhaul.fanout.tables import Table
    from keyhaul.model import Chunk, Observer, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPreview:
    """A column that a table gets.

    Attributes:
        origin: the source's type, what it is computed from, or which sequence gives it.
        pg_type: in the target; empty where the target generates it.
        route: how its values travel.
    """

    name: str
    origin: str
    pg_type: str
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePreview:
    """A table that is loaded.

    Attributes:
        rows: of one of several tables: its mode, and which rows it gets.
        before, after: statements that would run before the load and after it; none for a table that stays as it is.
        replaced: whether they create a fresh table, which then takes the place of the one that is there.
        notes: sentences on its columns, and on what of the source's definition is left out.
    """

    label: str
    rows: str = ""
    columns: tuple[ColumnPreview, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    replaced: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a run would do.

    Attributes:
        job: its name.
        source, target: what is read and what is loaded, with the databases.
        reader, loader: the libraries that read and write.
        key: columns that the chunks are cut by.
        chunking: how many rows a chunk has, in words.
        merged: whether the plan's chunks are cuts that are merged when they are moved.
        plan: the chunks; of an incremental run, of the rows that it reads.
        delta: what an incremental run reads; None when the job is not incremental.
        notes: sentences on what a person may not expect.
        tables: that are loaded, in their order.
        records: of files, the first three as the transform leaves them: column → text, None for NULL. Empty for a
            database, whose rows a person can ask for.
        rejected: of the records of the first part, those that the source cannot give: reason → how many.
    """

    job: str
    source: str
    target: str
    reader: str
    loader: str
    key: tuple[str, ...]
    chunking: str
    merged: bool
    plan: Plan
    delta: Delta | None
    notes: tuple[str, ...]
    tables: tuple[TablePreview, ...]
    records: tuple[Mapping[str, str | None], ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The plan's chunks."""
        return self.plan.chunks


def preview(job: Job, observe: Observer | None = None, *, full: bool = False) -> Preview:
    """Return what a run of this job would do now. Moves and writes nothing.

    Args:
        job: validated.
        observe: called with what a person should know, such as that the embedded source was filled.
        full: of an incremental job: as if all rows were read.

    Raises:
        ConfigError: the job or the databases do not fit.
        RefusedError: a column, a table or what an incremental run would begin at is refused.
    """
    check_full(job, full=full)
    ends = find_ends(job)
    if ends.filled and observe is not None:
        observe(events.Notice(message=FILLED))
    with prepare(job, ends, files="all" if full else "new") as prepared:
        source, target = prepared.source, prepared.target
        if job.checksum:
            check_checksum(prepared, there=not target.ddl.before)
        delta = find_delta(job, source, target, prepared.ledger, full=full)
        if delta is not None:
            increments_of(source).limit(delta.column, delta.since)
        sizing = size_up(prepared)
        plan = source.plan(sizing.chunk_rows)
        merged = isinstance(job.chunk, AutoChunk)
        records, rejected = _first_records(prepared, plan)
        return Preview(
            job=job.job,
            source=prepared.places[0],
            target=prepared.places[1],
            reader=prepared.reader,
            loader="relay (COPY of the CSV as it stands)"
            if prepared.relays and source.abilities.relays
            else job.target.loader,
            key=job.key,
            chunking=auto_chunks(job.chunk, sizing.chunk_rows)
            if isinstance(job.chunk, AutoChunk)
            else f"chunks of {sizing.chunk_rows:,} rows",
            merged=merged,
            plan=plan,
            delta=delta,
            notes=(*_notes(prepared, plan, sizing), *(delta.warnings if delta is not None else ())),
            tables=tuple(map(_one_of_several, prepared.tables)) or (_table(prepared),),
            records=records,
            rejected=rejected,
        )


RECORDS_SHOWN: Final = 3


def _first_records(prepared: Prepared, plan: Plan) -> tuple[tuple[Mapping[str, str | None], ...], Mapping[str, int]]:
    """Read the first part of files; returns the first records after the transform, and how many are rejected, why."""
    if not prepared.source.describe().own or not plan.chunks:
        return (), {}
    with closing(prepared.source.open(1, prepared.read_columns)) as reader:
        read = reader.read(plan.chunks[0])
    numbered = read.frame.with_row_index(RECORD).with_columns(pl.col(RECORD).cast(pl.Int64))
    frame, failed = prepared.transform.apply(numbered)
    shown = frame.head(RECORDS_SHOWN).select(list(prepared.transform.output))
    texts = shown.select(_text(name, dtype) for name, dtype in shown.schema.items())
    rejected = dict(read.rejected["reason"].value_counts(sort=True).iter_rows())
    return tuple(texts.iter_rows(named=True)), rejected | ({"transform": failed.height} if failed.height else {})


def _text(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return (pl.lit("\\x") + column.bin.encode("hex") if dtype == pl.Binary else column.cast(pl.String)).alias(name)


def _notes(prepared: Prepared, plan: Plan, sizing: Sizing) -> Iterator[str]:
    if sizing.notice:
        yield sizing.notice
    described = prepared.source.describe()
    if not described.database:  # a PostgreSQL source has one snapshot, as the guarantees say
        yield f"one moment: {described.moment}"
    yield from filter(None, [described.news])
    yield from described.notes
    yield from (f"column {name}: {why}" for name, why in described.evidence.items())
    if not described.indexed and len(plan.chunks) > 1:
        yield "no index leads with the key: each chunk scans the whole source"
    yield from filter(None, map(null_conflict, (prepared.target, *prepared.target.others)))
    if prepared.target.holds_rows:
        what = ""
        if lacks_mode(prepared):
            what = ": the run empties it first" if empties(prepared) else ": without a mode the run is refused"
        yield f"{prepared.target.label} already holds rows{what}"


def _table(prepared: Prepared) -> TablePreview:
    """Describe the job's one table.

    Raises:
        RefusedError: mode replace, and no fresh table can take the target's place; or what creates or completes a new
            table does not get past the server.
    """
    target, ddl = prepared.target, prepared.target.ddl
    notes = [column.note for column in prepared.columns if column.note]
    replaced = target.mode == "replace" and not ddl.before
    if replaced:
        before, after, more = replacing.preview(prepared.target_conn, target)
        notes += more
    else:
        before, after = list(ddl.before), [statement.sql for statement in ddl.after]
        notes += [*ddl.left_out, *filter(None, [rehearse_all(prepared.target_conn, target)])]
        if ddl.before and target.mode == "replace":
            notes.append("the table is created empty, with all of this; a fresh one then takes its place")
    return TablePreview(
        label=target.label,
        columns=tuple(_columns(prepared)),
        before=tuple(before),
        after=tuple(after),
        replaced=replaced,
        notes=tuple(notes),
    )


def _columns(prepared: Prepared) -> Iterator[ColumnPreview]:
    written = {column.name: column for column in prepared.columns}
    for name, output in prepared.transform.output.items():
        column, origin = written.get(name), output.source
        if column is None:
            made = prepared.sources[origin or name].pg_type
            yield ColumnPreview(name=name, origin=made, pg_type="", route="generated by the target")
            continue
        reason = prepared.routes[origin].reason if origin else ""
        route = column.wire if column.wire == DIRECT_WIRE or not reason else f"text: {reason}"
        yield ColumnPreview(
            name=name,
            origin=prepared.sources[origin].pg_type if origin else f"computed ({output.dtype})",
            pg_type=column.target.pg_type,
            route=route + (", each value checked" if column.fits is not None else ""),
        )


def _one_of_several(table: Table) -> TablePreview:
    """Describe one of several tables: its mode, and what each column gets."""
    entry, target = table.entry, table.target
    mode = target.mode + (f" on {', '.join(target.conflict)}" if target.conflict else "")
    rows = f"a row for each element of {entry.unnest.column}" if entry.unnest else "a row for each record"
    columns = []
    for column in table.columns:
        value = entry.columns.get(column.name)
        if value is None:
            origin = "its sequence"
        elif value.parent:
            origin = f"{value.column} of {value.parent}"
        else:
            origin = f"uuid of {', '.join(value.uuid)}" if value.uuid else value.expression
        checked = ", each value checked" if column.fits is not None or column.may_fail else ""
        columns.append(
            ColumnPreview(name=column.name, origin=origin, pg_type=column.target.pg_type, route=column.wire + checked)
        )
    return TablePreview(
        label=target.label,
        rows=f"{mode}, {rows}{f', where {entry.where}' if entry.where else ''}",
        columns=tuple(columns),
        notes=tuple(column.note for column in table.columns if column.note),
    )
