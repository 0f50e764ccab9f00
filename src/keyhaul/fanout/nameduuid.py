"""Name-based UUIDs (RFC 9562, version 5) of columns, a whole column at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import polars as pl

from keyhaul.fanout.unnest import query
from keyhaul.model import RECORD
from keyhaul.quoting import quote_name
from keyhaul.staging.rules import CHUNK, duck_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

NAMESPACE: Final = UUID("28b45d9e-7ba8-524c-9b54-986af1ce25c1")
"""``uuid5(NAMESPACE_URL, "keyhaul")``. It never changes, else a replay would give other keys."""

_VARIANT: Final = "translate(substr(h, 17, 1), '0123456789abcdef', '89ab89ab89ab89ab')"


def named_uuids(con: duckdb.DuckDBPyConnection, frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    r"""Return ``uuid5(NAMESPACE, name)`` for each row, as text; NULL where one of the columns is NULL.

    The name is the value's text, as the quarantine shows a key: of one column its text (bytes as ``\x…``), of
    several a JSON array of texts. So 1 and '1' have the same UUID, in every table, run and database.
    """
    rows = frame.select(pl.int_range(pl.len(), dtype=pl.Int64).alias(RECORD), *(pl.col(c) for c in columns))
    duck = {name: quote_name(duck_name(name, rows.columns)) for name in rows.columns}
    texts = [
        f"'\\x' || lower(hex({duck[name]}))" if isinstance(rows.schema[name], pl.Binary) else f"{duck[name]}::varchar"
        for name in columns
    ]
    null = " or ".join(f"{duck[name]} is null" for name in columns)
    name = texts[0] if len(texts) == 1 else f"to_json([{', '.join(texts)}])::varchar"
    hashed = f"sha1(unhex('{NAMESPACE.hex}') || encode({name}))"
    found = query(
        con,
        f"select {RECORD}, case when h is not null then substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-5'"
        f" || substr(h, 14, 3) || '-' || {_VARIANT} || substr(h, 18, 3) || '-' || substr(h, 21, 12) end as u"
        f" from (select {RECORD}, case when {null} then null else {hashed} end as h from {CHUNK}) order by {RECORD}",
        rows,
    )
    return found["u"].cast(pl.String)
