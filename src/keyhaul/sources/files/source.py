"""Files as a source: which files, what they have in common, and their records part by part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keyhaul.differing import difference
from keyhaul.errors import ConnectError, RefusedError, StopRunError, TransientError
from keyhaul.model import Chunk, Plan
from keyhaul.postgres import pgtypes
from keyhaul.sources.columns import column_of
from keyhaul.sources.cuts import batches
from keyhaul.sources.files.agreeing import agreed
from keyhaul.sources.files.columnar import Columnar
from keyhaul.sources.files.delimited import Delimited
from keyhaul.sources.files.excel.file import Excel
from keyhaul.sources.files.file import FILE, LINE, RECORD_NUMBER, place_of
from keyhaul.sources.files.json.file import JsonFile
from keyhaul.sources.files.listing import VERSION, Format, choose, find_files
from keyhaul.sources.files.selected import Selected
from keyhaul.sources.files.textfile import TextFile
from keyhaul.sources.source import REJECTED_BY_SOURCE, Abilities, Batch, Description, Relay, Sample, Ticket
from keyhaul.storeaddress import is_remote, parent_of, whole_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from keyhaul.model import Column, KnownFiles
    from keyhaul.sources.files.dialect import Dialect
    from keyhaul.sources.files.file import File, Found
    from keyhaul.sources.files.remote.object import RemoteFile
    from keyhaul.sources.files.remote.transfers import Transfers

_MOMENT: Final = "the bytes of the files when the run began: one that changes meanwhile stops the run"
_RESUMED: Final = "the files are the same as then"
_OWN: Final = (FILE, RECORD_NUMBER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a job says of its files; plain data.

    Attributes:
        paths: files, globs and folders.
        format: None: by their endings.
        declared: column → PostgreSQL type as ``format_type`` prints it; the others are inferred.
        dialect, encoding: of CSV.
        sheet, header_row: of a workbook; None: the first sheet, no header.
        extra_columns: what becomes of a column that the first file does not have, or of a key of JSON that is no
            column: ``refuse`` or ``ignore``.
        missing_columns: of one that a later file does not have: ``refuse`` or ``null``.
        time_zone: of moments that are written without an offset; None: those are no moments.
        work_dir: where plain copies of compressed files lie.
        known: of a job that loads only new files; None: all are read.
        there: column → type in the target table, which comes before one that is inferred from texts.
    """

    paths: tuple[str, ...]
    format: Format | None = None
    declared: Mapping[str, str]
    dialect: Dialect
    encoding: str = "utf-8"
    sheet: str | None = None
    header_row: int | None = 1
    extra_columns: str = "refuse"
    missing_columns: str = "refuse"
    time_zone: str | None = None
    work_dir: str | None = None
    known: KnownFiles | None = None
    there: Mapping[str, str] = field(default_factory=dict)


