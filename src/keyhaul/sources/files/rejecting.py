"""What a part of a text file gives: its good records, and those that are rejected with place, reason and text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from keyhaul.sources.files.file import LINE, RECORD_NUMBER, Found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.sources.files.parts import Taken
    from keyhaul.sources.files.values import Typed

RAW_CHARACTERS: Final = 8_000
"""Of a rejected record's text so much is kept, and its length."""

REJECTED: Final[dict[str, pl.DataType]] = {
    "number": pl.Int64(),
    "line": pl.Int64(),
    "reason": pl.String(),
    "message": pl.String(),
    "raw": pl.String(),
}


def found_in(
    taken: Taken, number: pl.Series, values: Typed, bad: Mapping[int, tuple[str, str]], wanted: Sequence[str]
) -> Found:
    """Return the records of a part.

    Args:
        taken: the part.
        number: of each row of `values`, the record's number in the part, Int64.
        values: those of the records that could be taken apart.
        bad: record's number in the part → reason and message, of the others.
        wanted: columns of `values` that are asked for.
    """
    lines = taken.spans.lines
    frame = values.frame.select(wanted).with_columns(
        (number + taken.record + 1).alias(RECORD_NUMBER), (lines.gather(number) + taken.line + 1).alias(LINE)
    )
    if values.wrong:
        wrong = pl.Series(list(values.wrong), dtype=pl.Int64).implode()
        frame = frame.filter(~pl.int_range(frame.height, eager=True).is_in(wrong))
    rows = [(one, *why) for one, why in bad.items()]
    rows += [(number[row], "wrong_value", "; ".join(why.values())) for row, why in values.wrong.items()]
    starts, ends = taken.spans.starts, taken.spans.ends
    rejected = pl.DataFrame(
        [
            (
                one + taken.record + 1,
                lines[one] + taken.line + 1,
                reason,
                message,
                raw_text(taken.text[starts[one] : ends[one]]),
            )
            for one, reason, message in sorted(rows)
        ],
        schema=REJECTED,
        orient="row",
    )
    return Found(frame=frame, rejected=rejected, bytes_read=len(taken.text))


def raw_text(raw: bytes) -> str:
    r"""Return a record as it stands in the file; bytes that are no text as ``\xe9``, a long one with its length."""
    text = raw.decode("utf-8", "backslashreplace").replace("\0", "\\x00")
    if len(text) <= RAW_CHARACTERS:
        return text
    return f"{text[:RAW_CHARACTERS]}… ({len(raw):,} bytes)"
