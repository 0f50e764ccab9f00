"""The command line; with `shell` and its commands' modules the only place that prints, reads the environment or exits.

Exit codes: 0 done; 1 somebody has to look: more records were quarantined than allowed, a rule across the run
failed, or the source's answer was not the same each time, and the same command would start a new run; 2 wrong
command, job or database, nothing was moved; 3 stopped and resumable; 130 and 143
stopped by Ctrl-C or SIGTERM; 70 a fault in keyhaul itself. Of a run they tell what became of it, whether or not its
report could be printed; a command that only reads ends with 3 when stdout cannot be written, and quietly with its own
code when nobody reads on.
"""

from __future__ import annotations

import inspect
import json
import os
import signal
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from keyhaul import __version__, faults, redaction
from keyhaul.cli import (
    checking,  # noqa: F401 - its commands register themselves
    looking,  # noqa: F401 - the same
    reporting,  # noqa: F401 - the same
    verifying,  # noqa: F401 - the same
)
from keyhaul.cli.outlet import fill_descriptors, hurry, outlet, take_loss
from keyhaul.cli.retyped import command_line, look_back_options, replay_command, without_password
from keyhaul.cli.shell import BROKEN, OK, QUARANTINED, STOPPED, WRONG, Home, RunName, app, importing
from keyhaul.console import write_line
from keyhaul.errors import ConfigError, EtlError
from keyhaul.replay.older import permitted, told_older

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from keyhaul.config.job import Job
    from keyhaul.control import Control
    from keyhaul.model import Observer, Report
    from keyhaul.replay.resending import Replayed

T = TypeVar("T")


class Progress(StrEnum):
    """How a run shows what it does."""

    auto = "auto"
    live = "live"
    plain = "plain"
    json = "json"
    off = "off"


JobFile = Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]", help="Job file; flags win over it.")]
WithForeignKeys = Annotated[bool, typer.Option("--with-foreign-keys", help="Create the source's foreign keys as well.")]
WorkDir = Annotated[str | None, typer.Option(metavar="DIR", help="For rows that wait while copies are told [cache].")]


