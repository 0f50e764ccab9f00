"""The tool with one mistake in it, to see whether the oracle finds it.

Each function makes its mistake in the process that calls it; its docstring says which.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyhaul.model import Staged

SECOND = 2
"""The chunk whose ledger is tampered with."""


def put(mutant: Callable[[], None], folder: Path) -> None:
    """Let each Python process that has `folder` on its path make the mistake."""
    here = str(Path(__file__).parent)
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {here!r})\nimport mutants\nmutants.{mutant.__name__}()\n", encoding="utf-8"
    )


def _wrap(owner: Any, name: str, mistake: Callable[..., Any]) -> None:
    """Let `mistake` stand for a function; it is given that one before its arguments."""
    right = getattr(owner, name)
    setattr(owner, name, lambda *args, **named: mistake(right, *args, **named))


def _stage(change: Callable[[Staged], Staged]) -> None:
    from keyhaul.staging.stage import Stager

    _wrap(Stager, "stage", lambda right, *args: change(right(*args)))


def _accept(change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    _stage(lambda staged: replace(staged, accepted=change(staged.accepted)))


def _query(old: str, new: str) -> None:
    from keyhaul.sources.postgres.ranges import KeyRanges

    _wrap(KeyRanges, "query", lambda right, *args: right(*args).replace(old, new))


# --- rows ------------------------------------------------------------------------------------------


def drop_a_row_read() -> None:
    """The last row of each chunk is lost on the way from the reader."""
    from keyhaul.sources.postgres.reading import PostgresReader

    def mistake(right: Callable[..., Any], *args: object) -> object:
        table, text = right(*args)
        return table[:-1], text

    _wrap(PostgresReader, "_read", mistake)


def drop_a_row_staged() -> None:
    """The last accepted row of each chunk is lost, and nobody counts it."""
    _accept(lambda rows: rows[:-1])


def drop_a_row_and_count_it() -> None:
    """The last accepted row of each chunk is lost, and counted as filtered."""

    def change(staged: Staged) -> Staged:
        counts = replace(staged.counts, filtered=staged.counts.filtered + 1)
        return replace(staged, accepted=staged.accepted[:-1], counts=counts)

    _stage(change)


def load_twice() -> None:
    """Each chunk's rows are written twice, and counted once."""
    from keyhaul.targets import transaction

    def mistake(right: Callable[..., Any], *args: object) -> object:
        right(*args)
        return right(*args)

    _wrap(transaction, "write_chunk", mistake)


def leave_the_lower_bound_out() -> None:
    """The first key of each range is in no chunk."""
    _query(">=", ">")


def take_the_upper_bound_in() -> None:
    """The first key of each range is in the chunk before, too."""
    _query(" < ", " <= ")


def swap_columns() -> None:
    """Two integer columns go into each other's place."""
    _accept(lambda rows: rows.with_columns(id=pl.col("grp").cast(pl.Int64), grp=pl.col("id").cast(pl.Int32) % 40))


def shift_a_column() -> None:
    """One column's values slip by a row."""
    _accept(lambda rows: rows.with_columns(pl.col("name").shift(1, fill_value="")))


def round_amounts() -> None:
    """A numeric column goes through a float of four bytes, and gains a cent on the way."""
    _accept(lambda rows: rows.with_columns((pl.col("amount").cast(pl.Float32) + 0.01).cast(rows.schema["amount"])))


def empty_for_null() -> None:
    """NULL and the empty text are taken for the same: the first row's name is lost."""
    _accept(
        lambda rows: rows.with_columns(name=pl.when(pl.col("id") == pl.col("id").min()).then(None).otherwise("name"))
    )


def skip_the_rules() -> None:
    """Rules are not looked at."""
    from keyhaul.staging.stage import Stager

    Stager._broken = lambda _self, frame, _warned: frame[:0].select(  # type: ignore[method-assign]
        "_keyhaul_record", stage=pl.lit(""), rules=pl.lit([""]), message=pl.lit("")
    )


