"""Seats: what one session of this process has at a time in a server, the ledger's or a worker's.

A link that dies may leave the server's end of a session open, with its locks, long after we have given ours up: a NAT
or a load balancer between tells nobody. So who takes a seat ends the sessions of this process that had it and were
given up. Only what this process has opened and given up is ended, by its process id and its name in the server: names
alone could be those of another process that goes on with the run, or that has the same pid on a host called alike.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Callable

_WHO: Final = sql.SQL("select pg_catalog.pg_backend_pid(), pg_catalog.current_setting('application_name')")

# One that waits for its standby has committed: ended, it would tell so before the standby has it.
_STILL_THERE: Final = """
  from pg_catalog.pg_stat_activity s
 where (s.pid, s.application_name) in ({left}) and s.datname = pg_catalog.current_database()
   and s.pid <> pg_catalog.pg_backend_pid() and pg_catalog.pg_has_role(s.usesysid, 'USAGE')
   and s.wait_event is distinct from 'SyncRep'
"""
_END: Final = sql.SQL("select pg_catalog.pg_terminate_backend(s.pid)" + _STILL_THERE)
_COUNT: Final = sql.SQL("select pg_catalog.count(*)" + _STILL_THERE)


class Holder(Protocol):
    """A connection of ours."""

    @property
    def closed(self) -> bool:
        """Whether it is given up, or known to be lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """One that has, or had, a seat; the name is what the server has made of ours: it cuts at 63 bytes."""

    pid: int
    name: str
    holder: weakref.ref[Any]

    @property
    def given_up(self) -> bool:
        holder = self.holder()
        return holder is None or bool(holder.closed)


_lock = threading.Lock()
_seats: dict[str, list[_Session]] = {}


def take(
    seat: str,
    holder: Holder,
    execute: Callable[[sql.Composed | sql.SQL], list[tuple[Any, ...]]],
    *,
    wait_seconds: float = 0,
) -> None:
    """End the sessions that have left a seat and are still in the server, and note the one that has it now.

    Nothing is asked for when nobody has left it.

    Args:
        seat: its name in this process.
        holder: the new session.
        execute: runs a statement in it.
        wait_seconds: how long to wait until they are gone.
    """
    with _lock:
        left = [one for one in _seats.get(seat, []) if one.given_up]
    if left:
        pairs = sql.SQL(", ").join(sql.SQL("({}, {})").format(one.pid, one.name) for one in left)
        execute(_END.format(left=pairs))
        deadline = time.monotonic() + wait_seconds
        while time.monotonic() < deadline and execute(_COUNT.format(left=pairs))[0][0]:
            time.sleep(0.02)
    ((pid, name),) = execute(_WHO)
    with _lock:
        stay = [one for one in _seats.get(seat, []) if one not in left]
        _seats[seat] = [*stay, _Session(pid=int(pid), name=str(name), holder=weakref.ref(holder))]
