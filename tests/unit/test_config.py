"""What a job's configuration promises: one frozen job, or every mistake with the place to change."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from configdoc import configuration
from flagtable import flag_table
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from keyhaul.config.allowance import Allowance
from keyhaul.config.job import AutoChunk, Dedup, Job, PostgresSource, SqliteSource, load_job, settings
from keyhaul.config.jobschema import json_schema
from keyhaul.config.steps import Rule, Step
from keyhaul.differing import difference
from keyhaul.errors import ConfigError

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "configs" / "flights.yaml"


def job(folder: Path, text: str, flags: dict[str, object] | None = None, **environ: str) -> Job:
    """Load a job from a file's text."""
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return load_job(path, flags or {}, environ)


def mistakes(folder: Path, text: str, flags: dict[str, object] | None = None, **environ: str) -> list[str]:
    """Return the lines of the refusal, with the file's short name."""
    with pytest.raises(ConfigError) as caught:
        job(folder, text, flags, **environ)
    return str(caught.value).replace(str(folder / "job.yaml"), "job.yaml").splitlines()


def flag_mistakes(flags: dict[str, object], **environ: str) -> list[str]:
    """Return the lines of the refusal of a job without a file."""
    with pytest.raises(ConfigError) as caught:
        load_job(None, flags, environ)
    return str(caught.value).splitlines()


def test_the_example_uses_every_kind_of_step_and_rule() -> None:
    loaded = load_job(FLIGHTS, {}, {})
    assert (loaded.job, loaded.key, loaded.chunk) == ("flights", ("id",), 50000)
    assert (loaded.source.uri, loaded.source.table, loaded.source.query) == ("embedded", "public.flights", None)
    assert (loaded.target.uri, loaded.target.table, loaded.target.mode) == ("embedded", "public.flights_2013", "append")
    assert loaded.transform == (
        Step(kind="set", set={"speed_mph": "distance / (air_time / 60.0)", "tailnum": "upper(tailnum)"}),
        Step(kind="where", where="year = 2013"),
        Step(kind="rename", rename={"hour": "sched_hour"}),
        Step(kind="drop", drop=("minute",)),
    )
    assert loaded.dedup == Dedup(on=("id",), order_by=("time_hour",), keep="last")
    assert loaded.rules == (
        Rule(name="air_time_positive", check="air_time is null or air_time > 0"),
        Rule(name="known_origin", check="origin in ('EWR', 'JFK', 'LGA')"),
        Rule(name="not_null", columns=("tailnum",)),
    )


def test_steps_and_rules_know_their_lines(tmp_path: Path) -> None:
    text = 'key: id\ntransform:\n  - set:\n      a: "1"\n      b: "2"\n  - where: "x"\nrules:\n  r: "y"\n'
    loaded = job(tmp_path, text, {"set": ["c = 3"], "where": "z", "rule": ["s: d > 0"]})
    name = str(tmp_path / "job.yaml")
    assert loaded.transform[0].places == {"a": f"{name} line 4", "b": f"{name} line 5"}
    assert [step.at for step in loaded.transform] == [
        f"{name} line 3",
        f"{name} line 6",
        '--set "c = 3"',
        '--where "z"',
    ]
    assert [rule.at for rule in loaded.rules] == [f"{name} line 8", '--rule "s: d > 0"']


def test_without_a_file_everything_but_the_key_has_a_default() -> None:
    loaded = load_job(None, {"key": "id"}, {})
    assert (loaded.job, loaded.source.table, loaded.target.table) == ("flights", "public.flights", "public.flights")
    assert (loaded.source.uri, loaded.target.uri, loaded.target.mode) == ("embedded", "embedded", None)
    assert (loaded.chunk, loaded.workers, loaded.order, loaded.retries) == (50000, None, "asc", 5)
    assert (loaded.ledger_schema, loaded.statement_timeout_seconds) == ("keyhaul", 3600)
    assert loaded.allow_quarantined == Allowance(rows=0)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    text = "key: id\nchunk: 1\n"
    assert job(tmp_path, text).chunk == 1
    assert job(tmp_path, text, ETL_CHUNK="2").chunk == 2
    assert job(tmp_path, text, {"chunk": "3"}, ETL_CHUNK="2").chunk == 3
    assert job(tmp_path, text, {"chunk": 3}, ETL_CHUNK="").chunk == 3


