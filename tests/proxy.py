"""A TCP proxy before PostgreSQL that loses a worker's COMMIT, or the answer to it."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

from listener import Listener, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

STARTING = b"application_name\x00keyhaul "
"""In the message that opens a session."""

CHUNK = b".chunks "
"""The ledger's table, which each chunk's transaction writes to; the one that gives a session its settings does not."""

COMMIT = b"COMMIT\x00"
"""The end of the message in which psycopg and ADBC both send it (a simple query)."""


class Proxy(Listener):
    """Forwards every connection; of a worker's, the first `times` that say COMMIT are cut.

    Attributes:
        port: on 127.0.0.1.
        cut: how many connections were cut.
    """

    def __init__(self, server_port: int, times: int, lose: Literal["commit", "answer"]) -> None:
        """Lose the ``commit`` itself, before the server has it, or only the server's ``answer``."""
        super().__init__()
        self._server_port = server_port
        self._times = times
        self._lose = lose
        self.cut = 0

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(self._forward(server, to_client))
        is_worker = loads = False
        try:
            while data := await client.read(65536):
                is_worker = is_worker or (STARTING in data and b" worker " in data)
                loads = loads or (is_worker and CHUNK in data)
                if loads and data.endswith(COMMIT) and self.cut < self._times:
                    self.cut += 1
                    answers.cancel()
                    await asyncio.sleep(0)  # until it has let go of the server's answers
                    if self._lose == "answer":
                        to_server.write(data)
                        await server.read(65536)  # the server has committed: this was its answer
                    break
                to_server.write(data)
                await to_server.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            for writer in (to_server, to_client):
                writer.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                to.write(data)
                await to.drain()
        to.close()


@contextmanager
def losing(server_port: int, *, times: int, lose: Literal["commit", "answer"]) -> Iterator[Proxy]:
    """Run a proxy in a thread of its own."""
    with listening(Proxy(server_port, times, lose)) as proxy:
        yield proxy
