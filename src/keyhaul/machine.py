"""What the machine must have for a run, looked at before the first connection: drivers abort where it is missing."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

from keyhaul.errors import ConfigError
from keyhaul.text import size

FILES: Final = 64
FILES_PER_WORKER: Final = 4
"""With connectorx: 18 and, for each worker, 1 to 3 (Linux, 2 to 16 workers)."""

MOST_FILES: Final = 65_536

ADDRESS_SPACE: Final = 3 << 30
ADDRESS_SPACE_PER_WORKER: Final = 64 << 20
"""What is mapped, and mostly never used: 2.9 GB with ADBC and 2 workers, 4.6 GB with connectorx and 16."""


_LACKS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EAGAIN}
)


def lacking(error: BaseException) -> str:
    """Return what the machine has not enough of, if that is what an error is about; else an empty string."""
    if isinstance(error, MemoryError):
        return f"memory ran out ({error})" if str(error) else "memory ran out"
    if isinstance(error, OSError) and error.errno in _LACKS:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if isinstance(error, ImportError) and error.path:
        return f"load {error.name}: {error}"
    return "no further thread can be started" if "can't start new thread" in str(error) else ""


def check_folder() -> None:
    """Refuse to work in a folder that is deleted: DuckDB ends the process there.

    Raises:
        ConfigError: the current folder is gone.
    """
    try:
        os.getcwd()  # noqa: PTH109 - the question is whether there is one
    except FileNotFoundError:
        msg = "start in the current folder: it is deleted, expected one that is there. Change to another (cd)"
        raise ConfigError(msg) from None


def check_limits(workers: int) -> None:
    """Refuse limits of this process that drivers do not outlive; more open files are allowed where that may be.

    Raises:
        ConfigError: names the limit, what it is, and the command that raises it.
    """
    if sys.platform == "win32":
        return
    import resource

    needed = FILES + FILES_PER_WORKER * workers
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < needed:
        allowed = MOST_FILES if hard < 0 else min(hard, MOST_FILES)
        if allowed < needed:
            msg = f"start {workers} workers: at most {hard} files may be open, expected {needed}. Raise it (ulimit -n)"
            raise ConfigError(msg)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    mapped = ADDRESS_SPACE + ADDRESS_SPACE_PER_WORKER * workers
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= space < mapped:
        msg = (
            f"start {workers} workers: the address space is limited to {size(space)}, expected at least "
            f"{size(mapped)}. Raise it (ulimit -v unlimited); --memory-limit bounds what is used"
        )
        raise ConfigError(msg)
