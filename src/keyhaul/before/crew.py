"""Whether the target can be loaded at all, and how many workers two servers have connections for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    import psycopg

    from keyhaul.sessions.connecting import Ends

DEFAULT_WORKERS: Final = max(1, min(4, os.cpu_count() or 1))
"""One for each core, at most four; docs/design.md has the measurement."""

_FREE_CONNECTIONS: Final = """
select current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - (select count(*) from pg_stat_activity where backend_type = 'client backend')
"""

SPARE_CONNECTIONS: Final = 5
"""Left free at each server for others when workers are hired."""

_ROOM: Final = """
select least(
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0) - count(*),
           (select nullif(rolconnlimit, -1) from pg_roles where rolname = current_user)
           - count(*) filter (where usename = current_user),
           (select nullif(datconnlimit, -1) from pg_database where datname = current_database())
           - count(*) filter (where datname = current_database())
       )
  from pg_stat_activity where datid is not null and not starts_with(coalesce(application_name, ''), %(ours)s)
"""
"""Connections that are not other's; those of this run count as free, for they are the present workers'."""


def allowed_workers(
    ends: Ends, source: psycopg.Connection[Any], target: psycopg.Connection[Any], wanted: int
) -> tuple[int, list[str]]:
    """Return how many of the wanted workers the free connections allow, and what a person should know of it.

    Raises:
        ConfigError: there is not one connection for each end.
    """
    same = ends.source.identity.rpartition("/")[0] == ends.target.identity.rpartition("/")[0]
    warnings = []
    for conn, end in ((source, "source"), (target, "target")):
        free = free_connections(conn)
        allowed = free // 2 if same else free
        if allowed < 1:
            needed = 2 if same else 1
            msg = f"connect to {end}: it has {free} free connections, expected at least {needed}. Close some"
            raise ConfigError(msg)
        if wanted > allowed:
            warnings.append(f"{wanted} workers need more connections than the {end} has free: using {allowed}")
            wanted = allowed
    return wanted, warnings


def free_connections(conn: psycopg.Connection[Any]) -> int:
    """Return how many further sessions a server would take of somebody who is no superuser."""
    return int(conn.execute(_FREE_CONNECTIONS).fetchall()[0][0])


def room_for_workers(ends: Ends, source: psycopg.Connection[Any], target: psycopg.Connection[Any], run_id: str) -> int:
    """Return how many workers the servers have connections for, the present ones counted.

    Beside those of the workers three are the run's own (two of one server, if they are two), and some stay free for
    others. Limits of the role and of the database count, too.
    """
    found = []
    for conn in (source, target):
        # The transaction that holds the snapshot would see the sessions that were there when it first asked.
        conn.execute("select pg_stat_clear_snapshot()")
        row = conn.execute(_ROOM, {"ours": f"keyhaul {run_id} "}).fetchone()
        found.append(int(row[0]) if row else 0)
    free = min(found) - SPARE_CONNECTIONS
    same = ends.source.identity.rpartition("/")[0] == ends.target.identity.rpartition("/")[0]
    return max((free - 3) // 2 if same else free - 2, 0)


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
