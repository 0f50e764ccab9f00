"""Checksums of a run: what is hashed of its target's rows, as its row in the ledger has it, and where none can be.

A checksum is of a chunk's part of the target: a range of the key must have the same rows there as in the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyhaul.before.matching import find_matching
from keyhaul.errors import RefusedError
from keyhaul.postgres import catalog
from keyhaul.targets.rowhash import Hashing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg
    from psycopg import sql

    from keyhaul.before.prepare import Prepared

Described = dict[str, Any]
"""What the ledger keeps: ``table`` (quoted), ``columns`` (pairs of name and type, in the order in which they are
hashed), ``key`` (names) and ``order`` (for each of the key's columns what decides the order of its texts, or null).
JSON-ready, no values."""


def check_checksum(prepared: Prepared, *, there: bool) -> None:
    """Refuse checksums where a chunk's part of the target cannot be told.

    Args:
        prepared: the job.
        there: the target table exists, so that it can be asked how it orders the key.

    Raises:
        RefusedError: with the reason, and what to do.
    """
    why = _why_not(prepared, there=there)
    if why:
        msg = (
            f"checksum {prepared.target.label}: {why}, expected each chunk to have a key range of its own there. Leave "
            "out --checksum (checksum: true); etl verify without --against-ledger compares with the source"
        )
        raise RefusedError(msg)


def _why_not(prepared: Prepared, *, there: bool) -> str:
    job, target = prepared.job, prepared.target
    if job.targets:
        return "the job's records become rows of several tables"
    outputs = {column.source: name for name, column in prepared.transform.output.items() if column.source}
    written = {column.name for column in prepared.columns}
    key = [outputs.get(name, "") for name in job.key]
    if not written.issuperset(key):
        return "the key is not among the target's columns"
    if target.mode == "upsert" and not set(key) <= set(target.conflict):
        return (
            f"a row of one chunk may update one of another, as {', '.join(key)} is not among the conflict columns "
            f"({', '.join(target.conflict)})"
        )
    return find_matching(prepared).why_whole if there else ""


def settle(prepared: Prepared) -> tuple[Hashing, Described]:
    """Return how the rows of a new run are hashed, and its description for the ledger.

    Args:
        prepared: with the table that is loaded, there already, if only in a transaction of its own.

    Raises:
        RefusedError: a chunk's part of the target cannot be told.
    """
    check_checksum(prepared, there=True)
    names = {column.source: name for name, column in prepared.transform.output.items() if column.source}
    key = [names[name] for name in prepared.job.key]
    conn, target = prepared.target_conn, prepared.target
    hashing, described = _describe(conn, target.loaded, [column.name for column in prepared.columns], key)
    # The name under which it is found later: a fresh table gets it by the swap.
    return hashing, {"table": target.identifier.as_string(conn), **described}


def find(conn: psycopg.Connection[Any], table: sql.Identifier, described: Mapping[str, Any]) -> Hashing:
    """Return how the rows of a run with checksums are hashed in the table as it is now.

    Raises:
        RefusedError: its columns are not what they were, so that equal rows might differ.
    """
    key = list(described["key"])
    hashing, now = _describe(conn, table, [name for name, _ in described["columns"]], key)
    changed = [
        f"{name} was {was} and is {now_is}"
        for (name, was), (_, now_is) in zip(described["columns"], now["columns"], strict=True)
        if was != now_is
    ]
    changed += [
        f"{name} is sorted by another collation, or another version of it"
        for name, was, now_is in zip(key, described["order"], now["order"], strict=True)
        if was != now_is
    ]
    if changed:
        msg = f"its table is not as it was when the checksums were stored: {'; '.join(changed)}. Change it back"
        raise RefusedError(msg)
    return hashing


def resume(prepared: Prepared, described: Mapping[str, Any] | None) -> Hashing | None:
    """Return how a run that goes on is hashed; None when it has no checksums.

    Raises:
        RefusedError: the table is not what it was.
    """
    if described is None:
        return None
    try:
        return find(prepared.target_conn, prepared.target.loaded, described)
    except RefusedError as error:
        msg = f"go on with checksums of {prepared.target.label}: {error}, or give --fresh to start a new run"
        raise RefusedError(msg) from None


def keep(prepared: Prepared, described: Mapping[str, Any]) -> Hashing:
    """Return how a replay keeps the checksums of the run that it replays.

    Raises:
        RefusedError: the job's rows would not be in the parts of the run's chunks, or the table is not what it was.
    """
    check_checksum(prepared, there=True)
    names = {column.source: name for name, column in prepared.transform.output.items() if column.source}
    key = [names[name] for name in prepared.job.key]
    if key != list(described["key"]):
        msg = f"the key is in {', '.join(key)} now, and was in {', '.join(described['key'])}"
        raise RefusedError(msg)
    return find(prepared.target_conn, prepared.target.loaded, described)


def _describe(
    conn: psycopg.Connection[Any], table: sql.Identifier, columns: list[str], key: list[str]
) -> tuple[Hashing, Described]:
    found = catalog.resolve(conn, table.as_string(conn))
    if found is None:
        raise RefusedError("its table is not there any more. Put it back")
    there = {column.name: column for column in catalog.describe_table(conn, *found).columns}
    gone = [name for name in columns if name not in there]
    if gone:
        msg = f"its table has no {', '.join(gone)} any more. Put back what was hashed"
        raise RefusedError(msg)
    hashing = Hashing(
        columns=tuple(columns),
        key=tuple(there[name] for name in key),
        indexed=catalog.leads_an_index(conn, found[0], key),
    )
    order = [catalog.collation_of(conn, table, name) if there[name].type_category == "S" else None for name in key]
    # A modifier is left out: one that changes values makes them differ, and one that does not is no matter.
    described = {"columns": [[name, there[name].cast_type] for name in columns], "key": key, "order": order}
    return hashing, described
