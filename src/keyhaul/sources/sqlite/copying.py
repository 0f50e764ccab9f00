"""The private copy of a SQLite file: made in a child process, in a folder that goes with the run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from keyhaul.errors import CancelledError, ConfigError

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

_PREFIX: Final = "sqlite-"
_COPIER: Final = Path(__file__).with_name("copier.py")
_POLL_SECONDS: Final = 0.05


@dataclass(slots=True, kw_only=True)
class Copy:
    """A private copy: nobody else writes it, so any number of processes may read it.

    Attributes:
        path: of the copy, readable by this user alone.
        size: its bytes.
        checksum: SHA-256 of its contents; the same for each copy of one state of the file.
    """

    path: Path
    size: int
    checksum: str
    _lock: int

    @classmethod
    def make(cls, source: Path, base: Path, *, wait_seconds: float, cancelled: threading.Event) -> Self:
        """Copy `source` into a new folder in `base`, the work folder.

        Args:
            source: the live file.
            base: made when it is missing; what killed runs have left there is removed.
            wait_seconds: how long a writer that holds the file is waited for.
            cancelled: ends the copy.

        Raises:
            ConfigError: it is no SQLite file, cannot be read or stays locked, or there is no room for the copy.
            CancelledError: `cancelled` was set.
        """
        with _alone(base):
            sweep(base)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "copy.db"
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            size, checksum = _copied(source, path, wait_seconds, lock, cancelled)
        except BaseException:
            _remove(folder, lock)
            raise
        return cls(path=path, size=size, checksum=checksum, _lock=lock)

    def remove(self) -> None:
        """Remove the copy and its folder; never raises. Twice is once."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            _remove(self.path.parent, lock)


def sweep(base: Path) -> None:
    """Remove the copies that killed processes have left: those whose lock nobody holds. `_alone` is held."""
    for folder in base.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # another user's, or nothing of ours
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            _remove(folder, lock)


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    """Hold the lock of the work folder: between a folder's making and its own lock nobody sweeps."""
    lock = os.open(base / "sqlite.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _copied(source: Path, path: Path, wait_seconds: float, lock: int, cancelled: threading.Event) -> tuple[int, str]:
    """Let the child copy; returns the copy's size and checksum."""
    said = _run_copier(source, path, wait_seconds, lock, cancelled)
    if "error" in said:
        raise _refusal(source, path.parents[1], said, wait_seconds)
    return said["size"], said["checksum"]


def _run_copier(source: Path, path: Path, wait_seconds: float, lock: int, cancelled: threading.Event) -> dict[str, Any]:
    """Run the child; it inherits the folder's lock, so that nobody removes what it still writes."""
    spec = {"source": str(source), "copied": str(path), "wait_seconds": wait_seconds, "parent": os.getpid()}
    child = subprocess.Popen(  # noqa: S603 - our own file
        [sys.executable, "-I", "-S", str(_COPIER), json.dumps(spec)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=(lock,),
    )
    try:
        while True:
            try:
                out, complaint = child.communicate(timeout=_POLL_SECONDS)
            except subprocess.TimeoutExpired:
                if cancelled.is_set():
                    msg = f"copy {source}: cancelled"
                    raise CancelledError(msg) from None
            else:
                break
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if not out:
        last = complaint.strip().rsplit("\n", 1)[-1]
        return {"error": "died", "message": f"the copying process ended with {child.returncode}. {last}"}
    said: dict[str, Any] = json.loads(out)
    return said


def _refusal(source: Path, base: Path, said: dict[str, Any], wait_seconds: float) -> ConfigError:
    kind, told = said["error"], said["message"]
    if kind == "busy" or kind.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return ConfigError(
            f"copy {source}: another process has been writing for {wait_seconds:g} s, expected a moment without a "
            "write lock. Try again, or raise ETL_LOCK_TIMEOUT_SECONDS"
        )
    if kind.startswith("SQLITE_FULL"):
        return ConfigError(f"copy {source}: the disk of {base} is full. Give another --work-dir")
    if kind.startswith("SQLITE_NOTADB"):
        return ConfigError(f"copy {source}: it is not a SQLite database (or an encrypted one). Change --source")
    if kind.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
        return ConfigError(
            f"copy {source}: {told}. A file in WAL mode needs a folder that this user may write, and one that a "
            "killed writer has left needs to be opened once (sqlite3 FILE .tables). Or move a copy of it"
        )
    return ConfigError(f"copy {source}: {told}, expected a SQLite database that can be read")


def check_file(path: Path) -> None:
    """Refuse what is no file that this user may read. It is not opened: that would drop locks of this process.

    Raises:
        ConfigError: it is not there, not a file, or may not be read.
    """
    if not path.exists():
        msg = f"read source {path}: it is not there, expected a SQLite file. Change --source"
        raise ConfigError(msg)
    if not path.is_file() or not os.access(path, os.R_OK):
        what = "this user may not read it" if path.is_file() else "it is not a file"
        msg = f"read source {path}: {what}, expected a SQLite file. Change --source, or its permissions"
        raise ConfigError(msg)
