from __future__ import annotations

import threading

import pytest

from keyhaul.team import Team


class Hand:
    """Does parts with a function, and says when it was closed."""

    def __init__(self, work, closed):
        self._work = work
        self._closed = closed

    def do(self, part):
        self._work(part)

    def close(self):
        self._closed.append(self)


def test_each_part_is_done_once_and_every_thread_gives_back_what_it_has():
    done, closed = [], []
    team = Team("test", lambda _number: Hand(done.append, closed), lambda: None)
    team.work(range(200), 4)
    assert sorted(done) == list(range(200))
    assert len(closed) == 4


def test_the_first_error_ends_all_threads_and_is_raised_when_they_have_ended():
    done, closed = [], []

    def work(part):
        if part == 3:
            raise ValueError(part)
        team.stopping.wait(0.01)
        done.append(part)

    team = Team("test", lambda _number: Hand(work, closed), lambda: None)
    with pytest.raises(ValueError, match="3"):
        team.work(range(1000), 2)
    assert len(done) < 20
    assert len(closed) == 2


def test_an_error_while_a_thread_begins_is_raised():
    def hire(_number):
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        Team("test", hire, lambda: None).work(range(10), 3)


def test_an_interrupt_cancels_what_the_threads_wait_for(monkeypatch):
    released, closed = threading.Event(), []
    team = Team("test", lambda _number: Hand(lambda _part: released.wait(30), closed), released.set)

    def interrupt(self, timeout=None):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        team.work(range(10), 2)
    assert released.is_set()
    assert team.stopping.is_set()
    assert len(closed) == 2
