"""The plot of the results, as SVG written by hand: a bar for each contender's ratio, a line from best to worst round."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 760
LABEL = 290
RIGHT = 60
BAR = 18
GAP = 10
TOP = 46
COLOURS = {"baseline": "#7f8c9a", "keyhaul": "#2f6fde", "peer": "#d98a2b"}


def svg(results: Sequence[dict[str, Any]], title: str) -> str:
    """Return the plot; contenders without a ratio, and those without a part of the job, are not in it."""
    shown = [one for one in results if "ratio" in one and one["group"] in COLOURS]
    longest = max((one["ratio"]["max"] for one in shown), default=1.0)
    scale = (WIDTH - LABEL - RIGHT) / longest
    height = TOP + len(shown) * (BAR + GAP) + 24
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' font-family="system-ui, sans-serif" font-size="13" role="img">'
        ),
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" fill="#1c2430">{escape(title)}</text>',
    ]
    for place, one in enumerate(shown):
        parts += _bar(one, TOP + place * (BAR + GAP), scale)
    one_x = LABEL + scale
    bottom = TOP + len(shown) * (BAR + GAP)
    parts += [
        f'<line x1="{one_x:.1f}" y1="{TOP - 6}" x2="{one_x:.1f}" y2="{bottom}" stroke="#1c2430" stroke-dasharray="3 3"/>',
        f'<text x="{one_x:.1f}" y="{bottom + 14}" text-anchor="middle" fill="#1c2430">1 = raw COPY; shorter is faster</text>'
        if one_x > LABEL + 90
        else f'<text x="{LABEL}" y="{bottom + 14}" fill="#1c2430">1 = raw COPY; shorter is faster</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(one: dict[str, Any], y: float, scale: float) -> list[str]:
    ratio, middle = one["ratio"], y + BAR / 2
    best, worst = LABEL + ratio["min"] * scale, LABEL + ratio["max"] * scale
    return [
        f'<text x="{LABEL - 8}" y="{middle + 5:.1f}" text-anchor="end" fill="#1c2430">{escape(one["name"])}</text>',
        f'<rect x="{LABEL}" y="{y:.1f}" width="{ratio["median"] * scale:.1f}" height="{BAR}" fill="{COLOURS[one["group"]]}"/>',
        f'<line x1="{best:.1f}" y1="{middle:.1f}" x2="{worst:.1f}" y2="{middle:.1f}" stroke="#1c2430" stroke-width="1.5"/>',
        f'<text x="{worst + 6:.1f}" y="{middle + 5:.1f}" fill="#1c2430">{ratio["median"]:.2f}</text>',
    ]


def curve(memory: dict[str, Any]) -> str:
    """Return the plot of a run's memory over its time, a line for each reader."""
    width, height, left, bottom = WIDTH, 260, 60, 220
    readers = memory["readers"]
    longest = max(one["curve"][-1][0] for one in readers.values()) or 1.0
    largest = max(size for one in readers.values() for _, size in one["curve"]) or 1
    colours = dict(zip(readers, ("#2f6fde", "#d98a2b"), strict=False))
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="system-ui, sans-serif" font-size="13" role="img">'
        ),
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-size="15" fill="#1c2430">Resident memory (MB) over time (s), {memory["rows"]:,} rows</text>',
        f'<line x1="{left}" y1="{bottom}" x2="{width - 20}" y2="{bottom}" stroke="#1c2430"/>',
        f'<text x="{left - 6}" y="46" text-anchor="end" fill="#1c2430">{largest / 1e6:,.0f}</text>',
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end" fill="#1c2430">0</text>',
        f'<text x="{width - 20}" y="{bottom + 16}" text-anchor="end" fill="#1c2430">{longest:,.0f} s</text>',
    ]
    for place, (reader, one) in enumerate(readers.items()):
        points = " ".join(
            f"{left + second / longest * (width - 20 - left):.1f},{bottom - size / largest * (bottom - 42):.1f}"
            for second, size in one["curve"]
        )
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colours[reader]}" stroke-width="1.5"/>',
            f'<text x="{left + 8 + place * 120}" y="{bottom + 16}" fill="{colours[reader]}">{escape(reader)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
