"""`etl check` as a process, and what a user can rely on: exit codes, reports, thresholds, drift, hostile files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import junitparser
import psycopg
import pyarrow as pa
import pytest
import support
import yaml
from moving import rows, run_sql
from pyarrow import parquet

from keyhaul.errors import ConfigError
from keyhaul.quality import checking as quality
from keyhaul.quality.offenders import Asked

ROOT = Path(__file__).parents[2]
ITEMS = (
    "create table public.items (id bigint primary key, name text, amount int, made timestamptz)",
    "insert into public.items select g, case when g <> 7 then 'secret ' || g end, g % 10, '2020-01-01' from generate_series(1, 100) g",
)


@pytest.fixture(scope="module")
def uri(server):
    """A database with 100 items: no name at id 7, an amount of 9 at every tenth."""
    made = support.make_database(server, "check")
    run_sql(made, *ITEMS)
    yield made
    support.drop_database(server, made)


@pytest.fixture
def checks(tmp_path, uri):
    """``checks([…], source={…}, …)`` writes a checks file, one item a line from line 3 on, and returns its path."""

    def make(listed, **more):
        head = {"source": {"uri": uri, "table": "public.items"}, **more}
        lines = [", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items())]
        body = ",\n".join(json.dumps(check) for check in listed)
        path = tmp_path / "checks.yaml"
        path.write_text(f'{{{lines[0]}, "checks":\n[\n{body}\n]}}\n')
        return path

    return make


def found(path, **more):
    return {verdict.name: verdict for verdict in quality.check(path, **more).verdicts}


# --- the examples, from a fresh clone with no server -------------------------------------------------


def test_the_example_passes_on_the_bundled_flights_and_keeps_its_results(etl, tmp_path):
    for _ in range(2):
        done = etl("check", str(ROOT / "configs/flights_checks.yaml"), "--json", cwd=ROOT)
        assert done.stderr == ""
        assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["rows"] == 336_776
    assert {v["kind"] for v in report["verdicts"]} == set(quality.KINDS)
    assert {v["name"]: v["failures"] for v in report["verdicts"] if v["failures"]} == {
        "no day-long delays": 40,
        "planes are known": 2512,
    }
    assert report["kept"] == "the embedded warehouse, keyhaul.checks"
    drift = next(v for v in report["verdicts"] if v["kind"] == "drift")
    assert drift["message"] == ""  # the second run had something to compare with
    assert drift["statistics"]["distinct"] == 527


def test_the_failing_example_fails_in_every_kind_and_the_reports_say_so(etl, tmp_path):
    junit = tmp_path / "report.xml"
    done = etl("check", str(ROOT / "configs/flights_checks_failing.yaml"), "--junit", str(junit), "--github", cwd=ROOT)
    assert done.returncode == 1, done.stderr
    (suite,) = junitparser.JUnitXml.fromfile(str(junit))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (14, 13, 0, 0)
    outcomes = {case.name: case for case in suite}
    assert outcomes["not_null:tailnum"].result[0].message == "2,512 of 336,776 rows"
    assert "line 10" in outcomes["not_null:tailnum"].result[0].text
    assert "id=1783" in outcomes["not_null:tailnum"].result[0].text
    assert outcomes["only a warning"].is_passed
    assert outcomes["only a warning"].system_out.startswith("warning: ")
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert len(commands) == 14
    assert all(re.match(r"::(error|warning) file=[^,:]+,line=[0-9]+,title=[^:]*::.+", line) for line in commands)
    assert sum(line.startswith("::warning ") for line in commands) == 1
    assert "2%25 allowed" in done.stdout


def test_a_wrong_file_or_database_is_exit_code_2_with_the_line_and_nothing_else(etl, checks, tmp_path):
    wrong = checks([{"not_null": "name"}, {"not_nul": "id"}, {"between": {"column": "amount"}}])
    done = etl("check", str(wrong))
    assert done.returncode == 2
    assert "checks.yaml line 4: checks[1].not_nul: got an unknown key, expected not_null" in done.stderr
    assert "checks.yaml line 5: checks[2].between: got neither, expected min or max or both" in done.stderr
    assert done.stdout == ""
    nowhere = checks([{"not_null": "id"}], source={"uri": "postgresql://user:hidden@127.0.0.1:1/none", "table": "t"})
    done = etl("check", str(nowhere))
    assert done.returncode == 2
    assert "nothing listens there" in done.stderr
    assert "hidden" not in done.stderr
    assert etl("check", str(tmp_path / "none.yaml")).returncode == 2


def test_a_file_without_any_database_needs_no_ledger_and_says_so(etl, tmp_path):
    pq = tmp_path / "bad.parquet"
    parquet.write_table(pa.table({"id": [1, 2, 2], "name": ["a", None, "secret"]}), pq)
    path = tmp_path / "checks.yaml"
    path.write_text("source: {file: bad.parquet}\nchecks:\n- unique: id\n- not_null: name\n")
    done = etl("check", str(path), cwd=tmp_path)
    assert done.returncode == 1
    assert "results are not kept: no ledger" in done.stdout
    assert "unique:id: row=2; row=3" in done.stdout
    assert "not_null:name: row=2" in done.stdout
    assert etl("check", str(path), "--only", "unique:id", "--state", "state.json", cwd=tmp_path).returncode == 1
    assert json.loads((tmp_path / "state.json").read_text())["checks"][0]["failures"] == 2
    path.write_text("source: {file: bad.parquet}\nchecks:\n- drift: {column: id, distinct: 1}\n")
    done = etl("check", str(path), cwd=tmp_path)
    assert done.returncode == 2
    assert "line 3: check drift:id: got no place to keep results" in done.stderr


def test_a_jobs_rules_are_checked_on_its_target_with_the_meaning_of_the_load(etl, uri, database, server, tmp_path):
    target = database(server, "ruled")
    run_sql(
        target,
        *ITEMS,
        "update public.items set amount = 0, made = 'infinity' where id = 5",
        "update public.items set made = '1999-05-05' where id = 6",
        "update public.items set made = '9999-12-31 23:59:59.5Z' where id = 8",
        "update public.items set made = '0044-03-15 BC' where id = 9",
    )
    job = tmp_path / "job.yaml"
    job.write_text(
        f"source: {{uri: '{uri}', table: public.items}}\nkey: id\ntarget: {{uri: '{target}', table: public.items}}\n"
        """rules:
  fits: "amount < 9"
  quotient: "case when amount = 0 then error('zero') else true end"
  made: "made < timestamptz '2021-01-01 00:00:00'"
  odd: {check: "id % 2 = 1", on_fail: warn}
  not_null: [name]
