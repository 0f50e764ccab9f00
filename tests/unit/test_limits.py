"""Limits with a clock of the test's own: who waits for what, for how long, and that a run always goes on."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.errors import CancelledError
from keyhaul.limits.limiter import PEAK_FACTOR, Governor, Limits, Rate
from keyhaul.memory import machine_memory_bytes
from keyhaul.quantity import MemorySize, Percent, read_memory, read_percent


class Clock:
    """Time that passes only where something pauses; then, what the test has planned for that moment happens."""

    def __init__(self):
        self.now = 0.0
        self.plans = []

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        for plan in [plan for plan in self.plans if plan[0] <= self.now]:
            self.plans.remove(plan)
            plan[1]()


def limits(clock, **settings):
    return Limits(clock=clock, pause=clock.pause, **{"workers": 4, **settings})


def enter(made, chunk, rows=10, *, reads=True, halted=lambda: False, told=None):
    return made.enter(chunk, rows, reads=reads, halted=halted, tell=(told if told is not None else []).append)


def test_a_chunk_waits_until_those_in_flight_leave_room_for_it():
    clock, told = Clock(), []
    made = limits(clock, budget_bytes=int(25 * PEAK_FACTOR), row_bytes=1.0)
    assert enter(made, 1) == enter(made, 2) == 0
    clock.plans.append((3.0, lambda: made.leave(1, rows=10, size_bytes=10)))
    assert enter(made, 3, told=told) == pytest.approx(3.0, abs=0.1)
    assert told == ["memory_limit"]
    assert made.held == {"memory_limit": pytest.approx(3.0, abs=0.1)}


def test_one_chunk_is_always_let_in_however_large():
    clock = Clock()
    made = limits(clock, budget_bytes=1, row_bytes=1e9, cpu_percent=1.0)
    made.governor.sample(100.0)
    assert enter(made, 1, 10**9) == 0
    made.leave(1)
    assert enter(made, 2, 10**9) == 0


def test_the_widest_chunk_so_far_speaks_for_the_next_ones():
    made = limits(Clock(), budget_bytes=1000, row_bytes=1.0)
    for chunk, size in ((1, 500), (2, 30)):
        enter(made, chunk)
        made.leave(chunk, rows=10, size_bytes=size)
    assert made.estimate(10) == 500 * PEAK_FACTOR


def test_a_failed_try_gives_its_room_back_and_measures_nothing():
    made = limits(Clock(), budget_bytes=int(15 * PEAK_FACTOR), row_bytes=1.0)
    enter(made, 1)
    made.leave(1)
    assert enter(made, 2) == 0
    assert made.estimate(10) == 10 * PEAK_FACTOR


def test_who_is_told_to_stop_while_waiting_does_not_begin():
    clock = Clock()
    made = limits(clock, budget_bytes=1, row_bytes=1.0)
    enter(made, 1)
    stopped = []
    clock.plans.append((1.0, lambda: stopped.append(True)))
    with pytest.raises(
        CancelledError, match="begin chunk 2: the run was told to stop while it waited for memory_limit"
    ):
        enter(made, 2, halted=lambda: bool(stopped))
    made.leave(1)
    assert enter(made, 3) == 0


def test_the_rate_is_held_over_all_workers_and_a_chunk_pays_for_what_it_really_had():
    clock, told = Clock(), []
    made = limits(clock, rows_per_second=10)
    assert enter(made, 1, 20) == 0
    made.leave(1, rows=50, size_bytes=50)
    assert enter(made, 2, 20, told=told) == pytest.approx(5.0, abs=0.1)
    assert told == ["rate_limit"]


def test_what_is_only_loaded_pays_no_rate():
    made = limits(Clock(), rows_per_second=1)
    enter(made, 1, 1000)
    assert enter(made, 2, 1000, reads=False) == 0


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 30)), max_size=30), st.integers(1, 500)
)
def test_never_more_rows_than_the_rate_and_one_chunk_over_it(chunks, rate):
    bucket, now, read, last = Rate(rate), 0.0, 0, 0
    for expected, found, later in chunks:
        now += later
        now += bucket.wait_seconds(now)
        assert read - last <= rate * now + 1e-6 * (1 + rate * now)
        bucket.take(expected, now)
        bucket.take(found - expected, now)
        read += found
        last = max(found, expected)


def test_a_worker_less_while_the_machine_is_above_the_limit_and_one_more_below_it():
    governor = Governor(85.0, 3)
    changed = [governor.sample(percent) for percent in (99, 85, 99, 99, 99, 50, 50, 50)]
    assert changed == [True, False, True, False, False, True, True, False]
    assert (governor.allowed, governor.fewest) == (3, 1)
    assert Governor(None, 3).sample(100.0) is False


def test_a_worker_above_the_allowed_number_waits():
    clock, told = Clock(), []
    made = limits(clock, cpu_percent=50.0, workers=2)
    made.governor.sample(90.0)
    enter(made, 1)
    clock.plans.append((2.0, lambda: made.governor.sample(10.0)))
    assert enter(made, 2, told=told) == pytest.approx(2.0, abs=0.1)
    assert told == ["cpu_limit"]
    assert made.held == {"cpu_limit": pytest.approx(2.0, abs=0.1)}


def test_with_more_or_fewer_workers_the_cpu_limit_moves_with_them_and_without_one_nobody_waits():
    governor = Governor(85.0, 2)
    governor.change_workers(4)
    assert governor.fewest == 4  # it has held nobody
    governor.sample(99)
    assert (governor.allowed, governor.fewest) == (3, 3)
    governor.change_workers(1)
    assert governor.sample(50) is False
    assert (governor.allowed, governor.fewest) == (3, 3)
    made = limits(Clock(), workers=4)
    made.begin(4)
    for chunk in (1, 2, 3):
        enter(made, chunk)
    made.change_workers(1)
    assert enter(made, 4) == 0


def test_memory_is_shared_by_the_workers_that_there_are():
    made = limits(Clock(), budget_bytes=int(1000 * PEAK_FACTOR), workers=2)
    made.begin(2)
    assert (made.most_rows(10**9), made.workers_within(100)) == (math.inf, math.inf)
    enter(made, 1, 10)
    made.leave(1, rows=10, size_bytes=50)
    assert (made.most_rows(10**9), made.most_rows(300), made.most_rows(1)) == (100, 60, 1)
    assert made.workers_within(50) == 4
    made.change_workers(4)
    assert made.most_rows(10**9) == 50
    assert limits(Clock(), row_bytes=5.0).most_rows(300) == 60


def test_the_cpu_is_looked_at_once_a_second_and_only_where_there_is_a_limit():
    clock = Clock()
    made = limits(clock, cpu_percent=50.0)
    found = []
    for _ in range(6):
        clock.now += 0.5
        found.append(made.sample_due())
    assert found == [False, True, False, True, False, True]
    clock.now += 9
    assert not limits(clock).sample_due()


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("512MB", 512 * 10**6), ("1.5 gb", 1_500_000_000), ("60%", 4_800_000_000), ("9TB", 8 * 10**9)],
)
def test_a_size_is_bytes_or_a_part_of_what_there_is_and_never_more(text, size):
    assert read_memory(text).of(8 * 10**9) == size
    assert str(read_memory(text)) == text


@pytest.mark.parametrize("value", ["", "2", "GB", "-1GB", "0%", "101%", "0MB", "10kB", "1e3MB", 2, None, True, "2 GiB"])
def test_what_is_no_size_is_refused(value):
    with pytest.raises(ValueError, match=r"size|small|percentage"):
        read_memory(value)


@pytest.mark.parametrize("value", ["85", "0%", "101%", "", 85, None, "%"])
def test_what_is_no_percentage_is_refused(value):
    with pytest.raises(ValueError, match="percentage"):
        read_percent(value)


def test_sizes_and_percentages_that_are_read_already_stay():
    assert read_memory(MemorySize(text="1GB", bytes=10**9)) == read_memory("1GB")
    assert read_percent(Percent(value=85.0)) == read_percent("85%")


@pytest.mark.parametrize(
    ("line", "files", "limit"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "50000000"}, 50_000_000),
        ("0::/host/only", {"memory.max": "60000000"}, 60_000_000),
        ("5:memory:/a", {"memory/a/memory.limit_in_bytes": "70000000"}, 70_000_000),
    ],
)
def test_the_memory_of_a_cgroup_counts_where_it_is_less_than_the_machines(tmp_path, line, files, limit):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(line + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert machine_memory_bytes(tmp_path) == limit
    assert machine_memory_bytes(tmp_path / "nothing") > 10**9
