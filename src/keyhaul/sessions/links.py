"""Who of this process waits for which server, and the TCP connections on which it does: what a watchdog needs to know.

A driver that hangs cannot be asked or interrupted (connectorx has no read timeout). Its socket can be found and
shut down from another thread, after which the driver returns with the error of a lost connection.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

End = Literal["source", "target"]

_SETTING: Final = re.compile(r"-c\s*([\w.]+)=((?:[^\s\\]|\\.)*)", re.DOTALL)

_AT_THE_START: Final = frozenset(
    {
        "ignore_system_indexes",
        "jit_debugging_support",
        "jit_profiling_support",
        "log_connections",
        "log_disconnections",
        "post_auth_delay",
    }
)
"""What a session cannot be told later; a user's URI may ask for it."""

_WHO: Final = "select pg_catalog.pg_backend_pid()"
_SETTLING: Final = """
select pg_catalog.pg_backend_pid(), pg_catalog.count(pg_catalog.set_config(n, v, false))
  from (values {}) as asked(n, v) where pg_catalog.current_setting(n, true) is distinct from v
"""

_COUNTERS_AT: Final = 120
"""Where bytes_acked and bytes_received are in Linux' struct tcp_info (since 4.1), as two unsigned 64-bit numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """A thread waits for a server's answer.

    Attributes:
        since: monotonic seconds.
        session: application_name of the session in the server.
        descriptor: of its socket; None when only the driver knows it.
    """

    end: str
    session: str
    since: float
    descriptor: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A TCP connection of this process.

    Attributes:
        inode: the same as long as it is the same socket.
        peer: address and port.
        local_port: of this side.
        moved: bytes that the peer has acknowledged and sent; zeros where the system does not tell.
    """

    descriptor: int
    inode: int
    peer: tuple[str, int]
    local_port: int
    moved: tuple[int, int]

    def shut(self) -> None:
        """Shut the connection down for whoever uses it; nothing when it is another one by now."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.descriptor)) as mine:
            if os.fstat(mine.fileno()).st_ino == self.inode:
                mine.shutdown(socket.SHUT_RDWR)


_BLOCKER_SECONDS: Final = 120.0

_blocker: tuple[str, float] = ("", 0.0)
_lock = threading.Lock()
_waits: dict[int, Wait] = {}
_sessions: weakref.WeakKeyDictionary[psycopg.Connection[Any], tuple[str, str]] = weakref.WeakKeyDictionary()
_busy: weakref.WeakKeyDictionary[psycopg.Connection[Any], float] = weakref.WeakKeyDictionary()


def application_name(uri: str) -> str:
    """Return how the session that `uri` opens is called."""
    return parse_qs(urlsplit(uri).query).get("application_name", [""])[0]


def settling(conninfo: str) -> str:
    """Return the statement by which a session gets the settings that `conninfo` asks of it in ``options``.

    A pooler may have dropped them (``ignore_startup_parameters``), and a row-level security that was to be off would
    hide rows without a word. Its one row begins with the process id of the session.

    Args:
        conninfo: a URI, or ``name='value'`` pairs; each of its settings is written ``-c name=value``.
    """
    asked = dict(_SETTING.findall(str(conninfo_to_dict(conninfo).get("options") or "")))
    values = [
        sql.SQL("({}, {})").format(sql.Literal(name), sql.Literal(re.sub(r"\\(.)", r"\1", value)))
        for name, value in asked.items()
        if name.lower() not in _AT_THE_START
    ]
    statement = sql.SQL(_SETTLING).format(sql.SQL(", ").join(values)) if values else sql.SQL(_WHO)
    return statement.as_string(None)


@contextmanager
def awaiting(end: End, uri: str) -> Iterator[None]:
    """Note that this thread waits, in a driver whose socket is not known, for the session that `uri` opens."""
    me = threading.get_ident()
    with _lock:
        _waits[me] = Wait(end=end, session=application_name(uri), since=time.monotonic())
    try:
        yield
    finally:
        with _lock:
            _waits.pop(me, None)


def watch(conn: psycopg.Connection[Any], end: str, session: str) -> None:
    """Have a psycopg connection looked at whenever it waits for an answer."""
    with _lock:
        _sessions[conn] = (end, session)


def waits() -> list[Wait]:
    """Return who waits now; of a psycopg connection since the first call that saw it wait."""
    now = time.monotonic()
    with _lock:
        found = list(_waits.values())
        for conn, (end, session) in list(_sessions.items()):
            if conn.closed or conn.pgconn.transaction_status != pq.TransactionStatus.ACTIVE:
                _busy.pop(conn, None)
                continue
            since = _busy.setdefault(conn, now)
            with suppress(psycopg.Error):  # closed meanwhile
                found.append(Wait(end=end, session=session, since=since, descriptor=conn.fileno()))
    return found


def note_blocker(text: str) -> None:
    """Remember who was last seen to hold a lock that a session of ours waits for; empty when nobody does."""
    global _blocker  # noqa: PLW0603 - like the waits, of this process
    _blocker = (text, time.monotonic())


def blocker() -> str:
    """Return who was seen to hold such a lock in the last minutes, for the message of a lock timeout; else nothing."""
    text, at = _blocker
    return text if time.monotonic() - at < _BLOCKER_SECONDS else ""


def owned() -> dict[int, str]:
    """Return the descriptors of all psycopg connections that are watched, each with the end that it leads to."""
    found = {}
    with _lock:
        for conn, (end, _) in list(_sessions.items()):
            with suppress(psycopg.Error):  # closed
                found[conn.fileno()] = end
    return found


def links() -> list[Link]:
    """Return every TCP connection of this process."""
    found: list[Link] = []
    try:
        names = os.listdir("/dev/fd")  # noqa: PTH208 - a thousand names, no paths
    except OSError:  # no descriptor is free just now
        return found
    for name in names:
        with suppress(OSError, ValueError):
            if (link := _link(int(name))) is not None:
                found.append(link)
    return found


def _link(descriptor: int) -> Link | None:
    status = os.fstat(descriptor)
    if not stat.S_ISSOCK(status.st_mode):
        return None
    with socket.socket(fileno=os.dup(descriptor)) as mine:
        if mine.family not in {socket.AF_INET, socket.AF_INET6} or mine.type != socket.SOCK_STREAM:
            return None
        peer, here = mine.getpeername(), mine.getsockname()
        moved = (0, 0)
        if hasattr(socket, "TCP_INFO"):
            told = mine.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            if len(told) >= _COUNTERS_AT + 16:
                moved = struct.unpack_from("=2Q", told, _COUNTERS_AT)
    return Link(
        descriptor=descriptor,
        inode=status.st_ino,
        peer=(str(peer[0]).removeprefix("::ffff:"), int(peer[1])),
        local_port=int(here[1]),
        moved=moved,
    )
