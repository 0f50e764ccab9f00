"""The folder in which runs put down rows that are under way: where it is, and whether others could reach in."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import platformdirs

from keyhaul.errors import ConfigError


def work_folder(given: str | None) -> Path:
    """Return the folder that holds a folder for each run; not the embedded server's, which tolerates no other.

    Args:
        given: ``work_dir`` of the job.
    """
    if given is not None:
        return Path(given).expanduser().absolute()
    return Path("/var/cache/keyhaul-work") if os.geteuid() == 0 else platformdirs.user_cache_path("keyhaul-work")


def open_work_folder(given: str | None) -> Path:
    """Return the work folder; makes it, but nothing in it.

    Raises:
        ConfigError: it cannot be written, or another user could put a folder of his in the place of ours.
    """
    base = work_folder(given)
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        msg = f"use work folder {base}: {error.strerror}. Give another one in --work-dir"
        raise ConfigError(msg) from error
    if not os.access(base, os.W_OK | os.X_OK):
        msg = f"use work folder {base}: this user cannot write there. Give another one in --work-dir"
        raise ConfigError(msg)
    if others := exchangeable(base):
        msg = (
            f"use work folder {base}: {others}, expected a folder of this user or root, because rows will "
            "lie in it. Give another one in --work-dir"
        )
        raise ConfigError(msg)
    return base


def exchangeable(folder: Path) -> str:
    """Return who else could put other files in the place of those in `folder`; an empty string: root alone.

    The folders above it are trusted, and so is its group.
    """
    ours = {0, os.geteuid()}
    for status in (folder.lstat(), folder.stat()):
        if status.st_uid not in ours:
            return f"it belongs to uid {status.st_uid}"
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            return "everybody may write there"
    return ""
