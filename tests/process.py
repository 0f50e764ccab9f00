"""An `etl` process under way: its events as they come, signals to it, and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import support

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

WAIT_SECONDS = 60.0


class Process:
    """``etl ARGS``, started; stdout and stderr are read while it runs, so that it never waits for us.

    Attributes:
        events: the objects of ``--progress json`` so far, each with ``received_at`` (monotonic seconds).
        started_at: monotonic seconds.
    """

    def __init__(self, home: Path, *args: str, cwd: Path, env: Mapping[str, str | None] | None = None) -> None:
        """Start it in the folder `cwd`."""
        self.events: list[dict[str, Any]] = []
        self.started_at = time.monotonic()
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "keyhaul", *args],
            env=support.clean_environment(home, env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [threading.Thread(target=self._read, args=(name,), daemon=True) for name in self._lines]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self._process, name):
            with self._news:
                self._lines[name].append(line)
                if name == "stdout" and line.startswith("{"):
                    self.events.append(json.loads(line) | {"received_at": time.monotonic()})
                self._news.notify_all()

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
