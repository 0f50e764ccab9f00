"""The addresses of one server, which may change while a run is under way: a name server that fails over, or is away."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from keyhaul.postgres.dsn import Dsn

LOOK_UP_SECONDS: Final = 5.0
"""How often a name is looked up again at the most."""


class Addresses:
    """All addresses that the server of a connection string has had so far; none for a socket directory."""

    def __init__(self, dsn: Dsn) -> None:
        """Look the name up, in a thread of its own: a resolver may take long."""
        self._dsn = dsn
        self._known: frozenset[tuple[str, int]] = frozenset()
        self._looked_up = -LOOK_UP_SECONDS
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.look_up()

    @property
    def known(self) -> frozenset[tuple[str, int]]:
        """Addresses and ports; old ones stay, since connections to them may."""
        return self._known

    def add(self, peer: tuple[str, int]) -> None:
        """Note where a connection to this server leads."""
        with self._lock:
            self._known |= {peer}

    def look_up(self) -> None:
        """Look the name up again, unless that was done a moment ago; does not wait for the answer."""
        dsn, now = self._dsn, time.monotonic()
        busy = self._thread is not None and self._thread.is_alive()
        if dsn.host.startswith("/") or busy or now - self._looked_up < LOOK_UP_SECONDS:
            return
        self._looked_up = now

        def work() -> None:
            try:
                found = socket.getaddrinfo(dsn.host, dsn.port, type=socket.SOCK_STREAM)
            except OSError:  # it is asked again
                return
            for address in found:
                self.add((str(address[4][0]), dsn.port))

        self._thread = threading.Thread(target=work, name="keyhaul-look-up", daemon=True)
        self._thread.start()