def _move(
    ctx: typer.Context,
    job_file: JobFile = None,
    job: Annotated[str | None, typer.Option(metavar="NAME", help="Name in the ledger [the table's].")] = None,
    source: Annotated[str | None, typer.Option(metavar="URI", help="Source database [embedded].")] = None,
    table: Annotated[str | None, typer.Option(metavar="T", help="Table or view to read.")] = None,
    query: Annotated[str | None, typer.Option(metavar="SQL", help="SELECT to read instead of a table.")] = None,
    target: Annotated[str | None, typer.Option(metavar="URI", help="Target database [embedded].")] = None,
    into: Annotated[str | None, typer.Option(metavar="T", help="Table to load [the source's name].")] = None,
    key: Annotated[str | None, typer.Option(metavar="K[,K2…]", help="Columns that the chunks are cut by.")] = None,
    chunk: Annotated[str | None, typer.Option(metavar="N|auto", help="Rows of a chunk [50000].")] = None,
    workers: Annotated[str | None, typer.Option(metavar="N", help="Chunks at a time [chosen].")] = None,
    memory_limit: Annotated[str | None, typer.Option(metavar="SIZE|P%", help="For chunks under way [80%].")] = None,
    cpu_limit: Annotated[str | None, typer.Option(metavar="P%", help="Fewer workers while the CPU is above.")] = None,
    rate_limit: Annotated[str | None, typer.Option(metavar="N", help="Rows a second from the source.")] = None,
    reader: Annotated[str | None, typer.Option(metavar="NAME", help="connectorx or adbc.")] = None,
    loader: Annotated[str | None, typer.Option(metavar="NAME", help="copy or adbc.")] = None,
    set: Annotated[list[str] | None, typer.Option(metavar="'COL = EXPR'", help="Compute a column.")] = None,
    where: Annotated[list[str] | None, typer.Option(metavar="EXPR", help="Keep rows for which this is true.")] = None,
    rule: Annotated[list[str] | None, typer.Option(metavar="'NAME: EXPR'", help="Quarantine rows that fail.")] = None,
    dedup: Annotated[str | None, typer.Option(metavar="C1[,C2…]", help="Keep one row for each value.")] = None,
    order_by: Annotated[str | None, typer.Option(metavar="C", help="Of copies the highest stays (keep: last).")] = None,
    order: Annotated[str | None, typer.Option(metavar="asc|desc", help="Lowest or highest keys first.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new run, whatever is unfinished.")] = False,
    incremental: Annotated[str | None, typer.Option(metavar="C", help="Read only what is new by this column.")] = None,
    lag: Annotated[str | None, typer.Option(metavar="5m", help="Begin so far below what was read last [0].")] = None,
    full: Annotated[bool, typer.Option("--full", help="Read all rows of an incremental job.")] = False,
    stop_on_error: Annotated[bool, typer.Option("--stop-on-error", help="Stop at the first failed chunk.")] = False,
    mode: Annotated[str | None, typer.Option(metavar="append|skip|upsert|replace", help="Rows that are there.")] = None,
    conflict: Annotated[str | None, typer.Option(metavar="C1[,C2…]", help="What says so [primary key].")] = None,
    newer_by: Annotated[str | None, typer.Option(metavar="C", help="Upsert only what is newer by it.")] = None,
    no_create: Annotated[bool, typer.Option("--no-create", help="Refuse a missing target table.")] = False,
    with_foreign_keys: WithForeignKeys = False,
    checksum: Annotated[bool, typer.Option("--checksum", help="For etl verify --against-ledger; costs CPU.")] = False,
    allow_quarantined: Annotated[str | None, typer.Option(metavar="N|P%", help="Still exit code 0 [0].")] = None,
    allow_python: Annotated[bool, typer.Option("--allow-python", help="Run the job's Python steps.")] = False,
    progress: Annotated[Progress, typer.Option(help="How to show what happens.")] = Progress.auto,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what went wrong.")] = False,
    log_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Append what happens, as JSON lines.")] = None,
    home: Home = None,
    work_dir: WorkDir = None,
) -> None:
    _start(ctx, locals())


def _start(ctx: typer.Context, values: dict[str, Any]) -> None:
    """Do what the command `run`, `chunked` or `plan` was given: the values of `_move`'s parameters."""
    given = {
        name: value for name, value in values.items() if name not in _NOT_OF_THE_JOB and value not in (None, False)
    }
    home, job_file = values["home"], values["job_file"]
    given["home"] = str(home) if home else None
    command = ctx.info_name
    if command == "run" and job_file is None:
        raise typer.BadParameter("expected a job file: etl run JOB.yaml. Without one, use etl chunked", ctx=ctx)
    with importing():
        from keyhaul.config.job import load_job

    loaded = load_job(job_file, given, os.environ)
    full: bool = values["full"]
    if command == "plan":
        _plan(loaded, full=full)
        return
    raise typer.Exit(_run(loaded, values, full=full))


_NOT_OF_THE_JOB = frozenset({"ctx", "job_file", "fresh", "full", "progress", "quiet", "home", "log_file"})

app.command("chunked", help="Move a table or query in key-range chunks.")(_move)
app.command("run", help="The same, from a job file.")(_move)
app.command("plan", help="Show what a run would do: chunks, routes, DDL. Moves nothing.")(_move)


