"""Drawings of a run as SVG that keeps its text at one size on every width.

Places along the x axis are percentages, heights are pixels: a drawing is as wide as its container, and a phone
shows the same bars with text as large as elsewhere. Colours are classes of report.css.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyhaul.pages.markup import Markup, element, join
from keyhaul.pages.timeline import ticks, time_ticks
from keyhaul.text import clock_time, plural

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyhaul.pages.timeline import Bar, Clock

LANE_HEIGHT: Final = 26
PLOT_HEIGHT: Final = 150
_FLAGS: Final = {"retried": "↻", "failed": "✕"}
_LEAST_WIDTH: Final = 0.15
"""Percent of the width that every bar has at least, so that none is invisible."""
_CUT_WIDTH: Final = 1.0
"""Percent of the width from which on a bar is cut off from the one before it."""
_LABEL_HEIGHT: Final = 14
_ENDS: Final = (3.0, 97.0)
"""Labels nearer to the ends of an axis than this (percent) are set from the end inwards."""


def percent(part: float, whole: float) -> str:
    """Return a place or a length in percent of the width."""
    return f"{100 * part / whole:.3f}%" if whole > 0 else "0%"


def stacked(parts: Mapping[str, int], label: str) -> Markup:
    """Return one bar cut into shares, each with the class ``fill-NAME``; what is zero is left out."""
    whole = sum(parts.values())
    at, drawn = 0, []
    for name, number in parts.items():
        if number:
            box = {"x": percent(at, whole), "width": percent(number, whole)}
            tip = element("title", f"{name}: {number:,} ({share(number, whole)})")
            drawn.append(element("rect", tip, class_=f"fill-{name}", y=0, height=LANE_HEIGHT, **box))
            at += number
    if not drawn:
        drawn.append(element("rect", class_="track", x=0, y=0, width="100%", height=LANE_HEIGHT))
    return _drawing(LANE_HEIGHT, label, *drawn)


def share(part: float, whole: float) -> str:
    """Return a share for people: ``3.1 %``; ``< 0.1 %`` for less, and no 100 % while something is missing."""
    value = 100 * part / whole if whole else 0.0
    if 0 < value < 0.1:  # noqa: PLR2004 - what one decimal can say
        return "< 0.1 %"
    if 99.9 < value < 100:  # noqa: PLR2004 - the same from above
        return "> 99.9 %"
    return f"{value:.0f} %" if value in {0, 100} else f"{value:.1f} %"


def lane(bars: Sequence[Bar], clock: Clock, label: str) -> Markup:
    """Return what one worker did: a bar for each chunk with its steps, a mark where it was tried again or failed."""
    drawn = [element("rect", class_="track", x=0, y=0, width="100%", height=LANE_HEIGHT)]
    marks = []
    for bar in bars:
        tip = element("title", _tip(bar))
        width = max(100 * (bar.end - bar.begin) / clock.seconds, _LEAST_WIDTH)
        box = {"x": percent(bar.begin, clock.seconds), "width": f"{width:.3f}%"}
        parts = [
            element(
                "rect",
                class_=f"fill-{step}",
                x=percent(begin, clock.seconds),
                width=percent(end - begin, clock.seconds),
                y=3,
                height=LANE_HEIGHT - 6,
            )
            for step, begin, end in bar.parts
        ]
        back = element("rect", class_="fill-failed" if bar.failed else "fill-busy", y=3, height=LANE_HEIGHT - 6, **box)
        # Of many narrow bars nothing but the cuts between them would be seen.
        cut = [element("rect", class_="cut", x=box["x"], y=3, width=1, height=LANE_HEIGHT - 6)] * (width > _CUT_WIDTH)
        drawn.append(element("g", tip, back, *parts, *cut))
        if bar.failed or bar.attempts > 1:
            kind = "failed" if bar.failed else "retried"
            outline = element("rect", class_=f"outline-{kind}", y=2, height=LANE_HEIGHT - 4, **box)
            # In the gap that the lost tries have left, or above the bar where there is none.
            left = not bar.failed and bar.begin > clock.seconds / 25
            side = {"text__anchor": "end", "dx": -4} if left else {"text__anchor": "middle"}
            flag = element("text", _FLAGS[kind], class_=f"mark-{kind}", x=box["x"], y=18, **side)
            marks += [outline, element("g", tip, flag)]
    return _drawing(LANE_HEIGHT, label, *drawn, *_pauses(clock, LANE_HEIGHT), *marks)


def _tip(bar: Bar) -> str:
    which = f"chunk {bar.first}" if bar.first == bar.last else f"chunks {bar.first:,} to {bar.last:,}"
    told = [f"{which}: {bar.rows:,} rows", f"{bar.begin:.2f} s to {bar.end:.2f} s"]
    told += [f"{step} {end - begin:.2f} s" for step, begin, end in bar.parts]
    if bar.attempts > 1:
        told.append(plural(bar.attempts, "try", "tries"))
    return ", ".join([*told, "failed"] if bar.failed else told)


def time_axis(clock: Clock) -> Markup:
    """Return the axis beneath lanes and plots; every other label goes on a narrow screen."""
    marks = []
    for number, moment in enumerate(time_ticks(clock.seconds)):
        place = 100 * moment / clock.seconds
        anchor = "start" if place < _ENDS[0] else "end" if place > _ENDS[1] else "middle"
        text = element("text", _moment(moment, clock.seconds), x=f"{place:.3f}%", y=17, text__anchor=anchor)
        line = element("line", x1=f"{place:.3f}%", x2=f"{place:.3f}%", y1=0, y2=4, class_="grid")
        marks.append(element("g", line, text, class_="minor" if number % 2 else None))
    return _drawing(22, "time since the beginning", *marks)


def _moment(seconds: float, whole: float) -> str:
    if whole > 60:  # noqa: PLR2004 - a minute
        return clock_time(seconds)
    return f"{seconds:g} s" if seconds else "0"


def area(values: Sequence[float], clock: Clock, mean: float, label: str) -> Markup:
    """Return rows per second over the clock as a stepped area, with its mean as a line."""
    highest = max([*values, mean, 1.0]) * 1.08
    steps = "".join(f"L{i} {highest - v:.4g}L{i + 1} {highest - v:.4g}" for i, v in enumerate(values))
    path = element("path", d=f"M0 {highest:.4g}{steps}L{len(values)} {highest:.4g}Z", class_="area")
    plot = element(
        "svg",
        path,
        x=0,
        y=0,
        width="100%",
        height=PLOT_HEIGHT,
        viewBox=f"0 0 {len(values)} {highest:.4g}",
        preserveAspectRatio="none",
    )
    levels, labels = [], []
    middle = PLOT_HEIGHT * (1 - mean / highest)
    for value in ticks(highest, 4):
        y = PLOT_HEIGHT * (1 - value / highest)
        levels.append(element("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        if value:
            # Beneath its line; above it where the line of the mean would go through it.
            above = y <= middle <= y + _LABEL_HEIGHT + 2 and y > _LABEL_HEIGHT
            base = y - 4 if above else y + _LABEL_HEIGHT
            labels.append(element("text", f"{value:,.0f}", x=2, y=base, class_="halo"))
    line = element(
        "line", element("title", f"mean {mean:,.0f} rows/s"), x1=0, x2="100%", y1=middle, y2=middle, class_="mean"
    )
    return _drawing(PLOT_HEIGHT, label, plot, *levels, *_pauses(clock, PLOT_HEIGHT), line, *labels)


def meter(part: float, whole: float, fill: str, label: str) -> Markup:
    """Return a thin bar that is filled by `part` of `whole`, with the class ``fill-FILL``."""
    track = element("rect", class_="track", x=0, y=0, width="100%", height=10, rx=2)
    filled = element("rect", class_=f"fill-{fill}", x=0, y=0, width=percent(part, whole), height=10, rx=2)
    return _drawing(10, label, track, filled)


def _pauses(clock: Clock, height: int) -> list[Markup]:
    """Return a line where a later sitting begins."""
    return [
        element(
            "line",
            element("title", f"sitting {sitting.number} begins"),
            class_="pause",
            x1=percent(sitting.offset_seconds, clock.seconds),
            x2=percent(sitting.offset_seconds, clock.seconds),
            y1=0,
            y2=height,
        )
        for sitting in clock.sittings[1:]
    ]


def _drawing(height: int, label: str, *children: str) -> Markup:
    return element("svg", join(*children), width="100%", height=height, role="img", aria__label=label)
