"""One chunk's records into the rows of several tables, whole columns at a time; nothing is written here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from keyhaul.fanout.nameduuid import named_uuids
from keyhaul.fanout.unnest import unnest_rows
from keyhaul.model import RECORD
from keyhaul.staging.rules import locked_down
from keyhaul.targets.records import merge_rejected
from keyhaul.transform.mapping import split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.fanout.tables import Table
    from keyhaul.model import Staged
    from keyhaul.targets.sheets import Sheet


class Spreader:
    """The rows of one worker's chunks; has a DuckDB connection of its own, as a stager has."""

    def __init__(self) -> None:
        """Open the worker's own database in memory and lock it down."""
        self._con = locked_down()

    def close(self) -> None:
        """Free the database."""
        self._con.close()

    def spread(self, staged: Staged, tables: Sequence[Table]) -> tuple[Staged, tuple[Sheet, ...]]:
        """Turn the accepted records into rows.

        Args:
            staged: what the stage left.
            tables: of the job, with the mapping of this chunk.

        Returns:
            What is staged now: a record that fails in one table is rejected whole, one without a row in any
            table is filtered; and the rows of each table, in its order.

        Raises:
            ChunkError: expressions fail for too many rows.
        """
        frames, rejected = [], []
        for table in tables:
            frame, parts = self._rows(staged.accepted, table)
            label = table.target.label
            frames.append(frame)
            rejected += [part.with_columns(pl.format(f"{label}: {{}}", "message")) for part in parts]
        bad = merge_rejected(rejected)
        out = bad[RECORD].implode()
        frames = [frame.filter(~pl.col(RECORD).is_in(out)) for frame in frames] if bad.height else frames
        kept = pl.concat([frame[RECORD] for frame in frames]).unique()
        accepted = staged.accepted.filter(pl.col(RECORD).is_in(kept.implode()))
        counts = replace(
            staged.counts,
            filtered=staged.counts.filtered + staged.accepted.height - bad.height - accepted.height,
            quarantined=staged.counts.quarantined + bad.height,
        )
        whole = pl.concat([staged.rejected, staged.describe(bad)])
        sheets = tuple(table.sheet(frame) for table, frame in zip(tables, frames, strict=True))
        return replace(staged, accepted=accepted, rejected=whole, counts=counts), sheets

    def _rows(self, records: pl.DataFrame, table: Table) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
        """Return the table's rows, and the rejected records as `RECORD`, ``stage``, ``rules``, ``message``."""
        rejected = []
        frame = records
        if table.entry.unnest is not None:
            frame, broken = unnest_rows(self._con, records, table.entry.unnest)
            rule = pl.lit(table.entry.unnest.rule)
            rejected.append(broken.with_columns(stage=pl.lit("transform"), rules=pl.concat_list(rule)))
        made = [named_uuids(self._con, frame, columns).alias(name) for name, columns in table.named.items()]
        frame, failed = table.transform.apply(frame.with_columns(made) if made else frame)
        rejected.append(failed.with_columns(stage=pl.lit("transform"), rules=pl.concat_list("rule")))
        own = table.own_columns
        frame, misfits = split(frame.select(RECORD, *(column.name for column in own)), own)
        rejected.append(misfits.with_columns(stage=pl.lit("type")))
        return frame, [part.select(RECORD, "stage", "rules", "message") for part in rejected]
