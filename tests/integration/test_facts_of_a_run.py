"""What is told of a run: one list of its facts and one of its balance's terms, read by all that tell of it."""

import io
import re
from dataclasses import fields

import psycopg
import pytest
from moving import move, rows, run_sql

import keyhaul
from keyhaul.history.frames import CHUNKS, RUNS
from keyhaul.ledger import reading
from keyhaul.ledger.reading import RunRow
from keyhaul.model import TERMS, Counts, Timings
from keyhaul.pages import report as page
from keyhaul.printing.lookback import print_run
from keyhaul.printing.reporting import print_report


@pytest.fixture
def upserted(databases):
    """A run that read 10 rows: 4 were there and differ, 3 were there, 3 are new."""
    run_sql(
        databases[0],
        "create table public.t (id int primary key, v int)",
        "insert into public.t select g, g from generate_series(1, 10) g",
    )
    run_sql(
        databases[1],
        "create table public.t (id int primary key, v int)",
        "insert into public.t select g, case when g > 4 then g else 0 end from generate_series(1, 7) g",
    )
    return databases[1], move(databases, "public.t", mode="upsert")


def printed(uri, run_id):
    stream = io.StringIO()
    with psycopg.connect(uri) as conn:
        print_run(reading.show_run(conn, "keyhaul", run_id), stream)
    return stream.getvalue()


def written(uri, run_id):
    with psycopg.connect(uri, autocommit=True) as conn:
        return page.page(page.read_findings(conn, "keyhaul", run_id, show_values=False))


def test_the_report_and_show_tell_alike_how_many_rows_were_inserted_and_updated(upserted):
    uri, report = upserted
    stream = io.StringIO()
    print_report(report, stream)
    words = ("read", "inserted", "updated", *TERMS)
    for text in (stream.getvalue(), printed(uri, report.run_id)):
        told = dict(re.findall(rf"^ +({'|'.join(words)}) +(\d+)$", text, re.MULTILINE))
        assert told == {
            "read": "10", "loaded": "7", "inserted": "3", "updated": "4", "unchanged": "3",
            "duplicate": "0", "filtered": "0", "quarantined": "0",
        }  # fmt: skip


def test_the_frames_tell_how_many_rows_were_inserted_and_updated(upserted):
    uri, report = upserted
    wanted = [(10, 7, 3, 4, 3)]
    names = ["rows_read", "rows_loaded", "rows_inserted", "rows_updated", "rows_unchanged"]
    assert keyhaul.runs(uri).select(names).rows() == wanted
    assert keyhaul.chunks(report.run_id, target=uri).select(names).sum().rows() == wanted


def test_the_page_tells_how_many_rows_were_inserted_and_updated(upserted):
    assert "Of the rows loaded 3 inserted, 4 updated" in written(upserted[0], upserted[1].run_id)


def test_each_term_of_the_balance_is_a_column_of_the_ledger_and_of_both_frames(upserted):
    uri, _ = upserted
    asked = (
        "select column_name from information_schema.columns where table_name = 'chunks' and column_name like 'rows%'"
    )
    columns = {name for (name,) in rows(uri, asked)} - {"rows_there"}
    assert columns == {f"rows_{term.name}" for term in fields(Counts)}
    assert columns <= RUNS.keys() & CHUNKS.keys()
    assert {step.name for step in fields(Timings)} <= RUNS.keys() & CHUNKS.keys()


def test_a_fact_with_a_word_stands_in_show_and_on_the_page_as_it_is_in_the_ledger(upserted):
    uri, report = upserted
    words = {fact.metadata["shown"] for fact in fields(RunRow)} - {""}
    assert words == {"job", "replay of", "source", "target", "workers", "late passes", "late rows", "stopped"}
    run_sql(uri, "update keyhaul.runs set stop_reason = 'told <by> the test', replay_of = 'another'")
    for word, value in {"stopped": "told <by> the test", "replay of": "another"}.items():
        assert [line.split(word)[1].strip() for line in printed(uri, report.run_id).splitlines() if word in line] == [
            value
        ]
    assert "told &lt;by&gt; the test" in written(uri, report.run_id)
