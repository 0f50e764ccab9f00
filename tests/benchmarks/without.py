"""keyhaul with one of its guarantees taken out: ``python without.py snapshot|ledger run JOB.yaml …``.

There is no such switch in keyhaul, and no user should want one. What a guarantee costs is measured by leaving it out
here, in a process of the benchmark's own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from keyhaul.cli.start import main
from keyhaul.execution import engine
from keyhaul.sources.postgres import readers
from keyhaul.targets import transaction

if TYPE_CHECKING:
    from keyhaul.model import ChunkResult


def without_snapshot() -> None:
    """Have every reader begin a transaction of its own, which sees what is there at that moment."""
    readers._begin_statements = lambda _snapshot: ["BEGIN READ ONLY", "SELECT 1"]


def without_ledger() -> None:
    """Have no chunk claim, count or write its ledger row; all of them are written after the last chunk."""
    kept: list[Any] = []

    class Later:
        """Takes the statement that a chunk would have executed."""

        def execute(self, query: object) -> list[tuple[float, ...]]:
            kept.append(query)
            return [(0.0,)]

    record, finish = transaction._record, engine.Sitting._finish

    def recorded(_session: object, *given: Any, **named: Any) -> ChunkResult:
        return record(Later(), *given, **named)

    def finished(sitting: engine.Sitting, *given: Any, **named: Any) -> Any:
        with sitting.ledger.connection.transaction():
            for query in kept:
                sitting.ledger.connection.execute(query)
        return finish(sitting, *given, **named)

    transaction.claim = lambda _session, _entry: 0.0
    transaction._record = recorded
    engine.Sitting._finish = finished


PARTS = {"snapshot": without_snapshot, "ledger": without_ledger}

if __name__ == "__main__":
    PARTS[sys.argv.pop(1)]()
    main()
