"""A mistake costs one message: what is wrong and what to change, exit code 2, within 3 seconds, nothing created."""

from __future__ import annotations

import base64
import re
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import quote

import psycopg
import pytest
import support
from aftermath import contents, files_in
from psycopg import sql

SECONDS = 10.0
ROLE = "mover"
PASSWORD = "Zebra@Quartz/Violet#Mango%Lemon"

SOURCE = """
create table public.items (id bigint primary key, name text, amount numeric(12,2), made date, doc json, "o'clock" int);
insert into public.items select g, 'name ' || g, g / 4.0, date '2020-01-01' + g, '{}', g from generate_series(1, 10) g;
"""
TARGET = """
create table public.filled (id bigint primary key, name text, amount numeric(12,2), made date, doc json, "o'clock" int);
insert into public.filled values (1);
create table public.narrow (id bigint primary key, name text);
create table public.wide (id bigint primary key, name text, amount numeric(12,2), made date, doc json, "o'clock" int,
                          owner text not null);
create table public.crossed (id bigint primary key, name text, amount uuid, made bigint, doc json, "o'clock" int);
create view public.seen as select 1::bigint as id;
"""


@dataclass(frozen=True)
class Mistake:
    """One wrong command: the words that its message must have, and how it is made.

    Attributes:
        flags: replace the right ones of the same name; None takes one away.
        file: a job file's text.
    """

    name: str
    says: tuple[str, ...]
    flags: dict[str, str | None] = field(default_factory=dict)
    file: str = ""
    env: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()


FILE = """\
job: items
source: {uri: "${SOURCE}", table: public.items}
key: id
target: {uri: "${TARGET}", table: public.items}
"""

