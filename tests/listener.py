"""What every TCP proxy of the tests does: listen on a free port of 127.0.0.1 in a thread of its own, and stop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Listener:
    """Takes connections until it is stopped; what is done with each is `_connection`.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self) -> None:
        self.port = 0

    async def serve(self, ready: threading.Event) -> None:
        self._loop, self._done = asyncio.get_running_loop(), asyncio.Event()
        async with await asyncio.start_server(self._connection, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._done.wait()
            await self._end()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._done.set)

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def _end(self) -> None:
        """Give up what still waits."""


L = TypeVar("L", bound=Listener)


@contextmanager
def listening(proxy: L) -> Iterator[L]:
    """Run a proxy in a thread of its own."""
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve(ready)), daemon=True)
    thread.start()
    if not ready.wait(10):
        raise RuntimeError("start a proxy: it did not listen within 10 s")
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
