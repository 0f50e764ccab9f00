"""Limits that a role or a database has of its own: each session of ours sets what it needs, and no run ends by them."""

from urllib.parse import urlsplit

import psycopg
import pytest
from moving import job, rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.control import Control
from keyhaul.execution.engine import run

OURS = {
    "idle_in_transaction_session_timeout": "100ms",
    "idle_session_timeout": "100ms",
    "lock_timeout": "1ms",
    "statement_timeout": "100ms",
    "transaction_timeout": "100ms",
}
"""What a user may set that ends a statement, a transaction or a session, in PostgreSQL 14 to 18."""

HARMLESS = {"deadlock_timeout", "tcp_user_timeout", "wal_receiver_timeout", "wal_sender_timeout"}


@pytest.mark.parametrize("which", ["server", "server16", "server_icu"])
def test_the_list_of_limits_is_whole(request, which):
    uri = request.getfixturevalue(which).uri("postgres")
    found = rows(uri, "select name from pg_settings where name ~ 'timeout' and context in ('user', 'superuser')")
    assert {name for (name,) in found} <= OURS.keys() | HARMLESS


@pytest.fixture
def limited(databases, request):
    """Both ends, by a role with every limit."""
    own = databases[0]
    names = [urlsplit(uri).path[1:] for uri in databases]
    role = f"limited_{names[0]}"
    with psycopg.connect(own, autocommit=True) as conn:
        known = {name for (name,) in conn.execute("select name from pg_settings").fetchall()}
    run_sql(own, f"create role {role} login password 'p' in role keyhaul")
    run_sql(own, *(f"alter role {role} set {name} = '{value}'" for name, value in OURS.items() if name in known))
    yield [uri.replace(uri.partition("//")[2].partition("@")[0], f"{role}:p") for uri in databases]
    for uri in databases:
        run_sql(uri, f"drop owned by {role} cascade")
    run_sql(own, f"drop role {role}")


@pytest.mark.parametrize(("reader", "loader"), [("connectorx", "copy"), ("adbc", "adbc")])
def test_a_run_outlasts_the_limits_of_its_role(databases, limited, reader, loader):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, s text)",
        "insert into public.t select g, 's' || g from generate_series(1, 1000) g",
        "grant all on all tables in schema public to public",
    )
    run_sql(databases[1], "grant all on schema public to public")
    own = urlsplit(databases[1]).path[1:]
    run_sql(databases[1], f"grant create on database {own} to public")
    slow = job(limited, chunk=100, workers=1, rate_limit=500, reader=reader, loader=loader)
    report = run(slow, lambda _event: None, Control())
    assert (report.outcome, report.counts.loaded, report.stop_reason) == ("done", 1000, "")
    found = verify(slow)
    assert (found.rows, found.changed, found.missing) == (1000, 0, 0)
