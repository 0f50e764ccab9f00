from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.pages.markup import Markup, element, escape
from keyhaul.pages.svg import lane, share
from keyhaul.pages.timeline import MOST_BARS, clock_of, lanes, rates, ticks, time_ticks

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def at(seconds):
    return None if seconds is None else NOON + timedelta(seconds=seconds)


def run_of(*, started=0.0, ended=None, sittings=1):
    return {"started_at": at(started), "ended_at": at(ended), "sittings": sittings}


def chunk_of(number, begin, end, *, worker=1, rows=100, sitting=1, attempts=1, status="done", steps=(0, 0, 0, 0)):
    spent = dict(zip(("read_seconds", "transform_seconds", "stage_seconds", "load_seconds"), steps, strict=True))
    moments = {"started_at": at(begin), "ended_at": at(end)}
    return {
        "chunk": number, "worker": worker, "rows_read": rows, "sitting": sitting, "attempts": attempts, "status": status,
        **spent, **moments,
    }  # fmt: skip


def test_the_clock_begins_with_the_run_and_leaves_out_the_time_between_sittings():
    chunks = [chunk_of(1, 2, 5), chunk_of(2, 3605, 3607, sitting=2)]
    clock = clock_of(run_of(ended=3610, sittings=2), chunks)
    assert clock.seconds == 5 + 5
    assert [clock.at(1, at(2)), clock.at(1, at(5)), clock.at(2, at(3605)), clock.at(2, at(3610))] == [2, 5, 5, 10]


def test_a_run_without_an_ended_chunk_has_no_time():
    planned = chunk_of(1, None, None, worker=None, sitting=None, status="planned")
    assert clock_of(run_of(), [planned]).seconds == 0
    assert clock_of(run_of(), []).seconds == 0


def test_a_bar_has_its_steps_in_order_and_the_load_ends_with_it():
    chunk = chunk_of(1, 0, 10, steps=(3, 1, 2, 3))
    ((bar,),) = lanes([chunk], clock_of(run_of(), [chunk])).values()
    assert bar.parts == (("read", 0, 3), ("transform", 3, 4), ("stage", 4, 6), ("load", 7, 10))


def test_a_chunk_that_was_given_up_has_a_place_and_no_length():
    chunks = [chunk_of(1, 0, 4), chunk_of(2, None, 3, worker=2, status="failed", attempts=6)]
    found = lanes(chunks, clock_of(run_of(), chunks))
    assert [(bar.begin, bar.end, bar.failed) for bar in found[2]] == [(3, 3, True)]


def test_a_worker_does_one_thing_at_a_time_when_the_ledger_knows_only_the_loads():
    chunks = [chunk_of(1, 0, 10, steps=(8, 0, 0, 2)), chunk_of(2, 3, 12, steps=(7, 0, 0, 2))]
    first, second = lanes(chunks, clock_of(run_of(), chunks))[1]
    assert (first.begin, first.end, first.cut) == (0, 10, False)
    assert (second.begin, second.parts, second.cut) == (10, (("load", 10, 12),), True)


def test_of_many_chunks_neighbours_are_one_bar_and_no_row_is_lost():
    number = MOST_BARS + 500
    chunks = [chunk_of(n, n * 0.01, (n + 1) * 0.01, attempts=2 if n == 7 else 1) for n in range(number)]
    ((only,),) = lanes(chunks, clock_of(run_of(), chunks)).values()
    assert (only.first, only.last, only.rows, only.attempts) == (0, number - 1, 100 * number, 2)


@given(
    st.lists(
        st.tuples(st.floats(0, 1000), st.floats(0, 500), st.integers(0, 10**6), st.integers(1, 3)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 200),
)
def test_rates_over_time_add_up_to_the_rows_read(spans, bins):
    chunks = [
        chunk_of(number, begin, begin + length, worker=worker, rows=rows)
        for number, (begin, length, rows, worker) in enumerate(spans)
    ]
    clock = clock_of(run_of(), chunks)
    found = rates(chunks, clock, bins)
    assert len(found) == bins
    if clock.seconds:
        assert sum(found) * clock.seconds / bins == pytest.approx(sum(rows for *_, rows, _ in spans), rel=1e-6)


@given(st.floats(1e-6, 1e12))
def test_ticks_are_few_round_and_within(highest):
    found = ticks(highest)
    assert found[0] == 0
    assert 1 < len(found) <= 11
    assert found[-1] <= highest * (1 + 1e-6)


@given(st.floats(0.001, 30 * 86400.0))
def test_a_time_axis_has_a_readable_number_of_labels(seconds):
    assert 2 <= len(time_ticks(seconds)) <= 11


def test_no_share_is_rounded_to_nothing_or_to_all():
    assert [share(*of) for of in [(0, 5), (5, 5), (1, 10**6), (10**6 - 1, 10**6), (31, 1000), (0, 0)]] == [
        "0 %",
        "100 %",
        "< 0.1 %",
        "> 99.9 %",
        "3.1 %",
        "0 %",
    ]


def test_text_is_escaped_in_children_and_attributes_and_markup_is_not():
    hostile = "</title><script>alert(1)</script>\u202e\x1b[2J\"'&"
    told = "&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;\\u202e\\x1b[2J&quot;&#x27;&amp;"
    assert element("b", hostile) == f"<b>{told}</b>"
    assert element("b", title=hostile) == f'<b title="{told}"></b>'
    assert element("p", Markup("<b>"), None, escape("<")) == "<p><b>&lt;</p>"


def test_a_lane_says_what_was_tried_again_and_what_failed():
    chunks = [chunk_of(1, 1, 4, attempts=2), chunk_of(2, None, 6, status="failed", attempts=6)]
    clock = clock_of(run_of(), chunks)
    drawn = lane(lanes(chunks, clock)[1], clock, "worker 1")
    assert "chunk 1: 100 rows, 1.00 s to 4.00 s, 2 tries" in drawn
    assert "chunk 2: 100 rows, 6.00 s to 6.00 s, 6 tries, failed" in drawn
    assert drawn.count("↻") == 1
    assert drawn.count("✕") == 1
