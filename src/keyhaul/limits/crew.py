"""Whether the target can be loaded at all, and how many workers two servers have connections for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.sessions.capacity import free_connections, room_of_run

if TYPE_CHECKING:
    import psycopg

    from keyhaul.postgres.dsn import Dsn
    from keyhaul.sources.source import Seats

DEFAULT_WORKERS: Final = max(1, min(4, os.cpu_count() or 1))
"""One for each core, at most four; docs/design.md has the measurement."""

SPARE_CONNECTIONS: Final = 5
"""Left free at each server for others when workers are hired."""


def _same_server(seats: Seats | None, dsn: Dsn) -> bool:
    return seats is not None and seats.server == dsn.identity.rpartition("/")[0]


def allowed_workers(
    seats: Seats | None, target: psycopg.Connection[Any], dsn: Dsn, wanted: int
) -> tuple[int, list[str]]:
    """Return how many of the wanted workers the free connections allow, and what a person should know of it.

    Args:
        seats: of the source; None: it takes as many as there are.
        target: connection to the target.
        dsn: of the target.
        wanted: workers.

    Raises:
        ConfigError: there is not one connection for each end.
    """
    same = _same_server(seats, dsn)
    warnings = []
    found = [(free_connections(target), "target")]
    if seats is not None:
        found.insert(0, (seats.free(), "source"))
    for free, end in found:
        allowed = free // 2 if same else free
        if allowed < 1:
            needed = 2 if same else 1
            msg = (
                f"connect to {end}: it has {max(free, 0)} free connections for this user, expected at least {needed}. "
                "Close some, or raise the limit (max_connections, or that of the role or the database)"
            )
            raise ConfigError(msg)
        if wanted > allowed:
            warnings.append(
                f"{wanted} workers need more connections than the {end} has free for this user: using {allowed}"
            )
            wanted = allowed
    return wanted, warnings


def room_for_workers(seats: Seats | None, target: psycopg.Connection[Any], dsn: Dsn, run_id: str) -> int:
    """Return how many workers the servers have connections for, the present ones counted.

    Beside those of the workers three are the run's own (two of one server, if they are two), and some stay free for
    others.
    """
    found = [room_of_run(target, run_id)]
    if seats is not None:
        found.append(seats.room(run_id))
    free = min(found) - SPARE_CONNECTIONS
    return max((free - 3) // 2 if _same_server(seats, dsn) else free - 2, 0)


def check_server(conn: psycopg.Connection[Any], label: str) -> None:
    """Refuse a target that cannot be loaded: a standby, or one that does not count rows.

    Raises:
        RefusedError: it is one of these.
    """
    row = conn.execute(
        "select current_setting('track_counts')::bool, current_setting('transaction_read_only')::bool"
    ).fetchone()
    if row and row[1]:
        msg = f"load {label}: the target is read-only (a standby?). Give the primary in --target"
        raise RefusedError(msg)
    if row and not row[0]:
        msg = "load: the target has track_counts = off, without which rows cannot be counted. Switch it on"
        raise RefusedError(msg)
