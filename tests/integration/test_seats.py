"""Seats: a session of ours that a dead link has left in the server does not stand in the way of the next one."""

import psycopg
import pytest
import support
from aftermath import fetch
from darknet import dark_net
from moving import job
from psycopg import sql

from keyhaul.ledger.store import Ledger
from keyhaul.postgres.dsn import Dsn
from keyhaul.sessions.connecting import connect_ledger
from keyhaul.targets.session import SESSIONS

NAME = "keyhaul 20260101T000000-abcd worker 1"
WHO = sql.SQL("select pg_backend_pid()")


def through(uri, server, proxy):
    return f"{uri.replace(f':{server.port}/', f':{proxy.port}/')}?application_name={NAME.replace(' ', '%20')}"


def pids(uri):
    return {pid for (pid,) in fetch(uri, "select pid from pg_stat_activity where application_name like 'keyhaul %'")}


@pytest.mark.parametrize("loader", SESSIONS)
def test_who_opens_a_session_again_ends_the_one_that_a_dead_link_has_left(database, server, loader):
    uri = database(server)
    with dark_net(server.port) as proxy:
        old = SESSIONS[loader](through(uri, server, proxy))
        ((pid,),) = old.execute(WHO)
        proxy.dark()
        old.close()
        assert pids(uri) == {pid}
        proxy.heal()
        new = SESSIONS[loader](through(uri, server, proxy))
        ((now,),) = new.execute(WHO)
        support.wait_until(lambda: pids(uri) == {now}, "the old session to end")
        new.close()


@pytest.mark.parametrize("loader", SESSIONS)
def test_a_session_of_the_same_name_that_is_not_ours_or_not_given_up_is_left_alone(database, server, loader):
    uri = database(server)
    with dark_net(server.port) as proxy, psycopg.connect(uri, application_name=NAME) as other:
        first = SESSIONS[loader](through(uri, server, proxy))
        second = SESSIONS[loader](through(uri, server, proxy))
        third = SESSIONS[loader](through(uri, server, proxy))
        second.close()
        fourth = SESSIONS[loader](through(uri, server, proxy))
        alive = {one.execute(WHO)[0][0] for one in (first, third, fourth)}
        support.wait_until(lambda: pids(uri) == {*alive, other.info.backend_pid}, "the second to end")
        for one in (first, third, fourth):
            one.close()


def test_the_jobs_lock_is_taken_over_from_a_lost_session_of_this_process_under_another_runs_name(database, server):
    uri = database(server)
    made = job((uri, uri))
    with dark_net(server.port) as proxy:
        dsn = Dsn.parse(through(uri, server, proxy), "uri")
        old = connect_ledger(made, dsn, "20260101T000000-0001")
        Ledger(lambda: old, "keyhaul", "job").lock()
        proxy.dark()
        old.close()
        proxy.heal()
        new = connect_ledger(made, dsn, "20260101T000000-0002")
        Ledger(lambda: new, "keyhaul", "job").lock()
        assert pids(uri) == {new.info.backend_pid}
        new.close()
