"""How much memory this process has, has had and may have, and how busy the machine is."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory_bytes() -> int | None:
    """Return the most resident memory that this process has had, or None if the system does not say.

    On Linux from ``VmHWM``: ``ru_maxrss`` there survives exec and may be that of a larger parent.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_bytes() -> int:
    """Return the resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def cpu_percent() -> float:
    """Return the machine's CPU since the last call, 0 to 100 over all cores; the first call is of no meaning."""
    import psutil

    return float(psutil.cpu_percent(interval=None))


def cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds that the machine has worked since it was started, and those that it has had.

    Waiting for a disk is no work.
    """
    import psutil

    times = psutil.cpu_times()
    had = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return had - times.idle - getattr(times, "iowait", 0.0), had


def machine_memory_bytes(root: Path = Path("/")) -> int:
    """Return the memory that this process may use: the machine's, or less where its cgroup has a limit.

    Args:
        root: of the file system in which ``proc`` and ``sys`` are looked for.
    """
    import psutil

    return min([int(psutil.virtual_memory().total), *_cgroup_limits(root)])


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of the process's cgroup and of those above it, of version 2 and 1."""
    found: list[int] = []
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        mount = root / "sys/fs/cgroup" / controllers
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        here = mount / path.lstrip("/")
        for folder in (here, *here.parents):
            if not folder.is_relative_to(mount):
                break
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:  # inside a container the path may be the host's: the mount itself is asked at last
                continue
            if text.isdigit() and int(text) > 0:
                found.append(int(text))
    return found