def test_every_flag_and_variable_reaches_its_setting() -> None:
    flags: dict[str, object] = {
        "job": "j", "source": "postgresql://h/s", "query": "select 1", "target": "postgresql://h/t", "into": "t",
        "key": 'a, "b,c"', "chunk": "7", "workers": "2", "reader": "adbc", "loader": "adbc", "dedup": "a,b",
        "order_by": "c", "order": "desc", "stop_on_error": True, "allow_quarantined": "5%", "home": "/x",
        "work_dir": "/w",
    }  # fmt: skip
    environ = {
        "ETL_LEDGER_SCHEMA": "led",
        "ETL_RETRIES": "0",
        "ETL_WORK_MEMORY_MB": "64",
        "ETL_STATEMENT_TIMEOUT_SECONDS": "9",
        "ETL_MODE": "append",
        "ETL_CHECKSUM": "1",
    }
    loaded = load_job(None, flags, environ)
    assert (loaded.job, loaded.key, loaded.chunk, loaded.workers) == ("j", ("a", "b,c"), 7, 2)
    assert (loaded.source.uri, loaded.source.query, loaded.source.reader) == ("postgresql://h/s", "select 1", "adbc")
    assert (loaded.target.uri, loaded.target.table, loaded.target.loader) == ("postgresql://h/t", "t", "adbc")
    assert loaded.dedup == Dedup(on=("a", "b"), order_by=("c",))
    assert (loaded.order, loaded.stop_on_error, loaded.home, loaded.target.mode) == ("desc", True, "/x", "append")
    assert loaded.allow_quarantined == Allowance(percent=Decimal(5))
    assert (loaded.work_dir, loaded.work_memory_mb, loaded.checksum) == ("/w", 64, True)
    assert (loaded.ledger_schema, loaded.retries, loaded.statement_timeout_seconds) == ("led", 0, 9)


def test_variables_are_parsed_like_flags() -> None:
    environ = {"ETL_KEY": "a,b", "ETL_STOP_ON_ERROR": "true", "ETL_TABLE": "s.t", "ETL_ALLOW_QUARANTINED": "3"}
    loaded = load_job(None, {}, environ)
    assert (loaded.key, loaded.stop_on_error, loaded.source.table, loaded.job) == (("a", "b"), True, "s.t", "s.t")
    assert loaded.allow_quarantined == Allowance(rows=3)


def test_a_table_flag_takes_the_place_of_a_query_and_the_reverse(tmp_path: Path) -> None:
    from_query = "key: id\nsource: {query: select 1}\ntarget: {table: t}\n"
    loaded = job(tmp_path, from_query, {"table": "s.u"})
    assert (loaded.source.table, loaded.source.query) == ("s.u", None)
    loaded = job(tmp_path, "key: id\nsource: {table: a}\n", {"query": "select 2", "into": "t"}, ETL_TABLE="b")
    assert (loaded.source.table, loaded.source.query) == (None, "select 2")
    assert loaded.job == "query-3cf988cc"


def test_a_flag_makes_an_unset_variable_of_the_file_harmless(tmp_path: Path) -> None:
    text = 'key: id\nsource: {uri: "${ETL_SOURCE_URL}", table: t}\n'
    assert mistakes(tmp_path, text) == [
        (
            "job.yaml line 2: source.uri: got ${ETL_SOURCE_URL}, which is not set, expected the environment variable "
            "ETL_SOURCE_URL. Set ETL_SOURCE_URL, or write ${ETL_SOURCE_URL:-default}"
        ),
    ]
    assert job(tmp_path, text, {"source": "embedded"}).source.uri == "embedded"
    assert job(tmp_path, text, ETL_SOURCE_URL="postgresql://h/d").source.uri == "postgresql://h/d"


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
job: fl'ights
sorce: {table: t}
key: [a, a]
chunk: 0
workers: "2"
transform:
  - set: {a: 5}
  - were: "x"
  - {where: "x", drop: [a]}
  - drop: []
  - rename: {a: c, b: c}
  - python: "os.system"
  - where:
dedup: {order_by: [a], keeps: last}
rules:
  not_null: "a > 0"
  bad name: "x"
  r: {chek: "x"}
  s: {check: "x", on_fail: explode}
