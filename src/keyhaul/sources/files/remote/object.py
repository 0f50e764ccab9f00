"""One remote object: what it was when the source was opened, and its bytes as long as it is the same."""

from __future__ import annotations

import io
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

from keyhaul.errors import StopRunError, TransientError
from keyhaul.sources.files.remote.faults import when_reading
from keyhaul.sources.files.remote.stores import store_errors
from keyhaul.workfolder import open_work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyhaul.sources.files.remote.transfers import Transfers
    from keyhaul.storeaddress import StoreAddress


def version_of(meta: Mapping[str, Any]) -> str:
    """Return what tells two states of an object apart besides its size: the etag, or the time of its last change."""
    etag = meta.get("e_tag")
    if etag:
        return str(etag).replace('"', "")
    changed = meta["last_modified"]
    return f"changed {changed.isoformat()}" if changed.timestamp() > 0 else "no etag"


@dataclass(frozen=True, slots=True, eq=False)
class RemoteFile:
    """An object of a store, as a path is a file of this machine; hidden in its repr is what could be secret.

    Attributes:
        address: without a pattern. size: bytes. version: see `version_of`.
    """

    address: StoreAddress
    size: int
    version: str
    store: Any = field(repr=False)
    transfers: Transfers = field(repr=False)

    def __str__(self) -> str:
        """Return the address, without its query."""
        return str(self.address)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return PurePosixPath(self.address.path).name

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        return PurePosixPath(self.name).suffix

    def state(self) -> tuple[int, str]:
        """Return size and version, when it was listed; each read makes sure that they are still these."""
        return self.size, self.version

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes, all that there are, through the blocks that are fetched ahead; see `Transfers.read`."""
        return self.transfers.read(self, offset, length)

    def read_just(self, offset: int, length: int) -> bytes:
        """Return these bytes by one request of their own."""
        end = min(offset + length, self.size)
        return self.transfers.run(self.fetch(offset, end)) if offset < end else b""

    def stream(self, *, just: bool = False) -> IO[bytes]:
        """Return the object as a file that can be read and sought.

        Args:
            just: each read is one request, for those who read few and large pieces.
        """
        if just:
            return cast("IO[bytes]", _Stream(self, just=True))
        return cast("IO[bytes]", io.BufferedReader(_Stream(self, just=False), 1 << 20))

    async def fetch(self, begin: int, end: int) -> bytes:
        """Return bytes `begin` up to `end`.

        Raises:
            StopRunError: the object has changed, is gone, or may not be read any more.
            TransientError: no answer, or a part of one.
        """
        import obstore
        from obstore.exceptions import PreconditionError

        options: dict[str, Any] = {"range": (begin, end)}
        if not self.version.startswith(("changed ", "no etag", "W/")):
            options["if_match"] = f'"{self.version}"'
        try:
            answer = await obstore.get_async(self.store, self.address.path, options=options)  # type: ignore[arg-type]
            now: Mapping[str, Any] = {**answer.meta}
            same = (now["size"], version_of(now)) == self.state()
            text = bytes(await answer.bytes_async()) if same else b""
        except PreconditionError:
            raise self._changed(await self._now()) from None
        except (store_errors(), OSError) as error:  # its text may hold a signature
            raise when_reading(self.address, error) from None
        if not same:
            raise self._changed(now)
        if len(text) != end - begin:
            raise TransientError(
                f"read {self}: {len(text):,} bytes came, expected {end - begin:,} from byte {begin:,} on"
            )
        return text

    async def _now(self) -> Mapping[str, Any] | None:
        import obstore

        try:
            return cast("Mapping[str, Any]", await obstore.head_async(self.store, self.address.path))
        except (store_errors(), OSError):  # only a word of the message hangs on it
            return None

    def _changed(self, now: Mapping[str, Any] | None) -> StopRunError:
        after = f"{now['size']:,} bytes, {_told(version_of(now))} now" if now else "now another"
        return StopRunError(
            f"read {self}: the object has changed since the run began ({self.size:,} bytes, {_told(self.version)} "
            f"then; {after}), expected the same. Start anew with --fresh: an old one that is put back is another "
            "object to the store"
        )


def _told(version: str) -> str:
    return version if version.startswith(("changed ", "no etag")) else f"etag {version}"


class _Stream(io.RawIOBase):
    """A position in an object."""

    def __init__(self, file: RemoteFile, *, just: bool) -> None:
        super().__init__()
        self._file, self._just, self._position = file, just, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        wanted = self._file.size if size is None or size < 0 else size
        text = (self._file.read_just if self._just else self._file.read)(self._position, wanted)
        self._position += len(text)
        return text

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - any buffer
        text = self.read(len(buffer))
        buffer[: len(text)] = text
        return len(text)


@contextmanager
def on_this_machine(path: Path | RemoteFile, work_dir: str | None) -> Iterator[Path]:
    """Give a path under which a file can be opened by others' code.

    A remote one is copied to a file without a name in the work folder, of which nothing is left however the process
    ends; only for as long as it is asked for, a link with the right ending leads to it.
    """
    if isinstance(path, Path):
        yield path
        return
    folder = open_work_folder(work_dir)
    with tempfile.TemporaryFile(dir=folder) as copy, tempfile.TemporaryDirectory(prefix="keyhaul-") as named:
        with path.stream() as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        link = Path(named) / f"copy{path.suffix}"
        link.symlink_to(f"/proc/self/fd/{copy.fileno()}")
        yield link
