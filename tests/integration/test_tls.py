"""A server that is not on this machine has to prove who it is; here it is one that libpq reaches by another name."""

from __future__ import annotations

import shutil
import subprocess
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from moving import move, rows, run_sql
from psycopg import sql

from keyhaul.errors import ConnectError, RefusedError

NAME = "0x7f000001"  # 127.0.0.1, in a form that is neither localhost nor 127.…


def openssl(folder, *words):
    subprocess.run([shutil.which("openssl"), *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def secured(server_icu, tmp_path_factory):
    """Debian's server with TLS and a certificate for `NAME`; yields it and the CA's certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    openssl(
        folder,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=test CA",
        "-days",
        "2",
    )
    openssl(
        folder,
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
        "-subj",
        "/CN=test",
    )
    (folder / "names").write_text(f"subjectAltName = DNS:{NAME}, IP:127.0.0.1\n")
    openssl(
        folder,
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "server.crt",
        "-days",
        "2",
        "-extfile",
        "names",
    )
    with psycopg.connect(server_icu.uri("postgres"), autocommit=True) as conn:
        for setting, file in (("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key")):
            text = (folder / file).read_text()
            path = conn.execute("select current_setting('data_directory') || '/' || %s", [file]).fetchone()[0]
            copy = sql.SQL("copy (select {}) to program {}").format(
                sql.Literal(text), sql.Literal(f"umask 077; sed 's/\\\\n/\\n/g' > {path}")
            )
            conn.execute(copy)
            conn.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(setting), sql.Literal(file)))
        conn.execute("alter system set ssl = on")
        conn.execute("select pg_reload_conf()")
    yield server_icu, folder / "ca.crt"
    with psycopg.connect(server_icu.uri("postgres"), autocommit=True) as conn:
        conn.execute("alter system reset all")
        conn.execute("select pg_reload_conf()")


@pytest.fixture
def ends(secured, database):
    """A source and a target on that server, by its other name, and the option that names its CA."""
    server, authority = secured
    uris = [database(server, "source"), database(server, "target")]
    run_sql(
        uris[0],
        "create table public.t (id int primary key, v text)",
        "insert into public.t select i, i::text from generate_series(1, 500) i",
    )
    return [uri.replace(urlsplit(uri).hostname, NAME) for uri in uris], f"?sslrootcert={quote(str(authority), safe='')}"


def test_a_server_on_another_machine_is_verified_unless_the_uri_says_otherwise(ends):
    uris, authority = ends
    with pytest.raises(ConnectError, match=r"certificate.*sslrootcert=FILE.*sslmode=require encrypts without"):
        move(uris, "public.t")
    report = move([uri + authority for uri in uris], "public.t")
    assert report.counts.loaded == 500
    assert rows(uris[1] + authority, "select count(*), sum(id) from public.t") == [(500, 125250)]


def test_connectorx_is_not_asked_for_what_it_cannot_do(ends):
    uris, authority = ends
    with pytest.raises(RefusedError, match="connectorx cannot do sslmode=verify-full"):
        move([uri + authority for uri in uris], "public.t", reader="connectorx")
    report = move([uri + "?sslmode=require" for uri in uris], "public.t", reader="connectorx")
    assert report.counts.loaded == 500


def test_a_server_without_tls_is_refused_by_default(server, database):
    uri = database(server).replace("127.0.0.1", NAME)
    with pytest.raises(ConnectError, match=r"does not support SSL.*sslmode=disable sends everything in the clear"):
        move([uri, uri], "public.t")


def test_what_tls_is_worth_is_printed(ends, etl):
    uris, authority = ends
    done = etl(
        "plan",
        "--key",
        "id",
        "--table",
        "public.t",
        "--source",
        uris[0] + authority,
        "--target",
        uris[1] + "?sslmode=require",
    )
    assert done.returncode == 0, done.stderr
    assert "(TLS verify-full), read with adbc" in done.stdout
    assert "(TLS, server not verified), loaded with copy" in done.stdout
