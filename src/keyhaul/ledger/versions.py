"""The version of a ledger's tables: what creates them, brings older ones to the newest, and refuses others by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import sql

import keyhaul
from keyhaul.errors import RefusedError
from keyhaul.ledger.statements import sections, statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg


def migrations() -> tuple[str, ...]:
    """Return the statements that make each version of the one before, from version 1, with ``{schema}`` to put in."""
    return tuple(sections("migrations.sql", "version").values())


def version_of(conn: psycopg.Connection[Any], schema: str) -> int | None:
    """Return the version of a schema's ledger: 0 where there is none, None for one that does not say it."""
    row = conn.execute(statement("exists", schema, wanted=schema)).fetchone()
    there, told = row or (False, False)
    if not told:
        return None if there else 0
    found = conn.execute(statement("version", schema)).fetchone()
    return int(found[0]) if found and found[0] else None


def is_there(conn: psycopg.Connection[Any], schema: str) -> bool:
    """Whether a schema has a ledger, of whatever version."""
    return version_of(conn, schema) != 0


def check(conn: psycopg.Connection[Any], schema: str, newest: int | None = None) -> bool:
    """Return whether a schema has a ledger, which is then one that this keyhaul reads.

    Args:
        conn: to the database with the ledger.
        schema: the ledger's.
        newest: the version that is expected; that of the last migration by default.

    Raises:
        RefusedError: it is of another version, or of none.
    """
    newest = newest or len(migrations())
    version = _known(conn, schema, newest)
    if 0 < version < newest:
        msg = f"{_what(conn, schema)}: its tables are of version {version}, expected {newest}. The next run or replay "
        raise RefusedError(msg + "brings them there, and keeps what they hold")
    return version == newest


def create(conn: psycopg.Connection[Any], schema: str, steps: Sequence[str] | None = None) -> None:
    """Create a ledger, or bring an older one to the newest version, in one transaction; else nothing is written.

    Args:
        conn: in autocommit mode, or in a transaction, which this becomes a part of.
        schema: the ledger's; it is created when it is missing.
        steps: what makes each version of the one before; `migrations` by default.

    Raises:
        RefusedError: the ledger is newer than that, or does not say its version.
    """
    steps = migrations() if steps is None else steps
    with conn.transaction():
        conn.execute(statement("lock_schema", schema))
        version = _known(conn, schema, len(steps))
        if not version and not conn.execute(statement("schema_is_there", schema, wanted=schema)).fetchall()[0][0]:
            conn.execute(statement("create_schema", schema))
        for number, step in enumerate(steps[version:], version + 1):
            conn.execute(sql.SQL(step).format(schema=sql.Identifier(schema)))
            conn.execute(statement("brought", schema, version=number, keyhaul=keyhaul.__version__))


def upgrade(conn: psycopg.Connection[Any], schema: str, steps: Sequence[str] | None = None) -> None:
    """Bring an older ledger to the newest version; where there is none, none is created.

    Raises:
        RefusedError: the ledger is newer than that, or does not say its version.
    """
    newest = len(migrations() if steps is None else steps)
    if 0 < _known(conn, schema, newest) < newest:
        create(conn, schema, steps)


def _known(conn: psycopg.Connection[Any], schema: str, newest: int) -> int:
    """Return the version from 0 to `newest`."""
    version = version_of(conn, schema)
    if version is None:
        msg = (
            f"{_what(conn, schema)}: its tables do not say of which version they are, expected {newest}: a keyhaul "
            "that was never released made them. Put them away (alter schema … rename to …), or name another schema in "
            "ledger_schema"
        )
        raise RefusedError(msg)
    if version > newest:
        msg = (
            f"{_what(conn, schema)}: its tables are of version {version}, expected at most {newest}: a newer keyhaul "
            "has brought them there. Use that one, or name another schema in ledger_schema"
        )
        raise RefusedError(msg)
    return version


def _what(conn: psycopg.Connection[Any], schema: str) -> str:
    info = conn.info
    return f"read the ledger {schema} in {info.host}:{info.port}/{info.dbname}"
