"""Which objects an address, a pattern or a folder of a store means."""

from __future__ import annotations

import glob
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from keyhaul.errors import ConfigError
from keyhaul.sources.files.remote.faults import is_missing, when_opening
from keyhaul.sources.files.remote.object import RemoteFile, version_of
from keyhaul.sources.files.remote.stores import open_store, store_errors
from keyhaul.storeaddress import StoreAddress, take_apart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyhaul.sources.files.remote.transfers import Transfers

_NEAR = 3


class Store:
    """The store of one address, and what it has there."""

    def __init__(self, text: str, transfers: Transfers) -> None:
        """Take an address; nothing is asked yet.

        Raises:
            ConfigError: see `open_store`.
        """
        self.address = take_apart(text)
        self._transfers = transfers
        self._store = open_store(self.address)

    def find(self) -> list[RemoteFile]:
        """Return the objects that the address means, in the order of their names.

        Raises:
            ConfigError: there is none, or the store says no.
            ConnectError: it does not answer.
        """
        address, path = self.address, self.address.path
        if address.is_web:
            if glob.has_magic(path) or path.endswith("/") or not path:
                raise ConfigError(
                    f"read {address}: a web server has no listing, expected the address of a file. Give a list of them"
                )
            return [self._one(path, self._head(path, missing_is_fault=True))]
        if glob.has_magic(path):
            return self._matching(path)
        if path and not path.endswith("/") and (meta := self._head(path)):
            return [self._one(path, meta)]
        return self._below(path.rstrip("/"))

    def _matching(self, pattern: str) -> list[RemoteFile]:
        folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        found = self._list(folder)
        if pattern in found:  # a name with a bracket in it
            return [self._one(pattern, found[pattern])]
        matching = re.compile(as_expression(pattern))
        kept = [self._one(path, meta) for path, meta in found.items() if matching.fullmatch(path)]
        if kept:
            return kept
        near = [PurePosixPath(path).name for path in found][:_NEAR]
        hint = f" There are {', '.join(near)}" if near else " Look at what is there"
        raise ConfigError(f"read {self.address}: no object has such a name, expected one at least.{hint}")

    def _below(self, folder: str) -> list[RemoteFile]:
        found = self._list(folder)
        kept = [path for path in found if not PurePosixPath(path).name.startswith((".", "_"))]
        if not kept:
            raise ConfigError(
                f"read {self.address}: there is no such object and no folder of this name, expected one. "
                "Correct the path"
            )
        return [self._one(path, found[path]) for path in kept]

    def _one(self, path: str, meta: Mapping[str, Any] | None) -> RemoteFile:
        if meta is None:
            raise TypeError(path)
        address = StoreAddress(
            scheme=self.address.scheme, place=self.address.place, path=path, query=self.address.query
        )
        return RemoteFile(address, int(meta["size"]), version_of(meta), self._store, self._transfers)

    def _head(self, path: str, *, missing_is_fault: bool = False) -> Mapping[str, Any] | None:
        import obstore

        async def ask() -> Mapping[str, Any] | None:
            try:
                return cast("Mapping[str, Any]", await obstore.head_async(self._store, path))
            except (store_errors(), OSError) as error:
                if is_missing(error) and not missing_is_fault:
                    return None
                raise when_opening(self.address, error) from None

        return self._transfers.run(ask())

    def _list(self, folder: str) -> dict[str, Mapping[str, Any]]:
        import obstore

        async def ask() -> dict[str, Any]:
            found: dict[str, Any] = {}
            try:
                async for some in obstore.list(self._store, folder or None, chunk_size=1000):
                    found.update((meta["path"], meta) for meta in some if not meta["path"].endswith("/"))
            except (store_errors(), OSError) as error:
                raise when_opening(self.address, error) from None
            return found

        return dict(sorted(self._transfers.run(ask()).items()))


def as_expression(pattern: str) -> str:
    """Return a glob as a regular expression: ``*`` stays within a folder, ``**`` goes through all of them."""
    written = []
    segments = pattern.split("/")
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == "**":
            written.append(r"(?:[^/.][^/]*/)*" + (r"[^/.][^/]*" if last else ""))
            continue
        text = "" if segment.startswith(".") or not glob.has_magic(segment) else r"(?!\.)"
        for piece in re.findall(r"\*+|\?|\[[!^]?\]?[^\]]*\]|.", segment):
            if piece.startswith("*"):
                text += "[^/]*"
            elif piece == "?":
                text += "[^/]"
            elif piece.startswith("[") and len(piece) > 1:
                inside = piece[1:-1].replace("\\", "\\\\").replace("[", "\\[")
                text += f"[^/{inside[1:]}]" if inside[:1] in {"!", "^"} else f"[{inside}]"
            else:
                text += re.escape(piece)
        written.append(text + ("" if last else "/"))
    return "".join(written)
