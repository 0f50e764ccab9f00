from __future__ import annotations

import random
import threading
from datetime import UTC, date, datetime, time
from decimal import Decimal

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from keyhaul.errors import ConfigError, StopRunError
from keyhaul.model import Counts, Timings
from keyhaul.staging.gather import Contest, Gathered, Store
from keyhaul.staging.stage import REJECTED

CONTEST = Contest(on=(pl.Int64(),), order_by=(pl.Float64(),), key=(pl.Int64(),), keep="last")
NOTHING = pl.DataFrame(schema={"_keyhaul_record": pl.Int64})

moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))  # noqa: DTZ001 - with and without one
VALUES = {
    pl.Boolean(): st.booleans(),
    pl.Int16(): st.integers(-(2**15), 2**15 - 1),
    pl.Int64(): st.integers(-(2**63), 2**63 - 1),
    pl.Float32(): st.floats(width=32),
    pl.Float64(): st.floats(),
    pl.Decimal(38, 10): st.decimals(-(10**27), 10**27, places=10),
    pl.Decimal(38, 0): st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    pl.String(): st.text(st.characters(exclude_categories=["Cs"])),
    pl.Binary(): st.binary(),
    pl.Date(): st.dates(),
    pl.Time(): st.times(),
    pl.Datetime("us"): moments,
    pl.Datetime("us", "UTC"): moments.map(lambda moment: moment.replace(tzinfo=UTC)),
    pl.Datetime("us", "Europe/Berlin"): moments.map(lambda moment: moment.replace(tzinfo=UTC)),
    pl.List(pl.String()): st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=3),
}
SAMPLES = {
    pl.Float64(): [-0.0, float("nan"), float("-inf"), 5e-324],
    pl.Date(): [date.min, date.max],
    pl.Time(): [time.min, time.max],
}


def store(folder, contest=CONTEST, mark="this job"):
    return Store.create(folder, contest, mark, 256)


def part(chunk, accepted=NOTHING, **more):
    values = {
        "rejected": pl.DataFrame(schema=REJECTED),
        "counts": Counts(read=accepted.height),
        "warned": {},
        "text_columns": frozenset(),
        "timings": Timings(),
        "bytes_read": 0,
    }
    return Gathered(chunk=chunk, accepted=accepted, **(values | more))


def contestants(rows, contest=CONTEST):
    """Rows of (record, dedup value, order, key, tie)."""
    return pl.DataFrame(rows, schema=contest.columns, orient="row")


def put(to, chunk, rows):
    accepted = pl.DataFrame({"_keyhaul_record": [row[0] for row in rows]}, schema={"_keyhaul_record": pl.Int64})
    to.put(part(chunk, accepted), accepted, contestants([row for row in rows if row[1] is not None]))


def kept(of, *chunks):
    return {chunk: of.take(chunk).accepted["_keyhaul_record"].to_list() for chunk in chunks}


@st.composite
def frames(draw):
    height = draw(st.integers(0, 5))
    names = draw(st.lists(st.sampled_from(["a", "A", "_record2", "ä", 'q"', "Select"]), unique=True, min_size=1))
    columns = [pl.int_range(height, eager=True).alias("_keyhaul_record")]
    for name in names:
        dtype = draw(st.sampled_from(list(VALUES)))
        values = st.one_of(st.none(), VALUES[dtype], st.sampled_from(SAMPLES.get(dtype, [None])))
        column = [draw(values) for _ in range(height)]
        plain = pl.Datetime("us", "UTC") if getattr(dtype, "time_zone", None) else dtype
        columns.append(pl.Series(name, column, plain).cast(dtype))
    return pl.DataFrame(columns)


def bits(frame):
    """Return the frame with its floats as text: NaN equals NaN, and -0.0 is not 0.0."""
    return frame.with_columns(pl.col(pl.Float32, pl.Float64).cast(pl.String))


