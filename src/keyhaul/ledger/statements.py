"""Named statements from `ledger.sql`, with the ledger's schema and values put in, quoted."""

from __future__ import annotations

import re
from dataclasses import astuple, fields
from functools import cache
from importlib.resources import files
from typing import Final

from psycopg import sql

from keyhaul.model import Counts, Timings

_COUNTS: Final = [f"rows_{term.name}" for term in fields(Counts)]
_SUMMED: Final = [(name, "0)::bigint") for name in (*_COUNTS, "bytes_read")]
_SUMMED_SECONDS: Final = [(step.name, "0)") for step in fields(Timings)]
_LISTS: Final = {
    "counts": ", ".join(_COUNTS),
    "seconds": ", ".join(step.name for step in fields(Timings)),
    "sums": ", ".join(
        f"coalesce(sum(c.{name}) filter (where c.status = 'done'), {rest} as {name}"
        for name, rest in (*_SUMMED, *_SUMMED_SECONDS)
    ),
}
"""What every statement may put in: the columns of the balance's terms and of the steps' seconds, and their sums over
the committed rows of ``chunks c``."""


@cache
def sections(file: str, label: str) -> dict[str, str]:
    """Return the sections of a file in this folder, by what stands behind ``-- label:`` above each."""
    text = files("keyhaul.ledger").joinpath(file).read_text(encoding="utf-8")
    parts = re.split(rf"^-- {label}: (\w+)\n", text, flags=re.MULTILINE)[1:]
    # ADBC wraps a SELECT into COPY (…): a semicolon at its end would be a syntax error there.
    bodies = (body.partition("\n-- ----")[0].strip().removesuffix(";") for body in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


def assigned(counts: Counts) -> sql.Composed:
    """Return what writes a balance into a chunk's ledger row: ``rows_read = 5, rows_loaded = 4, …``."""
    pairs = zip(_COUNTS, astuple(counts), strict=True)
    return sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), number) for name, number in pairs)


def statement(name: str, schema: str, **values: object) -> sql.Composed:
    """Return the statement called `name` in ledger.sql.

    Args:
        name: as in the file's ``-- name:`` line.
        schema: the ledger's schema, for ``{schema}``, quoted as an identifier.
        values: for the statement's other ``{placeholders}``: quoted as literals, or SQL that is put together
            already. Statements may have ``%(name)s`` parameters beside them; a literal brace in the file is
            written twice.

    Raises:
        KeyError: there is no such statement, or a placeholder has no value.
    """
    lists = {name: sql.SQL(text) for name, text in _LISTS.items()}
    parts = {key: value if isinstance(value, sql.Composable) else sql.Literal(value) for key, value in values.items()}
    return sql.SQL(sections("ledger.sql", "name")[name]).format(schema=sql.Identifier(schema), **lists, **parts)