class FilesSource:
    """Open files with one set of columns; see `Source`."""

    def __init__(self, wanted: Wanted) -> None:
        """Open the files, read what says their columns, and compare those.

        Raises:
            ConfigError: a file is missing or cannot be read, or the files do not fit together.
        """
        self._wanted = wanted
        self._transfers: Transfers | None = None
        self._files: list[File] = []
        try:
            paths, self._format = find_files(wanted.paths, wanted.format, self._find_remote)
            chosen = choose(paths, wanted.known)
            self._news, self._idle = chosen.news, chosen.idle
            for path in chosen.paths:
                self._files.append(self._open(path))
            self._selected = Selected(self._files, wanted.declared, missing=wanted.missing_columns)
            inside = {name: said for name, said in wanted.declared.items() if name not in self._selected.columns}
            self._columns, self._evidence = agreed(
                self._files, inside, wanted.there, extra=wanted.extra_columns, missing=wanted.missing_columns
            )
            self._columns |= self._selected.columns
        except (TransientError, StopRunError) as error:
            self.close()
            if self._transfers is None:
                raise
            raise ConnectError(str(error)) from None  # of a store, before there is a run that could try again
        except BaseException:
            self.close()
            raise
        self._states = [file.state() for file in self._files]

    def describe(self) -> Description:
        """Return the columns of the first file, as all of them are read."""
        first = self._files[0]
        several = len(self._files) > 1
        short = PurePath(first.name).name
        own = [column_of(FILE, "text", not_null=True), column_of(RECORD_NUMBER, "bigint", not_null=True)]
        routes = {column.name: pgtypes.route(column) for column in [*self._columns.values(), *own]}
        routes[LINE] = pgtypes.route(column_of(LINE, "bigint"))
        label = f"{len(self._files):,} files, {short} first" if several else short
        label += f", sheet {first.sheet}" if isinstance(first, Excel) else ""
        return Description(
            label=label,
            place=parent_of(first.name),
            table="",
            columns=tuple(self._columns.values()),
            routes=routes,
            key=_OWN,
            own=(FILE, RECORD_NUMBER, LINE),
            driver="keyhaul and pyarrow",
            moment=_MOMENT,
            resumed=_RESUMED,
            key_unique=True,
            evidence=self._evidence,
            news=self._news,
        )

    def identity(self, columns: Sequence[str] = ()) -> Mapping[str, Any]:
        """Return path, size and time of change (of a remote one its etag) of each file, and how they are read."""
        del columns  # what is in it says it all
        wanted = self._wanted
        return {
            "files": [
                {"path": whole_path(file.name), "bytes": size, VERSION[type(version)]: version}
                for file, (size, version) in zip(self._files, self._states, strict=True)
                if not self._idle
            ],
            "format": self._format,
            "read_as": {
                "columns": dict(wanted.declared),
                "delimiter": wanted.dialect.delimiter,
                "quote": wanted.dialect.quote,
                "nulls": list(wanted.dialect.nulls),
                **({"comment": wanted.dialect.comment} if wanted.dialect.comment else {}),
                **({"decimal": ","} if wanted.dialect.decimal == "," else {}),
                "header": wanted.dialect.header,
                "encoding": wanted.encoding,
                "sheet": wanted.sheet,
                "header_row": wanted.header_row,
                "time_zone": wanted.time_zone,
            },
        }

    def differs(self, was: Mapping[str, Any], columns: Sequence[str]) -> Sequence[str]:
        """Return each part that is another one, with both."""
        return difference(was, self.identity(columns))

    def sample(self, columns: Sequence[str]) -> Sample:
        """Return the width of the first file's records, and how many all files have, estimated."""
        found = [file.sample() for file in self._files]
        share = len([name for name in columns if name in self._columns]) / max(len(self._columns), 1)
        return Sample(row_bytes=found[0][0] * share, rows=sum(rows for _, rows in found))

    def plan(self, chunk_rows: int) -> Plan:
        """Return parts of the files, in their order; no record is read."""
        chunks: list[Chunk] = []
        for number, file in enumerate([] if self._idle else self._files):
            for part, rows in file.parts(chunk_rows):
                chunks.append(
                    Chunk(number=len(chunks) + 1, kind="part", lower=(str(number), *part), estimated_rows=rows)
                )
        sizes = 0 if self._idle else sum(size for size, _ in self._states)
        rows = sum(chunk.estimated_rows for chunk in chunks)
        return Plan(chunks=tuple(chunks), estimated_rows=rows, estimated_bytes=sizes, exact=False)

    def reread(self, keys: Sequence[str], chunk_rows: int) -> Plan:
        """Return batches of records by file and number."""
        return batches(keys, chunk_rows, self._files[0].sample()[0])

    def open(self, worker: int, columns: Sequence[str]) -> FilesReader:  # noqa: ARG002 - one reader is like the other
        """Return a reader; files are shared, since each read says where it reads."""
        return FilesReader(self._files, self._columns, columns, self._selected)

    def ticket(self, columns: Sequence[str]) -> Ticket:
        """Return the paths, and how they are read.

        Raises:
            RefusedError: a file is compressed, and its plain copy is this process's own; or an address is signed.
        """
        if any(is_remote(path) and "?" in path for path in self._wanted.paths):
            raise RefusedError("read files in another process: an address has a signature. Move them in this one")
        if any(file.spooled for file in self._files):
            msg = "read files in another process: only this one sees a compressed file's copy. Unpack it first"
            raise RefusedError(msg)
        wanted = self._wanted
        declared = {name: column.pg_type for name, column in self._columns.items()}
        state = {
            "paths": [file.name for file in self._files],
            "format": self._format,
            "declared": declared,
            "dialect": {**asdict(wanted.dialect), "nulls": list(wanted.dialect.nulls)},
            "encoding": wanted.encoding,
            "sheet": wanted.sheet,
            "header_row": wanted.header_row,
            "extra_columns": wanted.extra_columns,
            "missing_columns": wanted.missing_columns,
            "time_zone": wanted.time_zone,
        }
        return Ticket(kind="files", columns=tuple(columns), state=state)

    def touch(self) -> None:
        """Nothing is held: each read looks whether its file is still the same."""

    def cancel(self) -> None:
        """End what stores are asked for; a read of a local part ends by itself within seconds."""
        if self._transfers is not None:
            self._transfers.cancel()

    def close(self) -> None:
        """Close the files; twice is once."""
        for file in self._files:
            file.close()
        if self._transfers is not None:
            self._transfers.close()

    @property
    def abilities(self) -> Abilities:
        """Parts of CSV files may go to PostgreSQL as they are."""
        whole = all(isinstance(file, Delimited) and file.relays for file in self._files)
        return Abilities(relays=whole and not self._selected.columns)

    # --- before the first part -------------------------------------------------------------------

    def _find_remote(self, address: str) -> Sequence[RemoteFile]:
        from keyhaul.sources.files.remote.listing import Store
        from keyhaul.sources.files.remote.transfers import Transfers

        if self._transfers is None:
            self._transfers = Transfers()
        return Store(address, self._transfers).find()

    def _open(self, path: Path | RemoteFile) -> File:
        wanted = self._wanted
        if self._format in {"parquet", "arrow"}:
            return Columnar(path, parquet=self._format == "parquet", declared=wanted.declared)
        if self._format == "excel":
            return Excel(
                path,
                sheet=wanted.sheet,
                header_row=wanted.header_row,
                work_dir=wanted.work_dir,
                time_zone=wanted.time_zone,
            )
        dialect = wanted.dialect
        name = PurePath(path.name.lower())
        if dialect.delimiter == "," and {name.suffix, name.with_suffix("").suffix} & _TABS:
            dialect = replace(dialect, delimiter="\t")
        is_json = self._format == "json"
        file = TextFile(path, encoding="utf-8" if is_json else wanted.encoding, work_dir=wanted.work_dir)
        try:
            if is_json:
                ignore = wanted.extra_columns == "ignore"
                return JsonFile(file, work_dir=wanted.work_dir, ignore_extra=ignore, time_zone=wanted.time_zone)
            return Delimited(file, dialect, wanted.time_zone)
        except BaseException:
            file.close()
            raise


