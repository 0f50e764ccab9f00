import threading
import time

import pytest

from keyhaul.errors import ConnectError
from keyhaul.ledger import patience
from keyhaul.ledger.patience import Patience


def away():
    raise ConnectError("connect to the target: got nothing, expected a server. Wait")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(patience, "RECONNECT_SECONDS", 0.9)


def test_a_server_that_one_thread_has_given_up_is_given_up_by_the_others_at_once():
    shared = Patience()
    shared.check()
    assert not shared.wait_for(away)
    began = time.monotonic()
    assert not shared.wait_for(away)
    with pytest.raises(ConnectError, match="the target is gone"):
        shared.check()
    with pytest.raises(ConnectError, match="lost"):
        shared.lose(ConnectError("lost"))
    assert time.monotonic() - began < 0.2


def test_an_answer_ends_the_outage_and_the_next_one_is_waited_for_anew():
    shared = Patience()
    assert not shared.wait_for(away)
    shared.found()
    shared.check()
    shared.lose(ConnectError("lost"))
    answers = iter([False, True])
    assert shared.wait_for(lambda: next(answers) or away())


def test_who_has_just_failed_may_be_asked_again_after_a_while(monkeypatch):
    shared = Patience()
    assert not shared.wait_for(away)
    monkeypatch.setattr(patience, "TRIED_SECONDS", 0)
    shared.check()


def test_a_cancelled_wait_ends_at_once(monkeypatch):
    monkeypatch.setattr(patience, "RECONNECT_SECONDS", 60)
    shared, cancelled = Patience(), threading.Event()
    shared.end_with(cancelled)
    threading.Timer(0.2, cancelled.set).start()
    began = time.monotonic()
    assert not shared.wait_for(away)
    assert time.monotonic() - began < 5
    with pytest.raises(ConnectError, match="the target is gone"):
        shared.check()
