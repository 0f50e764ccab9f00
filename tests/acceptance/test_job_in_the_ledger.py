"""A run that is named alone: its ledger has the job, and only addresses are said; what is given must be the run's."""

from __future__ import annotations

import pytest
from aftermath import fetch, value

SOURCE = """
create table public.t (id int primary key, grp int, amount numeric(8,2), name text);
insert into public.t select g, g / 2, g - 5, case when g % 10 = 0 then 'skip' else 'n' || g end from generate_series(1, 100) g;
"""
JOB = """
job: nightly
source: {uri: "${FROM}", table: public.t}
key: id
chunk: 30
transform:
  - set: {half: "id / 2", tag: "'${TAG}'"}
  - where: "name <> 'skip'"
rules: {positive: "amount > 0", not_null: [name]}
dedup: {on: grp, order_by: id}
target: {uri: "${INTO}", table: public.copy, mode: skip, conflict: grp}
"""
FLAGS = (
    *("--table", "public.t", "--key", "id", "--into", "public.copy", "--set", "half = id / 2"),
    *(
        "--where",
        "name <> 'skip'",
        "--rule",
        "positive: amount > 0",
        "--mode",
        "skip",
        "--conflict",
        "grp",
        "--dedup",
        "grp",
        "--order-by",
        "id",
    ),
)
CREATE = (
    "create table public.copy (id int primary key, grp int unique, amount numeric(8,2), name text, half int, tag text)"
)


@pytest.fixture
def ends(databases):
    fetch(databases[0], SOURCE)
    fetch(databases[1], CREATE)
    return databases


def addresses(ends):
    return ("--source", ends[0], "--target", ends[1])


def variables(ends, **more):
    return {"ETL_SOURCE_URL": ends[0], "ETL_TARGET_URL": ends[1], **more}


def mend(ends):
    fetch(ends[0], "update public.t set amount = 1 where amount <= 0")


def copied(ends):
    return fetch(
        ends[1],
        "select count(*), count(distinct grp), min(half), count(*) filter (where name = 'skip') from public.copy",
    )


@pytest.fixture
def by_file(etl, ends, tmp_path):
    """A job with set, where, rules and dedup, by a file with variables, that has left records out."""
    (tmp_path / "nightly.yaml").write_text(JOB)
    env = {"FROM": ends[0], "INTO": ends[1], "TAG": "of tonight"}
    done = etl("run", str(tmp_path / "nightly.yaml"), env=env)
    assert done.returncode == 1, done.stderr
    return value(ends[1], "select run_id from keyhaul.runs")


@pytest.fixture
def by_flags(etl, ends):
    assert etl("chunked", *FLAGS, *addresses(ends)).returncode == 1
    return value(ends[1], "select run_id from keyhaul.runs")


@pytest.fixture
def apart(etl, ends):
    """The same with a dedup that each chunk decides alone, which a comparison can follow."""
    fetch(ends[1], "alter table public.copy drop constraint copy_grp_key")
    flags = (*FLAGS[: FLAGS.index("--mode")], "--dedup", "id", "--order-by", "amount")
    assert etl("chunked", *flags, *addresses(ends)).returncode == 1
    return value(ends[1], "select run_id from keyhaul.runs")


def test_verify_and_replay_need_the_addresses_alone(etl, ends, apart):
    done = etl("verify", "last", *addresses(ends))
    assert (done.returncode, done.stdout.splitlines()[-1].endswith(": equal")) == (0, True), done.stdout + done.stderr
    mend(ends)
    done = etl("replay", "last", *addresses(ends))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"0 quarantined records of run {apart} are left" in done.stdout
    assert copied(ends) == [(90, 50, 0, 0)]
    assert etl("verify", "last", *addresses(ends)).returncode == 0


def test_the_addresses_may_be_variables_and_other_variables_keep_their_names(etl, ends, by_file):
    given = value(ends[1], "select given from keyhaul.runs")
    assert "${TAG}" in given
    assert "of tonight" not in given
    assert ends[0] not in given
    mend(ends)
    lacks = etl("replay", by_file, env=variables(ends))
    assert (lacks.returncode, "${TAG}, which is not set" in lacks.stderr) == (2, True)
    other = etl("replay", by_file, env=variables(ends, TAG="of today"))
    assert other.returncode == 2, "what a variable puts in is a part of the job"
    done = etl("replay", by_file, env=variables(ends, TAG="of tonight"))
    assert done.returncode == 0, done.stderr
    assert value(ends[1], "select string_agg(distinct tag, ',') from public.copy") == "of tonight"
    assert copied(ends) == [(50, 50, 0, 0)]


def without(name):
    place = FLAGS.index(name)
    return (*FLAGS[:place], *FLAGS[place + 2 :])


WHOLE = {
    "without --set": (without("--set"), "transform[0].set.half"),
    "without --where": (without("--where"), "transform[1].where"),
    "without --rule": (without("--rule"), "rules.positive"),
    "without --dedup": ((*FLAGS[:-4],), "dedup.on"),
    "with another --set": ((*without("--set"), "--set", "half = id / 3"), "transform[0].set.half"),
    "with another --where": ((*without("--where"), "--where", "id > 0"), "transform[1].where"),
    "with another --dedup": ((*FLAGS[:-4], "--dedup", "name", "--order-by", "id"), "dedup.on"),
}


