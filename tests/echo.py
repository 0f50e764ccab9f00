"""A server that asks for the password in clear, refuses it, and repeats it in what it says."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING

from listener import Listener

if TYPE_CHECKING:
    import asyncio

STARTUP = 196_608
"""Version 3.0 of the protocol; what asks for encryption has higher numbers."""


class Echo(Listener):
    """As hostile as a server can be at a login."""

    async def _connection(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while True:
            size, code = struct.unpack("!II", await client.readexactly(8))
            await client.readexactly(size - 8)
            if code == STARTUP:
                break
            to_client.write(b"N")
        to_client.write(b"R" + struct.pack("!II", 8, 3))
        await client.readexactly(1)
        (size,) = struct.unpack("!I", await client.readexactly(4))
        password = (await client.readexactly(size - 4)).rstrip(b"\0")
        said = b"no login with " + password + b", which is " + base64.b64encode(password)
        fields = b"SFATAL\0VFATAL\0C28000\0M" + said + b"\0\0"
        to_client.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        await to_client.drain()
        to_client.close()
