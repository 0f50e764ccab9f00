"""Conditions that stand for a regular expression: true for the same texts as the server's own, whatever the text."""

from __future__ import annotations

import json
import re
from contextlib import closing

import psycopg
import pytest
import support
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from keyhaul.config.checkkinds import Where
from keyhaul.errors import ConfigError
from keyhaul.postgres.dsn import Dsn
from keyhaul.quality import checking as quality
from keyhaul.quality import patterns as quality_patterns
from keyhaul.quality.postgres import SAMPLED_FROM_BLOCKS, PostgresSystem
from keyhaul.quoting import quote_text

ATOMS = ["a", "b", "é", "0", "-", " ", "%", "_", r"\.", r"\\", r"\$", "'", "\n", ".", r"\d", r"\w", r"\s", r"\D", r"\W",
         "[ab]", "[^a]", "[a-c0-9]", "[-a]", "[b-]", "[^0-9 ]", "[%_.]", "[0-9]", "[A-Za-z]"]  # fmt: skip
TIMES = ["", "", "", "*", "+", "?", "{0}", "{2}", "{4}", "{5}", "{1,3}", "{4,6}", "{2,}", "{0,2}"]
TEXTS = st.text("ab0é-% _.\\$'\n\t😀٣", max_size=10)

patterns = st.tuples(
    st.sampled_from(["^", "^", "^", ""]),
    st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(TIMES)).map("".join), min_size=1, max_size=5).map(
        "".join
    ),
    st.sampled_from(["$", "$", ""]),
).map("".join)


@st.composite
def questions(draw):
    """A pattern, and texts that match it, nearly match it, or have nothing to do with it."""
    pattern = draw(patterns)
    near = st.from_regex(re.compile(re.sub(r"(?<!\\)\$\Z", r"\\Z", pattern), re.DOTALL))
    near = near.filter(lambda text: "\0" not in text and len(text) < 80)
    changed = st.tuples(near, st.integers(0, 12), st.sampled_from(["", "a", "0", "-", "é", "\n"])).map(
        lambda of: of[0][: of[1]] + of[2] + of[0][of[1] + 1 :]
    )
    return pattern, draw(st.lists(st.none() | near | changed | TEXTS, min_size=1, max_size=12))


@pytest.fixture(scope="module")
def conn(server):
    uri = support.make_database(server, "patterns")
    with psycopg.connect(uri, autocommit=True) as conn:
        yield conn
    support.drop_database(server, uri)


def answers(conn, pattern, texts):
    condition = quality_patterns.unmatched("t.v", pattern)
    query = f"select not (t.v ~ {quote_text(pattern)}), {condition} from unnest(%s::text[]) as t(v)"
    return conn.execute(query.replace("%", "%%").replace("(%%s", "(%s"), [texts]).fetchall()


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(asked=questions())
@example(asked=(r"^[0-9]{4}-{0}[0-9a-f]{4}$", ["1abcdef0", "12345678", "1234abcd", "1234-abc"]))
@example(asked=(r"^[0-9]{4}-[0-9]{2}$", ["1234-56", "12345-6", "123-456", "1234-5", "1234-567", "1234-5a", "٣234-56"]))
@example(asked=(r"^a [0-9]{4}", ["a 1234", "a 123", "a 12345", "a 123a4", "xa 1234", "b 1234", "a 1234\n"]))
@example(asked=(r"^[ab-]{2}-[ab]{3}$", ["ab-aba", "a--bab", "--abab", "ab-ab-"]))
@example(asked=(r"^[ab]{2}[0-9]{4}$", ["ab1234", "aba123", "a12345"]))
@example(asked=(r"^[0-9]{4}[0-9]{1,2}x$", ["12345x", "1234x", "123456x", "1234567x", "12345"]))
@example(asked=(r"^\w{2}é\w{2}$", ["abéab", "éééab", "aéabé"]))
@example(asked=(r"^[^-]{3}-[^-]{3}$", ["abc-abc", "ab--abc", "abcdabc", "é\n😀-abc"]))
def test_a_cheaper_condition_is_true_for_the_same_texts_as_the_regular_expression(conn, asked):
    pattern, texts = asked
    for text, (plain, cheaper) in zip(texts, answers(conn, pattern, texts), strict=True):
        assert cheaper is plain, (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "condition"),
    [
        ("^order ", """t.v::text collate "C" not like 'order %'"""),
        (r"100%_\.", r"""t.v::text collate "C" not like '%100\%\_.%'"""),
        ("^a..b.*c$", """t.v::text collate "C" not like 'a__b%c'"""),
        (
            "^[0-9]{4}-[0-9]{2}$",
            r"""not (t.v::text collate "C" like '____-__' and t.v ~ '^[0-9]*\-[0-9]*$')""",
        ),
        (
            "^id [0-9a-f]{8}",
            """not (t.v::text collate "C" like 'id ________%' and substr(t.v, 4, 8) ~ '^[0-9a-f]*$')""",
        ),
        (
            "^[A-Z]{4,5}$",
            """not (t.v::text collate "C" like '____%' and (octet_length(t.v) <= 5 or length(t.v) <= 5) and t.v ~ '^[A-Z]*$')""",
        ),
    ],
)
def test_a_simple_pattern_becomes_a_cheaper_condition(pattern, condition):
    assert quality_patterns.unmatched("t.v", pattern) == condition