@pytest.mark.parametrize(("flags", "named"), WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("command", ["replay", "verify"])
def test_a_step_that_is_missing_or_different_is_refused_by_name(etl, ends, by_flags, command, flags, named):
    words = [("--check" if word == "--rule" and command == "replay" else word) for word in flags]
    mend(ends)
    done = etl(command, "last", *words, *addresses(ends))
    assert done.returncode == 2, done.stdout
    assert f"{command} run {by_flags}: " in done.stderr
    assert named in done.stderr
    assert "--changed" in done.stderr
    assert copied(ends)[0][0] == 47, "nothing was loaded"


def test_a_step_that_is_given_alone_takes_the_place_of_the_runs_and_must_be_the_same(etl, ends, by_flags):
    mend(ends)
    done = etl("replay", "last", *addresses(ends), "--check", "positive: amount > 3")
    assert (done.returncode, "rules.positive" in done.stderr) == (2, True)
    done = etl("replay", "last", *addresses(ends), "--check", "positive: amount > 0", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert copied(ends) == [(50, 50, 0, 0)]


def test_a_change_that_is_meant_is_made_and_said_and_is_the_job_from_then_on(etl, ends, apart):
    mended = etl("replay", "last", *addresses(ends), "--check", "positive: amount > -9", "--changed")
    assert mended.returncode == 0, mended.stderr
    assert "this job differs from that of run" in mended.stdout + mended.stderr
    assert copied(ends) == [(90, 50, 0, 0)]
    assert etl("verify", "last", *addresses(ends)).returncode == 0, "compared through the mended rule"
    meant = etl("verify", "last", *addresses(ends), "--rule", "positive: amount > 50", "--changed")
    assert (meant.returncode, "the job given is another one" in meant.stderr) == (1, True)


def test_an_unfinished_run_is_gone_on_with_by_its_name(etl, ends):
    fetch(
        ends[1],
        "create function public.no() returns trigger language plpgsql as"
        " $$ begin if new.id > 60 then raise exception 'not now' using errcode = '53100'; end if; return new; end $$;"
        " create trigger no before insert on public.copy for each row execute function public.no()",
    )
    stopped = etl("chunked", *FLAGS, *addresses(ends), "--chunk", "30", "--stop-on-error", "--workers", "1")
    run_id = value(ends[1], "select run_id from keyhaul.runs")
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    assert f"etl resume {run_id} --source" in stopped.stdout
    assert "--set" not in stopped.stdout
    fetch(ends[1], "drop trigger no on public.copy")
    wrong = etl("resume", "20200101T000000-abcd", *addresses(ends))
    assert (wrong.returncode, "is not in the ledger" in wrong.stderr) == (2, True)
    done = etl("resume", "last", *addresses(ends))
    assert done.returncode == 1, done.stderr
    assert fetch(ends[1], "select run_id, status, sittings from keyhaul.runs") == [(run_id, "done", 2)]
    assert copied(ends)[0][0] == 47
    again = etl("resume", run_id, *addresses(ends))
    assert (again.returncode, f"resume run {run_id}: it is done or was given up" in again.stderr) == (2, True)
    assert value(ends[1], "select count(*) from keyhaul.runs") == 1


def test_what_is_printed_next_is_the_runs_name_and_the_addresses(etl, ends):
    done = etl("chunked", *FLAGS, *addresses(ends))
    run_id = value(ends[1], "select run_id from keyhaul.runs")
    (line,) = [line for line in done.stdout.splitlines() if "etl replay" in line]
    words = line.split("#")[0].split()
    assert words[:4] == ["etl", "replay", run_id, "--source"]
    assert (words[5], len(words)) == ("--target", 7)
    env = variables(ends)
    done = etl("chunked", *FLAGS, "--fresh", "--mode", "skip", env=env)
    newest = value(ends[1], "select run_id from keyhaul.runs order by started_at desc limit 1")
    assert f"etl replay {newest}\n" in f"{done.stdout.split(' #')[0]}\n" or f"etl replay {newest} " in done.stdout
    assert "--source" not in done.stdout


def test_a_secret_that_was_written_out_is_not_in_the_ledger_and_the_job_is_asked_for(etl, ends):
    secret = ends[0].split("//")[1].split(":")[1].split("@")[0]
    query = f"select id, '{secret}' as name from public.t"
    flags = ("--query", query, "--key", "id", "--into", "public.copy", "--mode", "skip", "--rule", "some: id > 5")
    assert etl("chunked", *flags, *addresses(ends)).returncode == 1
    run_id = value(ends[1], "select run_id from keyhaul.runs")
    assert secret not in value(ends[1], "select given from keyhaul.runs")
    done = etl("replay", "last", *addresses(ends))
    assert done.returncode == 2
    assert f"replay run {run_id}: a secret in its source.query is hidden in the ledger" in done.stderr


def test_a_source_elsewhere_must_be_said(etl, ends, by_flags):
    done = etl("replay", by_flags, "--target", ends[1])
    assert done.returncode == 2
    assert "the ledger keeps no connection string. Give --source URI or ETL_SOURCE_URL" in done.stderr
