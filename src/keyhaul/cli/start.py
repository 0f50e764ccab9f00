"""Where the process of a command begins."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit with its code; Ctrl-C while it is still being imported is one as well."""
    try:
        from keyhaul.cli.app import main as run  # half a second, in which nothing else hears a signal
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would only spoil the end
        sys.stderr.write("error: interrupted\n")
        sys.exit(128 + signal.SIGINT)
    run()
