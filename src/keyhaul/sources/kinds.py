"""The kinds of sources, each in a folder of its own: which one a job means, and what opens it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from keyhaul.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyhaul.sources.source import Opening, Source

SCHEMES: Final[Mapping[str, str]] = {"postgresql": "postgres", "postgres": "postgres", "embedded": "postgres"}
"""Scheme of an address (``embedded`` is one by itself) → kind."""

OPENERS: Final[dict[str, Callable[[Opening], Source]]] = {}
"""Kind → what opens it. An opener imports its kind's folder when it is called: a driver that is not needed is not
imported."""


def kind_of(uri: str) -> str:
    """Return the kind of source that an address means.

    Raises:
        ConfigError: no kind has such addresses.
    """
    scheme = urlsplit(uri).scheme if ":" in uri else uri
    if scheme not in SCHEMES:
        msg = f"read source: an address of scheme {scheme!r}, expected one of {', '.join(SCHEMES)}. Change --source"
        raise ConfigError(msg)
    return SCHEMES[scheme]


def open_source(kind: str, opening: Opening) -> Source:
    """Open a source: look at what it has, and hold its moment where it can.

    Raises:
        ConnectError: it cannot be reached.
        ConfigError: there is no such table or file, or the key does not fit.
        RefusedError: it must not be read so.
    """
    return OPENERS[kind](opening)
