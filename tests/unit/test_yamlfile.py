"""What reading a job file promises: plain data, a line for everything, and refusals that say what to do."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyhaul.config.draft import WrittenNumber
from keyhaul.config.yamlfile import read_yaml
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from keyhaul.config.draft import Draft


def read(folder: Path, text: str | bytes, **environ: str) -> Draft:
    """Write a file and read it."""
    path = folder / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    draft = read_yaml(path, environ)
    draft.file = "job.yaml"
    draft.problems = {place: line.replace(str(path), "job.yaml") for place, line in draft.problems.items()}
    return draft


def refusal(folder: Path, text: str | bytes) -> str:
    """Return the message of the refusal, with the file's short name."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value).replace(str(folder / "job.yaml"), "job.yaml")


def test_every_key_and_item_has_its_line(tmp_path: Path) -> None:
    draft = read(tmp_path, "job: a\nkey:\n  - x\n  - y\nsource: {table: t,\n  uri: u}\n")
    assert draft.data == {"job": "a", "key": ["x", "y"], "source": {"table": "t", "uri": "u"}}
    assert draft.lines == {
        ("job",): 1,
        ("key",): 2,
        ("key", 0): 3,
        ("key", 1): 4,
        ("source",): 5,
        ("source", "table"): 5,
        ("source", "uri"): 6,
    }
    assert draft.where(("source", "uri")) == "job.yaml line 6"
    assert draft.where(("source", "reader")) == "job.yaml line 5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("off", "off"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("", None),
        ("null", None),
        ("~", None),
        ("50000", 50000),
        ("-3", -3),
        ("1_000", "1_000"),
        ("007", "007"),
        ("0x1F", "0x1F"),
        ("12:30", "12:30"),
        ("2013-01-01", "2013-01-01"),
        ("1.50", WrittenNumber("1.50")),
        ("5%", "5%"),
        ("'5'", "5"),
    ],
)
def test_scalars_are_what_they_look_like(tmp_path: Path, text: str, value: object) -> None:
    found = read(tmp_path, f"a: {text}\n").data["a"]
    assert found == value
    assert type(found) is type(value)
    assert getattr(found, "text", None) == getattr(value, "text", None)


def test_on_is_a_key_like_any_other(tmp_path: Path) -> None:
    assert read(tmp_path, "dedup: {on: [id]}\n").data == {"dedup": {"on": ["id"]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &x 1\nb: *x\n",
            (
                "job.yaml line 1: got a YAML anchor (&), expected the value alone. Remove it\n"
                "job.yaml line 2: got a YAML alias (*), expected the value itself. Write it out"
            ),
        ),
        ("a: 1\n<<: {b: 1}\n", "job.yaml line 2: got a YAML merge key (<<), expected plain keys. Write the values out"),
        (
            "a: !!python/none x\n",
            "job.yaml line 1: got a YAML tag (!), expected the value alone. Remove it, or quote the text",
        ),
        (
            "a: 1\n---\nb: 1\n",
            "job.yaml line 2: got a second YAML document (---), expected one. Put each job into its own file",
        ),
        ("- a\n", "job.yaml line 1: got no keys, expected a mapping such as `key: id`. See `etl schema`"),
        ("", "job.yaml line 1: got no keys, expected a mapping such as `key: id`. See `etl schema`"),
        (
            "a: 1\n\n  b: CANARY\n",
            (
                "job.yaml line 3: the parser says: mapping values are not allowed here, expected YAML. "
                "Check the indentation (spaces, no tabs), the colons and the quotes"
            ),
        ),
        (
            "a:\n\tb: CANARY\n",
            (
                "job.yaml line 2: the parser says: found character '\\t' that cannot start any token, expected YAML. "
                "Check the indentation (spaces, no tabs), the colons and the quotes"
            ),
        ),
        (
            "a: '\n",
            (
                "job.yaml line 2: the parser says: found unexpected end of stream, expected YAML. "
                "Check the indentation (spaces, no tabs), the colons and the quotes"
            ),
        ),
        (
            "a: \x01\n",
            (
                "job.yaml line 1: got a character that YAML does not allow, expected YAML. "
                "Check the indentation (spaces, no tabs), the colons and the quotes"
            ),
        ),
        (b"a: 1\nb: \xff\n", "job.yaml line 2: got bytes that are not UTF-8, expected UTF-8. Save the file as UTF-8"),
        (
            f"%YAML {'1' * 5000}.1\n---\na: 1\n",
            "job.yaml: got a %YAML version or an escaped character out of range, expected YAML. Correct it",
        ),
        (
            'a: "\\UFFFFFFFF"\n',
            "job.yaml: got a %YAML version or an escaped character out of range, expected YAML. Correct it",
        ),
        ("a: " + "[" * 30, "job.yaml line 1: got more than 20 levels, expected a job file"),
        (
            "a: " + "x" * 1_000_000,
            "read job.yaml: got more than 128000 bytes, expected a job file. Is it another kind of file?",
        ),
    ],
)
def test_what_a_job_file_must_not_hold_is_refused_with_its_line(
    tmp_path: Path,
    text: str | bytes,
    message: str,
) -> None:
    assert refusal(tmp_path, text) == message


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or directory, expected a readable job file"):
        read_yaml(tmp_path / "none.yaml", {})


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        read_yaml(tmp_path, {})