@settings(max_examples=25, deadline=None)
@given(frames())
def test_every_frame_comes_back_as_it_was(tmp_path_factory, frame):
    folder = tmp_path_factory.mktemp("gather") / "run"
    first = store(folder)
    rejected = pl.DataFrame(
        {
            "_keyhaul_record": [7],
            "stage": ["rule"],
            "rules": [["a", "b"]],
            "message": ["m"],
            "key": [None],
            "data": ["{}"],
        },
        schema=REJECTED,
    )
    whole = part(
        3,
        frame,
        rejected=rejected,
        counts=Counts(read=9, filtered=2, quarantined=1),
        warned={"r": 4},
        text_columns=frozenset({"ä"}),
        timings=Timings(read_seconds=0.25, stage_seconds=0.125),
        bytes_read=2**40,
    )
    first.put(whole, frame, contestants([]))
    first.settle()
    first.close()
    again = Store.open(folder, CONTEST, "this job", 256)
    found = again.take(3)
    assert_frame_equal(bits(found.accepted), bits(frame))
    assert_frame_equal(bits(again.source(3)), bits(frame))
    assert_frame_equal(found.rejected, rejected)
    same = ("chunk", "counts", "warned", "text_columns", "timings", "bytes_read")
    assert [getattr(found, name) for name in same] == [getattr(whole, name) for name in same]
    again.close()


def expected_losers(rows, keep):
    """Return the losers among (chunk, record, value, order, key, tie) by Python's own sort."""
    sign = -1 if keep == "last" else 1
    groups = {}
    for row in rows:
        if row[2] is not None:
            groups.setdefault(row[2], []).append(row)
    # NULLs last; NaN is the greatest value, as in PostgreSQL.
    number = lambda x: (0, 0.0) if x is None else (1, 0.0) if x != x else (0, x)  # noqa: E731, PLR0124
    order = lambda r: (r[3] is None, *(sign * n for n in number(r[3])), r[4] is None, r[4] or 0, r[0], r[5])  # noqa: E731
    return {(row[0], row[1]) for group in groups.values() for row in sorted(group, key=order)[1:]}


contest_rows = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.none() | st.integers(0, 3),
        st.none() | st.sampled_from([float("nan"), -1.0, 0.0, 2.5, float("inf")]),
        st.none() | st.integers(0, 2),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(contest_rows, st.sampled_from(["first", "last"]), st.randoms(use_true_random=False))
def test_the_winner_is_decided_by_values_and_never_by_arrival(tmp_path_factory, rows, keep, chance):
    contest = Contest(on=CONTEST.on, order_by=CONTEST.order_by, key=CONTEST.key, keep=keep)
    rows = [(chunk, record, *values, record) for record, (chunk, *values) in enumerate(rows)]
    one = store(tmp_path_factory.mktemp("gather") / "run", contest)
    for chunk in chance.sample([1, 2, 3], 3):
        mine = [row[1:] for row in rows if row[0] == chunk]
        put(one, chunk, chance.sample(mine, len(mine)))
    losers = expected_losers(rows, keep)
    assert one.settle() == len(losers)
    found = {(chunk, record) for chunk, records in kept(one, 1, 2, 3).items() for record in records}
    assert found == {(row[0], row[1]) for row in rows} - losers
    assert sum(one.take(chunk).counts.duplicate for chunk in (1, 2, 3)) == len(losers)
    one.close()


ALIKE = {
    pl.Boolean(): [True, False, True],
    pl.Int16(): [1, -1, 1],
    pl.Float64(): [float("nan"), 1.5, float("nan")],
    pl.Float32(): [0.0, 1.5, -0.0],
    pl.Decimal(38, 10): [Decimal("1.5"), Decimal("1.5000000001"), Decimal("1.50")],
    pl.String(): ["a", "A", "a"],
    pl.Binary(): [b"\0", b"", b"\0"],
    pl.Date(): [date(2024, 1, 1), date(1, 1, 1), date(2024, 1, 1)],
    pl.Time(): [time(1), time(1, 0, 0, 1), time(1)],
    pl.Datetime("us"): [datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 1), datetime(2024, 1, 1)],  # noqa: DTZ001
    pl.Datetime("us", "UTC"): [datetime(2024, 1, n, tzinfo=UTC) for n in (1, 2, 1)],
    pl.Datetime("us", "Europe/Berlin"): [datetime(2024, 1, n, tzinfo=UTC) for n in (1, 2, 1)],
}


@pytest.mark.parametrize("dtype", ALIKE, ids=str)
def test_copies_are_told_in_every_type_and_over_chunks(tmp_path, dtype):
    contest = Contest(on=(dtype,), order_by=(dtype,), key=(dtype,), keep="last")
    first = Store.create(tmp_path / "run", contest, "this job", 256)
    for number, value in enumerate(ALIKE[dtype], start=1):
        frame = pl.DataFrame({"_keyhaul_record": [0, 1], "v": pl.Series([value, None]).cast(dtype)})
        key = frame.select("v", tie=pl.lit(0))
        first.put(part(number, frame), frame, contest.select(frame, ["v"], ["v"], key))
        first.close()
        first = Store.open(tmp_path / "run", contest, "this job", 256)
    assert first.settle() == 1
    assert kept(first, 1, 2, 3) == {1: [0, 1], 2: [0, 1], 3: [1]}
    first.close()


