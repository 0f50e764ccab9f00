"""What several tiers need: the CLI as a process, a folder that the server's user can reach, fresh databases."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import forking
import psycopg
from psycopg import sql

from keyhaul.embedded import server as embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
    "autovacuum": "off",
}
"""For servers that live for one test run."""
STOP_SECONDS = 20.0

_numbers = itertools.count(1)
_kept: dict[str, psycopg.Connection[Any]] = {}
"""Of servers that run for a while, by their URI: sessions that make databases."""


@contextmanager
def open_folder() -> Iterator[Path]:
    """A new folder that every user can pass through; pytest's own are closed, which ends PostgreSQL under root."""
    folder = Path(tempfile.mkdtemp(prefix="keyhaul-test-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_server(*, major: Literal[18, 16] = 18, bindir: Path | None = None) -> Iterator[embedded.EmbeddedServer]:
    """A server in a home of its own; stopped and removed at the end, which is checked."""
    with open_folder() as folder:
        server = embedded.start(folder / "home", major=major, settings=FAST, bindir=bindir)
        place = server.uri("postgres")
        try:
            with psycopg.connect(place, autocommit=True, application_name="tests") as _kept[place]:
                yield server
        finally:
            del _kept[place]
            server.close()
            wait_until(lambda: not embedded.is_running(server.home), "the server to stop")
            assert processes_in(folder) == []


def wait_until(condition: Callable[[], bool], what: str, timeout_seconds: float = STOP_SECONDS) -> None:
    """Return as soon as `condition` holds; fail by name when it never does."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s for {what}"
        time.sleep(0.01)


def processes_in(folder: Path) -> list[int]:
    """The processes whose working directory is in `folder`: a keeper's is its home, postgres's its data folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            place = (process / "cwd").readlink()
        except OSError:
            continue
        if place.is_relative_to(folder):
            found.append(int(process.name))
    return found


@contextmanager
def _maintenance(server: embedded.EmbeddedServer) -> Iterator[psycopg.Connection[Any]]:
    """Yield a session that makes and drops databases: the one that `running_server` keeps, or a new one."""
    kept = _kept.get(server.uri("postgres"))
    if kept is not None and not kept.closed:
        yield kept
        return
    with psycopg.connect(server.uri("postgres"), autocommit=True) as connection:
        yield connection


def make_database(server: embedded.EmbeddedServer, prefix: str, template: str | None = None) -> str:
    """Make a database with a name of its own, empty or a copy of the one with a URI, and return its URI."""
    name = f"{prefix}_{os.getpid()}_{next(_numbers)}"
    origin = "template1" if template is None else str(psycopg.conninfo.conninfo_to_dict(template)["dbname"])
    # Copied as files: with what it takes to drop it, 15 ms of a server's CPU instead of 36 ms block by block.
    query = sql.SQL("create database {} template {} strategy file_copy")
    with _maintenance(server) as connection:
        connection.execute(query.format(sql.Identifier(name), sql.Identifier(origin)))
    return server.uri(name)


def drop_database(server: embedded.EmbeddedServer, uri: str) -> None:
    """Drop a database made by `make_database`, with every connection to it."""
    name = sql.Identifier(str(psycopg.conninfo.conninfo_to_dict(uri)["dbname"]))
    with _maintenance(server) as connection:
        connection.execute(sql.SQL("drop database if exists {} with (force)").format(name))


@contextmanager
def database_of(server: embedded.EmbeddedServer, prefix: str, statements: str) -> Iterator[str]:
    """Make a database with what the statements make, and drop it at the end; gives its URI."""
    uri = make_database(server, prefix)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(statements.encode())
    try:
        yield uri
    finally:
        drop_database(server, uri)


def clean_environment(home: Path, extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment with no ETL_*, PG* or XDG_* variable, the same keyhaul, and `home` as HOME."""
    left_out = ("ETL_", "PG", "XDG_", "PYTHONDONTWRITEBYTECODE")  # a thousand processes compile keyhaul once
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    ours = {
        "HOME": str(home),
        "ETL_HOME": str(home / "etl"),
        "PYTHONPATH": str(Path(embedded.__file__).parents[2]),
        "NO_COLOR": "1",
        "COLUMNS": "120",
    }
    merged: dict[str, str | None] = {**kept, **ours, **(extra or {})}
    return {name: value for name, value in merged.items() if value is not None}


def run_etl(
    home: Path,
    *args: str,
    env: Mapping[str, str | None] | None = None,
    timeout_seconds: float = 120.0,
    cwd: Path | None = None,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run ``etl ARGS`` to its end, forked (see `forking`); a variable of `env` that is None is left out.

    Args:
        home: HOME, the embedded server's folder, and where it runs unless `cwd` says so.
        args: of the command.
        env: what differs from `clean_environment`.
        timeout_seconds: after which it is killed, and the test fails.
        cwd: where it runs.
        fresh: in a new interpreter.
    """
    environment = clean_environment(home, env)
    if not fresh and forking.can_fork(args, environment):
        return forking.run(args, env=environment, cwd=cwd or home, timeout=timeout_seconds)
    return subprocess.run(
        [sys.executable, "-m", "keyhaul", *args],
        env=environment,
        cwd=cwd or home,
        timeout=timeout_seconds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