@pytest.mark.parametrize(
    "pattern",
    ["a|b", "(ab)+", "^a?b$", r"\ma", "a**", "(?i)a", "***=a", "[[:alpha:]]", r"[\d]", "[b-a]{5}", "^[ab]{4}[0-9]{2}$",
     r"^\w{4}_\w{4}$", "^[ab]{4,}x", "a{3,2}", "a{256}", "^[A-z]{4}$", "a$b", "a^b", r"\1", "x{", "^[ab]{3}$"],
)  # fmt: skip
def test_any_other_pattern_is_left_to_the_server(pattern):
    assert quality_patterns.unmatched("t.v", pattern) == f"not (t.v ~ {quote_text(pattern)})"


# --- through etl check ------------------------------------------------------------------------------

ROWS = f"""
create table public.many (id int primary key, code text, name varchar(40) {{collation}}, filler text, other text);
alter table public.many alter filler set storage plain;
insert into public.many
select i, case when i % 97 = 0 then null when i % 31 = 0 then 'ab' || i % 7 when i % 13 = 0 then 'x' || i else 'AB' || i % 5 end,
       case when i % 11 = 0 then 'É' || i % 3 when i % 7 = 0 then 'o-' || i else 'É' || repeat('é', i % 4) end, repeat('.', 3500), 'o' || i
  from generate_series(1, {SAMPLED_FROM_BLOCKS * 2 + 100}) as i;
"""


def check_of_many(uri, tmp_path, **pattern_of):
    path = tmp_path / "checks.yaml"
    listed = [{"name": c, "matches": {"column": c, "pattern": pattern}} for c, pattern in pattern_of.items()]
    path.write_text(json.dumps({"source": {"uri": uri, "table": "public.many"}, "checks": listed}))
    return quality.check(path).verdicts


@pytest.mark.parametrize(("where", "collation"), [("server", ""), ("server_icu", 'collate "en-x-icu"')])
def test_usual_values_are_looked_up_and_every_other_is_judged_by_itself(request, database, tmp_path, where, collation):
    uri = database(request.getfixturevalue(where))
    asked = {"code": "^[A-Z]{2}[0-9]$", "name": r"^(\W|o)"}
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute(ROWS.format(collation=collation))
        expected = [
            conn.execute(f"select count(*) filter (where not {column} ~ %s) from public.many", [pattern]).fetchone()[0]
            for column, pattern in asked.items()
        ]
    with closing(
        PostgresSystem(Dsn.parse(uri, "uri"), Where(uri=uri, table="public.many"), key=(), timeout_seconds=60)
    ) as system:
        assert all("tablesample" in system.unmatched(column, pattern) for column, pattern in asked.items())
        assert "tablesample" not in system.unmatched("code", "^A")
        assert "tablesample" not in system.unmatched("other", "^[a-z]+$")
    assert [verdict.failures for verdict in check_of_many(uri, tmp_path, **asked)] == expected
    assert min(expected) > 500


def test_a_collation_without_regular_expressions_is_refused_whatever_the_pattern(server_icu, database, tmp_path):
    uri = database(server_icu)
    with psycopg.connect(uri, autocommit=True) as conn:
        conn.execute("create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        conn.execute("create table public.many (code text collate ci)")
        conn.execute("insert into public.many values ('a'), ('A')")
    for pattern in ("^a", "^[ab]{5}$", "a|b"):
        with pytest.raises(ConfigError, match=r"check code: .*nondeterministic collations"):
            check_of_many(uri, tmp_path, code=pattern)
