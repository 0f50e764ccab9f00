"""Whether a job's dedup can tell copies by their values, settled before the first row moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.config.parts import AutoChunk
from keyhaul.errors import ConfigError, RefusedError
from keyhaul.postgres import pgtypes

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from keyhaul.config.job import Dedup, Job
    from keyhaul.model import Column
    from keyhaul.transform.compiled import Transform

MANIFOLD_TEXT: Final = frozenset({"numeric", "interval", "citext", "jsonb", "numrange", "nummultirange"})
"""Types, and arrays of them, that travel as text and have several texts for one value: 1.0 and 1.00, 1 mon and
30 days, a and A."""


def check_dedup(job: Job, transform: Transform, sources: Mapping[str, Column]) -> None:
    """Refuse a dedup that could overlook copies, or choose among them by something else than their values.

    Raises:
        ConfigError: it names a column that is not there.
        RefusedError: a column travels as text whose equality or order is not the type's, or copies could lie in
            different chunks and these are auto.
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
    _check_equality(dedup, transform, sources)
    _check_order(dedup, transform, sources)
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


def _check_equality(dedup: Dedup, transform: Transform, sources: Mapping[str, Column]) -> None:
    manifold = [
        f"{name} {sources[origin].pg_type}"
        for name in dedup.on
        if (origin := transform.output[name].source)
        and isinstance(transform.output[name].dtype, pl.String)
        and sources[origin].base_type.lstrip("_") in MANIFOLD_TEXT
    ]
    if manifold:
        msg = (
            f"dedup on {', '.join(manifold)}: equal values have different texts there (1.0 and 1.00), and the column "
            'travels as text. Cast it to one form first: transform: - set: {…: "cast(… as decimal(38, 6))"}'
        )
        raise RefusedError(msg)


def _check_order(dedup: Dedup, transform: Transform, sources: Mapping[str, Column]) -> None:
    blind = [
        name
        for name in dedup.order_by
        if (origin := transform.output[name].source)
        and pgtypes.route(sources[origin]).kind == "text"
        and sources[origin].base_type != "citext"
    ]
    if blind:
        types = ", ".join(sources[name].pg_type for name in blind if name in sources)
        msg = (
            f"dedup order_by {', '.join(blind)}: {types} travels as text, whose order is not the type's. "
            'Order by another column, or cast it: transform: - set: {…: "cast(… as …)"}'
        )
        raise RefusedError(msg)
