"""What became of the checks of one file: a verdict for each, and all of them together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Status = Literal["passed", "failed", "warned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One check's outcome; holds no row values but the offenders' keys, and their values when they were asked for.

    Attributes:
        name, kind, severity: as in the file.
        status: ``warned`` is a failure of severity warn.
        rows: rows of the source.
        failures: rows that fail; 0 or 1 for a kind that holds or does not.
        allowed: the threshold, as it is written.
        message: what was found; empty when there is nothing to say.
        statistics: numbers that later runs are compared with.
        offenders: some failing rows, each column → text; not all of them.
        at, line: where the check stands.
    """

    name: str
    kind: str
    severity: str
    status: Status
    rows: int
    failures: int
    allowed: str = "0"
    message: str = ""
    statistics: Mapping[str, float | None] = field(default_factory=dict, hash=False)
    offenders: tuple[Mapping[str, str | None], ...] = field(default=(), hash=False)
    at: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """All verdicts of one execution of a file.

    Attributes:
        check_run: name of this execution; sorts by time.
        file: as the user named it.
        source: what was checked, without user and password.
        rows: of the source.
        seconds: for everything.
        kept: where the results are kept, for people; empty when nowhere.
        exported: offenders written by ``--export``; None when it was not asked for.
    """

    check_run: str
    file: str
    source: str
    rows: int
    verdicts: tuple[Verdict, ...]
    seconds: float
    kept: str = ""
    exported: int | None = None

    @property
    def good(self) -> bool:
        """Whether no check of severity error failed."""
        return all(verdict.status != "failed" for verdict in self.verdicts)


def status_of(severity: str, *, holds: bool) -> Status:
    """Return the status of a check that holds, or not, at a severity."""
    if holds:
        return "passed"
    return "failed" if severity == "error" else "warned"
