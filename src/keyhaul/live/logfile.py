"""A run's events in a file, one JSON object a line, for those who were not there."""

from __future__ import annotations

import os
import re
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from keyhaul.errors import ConfigError
from keyhaul.events import RunStarted, as_json
from keyhaul.redaction import to_json

if TYPE_CHECKING:
    from pathlib import Path
_NOT_IN_A_LINE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What JSON need not escape, and what ends a line for some readers, moves a terminal's cursor, or is no UTF-8."""


class LogFile:
    """An observer that appends each event to a file.

    A new file is for its owner alone (0600); one that is there keeps its mode.

    Every line has ``time`` (UTC), ``run`` (null before `RunStarted`, also in what ends a run that fails before it
    started), ``event`` and that event's fields, of which ``chunk`` is the chunk's number; no line holds a password or
    a row's value. A line is written whole and at once, so that the file can be followed, and survives a kill of the
    process.

    Attributes:
        problem: why lines are missing (a full disk), or an empty string. The run goes on without its log.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            msg = f"open log {path}: {error.strerror}, expected a file that can be written. Change --log-file"
            raise ConfigError(msg) from error
        self._path = path
        self._lock = threading.Lock()
        self._run: str | None = None
        self.problem = ""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Write what ended the run, if it was an error, and close the file."""
        error = exc_info[1]
        if error is not None:
            self._write({"event": "Ended", "error": type(error).__name__, "message": str(error)})
        os.close(self._file)

    def __call__(self, event: object) -> None:
        """Append one event of `keyhaul.events`."""
        if isinstance(event, RunStarted):
            self._run = event.run_id
        self._write(as_json(event))

    def _write(self, fields: dict[str, object]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": now, "run": self._run, **fields}, ensure_ascii=False)
        line = _NOT_IN_A_LINE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) + "\n"
        with self._lock:
            if self.problem:
                return
            try:
                os.write(self._file, line.encode())
            except OSError as error:
                self.problem = f"write log {self._path}: {error.strerror}. The run goes on without its log"