"""
    )
    done = etl("check", str(job), "--json", "--export", str(tmp_path / "bad.parquet"))
    assert done.returncode == 1, done.stderr
    verdicts = {v["name"]: v for v in json.loads(done.stdout)["verdicts"]}
    # As in a load: NULL passes, and a record for which a rule cannot be evaluated, or looks at infinity, fails it.
    assert {name: verdict["failures"] for name, verdict in verdicts.items()} == {
        "fits": 10,
        "quotient": 11,
        "made": 2,
        "odd": 50,
        "not_null:name": 1,
    }
    assert verdicts["not_null:name"]["offenders"] == [{"id": "7"}]
    assert verdicts["odd"]["status"] == "warned"
    assert verdicts["odd"]["line"] == 8
    assert rows(target, "select count(*) from keyhaul.checks")[0][0] == 5
    shown = quality.check(job, only=["made"], asked=Asked(show_values=True)).verdicts[0].offenders
    assert list(shown) == [{"id": "5", "made": None}, {"id": "8", "made": "9999-12-31 23:59:59.500+00:00"}]
    (only,) = quality.check(job, only=["not_null:name"]).verdicts
    assert (only.name, only.failures) == ("not_null:name", 1)
    table = parquet.read_table(tmp_path / "bad.parquet")
    assert table.num_rows == sum(v["failures"] for v in verdicts.values())


def test_a_jobs_rules_across_the_run_are_checked_beside_its_rules(etl, uri, database, server, tmp_path):
    target = database(server, "across")
    run_sql(target, *ITEMS, "delete from public.items where id = 100", "create table public.names (name text)")
    job = tmp_path / "job.yaml"
    job.write_text(
        f"source: {{uri: '{uri}', table: public.items}}\nkey: id\ntarget: {{uri: '{target}', table: public.items}}\n"
        """rules: {fits: "amount < 10"}
