"""How a delimited text file is written: what ends a field, what quotes it, what is NULL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A CSV dialect. Delimiter and quote are one ASCII character each; a quote in a quoted field is doubled.

    Attributes:
        delimiter: between fields.
        quote: around a field; inside it twice for one. None: no quoting, every byte stands for itself.
        nulls: unquoted words that are NULL; by default the empty field. A quoted field is never NULL.
        header: whether the first record names the columns.
        comment: a line that begins with this character, outside quotes, is no record; None: every line is one.
        decimal: what stands between the whole and the fraction of a number.
    """

    delimiter: str = ","
    quote: str | None = '"'
    nulls: tuple[str, ...] = ("",)
    header: bool = True
    comment: str | None = None
    decimal: str = "."
