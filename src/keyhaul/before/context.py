"""What all chunks of one run have in common, and the name and settings of a worker's session in the target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from keyhaul.postgres import pgtypes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.job import Job
    from keyhaul.fanout.tables import Table
    from keyhaul.model import Column
    from keyhaul.postgres.dsn import Dsn
    from keyhaul.postgres.pgtypes import Route
    from keyhaul.sources.source import Reader
    from keyhaul.staging.rules import Check
    from keyhaul.targets.postgres import TargetTable
    from keyhaul.targets.rowhash import Hashing
    from keyhaul.transform.compiled import Transform
    from keyhaul.transform.mapping import WriteColumn

CONNECT_SECONDS: Final = 10
"""How long a worker's connection may take to be opened, at the most: a link that is dead is met again by each try."""


@dataclass(frozen=True, kw_only=True)  # no slots: a property is computed once
class RunContext:
    """Everything that the chunks of one run have in common; `Prepared` is one, and `Joined` is that of another process.

    Attributes:
        target_dsn: where a worker's session connects to.
        routes: how each column that is read travels.
        sources: the source's columns by their names.
        columns: what is written; empty for a job with several tables.
        read_columns: the source columns that are read: those used, and the key's.
        tables: of a job with several.
        sitting: of the run, from 1.
        replay_of: the run whose quarantined records the chunks are; None for a run of its own.
        unique_key: of a replay, whether no two rows of the source, or of the target, have one key.
        hashing: how the rows of a chunk, or of the chunks of `replay_of`, are hashed; None without checksums.
    """

    job: Job
    run_id: str
    target: TargetTable
    target_dsn: Dsn
    routes: Mapping[str, Route]
    sources: Mapping[str, Column]
    transform: Transform
    checks: tuple[Check, ...]
    columns: tuple[WriteColumn, ...]
    read_columns: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    sitting: int = 1
    replay_of: str | None = None
    unique_key: bool = False
    hashing: Hashing | None = None

    def open_reader(self, worker: int) -> Reader:
        """Return a reader of the source's columns for one worker; nothing is connected yet."""
        raise NotImplementedError

    def target_uri(self, worker: int) -> str:
        """Return the URI of a worker's session in the target, with its settings."""
        settings = {
            **pgtypes.SESSION_SETTINGS,
            "statement_timeout": f"{self.job.statement_timeout_seconds}s",
            "lock_timeout": f"{self.job.lock_timeout_seconds}s",
            "idle_in_transaction_session_timeout": "0",
        }
        return self.target_dsn.uri(
            application_name=f"keyhaul {self.run_id} worker {worker}",
            options=settings,
            connect_timeout_seconds=min(self.job.network_timeout_seconds, CONNECT_SECONDS),
        )

    @cached_property
    def relays(self) -> bool:
        """Whether records go into the target as they are: the job changes nothing, and looks at nothing."""
        job = self.job
        untouched = not (job.transform or self.checks or job.dedup or self.tables or job.incremental or self.hashing)
        return (
            untouched
            and self.replay_of is None
            and job.target.relay
            and job.target.loader == "copy"
            and self.target.mode in {"append", "replace"}
            and all(map(self._as_it_is, self.columns))
        )

    def _as_it_is(self, column: WriteColumn) -> bool:
        source = self.sources.get(column.name)
        output = self.transform.output[column.name]
        return source is not None and output.source == column.name and source.pg_type == column.target.pg_type

    @cached_property
    def looked_at(self) -> frozenset[str]:
        """The source columns whose values an expression, a rule or the dedup looks at."""
        copies = {name: column.source for name, column in self.transform.output.items() if column.source}
        staged = {name for check in self.checks for name in check.columns}
        if self.job.dedup is not None:
            staged |= {*self.job.dedup.on, *self.job.dedup.order_by}
        staged = staged.union(*(table.looks_at for table in self.tables))
        return self.transform.used | {source for name, source in copies.items() if name in staged}
