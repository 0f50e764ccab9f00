"""One whole process, measured: wall time, CPU and peak memory of it and of all that it starts."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SAMPLE_SECONDS = 0.05
CURVE_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process took.

    Attributes:
        wall_seconds: from its start until it has ended.
        cpu_seconds: user and system, of the process and of its children that it waited for (rusage).
        peak_bytes: the sum over its process tree of each process's VmHWM, as seen 20 times a second; shared pages
            count for each process that has them.
        returncode: 0 is success.
        output: the last of what it printed.
        curve: (second, resident bytes of the tree), twice a second.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    returncode: int
    output: str
    curve: tuple[tuple[float, int], ...] = ()


@dataclass(slots=True)
class _Sampler:
    """Looks at a process tree until it is told to stop."""

    pid: int
    peaks: dict[int, int] = field(default_factory=dict)
    curve: list[tuple[float, int]] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        begun = time.monotonic()
        while not self.done.is_set():
            resident = 0
            for pid in _tree(self.pid):
                peak, now = _memory(pid)
                self.peaks[pid] = max(self.peaks.get(pid, 0), peak)
                resident += now
            elapsed = time.monotonic() - begun
            if not self.curve or elapsed - self.curve[-1][0] >= CURVE_SECONDS:
                self.curve.append((round(elapsed, 2), resident))
            self.done.wait(SAMPLE_SECONDS)


def _tree(pid: int) -> list[int]:
    found, pending = [], [pid]
    while pending:
        one = pending.pop()
        found.append(one)
        try:
            for task in Path(f"/proc/{one}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except OSError:
            continue  # it ended while we looked
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Return the peak and the present resident bytes of a process; 0 when it is gone."""
    sizes = {"VmHWM": 0, "VmRSS": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
    except OSError:
        pass
    return sizes["VmHWM"], sizes["VmRSS"]


def run(argv: Sequence[str], env: Mapping[str, str], folder: Path) -> Usage:
    """Run a program in `folder` to its end and return what it took."""
    log = folder / "output.log"
    # A child's ru_maxrss begins with what its parent has: the two share their memory until exec.
    ours, _ = _memory(os.getpid())
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            list(argv), env=dict(env), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        sampler = _Sampler(process.pid)
        thread = threading.Thread(target=sampler.run, daemon=True)
        thread.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        finally:
            sampler.done.set()
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        thread.join()
    return Usage(
        wall_seconds=wall,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(sum(sampler.peaks.values()), usage.ru_maxrss * 1024 * (usage.ru_maxrss * 1024 > ours)),
        returncode=process.returncode,
        output=log.read_text(encoding="utf-8", errors="replace")[-4000:],
        curve=tuple(sampler.curve),
    )
