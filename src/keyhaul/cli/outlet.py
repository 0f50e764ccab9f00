"""The standard streams of a command as they really are: closed, full, or with nobody who reads them.

What cannot be written does not end what is under way: the stream falls silent, and whoever ends the command asks it
why. Nor does it hold up a signal: after one, a stream that takes nothing more is waited for no longer.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

PIECE: Final = 1024
"""Characters written at a time: a pipe that has room at all takes PIPE_BUF (4,096) bytes without blocking."""

GRACE_SECONDS: Final = 1.0
"""How long a stream that takes nothing is waited for after a signal."""

_LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Why a stream fell silent.

    Attributes:
        reason: the system's words.
        unread: a pipe whose reader has ended, which is nobody's mistake (``etl show | head``).
    """

    reason: str
    unread: bool = False

    def __str__(self) -> str:
        """Return the beginning of a message."""
        return f"write to stdout: {self.reason}, so what was printed is not whole"


class Outlet:
    """A text stream that keeps why it could not be written, and is silent then; everything else is the stream's own."""

    def __init__(self, stream: TextIO, *, closed: bool = False) -> None:
        """Take the stream; `closed` says that it stands for one that the command was started without."""
        self._stream = stream
        self._closed = closed
        self._loss: Loss | None = None
        self._untold = False
        self._until: float | None = None
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        """Write and flush as far as possible, what the encoding lacks as escapes; returns the length of `text`."""
        length, encoding = len(text), self._stream.encoding
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        with self._lock:
            for at in range(0, len(text), PIECE):
                self._put(text[at : at + PIECE])
        return length

    def writelines(self, lines: Sequence[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Do nothing: all is flushed already."""

    def hurry(self) -> None:
        """Give the stream up when it takes nothing for a moment longer. Only sets a moment: for signal handlers."""
        self._until = self._until or time.monotonic() + GRACE_SECONDS

    @property
    def loss(self) -> Loss | None:
        """Why it is silent; None while it is not."""
        return self._loss

    def take_loss(self) -> Loss | None:
        """Return why it is silent, the first time that it is asked; None otherwise."""
        untold, self._untold = self._untold, False
        return self._loss if untold else None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a stream has
        """Return the stream's own, but for the bytes below it: Click would write to them and past us."""
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _put(self, piece: str) -> None:
        if self._loss is not None:
            return
        if self._closed:
            self._lose("it is closed")
            return
        try:
            if not self._ready():
                self._lose("nobody reads it")
                return
            self._stream.write(piece)
            self._stream.flush()
        except OSError as error:
            self._lose(error.strerror or str(error), unread=isinstance(error, BrokenPipeError))
        except ValueError as error:  # of a stream that was closed since
            self._lose(str(error))

    def _ready(self) -> bool:
        """Wait until there is room; returns False when there is none, and a signal has come."""
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLOUT)
        while not poll.poll(_LOOK_SECONDS * 1000):
            if self._until is not None and time.monotonic() >= self._until:
                return False
        return True

    def _lose(self, reason: str, *, unread: bool = False) -> None:
        self._loss, self._untold = Loss(reason=reason, unread=unread), True
        with contextlib.suppress(OSError, ValueError):  # what is still buffered would fail again when Python ends
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def fill_descriptors() -> None:
    """Open the null device as each of the descriptors 0, 1 and 2 that is closed, before a file or socket gets it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(null, True)  # noqa: FBT003 - takes no keyword


def outlet(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return an `Outlet` as what it stands for; Python has no stream for a descriptor that was closed."""
    if stream is not None:
        return cast("TextIO", Outlet(stream))
    null = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - open as long as the process
    return cast("TextIO", Outlet(null, closed=True))


def take_loss(stream: TextIO) -> Loss | None:
    """Return why an outlet is silent, once; None of any other stream."""
    loss: Loss | None = getattr(stream, "take_loss", lambda: None)()
    return loss


def loss_of(stream: TextIO) -> Loss | None:
    """Return why an outlet is silent; None of any other stream."""
    loss: Loss | None = getattr(stream, "loss", None)
    return loss


def hurry(*streams: TextIO) -> None:
    """Have outlets give up soon what takes nothing; other streams are left alone."""
    for stream in streams:
        getattr(stream, "hurry", lambda: None)()
