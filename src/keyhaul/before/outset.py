"""What a run is refused for before it begins, and what a person may not expect of it, told when its plan is made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from keyhaul.before import checksums
from keyhaul.before.prepare import null_conflict
from keyhaul.before.sizing import auto_chunks
from keyhaul.config.parts import AutoChunk
from keyhaul.errors import RefusedError
from keyhaul.targets import postgres
from keyhaul.targets import replace as replacing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyhaul.before.prepare import Prepared
    from keyhaul.before.sizing import Sizing
    from keyhaul.ledger.rows import Unfinished
    from keyhaul.ledger.store import Ledger
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.rowhash import Hashing


def check_given_up(job: str, unfinished: Unfinished | None, table: str) -> None:
    """Refuse to give up a run that loads another table than the new one, which only has the same name.

    Raises:
        RefusedError: it does.
    """
    if unfinished is not None and unfinished.target_table != table:
        msg = (
            f"start job {job}: run {unfinished.run_id} of this name is unfinished and loads {unfinished.target_table}, "
            f"not {table}; --fresh would give it up. Give this job a name of its own (--job NAME)"
        )
        raise RefusedError(msg)


def check_new(prepared: Prepared) -> bool:
    """Refuse what only a new run is refused for; returns whether the target is to be emptied first.

    Raises:
        ConfigError: a checksum is asked for where there can be none.
        RefusedError: the target holds rows and no mode is given (in the embedded warehouse: rows that this job has
            not loaded), or somebody holds what is needed.
    """
    job, target = prepared.job, prepared.target
    prepared.refuse_held()
    if job.checksum:
        checksums.check_checksum(prepared, there=not target.ddl.before)
    held, empty_first = lacks_mode(prepared), empties(prepared)
    if held and not empty_first:
        msg = (
            f"load {target.label}: it already holds rows and no mode is given. Give --mode append to add to "
            "them, skip to keep what is there, upsert to update it; or empty the table "
            "(and give --fresh if a run is unfinished)"
        )
        raise RefusedError(msg)
    return empty_first


def lacks_mode(prepared: Prepared) -> bool:
    """Whether the job's one table holds rows and no mode says what becomes of them."""
    return prepared.target.holds_rows and prepared.job.target.mode is None and not prepared.tables


def empties(prepared: Prepared) -> bool:
    """Whether a new run would empty its table first: in the embedded warehouse, where this job has loaded it."""
    in_warehouse = lacks_mode(prepared) and prepared.ends.embedded_target
    return in_warehouse and prepared.ledger.has_loaded(prepared.target.label)


def check_still_empty(prepared: Prepared) -> None:
    """Refuse a new run without a mode when rows came in since the target was looked at.

    Asked when the run before it is given up, for which its chunks under way were waited for.

    Raises:
        RefusedError: a table that is to be empty holds rows.
    """
    several = [table.target for table in prepared.tables if table.entry.mode is None]
    single = [prepared.target] if prepared.job.target.mode is None and not prepared.tables else []
    for target in [*several, *single]:
        if not target.holds_rows and not target.ddl.before:
            query = sql.SQL("select exists (select from {})").format(target.identifier)
            row = prepared.target_conn.execute(query).fetchone()
            if row and row[0]:
                msg = f"load {target.label}: another process has loaded rows just now. Look at them, and begin anew"
                raise RefusedError(msg)


def check_there(prepared: Prepared, ledger: Ledger, unfinished: Unfinished) -> TargetTable:
    """Return the table that the run has loaded so far, in mode replace with its fresh one.

    Raises:
        RefusedError: it is gone, or empty though the run has loaded rows, or another run has taken these out.
    """
    target = prepared.target
    name, lacks, overtaken = target.label, "not there any more" if target.ddl.before else "", ""
    if not lacks and unfinished.fresh_table:
        name = f"its fresh table {unfinished.fresh_table}"
        found = replacing.leftovers(ledger.connection, [unfinished.fresh_table])
        lacks = "" if found else "not there any more"
        target = replace(target, fresh=replacing.fresh_name(unfinished.run_id))
        target = postgres.with_shape(ledger.connection, target)
    elif not lacks and ledger.totals(unfinished.run_id).counts.loaded:
        lacks = "" if target.holds_rows else "empty"
        run = ledger.replayable(unfinished.run_id)
        overtaken = run.lost if run else ""
    if lacks or overtaken:
        why = f"{name} is {lacks}" if lacks else overtaken
        msg = (
            f"resume run {unfinished.run_id}: {why}, though chunks of this run were loaded into it. "
            "Give --fresh to start a new run"
        )
        raise RefusedError(msg)
    return target


def surprises(
    prepared: Prepared, sizing: Sizing, hashing: Hashing | None, chunks: int, *, emptied: bool
) -> Iterator[tuple[str, Literal["info", "warning"]]]:
    """Yield messages, each with its level.

    Args:
        prepared: as the run begins.
        sizing: what the memory limit makes of the chunks.
        hashing: of a run with checksums.
        chunks: of the plan.
        emptied: whether the embedded target was emptied first.
    """
    job, target = prepared.job, prepared.target
    if sizing.notice:
        yield sizing.notice, "warning"
    if emptied:
        yield f"emptied {target.label} in the embedded warehouse, where this job had loaded it", "info"
    if target.ddl.before:
        yield f"created {target.label}", "info"
    for sentence in (*prepared.source.describe().notes, *_of_targets(prepared)):
        yield sentence, "warning"
    if chunks <= 1:
        return
    if hashing is not None and not hashing.indexed:
        names = ", ".join(column.name for column in hashing.key)
        yield (
            (
                f"no index of {target.label} leads with {names}: the checksum of each of the {chunks} chunks scans it "
                "whole. A primary key or index on the key, or larger chunks, help"
            ),
            "warning",
        )
    if isinstance(job.chunk, AutoChunk):
        yield auto_chunks(job.chunk, sizing.chunk_rows), "info"
    described = prepared.source.describe()
    if not described.indexed:
        yield (
            (
                f"no index of {described.label} leads with {', '.join(job.key)}: "
                f"each of the {chunks} chunks scans it whole. An index on the key, or larger chunks, help"
            ),
            "warning",
        )


def _of_targets(prepared: Prepared) -> Iterator[str]:
    target = prepared.target
    yield from filter(None, map(null_conflict, (target, *target.others)))
    if target.fresh:
        yield from replacing.left_behind(prepared.target_conn, target)