def test_keys_given_twice_and_keys_that_are_not_text_are_all_noted(tmp_path: Path) -> None:
    draft = read(tmp_path, "key: a\nsource: {uri: x, uri: y}\nkey: b\n5: x\n")
    assert list(draft.problems.values()) == [
        "job.yaml line 2: source.uri: got the key twice (first in line 2), expected it once. Remove one",
        'job.yaml line 4: the file: got key "5", expected text. Quote it if it is a name',
        "job.yaml line 3: key: got the key twice (first in line 1), expected it once. Remove one",
    ]


def test_variables_are_read_from_the_environment(tmp_path: Path) -> None:
    text = 'a: "x-${ONE}-y"\nb: "${TWO:-two}"\nc: "$${ONE}"\nd: ["${ONE}${ONE}"]\ne: "${EMPTY:-e}"\nf: "${EMPTY}"\n'
    draft = read(tmp_path, text, ONE="1", EMPTY="")
    assert draft.data == {"a": "x-1-y", "b": "two", "c": "${ONE}", "d": ["11"], "e": "e", "f": ""}
    assert draft.secret == {("a",), ("d", 0)}
    assert draft.problems == {}


def test_an_unquoted_variable_is_read_as_a_number_and_a_quoted_one_as_text(tmp_path: Path) -> None:
    assert read(tmp_path, 'a: ${N}\nb: "${N}"\nc: ${M:-5}\n', N="7").data == {"a": 7, "b": "7", "c": 5}


def test_a_variable_is_not_read_twice(tmp_path: Path) -> None:
    assert read(tmp_path, 'a: "${ONE}"\n', ONE="${TWO}").data == {"a": "${TWO}"}


def test_unset_and_malformed_variables_are_noted_with_their_lines(tmp_path: Path) -> None:
    draft = read(tmp_path, 'a: 1\nb: "${NOPE}"\nc: "${no-pe}"\nd: "${open"\n')
    assert list(draft.problems.values()) == [
        (
            "job.yaml line 2: b: got ${NOPE}, which is not set, expected the environment variable NOPE. "
            "Set NOPE, or write ${NOPE:-default}"
        ),
        'job.yaml line 3: c: got a malformed "${", expected ${NAME} or ${NAME:-default}. Write $${ for a plain ${',
        'job.yaml line 4: d: got a malformed "${", expected ${NAME} or ${NAME:-default}. Write $${ for a plain ${',
    ]


