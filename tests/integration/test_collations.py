"""Text that is equal without being the same: what a clause, a key or a mode takes for equal is what PostgreSQL does."""

import pytest
from moving import job, move, rows, run_sql

from keyhaul.comparison.comparing import verify
from keyhaul.errors import ConfigError, RefusedError

CREATE = (
    "create collation public.ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    "create extension citext schema public",
    "create domain public.address as text collate public.ci",
    "create type public.person as (mail public.address, n int)",
)
TYPES = [
    "text collate public.ci",
    "varchar(40) collate public.ci",
    "char(20) collate public.ci",
    "public.citext",
    "public.address",
]
NESTED = ["text[] collate public.ci", "public.citext[]", "public.person", "public.address[]"]
ICU = ['text collate "de-x-icu"', 'varchar(40) collate "en-US-x-icu"', 'text collate "und-x-icu"']


@pytest.fixture
def ends(server_icu, database):
    made = database(server_icu, "source"), database(server_icu, "target")
    for uri in made:
        run_sql(uri, *CREATE)
    return made


def fill(uri, kind, form="{}"):
    """40 rows of 20 addresses, each in two ways to write it, far from each other; and two without one."""
    value = form.format("case when g <= 20 then 'a' else 'A' end || (g % 20) || '@x.org'")
    run_sql(
        uri,
        f"create table public.t (id int primary key, mail {kind})",
        f"insert into public.t select g, ({value}) from generate_series(1, 40) g",
        "insert into public.t values (41, null), (42, null)",
    )


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        *((kind, {"key": "mail"}) for kind in TYPES),
        *((TYPES[0], flags) for flags in ({}, {"chunk": "7"}, {"key": "mail", "chunk": "5"})),
    ],
)
def test_copies_by_a_text_that_ignores_case_are_refused_with_what_to_write(ends, kind, flags):
    fill(ends[0], kind)
    for dedup in ("mail", "mail,id"):
        with pytest.raises(RefusedError, match=r"dedup on mail: .*cast\(mail as varchar\)"):
            move(ends, "public.t", dedup=dedup, **flags)
    with pytest.raises(RefusedError, match=r"dedup order_by mail: .*cast\(mail as varchar\)"):
        move(ends, "public.t", dedup="id", order_by="mail")
    assert rows(ends[1], "select to_regclass('public.t')") == [(None,)]
    told = move(ends, "public.t", set=["same = lower(cast(mail as varchar))"], dedup="same", **flags)
    assert told.counts.loaded == 22
    assert rows(ends[1], "select count(distinct mail) from public.t") == [(20,)]


@pytest.mark.parametrize(("kind", "form"), [
    (NESTED[0], "array[{}]"), (NESTED[1], "array[({})::public.citext]"),
    (NESTED[2], "row({}, 1)::public.person"), (NESTED[3], "array[({})::public.address]"),
])  # fmt: skip
def test_copies_by_a_type_with_such_a_text_inside_are_refused(ends, kind, form):
    fill(ends[0], kind, form)
    with pytest.raises(RefusedError, match=r"dedup on mail: .*cast\(mail as varchar\)"):
        move(ends, "public.t", dedup="mail")


@pytest.mark.parametrize("kind", TYPES)
def test_a_comparison_with_a_text_that_ignores_case_is_refused_or_postgresqls(ends, kind):
    fill(ends[0], kind)
    for asked in ("mail = 'a1@x.org'", "mail in ('A1@X.ORG')", "mail < 'B'", "mail between 'a' and 'b'"):
        for flags in ({"where": [asked]}, {"rule": [f"r: {asked}"]}, {"set": [f"c = {asked}"]}):
            with pytest.raises(ConfigError, match=r"mail is .*cast\(mail as varchar\)"):
                move(ends, "public.t", **flags)


@pytest.mark.parametrize("kind", [*TYPES, *ICU])
def test_each_row_of_a_key_under_a_collation_is_in_one_chunk_and_arrives(ends, kind):
    fill(ends[0], kind)
    report = move(ends, "public.t", key="mail", chunk="3")
    assert (report.counts.read, report.counts.loaded, report.counts.balanced) == (42, 42, True)
    assert report.chunks_planned > 4
    everything = "select id, mail::text from public.t order by id"
    assert rows(ends[1], everything) == rows(ends[0], everything)
    assert verify(job(ends, key="mail", chunk="3"), report.run_id).equal


@pytest.mark.parametrize("kind", ICU)
def test_copies_under_a_collation_that_only_sorts_are_told_by_their_bytes(ends, kind):
    fill(ends[0], kind)
    assert move(ends, "public.t", dedup="mail", chunk="7").counts.loaded == 42
    run_sql(ends[0], "update public.t set mail = lower(mail)")
    run_sql(ends[1], "drop table public.t")
    assert move(ends, "public.t", dedup="mail", chunk="7").counts.loaded == 22
    run_sql(ends[1], "drop table public.t")
    assert move(ends, "public.t", key="mail", dedup="mail", chunk="7").counts.loaded == 22


@pytest.mark.parametrize("mode", ["upsert", "skip"])
@pytest.mark.parametrize("kind", TYPES)
def test_the_targets_equality_decides_what_is_there_already(ends, kind, mode):
    fill(ends[0], kind)
    run_sql(ends[1], f"create table public.t (id int, mail {kind} unique)")
    report = move(ends, "public.t", key="mail", mode=mode, conflict="mail", chunk="6")
    assert rows(ends[1], "select count(*), count(distinct mail) from public.t") == [(22, 20)]
    counts = report.counts
    assert (counts.read, counts.quarantined, counts.balanced) == (42, 0, True)
    assert counts.inserted == 22
