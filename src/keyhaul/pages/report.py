"""One run as a page: a single HTML file with its drawings in it, for a mail, a ticket or an archive.

Nothing is fetched and nothing runs in it (a content policy says so to the browser). Row values, which are the
keys, the bounds of chunks and the rejected rows, are on it only if asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import yaml
from psycopg.rows import dict_row

import keyhaul
from keyhaul.errors import RefusedError
from keyhaul.history.frames import frame_of_runs, read_chunks
from keyhaul.ledger.reading import RunRow, facts_of, fetch, read_tables
from keyhaul.model import STEPS, TERMS
from keyhaul.pages import svg
from keyhaul.pages.markup import Markup, element, escape
from keyhaul.pages.tables import (
    ROWS_BY_TABLE,
    broken_rules,
    limits_told,
    rows_by_table,
    rules_across,
    what_was_read,
    worth_a_look,
)
from keyhaul.pages.timeline import Clock, clock_of, lanes, rates
from keyhaul.printing.rejects import quarantine_reasons
from keyhaul.text import duration, one_line, plural, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from keyhaul.model import TableCounts

    Row = Mapping[str, Any]

EXAMPLES: Final = 3
"""Records shown for each reason."""

SLOWEST: Final = 5
BINS: Final = 120
"""Steps of the plot of rows per second."""

MOST_TROUBLED: Final = 100
"""Chunks listed at most because they failed or were tried again; `etl show RUN` has all."""

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_SAID_ABOVE: Final = frozenset({"job", "source", "target", "replay of", "workers", "stopped"})
"""Facts that have a place of their own on the page; what else a run tells stands with the versions."""
_LIBRARIES: Final = ("polars", "duckdb", "pyarrow", "connectorx", "adbc-driver-postgresql", "pgpq", "psycopg")
_STEP_MEANS: Final = {
    "read": "from the source",
    "transform": "decoding, expressions",
    "stage": "rules, duplicates",
    "load": "the target's transaction",
    "waits": "limits, retries, locks",
    "idle": "planning, lost tries, end",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the page says of a run.

    Attributes:
        run: a row of `history.runs`.
        facts: what is told of it as it stands, by the word for each.
        chunks: rows of `history.chunks`, in key order.
        reasons: rule or stage → records, most first.
        tables: what became of the rows of each table, for a job with several.
        examples: reason, chunk, record, stage, message, and key and data, which are None unless asked for.
        show_values: whether they were.
        server: the target's version, when the page was made.
    """

    run: Row
    facts: Mapping[str, str]
    chunks: Sequence[Row]
    reasons: Mapping[str, int]
    tables: Sequence[TableCounts]
    examples: Sequence[Row]
    show_values: bool
    server: str
    made_at: datetime


def read_findings(conn: psycopg.Connection[Any], schema: str, run_id: str, *, show_values: bool) -> Findings:
    """Read all that the page says of a run.

    Args:
        conn: to the target's database.
        schema: the ledger's.
        run_id: from `lookback.find_run`.
        show_values: read keys and rejected rows, too.

    Raises:
        RefusedError: there is no such run, or no ledger.
    """
    found = fetch(conn, schema, "runs", facts_of(RunRow), {"run_id": run_id, "limit": 1, "schema": schema})
    if not found:
        raise RefusedError(f"report run {one_line(run_id)!r}: it is not in the ledger any more. `etl runs` lists them.")
    whole = found[0].kind == "run"  # of a replay, what it resolved did not fail in it
    values = {"run_id": run_id, "resolved": whole, "row_limit": EXAMPLES, "show_values": show_values}
    return Findings(
        run=frame_of_runs(found).row(0, named=True),
        facts=found[0].shown(),
        chunks=read_chunks(conn, schema, run_id).rows(named=True),
        reasons=quarantine_reasons(conn, schema, run_id, resolved=whole),
        tables=read_tables(conn, schema, run_id),
        examples=fetch(conn, schema, "quarantine_examples", dict_row, values),
        show_values=show_values,
        server=conn.info.parameter_status("server_version") or "",
        made_at=datetime.now(UTC),
    )


