"""A file that appears under its name when it is whole, readable by its owner alone."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from keyhaul.errors import ConfigError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[TextIO]:
    """Yield a file to write text (UTF-8) to; `path` has it when the block has ended well, else nothing is left.

    Raises:
        RefusedError: the file exists and `force` is not given.
        ConfigError: it cannot be written.
    """
    _refuse_existing(path, force=force)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}. Name a folder that exists and can be written.") from error
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, force=force)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"write {path}: {error.strerror}. Free some space or name another file.") from error
    finally:
        part.unlink(missing_ok=True)


def _refuse_existing(path: Path, *, force: bool) -> None:
    if path.is_dir() or (path.exists() and not force):
        raise RefusedError(f"write {path}: it exists already. Name another file, or add --force to replace a file.")
