"""The command that writes a run as a page: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.shell import Home, RunName, Schema, TargetUri, app, open_ledger
from keyhaul.errors import ConfigError

Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page [RUN.html].")]


@app.command("report", help="Write one run as an HTML page that needs nothing else.")
def report(
    run: RunName,
    output: Output = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    show_values: Annotated[bool, typer.Option("--show-values", help="Keys and rejected rows as well.")] = False,
    target: TargetUri = None,
    home: Home = None,
    ledger_schema: Schema = None,
) -> None:
    """Write one run as an HTML page that needs nothing else."""
    from keyhaul.ledger import reading
    from keyhaul.pages import report as htmlreport
    from keyhaul.wholefile import whole_file

    if output is not None and str(output) == "-":
        msg = "report: got -, expected a file's name, for example report.html"
        raise ConfigError(msg)
    with open_ledger(target, home, ledger_schema) as (conn, schema):
        run_id = reading.find_run(conn, schema, run)
        found = htmlreport.read_findings(conn, schema, run_id, show_values=show_values)
        path = output or Path(f"{run_id}.html")
        with whole_file(path, force=force) as file:
            file.write(htmlreport.page(found))
        typer.echo(f"wrote run {run_id} to {path}")
