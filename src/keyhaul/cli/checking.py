"""The command that checks data: check."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from keyhaul.cli.outlet import loss_of, take_loss
from keyhaul.cli.shell import Home, app
from keyhaul.errors import ConfigError, EtlError

FAILED = 1
SAMPLE_ROWS = 5

ChecksFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="Checks file, or a job file: its rules and run_rules on its target.")
]


@app.command("check", help="Check data: a table, a query, or a Parquet or CSV file. Exit code 1 when a check fails.")
def check_data(
    file: ChecksFile,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this check; may be repeated.")] = None,
    ledger: Annotated[str | None, typer.Option(metavar="URI", help="Database that keeps the results.")] = None,
    ledger_schema: Annotated[str | None, typer.Option(metavar="NAME", help="Its schema [keyhaul].")] = None,
    state: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the results in a file instead.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Measure drift from this run, whatever it finds.")] = False,
    show_values: Annotated[
        bool, typer.Option("--show-values", help="Show values of failing rows, not keys alone.")
    ] = False,
    sample: Annotated[int, typer.Option(metavar="N", min=0, max=1000, help="Failing rows to show.")] = SAMPLE_ROWS,
    export: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all failing rows as Parquet.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite that file.")] = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a JUnit report.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for GitHub Actions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    home: Home = None,
) -> None:
    """Check data: a table, a query, or a Parquet or CSV file."""
    from keyhaul.printing import verdicts as quality_output
    from keyhaul.quality import checking as quality
    from keyhaul.quality.offenders import Asked

    if as_json and github:
        raise ConfigError("--github: got --json as well, expected one of them. Run it twice, or use --junit")
    try:
        verdicts = quality.check(
            file,
            only=only or (),
            keep=quality.Keep(ledger=ledger, schema=ledger_schema, state=state, accept=accept),
            asked=Asked(sample_rows=sample, show_values=show_values, export=export, force=force),
            home=str(home) if home else None,
            environ=os.environ,
        )
        if junit is not None:
            quality_output.write_junit(verdicts, junit)
    except ConfigError:
        raise
    except EtlError as error:
        # 3 says that a run can be resumed, and there is none.
        raise ConfigError(str(error)) from error
    if as_json:
        quality_output.print_json(verdicts, sys.stdout)
    else:
        quality_output.print_verdicts(verdicts, sys.stdout)
    if github:
        sys.stdout.write("".join(f"{line}\n" for line in quality_output.github_commands(verdicts)))
    if (loss := loss_of(sys.stdout)) is not None and not loss.unread:
        raise ConfigError(f"{take_loss(sys.stdout)}. Mend this and try again")
    raise typer.Exit(0 if verdicts.good else FAILED)
