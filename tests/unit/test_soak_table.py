from __future__ import annotations

import pytest
import soak
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("tries", "wrong", "limit"),
    # The 95 % quantile of the beta distribution with wrong + 1 and tries - wrong.
    [(300, 0, 0.009936), (25, 0, 0.112928), (1, 0, 0.95), (10, 1, 0.394163), (100, 3, 0.075712), (5, 5, 1.0)],
)
def test_the_bound_is_that_of_clopper_and_pearson(tries, wrong, limit):
    assert soak.bound(tries, wrong) == pytest.approx(limit, abs=2e-6)


@given(st.integers(1, 2000), st.integers(0, 20))
def test_the_bound_is_above_what_was_seen_and_falls_with_more_tries(tries, wrong):
    wrong = min(wrong, tries)
    assert wrong / tries <= soak.bound(tries, wrong) <= 1
    assert soak.bound(tries + 1, wrong) <= soak.bound(tries, wrong) + 1e-8


def test_the_table_sums_points_and_tries_and_gives_a_bound_to_what_was_at_random(monkeypatch):
    monkeypatch.setattr(soak, "tried", {})
    soak.note("every named point, kill", "append", "copy.half", tries=3)
    soak.note("every named point, kill", "append", "commit.after", tries=2)
    for step in ("read", "load", "load"):
        soak.note(soak.AT_RANDOM, "adbc and adbc", step)
    soak.note(soak.AT_RANDOM, "copies across chunks", "load", wrong=1)
    assert soak.table()[2:] == [
        "| SIGKILL at random | adbc and adbc | 2 | 3 | 0 | 63.16% |",
        "| SIGKILL at random | copies across chunks | 1 | 1 | 1 | 100.00% |",
        "| every named point, kill | append | 2 | 5 | 0 | not at random |",
        "| SIGKILL at random | all | | 4 | 1 | 75.14% |",
        "| all | | | 9 | 1 | |",
    ]