def page(found: Findings) -> str:
    """Return the page as HTML, about 20 kB and 1 kB more for each chunk (at most `timeline.MOST_BARS` of them)."""
    run = found.run
    clock = clock_of(run, found.chunks)
    css = files("keyhaul.pages").joinpath("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http__equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run['job']} {run['run_id']}: {run['state']}"),
        element("style", Markup(css)),
    )
    sections = (
        element("div", _balance(run), _steps(run, clock), class_="pair"),
        _section("Rows by table", rows_by_table(found.tables), note=ROWS_BY_TABLE) if found.tables else None,
        _timeline(found.chunks, clock),
        _throughput(run, found.chunks, clock),
        _quarantine(found),
        _run_checks(run),
        _troubled(found),
        _section("Limits that acted", limits_told(run)),
        _job(run),
        _versions(found),
    )
    made = f"Made {_moment(found.made_at)} by etl report"
    values = "with" if found.show_values else "without"
    foot = element("footer", f"{made}, {values} row values.")
    body = element(
        "body", element("main", _header(run, show_values=found.show_values), _tiles(run, clock), *sections, foot)
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _section(title: str, *children: str | None, note: str = "") -> Markup:
    told = element("p", note, class_="note") if note else None
    return element("section", element("h2", title), told, *children)


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _header(run: Row, *, show_values: bool) -> Markup:
    what = "replay of " + run["replay_of"] if run["replay_of"] else "run"
    ended = f", ended {_moment(run['ended_at'])}" if run["ended_at"] else ""
    return element(
        "header",
        element("p", f"{what} ", element("span", run["run_id"], class_="mono"), class_="over"),
        element("h1", run["job"], " ", element("span", run["state"], class_=f"state state-{run['state']}")),
        element("p", element("b", run["source"]), " → ", element("b", run["target_table"]), class_="route"),
        element("p", f"Began {_moment(run['started_at'])}{ended}", class_="note"),
        what_was_read(run, show_values=show_values),
        broken_rules(run["run_checks"]),
        element("p", run["stop_reason"], class_="alarm") if run["stop_reason"] else None,
    )


def _tiles(run: Row, clock: Clock) -> Markup:
    rejected = svg.share(run["rows_quarantined"], run["rows_read"])
    troubles = [f"{run[f'chunks_{name}']:,} {name}" for name in ("retried", "failed") if run[f"chunks_{name}"]]
    # A run that goes on has the seconds of its chunks so far.
    tiles = (
        ("read", f"{run['rows_read']:,}", f"rows, {size(run['bytes_read'])}"),
        ("loaded", f"{run['rows_loaded']:,}", f"rows, {svg.share(run['rows_loaded'], run['rows_read'])}"),
        ("quarantined", f"{run['rows_quarantined']:,}", f"records, {rejected}"),
        ("time", duration(run["seconds"]), plural(run["workers"], "worker") + _in_sittings(clock)),
        ("speed", f"{run['rows_per_second']:,.0f}", "rows/s"),
        (
            "chunks",
            f"{run['chunks_done']:,}",
            f"of {run['chunks_planned']:,}, " + (", ".join(troubles) or "none retried"),
        ),
    )
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", element("b", value), element("span", unit)))
            for name, value, unit in tiles
        ),
        class_="tiles",
    )


def _in_sittings(clock: Clock) -> str:
    return f", {len(clock.sittings)} sittings" if len(clock.sittings) > 1 else ""


