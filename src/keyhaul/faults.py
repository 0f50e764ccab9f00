"""Named points at which a test makes this program fail; off, a point costs one comparison.

``KEYHAUL_FAULT=POINT:N`` acts at the N-th passage of a point, counted from 1 over all workers, once:
``:kill`` (the default) is SIGKILL to this process, ``:raise`` an error that nobody expects, ``:stall`` waits
for ever.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from typing import Final, Literal

from keyhaul.errors import ConfigError

Action = Literal["kill", "raise", "stall"]

POINTS: Final = (
    "snapshot.opened",
    "fresh.created",
    "plan.written",
    "read.before",
    "read.after",
    "transform.after",
    "stage.after",
    "gather.written",
    "gather.after",
    "copies.told",
    "claim.after",
    "records.locked",
    "copy.begun",
    "copy.half",
    "copy.ended",
    "isolate.halved",
    "records.settled",
    "quarantine.written",
    "late.parked",
    "checksum.written",
    "ledger.written",
    "commit.before",
    "commit.after",
    "late.written",
    "late.committed",
    "fresh.indexed",
    "fresh.complete",
    "swap.locked",
    "swap.before",
    "swap.after",
    "table.finished",
    "run.closed",
)
"""In the order in which a run passes them."""


class InjectedError(Exception):
    """The error of ``:raise``; no handler of ours knows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is to happen at which passage of which point."""

    point: str
    passage: int
    action: Action


class _Armed:
    """The one fault of this process, and how often its point was passed."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._passages = 0
        self._lock = threading.Lock()

    def is_due(self) -> bool:
        with self._lock:
            self._passages += 1
            return self.fault is not None and self._passages == self.fault.passage


_armed = _Armed()


def arm(text: str) -> None:
    """Arm the fault that ``KEYHAUL_FAULT`` describes.

    Raises:
        ConfigError: it describes none.
    """
    name, _, rest = text.partition(":")
    number, _, action = rest.partition(":")
    if name not in POINTS or not number.isdecimal() or action not in {"", "kill", "raise", "stall"}:
        msg = f"KEYHAUL_FAULT: got {text!r}, expected POINT:N[:kill|raise|stall] with a point of {', '.join(POINTS)}"
        raise ConfigError(msg)
    known: dict[str, Action] = {"": "kill", "kill": "kill", "raise": "raise", "stall": "stall"}
    _armed.fault = Fault(point=name, passage=int(number), action=known[action])


def pass_point(name: str) -> None:
    """Pass a point of `POINTS`; fails there when a fault is armed for it.

    Raises:
        InjectedError: the fault says so.
    """
    fault = _armed.fault
    if fault is None or fault.point != name or not _armed.is_due():
        return
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.action == "raise":
        msg = f"fault at {name}, passage {fault.passage}"
        raise InjectedError(msg)
    os.write(2, f"stands still at {name}, passage {fault.passage}\n".encode())
    threading.Event().wait()