_TABS: Final = frozenset({".tsv", ".tab"})


class FilesReader:
    """Reads parts of the files of a source; see `Reader`."""

    def __init__(
        self, files: Sequence[File], types: Mapping[str, Column], columns: Sequence[str], selected: Selected
    ) -> None:
        """Take what the source has opened."""
        self._selected = selected
        self._files = files
        self._types = types
        self._columns = tuple(columns)
        self._numbers = {file.name: number for number, file in enumerate(files)}

    def read(self, chunk: Chunk) -> Batch:
        """Return the records of a part, or those with one of some keys."""
        if chunk.kind == "keys":
            return self._among(chunk.keys)
        number, *part = chunk.lower or ("0",)
        return self._read(self._files[int(number)], tuple(part))

    def relay(self, chunk: Chunk, columns: Collection[str]) -> Relay | None:
        """Return the bytes of a part; see `Relaying`."""
        number, *part = chunk.lower or ("0",)
        file = self._files[int(number)]
        if chunk.kind != "part" or not isinstance(file, Delimited) or not file.relays:
            return None
        return file.relay(tuple(part)) if set(file.names) == set(columns) else None

    def close(self) -> None:
        """Nothing is its own."""

    def _read(self, file: File, part: tuple[str, ...]) -> Batch:
        inside = [name for name in self._columns if name in self._types and name not in self._selected.columns]
        found = file.read(part, inside)
        missing = [name for name in inside if name not in found.frame.columns]
        frame = found.frame.with_columns(
            pl.lit(file.name).alias(FILE),
            *self._selected.expressions(file.name, self._columns),
            *(pl.lit(None, dtype=pgtypes.route(self._types[name]).dtype).alias(name) for name in missing),
        )
        return Batch(
            frame=frame.select(self._columns),
            bytes_read=found.bytes_read,
            rejected=_rejected(file.name, found),
            notices=found.notices,
            place=_place(file.name, found),
        )

    def _among(self, keys: Sequence[str]) -> Batch:
        wanted: dict[str, set[int]] = {}
        for key in keys:
            name, number = json.loads(key)
            wanted.setdefault(name, set()).add(int(number))
        batches = []
        for name, numbers in sorted(wanted.items()):
            if name in self._numbers:
                batches += self._some(self._files[self._numbers[name]], numbers)
        if not batches:
            empty = {
                n: pgtypes.route(self._types[n]).dtype if n in self._types else _OWN_TYPES[n] for n in self._columns
            }
            return Batch(frame=pl.DataFrame(schema=empty), bytes_read=0)
        return Batch(
            frame=pl.concat([batch.frame for batch in batches]),
            bytes_read=sum(batch.bytes_read for batch in batches),
            rejected=pl.concat([batch.rejected for batch in batches]),
            notices=tuple(notice for batch in batches for notice in batch.notices),
        )

    def _some(self, file: File, numbers: set[int]) -> list[Batch]:
        parts = {part: None for number in sorted(numbers) if (part := file.part_of(number)) is not None}
        found = []
        for part in parts:
            batch = self._read(file, part)
            keys = [_key(file.name, number) for number in numbers]
            found.append(
                replace(
                    batch,
                    frame=batch.frame.filter(pl.col(RECORD_NUMBER).is_in(sorted(numbers))),
                    rejected=batch.rejected.filter(pl.col("key").is_in(keys)),
                )
            )
        return found


