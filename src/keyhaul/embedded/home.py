"""The folder that a server of its own lives in: who may pass, its password, its locks."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from keyhaul.errors import ConfigError, ConnectError
from keyhaul.workfolder import exchangeable

if TYPE_CHECKING:
    from pathlib import Path

START_SECONDS = 90.0
"""How long a start may take, with crash recovery or with another process's stop before it."""
POLL_SECONDS = 0.005


def prepare_home(home: Path, owner: int | None) -> None:
    """Make the home's folder with its first file, users.lock.

    Args:
        home: the folder.
        owner: the uid that runs the server, if it is not our own.

    Raises:
        ConfigError: the folder holds something else, others could exchange it, or `owner` cannot reach it.
    """
    if not home.exists():
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700 if owner is None else 0o711)
    if others := exchangeable(home):
        raise ConfigError(f"use home {home}: {others}, expected a folder of this user or root. Give another --home.")
    mark = home / "users.lock"
    if not mark.exists():
        if any(home.iterdir()) and not mark.exists():
            raise ConfigError(
                f"use home {home}: it holds other files, expected an empty folder or one made by keyhaul. "
                "Give another --home."
            )
        mark.touch(mode=0o600)
    closed = None if owner is None else closed_folder(home, owner)
    if closed is not None:
        raise ConfigError(
            f"use home {home}: {closed} is closed to other users, expected that uid {owner} can pass, because "
            "PostgreSQL does not run as root. Give a --home under /var or /srv, or leave it out for /var/cache/keyhaul."
        )


def closed_folder(path: Path, uid: int) -> Path | None:
    """Return the first folder on the way to `path`, or `path` itself, that `uid` cannot pass."""
    for folder in [*reversed(path.parents), path]:
        status = folder.stat()
        if status.st_uid == uid:
            needed = stat.S_IXUSR
        elif status.st_gid == uid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return folder
    return None


def read_password(home: Path, *, fresh: bool) -> str:
    """Return the cluster's password; a new one, written to a file for its owner alone, if the cluster is `fresh`.

    Raises:
        ConfigError: the file is gone though the cluster is there.
    """
    place = home / "password"
    with suppress(FileNotFoundError):
        return place.read_text(encoding="ascii")
    if not fresh:
        raise ConfigError(
            f"read {place}: it is missing, expected the password of the cluster beside it. "
            f"Remove {home} to start anew; what its databases hold is lost then."
        )
    new = home / "password.new"
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(secrets.token_urlsafe(24), encoding="ascii")
    new.rename(place)
    return place.read_text(encoding="ascii")


def lock(path: Path, operation: int, deadline: float) -> int:
    """Open `path` and lock it; the lock lasts as long as the returned descriptor.

    Raises:
        ConnectError: another process holds it at the `deadline`, a reading of the monotonic clock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise ConnectError(
                    f"start PostgreSQL: {path} is held by another process after {START_SECONDS:.0f} s, expected it "
                    "to start or stop the server sooner. Look for a process that hangs, or give another --home."
                ) from None
            time.sleep(POLL_SECONDS)
        else:
            return descriptor


def is_free(path: Path) -> bool:
    """Return whether no process holds the lock at `path` exclusively."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
