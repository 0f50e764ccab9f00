"""How many workers: a pure decision, and a staff in worlds of the test's own, where time is a number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhaul.limits.hiring import MOST_WORKERS, Seen, Staffing, decide

WAITING = Seen(
    workers=2,
    paces=(1000.0, 1000.0),
    seconds=10.0,
    chunk_seconds=2.0,
    cpu_busy=0.1,
    own_busy=0.05,
    held=False,
    left_chunks=100,
    left_rows=1e6,
)


def test_workers_that_wait_on_an_idle_machine_are_doubled():
    found = decide(WAITING)
    assert (found.action, found.workers, found.reason) == ("change", 4, "2 waited 95 % of their time")


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({"cpu_busy": 0.97}, "the machine's CPU was 97 % busy"),
        ({"own_busy": 0.6}, "they waited only 40 % of their time"),
        ({"held": True}, "a limit of the job held them"),
        ({"left_chunks": 1}, "they waited 95 % of their time, and too little was left for more"),
        ({"left_rows": 7999.0}, "they waited 95 % of their time, and too little was left for more"),
        ({"paces": (1000.0,)}, ""),
        ({"seconds": 0.1}, ""),
        ({"left_chunks": 0}, ""),
    ],
)
def test_else_nobody_is_hired_and_the_reason_is_told(seen, reason):
    found = decide(replace(WAITING, **seen))
    assert (found.action, found.workers, found.reason) == ("wait", 2, reason)


def test_a_fixed_number_of_chunks_is_shared_by_no_more_than_can_take_two_each():
    assert decide(replace(WAITING, left_chunks=2)).workers == 3


@pytest.mark.parametrize(
    ("pace", "action", "workers", "reason"),
    [
        (1000.0, "change", 8, "4 waited 95 % of their time"),
        (750.0, "change", 8, "4 waited 95 % of their time"),
        (700.0, "end", 4, "4 moved 1.4 times the rows of 2"),
        (550.0, "end", 4, "4 moved 1.1 times the rows of 2"),
        (500.0, "change", 2, "4 moved 1.0 times the rows of 2"),
        (250.0, "change", 2, "4 moved 0.5 times the rows of 2"),
    ],
)
def test_a_step_is_followed_by_another_kept_or_taken_back(pace, action, workers, reason):
    found = decide(replace(WAITING, workers=4, paces=(pace,) * 4, before=(2, 2000.0)))
    assert (found.action, found.workers, found.reason) == (action, workers, reason)


def test_a_limit_that_holds_those_who_were_hired_takes_them_back():
    found = decide(replace(WAITING, workers=4, paces=(1000.0,) * 4, before=(2, 2000.0), held=True))
    assert (found.action, found.workers, found.reason) == ("change", 2, "a limit of the job held 4")


def test_there_are_never_more_than_the_ceiling():
    found = decide(replace(WAITING, workers=12, paces=(1000.0,) * 12))
    assert (found.action, found.workers) == ("change", MOST_WORKERS)
    found = decide(replace(WAITING, workers=16, paces=(1000.0,) * 16))
    assert (found.action, found.workers, found.reason) == (
        "end",
        16,
        "16 waited 95 % of their time, and more are never hired",
    )


seen = st.builds(
    Seen,
    workers=st.integers(1, MOST_WORKERS),
    paces=st.lists(st.floats(0.1, 1e7), max_size=40).map(tuple),
    seconds=st.floats(0, 100),
    chunk_seconds=st.floats(0.001, 100),
    cpu_busy=st.floats(0, 1),
    own_busy=st.floats(0, 2),
    held=st.booleans(),
    left_chunks=st.integers(0, 10_000),
    left_rows=st.floats(0, 1e9),
    before=st.none() | st.tuples(st.integers(1, MOST_WORKERS), st.floats(0, 1e8)),
)


@given(seen)
def test_whatever_is_seen_the_number_stays_within_its_bounds(one):
    found = decide(one)
    if found.action in {"wait", "end"}:
        assert found.workers == one.workers
    elif found.workers > one.workers:
        assert found.workers <= min(2 * one.workers, MOST_WORKERS, one.workers + one.left_chunks // 2)
        assert not one.held
        assert one.cpu_busy < 0.75
        assert one.own_busy < 0.5
    else:
        assert found.workers == one.before[0]
    assert found.reason or found.action == "wait"


class World:
    """Workers, servers and a machine: all of them together move `pace(workers)` rows a second."""

    def __init__(
        self, pace, *, first=2, busy=lambda _workers: 0.1, own=lambda _workers: 0.05, room=100, chunk_rows=1000
    ):
        self.now = 0.0
        self.worked = self.had = self.own_seconds = self.held = 0.0
        self.pace, self.busy, self.own, self.chunk_rows = pace, busy, own, chunk_rows
        self.asked = 0
        self.room = room
        self.staff = Staffing(
            first,
            room=self.connections,
            machine_cpu=lambda: (self.worked, self.had),
            own_cpu=lambda: self.own_seconds,
            clock=lambda: self.now,
        )

    def connections(self):
        self.asked += 1
        return self.room, "the servers have connections"

    def run(self, rounds, chunks=1_000_000):
        """Let every worker move a chunk, `rounds` times; return the numbers of workers after each."""
        found = []
        for _ in range(rounds):
            workers = self.staff.workers
            each = self.pace(workers) / workers
            began, seconds = self.now, self.chunk_rows / each
            self.now += seconds
            self.had += 8 * seconds
            self.worked += 8 * seconds * self.busy(workers)
            self.own_seconds += workers * seconds * self.own(workers)
            for _ in range(workers):
                self.staff.measure(began, self.chunk_rows, seconds)
            chunks -= workers
            self.staff.look(held_seconds=self.held, left_chunks=chunks, left_rows=chunks * self.chunk_rows)
            found.append(self.staff.workers)
        return found


def test_on_a_slow_link_the_number_grows_to_the_ceiling():
    world = World(lambda workers: 1000.0 * workers)
    assert world.run(6) == [4, 8, 16, 16, 16, 16]
    assert world.staff.reason == (
        "16 workers, 2 at first: 2 waited 95 % of their time; 16 waited 95 % of their time, and more are never hired"
    )


@given(st.floats(1.5, 30), st.integers(1, 4))
def test_where_the_servers_are_the_bound_the_number_stays_near_what_they_can_do(most, first):
    """Throughput grows up to `most` workers and not beyond."""
    world = World(lambda workers: 1000.0 * min(workers, most), first=first)
    numbers = world.run(12)
    assert numbers[-1] == numbers[-2] == numbers[-6]
    assert max(numbers) <= MOST_WORKERS
    assert numbers[-1] >= min(most * 0.5, MOST_WORKERS) or numbers[-1] == first
    assert numbers[-1] <= max(2 * most, first)
    assert world.asked <= 5


@given(st.integers(1, 4), st.floats(0.76, 1.0), st.floats(0.1, 3.0))
def test_where_the_cpu_is_the_bound_nobody_is_ever_hired_and_no_server_is_asked(first, busy, growth):
    world = World(lambda workers: 1000.0 * workers**growth, first=first, busy=lambda _workers: busy)
    assert set(world.run(10)) == {first}
    assert world.asked == 0
    assert world.staff.reason == f"{first} worker{'s' * (first > 1)}: the machine's CPU was {100 * busy:.0f} % busy"


def test_workers_that_make_each_other_slower_are_let_go_and_not_hired_again():
    world = World(lambda workers: 2000.0 if workers == 2 else 1500.0)
    assert world.run(6) == [4, 2, 2, 2, 2, 2]
    assert world.staff.reason == "2 workers, 2 at first: 2 waited 95 % of their time; 4 moved 0.8 times the rows of 2"


def test_the_servers_free_connections_are_the_bound():
    world = World(lambda workers: 1000.0 * workers, room=3)
    assert world.run(4) == [3, 3, 3, 3]
    assert "and the servers have connections for no more than 3" in world.staff.reason
    none = World(lambda workers: 1000.0 * workers, room=1)
    assert none.run(4) == [2, 2, 2, 2]
    assert none.asked == 1


def test_a_machine_that_is_busy_at_first_only_is_looked_at_again():
    busy = [1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1]
    world = World(lambda workers: 1000.0 * workers, busy=lambda _workers: busy.pop(0))
    assert world.run(7) == [2, 2, 2, 2, 4, 8, 16]


def test_chunks_that_were_begun_with_another_number_say_nothing_of_this_one():
    world = World(lambda workers: 1000.0 * workers)
    assert world.run(1) == [4]
    began = world.now - 1
    world.now += 10
    world.had += 80
    for _ in range(8):
        world.staff.measure(began, 1000, 1.0)
    assert world.staff.look(held_seconds=0.0, left_chunks=100, left_rows=1e9) is None


def test_near_the_end_nobody_is_hired_and_a_phase_begins_with_the_number_of_the_last_one():
    world = World(lambda workers: 1000.0 * workers)
    assert world.run(2, chunks=4) == [2, 2]
    assert world.run(1) == [4]
    assert world.staff.begin() == 4
    assert world.run(1) == [8]


def test_a_short_run_says_that_it_was_too_short():
    assert World(lambda workers: 1000.0 * workers).staff.reason == (
        "2 workers: too few chunks to tell whether more would help"
    )
