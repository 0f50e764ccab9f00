"""A run whose chunks have checksums, and its target as it is now; which of them cannot be compared any more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from keyhaul.before.checksums import find
from keyhaul.errors import RefusedError
from keyhaul.ledger.rows import chunk_of
from keyhaul.ledger.statements import statement
from keyhaul.model import Chunk
from keyhaul.postgres import catalog
from keyhaul.targets.rowhash import TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.targets.rowhash import Hashing

Connection = psycopg.Connection[Any]

_OTHERWISE: Final = "etl verify without --against-ledger compares with the source"

NULL_KEYS: Final = 0
"""The number of a part that is no chunk: rows with a NULL key, where the run has no chunk for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A chunk and its checksum."""

    chunk: Chunk
    rows: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksummed:
    """A run with checksums, and its target as it is now."""

    run_id: str
    job: str
    label: str
    table: sql.Identifier
    hashing: Hashing
    parts: tuple[Part, ...]
    unloaded: int


def find_checksummed(conn: Connection, schema: str, run_id: str) -> Checksummed:
    """Return the run with its checksums, if they can be compared with the target as it is now.

    Raises:
        RefusedError: they cannot; says why, and what to do.
    """
    described = conn.execute(statement("checksum", schema, run_id=run_id)).fetchall()[0][0]
    if described is None:
        msg = f"its chunks have no checksums. Give --checksum to the next run (or checksum: true); {_OTHERWISE}"
        raise RefusedError(f"verify run {run_id} against the ledger: {msg}")
    original = conn.execute(statement("replay_run", schema, run=run_id, job="")).fetchall()[0]
    job, label, config, lost = original[1], original[5], original[6], original[8]
    since = conn.execute(statement("loaded_since", schema, run_id=run_id, target_table=label)).fetchone()
    rows = conn.execute(statement("checksums", schema, run_id=run_id, tag=TAG)).fetchall()
    loaded = [row for row in rows if row[5]]
    try:
        _refuse_stale(lost, since[0] if since else "", loaded)
        table = _table(conn, described["table"], label)
        hashing = find(conn, table, described)
    except RefusedError as error:
        raise RefusedError(f"verify run {run_id} against the ledger: {error}") from None
    parts = [_part(row) for row in loaded]
    if (
        hashing.nullable
        and config["target"].get("mode") in {None, "replace"}
        and not any(r[1] == "nulls" for r in rows)
    ):
        # The source has no NULL keys, and the table was empty.
        parts.append(Part(chunk=Chunk(number=NULL_KEYS, kind="nulls"), rows=0, hash="0"))
    return Checksummed(
        run_id=run_id,
        job=job,
        label=label,
        table=table,
        hashing=hashing,
        parts=tuple(parts),
        unloaded=len(rows) - len(loaded),
    )


def _refuse_stale(lost: str, since: str, loaded: Sequence[tuple[Any, ...]]) -> None:
    """Refuse checksums that say nothing of the table as it is now."""
    bare = sum(row[8] is None for row in loaded)
    tags = {(row[8], row[9]) for row in loaded if row[8] != row[9]}
    if lost:
        # Nor can they be compared with the source: they are not there.
        raise RefusedError(f"{lost}. Name a run whose rows are in the target")
    if since:
        why = f"run {since} has loaded the same table since. Name that run"
    elif bare:
        why = f"{bare:,} of its {len(loaded):,} loaded chunks have no checksum. Run the job anew with --checksum"
    elif tags:
        stored, now = (_server(tag) for tag in min(tags))
        now = f"{now} on another platform" if stored == now else now
        why = (
            f"the checksums were stored by {stored}, and the target is {now}, which may write and hash equal values "
            "otherwise. Run the job anew with --checksum"
        )
    else:
        return
    raise RefusedError(f"{why}; {_OTHERWISE}")


def _server(tag: str) -> str:
    major, encoding, _ = tag.split(" ")
    return f"PostgreSQL {major} ({encoding})"


def _table(conn: Connection, name: str, label: str) -> sql.Identifier:
    found = catalog.resolve(conn, name)
    if found is None:
        msg = f"{label} is not there any more. Name the database that the run has loaded in --target"
        raise RefusedError(msg)
    return sql.Identifier(*found[1:])


def _part(row: Sequence[Any]) -> Part:
    return Part(chunk=chunk_of(row[:5]), rows=row[6], hash=row[7])
