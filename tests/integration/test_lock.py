"""The job's lock: whoever goes on over a new connection has it, however the first was lost."""

import threading

import psycopg
import pytest

from keyhaul.errors import ConnectError, RefusedError
from keyhaul.ledger.store import Ledger


@pytest.fixture
def place(database, server):
    """A ledger that holds its job's lock; ``lose()`` ends its session, and while ``down`` no other can be opened."""

    class Place:
        uri, down, conn = database(server), False, None

        def connect(self):
            if self.conn is None or self.conn.broken or self.conn.closed:
                if self.down:
                    raise ConnectError("connect to the target: got nothing, expected a server. Wait")
                self.conn = psycopg.connect(self.uri, autocommit=True)
            return self.conn

        def lose(self):
            with psycopg.connect(self.uri, autocommit=True) as other:
                other.execute("select pg_terminate_backend(%s)", [self.conn.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                self.conn.execute("select 1")

    made = Place()
    made.ledger = Ledger(made.connect, "keyhaul", "job")
    made.ledger.create()
    made.ledger.lock()
    yield made
    made.conn.close()


def second(place):
    with psycopg.connect(place.uri, autocommit=True) as conn:
        Ledger(lambda: conn, "keyhaul", "job").lock()


USES = {
    "the connection": lambda ledger: ledger.connection,
    "the connection at once": lambda ledger: ledger.connection_now,
    "a statement": lambda ledger: ledger.exists(),
    "a statement that is repeated": lambda ledger: ledger.totals("none"),
    "a heartbeat": lambda ledger: ledger.touch(),
}


@pytest.mark.parametrize("away", [False, True], ids=["at once", "the server was away at first"])
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_lock_is_taken_again_before_anything_else_is_done(place, use, away):
    place.lose()
    if away:
        place.down = True
        with pytest.raises(ConnectError):
            place.ledger.touch()
        place.down = False
    second(place)  # nobody has it now
    use(place.ledger)
    with pytest.raises(RefusedError, match="is being run by"):
        second(place)


def test_who_cannot_wait_is_told_while_another_thread_opens_the_connection(place):
    place.lose()
    connect, opening, go_on = place.connect, threading.Event(), threading.Event()

    def slowly():
        opening.set()
        assert go_on.wait(30)
        return connect()

    place.ledger._open = slowly
    thread = threading.Thread(target=lambda: place.ledger.connection)
    thread.start()
    try:
        assert opening.wait(30)
        with pytest.raises(ConnectError, match="another thread is at it"):
            _ = place.ledger.connection_now
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_who_finds_it_taken_does_nothing_more(place, use):
    place.lose()
    with psycopg.connect(place.uri, autocommit=True) as conn:
        Ledger(lambda: conn, "keyhaul", "job").lock()
        with pytest.raises(RefusedError, match="is being run by"):
            use(place.ledger)
        with pytest.raises(RefusedError, match="is being run by"):
            place.ledger.touch()
