"""A thread that finds connections which are dead though nobody says so, and cuts them, so that the run goes on.

A connection is dead when a thread of ours has waited for it, and no byte has moved on it, for the whole timeout, while
the server's session waits for us, is not there, or cannot be asked about. A server that works (a long query, a
lock) is left alone: its statement_timeout is the bound for that. What is cut is an ordinary lost connection to the
drivers: the chunk is tried again after a look in the ledger.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import psycopg

from keyhaul import events
from keyhaul.errors import first_line
from keyhaul.postgres.dsn import redact
from keyhaul.sessions import links
from keyhaul.sessions.addresses import Addresses

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.model import Observer
    from keyhaul.postgres.dsn import Dsn
    from keyhaul.sessions.links import Link, Wait

ASK_SECONDS: Final = 3.0
"""How long the server may take to say what a session does; after that it counts as out of reach."""

ASK_AGAIN_SECONDS: Final = 30.0
"""How often it is asked of one wait at the least."""

TELL_SECONDS: Final = 2.0
"""After so long without a byte, it is asked whether a lock is in the way."""

_SESSIONS: Final = """
select s.application_name, s.pid, s.client_port, s.state = 'active' and s.wait_event_type is distinct from 'Client',
       case when b.pid is not null then format('process %%s (%%s, %%s, its transaction began %%s)', b.pid,
            coalesce(nullif(b.application_name, ''), 'no application_name'), b.state,
            to_char(b.xact_start, 'YYYY-MM-DD HH24:MI:SS TZ')) end
  from pg_stat_activity s
  left join pg_stat_activity b on s.wait_event_type = 'Lock' and b.pid = any(pg_blocking_pids(s.pid))
 where s.application_name = any(%s) and s.datname = current_database()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What a server says of a session.

    Attributes:
        works: it does something for us, if only wait for a lock.
        waiting: the processes that wait for us, by our port.
        blockers: who holds a lock that it waits for.
    """

    works: bool
    waiting: dict[int, int]
    blockers: tuple[str, ...] = ()


class Watchdog:
    """Watches all connections of this process to the databases of a job, until `stop`.

    Attributes:
        observe: told what is cut; may be replaced once there is somebody to tell.
    """

    def __init__(self, dsns: Mapping[str, Dsn], timeout_seconds: float) -> None:
        """Begin to watch the databases of these names, ``source`` and ``target``, in a thread of its own."""
        self._dsns = dict(dsns)
        self._timeout_seconds = timeout_seconds
        self.observe: Observer = lambda _event: None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keyhaul-watchdog", daemon=True)
        self._moved: dict[int, tuple[tuple[int, int], float]] = {}
        self._asked: dict[Wait, float] = {}
        self._blockers: set[str] = set()
        self._pause = min(0.5, timeout_seconds / 5)
        self._thread.start()

    def stop(self) -> None:
        """End; does not wait for an answer that is under way."""
        self._done.set()

    def _watch(self) -> None:
        addresses = {end: Addresses(dsn) for end, dsn in self._dsns.items()}
        while not self._done.wait(self._pause):
            now = time.monotonic()
            there = links.links()
            quiet = self._quiet(there, now)
            owned = links.owned()
            for link in there:
                if (end := owned.get(link.descriptor)) in addresses:
                    addresses[end].add(link.peer)
            first = min(TELL_SECONDS, self._timeout_seconds)
            due: defaultdict[str, list[tuple[Wait, list[Link]]]] = defaultdict(list)
            for wait in links.waits():
                if now - wait.since < first or wait.end not in addresses:
                    continue
                place = addresses[wait.end]
                mine = [link for link in there if _may_be(wait, link, place, owned)]
                if not mine:
                    place.look_up()
                silent = [link for link in mine if quiet[link.inode] >= first]
                asked = now - self._asked.get(wait, -ASK_AGAIN_SECONDS)
                if (silent or not place.known) and asked >= self._again(now - wait.since):
                    self._asked[wait] = now
                    late = now - wait.since >= self._timeout_seconds
                    late_links = [link for link in silent if late and quiet[link.inode] >= self._timeout_seconds]
                    due[wait.end].append((wait, late_links))
            for end, found in due.items():
                self._judge(end, found)
            self._asked = {wait: at for wait, at in self._asked.items() if now - at < ASK_AGAIN_SECONDS}

    def _again(self, waited_seconds: float) -> float:
        """Return after what time the server is asked again of one wait; a long query is not asked about often."""
        return min(ASK_AGAIN_SECONDS, max(self._pause, min(self._timeout_seconds, waited_seconds) / 3))

    def _quiet(self, there: Sequence[Link], now: float) -> dict[int, float]:
        """Return for how many seconds nothing has moved on each socket."""
        moved = {}
        for link in there:
            counters, since = self._moved.get(link.inode, (None, now))
            moved[link.inode] = (link.moved, since if counters == link.moved else now)
        self._moved = moved
        return {inode: now - since for inode, (_, since) in moved.items()}

    def _judge(self, end: str, found: Sequence[tuple[Wait, list[Link]]]) -> None:
        """Ask the server, once, what the sessions do; cut those that do nothing for us."""
        answer = self._ask(end, sorted({wait.session for wait, _ in found}))
        idle = []
        for wait, silent in found:
            told = None if answer is None else answer.get(wait.session, _Told(works=False, waiting={}))
            if told is not None and told.blockers:
                self._tell_blockers(wait, told.blockers)
            if silent and (told is None or not told.works):
                idle.append((wait, silent, told))
        if not idle:
            return
        self._done.wait(self._pause)
        waits, moved = set(links.waits()), {link.inode: link.moved for link in links.links()}
        for wait, silent, told in idle:
            # The answer may have come while the server was asked.
            still = [link for link in silent if wait in waits and moved.get(link.inode) == link.moved]
            if still:
                self._cut(wait, still, told)

    def _cut(self, wait: Wait, silent: Sequence[Link], told: _Told | None) -> None:
        waiting = told.waiting if told else {}
        # Without a proxy between, the server knows our port, and no other connection is touched.
        for link in [link for link in silent if link.local_port in waiting] or silent:
            link.shut()
        if waiting:
            self._end_sessions(wait, list(waiting.values()))
        why = "cannot be asked" if told is None else "waits for us" if waiting else "has no such session"
        self.observe(
            events.Notice(
                message=f"nothing came from the {wait.end} for {self._timeout_seconds:g} s, and it {why}: "
                f"the connection of {wait.session} was cut",
                level="warning",
            )
        )

    def _tell_blockers(self, wait: Wait, blockers: Sequence[str]) -> None:
        """Say who is in the way, once for each."""
        held = "; ".join(sorted(set(blockers)))
        links.note_blocker(held)
        if held not in self._blockers:
            self._blockers.add(held)
            message = f"{wait.session} waits in the {wait.end} for a lock held by {held}"
            self.observe(events.Notice(message=message, level="warning"))

    def _ask(self, end: str, sessions: Sequence[str]) -> dict[str, _Told] | None:
        """Return what the server says of each session that it has; None when there is no server to be heard.

        A server that answers, and will not tell (too many connections), is taken as one that works.
        """
        answer: list[dict[str, _Told]] = []

        def work() -> None:
            try:
                # A name is cut by the server.
                names = {name.encode()[:63].decode(errors="ignore"): name for name in sessions}
                with self._connect(end) as conn:
                    rows = conn.execute(_SESSIONS, [list(names)]).fetchall()
                by_name: defaultdict[str, list[Any]] = defaultdict(list)
                for cut, *row in rows:
                    by_name[names[cut]].append(row)
                answer.append({name: _told(found) for name, found in by_name.items()})
            except psycopg.Error as error:
                if error.sqlstate or "FATAL" in str(error):
                    answer.append(dict.fromkeys(sessions, _Told(works=True, waiting={})))

        asking = threading.Thread(target=work, name="keyhaul-watchdog-asks", daemon=True)
        asking.start()
        asking.join(ASK_SECONDS)
        return answer[0] if answer else None

    def _end_sessions(self, wait: Wait, pids: list[int]) -> None:
        """End the sessions: one that cannot send what it has takes no cancel request."""

        def work() -> None:
            try:
                with self._connect(wait.end) as conn:
                    conn.execute("select pg_terminate_backend(pid) from unnest(%s::int[]) as s(pid)", [pids])
            except psycopg.Error as error:
                text = redact(first_line(error), *self._dsns.values())
                message = f"end the session {wait.session} in the {wait.end}: {text}; the server notices by itself"
                self.observe(events.Notice(message=message, level="warning"))

        ending = threading.Thread(target=work, name="keyhaul-watchdog-ends", daemon=True)
        ending.start()
        ending.join(ASK_SECONDS)

    def _connect(self, end: str) -> psycopg.Connection[Any]:
        conninfo = self._dsns[end].conninfo(
            application_name="keyhaul watchdog", options={"statement_timeout": "2s"}, connect_timeout_seconds=2
        )
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)


def _told(rows: Sequence[Any]) -> _Told:
    waiting = {port: pid for pid, port, works, _ in rows if not works}
    held = tuple(row[3] for row in rows if row[3])
    return _Told(works=any(row[2] for row in rows), waiting=waiting, blockers=held)


def _may_be(wait: Wait, link: Link, place: Addresses, owned: Mapping[int, str]) -> bool:
    """Whether a thread waits on this connection: the one that it names, else any to the server that nobody names."""
    if wait.descriptor is not None:
        return link.descriptor == wait.descriptor
    return link.peer in place.known and link.descriptor not in owned
