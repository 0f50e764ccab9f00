"""The rows that a target should have, in a temporary table beside it, and what differs; nothing is ever committed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, Literal

from psycopg import sql

from keyhaul.targets.isolate import write_chunk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import LiteralString

    import polars as pl

    from keyhaul.model import Column
    from keyhaul.targets.rows import Destination, Placed
    from keyhaul.targets.session import Session
    from keyhaul.transform.mapping import WriteColumn

_NAME: Final = "_keyhaul_expected"
EXPECTED: Final = sql.Identifier("pg_temp", _NAME)
"""The temporary table with the rows that should be there, in the target's own types."""

_DIFFERENCE: Final = sql.Identifier("pg_temp", "_keyhaul_difference")

Kind = Literal["changed", "missing", "extra"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many rows of a slice differ.

    Attributes:
        changed: the key is at both ends, and another column differs.
        missing: not in the target.
        extra: in the target alone.
    """

    changed: int = 0
    missing: int = 0
    extra: int = 0

    @property
    def total(self) -> int:
        """Return the number of differences."""
        return self.changed + self.missing + self.extra


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """One row that differs; its values are the target's text forms, None is NULL.

    Attributes:
        key: the values of the key's columns; empty when the target has no key.
        columns: those that differ, for a row that is `changed`.
        expected: column → value as the source gives it; empty for an extra row.
        found: column → value in the target; empty for a missing row.
    """

    kind: Kind
    key: tuple[str | None, ...]
    columns: tuple[str, ...]
    expected: dict[str, str | None]
    found: dict[str, str | None]


class Slice:
    """A part of the target's rows beside the rows that should be there, in one transaction of a session.

    Whoever opens it rolls the transaction back: it makes temporary tables and writes nowhere else.
    """

    def __init__(
        self,
        session: Session,
        destination: Destination,
        key: Sequence[Column],
        within: sql.Composable,
        *,
        extra: bool,
        ordered: bool = True,
    ) -> None:
        """Make the temporary table for the expected rows.

        Args:
            session: with no transaction open.
            destination: the table that is compared, and how the job writes it.
            key: its columns that are the job's key; empty when they are not all there.
            within: the condition for its rows that belong to this slice.
            extra: whether rows that only the target has are differences.
            ordered: the types of the key's columns have an order, in which rows are named; else it is that of texts.
        """
        self._ordered = tuple(column.name for column in key) if ordered else ()
        self._session = session
        self._columns = destination.columns
        self._destination = replace(destination, table=EXPECTED, shape=None)
        self._table = destination.table
        self._key = tuple(key)
        self._extra = extra
        self._there = sql.SQL("(select * from {} where {}) as t").format(destination.table, within)
        # Without nested loops: an estimate of a temporary table without statistics would choose them.
        session.execute(sql.SQL("set local enable_nestloop = off"))
        session.execute(sql.SQL("set local jit = off"))
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in self._columns)
        create = sql.SQL("create temp table {} on commit drop as select {} from {} with no data")
        session.execute(create.format(sql.Identifier(_NAME), names, self._table))
        if destination.mode != "append":
            keys = sql.SQL(", ").join(map(sql.Identifier, destination.conflict))
            session.execute(sql.SQL("create unique index on {} ({})").format(EXPECTED, keys))

    def expect(self, frame: pl.DataFrame, columns: Sequence[WriteColumn]) -> Placed:
        """Add rows that should be there, by the load's own route; of those returned as invalid the types take none."""
        return write_chunk(self._session, replace(self._destination, columns=tuple(columns)), frame)

    def forget_older(self) -> int:
        """Leave out the rows in whose place the target has a newer one, by the job's `newer_by`; returns how many."""
        destination = self._destination
        if not destination.newer_by:
            return 0
        same = _pairs("e.{0} = t.{0}", destination.conflict, " and ")
        newer = sql.Identifier(destination.newer_by)
        query = sql.SQL(
            "with gone as (delete from {} as e using {} where {} and t.{newer} > e.{newer} returning 1)"
            " select count(*) from gone"
        )
        return int(self._session.execute(query.format(EXPECTED, self._there, same, newer=newer))[0][0])

    def equal(self, *, distinct: bool) -> tuple[int, bool]:
        """Count the rows that should be there, and say whether the slice is equal; False may be a false alarm.

        Args:
            distinct: no two of the expected rows are equal. With a key the rows are then joined, and compared
                byte by byte; else their number and the sum of their hashes are.
        """
        if not self._key or not distinct:
            here = self._sums(sql.SQL("{} as t").format(EXPECTED))
            return here[0], self._extra and here == self._sums(self._there)
        names = [column.name for column in self._columns]
        query = sql.SQL(
            "select (select count(*) from {expected}), count(*), count(t.{first}), {all_there}"
            " from {expected} as e left join {there} on {same} and row({mine})::record *= row({theirs})::record"
        ).format(
            expected=EXPECTED,
            first=sql.Identifier("_keyhaul_there"),
            all_there=self._count_there() if self._extra else sql.SQL("null"),
            there=sql.SQL("(select true as _keyhaul_there, * from {}) as t").format(self._there),
            same=_pairs("e.{0} = t.{0}", [column.name for column in self._key], " and "),
            mine=_pairs("e.{0}", names, ", "),
            theirs=_pairs("t.{0}", names, ", "),
        )
        expected, joined, matched, there = self._session.execute(query)[0]
        # Each expected row has exactly one partner, and different ones, as all of them are distinct.
        return expected, expected == joined == matched and there in {None, expected}

    def _count_there(self) -> sql.Composable:
        return sql.SQL("(select count(*) from {})").format(self._there)

    def _sums(self, item: sql.Composable) -> tuple[int, int]:
        names = _pairs("t.{0}", [column.name for column in self._columns], ", ")
        query = sql.SQL(
            'select count(*), coalesce(sum(hashtextextended(row({})::text collate "C", 0)::numeric), 0) from {}'
        )
        rows = self._session.execute(query.format(names, item))
        return int(rows[0][0]), int(rows[0][1])

    # --- which rows ------------------------------------------------------------------------------

    def narrow(self, limit: int) -> tuple[Tally, list[RowDifference]]:
        """Count the rows that differ, each text for text, and return the first of them in the order of their keys.

        Rows are compared as multisets: a row that is there twice and should be there once is extra.
        """
        natives = sql.SQL("").join(
            sql.SQL(", t.{} as {}").format(sql.Identifier(name), native)
            for name, native in zip(self._ordered, self._natives, strict=True)
        )
        grouped = sql.SQL(", ").join([sql.Identifier("key"), *self._natives])
        cells = sql.SQL("array[{}]").format(sql.SQL(", ").join(_text(column.target) for column in self._columns))
        key = sql.SQL("array[{}]::text[]").format(sql.SQL(", ").join(_text(column) for column in self._key))
        side = sql.SQL("select {} as key, {} as cells, {}::bigint as side{} from {}")
        both = sql.SQL("{} union all {}").format(
            side.format(key, cells, sql.Literal(1), natives, sql.SQL("{} as t").format(EXPECTED)),
            side.format(key, cells, sql.Literal(-1), natives, self._there),
        )
        self._session.execute(
            sql.SQL(
                "create temp table _keyhaul_difference on commit drop as"
                " select {grouped}, cells, sum(side)::bigint as surplus from ({both}) as s"
                " group by {grouped}, cells having sum(side) <> 0"
            ).format(both=both, grouped=grouped)
        )
        # Without a key nothing says which rows belong together.
        pairs = sql.SQL("least(e, t)" if self._key else "0")
        extra = sql.SQL("t - {}").format(pairs) if self._extra else sql.SQL("0")
        keys = sql.SQL(
            "select {grouped}, {pairs} as changed, e - {pairs} as missing, {extra} as extra from ("
            " select {grouped}, sum(greatest(surplus, 0))::bigint as e, sum(greatest(-surplus, 0))::bigint as t"
            " from {difference} group by {grouped}) as k where e > 0 or {extra} > 0"
        ).format(pairs=pairs, extra=extra, difference=_DIFFERENCE, grouped=grouped)
        count = sql.SQL("select sum(changed)::bigint, sum(missing)::bigint, sum(extra)::bigint from ({}) as k")
        changed, missing, more = (int(number or 0) for number in self._session.execute(count.format(keys))[0])
        tally = Tally(changed=changed, missing=missing, extra=more)
        return tally, self._rows(keys, limit) if tally.total and limit else []

    @property
    def _natives(self) -> list[sql.Identifier]:
        """Return what the key's columns are called where they stand in their own types."""
        return [sql.Identifier(f"key_{number}") for number in range(1, len(self._ordered) + 1)]

    def _rows(self, keys: sql.Composable, limit: int) -> list[RowDifference]:
        # A key may have many rows: of each side those that are counted, at most as many as are asked for.
        query = sql.SQL(
            "with k as ({keys}),"
            " first as (select * from (select k.*, sum(changed + missing + extra) over (order by {order})"
            " - changed - missing - extra as before from k) as s where before < {limit}),"
            " numbered as (select {ordered}, d.cells, d.surplus,"
            " case when d.surplus > 0 then changed + missing else changed + extra end as wanted,"
            " row_number() over (partition by key, d.surplus > 0 order by d.cells) as n"
            " from {difference} as d join first using ({names}))"
            " select key, cells, surplus from numbered where n <= least(wanted, {limit})"
            " order by {order}, surplus desc, cells"
        ).format(
            keys=keys,
            ordered=sql.SQL(", ").join(
                [*(sql.SQL("d.{}").format(native) for native in self._natives), sql.Identifier("key")]
            ),
            order=sql.SQL(", ").join([*self._natives, sql.Identifier("key")]),
            limit=sql.Literal(limit),
            difference=_DIFFERENCE,
            names=sql.Identifier("key"),
        )
        found = self._session.execute(query)
        differences: list[RowDifference] = []
        groups: dict[tuple[str | None, ...], list[tuple[list[str | None], int]]] = {}
        for key, cells, surplus in found:
            groups.setdefault(tuple(key), []).append((cells, surplus))
        for key, rows in groups.items():
            expected = list(islice((cells for cells, surplus in rows for _ in range(surplus)), limit))
            there = list(islice((cells for cells, surplus in rows for _ in range(-surplus)), limit))
            differences += self._named(key, expected, there)
        return differences[:limit]

    def _named(
        self, key: tuple[str | None, ...], expected: list[list[str | None]], there: list[list[str | None]]
    ) -> list[RowDifference]:
        names = [column.name for column in self._columns]
        pairs = min(len(expected), len(there)) if self._key else 0
        named = []
        for mine, theirs in zip(expected[:pairs], there[:pairs], strict=True):
            columns = tuple(name for name, a, b in zip(names, mine, theirs, strict=True) if a != b)
            here, found = dict(zip(names, mine, strict=True)), dict(zip(names, theirs, strict=True))
            named.append(RowDifference(kind="changed", key=key, columns=columns, expected=here, found=found))
        for mine in expected[pairs:]:
            here = dict(zip(names, mine, strict=True))
            named.append(RowDifference(kind="missing", key=key, columns=(), expected=here, found={}))
        for theirs in there[pairs:] if self._extra else []:
            found = dict(zip(names, theirs, strict=True))
            named.append(RowDifference(kind="extra", key=key, columns=(), expected={}, found=found))
        return named


def _text(column: Column) -> sql.Composable:
    """Return a column as exact text: not cut, and compared by its bytes whatever the column's collation."""
    name = sql.SQL("t.{}").format(sql.Identifier(column.name))
    if column.base_type == "bpchar":  # its cast to text drops the blanks at the end
        return sql.SQL('case when num_nulls({0}) = 0 then concat({0}) collate "C" end').format(name)
    return sql.SQL('{}::text collate "C"').format(name)


def _pairs(form: LiteralString, names: Sequence[str], between: LiteralString) -> sql.Composed:
    return sql.SQL(between).join(sql.SQL(form).format(sql.Identifier(name)) for name in names)
