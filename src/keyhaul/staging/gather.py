"""The rows of one run, put down before any is loaded, so that copies in different chunks can be told.

A private folder holds one DuckDB file and, beside it, each chunk's frames as Arrow files. The DuckDB file has what
decides between copies (the dedup columns, the order, the key), the list of the chunks that are put down, and in the
end the losers. The frames stay out of it: they come back bit for bit, and take none of its memory.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import duckdb
import polars as pl

from keyhaul.errors import ConfigError, StopRunError, safe_message
from keyhaul.faults import pass_point
from keyhaul.model import RECORD, Counts, Timings
from keyhaul.staging.rules import limited

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

FILE: Final = "rows.duckdb"
THREADS: Final = 2

_TABLES: Final = """
create table about (mark varchar not null);
create table gathered (chunk integer primary key, outcome varchar not null);
create table settled (losers bigint not null);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The types of the columns that decide between copies: equal values of `on` are copies, and so on."""

    on: tuple[pl.DataType, ...]
    order_by: tuple[pl.DataType, ...]
    key: tuple[pl.DataType, ...]
    keep: str

    @property
    def columns(self) -> dict[str, pl.DataType]:
        """Return the contest's columns by their names in the file, which no user's name can meet."""
        parts = {"c": self.on, "o": self.order_by, "k": self.key}
        named = {f"{letter}{n}": dtype for letter, dtypes in parts.items() for n, dtype in enumerate(dtypes)}
        return {RECORD: pl.Int64(), **named, "tie": pl.Int64()}

    def select(
        self, accepted: pl.DataFrame, on: Sequence[str], order_by: Sequence[str], key: pl.DataFrame
    ) -> pl.DataFrame:
        """Return the rows that can be copies, those without a NULL in the dedup columns, with `columns`.

        Args:
            accepted: the rows, with `RECORD`.
            on: the names of the dedup columns.
            order_by: the names of those that put copies in order.
            key: each row's key, and ``tie``, its place among the chunk's rows of one key; in the order of `accepted`.
        """
        chosen = [pl.col(name).alias(f"c{n}") for n, name in enumerate(on)]
        chosen += [pl.col(name).alias(f"o{n}") for n, name in enumerate(order_by)]
        named = dict(zip(key.columns, [*(f"k{n}" for n in range(len(self.key))), "tie"], strict=True))
        whole = pl.concat([accepted.select(RECORD, *chosen), key.rename(named)], how="horizontal")
        return whole.drop_nulls([f"c{n}" for n in range(len(on))]).select(
            pl.col(name).cast(dtype) for name, dtype in self.columns.items()
        )

    def losers(self) -> str:
        """Return the query for the rows that are another's copies, as ``chunk`` and `RECORD`.

        Groups of more than one row are found first, by a hash table that can spill; only they are put in order.
        """
        on = ", ".join(f"c{n}" for n in range(len(self.on)))
        direction = "desc" if self.keep == "last" else "asc"
        order = [f"o{n} {direction} nulls last" for n in range(len(self.order_by))]
        # Rows without a key, and keys that no type holds (infinity), are NULL here: they come in the plan's order.
        order += [f"k{n} nulls last" for n in range(len(self.key))] + ["chunk", "tie", RECORD]
        groups = f"select {on} from contest group by {on} having count(*) > 1"
        return (
            f"select chunk, {RECORD} from (select chunk, {RECORD}, row_number() over (partition by {on} "
            f"order by {', '.join(order)}) as place from contest semi join ({groups}) using ({on})) "
            "where place > 1 order by chunk"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """A chunk as it was put down.

    Attributes:
        accepted: rows for the target, with `RECORD`; what `Store.take` returns is without losers.
        rejected: as in `Staged`.
        counts: as staged; what `Store.take` returns counts the losers as duplicates.
        text_columns: source columns that travel as text in this chunk.
    """

    chunk: int
    accepted: pl.DataFrame
    rejected: pl.DataFrame
    counts: Counts
    warned: Mapping[str, int]
    text_columns: frozenset[str]
    timings: Timings
    bytes_read: int
    place: str = ""


class Store:
    """The folder of one run, with what its `contest` decides by; safe to use from several threads.

    Each call has a DuckDB cursor of its own, one at a time: a connection shared by threads returned wrong rows.
    """

    def __init__(self, folder: Path, con: duckdb.DuckDBPyConnection, contest: Contest) -> None:
        """Take an open file; use `create` or `open`."""
        self.folder = folder
        self._con = con
        self.contest = contest
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, contest: Contest, mark: str, memory_mb: int) -> Self:
        """Make the folder, for its owner alone, with an empty file.

        Args:
            folder: must not be there.
            contest: the columns that decide.
            mark: what a later `open` must give again.
            memory_mb: megabytes that DuckDB may use; what is more goes to the folder.

        Raises:
            StopRunError: the folder cannot be made.
        """
        with _told(f"make {folder}"):
            folder.mkdir(mode=0o700)
            con = limited(folder / FILE, folder / "spill", memory_mb=memory_mb, threads=THREADS)
            (folder / FILE).chmod(0o600)
            con.execute("begin")
            con.execute(_TABLES)
            con.execute("insert into about values (?)", [mark])
            con.register("part", pl.DataFrame(schema=contest.columns).to_arrow(compat_level=pl.CompatLevel.newest()))
            con.execute("create table contest as select 0::integer as chunk, * from part")
            con.execute("commit")
            con.unregister("part")
        return cls(folder, con, contest)

    @classmethod
    def open(cls, folder: Path, contest: Contest, mark: str, memory_mb: int) -> Self | None:
        """Open the file of an earlier sitting; None when it is gone, broken, or of another job.

        Raises:
            ConfigError: another process has it open, or the folder is not this user's alone.
        """
        if not os.path.lexists(folder / FILE):
            return None
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            msg = f"open {folder}: others could have changed it, expected a folder of this user alone. Remove it"
            raise ConfigError(msg)
        try:
            con = limited(folder / FILE, folder / "spill", memory_mb=memory_mb, threads=THREADS)
        except duckdb.Error as error:
            if "lock" in str(error).lower():
                msg = f"open {folder / FILE}: another process has it open. Wait for it, or stop it"
                raise ConfigError(msg) from error
            return None
        try:
            same = con.execute("select mark from about").fetchall() == [(mark,)]
        except duckdb.Error:
            same = False
        if not same:
            con.close()
            return None
        return cls(folder, con, contest)

    def close(self) -> None:
        """Close the file; it stays for the next sitting."""
        with self._lock:
            self._con.close()

    def chunks(self) -> frozenset[int]:
        """Return the chunks that are put down."""
        with self._cursor("read") as cursor:
            return frozenset(chunk for (chunk,) in cursor.execute("select chunk from gathered").fetchall())

    def put(self, part: Gathered, source: pl.DataFrame, contestants: pl.DataFrame) -> None:
        """Put a chunk down, whole or not at all; nothing happens when it is there.

        Args:
            part: the chunk after the rules, with all its copies.
            source: the accepted rows as they were read, with `RECORD`.
            contestants: the rows that can be copies, with `Contest.columns`.

        Raises:
            StopRunError: the disk is full, or the file cannot be written.
        """
        if part.chunk in self.chunks():
            return
        with _told(f"write {self.folder}"):
            frames = {"accepted": part.accepted, "rejected": part.rejected, "source": source}
            for name, frame in frames.items():
                _write(self._place(part.chunk, name), frame)
            _sync(self.folder)
        pass_point("gather.written")
        outcome = json.dumps(
            {
                "counts": asdict(part.counts),
                "warned": dict(part.warned),
                "text_columns": sorted(part.text_columns),
                "timings": asdict(part.timings),
                "bytes_read": part.bytes_read,
                "place": part.place,
            }
        )
        columns = ", ".join(self.contest.columns)
        with self._cursor("write") as cursor:
            cursor.execute("begin")
            cursor.register("part", contestants.to_arrow(compat_level=pl.CompatLevel.newest()))
            cursor.execute(f"insert into contest select {part.chunk}, {columns} from part")
            cursor.execute("insert into gathered values (?, ?)", [part.chunk, outcome])
            cursor.execute("commit")
        pass_point("gather.after")

    @property
    def settled(self) -> bool:
        """Whether the losers are known; no chunk may be put down after that."""
        with self._cursor("read") as cursor:
            return bool(cursor.execute("select losers from settled").fetchall())

    def settle(self) -> int:
        """Find the losers once and for all, in one transaction; returns how many there are.

        Raises:
            StopRunError: it was interrupted, the disk is full, or the memory is too small.
        """
        with self._cursor("tell copies in") as cursor:
            known = cursor.execute("select losers from settled").fetchall()
            if not known:
                cursor.execute("begin")
                cursor.execute(f"create table losers as {self.contest.losers()}")
                known = cursor.execute("insert into settled select count(*) from losers returning losers").fetchall()
                pass_point("copies.told")
                cursor.execute("commit")
            return int(known[0][0])

    def interrupt(self) -> None:
        """End a `settle` that runs in another thread; it can be done again."""
        self._con.interrupt()

    def take(self, chunk: int) -> Gathered:
        """Return a chunk without its losers.

        Raises:
            StopRunError: a file is gone or broken.
        """
        with self._cursor("read") as cursor:
            found = cursor.execute("select outcome from gathered where chunk = ?", [chunk]).fetchall()
            lost = cursor.execute(f"select {RECORD} from losers where chunk = ?", [chunk]).fetchall()
        if not found:
            msg = f"read {self.folder}: chunk {chunk} is not in it. Run the same command with --fresh"
            raise StopRunError(msg)
        outcome: dict[str, Any] = json.loads(found[0][0])
        accepted = self._frame(chunk, "accepted")
        losers = pl.Series("losers", [record for (record,) in lost], pl.Int64)
        counts = Counts(**outcome["counts"])
        return Gathered(
            chunk=chunk,
            accepted=accepted.filter(~pl.col(RECORD).is_in(losers.implode())) if losers.len() else accepted,
            rejected=self._frame(chunk, "rejected"),
            counts=counts + Counts(duplicate=losers.len()),
            warned=outcome["warned"],
            text_columns=frozenset(outcome["text_columns"]),
            timings=Timings(**outcome["timings"]),
            bytes_read=outcome["bytes_read"],
            place=outcome["place"],
        )

    def source(self, chunk: int) -> pl.DataFrame:
        """Return the accepted rows of a chunk as they were read."""
        return self._frame(chunk, "source")

    def _place(self, chunk: int, name: str) -> Path:
        return self.folder / f"chunk-{chunk}-{name}.arrow"

    def _frame(self, chunk: int, name: str) -> pl.DataFrame:
        with _told(f"read {self.folder}"):
            return pl.read_ipc(self._place(chunk, name))

    @contextmanager
    def _cursor(self, verb: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Give a cursor of one's own, alone; a transaction that was not committed is rolled back at its end."""
        with self._lock, _told(f"{verb} {self.folder / FILE}"):
            cursor = self._con.cursor()
            try:
                yield cursor
            finally:
                cursor.close()


def remove(folder: Path) -> None:
    """Remove a run's folder; nothing happens when it is not there."""
    with _told(f"remove {folder}"):
        if os.path.lexists(folder):
            shutil.rmtree(folder)


def _write(place: Path, frame: pl.DataFrame) -> None:
    """Write a frame so that the file is whole or not there, also after a loss of power."""
    new = place.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        frame.write_ipc(file, compression="lz4", compat_level=pl.CompatLevel.newest())
        file.flush()
        os.fsync(file.fileno())
    new.rename(place)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what could not be done with the folder; the run stops, for no other chunk would fare better."""
    try:
        yield
    except (OSError, duckdb.Error, pl.exceptions.PolarsError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else safe_message(error)
        msg = f"{what}: {said}. Look at its disk and at work_memory_mb, and run the same command again"
        raise StopRunError(msg) from error
