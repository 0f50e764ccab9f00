"""Named statements from `ledger.sql`, with the ledger's schema and values put in, quoted."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from psycopg import sql


@cache
def _statements() -> dict[str, str]:
    text = files("keyhaul.ledger").joinpath("ledger.sql").read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    # ADBC wraps a SELECT into COPY (…): a semicolon at its end would be a syntax error there.
    bodies = (body.partition("\n-- ----")[0].strip().removesuffix(";") for body in parts[1::2])
    return dict(zip(parts[::2], bodies, strict=True))


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
    parts = {key: value if isinstance(value, sql.Composable) else sql.Literal(value) for key, value in values.items()}
    return sql.SQL(_statements()[name]).format(schema=sql.Identifier(schema), **parts)
