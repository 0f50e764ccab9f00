"""A connection pooler between us and the server: one that gives each transaction another session is refused."""

from __future__ import annotations

import select
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import pq

from keyhaul.errors import ConnectError

if TYPE_CHECKING:
    from psycopg.abc import Query

_WHO: Final[Query] = "select pg_catalog.pg_backend_pid()"
_ROUNDS: Final = 3
_SECONDS: Final = 5.0
_ADVICE: Final = "Give the server's own address, or that of a pool with pool_mode = session,"

_sessions_last: set[str] = set()
"""Databases whose pooler was found to keep sessions."""


def check(conn: psycopg.Connection[Any], conninfo: str, database: str) -> None:
    """Refuse a pooler that may give the next transaction of `conn` another session.

    The job's lock, the snapshot and the settings belong to a session. In transaction mode two connections of ours get
    the same one in turn; in session mode none gets another's. Asked once for each database.

    Args:
        conn: in autocommit mode, nothing under way.
        conninfo: by which another one like it is opened.
        database: `Dsn.identity`.

    Raises:
        ConnectError: it does, or has no second session to give; the message has no place in it.
    """
    if database in _sessions_last:
        return
    with closing(psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)) as other:
        for _ in range(_ROUNDS):
            mine = _pid(conn)
            if _pid_in_transaction(other) == mine or _pid(conn) != mine:
                raise ConnectError(
                    "a connection pooler stands there that gives each transaction another session (pool_mode = "
                    f"transaction), and the job's lock, the snapshot and the settings need one that lasts. {_ADVICE}"
                )
            other.rollback()
    _sessions_last.add(database)


def _pid(conn: psycopg.Connection[Any]) -> int:
    return int(conn.execute(_WHO).fetchall()[0][0])


def _pid_in_transaction(conn: psycopg.Connection[Any]) -> int:
    """Return the process id of a session in which a transaction is open from now on.

    Raises:
        ConnectError: there is none within `_SECONDS`.
    """
    asked = conn.pgconn
    asked.send_query(b"begin; select pg_catalog.pg_backend_pid()")
    until, pid = time.monotonic() + _SECONDS, 0
    while True:
        while asked.is_busy():
            if not select.select([asked.socket], [], [], max(0.0, until - time.monotonic()))[0]:
                raise ConnectError(
                    "the connection pooler there has no second session for us (default_pool_size), and each worker "
                    "needs one. Make its pool larger, or give the server's own address,"
                )
            asked.consume_input()
        result = asked.get_result()
        if result is None:
            return pid
        if result.status == pq.ExecStatus.FATAL_ERROR:
            told = result.error_message.decode(errors="replace").strip()
            raise ConnectError(f"the connection pooler there does not take transactions: {told}. {_ADVICE}")
        if result.status == pq.ExecStatus.TUPLES_OK:
            pid = int(result.get_value(0, 0) or b"0")