# --- the ledger ------------------------------------------------------------------------------------


def skip_the_ledger_row() -> None:
    """The second chunk is loaded, and its ledger row is not written."""
    from keyhaul.model import ChunkResult
    from keyhaul.targets import transaction

    def mistake(
        right: Callable[..., Any], session: Any, counts: Any, staged: Any, entry: Any, *more: Any, **named: Any
    ) -> Any:
        if entry.chunk.number != SECOND:
            return right(session, counts, staged, entry, *more, **named)
        return ChunkResult(chunk=SECOND, counts=counts, timings=entry.timings, attempts=1, bytes_read=0)

    _wrap(transaction, "_keyhaul_record", mistake)


def skip_the_quarantine() -> None:
    """Rejected records are counted, and not kept."""
    from keyhaul.targets import transaction

    transaction._write_quarantine = lambda _session, rejected, _entry: rejected.height


def commit_before_the_ledger_row() -> None:
    """A chunk's rows are committed by themselves, its ledger row after them."""
    from keyhaul.targets import transaction

    def mistake(right: Callable[..., Any], session: Any, *args: object) -> object:
        session.commit()
        return right(session, *args)

    _wrap(transaction, "_write_quarantine", mistake)


def guess_a_commit() -> None:
    """A COMMIT whose answer is an error is taken for done."""
    from keyhaul.errors import TransientError
    from keyhaul.targets.session import CopySession

    failed = []

    def mistake(right: Callable[..., Any], session: Any) -> None:
        if not failed:
            failed.append(True)
            session.close()
        with suppress(TransientError):
            right(session)

    _wrap(CopySession, "commit", mistake)


def skip_a_checksum() -> None:
    """The second chunk gets no checksum."""
    from keyhaul.targets import transaction

    def mistake(right: Callable[..., Any], session: Any, place: Any, hashing: Any, chunk: Any) -> None:
        if chunk.number != SECOND:
            right(session, place, hashing, chunk)

    _wrap(transaction, "store", mistake)


# --- beside the rows -------------------------------------------------------------------------------


def tell_the_password() -> None:
    """The addresses that the drivers get are printed."""
    from keyhaul.postgres.dsn import Dsn

    def mistake(right: Callable[..., str], *args: object, **named: object) -> str:
        uri = right(*args, **named)
        print(uri, file=sys.__stderr__)
        return uri

    _wrap(Dsn, "uri", mistake)


def leave_a_file() -> None:
    """Something stays in the work folder."""
    from keyhaul.staging.stage import Stager

    def mistake(right: Callable[..., None], *args: object) -> None:
        folder = Path(sys.argv[sys.argv.index("--work-dir") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "staged.duckdb").touch()
        right(*args)

    _wrap(Stager, "close", mistake)


MUTANTS: dict[Callable[[], None], str] = {
    drop_a_row_read: "balance: (597, ",
    drop_a_row_staged: 'violates check constraint "balance"',
    drop_a_row_and_count_it: "rows: (500, ",
    load_twice: "503 rows are there twice",
    leave_the_lower_bound_out: "rows: (501, ",
    take_the_upper_bound_in: "2 rows are there twice",
    swap_columns: "rows: (504, ",
    shift_a_column: "rows: (503, ",
    round_amounts: "rows: (503, ",
    empty_for_null: "rows: (503, ",
    skip_the_rules: "quarantine: (1, ",
    skip_the_ledger_row: "1 planned chunks are not done",
    skip_the_quarantine: "3 chunks count other records than the quarantine holds",
    commit_before_the_ledger_row: 'violates check constraint "balance"',
    guess_a_commit: "1 planned chunks are not done",
    skip_a_checksum: "checksums: (336, ",
    tell_the_password: "a secret is in the output",
    leave_a_file: "a file is left: ",
}
"""Each mistake, with a part of what is said of it: by the oracle, or by the tool, which then ends with code 3."""