MISTAKES = [
    Mistake("unknown column in the key", ("no column idd", "expected one of id, name", "--key"), {"--key": "idd"}),
    Mistake("no key", ("--key", "ETL_KEY"), {"--key": None}),
    Mistake("key without an order", ("doc json", "no order", "Choose a key"), {"--key": "doc"}),
    Mistake("one key column twice", ("--key",), {"--key": "id,id"}),
    Mistake("unknown column in a rule", ("--rule", "amont", "amount"), {"--rule": "positive: amont > 0"}),
    Mistake("rule that does not parse", ("--rule", "positive", "syntax error"), {"--rule": "positive: amount >"}),
    Mistake("rule that is a number", ("positive", "expected true or false"), {"--rule": "positive: amount + 1"}),
    Mistake("rule without a name", ("--rule", "'name: condition'"), {"--rule": "amount"}),
    Mistake("unknown column in set", ("--set", "no column amont", "expected one of id"), {"--set": "x = amont * 2"}),
    Mistake("set that does not parse", ("--set", "expected one Polars SQL expression"), {"--set": "x = amount +* 2"}),
    Mistake("set without a column", ("--set", "'column = expression'"), {"--set": "amount"}),
    Mistake("unknown column in where", ("--where", "no column yeer"), {"--where": "yeer = 2013"}),
    Mistake("where that is not a condition", ("--where", "expected true or false"), {"--where": "id + 1"}),
    Mistake("types that do not fit", ("--where",), {"--where": "name > made"}),
    Mistake("unknown column in dedup", ("no column idd", "expected one of id"), {"--dedup": "idd"}),
    Mistake("unknown column in order-by", ("no column maid", "--order-by"), {"--dedup": "id", "--order-by": "maid"}),
    Mistake(
        "no folder for the rows of a dedup without the key",
        ("use work folder /dev/null/work", "--work-dir"),
        {"--dedup": "name", "--work-dir": "/dev/null/work"},
    ),
    Mistake("missing table", ("public.itemz", "is not there", "public.items", "--table"), {"--table": "public.itemz"}),
    Mistake("query that does not run", ("source.query", "itemz"), {"--table": None, "--query": "select * from itemz"}),
    Mistake(
        "query without a target table", ("--into",), {"--table": None, "--query": "select 1 as id", "--into": None}
    ),
    Mistake("neither table nor query", ("--table or --query",), {"--table": None}),
    Mistake("chunk 0", ("--chunk", "got 0", "a whole number from 1"), {"--chunk": "0"}),
    Mistake("chunk that is no number", ("--chunk", "a whole number from 1"), {"--chunk": "many"}),
    Mistake("no workers", ("--workers", "from 1 to 1024"), {"--workers": "0"}),
    Mistake("job name with a quote", ("--job", "letters, digits"), {"--job": "it's"}),
    Mistake("unknown reader", ("--reader", "connectorx or adbc"), {"--reader": "odbc"}),
    Mistake("allowance that is no number", ("--allow-quarantined", "5%"), {"--allow-quarantined": "some"}),
    Mistake("unknown flag", ("No such option", "--chunk"), {"--chunck": "5"}),
    Mistake("target is a view", ("public.seen", "not a table", "--into"), {"--into": "public.seen"}),
    Mistake("target holds rows and no mode", ("already holds rows", "--mode append"), {"--into": "public.filled"}),
    Mistake(
        "columns that the target lacks", ("narrow.amount", "narrow.made", "no such column"), {"--into": "public.narrow"}
    ),
    Mistake("column that nothing feeds", ("public.wide.owner", "NOT NULL", "default"), {"--into": "public.wide"}),
    Mistake(
        "types that cannot become the target's", ("crossed.amount", "uuid", "bigint"), {"--into": "public.crossed"}
    ),
    Mistake("missing job file", ("nothere.yaml",), words=("nothere.yaml",)),
    Mistake("a typo in YAML", ("job.yaml line 5: chunck", "expected chunk"), file=FILE + "chunck: 5\n"),
    Mistake(
        "a typo in a part",
        ("job.yaml line 5: dedup.keeps", "expected keep"),
        file=FILE + "dedup: {on: [id], keeps: last}\n",
    ),
    Mistake("YAML that does not parse", ("job.yaml line 4", "expected YAML"), file=FILE.replace("key: id", "key: [id")),
    Mistake("a key twice", ("job.yaml line 5", "twice", "line 1"), file=FILE + "job: other\n"),
    Mistake("an anchor", ("job.yaml line 5", "anchor", "Remove it"), file=FILE + "dedup: {on: &a [id]}\n"),
    Mistake(
        "a variable that is not set", ("job.yaml line 2", "SAUCE", "Set SAUCE"), file=FILE.replace("SOURCE", "SAUCE")
    ),
    Mistake("a chunk of 0 in the file", ("job.yaml line 5", "chunk", "got 0"), file=FILE + "chunk: 0\n"),
    Mistake("a name with a quote in the file", ("job.yaml line 1", "job"), file=FILE.replace("items", '"it\'s"', 1)),
    Mistake(
        "Python without permission",
        ("job.yaml line 6", "steps:clean", "--allow-python"),
        file=FILE + 'transform:\n  - python: "steps:clean"\n',
    ),
    Mistake(
        "an unknown column in a step of the file",
        ("job.yaml line 7", "no column amont"),
        file=FILE + 'transform:\n  - set: {name: "upper(name)"}\n  - where: "amont > 1"\n',
    ),
    Mistake(
        "an unknown column in a rule of the file",
        ("job.yaml line 6", "amont"),
        file=FILE + 'rules:\n  positive: "amont > 1"\n',
    ),
    Mistake("an unknown column in not_null", ("job.yaml line 6", "amont"), file=FILE + "rules:\n  not_null: [amont]\n"),
    Mistake("the target's database is not there", ("no such database", "--target"), {"--target": "{target}_nowhere"}),
    Mistake("not a URI", ("--source", "not a URI", "postgresql://"), {"--source": "items"}),
    Mistake("another scheme", ("--source", "mysql", "postgresql://"), {"--source": "mysql://127.0.0.1/items"}),
    Mistake("a source that is a function's name", ("is not there",), {"--table": "pg_sleep"}),
]


