"""What every kind of source promises behind the seam; a further kind is one more fixture."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict

import pytest
from support import database_of

from keyhaul.config.job import load_job
from keyhaul.postgres.dsn import Dsn
from keyhaul.sources.kinds import join, open_source
from keyhaul.sources.source import Opening, Ticket

ROWS = "create table public.t (id int primary key, v text); insert into t select n, 'v' || n from generate_series(1, 250) n"


def read_elsewhere(ticket, chunks, answers):
    """What another process makes of a ticket that went through JSON."""
    reader = join(Ticket(**json.loads(ticket)), os.environ)
    answers.put([reader.read(chunk).frame.rows() for chunk in chunks])
    reader.close()


@pytest.fixture(params=["postgres"])
def source(request, server, monkeypatch):
    assert request.param == "postgres"
    with database_of(server, "seam", ROWS) as uri:
        monkeypatch.setenv("ETL_SOURCE_URL", uri)
        job = load_job(None, {"source": uri, "target": uri, "table": "public.t", "key": "id", "into": "other"}, {})
        opened = open_source(Opening(job=job, run_id="r", dsn=Dsn.parse(uri, "test")))
        yield opened
        opened.close()


def test_each_record_is_in_exactly_one_chunk_and_the_same_when_it_is_read_again(source):
    reader = source.open(1, ["id", "v"])
    batches = [reader.read(chunk) for chunk in source.plan(40).chunks]
    assert sorted(row for batch in batches for row in batch.frame.rows()) == [(n, f"v{n}") for n in range(1, 251)]
    again = [reader.read(chunk).frame.rows() for chunk in source.plan(40).chunks]
    assert again == [batch.frame.rows() for batch in batches]
    types = {name: source.describe().routes[name].dtype for name in ("id", "v")}
    assert all(dict(batch.frame.schema) == types and not batch.rejected.height for batch in batches)
    reader.close()


def test_another_process_reads_the_same_from_plain_data_without_secrets(source):
    ticket, chunks = json.dumps(asdict(source.ticket(["id", "v"]))), source.plan(100).chunks
    password = Dsn.parse(os.environ["ETL_SOURCE_URL"], "test").password
    assert password
    assert password not in ticket
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=read_elsewhere, args=(ticket, chunks, answers))
    process.start()
    found = answers.get(timeout=60)
    process.join()
    reader = source.open(1, ["id", "v"])
    assert found == [reader.read(chunk).frame.rows() for chunk in chunks]
    reader.close()