def _balance(run: Row) -> Markup:
    parts = {name: run[f"rows_{name}"] for name in TERMS}
    whole = run["rows_read"]
    balanced = whole == sum(parts.values())
    rows = [
        element(
            "tr",
            element("th", element("i", class_=f"key key-{name}"), name, scope="row"),
            element("td", f"{number:,}", class_="number"),
            element("td", svg.share(number, whole), class_="number"),
            class_=None if number else "nothing",
        )
        for name, number in parts.items()
    ]
    total = element(
        "tr", element("th", "read", scope="row"), element("td", f"{whole:,}", class_="number"), element("td", "")
    )
    said = "balanced: every row read has its place" if balanced else "NOT balanced"
    mark = element("p", f"{'✓' if balanced else '✗'} {said}", class_="good" if balanced else "alarm")
    extra = []
    if run["rows_updated"]:
        added, replaced = f"{run['rows_inserted']:,} inserted", f"{run['rows_updated']:,} updated"
        extra.append(f"Of the rows loaded {added}, {replaced}: these replaced one that was there.")
    if run["rows_resolved"]:
        extra.append(f"{run['rows_resolved']:,} of the quarantined records were resolved by a replay since.")
    table = element("table", element("tbody", *rows), element("tfoot", total), class_="balance")
    note = element("p", " ".join(extra), class_="note") if extra else None
    return _section("Balance", svg.stacked(parts, "what became of the rows read"), table, mark, note)


def _legend() -> Markup:
    keys = [element("li", element("i", class_=f"key key-{step}"), f"{step}") for step in STEPS]
    return element("ul", *keys, element("li", element("i", class_="key key-busy"), "between steps"), class_="legend")


def _timeline(chunks: Sequence[Row], clock: Clock) -> Markup:
    if clock.seconds <= 0:
        return _section("Chunks over time", element("p", "No chunk has ended yet."))
    by_worker = lanes(chunks, clock)
    drawn = [
        element("div", element("span", f"worker {worker}"), svg.lane(bars, clock, f"worker {worker}"), class_="lane")
        for worker, bars in by_worker.items()
    ]
    axis = element("div", element("span", ""), svg.time_axis(clock), class_="lane")
    flags = {"retried": "↻", "failed": "✕"}
    bars = [bar for worker in by_worker.values() for bar in worker]
    met = {"retried": any(bar.attempts > 1 and not bar.failed for bar in bars), "failed": any(b.failed for b in bars)}
    told = "; ".join(f"{flags[name]} {_MARKS[name]}" for name, there in met.items() if there)
    merged = "Many chunks: neighbours are drawn as one. " if any(bar.first != bar.last for bar in bars) else ""
    cut = "When chunks were read is not in the ledger for a dedup across them: bars show loads. "
    note = merged + (cut if any(bar.cut for bar in bars) else "") + (f"{told}. " if told else "") + _EMPTY
    return _section("Chunks over time", _legend(), *drawn, axis, note=note)


_EMPTY: Final = "Where nothing is drawn, a worker waits for a limit or another try, or has nothing to do."
_MARKS: Final = {
    "retried": "tried again after a transient error: the bar is the last try",
    "failed": "given up",
}


def _throughput(run: Row, chunks: Sequence[Row], clock: Clock) -> Markup | None:
    if clock.seconds <= 0:
        return None
    bins = min(BINS, max(12, 3 * len(chunks)))
    mean = run["rows_read"] / clock.seconds
    drawn = svg.area(rates(chunks, clock, bins), clock, mean, "rows read per second")
    note = f"{mean:,.0f} in the mean, the dashed line. Rows of a chunk are spread evenly over its time."
    return _section("Rows per second", element("div", drawn, svg.time_axis(clock), class_="plot"), note=note)


def _steps(run: Row, clock: Clock) -> Markup:
    spent = {step: run[f"{step}_seconds"] for step in STEPS} | {"waits": run["wait_seconds"]}
    spent["idle"] = max(clock.seconds * run["workers"] - sum(spent.values()), 0.0)
    whole = sum(spent.values())
    rows = [
        element(
            "tr",
            element("th", step, element("small", _STEP_MEANS[step]), scope="row"),
            element("td", svg.meter(seconds, whole, step if step in STEPS else "busy", step), class_="wide"),
            element("td", duration(seconds), class_="number"),
            element("td", svg.share(seconds, whole), class_="number"),
        )
        for step, seconds in spent.items()
    ]
    chosen = f" {run['workers_reason']}." if run["workers_reason"] else ""
    note = f"Wall time of {plural(run['workers'], 'worker')}, summed.{chosen}"
    return _section("Time by step", element("table", element("tbody", *rows), class_="meters"), note=note)


