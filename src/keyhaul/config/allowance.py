"""How many quarantined rows a run may have and still end well."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

_ALL_PERCENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How many quarantined rows a run may have and still end with exit code 0: rows, or a percentage of those read."""

    rows: int = 0
    percent: Decimal | None = None

    def permits(self, quarantined: int, read: int) -> bool:
        """Return whether `quarantined` of `read` rows are within the allowance; exact, nothing is rounded."""
        if self.percent is None:
            return quarantined <= self.rows
        return Decimal(quarantined) * 100 <= self.percent * Decimal(read)

    def __str__(self) -> str:
        """Return it as it is written: ``12`` or ``5%``."""
        return str(self.rows) if self.percent is None else f"{self.percent}%"


def read_allowance(value: object) -> Allowance:
    """Return the allowance that ``12``, ``"12"``, ``"5%"`` or ``"0.5%"`` stands for.

    Raises:
        ValueError: `value` is none of these.
    """
    if isinstance(value, Allowance):
        return value
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if re.fullmatch(r"[0-9]{1,18}", text):
        return Allowance(rows=int(text))
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?%", text) and Decimal(text[:-1]) <= _ALL_PERCENT:
        return Allowance(percent=Decimal(text[:-1]))
    message = "not a number of rows or a percentage"
    raise ValueError(message)