@pytest.fixture(scope="module")
def ends(server):
    """A source and a target that no case may change."""
    source, target = support.make_database(server, "source"), support.make_database(server, "target")
    for uri, statements in ((source, SOURCE), (target, TARGET)):
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute(statements)
    yield source, target
    for uri in (source, target):
        support.drop_database(server, uri)


def refused(etl, target, args, *, env=None, cwd=None, seconds=SECONDS):
    """Run a wrong command; assert what holds for every mistake, and return its message."""
    before = contents(target)
    results = []
    for _ in range(3):  # a machine that is busy with something else may take longer once
        started = time.monotonic()
        result = etl(*args, env=env, cwd=cwd, timeout_seconds=20)
        results.append(time.monotonic() - started)
        if results[-1] < seconds:
            break
    assert result.returncode == 2, result.stdout + result.stderr
    assert min(results) < seconds
    assert "Traceback" not in result.stderr + result.stdout
    assert result.stdout == ""
    assert len(re.findall(r"(?mi)^error: ", result.stderr)) >= 1
    assert contents(target) == before
    return result.stderr


def command(flags):
    return ["chunked", *(f"{name}={text}" for name, text in flags.items() if text is not None)]


@pytest.mark.thin(3)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_gets_one_message_and_changes_nothing(etl, ends, tmp_path, mistake):
    source, target = ends
    if mistake.file:
        (tmp_path / "job.yaml").write_text(mistake.file, encoding="utf-8")
        args = ["run", "job.yaml"]
    else:
        right = {"--source": source, "--target": target, "--table": "public.items", "--key": "id"}
        if "--query" in mistake.flags and "--into" not in mistake.flags:
            right["--into"] = "public.items"
        given = {name: text and text.replace("{target}", target) for name, text in mistake.flags.items()}
        args = [*command(right | given), *mistake.words]
    before = files_in(tmp_path)
    message = refused(etl, target, args, env={"SOURCE": source, "TARGET": target}, cwd=tmp_path)
    for words in mistake.says:
        assert words in message
    lines = [line for line in message.splitlines() if line.lower().startswith("error: ")]
    # One message; a mapping that does not fit names every column at once, each on its line.
    assert len(lines) == 1 or all(line.startswith("error: write public.") for line in lines), message
    assert files_in(tmp_path) == before
    for uri in ends:
        assert str(psycopg.conninfo.conninfo_to_dict(uri)["password"]) not in message


def test_all_mistakes_of_a_job_file_are_told_at_once(etl, ends, tmp_path):
    text = FILE.replace("key:", "kee:") + "chunk: 0\nrules:\n  positive: 5\n"
    (tmp_path / "job.yaml").write_text(text, encoding="utf-8")
    message = refused(etl, ends[1], ["run", "job.yaml"], env={"SOURCE": ends[0], "TARGET": ends[1]}, cwd=tmp_path)
    for line in ("job.yaml line 3: kee", "job.yaml line 5: chunk", "job.yaml line 7: rules.positive"):
        assert message.count(f"error: {line}") == 1


