"""The rounds: every contender in turn, each from the same start, and its rows compared with what they must be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import measured, orders
from benchmarks.contenders import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.contenders import Contender, Ends
    from benchmarks.measured import Usage
    from benchmarks.orders import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One run of one contender.

    Attributes:
        name: the contender's.
        round: from 1.
        usage: of the process.
        steps: seconds of keyhaul's steps, summed over the workers.
        wrong: why its result does not count; empty when its rows are those that were expected.
    """

    name: str
    round: int
    usage: Usage
    steps: Mapping[str, float]
    wrong: str = ""


def race(contenders: Sequence[Contender], ends: Ends, rounds: int) -> list[Measure]:
    """Run every contender that can run, `rounds` times; each round begins with another one."""
    able = [one for one in contenders if not one.absent]
    known = orders.expected(ends.source, {one.expected for one in able})
    limited = {one.up_to: orders.expected(ends.source, {"finished"}, one.up_to) for one in able if one.up_to}
    found = []
    for number in range(1, rounds + 1):
        start = (number - 1) * max(len(able) // max(rounds, 1), 1) % max(len(able), 1)
        for one in [*able[start:], *able[:start]]:
            want = (limited[one.up_to] if one.up_to else known)[one.expected]
            measure = run_one(one, ends, number, want)
            usage = measure.usage
            told = measure.wrong or f"{usage.wall_seconds:.2f} s, {usage.cpu_seconds:.2f} s CPU"
            print(f"round {number}: {one.name}: {told}", file=sys.stderr, flush=True)
            found.append(measure)
    return found


def run_one(contender: Contender, ends: Ends, number: int, want: Digest) -> Measure:
    """Prepare the target, run one contender, and check what it has loaded."""
    orders.make_target(ends.target, contender.target)
    for uri in (ends.source, ends.target):
        orders.checkpoint(uri)
    usage = measured.run(contender.argv, environment(contender), ends.folder)
    wrong = ""
    if usage.returncode:
        wrong = f"it ended with {usage.returncode}: {_last_line(usage.output)}"
    else:
        got = orders.loaded(ends.target, contender.table)
        if got != want:
            what = "other values in them" if got.rows == want.rows else f"expected {want.rows:,}"
            wrong = f"it loaded {got.rows:,} rows, {what}"
        elif contender.quarantines and (kept := orders.quarantined(ends.target)) != (
            due := orders.negative(ends.source)
        ):
            wrong = f"it quarantined {kept:,} records, expected {due:,}"
    steps = orders.steps(ends.target) if "keyhaul" in contender.argv else {}
    return Measure(name=contender.name, round=number, usage=usage, steps=steps, wrong=wrong)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
