"""A TCP proxy before PostgreSQL that breaks one connection in one way at one moment."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import psycopg
from listener import Listener, listening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyhaul.embedded.server import EmbeddedServer

Fault = Literal["reset", "half close", "stall", "black hole", "terminated"]
Step = Literal["connect", "plan", "read", "load", "commit", "ledger", "snapshot"]

BLOCK: Final = 65536
AFTER_BYTES: Final = 3000
"""How much of an answer goes through before a black hole opens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The message at which a connection breaks: what its session is called, and what the message holds."""

    session: bytes
    message: bytes


MOMENTS: Final[dict[str, Moment]] = {
    "connect to source": Moment(session=b" chunk ", message=b"application_name"),
    "plan": Moment(session=b" snapshot", message=b"order by"),
    "snapshot": Moment(session=b" snapshot", message=b"pg_export_snapshot"),
    "read": Moment(session=b" chunk ", message=b'"doc"'),
    "connect to target": Moment(session=b" worker ", message=b"application_name"),
    "load": Moment(session=b" worker ", message=b"copy "),
    "commit": Moment(session=b" worker ", message=b"commit\x00"),
    "plan written": Moment(session=b" ledger", message=b"jsonb_array_elements_text(nullif"),
    "ledger": Moment(session=b" ledger", message=b"ended_at = clock_timestamp(), stop_reason"),
}


class BadNet(Listener):
    """Forwards everything; the `times` first connections that come to the moment are broken.

    Attributes:
        port: on 127.0.0.1.
        broken: how many connections were.
        broken_at: monotonic seconds of the last.
    """

    def __init__(
        self, server_port: int, server_uri: str, fault: Fault, moment: Moment, times: int, after_bytes: int
    ) -> None:
        """Do `fault` at `moment`; a black hole lets `after_bytes` of the answer through."""
        super().__init__()
        self._server_port = server_port
        self._server_uri = server_uri
        self._fault = fault
        self._moment = moment
        self._times = times
        self._after_bytes = after_bytes
        self._waiting: set[asyncio.Task[None]] = set()
        self.broken = 0
        self.broken_at = 0.0

    async def _end(self) -> None:
        for task in list(self._waiting):
            task.cancel()
        await asyncio.sleep(0.05)

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._waiting.add(me)
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        answers = asyncio.create_task(self._forward(server, to_client, lambda: None))
        ours, tail = False, b""
        try:
            while data := await client.read(BLOCK):
                ours = ours or (b"application_name\x00keyhaul" in data and self._moment.session in data)
                if ours and self._moment.message in (tail + data).lower() and self.broken < self._times:
                    self.broken += 1
                    self.broken_at = time.monotonic()
                    await self._break(client, to_client, server, to_server, answers, data)
                    return
                tail = data[-40:]
                to_server.write(data)
                await to_server.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            answers.cancel()
            for writer in (to_server, to_client):
                writer.transport.abort()
            self._waiting.discard(me)

    async def _break(self, client, to_client, server, to_server, answers, data) -> None:
        answers.cancel()
        await asyncio.sleep(0)  # until it has let go of the server's answers
        match self._fault:
            case "reset":
                to_client.transport.abort()
            case "terminated":  # the server ends the session, and only then has the message
                port = to_server.get_extra_info("sockname")[1]
                await asyncio.to_thread(_terminate, self._server_uri, port)
                to_server.write(data)
                with suppress(ConnectionError):
                    while answer := await server.read(BLOCK):
                        to_client.write(answer)
                        await to_client.drain()
            case "half close":
                to_server.write(data)
                to_client.write_eof()  # it hears no more from us, and may still speak
                await self._swallow(client)
            case "stall":  # the message never comes to the server; nobody is told
                await self._swallow(client)
            case "black hole":
                # the server has the message and what follows it; only the beginning of its answer comes back
                to_server.write(data)
                asking = asyncio.create_task(self._forward(client, to_server, lambda: None))
                left = self._after_bytes
                while left > 0:
                    answer = await server.read(left)
                    if not answer:
                        break
                    left -= len(answer)
                    to_client.write(answer)
                asking.cancel()
                await asyncio.sleep(0)  # until it has let go of what the client says
                await self._swallow(client)

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(BLOCK):
            pass

    async def _forward(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, after: Callable[[], None]) -> None:
        with suppress(ConnectionError):
            while data := await source.read(BLOCK):
                to.write(data)
                await to.drain()
        after()
        to.close()


def _terminate(uri: str, client_port: int) -> None:
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where client_port = %s", [client_port]
        )


@contextmanager
def bad_net(
    server: EmbeddedServer, fault: Fault, moment: str, *, times: int = 1, after_bytes: int = AFTER_BYTES
) -> Iterator[BadNet]:
    """Run a proxy in a thread of its own."""
    broken = BadNet(server.port, server.uri("postgres"), fault, MOMENTS[moment], times, after_bytes)
    with listening(broken) as proxy:
        yield proxy
