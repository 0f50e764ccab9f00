"""The commands that look back: runs, show, quarantine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.errors import ConfigError
from keyhaul.shell import Home, RunName, Schema, TargetUri, app, open_ledger

Export = Annotated[Path | None, typer.Option(metavar="FILE", help="Write all records as CSV.")]


@app.command("runs", help="List the runs in the ledger, newest first.")
def runs(
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 20,
) -> None:
    """List the runs in the ledger, newest first."""
    from keyhaul import lookback

    with open_ledger(target, home, ledger_schema) as (conn, schema):
        lookback.print_runs(lookback.list_runs(conn, schema, limit), sys.stdout)


@app.command("show", help="Show one run: its balance and its chunks.")
def show(
    run: RunName,
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
    all_chunks: Annotated[bool, typer.Option("--all", help="All chunks, however many.")] = False,
) -> None:
    """Show one run: its balance and its chunks."""
    from keyhaul import lookback

    with open_ledger(target, home, ledger_schema) as (conn, schema):
        run_id = lookback.find_run(conn, schema, run)
        limit = None if all_chunks else lookback.CHUNKS_SHOWN
        lookback.print_run(
            lookback.show_run(conn, schema, run_id, chunk_limit=limit), sys.stdout, all_command=f"etl show {run} --all"
        )


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
    from keyhaul import lookback, rejects

    with open_ledger(target, home, ledger_schema) as (conn, schema):
        run_id = lookback.find_run(conn, schema, run)
        if export is not None and str(export) == "-":
            msg = "export quarantine: got -, expected a file's name, for example bad.csv"
            raise ConfigError(msg)
        if export is not None:
            written = rejects.export_quarantine(conn, schema, run_id, export, force=force, resolved=all_records)
            typer.echo(f"wrote {written:,} records of run {run_id} to {export}")
            return
        counted = rejects.quarantine_reasons(conn, schema, run_id, resolved=all_records)
        rows = rejects.quarantine_rows(conn, schema, run_id, resolved=all_records)
        total = rejects.quarantine_size(conn, schema, run_id, resolved=all_records)
        rejects.print_quarantine(run_id, counted, rows, total, sys.stdout)
