from __future__ import annotations

import json
import stat

import pytest

from keyhaul import redaction
from keyhaul.events import Notice
from keyhaul.live.logfile import LogFile


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(redaction, "_known", redaction._Known())


def logged(path, *messages):
    with LogFile(path) as log:
        for message in messages:
            log(Notice(level="warning", message=message))
    assert not log.problem
    return [json.loads(line)["message"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_of_the_log_is_one_line_whatever_is_in_it(tmp_path):
    message = "a\u2028b\u2029c\x85d\x0be\x1cf\ng ü 東"
    assert logged(tmp_path / "log", message) == [message]
    assert "ü 東" in (tmp_path / "log").read_text(encoding="utf-8")


def test_half_a_surrogate_pair_is_written_escaped(tmp_path):
    assert logged(tmp_path / "log", "a\ud800b", "c") == ["a\ud800b", "c"]
    assert "\\ud800" in (tmp_path / "log").read_text(encoding="utf-8")


def test_a_secret_is_taken_out_before_the_line_is_json(tmp_path):
    redaction.remember("nice4Heron")
    told = logged(tmp_path / "log", 'relation "host=h password=abc" is not there', "a\nnice4Heron")
    assert told == ['relation "host=h password=***" is not there', "a\n***"]


def test_a_new_log_is_its_owners_alone_and_one_that_is_there_keeps_its_mode(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch(0o644)
    old.chmod(0o644)
    logged(new, "a")
    logged(old, "a")
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert stat.S_IMODE(old.stat().st_mode) == 0o644
