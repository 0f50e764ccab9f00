"""JSON records by pyarrow: fast, and only where it says exactly what the strict way says.

pyarrow keeps the digits of a number, and refuses a key that stands twice or is not in the schema, an unpaired
surrogate and a value of another kind. What it takes beyond that is looked for here, and is left to the strict way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from keyhaul.sources.files.json.tokens import has_pattern, is_utf8
from keyhaul.sources.files.records import bytes_of
from keyhaul.sources.files.values import Typed, typed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.model import Column
    from keyhaul.sources.files.records import Spans

_WHOLE: Final[dict[str, pl.DataType]] = {"int2": pl.Int16(), "int4": pl.Int32(), "int8": pl.Int64()}
_OPEN: Final = ord("{")
_CLOSE: Final = ord("}")
_MOST_DIGITS: Final = 38

_POWER_IN_STRING: Final = r'"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+"|\\u)|"\\u00(?:2[bdeBDE]|3[0-9])'
"""A string that pyarrow takes for a numeric and no rule of ours does: one with an exponent."""

_SMALL: Final = r"[eE]-0*[0-9]{2}|[0-9.]{40}"
"""Where there is none, no number of the text is so small that a float makes 0 of it."""


def schema_of(columns: Mapping[str, Column]) -> pa.Schema | None:
    """Return the types in which pyarrow reads columns exactly; None when one has none."""
    fields = [(name, _arrow_type(column)) for name, column in columns.items()]
    return pa.schema(fields) if fields and all(kind is not None for _, kind in fields) else None


def _arrow_type(column: Column) -> Any:  # noqa: ANN401 - an Arrow type
    base = column.base_type
    if base in {"json", "jsonb"}:
        return None
    if base == "numeric":
        bounded = column.precision is not None and column.precision <= _MOST_DIGITS
        return pa.decimal128(column.precision, column.scale or 0) if bounded else None
    simple = {"float4": pa.float32(), "float8": pa.float64(), "bool": pa.bool_()}
    return pa.int64() if base in _WHOLE else simple.get(base, pa.string())


def read_fast(
    text: bytes, spans: Spans, schema: pa.Schema, columns: Mapping[str, Column], *, time_zone: str | None
) -> Typed | None:
    """Return the values of records, all of them good JSON; None: the strict way is to say.

    Args:
        text: the records with nothing but blanks between them.
        spans: where each is.
        schema: of `schema_of`.
        columns: name → type.
        time_zone: of moments without an offset.
    """
    frame = _parse(text, schema) if _is_plain(text, spans) else None
    if frame is None or frame.height != spans.starts.len() or _takes_more(text, frame, schema):
        return None
    whole = {name: _WHOLE[column.base_type] for name, column in columns.items() if column.base_type in _WHOLE}
    narrowed = frame.with_columns(pl.col(name).cast(kind, strict=False) for name, kind in whole.items())
    if narrowed.null_count().row(0) != frame.null_count().row(0):
        return None
    texts = {name: column for name, column in columns.items() if frame.schema[name] == pl.String}
    if not texts:
        return Typed(frame=narrowed.select(columns.keys()), wrong={})
    found = typed(narrowed.select(texts.keys()), texts, time_zone=time_zone)
    return Typed(frame=narrowed.with_columns(found.frame.get_columns()).select(columns.keys()), wrong=found.wrong)


def _parse(text: bytes, schema: pa.Schema) -> pl.DataFrame | None:
    """Return a row for each object; None when there is a fault, or a key that is not in the schema."""
    try:
        table = pj.read_json(
            pa.BufferReader(text),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="error", newlines_in_values=True
            ),
        )
    except (pa.ArrowException, ValueError):
        return None
    return pl.DataFrame(pl.from_arrow(table))


def _is_plain(text: bytes, spans: Spans) -> bool:
    """Whether nothing stands in the text that pyarrow would take and the strict way would not."""
    return _one_object_each(text, spans) and b"\\u0000" not in text and is_utf8(text)


def _one_object_each(text: bytes, spans: Spans) -> bool:
    """Whether each record begins with { and ends with }: then as many rows as records means one row for each.

    A row that ended in another record would need a line that begins with { behind a value; no JSON has that. pyarrow
    also must not see a record that is null or no object at all.
    """
    if spans.bad or not spans.starts.len():
        return False
    data = bytes_of(text)
    return bool((data.gather(spans.starts) == _OPEN).all() and (data.gather(spans.ends - 1) == _CLOSE).all())


def _takes_more(text: bytes, frame: pl.DataFrame, schema: pa.Schema) -> bool:
    """Whether pyarrow may have taken something that is no value by our rules."""
    if any(pa.types.is_decimal(kind) for kind in schema.types) and has_pattern(text, _POWER_IN_STRING):
        return True
    floats = [frame[name] for name, kind in frame.schema.items() if kind.is_float()]
    if not all(column.is_finite().all() for column in floats):
        return True
    return any((column == 0).any() for column in floats) and has_pattern(text, _SMALL)