run_rules:
  alone: {unique: amount}
  fits: {row_count: {min: 99}}
  known: {references: {column: name, table: public.names}, on_fail: warn}
  sums: {equals_source: sum(id)}
"""
    )
    done = etl("check", str(job), "--json")
    assert done.returncode == 1, done.stderr
    verdicts = json.loads(done.stdout)["verdicts"]
    assert [(v["name"], v["kind"], v["status"], v["failures"], v["rows"]) for v in verdicts] == [
        ("fits", "rule", "passed", 0, 99),
        ("alone", "run_rule", "failed", 99, 99),
        ("run_rules:fits", "run_rule", "passed", 0, 99),
        ("known", "run_rule", "warned", 98, 99),
        ("sums", "run_rule", "failed", 1, 99),
    ]
    assert verdicts[1]["line"] == 6
    assert verdicts[4]["message"] == "sum(id) is 4950 in the target and 5050 in the source"
    assert etl("check", str(job), "--only", "known").returncode == 0
    assert rows(target, "select count(*) from keyhaul.checks where kind = 'run_rule'") == [(5,)]
    run_sql(target, "drop table public.names", "alter table public.items drop column amount")
    done = etl("check", str(job), "--only", "known", "--only", "alone")
    assert done.returncode == 2
    assert "line 6: check run rule alone: column t.amount does not exist" in done.stderr
    assert "line 8: bind run rule known: public.names is not in the target" in done.stderr


# --- thresholds, samples, export ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "status"), [(0, "failed"), (9, "failed"), (10, "passed"), ("9.9%", "failed"), ("10%", "passed")]
)
def test_a_threshold_is_a_number_of_rows_or_an_exact_percentage(checks, allowed, status):
    check = {"between": {"column": "amount", "max": 8}, "max_failures": allowed, "name": "c"}
    assert found(checks([check]))["c"].status == status


def test_offenders_are_named_by_their_keys_and_their_values_are_shown_only_when_asked(checks, uri, tmp_path):
    path = checks([{"matches": {"column": "name", "pattern": "^secret [0-9]$"}, "name": "c"}])
    everything = json.dumps([dict(row) for row in found(path)["c"].offenders])
    assert found(path)["c"].failures == 91
    assert len(found(path)["c"].offenders) == 5
    assert "secret" not in everything
    assert all(set(row) == {"id"} for row in found(path)["c"].offenders)
    shown = found(path, asked=Asked(show_values=True, sample_rows=2))["c"].offenders
    assert [set(row) for row in shown] == [{"id", "name"}] * 2
    assert all(row["name"] == f"secret {row['id']}" for row in shown)


def test_the_ledger_keeps_no_keys_and_no_values(checks, uri):
    path = checks([{"matches": {"column": "name", "pattern": "^x"}, "name": "c"}], ledger=uri)
    quality.check(path, asked=Asked(show_values=True))
    kept = rows(uri, "select c::text from keyhaul.checks c")
    assert len(kept) == 1
    assert "secret" not in kept[0][0]
    assert "(99,100" not in kept[0][0]
    assert rows(uri, "select status, failures, rows from keyhaul.checks") == [("failed", 99, 100)]


def test_all_offenders_can_be_exported_and_the_file_is_never_replaced_by_accident(checks, tmp_path):
    path, out = checks([{"not_null": "name"}, {"between": {"column": "amount", "max": 8}}]), tmp_path / "bad.parquet"
    assert quality.check(path, asked=Asked(export=out)).exported == 11
    table = parquet.read_table(out)
    assert table.column_names == ["_check", "id", "name", "amount", "made"]
    assert table.filter(pa.compute.equal(table["_check"], "not_null:name"))["id"].to_pylist() == ["7"]
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="exists already"):
        quality.check(path, asked=Asked(export=out))


@pytest.mark.parametrize("kind", ["table", "file", "job", "job without rows"])
def test_an_export_with_nothing_to_export_has_the_columns_of_one_that_has(checks, database, server, tmp_path, kind):
    out, path = tmp_path / "bad.parquet", tmp_path / "job.yaml"
    if kind == "file":
        parquet.write_table(pa.table({"id": [1], "name": ["a"]}), tmp_path / "good.parquet")
        path = checks([{"not_null": "name"}], source={"file": str(tmp_path / "good.parquet")})
    else:
        uri = database(server, "good")
        run_sql(uri, *ITEMS, *(["truncate public.items"] if kind == "job without rows" else []))
        if kind == "table":
            path = checks([{"not_null": "id"}], source={"uri": uri, "table": "public.items"})
        else:
            text = f"source: {{uri: '{uri}', table: public.items}}\nkey: id\n"
            path.write_text(f"{text}target: {{uri: '{uri}', table: public.items}}\nrules: {{there: 'amount >= 0'}}\n")
    assert quality.check(path, asked=Asked(export=out)).exported == 0
    table = parquet.read_table(out)
    assert table.num_rows == 0
    assert table.column_names[:2] == ["_check", "id"]


def test_a_number_is_no_limit_of_a_text_and_one_in_quotes_is(checks, tmp_path, uri):
    (tmp_path / "v.csv").write_text("v\n50\n1000\n")
    for more in ({}, {"source": {"file": str(tmp_path / "v.csv")}}):
        column = "v" if more else "name"
        with pytest.raises(ConfigError, match="got the number 1 for a column of text"):
            found(checks([{"between": {"column": column, "min": 1, "max": 200}}], **more))
        assert found(checks([{"between": {"column": column, "max": "z"}, "name": "c"}], **more))["c"].failures == 0
    typed = {"source": {"file": str(tmp_path / "v.csv"), "types": {"v": "integer"}}}
    assert found(checks([{"between": {"column": "v", "max": 200}, "name": "c"}], **typed))["c"].failures == 1


def test_a_number_keeps_its_digits(checks, tmp_path):
    (tmp_path / "v.csv").write_text("v,n\n1.1,1\n1.10,99999999999999.99\n")
    path = tmp_path / "checks.yaml"
    path.write_text(
        f"source: {{file: {tmp_path / 'v.csv'}, types: {{n: 'decimal(20,2)'}}}}\nstate: {tmp_path / 'state'}\nchecks:\n"
        "- {name: a, accepted: {column: v, values: [1.10]}}\n"
        "- {name: b, between: {column: n, max: 99999999999999.98}}\n"
        "- {name: c, drift: {column: n, null_share: 0.00005}}\n"
    )
    assert [verdict.failures for verdict in quality.check(path).verdicts] == [1, 1, 0]


def test_a_share_that_moves_by_its_whole_tolerance_is_near(checks, database, server):
    uri = database(server, "share")
    run_sql(uri, *ITEMS, "update public.items set name = ''")
    source = {"uri": uri, "table": "public.items"}
    for percent in (1, 7, 29, 57):
        listed = [{"drift": {"column": "name", "null_share": percent / 100}, "name": str(percent)}]
        run_sql(uri, "update public.items set name = ''")
        assert found(checks(listed, source=source, ledger=uri))[str(percent)].status == "passed"
        run_sql(uri, f"update public.items set name = null where id <= {percent}")
        assert found(checks(listed, source=source, ledger=uri))[str(percent)].status == "passed"


TYPED = {
    "a": "timestamptz(3)",
    "b": "timestamp(0)",
    "c": "time(3)",
    "d": "numeric(12)",
    "e": "varchar(3)",
    "f": "float(24)",
    "g": "bit varying(4)",
    "h": "numeric(5,2)[]",
}


def test_a_type_with_a_modifier_is_right_however_it_is_written(checks, database, server):
    uri = database(server, "typed")
    run_sql(uri, f"create table public.typed ({', '.join(f'{name} {kind}' for name, kind in TYPED.items())})")
    source = {"uri": uri, "table": "public.typed"}
    right = {"columns": {"types": TYPED, "only": True}, "name": "right"}
    wrong = {"columns": {"types": {"a": "timestamptz(2)", "e": "varchar(4)", "d": "numeric(12,1)"}}, "name": "wrong"}
    none = {"columns": {"types": {"a": "nothing(3)"}}, "name": "none"}
    verdicts = found(checks([right, wrong, none], source=source))
    assert (verdicts["right"].message, verdicts["right"].status) == ("", "passed")
    assert verdicts["wrong"].message.count("expected") == 3
    assert verdicts["none"].message == "a is there is no type nothing(3)"


def test_real_numbers_are_compared_as_real(checks, database, server):
    uri = database(server, "real")
    run_sql(uri, "create table public.r (id int primary key, x real)", "insert into public.r values (1, 0.1), (2, 0.2)")
    source = {"uri": uri, "table": "public.r"}
    listed = [
        {"accepted": {"column": "x", "values": [0.1]}, "name": "a"},
        {"between": {"column": "x", "max": 0.1}, "name": "b"},
    ]
    assert [verdict.failures for verdict in found(checks(listed, source=source)).values()] == [1, 1]


@pytest.mark.parametrize("kind", ["table", "file"])
def test_a_newest_value_that_is_infinite_is_fresh_or_late_and_no_mistake(checks, database, server, tmp_path, kind):
    uri = database(server, "moments")
    for moment, message in (("infinity", ""), ("-infinity", "the newest value is -infinity")):
        if kind == "table":
            run_sql(
                uri, "drop table if exists public.m", f"create table public.m as select timestamptz '{moment}' as t"
            )
            source = {"uri": uri, "table": "public.m"}
        else:
            query = f"copy (select timestamptz '{moment}' as t) to '{tmp_path / 'm.parquet'}' (format parquet)"
            duckdb.sql(query)
            source = {"file": str(tmp_path / "m.parquet")}
        assert (
            found(checks([{"fresh": {"column": "t", "max_age": "1 h"}, "name": "f"}], source=source))["f"].message
            == message
        )


def test_no_control_character_of_a_key_is_in_the_json(etl, checks, database, server):
    uri = database(server, "control")
    run_sql(uri, "create table public.c (k text primary key, v int)", "insert into public.c values (U&'\\009b31m')")
    done = etl("check", str(checks([{"not_null": "v"}], source={"uri": uri, "table": "public.c"})), "--json")
    assert done.returncode == 1, done.stderr
    assert "\\u009b31m" in done.stdout
    assert done.stdout.isascii()


# --- drift -------------------------------------------------------------------------------------------


def test_drift_is_measured_from_what_was_accepted_last_and_a_rejected_run_changes_nothing(checks, server, database):
    uri = database(server, "drift")
    run_sql(uri, *ITEMS)
    source = {"uri": uri, "table": "public.items"}
    path = checks([{"drift": {"column": "amount", "mean": "10%"}, "name": "d"}], source=source, ledger=uri)

    def run(**more):
        return found(path, **more)["d"]

    assert (run().status, run().message) == ("passed", "")
    run_sql(uri, "update public.items set amount = amount * 2")
    assert run().status == "failed"
    assert run().message == "mean 9, was 4.5 (± 10%)"  # and not from the run before, which was rejected
    run_sql(uri, "update public.items set amount = amount / 2")
    assert run().status == "passed"
    run_sql(uri, "update public.items set amount = amount * 2")
    assert run(keep=quality.Keep(accept=True)).status == "failed"
    assert run().status == "passed"


# --- hostile and mistaken files ----------------------------------------------------------------------

HOSTILE = [
    "amount > 0) or (true",
    "true); drop table public.items; select (true",
    "true; drop table public.items",
    "true -- ) and false",
    "true /* ",
    "exists (select 1)",
    "(select true)",
    "amount in (values (1))",
    "amount > 0 from public.items",
    "amount > 0, true",
    "amount + 1",
    "*",
    "count(*) > 1",
    "E'a'\n'\\' ' (select 1) '' is null",
    "$x$ $x$ is null",
    "nothing > 1",
    "",
]


@pytest.mark.parametrize("expression", HOSTILE)
@pytest.mark.parametrize("kind", ["table", "file"])
def test_a_text_that_is_not_one_expression_over_one_row_is_refused_with_its_line(
    checks, tmp_path, uri, kind, expression
):
    more = {}
    if kind == "file":
        pq = tmp_path / "items.parquet"
        parquet.write_table(pa.table({"id": [1], "amount": [1]}), pq)
        more = {"source": {"file": str(pq)}}
    if kind == "file" and expression.startswith(("true --", "$x$", "E'a'")):
        expression = "amount > 0 union select true"  # DuckDB's own parser decides; these are harmless to it
    with pytest.raises(ConfigError, match=r"checks\.yaml line 4: "):
        quality.check(checks([{"not_null": "id"}, {"expression": expression}], **more))
    assert rows(uri, "select count(*) from public.items") == [(100,)]


def test_the_source_is_only_read(checks, uri):
    run_sql(uri, "create or replace function public.sneaky() returns boolean language sql volatile as "
                 "$$ delete from public.items returning true $$")  # fmt: skip
    with pytest.raises(ConfigError, match="read-only transaction"):
        quality.check(checks([{"expression": "public.sneaky()"}]))
    assert rows(uri, "select count(*) from public.items") == [(100,)]


def test_duckdb_reaches_the_checked_file_and_no_other(tmp_path):
    pq, other = tmp_path / "items.parquet", tmp_path / "other.parquet"
    for path in (pq, other):
        parquet.write_table(pa.table({"id": [1]}), path)
    from keyhaul.config.checkkinds import Where
    from keyhaul.quality.files import FileSystem

    system = FileSystem(Where(file=pq), key=(), others=[])
    try:
        for query in (
            f"select * from read_parquet('{other}')",
            "select * from read_text('/etc/hostname')",
            f"copy (select 1) to '{tmp_path}/new.csv'",
            f"attach '{tmp_path}/new.db'",
            "set enable_external_access = true",
            f"set allowed_paths = ['{other}']",
        ):
            with pytest.raises(ConfigError, match=r"disabled|locked"):
                system.fetch(query)
    finally:
        system.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.parquet", "other.parquet"]


def test_a_check_that_cannot_be_evaluated_names_itself_and_shows_no_value(checks):
    with pytest.raises(ConfigError) as caught:
        quality.check(checks([{"not_null": "id"}, {"expression": "100 / amount > 0"}, {"expression": "name::int > 0"}]))
    lines = str(caught.value).splitlines()
    assert (
        "line 4: check expression:100 / amount > 0: it cannot be evaluated for every row: division by zero" in lines[0]
    )
    assert "line 5: " in lines[1]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ({"not_null": "nam"}, "no column nam, expected one of id, name, amount, made"),
        ({"between": {"column": "amount", "min": "x"}}, "invalid input syntax"),
        ({"matches": {"column": "amount", "pattern": "x"}}, "integer ~ unknown (amount is integer)"),
        ({"matches": {"column": "name", "pattern": "(("}}, "parentheses () not balanced"),
        ({"references": {"columns": "id", "in": {"table": "public.none"}}}, "there is no such table"),
        ({"fresh": {"column": "made", "max_age": "yesterday"}}, "expected an age such as 26h"),
        ({"row_count": {"min": 1}, "max_failures": 3}, "row_count holds or does not"),
        ({"not_null": "id", "severity": "fatal"}, "expected error or warn"),
        ({"not_null": "id", "unique": "id"}, "got not_null and unique"),
        ({"columns": {"types": {"id": "bigint); drop"}}}, "expected a type such as"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_write(checks, check, says):
    with pytest.raises(ConfigError) as caught:
        quality.check(checks([check]))
    assert says in str(caught.value)
    if "table" not in says:
        assert "checks.yaml line 3" in str(caught.value)


@pytest.mark.parametrize("file", [False, True])
def test_all_mistakes_are_told_at_once_whatever_finds_them(checks, tmp_path, file):
    wrong = [
        {"not_null": "nam"},
        {"expression": "amount"},
        {"matches": {"column": "name", "pattern": "(("}},
        {"unique": "id"},
        {"length": {"column": "amount", "max": 3}},
    ]
    parquet.write_table(pa.table({"id": [1], "name": ["a"], "amount": [1]}), tmp_path / "items.parquet")
    with pytest.raises(ConfigError) as caught:
        quality.check(checks(wrong, **({"source": {"file": f"{tmp_path}/items.parquet"}} if file else {})))
    lines = [line.partition(": check ")[0].rpartition(" ")[2] for line in str(caught.value).splitlines()]
    assert lines == ["3", "4", "5", "7"]


def test_a_file_without_a_source_is_refused_and_checks_nothing_else_instead(tmp_path):
    path = tmp_path / "checks.yaml"
    path.write_text("checks:\n- not_null: id\n")
    with pytest.raises(ConfigError, match="source: got none, expected a mapping with table, query or file"):
        quality.check(path)


def test_two_checks_of_one_name_are_refused(checks):
    with pytest.raises(ConfigError, match=r"line 4: .*a second check"):
        quality.check(checks([{"not_null": "id"}, {"not_null": "id"}]))


# --- files and queries -------------------------------------------------------------------------------


def test_a_csv_file_is_text_unless_its_types_are_given(tmp_path):
    csv = tmp_path / "plz.csv"
    csv.write_text('plz,n,note\n007,1,\n01067,2,""\n,30,"a\nb"\n')
    path = tmp_path / "checks.yaml"
    path.write_text(
        f"source: {{file: {csv}, types: {{n: integer}}}}\n"
        """checks:
