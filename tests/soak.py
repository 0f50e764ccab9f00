"""What a soak has tried and found, as a table for docs/guarantees.md: filled by its tests, printed at their end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tried:
    """One row of the table.

    Attributes:
        points: named points, kinds of cells or jobs: what was different from try to try.
        tries: how often a run was disturbed.
        wrong: tries after which the oracle found something.
    """

    points: set[str] = field(default_factory=set)
    tries: int = 0
    wrong: int = 0


tried: dict[tuple[str, str], Tried] = {}
"""By what was done and to what kind of run. Of this process: a soak is one."""


def note(what: str, kind: str, point: str, *, tries: int = 1, wrong: int = 0) -> None:
    """Add tries of one point, and how many of them left something wrong."""
    row = tried.setdefault((what, kind), Tried())
    row.points.add(point)
    row.tries += tries
    row.wrong += wrong


def bound(tries: int, wrong: int) -> float:
    """Return what the failure rate is below, at 95 % confidence: Clopper and Pearson's one-sided limit.

    It is the rate at which so few failures, among so many independent tries, would happen once in twenty times. For
    none it is 1 - 0.05^(1/tries), about 3/tries.
    """
    if wrong >= tries:
        return 1.0
    low, high = wrong / tries, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(wrong, tries, middle) > 0.05 else (low, middle)
    return high


def _at_most(wrong: int, tries: int, rate: float) -> float:
    """Return the probability of at most so many failures."""
    one = (1 - rate) ** tries
    total = one
    for number in range(wrong):
        one *= (tries - number) / (number + 1) * rate / (1 - rate)
        total += one
    return total


def table() -> list[str]:
    """Return the table as Markdown: every row that was tried, and what all of them come to."""
    lines = ["| what | in | points | tries | wrong | failure rate below (95 %) |", "|---|---|---|---|---|---|"]
    sums: Counter[str] = Counter()
    for (what, kind), row in sorted(tried.items()):
        # The others are all there are, one after the other: there is nothing to infer from a sample.
        rate = f"{bound(row.tries, row.wrong):.2%}" if what == AT_RANDOM else "not at random"
        lines.append(f"| {what} | {kind} | {len(row.points)} | {row.tries:,} | {row.wrong} | {rate} |")
        sums.update(tries=row.tries, wrong=row.wrong)
        if what == AT_RANDOM:
            sums.update(kills=row.tries, lost=row.wrong)
    if sums["kills"]:
        rate = f"{bound(sums['kills'], sums['lost']):.2%}"
        lines.append(f"| {AT_RANDOM} | all | | {sums['kills']:,} | {sums['lost']} | {rate} |")
    lines.append(f"| all | | | {sums['tries']:,} | {sums['wrong']} | |")
    return lines


AT_RANDOM = "SIGKILL at random"
