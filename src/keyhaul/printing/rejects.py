"""What a run rejected: read from the ledger, printed or exported as CSV.

Values of rows appear in this output and nowhere else.
"""

from __future__ import annotations

import csv
import json
import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from psycopg.rows import class_row, scalar_row, tuple_row

from keyhaul.console import is_terminal, write
from keyhaul.ledger.reading import ROWS_SHOWN, Connection, fetch, ledger_errors
from keyhaul.ledger.statements import statement
from keyhaul.printing.reporting import reasons
from keyhaul.text import one_line, plural
from keyhaul.wholefile import whole_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console, RenderableType

EXPORT_COLUMNS = ("run_id", "chunk", "record", "stage", "rules", "message", "key", "data")
FETCH_ROWS = 1000
"""Records in memory during an export; 1000 records of 1 kB are 1 MB."""

_FORMULA = re.compile(r"""[\t\r\n]|[\s"']*[=+\-@\t\r＝＋－＠]""")  # noqa: RUF001 - spreadsheets run the wide signs too
_NUMBER = re.compile(r"-\d+(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRecord:
    """A rejected record: where it was, why it was rejected, and the whole of it as a JSON object.

    `attempts` counts the run and the replays that tried it; `resolved_by` is the replay that resolved it.
    """

    run_id: str
    chunk: int
    record: int
    stage: str
    rules: list[str]
    message: str
    key: str | None
    data: str
    attempts: int
    resolved_by: str | None


def quarantine_reasons(conn: Connection, schema: str, run_id: str, *, resolved: bool = False) -> dict[str, int]:
    """Return rule (or stage, where no rule is named) → records, most first.

    A record that failed two rules counts under both. With `resolved`, those that a replay resolved count too.
    """
    values = {"run_id": run_id, "resolved": resolved}
    return dict(fetch(conn, schema, "quarantine_reasons", tuple_row, values))


def quarantine_size(conn: Connection, schema: str, run_id: str, *, resolved: bool = False) -> int:
    """Return the number of a run's unresolved records; with `resolved`, of all."""
    values = {"run_id": run_id, "resolved": resolved}
    return int(fetch(conn, schema, "quarantine_size", scalar_row, values)[0])


def quarantine_rows(
    conn: Connection, schema: str, run_id: str, limit: int = ROWS_SHOWN, *, resolved: bool = False
) -> tuple[QuarantinedRecord, ...]:
    """Return the first `limit` unresolved records in the order of the source; with `resolved`, of all."""
    values = {"run_id": run_id, "row_limit": limit, "resolved": resolved}
    return tuple(fetch(conn, schema, "quarantine_rows", class_row(QuarantinedRecord), values))


def why_none(conn: Connection, schema: str, run_id: str) -> str:
    """Return what became of the records of a run that has no unresolved ones; of a replay, of those that it tried."""
    found = fetch(conn, schema, "quarantine_fate", tuple_row, {"run_id": run_id})
    original, quarantined, resolved, later = found[0] if found else (None, 0, 0, None)
    were = f"{plural(quarantined, 'record')} {'was' if quarantined == 1 else 'were'} quarantined"
    if quarantined and later:
        return f"{were}, which replay {one_line(later)} has tried again: etl quarantine {one_line(original)}"
    if quarantined and resolved >= quarantined:
        return f"{were}, all are resolved: --all shows them"
    said = f", {resolved:,} {'was' if resolved == 1 else 'were'} resolved: --all shows them" if resolved else ""
    return f"no record was quarantined{said}"


def export_quarantine(
    conn: Connection, schema: str, run_id: str, path: Path, *, force: bool = False, resolved: bool = False
) -> int:
    """Write a run's unresolved records to `path` as CSV (UTF-8, RFC 4180) and return their number.

    With `resolved`, all records of the run.

    Columns as in `EXPORT_COLUMNS`; rules are joined with ``; ``, data is the record as JSON, a NULL key is
    an empty cell. A cell that a spreadsheet would run gets a leading apostrophe. The file appears under its
    name when it is whole, readable by its owner alone. Memory is that of `FETCH_ROWS` records.

    Raises:
        RefusedError: the file exists and `force` is not given, or there is no ledger.
        ConfigError: the file cannot be written.
    """
    number = 0
    with whole_file(path, force=force) as file, closing(_stream(conn, schema, run_id, resolved=resolved)) as rows:
        writer = csv.writer(file)
        writer.writerow(EXPORT_COLUMNS)
        for row in rows:
            writer.writerow(_cells(row))
            number += 1
    return number


def _stream(conn: Connection, schema: str, run_id: str, *, resolved: bool) -> Generator[QuarantinedRecord]:
    """Yield the records through a cursor of the server; it lives in a transaction, whatever the connection's mode."""
    rows = class_row(QuarantinedRecord)
    with ledger_errors(conn, schema), conn.transaction(), conn.cursor("keyhaul_quarantine", row_factory=rows) as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(
            statement("quarantine_rows", schema), {"run_id": run_id, "row_limit": None, "resolved": resolved}
        )
        yield from cursor


def _cells(row: QuarantinedRecord) -> tuple[str | int, ...]:
    key = "" if row.key is None else row.key
    return (
        escape_cell(row.run_id),
        row.chunk,
        row.record,
        escape_cell(row.stage),
        escape_cell("; ".join(row.rules)),
        escape_cell(row.message),
        key if _NUMBER.fullmatch(key) else escape_cell(key),
        escape_cell(row.data),
    )


def escape_cell(value: str) -> str:
    """Return `value` with a leading apostrophe if a spreadsheet would take it for a formula (OWASP, CSV injection)."""
    return f"'{value}" if _FORMULA.match(value) else value


def _telling_first(row: QuarantinedRecord) -> str:
    """Return a record's JSON with the columns that its message names first: the line is cut at the screen's edge."""
    try:
        members = _members(row.data)
    except ValueError:
        return row.data  # not an object
    told = {name for name in members if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", row.message)}
    return "{" + ", ".join([members[name] for name in sorted(members, key=lambda name: name not in told)]) + "}"


def _members(text: str) -> dict[str, str]:
    """Return the members of a JSON object as jsonb writes it: name → the text of both, so that no number changes.

    Raises:
        ValueError: `text` is no object, or a number in it is too long for Python.
    """
    decoder, found, at = json.JSONDecoder(), dict[str, str](), 1
    if not text.startswith("{"):
        raise ValueError(text)
    while text[at] != "}":
        name, end = decoder.raw_decode(text, at)
        _, end = decoder.raw_decode(text, end + len(": "))
        found[name] = text[at:end]
        at = end + len(", ") * (text[end] == ",")
    return found


def print_quarantine(
    run_id: str,
    counted: Mapping[str, int],
    rows: Sequence[QuarantinedRecord],
    total: int,
    stream: TextIO,
    *,
    none: str = "no record was quarantined",
) -> None:
    """Print what was rejected: the reasons with their counts, then the first records with their values.

    Args:
        run_id: whose records they are.
        counted: from `quarantine_reasons`.
        rows: from `quarantine_rows`.
        total: from `quarantine_size`.
        stream: a terminal cuts message and data at its width; any other stream gets them whole.
        none: what is said without rows, from `why_none`.
    """

    def build(console: Console) -> Iterable[RenderableType]:
        from rich.text import Text

        if not rows:
            yield Text(f"Run {one_line(run_id)}: {none}")
            return
        yield Text(f"Run {one_line(run_id)}: {plural(total, 'record')} quarantined", "bold")
        yield from reasons("Reasons", counted)
        yield ""
        for row in rows:
            key = "NULL" if row.key is None else one_line(row.key)
            why = one_line("; ".join(row.rules) or row.stage)
            tried = f", {plural(row.attempts, 'try', 'tries')}" if row.attempts > 1 else ""
            resolved = f"resolved by {one_line(row.resolved_by)}  " if row.resolved_by else ""
            lines = (
                Text.assemble(
                    (f"key {key}", "bold"),
                    f"  chunk {row.chunk}, record {row.record}{tried}  ",
                    (resolved, "green"),
                    (why, "yellow"),
                ),
                Text(f"  {one_line(row.message)}"),
                Text(f"  {one_line(_telling_first(row) if is_terminal(stream) else row.data)}", "dim"),
            )
            for line in lines:
                line.truncate(console.width, overflow="ellipsis")
                yield line
        if total > len(rows):
            yield Text(f"and {plural(total - len(rows), 'more record')}: etl quarantine {run_id} --export bad.csv")

    write(stream, build)
