"""A pooler between us and the server: its sessions have our settings, or it is refused by name."""

import asyncio
import os
import shutil
import signal
import socket
import struct
import subprocess
from contextlib import contextmanager, suppress
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg
import pytest
import support
from cluster import NOBODY
from listener import Listener, listening
from moving import job, move, rows, run_sql

from keyhaul.control import Control
from keyhaul.errors import ConfigError, ConnectError
from keyhaul.execution.engine import run
from keyhaul.sessions import links, poolers


class Forgetful(Listener):
    """A proxy that drops the ``options`` of each session, as a pooler with ignore_startup_parameters does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._port = port

    async def _connection(self, client, to_client):
        server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                first = await client.readexactly(8)
                length, code = struct.unpack("!II", first)
                rest = await client.readexactly(length - 8)
                if code >> 16 != 3:  # asks for TLS, or is a cancel request
                    to_server.write(first + rest)
                    if code == 80877102:
                        break
                    to_client.write(await server.readexactly(1))
                    continue
                words = rest.split(b"\0")
                pairs = dict(zip(words[::2], words[1::2], strict=False))
                pairs.pop(b"options", None)
                pairs.pop(b"", None)
                kept = b"".join(name + b"\0" + value + b"\0" for name, value in pairs.items()) + b"\0"
                to_server.write(struct.pack("!II", len(kept) + 8, code) + kept)
                break
            await asyncio.gather(self._forward(client, to_server), self._forward(server, to_client))
        for writer in (to_server, to_client):
            writer.transport.abort()

    async def _forward(self, source, to):
        with suppress(ConnectionError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()


def through(uri, port):
    """Return the address of the same database by way of another port."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))


@pytest.fixture
def forgetful(server):
    with listening(Forgetful(server.port)) as proxy:
        yield proxy.port


SETTINGS = (
    "select g id, current_setting('row_security') || current_setting('TimeZone') || current_setting('bytea_output')"
    " || current_setting('transaction_read_only') || current_setting('statement_timeout') as s"
    " from generate_series(1, 10) g"
)


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_readers_have_their_settings_where_the_pooler_drops_them(databases, forgetful, reader):
    source = through(databases[0], forgetful)
    given = job((source, databases[1]), table=None, query=SETTINGS, into="public.t", reader=reader)
    assert run(given, lambda _event: None, Control()).outcome == "done"
    assert rows(databases[1], "select distinct s from public.t") == [("offUTChexon1h",)]


@pytest.mark.parametrize("loader", ["copy", "adbc"])
def test_workers_have_their_settings_where_the_pooler_drops_them(databases, forgetful, loader):
    run_sql(databases[0], "create table public.t as select g id from generate_series(1, 10) g")
    run_sql(
        databases[1],
        "create table public.t (id int, s text default current_setting('TimeZone') || current_setting('lock_timeout'))",
        f"alter database {urlsplit(databases[1]).path[1:]} set timezone = 'Asia/Tokyo'",
    )
    move((databases[0], through(databases[1], forgetful)), "public.t", mode="append", loader=loader)
    assert rows(databases[1], "select distinct s from public.t") == [("UTC1min",)]


@pytest.mark.parametrize("reader", ["connectorx", "adbc"])
def test_row_level_security_hides_nothing_without_a_word(server, databases, forgetful, reader):
    name = f"reader_{urlsplit(databases[0]).path[1:]}"
    run_sql(
        databases[0],
        "create table public.t as select g id from generate_series(1, 10) g",
        "alter table public.t enable row level security",
        "create policy half on public.t using (id <= 5)",
        f"create role {name} login password 'p'",
        f"grant select on public.t to {name}",
    )
    source = f"postgresql://{name}:p@127.0.0.1:{forgetful}{urlsplit(databases[0]).path}"
    try:
        with pytest.raises(ConfigError, match="row-level security hides rows"):
            move((source, databases[1]), "public.t", reader=reader)
    finally:
        run_sql(databases[0], f"drop owned by {name}", f"drop role {name}")