def _replay(run: str, rule: str | None = None, *, reopen: bool = False, **flags: Any) -> None:  # noqa: ANN401 - of _move
    from keyhaul.config.job import load_job

    given = {name: value for name, value in flags.items() if name not in _NOT_OF_THE_JOB and value not in (None, False)}
    given["home"] = str(flags["home"]) if flags["home"] else None
    mode, quiet = flags["progress"], flags["quiet"]
    job = load_job(flags["job_file"], given, os.environ)

    def move(observe: Observer, control: Control) -> Replayed:
        from keyhaul.replay.resending import replay

        return replay(job, run, observe, control, rule=rule, reopen=reopen)

    done = _watched(move, mode, flags["log_file"], quiet=quiet)
    if done.report is not None:
        _print_report(done.report, job, mode, quiet=quiet)
    if mode is not Progress.json and not quiet:
        for line in done.told(rule):
            typer.echo(line)
    _say_what_is_unwritten(done.report.run_id if done.report else done.run_id, job)
    if told := told_older(done.older):
        (_say if mode is Progress.json or quiet else typer.echo)(told)
    if done.report is not None and done.report.outcome != "done":
        raise typer.Exit(exit_code(done.report, job))
    raise typer.Exit(OK if permitted(job.allow_quarantined, done.older, done.left, done.rows_read) else QUARANTINED)


def _flags_of_replay() -> inspect.Signature:
    """Return the parameters of `_move` that a replay has, with --rule to choose records and --check for a rule."""
    own: dict[str, tuple[Any, Any]] = {
        "run": (RunName, inspect.Parameter.empty),
        "rule": (Annotated[str | None, typer.Option(metavar="NAME", help="Only records that broke this.")], None),
        "check": (Annotated[list[str] | None, typer.Option(metavar="'NAME: EXPR'", help="A rule of the job.")], None),
        "reopen": (Annotated[bool, typer.Option("--reopen", help="Also what a replay closed unloaded.")], False),
    }
    moved = inspect.signature(_move, eval_str=True).parameters
    kept = [moved[name] for name in moved if name not in {"ctx", "rule", "fresh", "full", "order", "checksum"}]
    mine = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in own.items()
    ]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept]
    return inspect.Signature([mine[0], *named, *mine[1:]])


_replay.__signature__ = _flags_of_replay()  # type: ignore[attr-defined]
app.command("replay", help="Send a run's quarantined records through the job again.")(_replay)


def _run(job: Job, values: dict[str, Any], *, full: bool) -> int:
    fresh, mode, quiet, log_file = (values[name] for name in ("fresh", "progress", "quiet", "log_file"))
    with importing():
        from keyhaul.execution.engine import run

    def move(observe: Observer, control: Control) -> Report:
        return run(job, observe, control, fresh=fresh, full=full)

    report = _watched(move, mode, log_file, quiet=quiet)
    _print_report(report, job, mode, quiet=quiet, again=replay_command(report.run_id))
    _say_what_is_unwritten(report.run_id, job)
    return exit_code(report, job)


def _watched(work: Callable[[Observer, Control], T], mode: Progress, log_file: Path | None = None, *, quiet: bool) -> T:
    """Do `work` with a display of its events, perhaps a log, and with signals that tell it to stop."""
    if log_file is None:
        return _displayed(work, mode, lambda _event: None, quiet=quiet)
    from keyhaul.live.logfile import LogFile

    with LogFile(log_file) as log:
        try:
            return _displayed(work, mode, log, quiet=quiet)
        finally:
            if log.problem:
                _say(log.problem)


def _displayed(work: Callable[[Observer, Control], T], mode: Progress, log: Observer, *, quiet: bool) -> T:
    from keyhaul.control import Control
    from keyhaul.events import RunStarted
    from keyhaul.live.progress import make_progress

    control = Control()
    begun = False
    with make_progress(mode.value, quiet=quiet, stdout=sys.stdout, stderr=sys.stderr) as display:

        def observe(event: object) -> None:
            nonlocal begun
            begun = begun or isinstance(event, RunStarted)
            log(event)
            display(event)

        def handle(number: int, _frame: FrameType | None) -> None:
            control.interrupt(number)
            hurry(sys.stdout, sys.stderr)
            if not begun:
                raise KeyboardInterrupt  # at which psycopg cancels the statement that it waits for

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
        try:
            return work(observe, control)
        except KeyboardInterrupt:
            raise _Interrupted(control.signal) from None  # a KeyboardInterrupt would be Typer's own


