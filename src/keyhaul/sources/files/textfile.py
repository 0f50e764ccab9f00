"""A text file, plain or compressed, as bytes of UTF-8 that can be read from any offset."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import os
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Final

import pyarrow as pa

from keyhaul.errors import ConfigError, StopRunError, TransientError
from keyhaul.workfolder import open_work_folder

if TYPE_CHECKING:
    from keyhaul.sources.files.remote.object import RemoteFile

COMPRESSED: Final = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".zip": "zip", ".xz": "xz"}
"""Ending → how the file is compressed."""

_BLOCK: Final = 4 * 2**20
_BOM: Final = codecs.BOM_UTF8


class TextFile:
    """An open file. What is compressed, or not in UTF-8, is first written as plain UTF-8 to a file without a name.

    That copy lies in the work folder (`work_dir` of the job) and takes its full size there; nothing of it is left
    when the process ends, however.

    Attributes:
        name: for people. size: bytes of text. begin: where the first record begins: behind a byte order mark and the
        header. begin_line: physical lines before it.
    """

    def __init__(self, path: Path | RemoteFile, *, encoding: str = "utf-8", work_dir: str | None = None) -> None:
        """Open a file.

        Raises:
            ConfigError: it cannot be read, is cut off, or is compressed in a way that is not known.
        """
        self.name = path.name
        self.path = path
        self._remote = None if isinstance(path, Path) else path
        self._given = _opened(path) if isinstance(path, Path) else -1
        self._before = self.state()
        self._spool: IO[bytes] | None = None
        self._plain = self._given
        how = COMPRESSED.get(PurePath(path.name).suffix.lower())
        if how is not None or codecs.lookup(encoding).name != "utf-8":
            try:
                self._spool = _spooled(path, how, encoding, work_dir)
            except BaseException:
                self.close()
                raise
            self._plain = self._spool.fileno()
        self.size = self._before[0] if self._plain < 0 else os.fstat(self._plain).st_size
        self.begin = len(_BOM) if self._pread(0, len(_BOM)) == _BOM else 0
        self.begin_line = 0

    def state(self) -> tuple[int, int | str]:
        """Return size and time of change (ns) of the file as it was given; a remote one's etag."""
        if self._remote is not None:
            return self._remote.state()
        found = os.fstat(self._given)
        return found.st_size, found.st_mtime_ns

    @property
    def spooled(self) -> bool:
        """Whether the text is a copy that no other process can see."""
        return self._spool is not None

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes of text, all that there are.

        Raises:
            StopRunError: the file has changed since it was opened.
            TransientError: the disk or network share did not give them.
        """
        text = self._pread(offset, length)
        check_unchanged(self._before, self.state(), self.name)
        return text

    def _pread(self, offset: int, length: int) -> bytes:
        if self._remote is not None and self._spool is None:
            return self._remote.read(offset, length)
        parts = []
        while length > 0:
            try:
                part = os.pread(self._plain, length, offset)
            except OSError as error:
                raise TransientError(f"read {self.name}: {error.strerror} at byte {offset:,}") from error
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Close the file, and drop its plain copy; twice is once."""
        if self._given >= 0:
            os.close(self._given)
            self._given = -1
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"read {path}: {error.strerror}, expected a file that can be read") from error


def _spooled(path: Path | RemoteFile, how: str | None, encoding: str, work_dir: str | None) -> IO[bytes]:
    """Write a file's text as UTF-8 to a file without a name; bytes that the encoding does not know stay as they are."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
    plain = codecs.lookup(encoding).name == "utf-8"
    spool = tempfile.TemporaryFile(dir=open_work_folder(work_dir))  # noqa: SIM115 - handed on
    try:
        with _decompressed(path, how) as stream:
            while block := stream.read(_BLOCK):
                spool.write(block if plain else decoder.decode(block).encode("utf-8", "surrogateescape"))
            if not plain:
                spool.write(decoder.decode(b"", final=True).encode("utf-8", "surrogateescape"))
        spool.flush()
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException, OSError) as error:
        spool.close()
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"read {path}: {why}, expected a whole {how or 'readable'} file. Is it cut off, or still being written?"
        ) from error
    except BaseException:
        spool.close()
        raise
    return spool


def _decompressed(path: Path | RemoteFile, how: str | None) -> IO[bytes]:
    given: Any = path if isinstance(path, Path) else path.stream()
    if how == "gzip":
        return gzip.open(given)  # type: ignore[return-value]
    if how == "bz2":
        return bz2.open(given)
    if how == "xz":
        return lzma.open(given)
    if how == "zstd":
        packed = pa.OSFile(str(path)) if isinstance(path, Path) else pa.PythonFile(given, mode="r")
        return pa.CompressedInputStream(packed, "zstd")  # type: ignore[no-any-return]
    if how == "zip":
        with zipfile.ZipFile(given) as archive:  # what is opened in it stays open
            members = [one for one in archive.infolist() if not one.is_dir()]
            if len(members) != 1:
                raise ConfigError(
                    f"read {path}: {len(members)} files in the archive, expected one. Unpack it, and give the folder"
                )
            return archive.open(members[0])
    return path.open("rb") if isinstance(path, Path) else path.stream()


def check_unchanged(before: tuple[int, int | str], now: tuple[int, int | str], name: str) -> None:
    """Refuse to go on with a file whose size or time of change is another one.

    Raises:
        StopRunError: it has changed.
    """
    if before != now:
        msg = (
            f"read {name}: the file has changed since the run began ({before[0]:,} bytes then, {now[0]:,} now), "
            "expected the same. Put the old one back and run the same command, or start anew with --fresh"
        )
        raise StopRunError(msg)
