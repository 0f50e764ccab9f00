"""The command line; with `shell` and its commands' modules the only place that prints, reads the environment or exits.

Exit codes: 0 done; 1 somebody has to look: more records were quarantined than allowed, a rule across the run
failed, or the source's answer was not the same each time, and the same command would start a new run; 2 wrong
command, job or database, nothing was moved; 3 stopped and resumable; 130 and 143
stopped by Ctrl-C or SIGTERM; 70 a fault in keyhaul itself. Of a run they tell what became of it, whether or not its
report could be printed; a command that only reads ends with 3 when stdout cannot be written, and quietly with its own
code when nobody reads on.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from keyhaul import __version__, faults, redaction
from keyhaul.cli import (
    checking,  # noqa: F401 - its commands register themselves
    looking,  # noqa: F401 - the same
    reporting,  # noqa: F401 - the same
    verifying,  # noqa: F401 - the same
)
from keyhaul.cli.options import given, with_settings
from keyhaul.cli.outlet import fill_descriptors, hurry, outlet, take_loss
from keyhaul.cli.recalling import recalled
from keyhaul.cli.retyped import command_about, command_line, look_back_options, without_password
from keyhaul.cli.shell import BROKEN, OK, QUARANTINED, STOPPED, WRONG, RunName, app, importing
from keyhaul.console import write_line
from keyhaul.control import as_interrupt
from keyhaul.errors import ConfigError, EtlError
from keyhaul.machine import check_folder, lacking
from keyhaul.replay.older import permitted, told_older

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from keyhaul.config.job import Job
    from keyhaul.control import Control
    from keyhaul.model import Observer, Report


_ENDING_SECONDS: Final = 2.0
"""How long threads that are still inside a driver are waited for, when all is said."""


_HEARD: Final[list[int]] = []
"""Signals since the command began: a KeyboardInterrupt is lost where Python raises it in a callback of its own."""


class Progress(StrEnum):
    """How a run shows what it does."""

    auto = "auto"
    live = "live"
    plain = "plain"
    json = "json"
    off = "off"


JobFile = Annotated[Path | None, typer.Argument(metavar="[JOB.yaml]", help="Job file; flags win over it.")]
AllowPython = Annotated[bool, typer.Option("--allow-python", help="Run the job's Python steps.")]
Shown = Annotated[Progress, typer.Option("--progress", help="How to show what happens.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only what went wrong.")]
LogFile = Annotated[Path | None, typer.Option("--log-file", metavar="FILE", help="Append what happens, as JSON lines.")]


@app.command("plan", help="Show what a run would do: chunks, routes, DDL. Moves nothing.")
@app.command("run", help="The same, from a job file.")
@app.command("chunked", help="Move a table or query in key-range chunks.")
@with_settings("move")
def _move(
    ctx: typer.Context,
    job_file: JobFile = None,
    *,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new run, whatever is unfinished.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Read all rows of an incremental job.")] = False,
    allow_python: AllowPython = False,
    progress: Shown = Progress.auto,
    quiet: Quiet = False,
    log_file: LogFile = None,
    **flags: Any,  # noqa: ANN401 - the settings'
) -> None:
    command = ctx.info_name
    if command == "run" and job_file is None:
        raise typer.BadParameter("expected a job file: etl run JOB.yaml. Without one, use etl chunked", ctx=ctx)
    with importing():
        from keyhaul.config.job import load_job

    job = load_job(job_file, given({**flags, "allow_python": allow_python}), os.environ)
    if command == "plan":
        _plan(job, full=full)
        return
    raise typer.Exit(_run(job, progress, log_file, fresh=fresh, full=full, quiet=quiet))


@app.command("replay", help="Send a run's quarantined records through the job again.")
@with_settings("replay")
def _replay(
    run: RunName,
    job_file: JobFile = None,
    *,
    allow_python: AllowPython = False,
    progress: Shown = Progress.auto,
    quiet: Quiet = False,
    log_file: LogFile = None,
    rule: Annotated[str | None, typer.Option(metavar="NAME", help="Only records that broke this.")] = None,
    reopen: Annotated[bool, typer.Option("--reopen", help="Also what a replay closed unloaded.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="The job may differ from the run's.")] = False,
    **flags: Any,  # noqa: ANN401 - the settings'
) -> None:
    job, _ = recalled("replay", run, job_file, given({**flags, "allow_python": allow_python}))
    with _watched(progress, log_file, quiet=quiet) as (observe, control):
        from keyhaul.replay.resending import replay

        done = replay(job, run, observe, control, rule=rule, reopen=reopen, changed=changed)
    if done.report is not None:
        _print_report(done.report, job, progress, quiet=quiet)
    if progress is not Progress.json and not quiet:
        for line in done.told(rule):
            typer.echo(line)
    _say_what_is_unwritten(done.report.run_id if done.report else done.run_id, job)
    if told := told_older(done.older):
        (_say if progress is Progress.json or quiet else typer.echo)(told)
    if done.report is not None and done.report.outcome != "done":
        raise typer.Exit(exit_code(done.report, job))
    raise typer.Exit(OK if permitted(job.allow_quarantined, done.older, done.left, done.rows_read) else QUARANTINED)


@app.command("resume", help="Go on with an unfinished run; the ledger has its job.")
@with_settings("replay")
def _resume(
    run: RunName,
    *,
    changed: Annotated[bool, typer.Option("--changed", help="The source may have changed since.")] = False,
    allow_python: AllowPython = False,
    progress: Shown = Progress.auto,
    quiet: Quiet = False,
    log_file: LogFile = None,
    **flags: Any,  # noqa: ANN401 - the settings'
) -> None:
    job, run_id = recalled("resume", run, None, given({**flags, "allow_python": allow_python}))
    code = _run(job, progress, log_file, fresh=False, full=False, quiet=quiet, only=run_id, changed=changed)
    raise typer.Exit(code)


def _run(
    job: Job,
    mode: Progress,
    log_file: Path | None,
    *,
    fresh: bool,
    full: bool,
    quiet: bool,
    only: str | None = None,
    changed: bool = False,
) -> int:
    with importing():
        from keyhaul.execution.engine import run

    with _watched(mode, log_file, quiet=quiet) as (observe, control):
        report = run(job, observe, control, fresh=fresh, full=full, only=only, changed=changed)
    _print_report(report, job, mode, quiet=quiet, again=command_about("replay", report.run_id, job))
    _say_what_is_unwritten(report.run_id, job)
    return exit_code(report, job)


@contextmanager
def _watched(mode: Progress, log_file: Path | None = None, *, quiet: bool) -> Iterator[tuple[Observer, Control]]:
    """Yield what shows events, perhaps in a log too, and what signals tell to stop."""
    from keyhaul.control import Control
    from keyhaul.events import RunStarted
    from keyhaul.live.logfile import LogFile
    from keyhaul.live.progress import make_progress

    control, begun = Control(), False
    with ExitStack() as stack:
        log = stack.enter_context(LogFile(log_file)) if log_file is not None else None
        if log is not None:
            stack.callback(lambda: _say(log.problem) if log.problem else None)
        display = stack.enter_context(make_progress(mode.value, quiet=quiet, stdout=sys.stdout, stderr=sys.stderr))

        def observe(event: object) -> None:
            nonlocal begun
            begun = begun or isinstance(event, RunStarted)
            if log is not None:
                log(event)
            display(event)

        def handle(number: int, _frame: FrameType | None) -> None:
            control.interrupt(number)
            hurry(sys.stdout, sys.stderr)
            if not begun:
                raise KeyboardInterrupt  # at which psycopg cancels the statement that it waits for

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)
        if _HEARD:
            raise _Interrupted(_HEARD[0])
        try:
            with as_interrupt(lambda: bool(control.signal) and not begun):
                yield observe, control
        except KeyboardInterrupt:
            raise _Interrupted(control.signal) from None  # a KeyboardInterrupt would be Typer's own


def _print_report(report: Report, job: Job, mode: Progress, *, quiet: bool, again: str = "") -> None:
    from keyhaul.printing.reporting import print_report

    if mode is not Progress.json:
        print_report(
            report,
            sys.stdout,
            resume_command=command_about("resume", report.run_id, job) if report.resumable else command_line(),
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
    os.environ.setdefault("RUST_LOG", "off")  # connectorx would write lines of its own when a connection is lost
    logging.getLogger("psycopg").addHandler(logging.NullHandler())  # and so would psycopg: we tell what it means
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
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End the process, without the interpreter's own end where a thread is still inside a driver.

    The interpreter would take its state from under that thread, which then aborts the whole process (SIGABRT, SIGSEGV).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said: one more would only spoil the end
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        thread.join(_ENDING_SECONDS / len(others))
    if any(thread.is_alive() for thread in others):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _command() -> int:
    """Do what the command line says and return the exit code; what cannot be printed does not change it."""
    code = OK

    def handle(number: int, _frame: FrameType | None) -> None:
        _HEARD.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        if fault := os.environ.get("KEYHAUL_FAULT"):
            faults.arm(fault)
        with as_interrupt(lambda: bool(_HEARD)):
            check_folder()
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
    except Exception as error:  # noqa: BLE001 - the machine's fault, or one of keyhaul's own, whose traceback its builders need
        code = _faulty(error)
    finally:
        _HEARD.clear()  # the next command of this process has heard nothing
    return code


def _faulty(error: Exception) -> int:
    if told := lacking(error):
        _say(f"{without_password(told)}. What is committed stays: mend this and run the same command again")
        return STOPPED
    for line in traceback.format_exc().splitlines():
        write_line(sys.stderr, without_password(line))
    _say("this is a fault in keyhaul itself; please report it with the lines above. The run can be resumed")
    return BROKEN


def _say(message: str) -> None:
    for line in message.splitlines():
        write_line(sys.stderr, f"error: {line}")
