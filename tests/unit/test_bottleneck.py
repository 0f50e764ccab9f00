from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.model import Timings
from keyhaul.printing.bottleneck import Measured, bottleneck, shares


def measured(read=0.0, transform=0.0, stage=0.0, load=0.0, wait=0.0, *, chunks=10, workers=2, cores=2):
    timings = Timings(
        read_seconds=read, transform_seconds=transform, stage_seconds=stage, load_seconds=load, wait_seconds=wait
    )
    return Measured(timings=timings, chunks=chunks, workers=workers, cores=cores)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ("read", "reading 80 %, loading 20 % of the workers' time; the source, or the way to it, is the bottleneck"),
        ("transform", "transforming 80 %, loading 20 % of the workers' time; the transform, on this side, or"),
        ("stage", "rules and duplicates 80 %, loading 20 % of the workers' time; rules and duplicates, on this side"),
        ("wait", "waiting 80 %, loading 20 % of the workers' time; the workers were held back"),
    ],
)
def test_the_step_with_the_largest_share_is_named_with_its_share(step, told):
    assert bottleneck(measured(**{step: 8.0, "load": 2.0}))[0].startswith(told)


def test_the_target_is_named_when_loading_takes_longest():
    told = bottleneck(measured(read=2.0, load=8.0))
    assert told[0].endswith("the target, or the way to it, is the bottleneck")
    assert "Indexes" in told[1]


def test_nothing_is_called_a_bottleneck_where_no_step_stands_out():
    told = bottleneck(measured(3.0, 3.0, 3.0, 3.0))
    assert told[0].endswith("no step stands out")
    assert len(told) == 2


def test_nothing_is_said_of_a_run_too_short_to_measure():
    assert bottleneck(measured(0.5, load=0.1)) == ()
    assert bottleneck(measured()) == ()


def test_larger_chunks_are_advised_only_where_a_chunk_is_short():
    short, long = (bottleneck(measured(6.0, load=4.0, chunks=chunks)) for chunks in (1000, 50))
    assert "A chunk took 0.01 s: larger ones (--chunk) share the cost of a query and a COMMIT" in short
    assert not any("--chunk" in sentence for sentence in long)


def test_more_workers_are_advised_where_cores_were_without_one():
    assert "2 of this machine's 8 cores had a worker: more --workers may help" in bottleneck(measured(8.0, cores=8))
    assert not any("had a worker" in sentence for sentence in bottleneck(measured(8.0)))
    assert not any("--workers" in sentence for sentence in bottleneck(measured(stage=8.0)))
    # Of another machine, or of chunks that are no more than the workers, nothing is known that would help.
    assert not any("--workers" in sentence for sentence in bottleneck(measured(8.0, cores=None)))
    assert not any("--workers" in sentence for sentence in bottleneck(measured(8.0, cores=8, chunks=2)))


def test_the_limit_that_was_waited_for_most_is_named_where_it_explains_the_waiting():
    waited = measured(1.0, wait=9.0)
    assert "Most of it for rate_limit: a higher one would help" in bottleneck(
        replace(waited, held={"memory_limit": 1.0, "rate_limit": 7.0})
    )
    assert not any("rate_limit" in told for told in bottleneck(replace(waited, held={"rate_limit": 2.0})))


@given(st.lists(st.floats(0, 1e6), min_size=5, max_size=5))
def test_shares_are_of_the_whole_and_the_largest_comes_first(seconds):
    found = list(shares(measured(*seconds).timings).values())
    assert found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1 if sum(seconds) > 0 else 0)


def test_of_two_steps_that_take_the_same_none_stands_out():
    timings = Timings(read_seconds=4.9, load_seconds=4.7, stage_seconds=0.4)
    told = bottleneck(Measured(timings=timings, chunks=10, workers=2))
    assert told[0].endswith("no step stands out")
