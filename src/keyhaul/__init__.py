"""keyhaul: a columnar batch engine that moves tables, files and documents into PostgreSQL.

From Python: `run` and `plan` take a job; `runs`, `chunks` and `quarantine` give the ledger as Polars frames
(docs/history.md). They are imported when they are first used, so that ``import keyhaul`` loads no driver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyhaul.history import chunks, quarantine, runs
    from keyhaul.jobs import plan, run

__version__ = "0.1.0"

__all__ = ["chunks", "plan", "quarantine", "run", "runs"]

# No module may have one of these names: once imported, it would stand where the function should.
_HOMES = {"chunks": "history", "quarantine": "history", "runs": "history", "plan": "jobs", "run": "jobs"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - of any function above
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
