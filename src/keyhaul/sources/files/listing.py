"""Which files a path means, in which format each is, and which of them are read: all, or the new ones."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final, Literal

from keyhaul.errors import ConfigError, RefusedError
from keyhaul.sources.files.textfile import COMPRESSED
from keyhaul.storeaddress import is_remote, whole_path
from keyhaul.text import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from keyhaul.model import KnownFiles
    from keyhaul.sources.files.remote.object import RemoteFile

Format = Literal["csv", "json", "excel", "parquet", "arrow"]

ENDINGS: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".xlsx": "excel",
    ".xlsm": "excel",
    ".xls": "excel",
    ".xlsb": "excel",
    ".ods": "excel",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Ending, without that of a compression → format."""


def format_of(path: Path | RemoteFile) -> Format | None:
    """Return the format that a file's ending says, or None."""
    name = PurePath(path.name)
    stem = name.with_suffix("") if name.suffix.lower() in COMPRESSED else name
    return ENDINGS.get(stem.suffix.lower())


def find_files(
    given: Sequence[str], wanted: Format | None, remote: Callable[[str], Sequence[RemoteFile]]
) -> tuple[tuple[Path | RemoteFile, ...], Format]:
    """Return the files that paths, globs and folders mean, sorted within each, and their format.

    Args:
        given: paths, globs, folders and addresses of stores.
        wanted: the format; None: by their endings.
        remote: returns the objects that an address means.

    Hidden files and those of other formats in a folder are left out; of what is named one by one nothing is.

    Raises:
        ConfigError: there is none, or they are of several formats.
    """
    found: dict[str, Path | RemoteFile] = {}
    for text in given:
        paths = _of_a_store(text, wanted, remote) if is_remote(text) else _of_one(text)
        found |= {str(path): path for path in paths if str(path) not in found}
    formats = {wanted or format_of(path) for path in found.values()}
    if None in formats:
        odd = next(path for path in found.values() if format_of(path) is None)
        raise ConfigError(
            f"read {odd}: its ending says no format, expected one of {', '.join(ENDINGS)}. "
            "Rename it, or give format: in a job file"
        )
    if len(formats) > 1:
        names = ", ".join(sorted(str(one) for one in formats))
        raise ConfigError(
            f"read {', '.join(map(whole_path, given))}: files of the formats {names}, expected one. Make a job for each"
        )
    return tuple(found.values()), formats.pop()  # type: ignore[return-value]


def _of_a_store(text: str, wanted: Format | None, remote: Callable[[str], Sequence[RemoteFile]]) -> list[RemoteFile]:
    found = remote(text)
    if len(found) == 1 or glob.has_magic(text):
        return [*found]
    kept = [one for one in found if wanted is not None or format_of(one) is not None]
    if not kept:
        raise ConfigError(f"read {text}: a folder without a file of a known ending, expected {', '.join(ENDINGS)}")
    return kept


def _of_one(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith((".", "_")))
        kept = [one for one in files if format_of(one) is not None]
        if not kept:
            raise ConfigError(f"read {text}: a folder without a file of a known ending, expected {', '.join(ENDINGS)}")
        return kept
    if path.is_file():
        return [path]
    if glob.has_magic(text):
        kept = sorted(Path(one) for one in glob.glob(text, recursive=True) if Path(one).is_file())  # noqa: PTH207 - absolute ones too
        if kept:
            return kept
        raise ConfigError(
            f"read {text}: no file has such a name, expected one at least. Look at the folder, or quote the pattern"
        )
    parent = path.parent if path.parent.is_dir() else Path()
    near = sorted(one.name for one in parent.iterdir() if one.is_file() and format_of(one) is not None)[:3]
    hint = f". There are {', '.join(near)}" if near else ""
    raise ConfigError(f"read {text}: there is no such file, expected one{hint}")


VERSION: Final[dict[type, str]] = {int: "changed_ns", str: "etag"}
"""What tells two states of a file apart → its name in the identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What is read.

    Attributes:
        paths: one at least, since the columns are a file's.
        idle: no record of it is read: nothing is new.
        news: for people; empty when all is read.
    """

    paths: Sequence[Path | RemoteFile]
    idle: bool = False
    news: str = ""


def choose(paths: Sequence[Path | RemoteFile], known: KnownFiles | None) -> Chosen:
    """Return the files that are read.

    Raises:
        RefusedError: one that was loaded has changed since, or one of an unfinished run is gone.
    """
    if known is None:
        return Chosen(paths=paths)
    found = {whole_path(str(path)): path for path in paths}
    if known.only is not None:
        gone = [path for path in known.only if path not in found]
        if gone:
            msg = f"read {gone[0]}: a run of this job has read it, and it is not among its files any more"
            raise RefusedError(f"{msg}. Put it back, or name it in path")
        return Chosen(paths=[found[path] for path in known.only] or paths[-1:], idle=not known.only)
    changed = [path for path in found if path in known.loaded and _differs(found[path], known.loaded[path])]
    if changed:
        was = known.loaded[changed[0]]
        msg = (
            f"read {changed[0]}: it has changed since run {was['run']} has loaded it ({was['bytes']:,} bytes then). "
            "Put what is new into a file of its own and this one back as it was, or give --full to read all files again"
        )
        raise RefusedError(msg)
    new = [path for name, path in found.items() if name not in known.loaded]
    there = f"{plural(len(found) - len(new), 'file')} loaded already"
    if not new:
        return Chosen(paths=paths[-1:], idle=True, news=f"nothing is new: {there}")
    return Chosen(paths=new, news=f"reads {plural(len(new), 'new file')}, {there}")


def _differs(path: Path | RemoteFile, was: Mapping[str, Any]) -> bool:
    if isinstance(path, Path):
        found = path.stat()
        size, version = found.st_size, found.st_mtime_ns
        return (was["bytes"], was.get(VERSION[int])) != (size, version)
    return (was["bytes"], was.get(VERSION[str])) != path.state()