def test_settings_are_found_in_both_forms_of_an_address():
    asked = "-c a.b=1\\ 2 -c log_connections=1 -c search_path="
    for conninfo in (
        psycopg.conninfo.make_conninfo(host="h", options=asked),
        "postgresql://h/d?options=-c%20a.b%3D1%5C%202%20-c%20log_connections%3D1%20-c%20search_path%3D",
    ):
        statement = links.settling(conninfo)
        assert "('a.b', '1 2')" in statement
        assert "('search_path', '')" in statement
        assert "log_connections" not in statement
    assert links.settling("postgresql://h/d") == "select pg_catalog.pg_backend_pid()"


# --- PgBouncer -----------------------------------------------------------------------------------


@contextmanager
def bouncing(uri, **settings):
    """Run PgBouncer before the server of a database; yields its port."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("no pgbouncer is installed (Debian: apt install pgbouncer)")
    here = urlsplit(uri)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with support.open_folder() as folder:
        _write(folder, here, {"listen_port": port, **settings})
        user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        process = subprocess.Popen([program, "-q", folder / "ini"], cwd="/", stdin=subprocess.DEVNULL, **user)
        try:
            support.wait_until(lambda: _listens(port), "PgBouncer to listen", 20)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)


def _write(folder, here, settings):
    lines = {
        "listen_addr": "127.0.0.1", "unix_socket_dir": "", "auth_type": "trust", "auth_file": folder / "users",
        "logfile": folder / "log", "pidfile": folder / "pid",
        "ignore_startup_parameters": "options, extra_float_digits", **settings,
    }  # fmt: skip
    (folder / "users").write_text(f'"{here.username}" "{unquote(here.password)}"\n')
    text = "".join(f"{name} = {value}\n" for name, value in lines.items())
    (folder / "ini").write_text(f"[databases]\n* = host={here.hostname} port={here.port}\n[pgbouncer]\n{text}")
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)


def _listens(port):
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@pytest.fixture
def filled(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, s text)",
        "insert into public.t select g, 's' || g from generate_series(1, 1000) g",
    )
    poolers._sessions_last.clear()
    return databases


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("end", [0, 1])
def test_a_pooler_whose_sessions_do_not_last_is_refused_before_anything_is_locked(filled, mode, end):
    with bouncing(filled[end], pool_mode=mode) as port:
        ends = [through(uri, port) if number == end else uri for number, uri in enumerate(filled)]
        with pytest.raises(ConnectError) as refused:
            move(ends, "public.t", chunk=100)
        told = str(refused.value)
        assert told.startswith(f"connect to {('source', 'target')[end]} 127.0.0.1:{port}/")
        assert ("gives each transaction another session" if mode == "transaction" else "does not take") in told
        assert told.endswith(f"pool_mode = session, in --{('source', 'target')[end]} (or "
                             f"ETL_{('SOURCE', 'TARGET')[end]}_URL, or {('source', 'target')[end]}.uri)")  # fmt: skip
        assert rows(filled[1], "select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]
        assert move(filled, "public.t", chunk=100).counts.loaded == 1000  # nothing bars another


@pytest.mark.parametrize(("reader", "loader"), [("connectorx", "copy"), ("adbc", "adbc")])
def test_a_pooler_whose_sessions_last_is_as_good_as_the_server(filled, reader, loader):
    with bouncing(filled[0], pool_mode="session") as port:
        ends = [through(uri, port) for uri in filled]
        report = move(ends, "public.t", chunk=100, workers=2, reader=reader, loader=loader)
        assert (report.outcome, report.counts.loaded) == ("done", 1000)
    same = "select id, s from public.t order by id"
    assert rows(filled[1], same) == rows(filled[0], same)


def test_a_pool_of_one_session_is_refused(filled):
    with (
        bouncing(filled[0], pool_mode="session", default_pool_size=1) as port,
        pytest.raises(ConnectError, match="has no second session for us"),
    ):
        move((through(filled[0], port), filled[1]), "public.t", chunk=100)


def test_a_pooler_that_takes_no_settings_is_told_how_it_does(filled):
    with (
        bouncing(filled[0], ignore_startup_parameters="extra_float_digits") as port,
        pytest.raises(ConnectError, match="Give ignore_startup_parameters = options in its configuration"),
    ):
        move((through(filled[0], port), filled[1]), "public.t", chunk=100)
