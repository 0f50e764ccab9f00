"""Sizes and percentages as a person writes them: ``2GB``, ``512MB``, ``60%``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_UNITS: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_ALL_PERCENT: Final = 100
_SMALLEST_BYTES: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySize:
    """An amount of memory: bytes, or a percentage of what there is.

    Attributes:
        text: as it is written.
        bytes: None for a percentage.
        percent: from 1 to 100; None for bytes.
    """

    text: str
    bytes: int | None = None
    percent: float | None = None

    def of(self, total_bytes: int) -> int:
        """Return the bytes that it means on a machine with `total_bytes`; never more than those."""
        wanted = self.bytes if self.bytes is not None else round(total_bytes * (self.percent or 0) / _ALL_PERCENT)
        return min(wanted, total_bytes)

    def __str__(self) -> str:
        """Return it as it is written."""
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Percent:
    """A percentage from 1 to 100."""

    value: float

    def __str__(self) -> str:
        """Return it as it is written: ``85%``."""
        return f"{self.value:g}%"


def read_memory(value: object) -> MemorySize:
    """Return the size that ``2GB``, ``"1.5 GB"``, ``512MB`` or ``60%`` stands for; units are decimal.

    Raises:
        ValueError: `value` is none of these, or less than 1 MB or 1 %.
    """
    if isinstance(value, MemorySize):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if text.endswith("%"):
        return MemorySize(text=text, percent=read_percent(text).value)
    found = re.fullmatch(r"(?P<number>[0-9]{1,12}(\.[0-9]{1,6})?) ?(?P<unit>kB|MB|GB|TB)", text, re.IGNORECASE)
    if found is None:
        message = "not a size"
        raise ValueError(message)
    unit = next(unit for unit in _UNITS if unit.lower() == found["unit"].lower())
    size = round(float(found["number"]) * _UNITS[unit])
    if size < _SMALLEST_BYTES:
        message = "too small"
        raise ValueError(message)
    return MemorySize(text=text, bytes=size)


def read_size(value: object) -> MemorySize:
    """Return the size that ``64MB`` stands for; a percentage is none, for it would be of nothing.

    Raises:
        ValueError: `value` is no size, or less than 1 MB.
    """
    size = read_memory(value)
    if size.bytes is None:
        message = "a percentage"
        raise ValueError(message)
    return size


def read_percent(value: object) -> Percent:
    """Return the percentage that ``85%`` stands for.

    Raises:
        ValueError: `value` is none, or not between 1 and 100.
    """
    if isinstance(value, Percent):
        return value
    text = value.strip() if isinstance(value, str) else ""
    found = re.fullmatch(r"(?P<number>[0-9]{1,3}(\.[0-9]{1,3})?) ?%", text)
    if found is None or not 1 <= float(found["number"]) <= _ALL_PERCENT:
        message = "not a percentage"
        raise ValueError(message)
    return Percent(value=float(found["number"]))
