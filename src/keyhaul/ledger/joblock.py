"""The job's lock, and the connection that holds it: whoever goes on over a new one has the lock first."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import errors

from keyhaul.errors import ConnectError, RefusedError
from keyhaul.ledger import versions
from keyhaul.ledger.patience import Patience
from keyhaul.ledger.statements import statement

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOCK_SECONDS: Final = 1.0
"""How long to wait for the job's lock: the server needs a moment to notice that a killed process is gone."""

_SESSION_NAME: Final = re.compile(r" ledger (?P<pid>\d+)@(?P<host>.*)")


class JobConnection:
    """The connection of one job to its ledger, in autocommit, with the job's lock; a new one when it is lost.

    Attributes:
        patience: with the target, of all that ask for it: whoever gives it up gives it up for the others.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], schema: str, job: str) -> None:
        """Use the connection that `connect` returns, which must be in autocommit mode.

        Args:
            connect: returns the open connection, or a new one when it was lost.
            schema: the ledger's schema.
            job: the job's name.
        """
        self._open = connect
        self._locked_on: psycopg.Connection[Any] | None = None
        self._mutex = threading.RLock()
        self.patience = Patience()
        self.schema = schema
        self.job = job

    @staticmethod
    def session_name(run_id: str) -> str:
        """Return the application_name of the connection that holds the job's lock: it says whose it is."""
        return f"keyhaul {run_id} ledger {os.getpid()}@{platform.node()}"[:63]

    def connect_by(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """Let `connect` open the connection from now on; it returns the one that is open as long as that one is."""
        self._open = connect

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """Return the connection that holds the job's lock; a new one takes it first.

        Raises:
            RefusedError: another process has taken the lock meanwhile.
            ConnectError: the target cannot be reached just now.
        """
        with self._mutex:
            conn = self._open()
            if self._locked_on is not None and conn is not self._locked_on:
                self._lock(conn)
            return conn

    @property
    def connection_now(self) -> psycopg.Connection[Any]:
        """Return `connection` without waiting for a thread that is opening it again.

        Raises:
            RefusedError: another process has taken the lock meanwhile.
            ConnectError: the target cannot be reached just now.
        """
        if not self._mutex.acquire(blocking=False):
            raise ConnectError("connect to the target: another thread is at it, expected a moment. Try again")
        try:
            return self.connection
        finally:
            self._mutex.release()

    def _execute(self, name: str, **values: object) -> psycopg.Cursor[Any]:
        return self.connection.execute(statement(name, self.schema, **values))

    def _execute_again(self, name: str, **values: object) -> psycopg.Cursor[Any]:
        """Run an idempotent statement; once more over a new connection, with the lock, when the first is lost."""
        with self._mutex:
            self.patience.check()
            try:
                return self._execute(name, **values)
            except (psycopg.OperationalError, ConnectError):
                if not self.patience.wait_for(lambda: self.connection.execute("select 1")):
                    raise
                return self._execute(name, **values)

    def touch(self, gathered: Mapping[str, object] | None = None) -> None:
        """Notice a lost connection before it is needed: open it again, once, and take the lock.

        Args:
            gathered: `run_id`, `chunks` and `rows`, to write on that occasion how far a run has gathered.

        Raises:
            RefusedError: another process has taken the lock meanwhile.
            ConnectError: the target cannot be reached just now.
        """
        if not self._mutex.acquire(blocking=False):
            return  # a worker is at it
        try:
            try:
                self.connection.execute("select 1")
            except psycopg.OperationalError:
                self.connection.execute("select 1")
            self.patience.found()
            if gathered:
                self._execute("gathered", **gathered)
        finally:
            self._mutex.release()

    def settle(self) -> None:
        """Wait for what killed processes of this job have left under way in the target, a COMMIT for example.

        What is looked at after that stays as it is. Only who has the job's lock may rely on it. An older ledger is
        brought to the newest version here.

        Raises:
            RefusedError: the ledger is of a version that is not known.
        """
        with contextlib.suppress(errors.ReadOnlySqlTransaction):  # such a target is refused for that
            versions.upgrade(self.connection, self.schema)
            if versions.is_there(self.connection, self.schema):
                self._execute("settle", job=self.job)

    def lock(self) -> None:
        """Take the job's lock until the connection closes.

        Raises:
            RefusedError: another process runs this job; names its pid and host.
        """
        with self._mutex:
            self._lock(self._open())

    def _lock(self, conn: psycopg.Connection[Any]) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            row = conn.execute(statement("try_lock", self.schema, schema_name=self.schema, job=self.job)).fetchone()
            if row and row[0]:
                self._locked_on = conn
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        msg = f"start job {self.job}: it is being run by {self._holder(conn)}. Wait for it, or stop it"
        raise RefusedError(msg)

    def _holder(self, conn: psycopg.Connection[Any]) -> str:
        row = conn.execute(statement("holder", self.schema, schema_name=self.schema, job=self.job)).fetchone()
        found = _SESSION_NAME.search(row[0]) if row else None
        if found is None:  # a pooler may give sessions other names
            return "another process"
        pid, host = int(found["pid"]), found["host"]
        asked = statement("running_as", self.schema, job=self.job, pid=pid, host=host)
        run = conn.execute(asked).fetchone() if versions.is_there(conn, self.schema) else None
        return f"process {pid} on {run[0]} (run {run[1]})" if run else f"process {pid} on {host}"
