"""The search for guilty records: all others are done once and in order, and each guilty one is told alone."""

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhaul.halving import halve


def search(records, guilty, instead=None):
    done, alone, tries = [], [], []

    def attempt(part):
        tries.append(part.height)
        found = part["r"].filter(part["r"].is_in(sorted(guilty)))
        if found.len():
            return ValueError(found[0])
        done.extend(part["r"])
        return None

    halve(
        pl.DataFrame({"r": records}, schema={"r": pl.Int64}), attempt, lambda part, _: alone.extend(part["r"]), instead
    )
    return done, alone, tries


@settings(deadline=None)
@given(st.integers(0, 200), st.sets(st.integers(0, 199), max_size=20))
def test_all_but_the_guilty_are_done_once_in_order_and_each_guilty_one_stands_alone(count, guilty):
    done, alone, tries = search(range(count), guilty)
    assert done == [record for record in range(count) if record not in guilty]
    assert alone == sorted(record for record in guilty if record < count)
    assert len(tries) <= 1 + 2 * len(alone) * 8  # 2·g·log2(200)


def test_after_so_many_failures_what_is_asked_instead_says_what_is_left():
    asked = []

    def ask(left):
        asked.append(left["r"].to_list())
        return left.filter(pl.col("r") > 5)

    done, alone, tries = search(range(16), {3, 4, 12}, {2: ask})
    assert asked == [list(range(16))]  # the whole and its first half have failed
    assert (done, alone) == ([*range(6, 12), 13, 14, 15], [12])
    assert tries[:3] == [16, 8, 10]


def test_without_an_answer_halving_goes_on():
    assert search(range(8), {5}, {1: lambda _left: None})[:2] == ([0, 1, 2, 3, 4, 6, 7], [5])