def _print_report(report: Report, job: Job, mode: Progress, *, quiet: bool, again: str = "") -> None:
    from keyhaul.printing.reporting import print_report

    if mode is not Progress.json:
        print_report(
            report,
            sys.stdout,
            resume_command=command_line(),
            replay_command=again,
            look_back_options=look_back_options(job),
            quiet=quiet,
        )
    if quiet and exit_code(report, job) == QUARANTINED:
        count = report.counts.quarantined
        if report.broken:
            _say(f"rules across the run failed: {', '.join(report.broken)}. See: etl show {report.run_id}")
            return
        _say(f"{count:,} records are quarantined, more than allowed. See: etl quarantine {report.run_id}")


def _say_what_is_unwritten(run_id: str, job: Job) -> None:
    """Say that the report is not whole; the exit code stays that of the run."""
    if loss := take_loss(sys.stdout):
        _say(f"{loss}. What became of it: {f'etl show {run_id} {look_back_options(job)}'.strip()}")


class _Interrupted(BaseException):
    """A signal before the first read: nothing has to be finished."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def exit_code(report: Report, job: Job) -> int:
    """Return 0, 1, 3 or 128 + the signal, as the module's docstring says."""
    if report.outcome == "interrupted":
        return 128 + report.signal
    if report.outcome == "stopped":
        return STOPPED if report.resumable else QUARANTINED
    permitted = job.allow_quarantined.permits(report.counts.quarantined, report.counts.read)
    return OK if permitted and not report.broken else QUARANTINED


def _plan(job: Job, *, full: bool) -> None:
    from keyhaul.before.preview import preview
    from keyhaul.printing.planview import print_plan

    print_plan(preview(job, full=full), sys.stdout)


@app.command("schema", help="Print the JSON schema of a job file, for editors.")
def schema() -> None:
    """Print the JSON schema of a job file, for editors."""
    from keyhaul.config.jobschema import json_schema

    # Our own words alone: nothing to hide, and a secret that is one of them would damage it.
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False), file=redaction.bare(sys.stdout))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"keyhaul {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version_wanted: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Move tables into PostgreSQL in columnar chunks."""


def main() -> None:
    """Run the command line and exit with its code."""
    os.environ["PGCLIENTENCODING"] = "UTF8"  # libpq prefers a user's own to what a session sets
    redaction.remember_words(sys.argv[1:])
    redaction.remember_variables(os.environ)
    fill_descriptors()
    sys.stdout = redaction.hiding(outlet(sys.stdout, 1))
    sys.stderr = redaction.hiding(outlet(sys.stderr, 2))
    code = _command()
    loss = take_loss(sys.stdout)
    if loss is not None and not loss.unread:
        _say(f"{loss}. Mend this and try again")
        code = STOPPED if code in {OK, QUARANTINED} else code
    sys.exit(code)


def _command() -> int:
    """Do what the command line says and return the exit code; what cannot be printed does not change it."""
    code = OK
    try:
        if fault := os.environ.get("KEYHAUL_FAULT"):
            faults.arm(fault)
        app()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else OK
    except _Interrupted as stop:
        _say("interrupted before anything was moved")
        code = 128 + stop.number
    except KeyboardInterrupt:
        _say("interrupted")
        code = 128 + signal.SIGINT
    except ConfigError as error:
        _say(str(error))
        code = WRONG
    except EtlError as error:
        _say(str(error))
        code = STOPPED
    except Exception:  # noqa: BLE001 - a fault of keyhaul's own: the traceback is for its builders, the exit code for scripts
        for line in traceback.format_exc().splitlines():
            write_line(sys.stderr, without_password(line))
        _say("this is a fault in keyhaul itself; please report it with the lines above. The run can be resumed")
        code = BROKEN
    return code


def _say(message: str) -> None:
    for line in message.splitlines():
        write_line(sys.stderr, f"error: {line}")