def test_four_threads_put_and_take_the_right_rows(tmp_path):
    one = store(tmp_path / "run")
    chunks, height = 24, 2000
    values = list(range(chunks * height // 2)) * 2
    random.Random(5).shuffle(values)  # noqa: S311 - an order, no secret
    whole = [(n // height + 1, n % height, value, 0.0, n, 0) for n, value in enumerate(values)]
    mine = {chunk: [row[1:] for row in whole if row[0] == chunk] for chunk in range(1, chunks + 1)}
    found, errors = {}, []

    def work(number, what):
        try:
            for chunk in range(number, chunks + 1, 4):
                what(chunk)
        except BaseException as error:
            errors.append(error)
            raise

    def run(what):
        threads = [threading.Thread(target=work, args=(number, what)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(lambda chunk: put(one, chunk, mine[chunk]))
    assert one.settle() == chunks * height // 2
    run(lambda chunk: found.update(kept(one, chunk)))
    assert errors == []
    winners = {(chunk, record) for chunk, records in found.items() for record in records}
    assert winners == {row[:2] for row in whole} - expected_losers(whole, "last")
    one.close()


def test_a_chunk_that_is_put_down_twice_counts_once(tmp_path):
    one = store(tmp_path / "run")
    put(one, 1, [(0, 5, 1.0, 1, 0), (1, 5, 2.0, 2, 0)])
    put(one, 1, [(0, 5, 9.0, 1, 0)])
    put(one, 2, [(0, 5, 1.5, 3, 0), (1, None, 0.0, 4, 0)])
    assert one.chunks() == {1, 2}
    assert (one.settled, one.settle(), one.settled, one.settle()) == (False, 2, True, 2)
    assert kept(one, 1, 2) == {1: [1], 2: [1]}
    one.close()


def test_a_chunk_that_was_not_committed_is_not_there_and_can_be_put_down(tmp_path):
    one = store(tmp_path / "run")
    wrong = contestants([(0, 5, 1.0, 1, 0)]).drop("tie")
    with pytest.raises(StopRunError):
        one.put(part(1), NOTHING, wrong)
    assert one.chunks() == frozenset()
    put(one, 1, [(0, 5, 1.0, 1, 0)])
    assert one.settle() == 0
    one.close()


def test_another_job_finds_nothing_and_a_second_process_is_told(tmp_path):
    folder = tmp_path / "run"
    one = store(folder)
    one.close()
    assert Store.open(folder, CONTEST, "another job", 256) is None
    assert Store.open(tmp_path / "none", CONTEST, "this job", 256) is None
    Store.open(folder, CONTEST, "this job", 256).close()
    folder.chmod(0o711)
    with pytest.raises(ConfigError, match="others could have changed it"):
        Store.open(folder, CONTEST, "this job", 256)


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/hostname')",
        "copy (select 1) to '/tmp/keyhaul-should-not-be-there.csv'",
        "attach '/tmp/keyhaul-should-not-be-there.db'",
        "set memory_limit = '10GB'",
        "set temp_directory = '/tmp'",
        "install httpfs",
    ],
)
def test_the_file_reaches_nothing_outside_its_folder(tmp_path, query):
    one = store(tmp_path / "run")
    with pytest.raises(duckdb.Error):
        one._con.execute(query)
    one.close()


def test_more_rows_than_the_memory_holds_go_to_the_folder(tmp_path):
    contest = Contest(on=(pl.String(),), order_by=(), key=(pl.Int64(),), keep="last")
    one = Store.create(tmp_path / "run", contest, "this job", 64)
    height = 100_000
    for chunk in range(1, 11):
        n = pl.int_range((chunk - 1) * height, chunk * height, eager=True)
        frame = pl.DataFrame({"_keyhaul_record": pl.int_range(height, eager=True), "k0": n, "n": n % (5 * height)})
        chosen = frame.select("_keyhaul_record", c0=pl.format("{} {}", pl.col("n"), pl.lit("x" * 120)), k0="k0", tie=0)
        one.put(part(chunk, frame.select("_keyhaul_record")), NOTHING, chosen.select(*contest.columns))
    assert one.settle() == 5 * height
    assert [one.take(chunk).accepted.height for chunk in (1, 5, 6, 10)] == [height, height, 0, 0]
    one.close()