# --- servers and passwords -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def login(server, ends):
    """``login(end, secret)`` is the URI of the source (0) or target (1) for a role with a difficult password."""
    with psycopg.connect(server.uri("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("create role {} login superuser password {}").format(sql.Identifier(ROLE), PASSWORD))

    def make(end, secret):
        name = psycopg.conninfo.conninfo_to_dict(ends[end])["dbname"]
        return f"postgresql://{ROLE}:{secret}@127.0.0.1:{server.port}/{name}"

    yield make
    with psycopg.connect(server.uri("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("drop role {}").format(sql.Identifier(ROLE)))


def assert_secret(text, password):
    """Assert that neither the password nor a recognisable part of it, in any encoding, is in `text`."""
    forms = [password, quote(password, safe=""), quote(password, safe="").lower(), quote(password)]
    for data in (password, f"{ROLE}:{password}"):
        forms += [base64.b64encode(data.encode()).decode(), base64.urlsafe_b64encode(data.encode()).decode()]
    forms += re.findall(r"[A-Za-z]{4,}", password)
    assert [form for form in forms if form in text] == []


@pytest.mark.parametrize("end", [0, 1], ids=["source", "target"])
@pytest.mark.parametrize("wrong", ["Kiwi", "Kiwi@Grape/Melon#Peach%Olive"])
def test_a_wrong_password_is_told_without_it(etl, ends, login, end, wrong):
    uris = [*ends]
    uris[end] = login(end, quote(wrong, safe=""))
    flags = {"--source": uris[0], "--target": uris[1], "--table": "public.items", "--key": "id"}
    message = refused(etl, ends[1], command(flags))
    assert "refuses the user or password" in message
    assert ("--source", "--target")[end] in message
    assert_secret(message, wrong)


@pytest.mark.thin(2)
@pytest.mark.parametrize("raw", ["Zebra@Quartz", "Zebra/Quartz", "Zebra#Quartz", "Zebra%Quartz", PASSWORD])
def test_a_password_that_is_not_encoded_is_told_how_to_be(etl, ends, login, raw):
    for name, end in (("--source", 0), ("--target", 1)):
        flags = {"--source": ends[0], "--target": ends[1], "--table": "public.items", "--key": "id"}
        message = refused(etl, ends[1], command(flags | {name: login(end, raw)}))
        assert name in message
        assert "Percent-encode it" in message
        assert_secret(message, raw)


@pytest.mark.parametrize("drivers", [("connectorx", "copy"), ("adbc", "adbc")], ids="-".join)
def test_an_encoded_password_works_and_is_told_nowhere(etl, server, database, ends, login, drivers):
    target = database(server, "secret")
    into = login(1, quote(PASSWORD, safe="")).rpartition("/")[0] + "/" + target.rpartition("/")[2]
    env = {"ETL_SOURCE_URL": login(0, quote(PASSWORD, safe="")), "ETL_TARGET_URL": into}
    reader, loader = drivers
    rules = ("--rule", "early: id < 9", "--rule", "text: amount / (id - id) > 1 or name is null or true")
    run = etl(
        *("chunked", "--table", "public.items", "--key", "id", "--chunk", "3", "--reader", reader, "--loader", loader),
        *rules,
        env=env,
    )
    assert run.returncode == 1, run.stderr
    assert "8 of 10 rows" in run.stdout
    back = [etl(*words, env=env) for words in (["runs"], ["show", "last"], ["quarantine", "last"])]
    assert [result.returncode for result in back] == [0, 0, 0]
    plan = etl("plan", "--table", "public.items", "--key", "id", "--into", "public.others", env=env)
    assert plan.returncode == 0, plan.stderr
    with psycopg.connect(target) as connection:
        tables = ("runs", "chunks", "quarantine")
        rows = [
            row for name in tables for row in connection.execute(f"select t::text from keyhaul.{name} t").fetchall()
        ]
    for text in (run.stdout + run.stderr, plan.stdout, *(result.stdout + result.stderr for result in back), str(rows)):
        assert_secret(text, PASSWORD)


def test_a_password_after_the_question_mark_is_not_in_the_next_command(etl, ends, login, server, database):
    target = database(server, "secret")
    into = login(1, "").replace(f"{ROLE}:@", "").rpartition("/")[0] + "/" + target.rpartition("/")[2]
    into += f"?user={ROLE}&password={quote(PASSWORD, safe='')}"
    args = ("--source", ends[0], "--target", into, "--table", "public.items", "--key", "id", "--rule", "early: id < 9")
    for spelled in (args, tuple(f"{name}={text}" for name, text in zip(args[::2], args[1::2], strict=True))):
        run = etl("chunked", *spelled, "--fresh", env={"ETL_MODE": "append", "ETL_JOB": f"job{len(spelled)}"})
        assert run.returncode in {1, 3}, run.stderr
        assert "Next: etl" in run.stdout
        assert_secret(run.stdout + run.stderr, PASSWORD)


def test_a_refused_port_is_told_with_the_flag_to_change(etl, ends):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"postgresql://{ROLE}:Kiwi@127.0.0.1:{unused.getsockname()[1]}/items"
        for name in ("--source", "--target"):
            flags = {"--source": ends[0], "--target": ends[1], "--table": "public.items", "--key": "id"} | {
                name: nowhere
            }
            message = refused(etl, ends[1], command(flags))
            assert "nothing listens there" in message
            assert name in message
            assert_secret(message, "Kiwi")


def test_a_host_that_does_not_answer_is_told_within_the_time(etl, ends):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nowhere = f"postgresql://{ROLE}:Kiwi@127.0.0.1:{silent.getsockname()[1]}/items"
        flags = {"--source": nowhere, "--target": ends[1], "--table": "public.items", "--key": "id"}
        # 2 s of waiting, the least that libpq can, and the start of Python: 2.9 s in all on an idle machine.
        message = refused(etl, ends[1], command(flags), seconds=SECONDS + 2)
    assert "no answer within 2 s" in message
    assert_secret(message, "Kiwi")


def test_an_unknown_host_is_told_with_the_flag_to_change(etl, ends):
    nowhere = f"postgresql://{ROLE}:Kiwi@no-such-host.invalid/items"
    flags = {"--source": ends[0], "--target": nowhere, "--table": "public.items", "--key": "id"}
    message = refused(etl, ends[1], command(flags))
    assert "no-such-host.invalid" in message
    assert "no such host" in message
    assert_secret(message, "Kiwi")


@pytest.mark.parametrize("command_name", ["show", "quarantine"])
def test_looking_back_where_no_run_was_says_so(etl, ends, command_name):
    message = refused(etl, ends[1], [command_name, "last", "--target", ends[1]])
    assert "no run is recorded" in message
    assert "--target" in message


@pytest.mark.parametrize("granted", ["connect", "create"])
def test_a_login_that_may_not_create_ledger_or_table_is_told_and_creates_neither(etl, server, ends, database, granted):
    target = database(server, "closed")
    name = psycopg.conninfo.conninfo_to_dict(target)["dbname"]
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute("create role guest login password 'Kiwi'")
        connection.execute(f'grant {granted} on database "{name}" to guest')
    try:
        into = f"postgresql://guest:Kiwi@127.0.0.1:{server.port}/{name}"
        flags = {"--source": ends[0], "--target": into, "--table": "public.items", "--key": "id"}
        message = refused(etl, target, command(flags))
        assert "permission denied" in message
        assert_secret(message, "Kiwi")
    finally:
        with psycopg.connect(target, autocommit=True) as connection:
            connection.execute("drop owned by guest")
            connection.execute("drop role guest")


def test_a_date_beside_a_text_is_told_with_the_cast(etl, databases):
    with psycopg.connect(databases[0], autocommit=True) as conn:
        conn.execute("create table public.d (id int primary key, day date, note text)")
    command = ["chunked", "--source", databases[0], "--target", databases[1], "--table", "public.d", "--key", "id"]
    where = etl(*command, "--where", "day > note")
    assert where.returncode == 2
    assert "it compares a date or time with a text. Cast the text, as in cast(NAME as date)" in where.stderr
    assert "python" not in where.stderr
    rule = etl(*command, "--rule", "r: day > note")
    assert rule.returncode == 2
    assert "note is text: compare with a text in quotes, or cast it, as in note::date" in rule.stderr
