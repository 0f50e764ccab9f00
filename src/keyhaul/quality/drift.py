"""What `drift` measures of a column, and what of it moved further than its tolerance."""

from __future__ import annotations

from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.config.checkfile import Expectation


def measured(check: Expectation, rows: int, found: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the measures that a check asks for, from what the system counted."""
    mean = None if found.get("mean") is None else float(found["mean"])
    values: dict[str, float | None] = {
        "null_share": (rows - int(found["present"])) / rows if rows else None,
        "mean": mean if mean is not None and isfinite(mean) else None,  # JSON has no other
        "distinct": found.get("distinct"),
    }
    return {name: values[name] for name in check.demand.tolerances}


def drifted(check: Expectation, now: Mapping[str, float | None], before: Mapping[str, float | None] | None) -> str:
    """Return what moved further than its tolerance, or an empty string."""
    moved = []
    for name, tolerance in check.demand.tolerances.items():
        if before is None or name not in before:
            continue
        value, other = now[name], before[name]
        near = (
            value is other
            if value is None or other is None
            else tolerance.permits(Decimal(repr(value)), Decimal(repr(other)))
        )
        if not near:
            moved.append(f"{name} {_number(value)}, was {_number(other)} (± {tolerance})")
    return "; ".join(moved)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else f"{value:,}"
