"""The commands that look back: runs, show, quarantine."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keyhaul.cli.outlet import loss_of
from keyhaul.cli.shell import OK, QUARANTINED, STOPPED, Home, RunName, Schema, TargetUri, app, open_ledger
from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from keyhaul.config.allowance import Allowance

Export = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all records as CSV.")]


@app.command("runs", help="List the runs in the ledger, newest first.")
def runs(
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
) -> None:
    """List the runs in the ledger, newest first."""
    from keyhaul.ledger import reading
    from keyhaul.printing import lookback

    with open_ledger(target, home, ledger_schema) as (conn, schema):
        lookback.print_runs(reading.list_runs(conn, schema, limit), sys.stdout)


@app.command("show", help="Show one run: its balance and its chunks.")
def show(
    run: RunName,
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
    all_chunks: Annotated[bool, typer.Option("--all", help="All chunks, however many.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it ends; its exit code.")] = False,
    allow_quarantined: Annotated[
        str | None, typer.Option(metavar="N|P%", help="With --follow: still exit code 0 [0].")
    ] = None,
) -> None:
    """Show one run: its balance and its chunks."""
    from keyhaul.ledger import reading
    from keyhaul.printing import lookback

    allowed = _allowance(allow_quarantined)
    code = OK
    with open_ledger(target, home, ledger_schema) as (conn, schema):
        run_id = reading.find_run(conn, schema, run)
        if follow:
            code = _follow(conn, schema, run_id, allowed)
        limit = None if all_chunks else reading.CHUNKS_SHOWN
        lookback.print_run(
            reading.show_run(conn, schema, run_id, chunk_limit=limit), sys.stdout, all_command=f"etl show {run} --all"
        )
    raise typer.Exit(code)


def _allowance(given: str | None) -> Allowance:
    from keyhaul.config.allowance import read_allowance

    try:
        return read_allowance(given if given is not None else 0)
    except ValueError:
        msg = f"show: got --allow-quarantined {given!r}, expected a whole number or a percentage such as 5%"
        raise ConfigError(msg) from None


def _follow(conn: Any, schema: str, run_id: str, allowed: Allowance) -> int:  # noqa: ANN401 - psycopg's, not imported here
    """Watch a run to its end and return its exit code; Ctrl-C ends the watching, not the run."""
    from keyhaul.live.follow import ending, follow

    try:
        followed = follow(conn, schema, run_id, sys.stdout, wait=_wait_while_read)
    except KeyboardInterrupt:
        typer.echo(f"not watching run {run_id} any more; it goes on", err=True)
        raise typer.Exit(128 + signal.SIGINT) from None
    typer.echo(ending(followed), err=followed.lost)
    run = followed.run
    broken = any(check["on_fail"] == "error" and not check["passed"] for check in run.run_checks)
    if run.status != "done":
        return QUARANTINED if run.status == "abandoned" else STOPPED
    return QUARANTINED if broken or not allowed.permits(run.counts.quarantined, run.counts.read) else OK


def _wait_while_read(seconds: float) -> None:
    """Sleep; of a stream that nobody reads on the watching ends, as by SIGPIPE, for its end is not known."""
    if (loss := loss_of(sys.stdout)) is not None:
        raise typer.Exit(128 + signal.SIGPIPE if loss.unread else STOPPED)
    time.sleep(seconds)


@app.command("quarantine", help="Show what a run left out and why, or export it as CSV.")
def show_quarantine(
    run: RunName,
    export: Export = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    all_records: Annotated[bool, typer.Option("--all", help="The resolved ones as well.")] = False,
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
) -> None:
    """Show what a run left out and why, or export it as CSV."""
    from keyhaul.ledger import reading
    from keyhaul.printing import rejects

    with open_ledger(target, home, ledger_schema) as (conn, schema):
        run_id = reading.find_run(conn, schema, run)
        if export is not None and str(export) == "-":
            msg = "export quarantine: got -, expected a file's name, for example bad.csv"
            raise ConfigError(msg)
        if export is not None:
            written = rejects.export_quarantine(conn, schema, run_id, export, force=force, resolved=all_records)
            why = f": {rejects.why_none(conn, schema, run_id)}" if not written else ""
            typer.echo(f"wrote {written:,} records of run {run_id} to {export}{why}")
            return
        counted = rejects.quarantine_reasons(conn, schema, run_id, resolved=all_records)
        rows = rejects.quarantine_rows(conn, schema, run_id, resolved=all_records)
        total = rejects.quarantine_size(conn, schema, run_id, resolved=all_records)
        none = rejects.why_none(conn, schema, run_id) if not total else ""
        rejects.print_quarantine(run_id, counted, rows, total, sys.stdout, none=none)
