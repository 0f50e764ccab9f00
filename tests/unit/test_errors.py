from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyhaul.errors import safe_message
from keyhaul.targets.session import translate


def safe_before(line):
    line = re.sub(r"\[[^\]]*\]", "[…]", line)
    line = re.sub(r"(?<=value )-?\d\S*|(?<=\()-?\d\S* [-+*/%] \S+(?=\))", "…", line)
    return re.sub(r"(\"[^\"]*\"|'[^']*'(?= to value|: ))", "…", line)[:300]


@given(st.lists(st.sampled_from([*"()[]1-+/ '\":a", " + ", "value ", "(1 ", "'a': ", "' to value"]), max_size=25))
@example(list("(1(2 + 3)4)(5 - 6)"))
def test_values_are_taken_out_of_a_message_where_the_plain_rule_finds_them(parts):
    text = "".join(parts).strip()
    assert safe_message(Exception(text)) == safe_before(text)


@pytest.mark.parametrize("unit", ["[", "[]", "(1", "(1 + ", "(1 + )", "(1 + a", "value 1", "'", '"', "'a': '"])
def test_a_hostile_message_costs_time_in_proportion_to_its_length(unit):
    error = Exception(unit * (1_000_000 // len(unit)))
    began = time.process_time()
    assert len(safe_message(error)) <= 300
    assert time.process_time() - began < 2, "a megabyte: 0.1 to 0.4 s; what grows with the square takes hours"


def test_an_error_without_a_sqlstate_does_not_show_an_empty_one():
    assert str(translate(RuntimeError("[libpq] FATAL:  the server is shutting down"))) == (
        "load chunk: the server is shutting down"
    )
