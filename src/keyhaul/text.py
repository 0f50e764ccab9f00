"""How a value is written for people: a foreign text, a duration, a size, a number of things."""

from __future__ import annotations


def one_line(value: str) -> str:
    """Return `value` with every control or invisible character written as an escape.

    A line break, a terminal's escape sequence or a character that turns the reading direction in
    somebody's data must not change what stands elsewhere on the screen.
    """
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def duration(seconds: float) -> str:
    """Return ``0.42 s``, ``12.3 s``, ``4:05`` (minutes) or ``3:04:05`` (hours)."""
    if seconds < 1:
        return f"{max(seconds, 0.0):.2f} s"
    if seconds < 99.95:  # noqa: PLR2004 - two digits before the point still read as seconds
        return f"{seconds:.1f} s"
    return clock_time(seconds)


def clock_time(seconds: float) -> str:
    """Return ``0:07``, ``4:05`` or ``3:04:05``."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(size_bytes: float) -> str:
    """Return the size in decimal units: ``12 kB``, ``312 MB``, ``1.4 GB``."""
    if size_bytes < 1e6:  # noqa: PLR2004 - 1 MB
        return f"{size_bytes / 1e3:.0f} kB"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"  # noqa: PLR2004 - 1 GB


def plural(number: int, noun: str, many: str = "") -> str:
    """Return ``1 row`` or ``3 rows``; `many` is for a noun whose plural is not an s."""
    return f"{number:,} {noun if number == 1 else many or noun + 's'}"


def per_second(rows: int, seconds: float) -> float:
    """Return rows per second; 0 if no time has passed."""
    return rows / seconds if seconds > 0 else 0.0
