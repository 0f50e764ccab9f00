"""keyhaul: a columnar batch engine that moves tables, files and documents into PostgreSQL.

From Python: `run`, `plan` and `verify` take a job, `verify_ledger` a run, `check` a checks file or a job file; `runs`,
`chunks`, `quarantine` and `checks` give the ledger as Polars frames (docs/history.md). They are imported when they
are first used, so that ``import keyhaul`` loads no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyhaul.api import plan, run, verify, verify_ledger
    from keyhaul.history.checks import checks
    from keyhaul.history.frames import chunks, quarantine, runs
    from keyhaul.quality.checking import check

__version__ = "0.1.0"

__all__ = ["check", "checks", "chunks", "plan", "quarantine", "run", "runs", "verify", "verify_ledger"]

# No module and no room may have one of these names: once imported, it would stand where the function should.
_HOMES = {
    "check": "quality.checking",
    "checks": "history.checks",
    "chunks": "history.frames",
    "quarantine": "history.frames",
    "runs": "history.frames",
    "plan": "api",
    "run": "api",
    "verify": "api",
    "verify_ledger": "api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of any function above
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
