"""How a name or a text is written in SQL that psycopg does not put together: PostgreSQL's and DuckDB's alike."""

from __future__ import annotations


def quote_name(*parts: str) -> str:
    """Return a name in double quotes, ``"schema"."table"`` of several parts."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in parts)


def quote_text(text: str) -> str:
    """Return a text constant in single quotes. A backslash stands for itself."""
    return "'" + text.replace("'", "''") + "'"