_OWN_TYPES: Final = {FILE: pl.String(), RECORD_NUMBER: pl.Int64(), LINE: pl.Int64()}


def _place(name: str, part: Found) -> str:
    """Return where a part's records begin and end, for people."""
    records = pl.concat([part.frame.select(RECORD_NUMBER, LINE), part.rejected.select("number", "line").rename(_OURS)])
    lines = records[LINE].null_count() == 0
    what = f"{part.line_is}s" if lines else "records"
    return place_of(name, what, records[LINE if lines else RECORD_NUMBER])


_OURS: Final = {"number": RECORD_NUMBER, "line": LINE}


def _rejected(name: str, part: Found) -> pl.DataFrame:
    """Return rejected records as the engine takes them."""
    short, found = PurePath(name).name, part.rejected
    keys = [_key(name, number) for number in found["number"]]
    place = (
        pl.when(pl.col("line").is_null())
        .then(pl.format("{} record {}", pl.lit(short), "number"))
        .otherwise(pl.format("{} {} {}, record {}", pl.lit(short), pl.lit(part.line_is), "line", "number"))
    )
    return found.select(
        "reason", "message", place.alias("place"), pl.Series("key", keys, dtype=pl.String), "raw"
    ).select(REJECTED_BY_SOURCE.keys())


def _key(name: str, number: int) -> str:
    """Return a record's key as the quarantine has it."""
    return json.dumps([name, str(number)], ensure_ascii=False, separators=(",", ":"))
