"""Rejected records as the ledger's encoding can hold them: a character that it lacks is written out."""

from __future__ import annotations

from typing import Final

import polars as pl

_CODECS: Final = {
    **{f"LATIN{n}": f"iso8859_{part}" for n, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), start=1)},
    **{f"ISO_8859_{n}": f"iso8859_{n}" for n in (5, 6, 7, 8)},
    **{f"WIN{n}": f"cp{n}" for n in (866, 874, *range(1250, 1259))},
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
}
"""Encodings of one byte; of any other than UTF8 only ASCII is taken for sure."""

_NOTE: Final = "characters that the ledger's encoding lacks stand as \\u and their number"


def writable(rejected: pl.DataFrame, encoding: str) -> pl.DataFrame:
    """Return rejected records with what the encoding of the ledger's database lacks written out.

    A key with such a character is left out: it would not be found again by another text.

    Args:
        rejected: with ``key``, ``data`` (JSON) and ``message``.
        encoding: as PostgreSQL calls it.
    """
    texts = [pl.col("key"), pl.col("data"), pl.col("message")]
    if encoding in {"UTF8", "SQL_ASCII"}:
        return rejected
    found = rejected.select(pl.concat_str(texts, ignore_nulls=True).str.extract_all(r"[^\x00-\x7f]").explode().unique())
    lacking = [one for one in found.to_series().drop_nulls() if not _has(encoding, one)]
    if not lacking:
        return rejected
    # In JSON a backslash of two: jsonb would try to have the character itself.
    written = {one: f"u{ord(one):04x}" for one in lacking}
    plain = {one: "\\" + text for one, text in written.items()}
    in_json = {one: "\\\\" + text for one, text in written.items()}
    lost = pl.any_horizontal(pl.col("data").str.contains_any(lacking), pl.col("key").str.contains_any(lacking))
    return rejected.with_columns(
        key=pl.when(~pl.col("key").str.contains_any(lacking)).then("key"),
        data=pl.col("data").str.replace_many(in_json),
        message=pl.when(lost.fill_null(value=False))
        .then(pl.concat_str(pl.col("message").str.replace_many(plain), pl.lit(f" ({_NOTE})")))
        .otherwise(pl.col("message").str.replace_many(plain)),
    )


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(_CODECS.get(encoding, "ascii"))
    except UnicodeEncodeError:
        return False
    return True
