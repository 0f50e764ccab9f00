from __future__ import annotations

from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from keyhaul.model import Chunk
from keyhaul.sources.cuts import chunks_between

boundaries = st.lists(st.integers(-(10**12), 10**12), unique=True, max_size=20).map(sorted)


def cut(values, **more):
    numbers = {"total_rows": 100, "chunk_rows": 10, "null_rows": None}
    return chunks_between([(str(v),) for v in values], **{**numbers, **more})


def holders(chunks, key):
    """The numbers of the range chunks that hold `key`."""
    return [
        c.number
        for c in chunks
        if c.kind == "range"
        and (c.lower is None or int(c.lower[0]) <= key)
        and (c.upper is None or key < int(c.upper[0]))
    ]


def test_no_boundary_gives_one_chunk_that_is_open_on_both_sides():
    assert cut([], total_rows=7) == (Chunk(number=1, lower=None, upper=None, estimated_rows=7),)


def test_two_boundaries_give_three_half_open_chunks():
    assert cut([10, 20], total_rows=25, chunk_rows=10) == (
        Chunk(number=1, lower=None, upper=("10",), estimated_rows=10),
        Chunk(number=2, lower=("10",), upper=("20",), estimated_rows=10),
        Chunk(number=3, lower=("20",), upper=None, estimated_rows=5),
    )


def test_a_nullable_key_adds_one_last_chunk_for_its_nulls():
    assert cut([10], null_rows=3)[-1] == Chunk(number=3, kind="nulls", estimated_rows=3)


def test_a_key_that_cannot_be_null_has_no_chunk_for_nulls():
    assert [c.kind for c in cut([10])] == ["range", "range"]


def test_composite_boundaries_are_kept_as_they_are():
    first, second = chunks_between([("a", "1")], total_rows=2, chunk_rows=1, null_rows=None)
    assert (first.upper, second.lower) == (("a", "1"), ("a", "1"))


@given(boundaries, st.integers(-(10**12) - 1, 10**12 + 1))
def test_every_key_lies_in_exactly_one_chunk(values, key):
    assert holders(cut(values), key) == [bisect_right(values, key) + 1]


@given(boundaries)
def test_every_boundary_opens_a_chunk_and_closes_the_one_before(values):
    chunks = cut(values)
    assert [c.lower for c in chunks[1:]] == [c.upper for c in chunks[:-1]] == [(str(v),) for v in values]
    assert chunks[0].lower is None
    assert chunks[-1].upper is None
    assert [c.number for c in chunks] == list(range(1, len(values) + 2))


@given(boundaries, st.integers(0, 10**9), st.integers(1, 10**6), st.none() | st.integers(0, 1000))
def test_estimates_add_up_to_the_total_unless_boundaries_were_sampled_too_high(values, total, size, nulls):
    chunks = cut(values, total_rows=total, chunk_rows=size, null_rows=nulls)
    assert sum(c.estimated_rows for c in chunks) == total + (nulls or 0)
    assert all(c.estimated_rows <= size for c in chunks[: len(values)])