- {length: {column: plz, min: 5}, name: a}
- {between: {column: n, max: 9}, name: b}
- {not_null: note, name: c}
- {not_null: plz, name: d}
"""
    )
    assert {name: verdict.failures for name, verdict in found(path).items()} == {"a": 1, "b": 1, "c": 1, "d": 1}
    csv.write_text("plz,n,note\n1,private,x\n")
    with pytest.raises(ConfigError) as caught:
        found(path)
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", [pa.float32(), pa.float64(), pa.struct([("in", pa.float64())]), pa.list_(pa.float64())]
)
def test_a_nan_that_the_statistics_of_a_parquet_file_leave_out_is_found(tmp_path, kind):
    wrap = {"struct": lambda x: {"in": x}, "list": lambda x: [x]}.get(str(kind).partition("<")[0], lambda x: x)
    values = pa.array([None, wrap(-1.5), wrap(float("nan"))], kind)
    parquet.write_table(pa.table({"x": values, "n": [1, 2, 3]}), tmp_path / "nan.parquet")
    what = {"struct": 'x."in"', "list": "x[1]"}.get(str(kind).partition("<")[0], "x")
    listed = [{"expression": f"{what} <= 0", "name": "e"}, {"between": {"column": "n", "max": 2}, "name": "n"}]
    listed += [{"between": {"column": "x", "max": 0}, "name": "b"}] if what == "x" else []
    path = tmp_path / "checks.yaml"
    path.write_text(json.dumps({"source": {"file": f"{tmp_path}/nan.parquet"}, "checks": listed}))
    verdicts = found(path, asked=Asked(export=tmp_path / "bad.parquet"))
    assert {(one.failures, one.offenders[0]["row"]) for one in verdicts.values()} == {(1, "3")}
    exported = parquet.read_table(tmp_path / "bad.parquet")
    assert exported.column_names == ["_check", "x", "n"]
    assert exported["x"].type == kind
    assert str(exported["x"].to_pylist()) == str([wrap(float("nan"))] * len(listed))


def test_a_query_is_checked_like_a_table(checks, uri):
    source = {"uri": uri, "query": "select amount, count(*) as n from public.items group by amount; -- all"}
    verdicts = found(checks([{"unique": "amount"}, {"row_count": {"min": 10, "max": 10}}], source=source))
    assert [verdict.status for verdict in verdicts.values()] == ["passed", "passed"]
    source = {"uri": uri, "query": "select 1 as a; drop table public.items"}
    with pytest.raises(ConfigError, match="expected one SELECT"):
        found(checks([{"row_count": {"min": 1}}], source=source))


def test_only_some_checks_can_be_run_and_a_wrong_name_is_told(checks):
    path = checks([{"not_null": "name"}, {"unique": "id"}])
    assert list(found(path, only=["unique:id"])) == ["unique:id"]
    with pytest.raises(ConfigError, match="expected one of not_null:name, unique:id"):
        found(path, only=["uniq"])


def test_a_role_that_may_only_read_can_check(checks, server, uri):
    run_sql(uri, "drop role if exists watcher", "create role watcher login password 'w'",
            "grant usage on schema public to watcher", "grant select on public.items to watcher")  # fmt: skip
    info = psycopg.conninfo.conninfo_to_dict(uri)
    reader = f"postgresql://watcher:w@{info['host']}:{info['port']}/{info['dbname']}"
    try:
        source = {"uri": reader, "table": "public.items"}
        assert found(checks([{"not_null": "id"}], source=source))["not_null:id"].status == "passed"
        with pytest.raises(ConfigError, match=r"write results of checks .* permission denied"):
            found(checks([{"not_null": "id"}], source=source, ledger={"uri": reader, "schema": "other"}))
    finally:
        run_sql(uri, "drop owned by watcher", "drop role watcher")


def test_duckdb_spills_to_a_folder_that_is_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with duckdb.connect() as con:
        con.execute(f"copy (select range as id, range // 2 as half from range(100000)) to '{tmp_path}/many.parquet'")
    path = tmp_path / "checks.yaml"
    path.write_text(f"source: {{file: {tmp_path}/many.parquet}}\nchecks:\n- unique: id\n- unique: half\n")
    assert [verdict.failures for verdict in quality.check(path).verdicts] == [0, 100_000]
    assert sorted(place.name for place in tmp_path.iterdir()) == ["checks.yaml", "many.parquet"]


# --- docs/quality.md -----------------------------------------------------------------------------------


def blocks(heading):
    """The YAML blocks of a section of docs/quality.md."""
    section = (ROOT / "docs" / "quality.md").read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    return re.findall(r"```yaml\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


def test_the_workflow_to_copy_runs_the_file_to_copy_and_leaves_the_report_that_it_uploads(etl, databases, tmp_path):
    source, target = databases
    run_sql(
        source,
        "create table public.orders (id bigint primary key, customer text, number int)",
        "insert into public.orders select n, 'c' || n % 10, n from generate_series(1, 100) n",
    )
    workflow = yaml.safe_load(blocks("In GitHub Actions")[0])
    assert set(workflow) == {"name", True, "permissions", "jobs"}  # YAML 1.1 reads `on` as true
    assert workflow[True]["schedule"][0]["cron"].count(" ") == 4
    steps = workflow["jobs"]["check"]["steps"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    program, *arguments = next(step["run"] for step in steps if step.get("run", "").startswith("etl ")).split()
    assert (program, arguments[0]) == ("etl", "check")
    names = next(step["env"] for step in steps if "env" in step)
    assert set(names) == {"ETL_SOURCE_URL", "ETL_TARGET_URL"}
    assert all(re.fullmatch(r"\$\{\{ secrets\.[A-Z_]+ \}\}", text) for text in names.values())
    (tmp_path / arguments[1]).parent.mkdir()
    (tmp_path / arguments[1]).write_text(blocks("The file")[0])
    given = {"ETL_SOURCE_URL": source, "ETL_TARGET_URL": target}
    done = etl(*arguments, cwd=tmp_path, env=given)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    uploaded = next(step["with"]["path"] for step in steps if "upload" in step.get("uses", ""))
    assert len(list(junitparser.JUnitXml.fromfile(str(tmp_path / uploaded)))) == 1
    run_sql(source, "insert into public.orders values (101, null, 1)")
    done = etl(*arguments, cwd=tmp_path, env=given)
    assert done.returncode == 1
    assert "::error file=checks/orders.yaml,line=7" in done.stdout
