"""Ctrl-C is an interruption whatever a library makes of it: DuckDB ends its query with a RuntimeError of its own."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import typer

from keyhaul.api import _watching
from keyhaul.cli import app, verifying
from keyhaul.control import Control, as_interrupt
from keyhaul.staging.rules import locked_down

LONG = "select count(*) from range(1_000_000) a, range(1_000_000) b where a.range * b.range % 7 = 3"


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(number=signal.SIGINT):
    """Ask DuckDB something long, and interrupt it."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    try:
        with locked_down() as con:
            con.execute(LONG).fetchall()
    finally:
        timer.join()


def test_a_run_that_is_interrupted_while_duckdb_reads_a_rule_ends_as_interrupted():
    with (
        pytest.raises(app._Interrupted) as stopped,
        app._watched(app.Progress.off, quiet=True),
    ):
        interrupted()
    assert stopped.value.number == signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_comparison_that_is_interrupted_in_duckdb_ends_with_the_signal(number):
    with pytest.raises(typer.Exit) as stopped, verifying._ended_by_signals():
        interrupted(number)
    assert stopped.value.exit_code == 128 + number


def test_a_call_from_python_that_is_interrupted_in_duckdb_is_a_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt), _watching(Control(), None):
        interrupted()


def test_a_command_without_a_handler_of_its_own_ends_as_interrupted(monkeypatch, capsys):
    monkeypatch.setattr(app, "app", interrupted)
    assert app._command() == 128 + signal.SIGINT
    assert capsys.readouterr().err == "error: interrupted\n"


def test_another_error_stays_what_it_is():
    with pytest.raises(ZeroDivisionError), as_interrupt(lambda: False):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), as_interrupt(lambda: True):
        raise ZeroDivisionError


LEAVING = """
import ctypes, sys, threading, time
from keyhaul.cli import app

# Inside foreign code that holds no lock of the interpreter's, as a driver that waits for its server; it comes back.
libc = ctypes.CDLL(None)
for _ in range(8):
    threading.Thread(target=lambda: [libc.usleep(1000) for _ in range(5000)], daemon=True).start()
print("told")
app._leave(3)
"""


def test_a_process_ends_with_its_code_while_threads_are_inside_a_driver():
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-c", LEAVING], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (3, "told\n", "")


def test_what_imports_a_driver_in_the_background_is_waited_for_at_the_end():
    code = "from keyhaul.sources.postgres import readers; import threading, sys; readers.preload('adbc'); print([t.daemon for t in threading.enumerate() if t.name == 'keyhaul-import'])"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[False]\n", "")


def test_ctrl_c_while_the_command_is_imported_ends_without_a_traceback():
    code = """
import builtins, os, signal
from keyhaul.cli.start import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that is started in the background ignores it
given = builtins.__import__
def interrupted(name, *args, **kwargs):
    if name == "typer":
        os.kill(os.getpid(), signal.SIGINT)
    return given(name, *args, **kwargs)
builtins.__import__ = interrupted
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_a_signal_whose_exception_python_swallowed_is_heard_before_the_run_begins(monkeypatch, capsys):
    """As in a callback of the import system: it says "Exception ignored" and goes on."""

    def begin():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with app._watched(app.Progress.off, quiet=True):
            pytest.fail("the run has begun")

    monkeypatch.setattr(app, "app", begin)
    assert app._command() == 128 + signal.SIGINT
    assert capsys.readouterr().err == "error: interrupted before anything was moved\n"
    with app._watched(app.Progress.off, quiet=True) as (_observe, control):  # the next command has heard nothing
        assert control.signal == 0
