"""The watchdog finds the connections to a server whose name leads elsewhere by now, or could not be looked up at first."""

import socket
import threading

import pytest
import support

from keyhaul.postgres.dsn import Dsn
from keyhaul.sessions import links
from keyhaul.sessions.watchdog import Watchdog


@pytest.fixture
def silent_server():
    """The port of a server on 127.0.0.1 that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def names(monkeypatch):
    """What the name server says of ``db.example``; None: it is away."""
    said = {"db.example": None}
    real = socket.getaddrinfo

    def look_up(host, *args, **more):
        if host not in said:
            return real(host, *args, **more)
        if said[host] is None:
            raise socket.gaierror(socket.EAI_AGAIN, "away")
        return real(said[host], *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return said


@pytest.mark.parametrize("at_first", [None, "127.0.0.2"], ids=["the resolver was away", "the address was another one"])
def test_a_dead_connection_is_cut_whatever_the_name_of_its_server_led_to_at_the_start(silent_server, names, at_first):
    names["db.example"] = at_first
    dsn = Dsn.parse(f"postgresql://u@db.example:{silent_server}/d?sslmode=disable", "here")
    told = []
    watchdog = Watchdog({"source": dsn}, 1)
    watchdog.observe = told.append
    support.wait_until(lambda: not [one for one in threading.enumerate() if "look-up" in one.name], "the first look-up")
    names["db.example"] = "127.0.0.1"
    ended = threading.Event()

    def wait_for_an_answer():
        with socket.create_connection(("127.0.0.1", silent_server)) as mine, links.awaiting("source", "x://y?z=1"):
            mine.recv(1)
        ended.set()

    threading.Thread(target=wait_for_an_answer, daemon=True).start()
    try:
        support.wait_until(ended.is_set, "the connection to be cut", 30)
    finally:
        watchdog.stop()
    assert "cannot be asked" in told[0].message
