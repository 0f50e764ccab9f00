"""Records that a source could not give in its own types: counted as read, and quarantined with stage ``read``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.model import RECORD, Counts
from keyhaul.redaction import hide
from keyhaul.staging.stage import REJECTED

if TYPE_CHECKING:
    from keyhaul.model import Staged


def with_unread(staged: Staged, unread: pl.DataFrame, first: int) -> Staged:
    """Return what a chunk became, with the records that its source rejected.

    Args:
        staged: the other records.
        unread: as `sources.source.REJECTED_BY_SOURCE`.
        first: the ordinal of the first of them: they stand behind the others.
    """
    if not unread.height:
        return staged
    records = unread.with_row_index(RECORD, offset=first)
    # One row for each faulty record, of which there are few: JSON is put together in Python.
    data = [
        json.dumps({"place": place, "raw": raw}, ensure_ascii=False)
        for place, raw in unread.select("place", "raw").iter_rows()
    ]
    rejected = records.select(
        pl.col(RECORD),
        stage=pl.lit("read"),
        rules=pl.concat_list("reason"),
        message=pl.col("message").map_elements(hide, pl.String),
        key=pl.col("key"),
        data=pl.Series(data, dtype=pl.String),
    ).select(pl.col(name).cast(dtype) for name, dtype in REJECTED.items())
    return replace(
        staged,
        rejected=pl.concat([rejected, staged.rejected]).sort(RECORD),
        counts=staged.counts + Counts(read=unread.height, quarantined=unread.height),
    )