target: {mode: insert}
order: up
stop_on_error: yes
allow_quarantined: 101%
"""
    assert mistakes(tmp_path, text) == [
        'job.yaml line 7: transform[0].set.a: got 5, expected column: "expression". Put it into quotes',
        "job.yaml line 8: transform[1].were: got an unknown key, expected where",
        (
            "job.yaml line 9: transform[2]: got a step of 2 keys, expected one of set, where, rename, drop, lookup, python. "
            "Give each step its own `- `"
        ),
        "job.yaml line 10: transform[3].drop: got an empty list, expected a column or a list of columns",
        "job.yaml line 11: transform[4].rename: got one new name for two columns, expected different names",
        'job.yaml line 12: transform[5].python: got "os.system", expected "module:function"',
        'job.yaml line 13: transform[6].where: got nothing, expected a condition such as "year = 2013"',
        'job.yaml line 17: rules.bad name: got rule name "bad name", expected 1 to 63 of letters, digits, _ . -',
        "job.yaml line 18: rules.r.chek: got an unknown key, expected check",
        'job.yaml line 18: rules.r.check: got nothing, expected a condition such as "distance > 0"',
        'job.yaml line 19: rules.s.on_fail: got "explode", expected one of quarantine, warn, stop',
        'job.yaml line 1: job: got "fl\'ights", expected 1 to 63 of letters, digits, _ . - (not . or - first)',
        "job.yaml line 3: key: got a list, expected a column or a list of different columns",
        "job.yaml line 4: chunk: got 0, expected a whole number from 1, auto, or a mapping such as {target_seconds: 2}",
        (
            "job.yaml line 14: dedup.on: got nothing, expected a column or a list of columns. "
            "Give --dedup or dedup.on: in the job file"
        ),
        "job.yaml line 14: dedup.keeps: got an unknown key, expected keep",
        'job.yaml line 20: target.mode: got "insert", expected append, skip, upsert or replace',
        'job.yaml line 5: workers: got "2", expected a whole number from 1 to 1024',
        'job.yaml line 21: order: got "up", expected asc or desc',
        'job.yaml line 22: stop_on_error: got "yes", expected true or false',
        'job.yaml line 23: allow_quarantined: got "101%", expected a whole number or a percentage such as 5%',
        "job.yaml line 2: sorce: got an unknown key, expected source",
    ]


def test_not_null_is_a_rule_of_columns(tmp_path: Path) -> None:
    loaded = job(tmp_path, "key: id\nrules: {not_null: [a, b]}\n")
    assert loaded.rules == (Rule(name="not_null", columns=("a", "b")),)
    loaded = job(tmp_path, "key: id\nrules: {not_null: {columns: [a], on_fail: stop}}\n")
    assert loaded.rules == (Rule(name="not_null", columns=("a",), on_fail="stop"),)
    assert load_job(None, {"key": "id", "rule": ["not_null: a, b"]}, {}).rules[0].columns == ("a", "b")


def test_a_rule_given_as_check_is_called_so_in_a_mistake() -> None:
    flags = {"key": "a", "check": ["r: a > 0", "r: b > 0"]}
    assert flag_mistakes(flags) == ['--check "r: b > 0": got a second rule r, expected a new name. Choose another name']
    assert [rule.at for rule in load_job(None, {"key": "a", "check": "r: a > 0"}, {}).rules] == ['--check "r: a > 0"']


def test_a_flags_mistake_names_the_flag_and_a_variables_the_variable() -> None:
    flags: dict[str, object] = {
        "key": "a,,b",
        "chunk": "0",
        "job": "a'b",
        "rule": ["x", "r: a > 0", "r: b > 0", "a::int > 0"],
        "set": ["a == 1", "a >= 1", " = 2", "b ="],
        "where": " ",
        "order_by": "c",
    }
    assert flag_mistakes(flags, ETL_WORKERS="many", ETL_READER="csv") == [
        "--set \"a == 1\": got no assignment, expected 'column = expression'",
        "--set \"a >= 1\": got no assignment, expected 'column = expression'",
        "--set \" = 2\": got no assignment, expected 'column = expression'",
        "--set \"b =\": got no assignment, expected 'column = expression'",
        "--where \" \": got nothing, expected a condition such as 'year = 2013'",
        "--rule \"x\": got no rule, expected 'name: condition' or 'not_null: column, column'",
        '--rule "r: b > 0": got a second rule r, expected a new name. Choose another name',
        "--rule \"a::int > 0\": got no rule, expected 'name: condition' or 'not_null: column, column'",
        '--job: got "a\'b", expected 1 to 63 of letters, digits, _ . - (not . or - first)',
        'ETL_READER: got "csv", expected connectorx or adbc',
        "--key: got an empty list, expected a column or a list of different columns",
        "--chunk: got 0, expected a whole number from 1, auto, or a mapping such as {target_seconds: 2}",
        "dedup.on: got nothing, expected a column or a list of columns. Give --dedup or dedup.on: in the job file",
        'ETL_WORKERS: got "many", expected a whole number from 1 to 1024',
    ]


def test_what_is_missing_is_named_with_the_flag_that_gives_it() -> None:
    assert flag_mistakes({}) == [
        (
            "key: got nothing, expected a column or a list of different columns. "
            "Give --key or ETL_KEY or key: in the job file"
        ),
    ]
    assert flag_mistakes({"key": "id", "source": "postgresql://h/d"}) == [
        "source.table: got nothing, expected a table or a query. Give --table or --query",
    ]
    assert flag_mistakes({"key": "id", "query": "select 1"}) == [
        "target.table: got nothing, expected a table, because the source is a query. Give --into",
    ]
    assert flag_mistakes({"key": "id", "table": "t", "query": "select 1"}) == [
        "--query: got both a table and a query, expected one of them. Remove one",
    ]


def test_a_flag_that_does_not_exist_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="unknown flags"):
        load_job(None, {"key": "id", "chunks": 5}, {})


@pytest.mark.parametrize(
    "text",
    [
        "source: postgresql://u:CANARY@h/d\n",
        "source: {table: t, uri: [CANARY]}\n",
        "source: {table: t, uri: 'postgresql://u:CANARY@@h/d'}\n",
        "postgresql://u:CANARY@h/d: 1\n",
        "chunk: postgresql://u:CANARY@h/d\n",
        "chunk: '${PASSWORD}'\n",
        "transform: ['${PASSWORD}']\n",
        "order: 'x${PASSWORD}'\n",
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, text: str) -> None:
    found = "\n".join(mistakes(tmp_path, f"key: id\n{text}", PASSWORD="CANARY"))
    assert "line 2" in found
    assert "CANARY" not in found


def test_a_wrong_uri_is_told_with_its_place_and_the_remedy(tmp_path: Path) -> None:
    text = 'key: id\nsource:\n  table: t\n  uri: "postgresql://u:CANARY#x@h/d"\n'
    assert mistakes(tmp_path, text, {"target": "mysql://h/d"}) == [
        (
            'job.yaml line 4: source.uri: got a raw "#", expected none, in the password for example. '
            "Percent-encode it: @ is %40, / is %2F, # is %23, % is %25, ? is %3F"
        ),
        "--target: got scheme mysql, expected postgresql://. Only PostgreSQL databases can be named here",
    ]


def test_the_repr_of_a_job_shows_no_uri() -> None:
    loaded = load_job(None, {"key": "id", "table": "t", "source": "postgresql://u:CANARY@h/d"}, {})
    assert "CANARY" not in repr(loaded) + str(loaded) + json.dumps(loaded.identity())


def test_a_job_is_frozen_and_can_be_pickled() -> None:
    loaded = load_job(FLIGHTS, {}, {})
    assert pickle.loads(pickle.dumps(loaded)) == loaded  # noqa: S301  # our own bytes
    with pytest.raises(ValidationError):
        loaded.chunk = 5


def test_a_python_step_needs_permission(tmp_path: Path) -> None:
    text = "key: id\ntransform:\n  - python: transforms.flights:clean\n"
    assert mistakes(tmp_path, text) == [
        (
            'job.yaml line 3: transform[0].python: got Python code ("transforms.flights:clean"), '
            "expected none without permission. Give --allow-python if you trust it"
        ),
    ]
    assert job(tmp_path, text, {"allow_python": True}).transform[0].python == "transforms.flights:clean"


def test_a_python_steps_file_is_part_of_the_identity_and_is_not_imported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "canary_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "steps.py").write_text("one")
    monkeypatch.chdir(tmp_path)
    loaded = job(tmp_path, "key: id\ntransform: [python: 'canary_package.steps:f']\n", {"allow_python": True})
    before = loaded.identity()
    assert before["transform"] == [
        {
            "python": "canary_package.steps:f",
            "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
        },
    ]
    (package / "steps.py").write_text("two")
    assert len(difference(before, loaded.identity())) == 1
    assert "canary_package" not in sys.modules


def test_the_fingerprint_ignores_what_may_change_before_a_resumption(tmp_path: Path) -> None:
    text = "key: id\nsource: {uri: 'postgresql://u:a@H/d', table: t}\ntransform: [where: x]\n"
    one = job(tmp_path, text)
    flags: dict[str, object] = {
        "source": "postgresql://v:b@h:5432/d", "workers": 3, "reader": "adbc", "loader": "adbc", "order": "desc",
        "stop_on_error": True, "allow_quarantined": "1%", "home": "/x", "target": "postgresql://x/y", "job": "other",
    }  # fmt: skip
    two = job(tmp_path, "\n\n" + text, flags, ETL_RETRIES="1")
    assert one.fingerprint() == two.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", one.fingerprint())
    assert one.transform == two.transform


@pytest.mark.parametrize("change", [{"chunk": 2}, {"key": "a"}, {"table": "u"}, {"into": "u"}, {"set": "a = 1"},
                                    {"where": "x"}, {"rule": "r: x"}, {"dedup": "id"},
                                    {"checksum": True}, {"source": "postgresql://h/e"}])  # fmt: skip
def test_the_fingerprint_depends_on_everything_that_changes_the_rows(change: dict[str, object]) -> None:
    plain: dict[str, object] = {"key": "id", "table": "t", "into": "t", "source": "postgresql://h/d"}
    assert load_job(None, plain, {}).fingerprint() != load_job(None, plain | change, {}).fingerprint()


def test_a_difference_is_told_line_by_line(tmp_path: Path) -> None:
    old = job(tmp_path, 'key: id\ntransform: [drop: a, where: "year = 2013"]\nrules: {r: x}\n').identity()
    text = 'key: [id, b]\nchunk: 20000\ntransform: [drop: a, where: "year = 2014", drop: c]\ndedup: {on: id}\n'
    new = json.loads(json.dumps(job(tmp_path, text).identity()))
    assert difference(old, new) == [
        "chunk: 50000 → 20000",
        'key: ["id"] → ["id", "b"]',
        'rules.r.check: "x" → nothing',
        'rules.r.on_fail: "quarantine" → nothing',
        'transform[1].where: "year = 2013" → "year = 2014"',
        'dedup.keep: nothing → "last"',
        'dedup.on: nothing → ["id"]',
        'transform[2].drop: nothing → ["c"]',
    ]
    assert difference(old, json.loads(json.dumps(old))) == []


class _Quoting(yaml.SafeDumper):
    """Writes all text in double quotes, folded where it is long, and mappings as blocks."""


_Quoting.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'),
)

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(str.strip)
bodies = st.fixed_dictionaries(
    {
        "key": texts | st.lists(texts, min_size=1, max_size=3, unique=True),
        "chunk": st.integers(1, 2_147_483_647),
        "transform": st.lists(
            st.one_of(
                st.builds(lambda columns: {"set": columns}, st.dictionaries(texts, texts, min_size=1, max_size=2)),
                st.builds(lambda predicate: {"where": predicate}, texts),
                st.builds(lambda names: {"drop": names}, texts),
            ),
            max_size=3,
        ),
        "rules": st.dictionaries(st.from_regex(r"\A[a-m][a-z0-9_.-]{0,8}\Z"), texts, max_size=2),
    },
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(bodies)
def test_a_file_written_by_another_program_gives_the_same_identity_in_any_style(
    tmp_path: Path,
    body: dict[str, Any],
) -> None:
    written = [json.dumps(body), yaml.dump(body, Dumper=_Quoting, allow_unicode=True, width=20)]
    jobs = [job(tmp_path, text.replace("${", "$${")) for text in written]
    assert jobs[0].identity() == jobs[1].identity()
    assert jobs[0].fingerprint() == jobs[1].fingerprint()
    assert jobs[0].chunk == body["chunk"]


@pytest.mark.parametrize(
    ("written", "quarantined", "read", "permitted"),
    [("0", 0, 0, True), ("0", 1, 100, False), ("12", 12, 12, True), ("12", 13, 1000, False), ("5%", 5, 100, True),
     ("5%", 51, 1000, False), ("0.1%", 1, 1000, True), ("100%", 7, 7, True), ("5%", 0, 0, True)],
)  # fmt: skip
def test_an_allowance_is_exact(written: str, quarantined: int, read: int, *, permitted: bool) -> None:
    loaded = load_job(None, {"key": "id", "allow_quarantined": written}, {})
    assert loaded.allow_quarantined.permits(quarantined, read) is permitted
    assert str(loaded.allow_quarantined) == written


@pytest.mark.parametrize("written", ["-1", "5 %", "%", "1.5", "1e3", "many", True, 1.5])
def test_a_wrong_allowance_is_refused(written: object) -> None:
    assert flag_mistakes({"key": "id", "allow_quarantined": written}) == [
        f"--allow-quarantined: got {json.dumps(written)}, expected a whole number or a percentage such as 5%",
    ]


@given(st.text(max_size=80).filter(bool))
def test_the_name_that_a_table_gives_its_job_is_always_valid(table: str) -> None:
    loaded = load_job(None, {"key": "id", "table": table}, {})
    assert re.fullmatch(r"\w[\w.-]{0,62}", loaded.job)


@given(
    st.lists(st.text(max_size=80).filter(lambda text: text.strip(".-") and '"' not in text), min_size=2, unique=True)
)
def test_two_tables_give_their_jobs_two_names(tables: list[str]) -> None:
    names = {load_job(None, {"key": "id", "table": table}, {}).job for table in tables}
    assert len(names) == len({table.removeprefix("public.") for table in tables})


@pytest.mark.parametrize(
    ("table", "name"),
    [
        ("public.flights", "flights"),
        ("sales.Order", "sales.Order"),
        ('public."Order"', "Order"),
        ("ä", "ä"),
        ('"größe"', "größe"),
        ("注文", "注文"),
        ('"my table"', "my_table-7f71d6b4"),
        ('"a.b"', "_a.b_-12734df7"),
        ("t" * 70, f"{'t' * 54}-{hashlib.sha256(b't' * 70).hexdigest()[:8]}"),
    ],
)
def test_a_job_is_called_like_its_table(table: str, name: str) -> None:
    assert load_job(None, {"key": "id", "table": table}, {}).job == name


def fits(value: object) -> bool:
    """Check a job file's data against the JSON schema that editors get."""
    return Draft202012Validator(json.loads(json.dumps(json_schema()))).is_valid(value)


