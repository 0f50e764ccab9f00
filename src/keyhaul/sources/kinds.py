"""The kinds of sources, each in a folder of its own: what opens one, and what joins it from another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyhaul.sources.source import Opening, Reader, Source, Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How sources of one kind are opened; each function imports its folder when it is called, and no sooner.

    Attributes:
        open: see `open_source`.
        join: see `join`.
        preload: begins to import what will read, in the background.
    """

    open: Callable[[Opening], Source]
    join: Callable[[Ticket, Mapping[str, str]], Reader]
    preload: Callable[[Opening], None] = lambda _opening: None


def _open_postgres(opening: Opening) -> Source:
    from keyhaul.sources.postgres.source import open_source as open_postgres

    return open_postgres(opening)


def _join_postgres(ticket: Ticket, environ: Mapping[str, str]) -> Reader:
    from keyhaul.sources.postgres.reading import join as join_postgres

    return join_postgres(ticket, environ)


def _preload_postgres(opening: Opening) -> None:
    from keyhaul.sources.postgres.readers import choose_reader, preload

    if opening.dsn is not None:
        preload(choose_reader(opening.job, opening.dsn))


def _open_sqlite(opening: Opening) -> Source:
    from keyhaul.sources.sqlite.source import open_source as open_sqlite

    return open_sqlite(opening)


def _join_sqlite(ticket: Ticket, environ: Mapping[str, str]) -> Reader:
    from keyhaul.sources.sqlite.source import join as join_sqlite

    return join_sqlite(ticket, environ)


def _open_files(opening: Opening) -> Source:
    from keyhaul.sources.files.opening import open_source as open_files

    return open_files(opening)


def _join_files(ticket: Ticket, environ: Mapping[str, str]) -> Reader:  # noqa: ARG001 - files need no secret
    from keyhaul.sources.files.opening import join as join_files

    return join_files(ticket)


KINDS: Final[dict[str, Kind]] = {
    "files": Kind(open=_open_files, join=_join_files),
    "postgres": Kind(open=_open_postgres, join=_join_postgres, preload=_preload_postgres),
    "sqlite": Kind(open=_open_sqlite, join=_join_sqlite),
}
"""What `source.kind` of a job says → how it is opened. A further kind is a folder and a line here."""


def kind_of(opening: Opening) -> Kind:
    """Return the kind of source that a job means.

    Raises:
        ConfigError: nothing opens it yet.
    """
    kind = opening.job.source.kind
    if kind not in KINDS:
        raise ConfigError(f"open source: got kind {kind}, expected one of {', '.join(KINDS)}. Change source.kind")
    return KINDS[kind]


def open_source(opening: Opening) -> Source:
    """Open a source: look at what it has, and hold its moment where it can.

    Raises:
        ConnectError: it cannot be reached.
        ConfigError: there is no such table or file, or the key does not fit.
        RefusedError: it must not be read so.
    """
    return kind_of(opening).open(opening)


def preload(opening: Opening) -> None:
    """Begin to import the source's driver, while the run waits for the target.

    Raises:
        RefusedError: the job demands one that cannot read it.
    """
    kind_of(opening).preload(opening)


def join(ticket: Ticket, environ: Mapping[str, str]) -> Reader:
    """Open a reader of a source that another process holds open.

    Args:
        ticket: from `Source.ticket`, perhaps through pickle or JSON.
        environ: has the variable that the ticket names.

    Raises:
        ConfigError: it has not, or the source cannot be reached.
        RefusedError: it is another source.
    """
    return KINDS[ticket.kind].join(ticket, environ)
