"""Reads of remote objects: under way in one thread of their own, ahead of who reads, and ended by a word."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from concurrent.futures import CancelledError as Ended
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from keyhaul.errors import CancelledError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

BLOCK_BYTES: Final = 4 * 2**20
"""What one request asks for: a whole block of the object, in which small reads find what they want."""

AHEAD: Final = 4
"""Blocks that are fetched before they are asked for, of an object that is read in its order."""

KEPT: Final = 16
"""Blocks that are held for all objects together: 64 MB."""


class Ranged(Protocol):
    """What blocks are fetched of."""

    @property
    def size(self) -> int:
        """Bytes."""

    def fetch(self, begin: int, end: int) -> Coroutine[Any, Any, bytes]:
        """Return bytes `begin` up to `end`.

        Raises:
            StopRunError: it has changed, is gone, or may not be read any more.
            TransientError: no answer, or a part of one.
        """


class Transfers:
    """What is under way between a source and its stores; safe to use from several threads."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._going: set[Future[Any]] = set()
        self._blocks: OrderedDict[tuple[Ranged, int], Future[bytes]] = OrderedDict()
        self._last: dict[Ranged, int] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="keyhaul-transfers", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` does in the other thread.

        Raises:
            CancelledError: `cancel` was called.
        """
        return self._result(self._start(work))

    def read(self, file: Ranged, offset: int, length: int) -> bytes:
        """Return these bytes of an object, all that there are; what follows is fetched ahead if reads follow in order.

        Raises:
            StopRunError, TransientError: see `Ranged.fetch`.
            CancelledError: `cancel` was called.
        """
        end = min(offset + length, file.size)
        if end <= offset:
            return b""
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        with self._lock:
            before = self._last.get(file, -2)
            ordered = first in {before, before + 1} and last > before
            self._last[file] = last
        most = (file.size - 1) // BLOCK_BYTES
        parts = []
        for number in range(first, last + 1):
            furthest = min(number + AHEAD, most if ordered else last)
            block = self._block(file, number, range(number + 1, furthest + 1))
            begin = number * BLOCK_BYTES
            parts.append(memoryview(block)[max(0, offset - begin) : end - begin])
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def cancel(self) -> None:
        """End what is under way; who waits for it gets a CancelledError."""
        with self._lock:
            going = [*self._going]
            self._blocks.clear()
        for future in going:
            future.cancel()

    def close(self) -> None:
        """End all, and the thread; twice is once."""
        if self._closed:
            return
        self._closed = True
        self.cancel()
        with suppress(TimeoutError):  # a thread that does not end in time is left to the process's end
            asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(_PATIENCE_SEC)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_SEC)
        if not self._thread.is_alive():
            self._loop.close()

    def _block(self, file: Ranged, number: int, ahead: range) -> bytes:
        with self._lock:
            future = self._fetch(file, number)
            for further in ahead:
                self._fetch(file, further)
            self._drop(keep=len(ahead) + 1)
        try:
            return self._result(future)
        except BaseException:
            with self._lock:  # the next try asks anew
                if self._blocks.get((file, number)) is future:
                    del self._blocks[file, number]
            raise

    def _fetch(self, file: Ranged, number: int) -> Future[bytes]:
        """Return a block, held or on its way; the lock is held."""
        key = (file, number)
        future = self._blocks.get(key)
        if future is None or future.cancelled():
            begin = number * BLOCK_BYTES
            future = self._start(file.fetch(begin, min(begin + BLOCK_BYTES, file.size)), locked=True)
            self._blocks[key] = future
        self._blocks.move_to_end(key)
        return future

    def _drop(self, keep: int) -> None:
        while len(self._blocks) > max(KEPT, keep):
            self._blocks.popitem(last=False)

    def _start(self, work: Coroutine[Any, Any, T], *, locked: bool = False) -> Future[T]:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        if locked:
            self._going.add(future)
        else:
            with self._lock:
                self._going.add(future)
        future.add_done_callback(self._going.discard)
        return future

    @staticmethod
    def _result(future: Future[T]) -> T:
        try:
            return future.result()
        except Ended:
            raise CancelledError("read a remote file: stopped") from None


_PATIENCE_SEC: Final = 5


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