@pytest.mark.parametrize("escape", ["\\0", "\\ud800"])
def test_text_that_postgresql_cannot_hold_is_refused(tmp_path: Path, escape: str) -> None:
    assert list(read(tmp_path, f'a: 1\nb: "x{escape}"\n').problems.values()) == [
        (
            "job.yaml line 2: b: got a character that PostgreSQL cannot hold, "
            "expected text without NUL and half characters"
        ),
    ]


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
BOMBS = {
    "billion laughs": LAUGHS,
    "many aliases": "a: &a x\nb: [" + ", ".join(["*a"] * 50_000) + "]\n",
    "deep flow": "a: " + "[" * 200_000,
    "deep mappings": "a: " + "{a: " * 50_000,
    "deep items": "- " * 100_000,
    "deep block": "".join(" " * n + "a:\n" for n in range(600)),
    "many keys": "".join(f"k{n}: 1\n" for n in range(25_000)),
    "one key again and again": "a: 1\n" * 40_000,
    "many items": "a: [" + "1," * 120_000 + "]",
    "many small lists": "a:\n  b:\n" + "    - - - - - - -\n" * 10_000,
    "100 MB": "a: 1\n" * 20_000_000,
    "a large scalar": "a: " + "x" * 300_000,
    "a variable many times": "a: '" + "${X}" * 50_000 + "'\n",
    "Python tags": "a: !!python/object/apply:os.system ['touch MARK']\n" + "b: !!python/none x\n" * 10_000,
    "many documents": "a: 1\n" + "---\na: 1\n" * 20_000,
    "a long number": "a: " + "9" * 240_000,
    "lines": "\n" * 240_000,
    "words": "a: " + "x " * 124_000,
    "a plain scalar of lines": "a:\n" + " x\n" * 80_000,
    "quoted lines": 'a: "' + "\n x" * 80_000 + '"',
    "folded lines": "a: >\n" + " x\n\n" * 60_000,
    "carriage returns": "a: x" + "\r" * 240_000,
    "variables that are not set": "".join(f"a{n}: ${{X{n}}}\n" for n in range(4_900)),
    "keys that are not text": "a: 1\n" + "".join(f"{n}: 1\n" for n in range(4_900)),
}

COSTLY = {
    "words": "a: " + "x " * 63_998,
    "a plain scalar of lines": "a:\n" + " x\n" * 42_600,
    "quoted lines": 'a: "' + "\n x" * 42_600 + '"',
    "folded lines": "a: >\n" + " x\n\n" * 31_900,
    "carriage returns": "a: x" + "\r" * 127_990,
    "comments": "a: 1\n" + " #\n" * 42_600,
    "many keys": "".join(f"{'k' * 15}{n}: x\n" for n in range(4_990)),
    "many items": "a: [" + "x, " * 9_990 + "]",
}


@pytest.mark.parametrize("text", COSTLY.values(), ids=COSTLY)
def test_the_costliest_files_that_are_read_cost_less_than_a_second(tmp_path: Path, text: str) -> None:
    def cost() -> float:
        started = time.process_time()
        assert read(tmp_path, text).problems == {}
        return time.process_time() - started

    assert min(cost() for _ in range(3)) < 1.0  # 0.35 s at the most on an idle machine


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_with_a_sentence_before_it_costs_a_second(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "MARK"
    parsed = 0
    parse = yaml.parse

    def counting(*args: object) -> Iterator[object]:
        nonlocal parsed
        for event in parse(*args):  # type: ignore[no-untyped-call,arg-type]
            parsed += 1
            yield event

    monkeypatch.setattr(yaml, "parse", counting)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, X="y" * 1000).raise_if_wrong()
    message = str(caught.value)
    assert len(message.splitlines()) <= 51
    assert len(message) < 10_000
    assert "expected" in message
    assert parsed <= 20_005  # every node has at most an event for its end
    assert time.process_time() - started < 1.5  # 0.5 s at the most on an idle machine
    assert not mark.exists()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn o:#", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.dictionaries(st.text("abc", min_size=1), plain, min_size=1, max_size=4))
def test_json_written_as_yaml_is_read_back_unchanged(tmp_path: Path, data: dict[str, object]) -> None:
    text = json.dumps(data, ensure_ascii=True).replace("${", "$${")
    assert read(tmp_path, text).data == data


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.text("ab:-[]{}&*!|>'\"%@`#,? \n\t$<~01", max_size=30))
def test_any_text_is_read_or_refused_and_never_crashes(tmp_path: Path, text: str) -> None:
    try:
        read(tmp_path, text)
    except ConfigError as error:
        assert "expected" in str(error)  # noqa: PT017 - either outcome is right
