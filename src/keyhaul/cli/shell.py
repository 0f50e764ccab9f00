"""What the commands share: the Typer application, the flags that say where the ledger is, and its connection."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

OK, QUARANTINED, WRONG, STOPPED, BROKEN = 0, 1, 2, 3, 70
"""Exit codes; what they mean stands in `cli`."""

app = typer.Typer(
    help="Move tables into PostgreSQL in columnar chunks, exactly once, with a reason for every row left out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or last.")]
TargetUri = Annotated[str | None, typer.Option("--target", metavar="URI", help="Database with the ledger.")]
Home = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="Folder of the embedded PostgreSQL.")]
Schema = Annotated[str | None, typer.Option("--ledger-schema", metavar="NAME", help="Schema of the ledger [keyhaul].")]


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage: what modules define stays, and 230 looks at it took 90 ms of a run's start.

    What is there at the end is not looked at again before the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # else DuckDB's binding takes what is left at the end for a leak, and says so


@contextmanager
def open_ledger(target: str | None, home: Path | None, schema: str | None) -> Iterator[tuple[Any, str]]:
    """Yield a connection to the database with the ledger, and the ledger's schema.

    Args:
        target: a URI; ETL_TARGET_URL or the embedded server by default.
        home: of the embedded server; ETL_HOME or the user's cache by default.
        schema: of the ledger; ETL_LEDGER_SCHEMA or keyhaul by default.
    """
    from keyhaul.sessions.connecting import find_ledger, look_back

    place = find_ledger(target, str(home) if home else None, schema, os.environ)
    with look_back(place) as conn:
        yield conn, place.schema
