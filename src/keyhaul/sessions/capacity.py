"""How many further sessions a server has room for; source and target both ask here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psycopg

_LIMITS: Final = """
select least(
           current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           {reserved} - count(*) filter (where {counted}),
           case when current_setting('is_superuser') = 'off' then least(
               (select nullif(rolconnlimit, -1) from pg_roles where rolname = session_user)
               - count(*) filter (where usename = session_user),
               (select nullif(datconnlimit, -1) from pg_database where datname = current_database())
               - count(*) filter (where datname = current_database())
           ) end
       )
  from pg_stat_activity
"""
"""No limit of a role or of a database holds for superusers."""

_FREE: Final = _LIMITS.format(reserved="", counted="backend_type = 'client backend'")

_ROOM: Final = (
    _LIMITS.format(
        reserved="- coalesce(nullif(current_setting('reserved_connections', true), '')::int, 0)", counted="true"
    )
    + " where datid is not null and not starts_with(coalesce(application_name, ''), %(ours)s)"
)
"""Connections that are not other's; those of this run count as free, for they are the present workers'."""


def free_connections(conn: psycopg.Connection[Any]) -> int:
    """Return how many further sessions a server would take of somebody who is no superuser."""
    return int(conn.execute(_FREE).fetchall()[0][0])


def room_of_run(conn: psycopg.Connection[Any], run_id: str) -> int:
    """Return how many sessions are not others': limits of the role and of the database count, too."""
    # A transaction that holds a snapshot would see the sessions that were there when it first asked.
    conn.execute("select pg_stat_clear_snapshot()")
    row = conn.execute(_ROOM, {"ours": f"keyhaul {run_id} "}).fetchone()
    return int(row[0]) if row else 0
