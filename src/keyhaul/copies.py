"""Whether a job's dedup can tell copies by their values, settled before the first row moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul import pgtypes
from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config import Dedup, Job
    from keyhaul.model import Column
    from keyhaul.transform import Transform

MANIFOLD_TEXT: Final = frozenset({"numeric", "interval", "citext", "jsonb", "numrange", "nummultirange"})
"""Types, and arrays of them, that travel as text and have several texts for one value: 1.0 and 1.00, 1 mon and
30 days, a and A."""


def check_dedup(job: Job, transform: Transform, sources: Mapping[str, Column]) -> None:
    """Refuse a dedup that could overlook copies, or choose among them by something else than their values.

    Raises:
        ConfigError: it names a column that is not there.
        RefusedError: copies could lie in different chunks, or a column travels as text whose equality or order
            is not the type's.
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
    copied = {column.source for name, column in transform.output.items() if name in dedup.on}
    missing = [key for key in job.key if key not in copied]
    if missing:
        msg = (
            f"dedup on {', '.join(dedup.on)}: the key's column {', '.join(missing)} is not among them, so copies could "
            "lie in different chunks. Cut the chunks by columns of the dedup (--key), or add the key to it"
        )
        raise RefusedError(msg)
    _check_equality(dedup, transform, sources)
    _check_order(dedup, transform, sources)


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