def _quarantine(found: Findings) -> Markup:
    whole = found.run["rows_quarantined"] or sum(found.reasons.values())
    if not found.reasons:
        return _section("Quarantine", element("p", "No record was rejected.", class_="good"))
    blocks = []
    for reason, number in found.reasons.items():
        head = element(
            "h3",
            element("span", reason, class_="mono"),
            element("span", f" {plural(number, 'record')}, {svg.share(number, whole)}", class_="count"),
        )
        examples = [row for row in found.examples if row["reason"] == reason]
        meter = svg.meter(number, whole, "quarantined", f"{reason}: share")
        blocks.append(element("article", head, meter, element("ul", *_examples(examples), class_="examples")))
    hint = "" if found.show_values else " Keys and values are left out: etl report --show-values shows them."
    note = f"The first {EXAMPLES} of each reason. A record that broke two rules counts under both.{hint}"
    return _section("Quarantine by reason", *blocks, note=note)


def _run_checks(run: Row) -> Markup | None:
    """Return what the rules across the run said, if it has any."""
    if not run["run_checks"]:
        return None
    return _section("Rules across the run", rules_across(run["run_checks"]))


def _examples(rows: Sequence[Row]) -> list[Markup]:
    """Return the examples of a reason; those that differ by their place alone stand in one line."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row["message"], row["key"], row["data"], row["resolved_by"]), []).append(row)
    return [_example(same) for same in alike.values()]


def _example(rows: Sequence[Row]) -> Markup:
    row = rows[0]
    place = "; ".join(f"chunk {one['chunk']:,}, record {one['record']:,}" for one in rows)
    key = element("span", f" key {row['key']}", class_="mono") if row["key"] is not None else None
    resolved = element("span", f" resolved by {row['resolved_by']}", class_="good") if row["resolved_by"] else None
    data = element("pre", row["data"]) if row["data"] is not None else None
    return element("li", element("span", place, class_="place"), key, resolved, element("p", row["message"]), data)


def _troubled(found: Findings) -> Markup | None:
    done = [chunk for chunk in found.chunks if chunk["status"] == "done"]
    slowest = sorted(done, key=lambda c: (-sum(c[f"{step}_seconds"] for step in STEPS), c["chunk"]))[:SLOWEST]
    odd = [c for c in found.chunks if c["status"] == "failed" or c["attempts"] > 1][:MOST_TROUBLED]
    shown = sorted({c["chunk"]: c for c in (*odd, *slowest)}.values(), key=lambda c: c["chunk"])
    if not shown:
        return None
    note = f"Failed, tried again, and the {SLOWEST} slowest; seconds by step."
    return _section("Chunks worth a look", *worth_a_look(shown, show_values=found.show_values), note=note)


def _job(run: Row) -> Markup:
    config = json.loads(run["config"])
    if config.get("targets"):
        del config["target"]["table"]  # a placeholder
    config = _said(config)
    lines = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100).splitlines()
    note = (
        "What makes it this job, as the ledger keeps it: without logins, and without what may change on a resumption."
    )
    body = Markup("\n".join(escape(line) for line in lines))
    facts = element("p", f"Fingerprint {run['fingerprint'][:16]}…", class_="note")
    return _section("Job", element("pre", body), facts, note=note)


def _said(value: Any) -> Any:  # noqa: ANN401 - of a JSON document
    """Return a job's identity without what it leaves unsaid."""
    if isinstance(value, list):
        return [_said(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    said = {name: _said(inner) for name, inner in value.items()}
    return {name: inner for name, inner in said.items() if inner not in (None, "", [], {})}


def _versions(found: Findings) -> Markup:
    run = found.run
    facts = {word: said for word, said in found.facts.items() if word not in _SAID_ABOVE} | {
        "the run": f"keyhaul {run['version']}, process {run['pid']} on {run['host']}",
        "target now": f"PostgreSQL {found.server}",
        "this page": f"keyhaul {keyhaul.__version__}",
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES) + ", where this page was made",
    }
    rows = [element("tr", element("th", name, scope="row"), element("td", said)) for name, said in facts.items()]
    return _section("Facts and versions", element("table", element("tbody", *rows), class_="facts"))
