"""Random values of the types that readers and loaders like to change, through whole moves: equal as text."""

import json
import os
import random

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from moving import move, rows, run_sql
from support import drop_database, make_database

from keyhaul.config.job import load_job
from keyhaul.control import Control
from keyhaul.errors import RefusedError
from keyhaul.execution.engine import run

VALUES = int(os.environ.get("KEYHAUL_TEST_VALUES", "30000"))
"""Of numerics in each move, and of the other kinds a sixth: about 2 s for each move. A short run sets the variable."""

PAIRS = [("connectorx", "copy"), ("adbc", "adbc")]

few = settings(
    max_examples=1,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # a failing table is told by its differing rows; it need not be made small
    suppress_health_check=list(HealthCheck),
)
seeds = st.integers(0, 2**32).map(random.Random)  # drawing each digit from Hypothesis takes minutes


@pytest.fixture(scope="module")
def ends(server):
    uris = [make_database(server, name) for name in ("random_source", "random_target")]
    yield uris
    for uri in uris:
        drop_database(server, uri)


def differing(databases, columns, values, *, reader, loader):
    """Move rows of texts that the source casts; return the first rows that are not the same afterwards."""
    source, target = databases
    names = [f"c{number}" for number in range(len(columns))]
    texts = ", ".join(f"{name} text" for name in names)
    with psycopg.connect(source, autocommit=True) as conn:
        conn.execute("drop table if exists public.t")
        conn.execute(f"create temp table given (id int, {texts})")
        with conn.cursor().copy(f"copy given (id, {', '.join(names)}) from stdin") as copy:
            for number, row in enumerate(values):
                copy.write_row((number, *row))
        casts = ", ".join(f"{name}::{kind} as {name}" for name, kind in zip(names, columns, strict=True))
        conn.execute(f"create table public.t as select id, {casts} from given")
        conn.execute("alter table public.t add primary key (id)")
    run_sql(target, "drop table if exists public.t")
    report = move(databases, "public.t", reader=reader, loader=loader, chunk=max(100, len(values) // 3))
    assert (report.outcome, report.counts.loaded) == ("done", len(values))
    query = f"select id, {', '.join(f'{name}::text' for name in names)} from public.t order by id"
    pairs = zip(rows(source, query), rows(target, query), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]][:3]


def numeric(rng, digits=60, scale=None):
    """A number of up to `digits` digits with up to 38 decimals, in one of the forms that PostgreSQL reads."""
    kind = rng.random()
    if kind < 0.02:
        return "NaN"
    if kind < 0.03 and scale is None:
        return rng.choice(["Infinity", "-Infinity"])
    count = rng.randint(1, digits)
    after = min(count, rng.randint(0, 38)) if scale is None else min(count, scale)
    text = "".join(rng.choices("0123456789" if rng.random() < 0.8 else "09", k=count))
    sign = rng.choice(["", "-"])
    return sign + (f"{text[: count - after] or '0'}.{text[count - after :]}" if after else text)


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@few
@given(rng=seeds)
def test_numerics_keep_every_digit(ends, reader, loader, rng):
    columns = [
        "numeric",
        "numeric(38,10)",
        "numeric(20,20)",
        "numeric(60,38)",
        "numeric(9,0)",
        "numeric(5,-2)",
        "numeric(2,4)",
    ]
    values = [
        (
            numeric(rng), numeric(rng, 38, 10), "0." + "".join(rng.choices("0123456789", k=20)), numeric(rng, 60, 38), numeric(rng, 9, 0),
            rng.choice(["9999949", "100", "-5000", "0"]), rng.choice(["0.0099", "-0.0001", "0"]),
        )
        for _ in range(VALUES)
    ]  # fmt: skip
    assert differing(ends, columns, values, reader=reader, loader=loader) == []


def text(rng, length=12):
    """Characters of all planes, without NUL and halves of pairs, and some that mean something to a parser."""
    planes = [(1, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    special = "\\\"'\n\r\t\b\f\x01\x7f%{}$,;\u2028\ufeff\ufffd\U0010ffff"
    return "".join(
        rng.choice(special) if rng.random() < 0.2 else chr(rng.randint(*rng.choice(planes)))
        for _ in range(rng.randint(0, length))
    )


def document(rng, depth=0):
    """JSON text with what parsers change: long numbers, keys twice, escapes, blanks."""
    kind = rng.randint(0, 6 if depth < 3 else 3)
    if kind == 0:
        sign, digits = rng.choice(["", "-"]), str(rng.randint(1, 10 ** rng.randint(1, 40)))
        fraction = "." + "".join(rng.choices("0123456789", k=rng.randint(1, 30))) if rng.random() < 0.5 else ""
        return sign + digits + fraction + rng.choice(["", "", "e5", "E-7", "e+300"])
    if kind == 1:
        return rng.choice(["true", "false", "null", "0", "-0", "0.10", "1E400"])
    if kind in {2, 3}:
        return json.dumps(text(rng), ensure_ascii=rng.random() < 0.5)
    blank = rng.choice(["", " ", "\n\t"])
    if kind == 4:
        return "[" + f",{blank}".join(document(rng, depth + 1) for _ in range(rng.randint(0, 4))) + blank + "]"
    keys = [json.dumps(rng.choice(["a", "a", "A", "", "ü", text(rng, 4)])) for _ in range(rng.randint(0, 5))]
    return "{" + f"{blank},".join(f"{key}:{blank}{document(rng, depth + 1)}" for key in keys) + "}"


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@few
@given(rng=seeds)
def test_documents_text_and_bytes_keep_every_character(ends, reader, loader, rng):
    columns = ["json", "jsonb", "text", "varchar(40)", "char(40)", "bytea", "text[]"]
    values = []
    for _ in range(VALUES // 6):
        made = document(rng), text(rng, 40)
        raw = "\\x" + rng.randbytes(rng.randint(0, 30)).hex()
        array = (
            "{" + ",".join('"' + text(rng, 3).replace("\\", "\\\\").replace('"', '\\"') + '"' for _ in range(3)) + "}"
        )
        values.append((made[0], made[0], made[1], text(rng, 40), text(rng, 40), raw, array))
    assert differing(ends, columns, values, reader=reader, loader=loader) == []


def moment(rng):
    """A moment from 4713 BC to 294276, to the microsecond, or an infinity; most in our millennium."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice(["infinity", "-infinity"])
    year = rng.randint(1000, 2999) if kind < 0.6 else rng.randint(1, 294275)
    era = " BC" if kind > 0.8 else ""
    year = year % 4712 + 1 if era else year
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}.{rng.randint(0, 999_999):06}"
    return f"{year:04}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02} {clock}{era}"


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@few
@given(rng=seeds)
def test_moments_of_the_whole_range_keep_every_microsecond(ends, reader, loader, near, rng):
    """`near`: without those for which a chunk must be read again as text."""
    columns = ["timestamp", "timestamptz", "date", "timestamp(3)", "timestamptz(0)", "time", "interval", "tsrange"]
    values = []
    while len(values) < VALUES // 6:
        one = moment(rng)
        if near and ("inf" in one or "BC" in one or len(one) > 26):
            continue
        day = one if "inf" in one else one.split()[0] + (" BC" if "BC" in one else "")
        clock = "24:00" if "inf" in one else one.split()[1]
        span = f"{rng.randint(-(10**6), 10**6)} mons {rng.randint(-(10**6), 10**6)} days {rng.randint(-(10**15), 10**15)} us"
        values.append((one, one, day, one, one, clock, span, f'["{one}",)' if "inf" not in one else "(,)"))
    assert differing(ends, columns, values, reader=reader, loader=loader) == []


# --- timestamps that are looked at -----------------------------------------------------------------

FAR = ("infinity", "-infinity", "0044-03-15 12:00:00 BC", "294276-12-31 23:59:59.999999")


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date"])
@pytest.mark.parametrize(
    "looks", [{"rule": ["late: made > '2000-01-01' or made is null"]}, {"set": ["year = extract(year from made)"]}]
)
def test_only_the_records_whose_value_an_expression_cannot_see_are_set_aside(databases, reader, loader, kind, looks):
    far = [value for value in FAR if kind != "date" or not value.startswith("2942")] + ["5874897-12-31"] * (
        kind == "date"
    )
    near = ["2024-02-29 12:34:56.789012", "2000-01-02", "9999-12-31", None]
    values = far + near
    literals = ", ".join(
        f"({n}, {'null' if v is None else repr(v)}, {repr(v) if v else 'null'})" for n, v in enumerate(values)
    )
    run_sql(
        databases[0],
        f"create table public.t (id int primary key, made {kind}, other {kind})",
        f"insert into public.t values {literals}, (100, '2024-01-01', 'infinity')",
    )
    report = move(databases, "public.t", reader=reader, loader=loader, **looks)
    assert (report.outcome, report.counts.loaded, report.counts.quarantined) == ("done", len(near) + 1, len(far))
    query = f"select id, made::text, other::text from public.t where id >= {len(far)} order by id"
    assert rows(databases[0], query) == rows(databases[1], query)
    found = rows(databases[1], "select key, message, data ->> 'made' from keyhaul.quarantine order by key")
    assert [(key, message) for key, message, _ in found] == [
        (str(n), "made: no expression can see this value (infinity, NaN or a date far away)") for n in range(len(far))
    ]
    assert [(made,) for _, _, made in found] == rows(
        databases[0], f"select made::text from public.t where id < {len(far)} order by id"
    )


def test_a_numeric_that_an_expression_cannot_see_is_set_aside(databases):
    run_sql(
        databases[0],
        "create table public.t (id int primary key, a numeric(9,2), b numeric(9,2))",
        "insert into public.t values (1, 'NaN', 1), (2, 2.50, 'NaN'), (3, 3, 3)",
    )
    report = move(databases, "public.t", rule=["positive: a > 0"])
    assert (report.counts.loaded, report.counts.quarantined) == (2, 1)
    assert rows(databases[1], "select id, a::text, b::text from public.t order by id") == [
        (2, "2.50", "NaN"),
        (3, "3.00", "3.00"),
    ]


SETTINGS = {
    "timezone": "Asia/Kolkata",
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "lc_monetary": "C.utf8",
    "standard_conforming_strings": "off",
    "xmloption": "document",
    "client_encoding": "LATIN1",
}


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@pytest.mark.parametrize("changed", [(0,), (1,), (0, 1)], ids=["source", "target", "both"])
def test_the_settings_of_either_database_change_nothing(databases, reader, loader, changed):
    run_sql(
        databases[0],
        "set timezone = 'UTC'",
        """create table public.t (id int primary key, a timestamptz, b timestamp, c date, d interval, e bytea, f float8, g real, h money, i text,
             j tstzrange, k timestamptz[], l float8[], m bytea[], n point, o interval[], p date[], q jsonb, r timetz)""",
        r"""insert into public.t select g, v.a + g * interval '7 hours 1 us', v.a::timestamp, date '2024-02-03', interval '-1 year 2 mons -3 days 04:05:06.7',
              '\x00ff5c27'::bytea, 0.1 + g / 3.0::float8, (g / 3.0)::real, (g + 0.12)::numeric::money, E'a\\b''ü€',
              tstzrange(v.a, null), array[v.a, 'infinity', null], array[0.1, 1 / 3.0::float8], array['\x5c00'::bytea], point(0.1, g / 7.0),
              array[interval '1 mon -1 day'], array[date '0044-03-15 BC'], '{"a": 0.10}', timetz '12:00:00.5+05:30'
         from generate_series(1, 40) g, (select timestamptz '2024-03-31 00:30:00.123456+00' as a) v""",
        "insert into public.t (id, a, b, c) values (0, 'infinity', '-infinity', '5874897-12-31')",
    )
    for end in changed:
        name = psycopg.conninfo.conninfo_to_dict(databases[end])["dbname"]
        run_sql(databases[end], *(f"alter database {name} set {key} = '{value}'" for key, value in SETTINGS.items()))
    report = move(databases, "public.t", reader=reader, loader=loader, chunk=20)
    assert (report.outcome, report.counts.loaded) == ("done", 41)
    fixed = "set intervalstyle = 'postgres'; set bytea_output = 'hex'; set lc_monetary = 'C'; set client_encoding = 'UTF8'; "
    found = []
    for uri in databases:
        with psycopg.connect(uri, autocommit=True) as conn:
            conn.execute(fixed + "set timezone = 'UTC'; set datestyle = 'ISO, YMD'; set extra_float_digits = 1")
            found.append(conn.execute("select t::text from public.t t order by id").fetchall())
    assert found[0] == found[1]


# --- local times -----------------------------------------------------------------------------------

LOCAL = {
    "2024-01-15 12:00:00": "2024-01-15 11:00:00+00",
    "2024-07-15 12:00:00.123456": "2024-07-15 10:00:00.123456+00",
    "2024-03-31 01:59:59.999999": "2024-03-31 00:59:59.999999+00",
    "2024-03-31 02:00:00": None,  # skipped
    "2024-03-31 02:59:59.999999": None,
    "2024-03-31 03:00:00": "2024-03-31 01:00:00+00",
    "2024-10-27 01:59:59": "2024-10-26 23:59:59+00",
    "2024-10-27 02:00:00": None,  # there twice
    "2024-10-27 02:59:59": None,
    "2024-10-27 03:00:00": "2024-10-27 02:00:00+00",
    "1969-12-31 23:30:00": "1969-12-31 22:30:00+00",
}
FAR_LOCAL = {"infinity": "infinity", "-infinity": "-infinity", "0044-03-15 12:00:00 BC": None}


def zoned(databases, path, *, reader, loader, zone="Europe/Berlin"):
    source = {"uri": databases[0], "table": "public.t", "reader": reader, **({"time_zone": zone} if zone else {})}
    job = {"job": "move", "source": source, "target": {"uri": databases[1], "loader": loader}, "key": "id"}
    path.write_text(json.dumps(job), encoding="utf-8")
    return run(load_job(path, {}, {}), lambda _event: None, Control(), fresh=True)


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@pytest.mark.parametrize("values", [LOCAL, LOCAL | FAR_LOCAL], ids=["near", "with values far away"])
def test_a_local_time_becomes_its_instant_when_there_is_exactly_one(databases, tmp_path, reader, loader, values):
    literals = ", ".join(f"({n}, '{value}')" for n, value in enumerate(values))
    run_sql(
        databases[0],
        "create table public.t (id int primary key, at timestamp)",
        f"insert into public.t values {literals}, (99, null)",
    )
    run_sql(databases[1], "create table public.t (id int primary key, at timestamptz)")
    zoned(databases, tmp_path / "job.yaml", reader=reader, loader=loader)
    arrived = dict(rows(databases[1], "select id, at::text from public.t"))
    assert arrived == {n: there for n, there in enumerate(values.values()) if there is not None} | {99: None}
    found = rows(databases[1], "select key::int, rules from keyhaul.quarantine order by 1")
    assert found == [(n, ["type:at"]) for n, there in enumerate(values.values()) if there is None]


@pytest.mark.parametrize(("reader", "loader"), PAIRS)
@pytest.mark.parametrize("far", [False, True])
def test_an_instant_becomes_the_local_time_of_the_zone(databases, tmp_path, reader, loader, far):
    instants = {
        "2024-01-15 11:00:00+00": "2024-01-15 12:00:00",
        "2024-10-27 00:30:00.5+00": "2024-10-27 02:30:00.5",
        "2024-10-27 01:30:00+00": "2024-10-27 02:30:00",
    }
    if far:
        instants |= {"infinity": "infinity", "-infinity": "-infinity"}
    literals = ", ".join(f"({n}, '{value}')" for n, value in enumerate(instants))
    run_sql(
        databases[0],
        "create table public.t (id int primary key, at timestamptz)",
        f"insert into public.t values {literals}",
    )
    run_sql(databases[1], "create table public.t (id int primary key, at timestamp)")
    zoned(databases, tmp_path / "job.yaml", reader=reader, loader=loader)
    assert dict(rows(databases[1], "select id, at::text from public.t")) == dict(enumerate(instants.values()))


def test_a_local_time_without_a_declared_zone_is_refused(databases, tmp_path):
    run_sql(databases[0], "create table public.t (id int primary key, at timestamp)")
    run_sql(databases[1], "create table public.t (id int primary key, at timestamptz)")
    with pytest.raises(
        RefusedError,
        match=r"write public\.t\.at: got timestamp .*Say in which zone .* source: \{time_zone: Europe/Berlin\}",
    ):
        zoned(databases, tmp_path / "job.yaml", reader="connectorx", loader="copy", zone=None)
