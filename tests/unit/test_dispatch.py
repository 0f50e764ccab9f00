"""Merging is pure: whatever the pace, each cut goes out exactly once, in order, with its neighbours only, within limits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.before.sizing import cut_rows
from keyhaul.config.parts import AutoChunk
from keyhaul.limits.dispatch import Dispatch
from keyhaul.limits.pace import Pace
from keyhaul.model import Chunk, ChunkResult, Counts, Timings
from keyhaul.sources.cuts import chunks_between, halved, merged, neighbours
from keyhaul.sources.source import Sample


def plan(count, rows=100, *, total=None, nulls=None):
    return chunks_between(
        [(str(number),) for number in range(1, count)],
        total_rows=count * rows if total is None else total,
        chunk_rows=rows,
        null_rows=nulls,
    )


def auto(**settings):
    return AutoChunk(**{"min_rows": 100, "max_rows": 10_000, **settings})


def result(chunk, *, rows=None, seconds=1.0):
    read = chunk.estimated_rows if rows is None else rows
    times = Timings(read_seconds=seconds / 2, load_seconds=seconds / 2, wait_seconds=100.0)
    return ChunkResult(chunk=chunk.number, counts=Counts(read=read), timings=times, attempts=1, bytes_read=0)


def numbers(chunk):
    return [cut.number for cut in chunk.cuts] or [chunk.number]


def taken(left, paces, workers=2):
    """Take all chunks, each moved at the next of the paces (rows a second)."""
    out = []
    while (chunk := left.take(workers)) is not None:
        out.append(chunk)
        pace = paces[(len(out) - 1) % len(paces)]
        left.measure(result(chunk, seconds=chunk.estimated_rows / pace))
    return out


open_cuts = st.lists(st.booleans(), min_size=1, max_size=60)
"""Which cuts of a plan are open; the others were done by earlier sittings."""
paces = st.lists(st.floats(1, 1e7), min_size=1, max_size=8)
settings = st.builds(
    lambda low, more, seconds: AutoChunk(min_rows=low, max_rows=low + more, target_seconds=seconds),
    st.integers(1, 2000),
    st.integers(0, 5000),
    st.floats(0.01, 60),
)


@given(open_cuts, paces, settings, st.integers(1, 8), st.booleans(), st.booleans(), st.sets(st.integers(1, 60)), st.floats(1, 1e5))  # fmt: skip
def test_every_open_cut_goes_out_once_in_order_among_neighbours_and_within_the_limits(
    is_open, rates, chosen, workers, descending, nulls, alone, most
):
    whole = plan(len(is_open), nulls=7 if nulls else None)
    left = [cut for cut in whole if cut.kind == "nulls" or is_open[cut.number - 1]]
    left = left[::-1] if descending else left
    out = taken(Dispatch(left, Pace(chosen), alone=alone, most_rows=lambda: most), rates, workers)
    ranges = [chunk for chunk in out if chunk.kind == "range"]
    assert [chunk.kind for chunk in out[: len(out) - len(ranges)]] == ["nulls"] * nulls
    gone = [number for chunk in ranges for number in (numbers(chunk)[::-1] if descending else numbers(chunk))]
    assert gone == [cut.number for cut in left if cut.kind == "range"]
    for chunk in ranges:
        first, last = whole[chunk.number - 1], whole[chunk.last - 1]
        assert numbers(chunk) == list(range(chunk.number, chunk.last + 1))
        assert (chunk.lower, chunk.upper) == (first.lower, last.upper)
        assert chunk.estimated_rows == 100 * len(numbers(chunk))
        assert len(numbers(chunk)) == 1 or chunk.estimated_rows <= min(chosen.max_rows, most)
        assert len(numbers(chunk)) == 1 or not alone.intersection(numbers(chunk))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.booleans())
def test_chunks_of_fixed_size_go_out_as_they_are(sizes, descending):
    cuts = [Chunk(number=n, kind="nulls" if n == len(sizes) else "range", estimated_rows=s) for n, s in enumerate(sizes, 1)]  # fmt: skip
    cuts = cuts[::-1] if descending else cuts
    left = Dispatch(cuts)
    assert len(left) == len(cuts)
    assert [left.take(2) for _ in cuts] == cuts
    assert left.take(2) is None


@given(st.integers(2, 40), st.integers(1, 39))
def test_halves_have_the_keys_of_the_whole_and_come_next(count, bad):
    bad = min(bad, count)
    left = Dispatch([*plan(count), Chunk(number=count + 1, kind="nulls")])
    whole = merged(plan(count))
    left.halve(whole)
    guilty, good = [], []
    while (chunk := left.take(1)) is not None and chunk.kind == "range" and chunk.number <= count:
        if bad in numbers(chunk) and chunk.cuts:
            left.halve(chunk)
        elif bad in numbers(chunk):
            guilty.append(chunk)
        else:
            good += numbers(chunk)
        if len(good) + len(guilty) == count:
            break
    assert guilty == [plan(count)[bad - 1]]
    assert sorted([*good, bad]) == list(range(1, count + 1))
    low, high = halved(whole)
    assert (low.lower, low.upper, high.upper) == (whole.lower, high.lower, whole.upper)


@given(st.integers(1, 30), st.sets(st.integers(1, 30)), st.integers(1, 30), st.booleans())
def test_what_somebody_else_has_loaded_is_left_out_and_nothing_else(count, loaded, size, descending):
    cuts = plan(count)[::-1] if descending else plan(count)
    left = Dispatch(cuts, Pace(auto(min_rows=100 * size, max_rows=100 * size)))
    first = left.take(1)
    left.sort_out(first, {cut.number for cut in cuts} - loaded)
    assert len(left) == len([cut for cut in cuts if cut.number not in loaded])
    gone = [number for chunk in taken(left, [100.0], 1) for number in numbers(chunk)]
    assert sorted(gone) == [cut.number for cut in plan(count) if cut.number not in loaded]


@given(st.lists(st.sampled_from(plan(9, nulls=1)), min_size=1, max_size=9, unique=True))
def test_only_neighbours_can_be_merged(cuts):
    ordered = sorted(cut.number for cut in cuts)
    fit = len(cuts) == 1 or (ordered == list(range(ordered[0], ordered[-1] + 1)) and ordered[-1] < 10)
    if fit:
        assert numbers(merged(cuts)) == ordered
    else:
        with pytest.raises(ValueError, match="expected neighbours"):
            merged(cuts)


def test_ranges_that_do_not_touch_or_are_merged_already_are_no_neighbours():
    one, two, three = plan(3)
    assert neighbours(one, two)
    assert neighbours(two, one)
    assert not neighbours(one, three)
    assert not neighbours(Chunk(number=1, upper=("1",)), Chunk(number=2, lower=("2",)))
    assert not neighbours(merged([one, two]), three)


@pytest.mark.parametrize(
    ("known", "width", "rows"),
    [
        (-1, 0, 10_000),
        (5_000_000, 90, 10_000),
        (50_000_000, 90, 25_000),
        (2e9, 90, 133_333),
        (1e12, 0, 1_000_000),
        (50_000_000, 64_000, 187),
        (10, 1e9, 1),
    ],
)
def test_a_plan_has_about_two_thousand_cuts_at_the_most_unless_the_rows_are_wide(known, width, rows):
    assert cut_rows(AutoChunk(), Sample(row_bytes=width, rows=known)) == rows
    assert cut_rows(AutoChunk(), Sample(row_bytes=0)) == 10_000


# --- the pace --------------------------------------------------------------------------------------


def rows(pace, *, left=1e9, workers=2, most=math.inf):
    return pace.rows(left=left, workers=workers, most=most)


def test_the_first_chunks_are_small_and_the_next_ones_grow_to_the_time():
    pace = Pace(auto(target_seconds=2))
    sizes = []
    for _ in range(6):
        wanted, _ = rows(pace)
        sizes.append(wanted)
        pace.measure(round(wanted), wanted / 2000)  # 2,000 rows a second
    assert sizes == [100, 400, 1600, 4000, 4000, 4000]


def test_one_slow_chunk_changes_nothing_and_a_change_of_pace_is_followed_after_two():
    pace = Pace(auto(target_seconds=2))
    for _ in range(3):
        pace.measure(4000, 2.0)
    pace.measure(4000, 200.0)
    assert rows(pace)[0] == 4000
    pace.measure(4000, 200.0)
    assert rows(pace)[0] == 100


def test_a_chunk_without_rows_or_of_unknown_time_says_nothing_of_the_pace():
    pace = Pace(auto(target_seconds=2))
    pace.measure(0, 1.0)
    pace.measure(1000, 0.0)
    assert (pace.rows_per_second, rows(pace)[0]) == (0, 100)
    pace.measure(4000, 2.0)
    for _ in range(3):
        pace.measure(0, 1.0)
        pace.measure(1000, 0.0)
    assert (pace.rows_per_second, rows(pace)[0]) == (2000, 4000)


def test_the_time_that_a_worker_waits_is_not_its_pace():
    left = Dispatch(plan(3), pace := Pace(auto()))
    left.measure(result(left.take(1), seconds=0.5))
    assert pace.rows_per_second == 200


def test_the_rate_limit_is_kept_over_about_the_time_of_a_chunk():
    pace = Pace(auto(target_seconds=2), rows_per_second=1000)
    for _ in range(3):
        pace.measure(4000, 1.0)
    assert rows(pace, workers=4)[0] == 500


def test_memory_comes_before_the_fewest_rows():
    pace = Pace(auto())
    assert rows(pace, most=30) == (30, 30)
    pace.measure(100, 0.1)
    assert rows(pace, most=30) == (30, 30)


@given(st.floats(100, 1e6), st.integers(1, 16), st.integers(1, 400), st.floats(0.5, 10))
def test_no_worker_is_waited_for_at_the_end_longer_than_one_shared_chunk(pace, workers, count, seconds):
    """With workers of one pace, the last one ends at most a chunk of the tail after the first."""
    chosen = AutoChunk(min_rows=100, target_seconds=seconds)
    left = Dispatch(plan(count), measured := Pace(chosen))
    busy = [0.0] * workers
    last = [0.0] * workers
    while True:
        worker = busy.index(min(busy))
        chunk = left.take(workers)
        if chunk is None:
            break
        last[worker] = chunk.estimated_rows / pace
        busy[worker] += last[worker]
        measured.measure(chunk.estimated_rows, last[worker])
    cut = 100 / pace
    # What is taken when the others run out: the share of a tail, or the smallest chunk, to the nearest cut.
    assert max(busy) - min(busy) <= max(seconds / 8, cut) + cut