class _Plain(yaml.SafeLoader):
    """YAML 1.1 without its truth values: editors read 1.2, where `on` is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own declaration
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith("bool")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "accepted"),
    [
        ("", "", True),
        ("key: id", "kee: id", False),
        ("chunk: 50000", "chunk: 0", False),
        ("chunk: 50000", "chunk: many", False),
        ("keep: last", "keep: newest", False),
        ("on: [id]", "onn: [id]", False),
        ("mode: append", "mode: insert", False),
        ("- where:", "- were:", False),
        ("on_fail: quarantine", "on_fail: x", False),
        ("key: id", "key: [a, b]", True),
        ("not_null: [tailnum]", "not_null: {colums: [tailnum]}", False),
        ("job: flights", "job: a b", False),
    ],
)
def test_the_schema_accepts_the_example_and_rejects_a_typo(old: str, new: str, *, accepted: bool) -> None:
    text = FLIGHTS.read_text(encoding="utf-8")
    assert old in text
    data = yaml.load(text.replace(old, new, 1), _Plain)  # noqa: S506  # a subclass of SafeLoader
    assert fits(data) is accepted


def test_the_schema_describes_every_setting_and_tells_no_internals() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    parts = [schema, *schema["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts)
    assert all(value["description"] for part in parts for value in part["properties"].values())
    assert schema["anyOf"][0] == {"required": ["key"]}
    assert '"flag"' not in json.dumps(schema)
    sources = {name for name, part in schema["$defs"].items() if name.endswith("Source")}
    of_sources = {name for source in sources for name in schema["$defs"][source]["properties"]}
    others = [part for name, part in {"": schema, **schema["$defs"]}.items() if name not in sources]
    assert len(of_sources) + sum(len(part["properties"]) for part in others) == len(list(settings()))


def test_the_options_of_the_commands_are_what_the_model_says() -> None:
    assert (ROOT / "src" / "keyhaul" / "cli" / "flags.py").read_text(encoding="utf-8") == flag_table()


def test_the_documentation_is_what_the_model_says() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == configuration()


@pytest.mark.parametrize(
    "one", [one for one in settings() if one.expected == "true or false" and one.variable], ids=lambda one: one.variable
)
@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_a_variable_switches_what_a_flag_switches(one, text, value):
    flags = {"source": str(ROOT / "data" / "airports.csv")} if one.variable == "ETL_ONLY_NEW" else {"key": "id"}
    given = load_job(None, flags, {one.variable: text})
    for name in one.place:
        given = getattr(given, name)
    assert given is value


@pytest.mark.parametrize("place", [("key",), ("dedup", "on"), ("dedup", "order_by"), ("target", "conflict")])
def test_a_flag_that_takes_columns_splits_them_at_commas(place):
    flag = {one.place: one.flag for one in settings()}[place].removeprefix("--").replace("-", "_")
    given = load_job(None, {"key": "id", "dedup": "id", flag: 'a,"b,c"'}, {})
    for name in place:
        given = getattr(given, name)
    assert given == ("a", "b,c")


def test_limits_are_sizes_percentages_and_rows_and_change_nothing_of_which_job_it_is(tmp_path: Path) -> None:
    plain = job(tmp_path, "key: id\n")
    assert (str(plain.memory_limit), plain.cpu_limit, plain.rate_limit) == ("80%", None, None)
    text = "key: id\nmemory_limit: 512MB\ncpu_limit: 85%\nrate_limit: 1000\n"
    loaded = job(tmp_path, text, {"rate_limit": "500"}, ETL_CPU_LIMIT="50%")
    assert (loaded.memory_limit.bytes, str(loaded.cpu_limit), loaded.rate_limit) == (512_000_000, "50%", 500)
    assert loaded.fingerprint() == plain.fingerprint()


def test_limits_that_mean_nothing_are_refused_with_what_is_expected(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "key: id\nmemory_limit: 2\n", {"cpu_limit": "120%"}, ETL_RATE_LIMIT="0") == [
        (
            "job.yaml line 2: memory_limit: got 2, expected a size from 1MB such as 2GB or 512MB, or 1% to 100% of the "
            "machine's or its cgroup's memory"
        ),
        '--cpu-limit: got "120%", expected a percentage such as 85%',
        "ETL_RATE_LIMIT: got 0, expected a whole number from 1",
    ]


@pytest.mark.parametrize("given", ["auto", {}, {"target_seconds": 2, "max_bytes": "12MB"}])
def test_an_auto_chunk_is_a_word_or_a_mapping_and_the_same_job_whatever_its_settings(given: object) -> None:
    loaded = load_job(None, {"key": "id", "chunk": given}, {})
    assert loaded.chunk == AutoChunk(target_seconds=2.0, min_rows=10_000, max_rows=1_000_000)
    other = load_job(None, {"key": "id", "chunk": {"min_rows": 7}}, {})
    assert loaded.identity()["chunk"] == "auto"
    assert loaded.fingerprint() == other.fingerprint() != load_job(None, {"key": "id"}, {}).fingerprint()


def test_a_flag_or_variable_takes_the_place_of_the_files_auto_chunk_and_the_reverse(tmp_path: Path) -> None:
    text = "key: id\nchunk: {min_rows: 7}\n"
    assert job(tmp_path, text).chunk == AutoChunk(min_rows=7)
    assert job(tmp_path, text, {"chunk": "5"}).chunk == 5
    assert job(tmp_path, text, ETL_CHUNK="auto").chunk == AutoChunk()


def test_mistakes_in_an_auto_chunk_are_told_with_their_lines(tmp_path: Path) -> None:
    text = "key: id\nchunk:\n  target_seconds: 0\n  min_rows: 1.5\n  max_bytes: 50%\n  seconds: 2\n"
    assert mistakes(tmp_path, text) == [
        "job.yaml line 3: chunk.target_seconds: got 0, expected a number of seconds above 0, to 3600",
        "job.yaml line 4: chunk.min_rows: got 1.5, expected a whole number from 1",
        'job.yaml line 5: chunk.max_bytes: got "50%", expected a size from 1MB such as 64MB',
        "job.yaml line 6: chunk.seconds: got an unknown key, expected target_seconds",
    ]
    assert mistakes(tmp_path, "key: id\nchunk: {max_rows: 5000}\n") == [
        (
            "job.yaml line 2: chunk.max_rows: got 5000 with min_rows 10000, expected a whole number from 10000. "
            "Raise it, or lower min_rows"
        )
    ]


SHOP = "sqlite:///shop.db"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is a SQLite source by its ending, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.db").write_bytes(b"")
    (tmp_path / "odd name?.dat").write_bytes(b"")
    return tmp_path / "shop.db"


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ({"uri": SHOP}, "shop.db"),
        ({"uri": "SQLite:///shop.db"}, "shop.db"),
        ({"uri": "shop.db"}, "shop.db"),
        ({"path": "./shop.db"}, "./shop.db"),
        ({"kind": "sqlite", "path": "odd name?.dat"}, "odd name?.dat"),
        ({"kind": "sqlite", "uri": "odd name?.dat"}, "odd name?.dat"),
        ({"uri": "sqlite:///odd%20name%3F.dat"}, "odd name?.dat"),
    ],
)
def test_the_kind_of_a_source_follows_from_its_uri_or_its_paths_ending_or_is_said(
    shop: Path, source: dict[str, str], path: str
) -> None:
    text = json.dumps({"source": {**source, "table": "Track"}})
    loaded = job(shop.parent, text)
    assert loaded.source == SqliteSource(path=path, table="Track")
    assert (loaded.key, loaded.job, loaded.target.table) == ((), "Track", "Track")
    whole = str((shop.parent / path).resolve())
    assert loaded.identity()["source"] == {"database": f"sqlite:///{whole}", "table": "Track"}


def test_a_flag_or_a_variable_says_another_kind_of_source_than_the_file(shop: Path) -> None:
    text = "key: id\nsource: {kind: sqlite, path: shop.db, table: t}\n"
    assert job(shop.parent, text).source == SqliteSource(path="shop.db", table="t")
    uri = "postgresql://h/d"
    assert job(shop.parent, text, {"source": uri}).source == PostgresSource(uri=uri, table="t")
    assert job(shop.parent, text, ETL_SOURCE_URL=uri).source == PostgresSource(uri=uri, table="t")
    assert job(shop.parent, text, {"source": "odd name?.dat"}).source == SqliteSource(path="odd name?.dat", table="t")
    text = f"key: id\nsource: {{uri: '{uri}', query: select 1}}\n"
    loaded = job(shop.parent, text, {"source": str(shop), "table": "t"})
    assert loaded.source == SqliteSource(path=str(shop), table="t")


KINDS = (
    "postgresql://, postgres:// or embedded (kind postgres), "
    "or sqlite:/// or a path that ends in .db, .sqlite or .sqlite3 (kind sqlite), or file:///, az://, s3://, https://, http:// or a path that ends in .csv, .tsv, .tab, .jsonl, .ndjson, .json, .xlsx, .xlsm, .xls, .xlsb, .ods, .parquet, .arrow, .feather or .ipc (kind files)"
)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"uri": "mysql://u:CANARY@h/d"}, f"uri: got scheme mysql, expected {KINDS}. Correct it, or say the kind: in a job file"),
        ({"uri": "sqlit:///CANARY"}, f"uri: got an unknown scheme, expected {KINDS}. Correct it, or say the kind: in a job file"),
        ({"path": "CANARY.dat"}, f"path: got text that is not a URI, nor a path of a known kind, expected {KINDS}. Correct it, or say the kind: in a job file"),
        ({"uri": "u:CANARY@h/shop.db"}, f"uri: got text that is not a URI, nor a path of a known kind, expected {KINDS}. Correct it, or say the kind: in a job file"),
        ({"uri": 5}, f"uri: got 5, expected {KINDS}"),
        ({"kind": "mysql", "uri": "sqlite:///shop.db"}, 'kind: got "mysql", expected one of postgres, sqlite, files'),
        ({"kind": "sqlite", "uri": "postgresql://u:CANARY@h/d"}, "uri: got a URI of another kind for kind sqlite, expected sqlite:/// or a path that ends in .db, .sqlite or .sqlite3"),
        ({"kind": "sqlite"}, "path: got nothing, expected a path or sqlite:/// or a path that ends in .db, .sqlite or .sqlite3. Give --source"),
        ({"uri": "shop.db", "path": "shop.db"}, "path: got both a uri and a path, expected one of them. Remove one"),
        ({"uri": "sqlite://shop.db"}, "uri: got a host, or two slashes, expected three, as in sqlite:///shop.db"),
        ({"uri": "sqlite:///shop.db?mode=ro"}, 'uri: got a "?" or "#" after the path, expected a path alone. Percent-encode it: ? is %3F, # is %23'),
        ({"uri": "sqlite:///none.db"}, 'uri: got "none.db", which is not there, expected a file. Correct the path'),
        ({"path": "folder.db"}, 'path: got "folder.db", which is a folder, expected a file. Correct the path'),
        ({"uri": SHOP, "reader": "adbc"}, "reader: got a reader for a source of kind sqlite, expected it for kind postgres only. Leave it out"),
        ({"kind": "postgres", "path": "shop.db"}, "path: got a path for a source of kind postgres, expected it for kind sqlite or files only. Leave it out"),
        ({"uri": SHOP, "reedr": "adbc"}, "reedr: got an unknown key, expected reader"),
    ],
)  # fmt: skip
def test_a_source_that_is_of_no_kind_or_has_what_another_kind_has_is_refused(
    shop: Path, source: dict[str, object], message: str
) -> None:
    (shop.parent / "folder.db").mkdir()
    body = json.dumps({**source, "table": "t"})
    assert mistakes(shop.parent, f"key: id\nsource: {body}\n") == [f"job.yaml line 2: source.{message}"]


def test_a_setting_of_another_kind_is_told_with_its_flag_or_variable(shop: Path) -> None:
    told = "got a reader for a source of kind sqlite, expected it for kind postgres only. Leave it out"
    assert flag_mistakes({"source": SHOP, "table": "t", "reader": "adbc"}) == [f"--reader: {told}"]
    assert flag_mistakes({"source": SHOP, "table": "t"}, ETL_READER="adbc") == [f"ETL_READER: {told}"]
    (rooted,) = flag_mistakes({"source": f"sqlite://{shop}", "table": "t"})
    assert rooted.endswith(", which is not there, expected a file. A path from the root has four slashes")
    assert flag_mistakes({"source": SHOP}) == [
        "source.table: got nothing, expected a table or a query. Give --table or --query"
    ]


@pytest.mark.parametrize(
    ("source", "accepted"),
    [
        ({"uri": SHOP}, True),
        ({"uri": "data/shop.SQLite3"}, True),
        ({"uri": "${SHOP}"}, True),
        ({"path": "shop.db"}, True),
        ({"kind": "sqlite", "path": "shop.dat"}, True),
        ({"path": "shop.dat"}, False),
        ({"uri": SHOP, "reader": "adbc"}, False),
        ({"uri": "postgres://h/d", "reader": "adbc"}, True),
        ({"uri": "mysql://h/d"}, False),
        ({"kind": "postgres", "path": "shop.db"}, False),
    ],
)
def test_the_schema_knows_which_settings_belong_to_which_kind(source: dict[str, str], *, accepted: bool) -> None:
    assert fits({"key": "id", "source": {**source, "table": "t"}}) is accepted
    keyless = accepted and "reader" not in source
    assert fits({"source": {**source, "table": "t"}}) is keyless


@pytest.mark.parametrize(
    ("value", "accepted"),
    [("auto", True), ("fast", False), (0, False), ({}, True), ({"min_rows": 5}, True), ({"min_rows": "5"}, False)],
)
def test_the_schema_knows_auto_chunks(value: object, *, accepted: bool) -> None:
    assert fits({"key": "id", "chunk": value}) is accepted


ENDS = (
    "job: j\nkey: id\nsource: {uri: 'postgresql://u@localhost/a', table: public.a}\n"
    "target: {uri: 'postgresql://u@localhost/b', table: public.a}\n"
)


@pytest.mark.parametrize(
    ("text", "first", "more"),
    [
        (
            ENDS + "".join(f"cunk{n}: 1\n" for n in range(4_900)),
            "job.yaml line 5: cunk0: got an unknown key, expected chunk",
            4_850,
        ),
        (
            ENDS + "rules:\n  r:\n    check: a > 0\n" + "".join(f"    chek{n}: 1\n" for n in range(4_900)),
            "job.yaml line 8: rules.r.chek0: got an unknown key, expected check",
            4_850,
        ),
        (
            ENDS + "transform:\n" + "".join(f"- whre: a > {n}\n" for n in range(3_300)),
            "job.yaml line 6: transform[0].whre: got an unknown key, expected where",
            3_250,
        ),
        (
            ENDS + "rules:\n" + "".join(f"  r{n}:\n" for n in range(4_900)),
            'job.yaml line 6: rules.r0: got nothing, expected a condition such as "distance > 0"',
            4_850,
        ),
    ],
    ids=["keys", "keys of a rule", "steps", "rules"],
)
def test_of_thousands_of_mistakes_the_first_are_told_and_the_others_counted(
    tmp_path: Path, text: str, first: str, more: int
) -> None:
    started = time.process_time()
    lines = mistakes(tmp_path, text)
    cost = time.process_time() - started
    assert (lines[0], len(lines)) == (first, 51)
    assert lines[-1] == f"job.yaml: got {more} more mistakes, expected none. Correct the first ones"
    assert cost < 1.2  # 0.4 s on an idle machine
