"""What a comparison of a run's target with its source has found: chunks and rows that differ, and what was compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyhaul.text import plural

if TYPE_CHECKING:
    from keyhaul.model import Counts
    from keyhaul.targets.compare import Kind


FIRST_DIFFERENCES = 20
"""How many differences are named, unless more are asked for."""

MOST_DIFFERENCES = 1_000_000
"""How many can be named: they are held in memory, about 1 kB each with their values."""


def broken_off(what: str, why: str, differing: int) -> str:
    """Return the message of a comparison that an error has ended, when so many chunks had been found to differ."""
    found = f"; until then {plural(differing, 'chunk')} {'was' if differing == 1 else 'were'} found to differ"
    return f"{what}: {why}{found if differing else ''}. Nothing was changed; the same command begins anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that differs.

    Attributes:
        chunk: of the run's plan; 0 when the tables were compared as a whole.
        kind: ``changed``, ``missing`` (in the target) or ``extra`` (in the target).
        key: the job's key as text, in its order; empty when the target does not have it.
        columns: those that differ, for a changed row.
        expected, found: column → text as the source gives it, and as the target has it; of a changed row
            only the columns that differ. Empty unless values were asked for.
    """

    chunk: int
    kind: Kind
    key: tuple[str | None, ...]
    columns: tuple[str, ...] = ()
    expected: dict[str, str | None] = field(default_factory=dict)
    found: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTally:
    """How many rows of one chunk differ; the chunk is 0 when the tables were compared as a whole."""

    chunk: int
    changed: int
    missing: int
    extra: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a comparison found.

    Attributes:
        rows: that the target should have, counted there.
        chunks: compared.
        unloaded: chunks of the run that were never loaded; they are not compared, and count as a difference.
        read: rows of the source in these chunks, as it is now; each is compared (`rows`) or left out as one of the next
            four.
        quarantined: that the job would quarantine now, by its rules, its steps or the target's types, or that the
            target rejected before. Constraints of the target are not asked: what they would reject now is missing.
        filtered, duplicate: that the job leaves out.
        older: in whose place the target has a newer row (`newer_by`).
        run: the balance of the run itself, of its loaded chunks.
        rejected: rows that the target did not take and the quarantine keeps: their absence is no difference.
        changed, missing, extra: rows that differ.
        by_chunk: the chunks with a difference.
        differences: the first of them.
        extra_checked: whether rows that only the target has were looked for.
        whole: why the tables were compared as a whole; empty when chunk by chunk.
    """

    run_id: str
    job: str
    target: str
    key: tuple[str, ...]
    rows: int
    chunks: int
    unloaded: int
    read: int
    quarantined: int
    filtered: int
    duplicate: int
    older: int
    run: Counts
    rejected: int
    changed: int
    missing: int
    extra: int
    by_chunk: tuple[ChunkTally, ...]
    differences: tuple[Difference, ...]
    extra_checked: bool
    whole: str
    seconds: float

    @property
    def different(self) -> int:
        """Return the number of rows that differ."""
        return self.changed + self.missing + self.extra

    @property
    def equal(self) -> bool:
        """Whether every chunk of the run is loaded and no row differs."""
        return not self.different and not self.unloaded
