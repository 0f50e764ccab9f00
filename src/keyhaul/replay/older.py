"""Older runs of a job that have unresolved records, though a replay was asked for the last one alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyhaul.config.allowance import Allowance
    from keyhaul.ledger.rows import Older

NAMED: Final = 5
"""How many are named; `etl runs` has them all."""


def told_older(older: Sequence[Older]) -> str:
    """Return what a person has to know of them; empty when there are none."""
    if not older:
        return ""
    runs, records = len(older), sum(one.unresolved for one in older)
    names = ", ".join(one.run_id for one in older[:NAMED])
    more = f" and {runs - NAMED:,} more (etl runs)" if runs > NAMED else ""
    return (
        f"{plural(runs, 'older run')} of this job still {'has' if runs == 1 else 'have'} "
        f"{plural(records, 'unresolved record')}. Replay {'it' if runs == 1 else 'each'} by its name: {names}{more}"
    )


def permitted(allowance: Allowance, older: Sequence[Older], left: int, read: int) -> bool:
    """Whether the unresolved records of the last run, `left` of `read`, are allowed, and those of all together."""
    of_all = left + sum(one.unresolved for one in older)
    read_by_all = read + sum(one.rows_read for one in older)
    return allowance.permits(left, read) and allowance.permits(of_all, read_by_all)
