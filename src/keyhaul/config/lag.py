"""How far below its watermark an incremental run begins to read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST_DAYS: Final = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """A distance: seconds for a column of moments, a number for a column of numbers; zero is both.

    Attributes:
        text: as it is written: ``5m``, ``100`` or ``0``.
        seconds: of a duration; None for a number.
        number: None for a duration.
    """

    text: str = "0"
    seconds: Decimal | None = Decimal(0)
    number: Decimal | None = Decimal(0)

    def __str__(self) -> str:
        """Return it as it is written."""
        return self.text


def read_lag(value: object) -> Lag:
    """Return the lag that ``5m``, ``"1.5h"``, ``100`` or ``"0.5"`` stands for; a day (``d``) has 24 hours.

    Raises:
        ValueError: `value` is none of these, or longer than 36,500 days.
    """
    if isinstance(value, Lag):
        return value
    text = str(value).strip() if isinstance(value, int | float | str) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"(?P<number>[0-9]{1,18}(\.[0-9]{1,9})?)(?P<unit>[smhd]?)", text)
    if found is None:
        message = "not a lag"
        raise ValueError(message)
    number, unit = Decimal(found["number"]), found["unit"]
    if not unit:
        return Lag(text=text, seconds=number if number == 0 else None, number=number)
    seconds = number * _SECONDS[unit]
    if seconds > _LONGEST_DAYS * _SECONDS["d"]:
        message = "too long"
        raise ValueError(message)
    return Lag(text=text, seconds=seconds, number=number if number == 0 else None)
