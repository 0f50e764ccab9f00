from __future__ import annotations

import json

import polars as pl

from keyhaul.model import RECORD, Counts, Staged
from keyhaul.sources.source import REJECTED_BY_SOURCE
from keyhaul.staging.stage import REJECTED, with_refused


def test_a_record_that_its_source_rejects_counts_as_read_and_keeps_reason_place_and_raw_text():
    staged = Staged(
        accepted=pl.DataFrame({RECORD: [0, 1]}),
        rejected=pl.DataFrame(schema=REJECTED),
        counts=Counts(read=2),
        describe=lambda frame: frame,
    )
    unread = pl.DataFrame(
        [["ragged_line", "line: got 2 fields, expected 3", "t.csv line 12", None, 'a;"b"']],
        schema=REJECTED_BY_SOURCE,
        orient="row",
    )
    numbered = unread.with_columns(pl.Series(RECORD, [2], dtype=pl.Int64))
    whole = with_refused(staged, numbered)
    assert whole.counts == Counts(read=3, quarantined=1)
    (row,) = whole.rejected.rows()
    assert row[:5] == (2, "read", ["ragged_line"], "line: got 2 fields, expected 3", None)
    assert json.loads(row[5]) == {"place": "t.csv line 12", "raw": 'a;"b"'}
    assert dict(whole.rejected.schema) == REJECTED
    assert with_refused(staged, numbered.clear()) is staged
