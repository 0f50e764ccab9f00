"""Addresses of files that are not on this machine: ``az://container/path``, ``s3://bucket/path``, ``https://…``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from keyhaul import redaction

SCHEMES: Final = ("az", "s3", "https", "http")
"""What an address begins with, before ``://``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """A remote address, taken apart.

    Attributes:
        scheme: one of `SCHEMES`.
        place: container, bucket or host with its port.
        path: below it, not encoded, without a slash at its beginning; a slash at its end says a folder.
        query: of a web address; a signature, never to be shown.
    """

    scheme: str
    place: str
    path: str
    query: str = ""

    def __str__(self) -> str:
        """Return the address without its query, for people, identities and the ledger."""
        return f"{self.scheme}://{self.place}/{self.path}"

    def __repr__(self) -> str:
        """Return the same: a query is a secret."""
        return str(self)

    @property
    def is_web(self) -> bool:
        """Whether it is one file of a web server, which has no listing."""
        return self.scheme in {"https", "http"}


def is_remote(path: str) -> bool:
    """Whether a path is an address of one of `SCHEMES`."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def take_apart(text: str) -> StoreAddress:
    """Return what an address says; its query is a secret from now on."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    query = ""
    if scheme in {"https", "http"}:
        rest, _, query = rest.partition("#")[0].partition("?")
    place, _, path = rest.partition("/")
    path = path.lstrip("/")
    for secret in (query, *(pair.partition("=")[2] for pair in query.split("&"))):
        redaction.remember(secret)
        redaction.remember(unquote(secret))
    return StoreAddress(
        scheme=scheme, place=place, path=unquote(path) if scheme in {"https", "http"} else path, query=query
    )


def whole_path(path: str) -> str:
    """Return what a path means wherever one stands: from the root, or the address without its query."""
    return str(take_apart(path)) if is_remote(path) else str(Path(path).resolve())


def parent_of(path: str) -> str:
    """Return the folder of a whole path."""
    return path.rpartition("/")[0] if is_remote(path) else str(Path(path).resolve().parent)
