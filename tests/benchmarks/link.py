"""A slow link: a TCP proxy that lets each connection pass so many bytes a second in each direction."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from listener import Listener, listening

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK_BYTES = 16_384
CATCH_UP_SECONDS = 0.2
"""How much a busy link may make up for waking late; else a loaded machine would make it slower than its rate."""


class Link(Listener):
    """Forwards to one server, each connection and direction at `bytes_per_second`."""

    def __init__(self, host: str, port: int, bytes_per_second: float) -> None:
        super().__init__()
        self._server = (host, port)
        self._rate = bytes_per_second

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(*self._server)
        except OSError:
            to_client.transport.abort()
            return
        try:
            await asyncio.gather(self._forward(client, to_server), self._forward(server, to_client))
        finally:
            for writer in (to_server, to_client):
                writer.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        """Send each block when its turn has come."""
        free_at = time.monotonic()
        with suppress(ConnectionError):
            while data := await source.read(BLOCK_BYTES):
                free_at = max(free_at, time.monotonic() - CATCH_UP_SECONDS) + len(data) / self._rate
                await asyncio.sleep(max(free_at - time.monotonic(), 0))
                to.write(data)
                await to.drain()
        to.close()


@contextmanager
def throttled(uri: str, bytes_per_second: float) -> Iterator[str]:
    """Give a URI that leads to the same database over a slow link, until the end of the block."""
    parts = urlsplit(uri)
    login, at, _ = parts.netloc.rpartition("@")
    with listening(Link(parts.hostname or "127.0.0.1", parts.port or 5432, bytes_per_second)) as link:
        yield urlunsplit(parts._replace(netloc=f"{login}{at}127.0.0.1:{link.port}"))
