"""A TCP proxy before PostgreSQL for a whole link: it goes dark, and may come back for new connections only."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from listener import Listener, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 65536


class DarkNet(Listener):
    """Forwards everything until it is `dark`: then no byte passes either way, and neither side is told.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, server_port: int) -> None:
        super().__init__()
        self._server_port = server_port
        self._dark = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()

    def dark(self) -> None:
        """Lose every byte of all connections there are, for ever, and of new ones until `heal`."""
        self._dark = True
        self._loop.call_soon_threadsafe(self._lost.update, list(self._open))

    def heal(self) -> None:
        """Forward new connections; the servers' ends of the old ones stay open."""
        self._dark = False

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._tasks.add(me)
        me.add_done_callback(self._tasks.discard)
        self._open.add(to_client)
        if self._dark:
            self._lost.add(to_client)
            with suppress(ConnectionError, asyncio.CancelledError):
                while await client.read(BLOCK):
                    pass
            return
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._open.add(to_server)
        answers = asyncio.create_task(self._forward(server, to_client, to_client))
        self._tasks.add(answers)
        await self._forward(client, to_server, to_client)

    async def _forward(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, client: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError, asyncio.CancelledError):
            while data := await source.read(BLOCK):
                if client not in self._lost:
                    to.write(data)
                    await to.drain()
        if client not in self._lost:  # else the server does not hear that we are gone
            to.close()


@contextmanager
def dark_net(server_port: int) -> Iterator[DarkNet]:
    """Run a proxy in a thread of its own."""
    with listening(DarkNet(server_port)) as proxy:
        yield proxy
