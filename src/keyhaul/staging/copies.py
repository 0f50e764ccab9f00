"""Whether a job's dedup can tell copies by their values, settled before the first row moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.config.parts import AutoChunk
from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from keyhaul.config.job import Dedup, Job
    from keyhaul.transform.compiled import OutputColumn, Transform


def check_dedup(job: Job, transform: Transform) -> None:
    """Refuse a dedup that could overlook copies, or choose among them by something else than their values.

    Raises:
        ConfigError: it names a column that is not there.
        RefusedError: a column's equality or order cannot be PostgreSQL's here, or copies could lie in different chunks
            and these are auto.
    """
    dedup = job.dedup
    if dedup is None:
        return
    names = [*dedup.on, *dedup.order_by]
    unknown = [name for name in names if name not in transform.output]
    if unknown:
        msg = (
            f"dedup: no column {', '.join(unknown)} after the transform, expected one of "
            f"{', '.join(transform.output)}. Change --dedup or --order-by"
        )
        raise ConfigError(msg)
    _check_equality(dedup, transform)
    _check_order(dedup, transform)
    _check_chunk(job, transform)


def across_chunks(job: Job, transform: Transform) -> bool:
    """Whether copies could lie in different chunks: the dedup columns do not contain the key."""
    if job.dedup is None:
        return False
    return not _covers_key(job, transform, job.dedup.on)


def _covers_key(job: Job, transform: Transform, names: Collection[str]) -> bool:
    copied = {column.source for name, column in transform.output.items() if name in names}
    return copied.issuperset(job.key)


def check_replay(
    job: Job, transform: Transform, conflict: Collection[str], original: Mapping[str, Any], *, unique: bool
) -> None:
    """Refuse a replay that could load a second copy: it sees its own records, not those that are loaded.

    Args:
        job: validated.
        transform: compiled.
        conflict: the columns of the target's unique index by which rows are the same; empty in mode append.
        original: the identity of the run's job.
        unique: whether no two rows of the source have one key.

    Raises:
        RefusedError: nothing in the target would stop a copy of a row that is there, or the copy would win.
    """
    dedup, given, had = job.dedup, job.identity(), original.get("dedup")
    if had and had != given["dedup"] and not _is_kept_apart(job, conflict, had):
        # Among rows of one key nobody is a copy where a key is there once: such a dedup did nothing.
        idle = unique and original.get("transform") == given["transform"] and _covers_key(job, transform, had["on"])
        if not idle:
            names, now = ", ".join(had["on"]), "another" if dedup else "none"
            flag = ",".join(had["on"])
            msg = (
                f"replay: the run had dedup on {names}, this job has {now}, and copies of rows that are there could be "
                f"loaded. Give the run's flags again (--dedup {flag}…); where copies can have different keys, also "
                f"--mode skip --conflict {flag} (with a unique index on them in the target), or load anew with --fresh"
            )
            raise RefusedError(msg)
    if dedup is None or not across_chunks(job, transform) or _is_kept_apart(job, conflict, given["dedup"]):
        return
    msg = (
        f"replay with dedup on {', '.join(dedup.on)}: copies of the records could be loaded already, and a replay does "
        f"not see them. Give --mode skip --conflict {','.join(dedup.on)} (with a unique index on them in the target), "
        "or load anew with --fresh"
    )
    raise RefusedError(msg)


def _is_kept_apart(job: Job, conflict: Collection[str], dedup: Mapping[str, Any]) -> bool:
    """Whether the target keeps a copy of a row that is there out, by a dedup as an identity has it."""
    newest_wins = dedup["keep"] == "last" and tuple(dedup["order_by"]) == (job.target.newer_by,)
    return bool(conflict) and set(conflict) <= set(dedup["on"]) and (job.target.mode == "skip" or newest_wins)


def _check_chunk(job: Job, transform: Transform) -> None:
    """Refuse an auto chunk for a job whose copies can lie in different chunks.

    Such a run puts down each chunk of its plan, and loads the same chunks once copies are told: one that is merged to
    the pace would have to be the same in both phases and in every sitting.
    """
    if job.dedup is not None and isinstance(job.chunk, AutoChunk) and across_chunks(job, transform):
        msg = (
            f"cut chunks: got auto with dedup on {', '.join(job.dedup.on)}, whose copies can lie in different chunks: "
            "these are put down as they are planned, before any is loaded. Give --chunk N, for example 50000"
        )
        raise RefusedError(msg)


def meant(dedup: Dedup | None, output: Mapping[str, OutputColumn]) -> dict[str, pl.Expr]:
    """Return what stands for the texts of a column where copies are told and put in order, by its name."""
    names = (*dedup.on, *dedup.order_by) if dedup else ()
    return {name: meaning.key(pl.col(name)) for name in names if (meaning := output[name].meaning) is not None}


def meant_type(column: OutputColumn) -> pl.DataType:
    """Return the type of what stands for a column in `meant`."""
    return column.dtype if column.meaning is None else column.meaning.key_type


def _check_equality(dedup: Dedup, transform: Transform) -> None:
    problems = [
        f"dedup on {name}: {meaning.pg_type}: {meaning.why}. {_TOLD.format('Tell copies', name)}"
        for name in dedup.on
        if (meaning := transform.output[name].meaning) is not None and not meaning.equality
    ]
    if problems:
        raise RefusedError("\n".join(problems))


def _check_order(dedup: Dedup, transform: Transform) -> None:
    problems = [
        f"dedup order_by {name}: {meaning.pg_type}: {meaning.why}. {_TOLD.format('Order', name)}"
        for name in dedup.order_by
        if (meaning := transform.output[name].meaning) is not None and not meaning.ordered
    ]
    if problems:
        raise RefusedError("\n".join(problems))


_TOLD: Final = (
    "{0} by another column, by one that the source's query computes, or by the text itself: "
    'transform: - set: {{…: "cast({1} as varchar)"}}'
)
