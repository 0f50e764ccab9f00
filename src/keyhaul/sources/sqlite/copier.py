"""Copies one SQLite file by SQLite's own backup, in a process of its own: ``python -I -S copier.py SPEC``.

A process that has the live file open through two SQLite libraries, or that opens and closes it besides, drops the
locks of the others (POSIX locks belong to the process). So the live file is opened here and nowhere else. Standard
library only, so that it starts in 30 ms.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

PR_SET_PDEATHSIG = 1
PIECE = 1 << 20
CHANGING = ((24, 28), (40, 44), (92, 100))
"""Bytes of the header that differ between two copies of one state: the change counter, the schema cookie, the version
of the library that wrote last (sqlite.org/fileformat2.html, 1.3)."""


class _BusyError(Exception):
    """A writer has held the file for longer than is waited."""


def copy(source: str, copied: str, wait_seconds: float) -> dict[str, Any]:
    """Copy `source` over the empty file `copied`, in one step: one moment; returns its size and checksum."""
    began = time.monotonic()

    def look(status: int, _remaining: int, _total: int) -> None:
        if status in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED} and time.monotonic() - began > wait_seconds:
            raise _BusyError

    place = f"file:{quote(source)}?mode=ro"
    with closing(sqlite3.connect(place, uri=True, timeout=0)) as live, closing(sqlite3.connect(copied)) as mine:
        live.backup(mine, pages=-1, progress=look, sleep=0.05)
        mine.execute("pragma journal_mode = delete")  # a copy of a WAL file would get files beside it
    return {"size": Path(copied).stat().st_size, "checksum": checksum(copied)}


def checksum(place: str) -> str:
    """Return the SHA-256 of a database file without what changes in its header from copy to copy."""
    with Path(place).open("rb") as file:
        head = bytearray(file.read(100))
        for begin, end in CHANGING:
            head[begin:end] = bytes(end - begin)
        digest = hashlib.sha256(head)
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def main() -> None:
    """Do what the argument says, and print ``size`` and ``checksum``, or ``error`` and ``message``; all as JSON."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which has it too, ends this process
    spec = json.loads(sys.argv[1])
    if os.getppid() != spec["parent"]:
        return  # it has ended already, and nobody would end this process
    try:
        said = copy(spec["source"], spec["copied"], spec["wait_seconds"])
    except _BusyError:
        said = {"error": "busy", "message": ""}
    except sqlite3.Error as error:
        said = {"error": getattr(error, "sqlite_errorname", type(error).__name__), "message": str(error)}
    except OSError as error:
        said = {"error": "OSError", "message": str(error.strerror)}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
