"""An `etl` process under way: its events as they come, signals to it, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import forking
import support

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WAIT_SECONDS = 60.0


class Process:
    """``etl ARGS``, started; stdout and stderr are read while it runs, so that it never waits for us.

    Attributes:
        events: the objects of ``--progress json`` so far, each with ``received_at`` (monotonic seconds).
        started_at: monotonic seconds.
        peak_bytes: the most resident memory that it has had, looked at every 20 ms.
    """

    def __init__(self, home: Path, *args: str, cwd: Path, env: Mapping[str, str | None] | None = None) -> None:
        """Start it in the folder `cwd`."""
        self.events: list[dict[str, Any]] = []
        self.started_at = time.monotonic()
        self.peak_bytes = 0
        self._ended_at: float | None = None
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._news = threading.Condition()
        self._process = forking.start(args, env=support.clean_environment(home, env), cwd=cwd)
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines]
        self._readers.append(threading.Thread(target=self._measure, daemon=True))
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self._process, name):
            with self._news:
                self._lines[name].append(line)
                if name == "stdout" and line.startswith("{"):
                    self.events.append(json.loads(line) | {"received_at": time.monotonic()})
                self._news.notify_all()

    def _measure(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while self._process.poll() is None:
            with contextlib.suppress(OSError):
                if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                    self.peak_bytes = int(found[1]) * 1024
            time.sleep(0.02)
        self._ended_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long it has run, to its end if it has ended."""
        return (self._ended_at or time.monotonic()) - self.started_at

    @property
    def cpu_seconds(self) -> float:
        """The CPU time of all its threads so far; of one that has ended, none."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def printed(self) -> str:
        """All that it has printed."""
        return self.stdout + self.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def stdout(self) -> str:
        return "".join(self._lines["stdout"])

    @property
    def stderr(self) -> str:
        return "".join(self._lines["stderr"])

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events of one kind so far."""
        return [event for event in list(self.events) if event["event"] == name]

    def wait_for(
        self, name: str, count: int = 1, *, matching: Callable[[dict[str, Any]], bool] = bool
    ) -> dict[str, Any]:
        """Return the `count`-th event of this name (that matches), as soon as it is there."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._news:
            while True:
                found = [event for event in self.events if event["event"] == name and matching(event)]
                if len(found) >= count:
                    return found[count - 1]
                gone = not self.running and not any(reader.is_alive() for reader in self._readers)
                assert not gone, f"etl ended with {self._process.returncode} before {name}: {self.stdout}{self.stderr}"
                assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s for {name}: {self.stdout}{self.stderr}"
                self._news.wait(0.05)

    def send(self, signal_number: int) -> None:
        """Send a signal; no effect once it has ended."""
        self._process.send_signal(signal_number)

    def end(self, timeout_seconds: float = WAIT_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait(timeout_seconds)
        for reader in self._readers:
            reader.join(timeout_seconds)
        return code

    def close(self) -> None:
        """Kill it if it runs, and give the pipes back."""
        if self.running:
            self._process.kill()
        self.end()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
